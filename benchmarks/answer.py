"""The README's answer: five rows, LoRA beside DreamBooth, from the rows and figures that ship.

    python -m benchmarks.answer

It is written between the marks `<!-- figures: answer -->` of README.md. A test holds what stands
there to what this module makes, so that no row can grow old.
"""

from typing import Any

from benchmarks.analysis.bench_figures import said
from benchmarks.analysis.effects import effect, shown
from benchmarks.analysis.study_rows import read_bench
from benchmarks.analysis.verdicts import large, read_forecast, shipped_bytes
from benchmarks.sections import README, into_file, read, spread
from lib.files.paths import ROOT

SPEED = ROOT / "benchmarks" / "results" / "pocket.json"
COLUMNS = ["", "LoRA", "DreamBooth", "so"]
RANK = 16  # of the Stable Diffusion LoRA whose file is computed


def answer(rows: list[dict[str, Any]], speed: dict[str, Any]) -> str:
    """The five rows and their caveat as Markdown.

    rows: PocketBench's, one a run. speed: what `make bench` measured on one machine
    (benchmarks/results/pocket.json), of today's training step.
    """
    likeness = effect(rows, "dino")
    forgetting = effect(rows, "pres")
    seconds = speed["seconds"]
    memory = {
        method: shown(speed["memory"][method]["peak_bytes"], "bytes")
        for method in ("lora", "dreambooth")
    }
    forecast = {method: large(read_forecast()["sdxl", method]) for method in memory}
    file = {method: shown(speed["memory"][method]["file_bytes"], "bytes") for method in memory}
    sd15 = {method: large(shipped_bytes("sd15", method, RANK)) for method in memory}
    lines = [
        [
            "seconds a training step",
            spread(seconds["lora"]),
            spread(seconds["dreambooth"]),
            f"hardly a difference: DreamBooth's step takes {spread(seconds['ratio'])} times as"
            " long in the same round",
        ],
        [
            "memory of training; SDXL at 1024 pixels, smallest recipe (forecast)",
            f"{memory['lora']}; {forecast['lora']}",
            f"{memory['dreambooth']}; {forecast['dreambooth']}",
            "LoRA: this decides on a small card",
        ],
        [
            f"file to share; Stable Diffusion 1.5 (rank {RANK}, computed)",
            f"{file['lora']}; {sd15['lora']}",
            f"{file['dreambooth']}; {sd15['dreambooth']}",
            "LoRA: this decides with many subjects",
        ],
        _scored("likeness to held-out photos (DINO's role, 1 is a copy)", likeness),
        _scored("the class turns into the subject (PRES minus the base's)", forgetting),
    ]
    table = ["| " + " | ".join(COLUMNS) + " |", "| --- | --- | --- | --- |"]
    table += ["| " + " | ".join(line) + " |" for line in lines]
    subjects = f"{likeness.subjects} subjects x {likeness.seeds} seeds"
    return "\n".join(
        [
            *table,
            "",
            f"Measured on the small base model that ships (drawings of 64 pixels): {subjects}, each"
            " method at its own best learning rate; intervals are 95 % over subjects. **One"
            " caveat**: the last row asks in the words that the class images were drawn from. In"
            " other words, colours and places it may turn round: ask your own model in your own"
            " words before you believe it.",
            "",
        ]
    )


def _scored(name: str, found: Any) -> list[str]:
    """A row of the table for an effect of DreamBooth against LoRA."""
    sides = [shown(value, found.unit) for value in (found.against, found.of)]
    change = found.text().rsplit(", ", 1)[0]
    return [name, *sides, f"DreamBooth: {said(found)}; {change}"]


def main() -> None:
    """Write the README's section."""
    speed = read(SPEED)
    if speed is None:
        raise SystemExit(f"There is no {SPEED}: run make bench first.")
    into_file(README, "answer", answer(read_bench(), speed))


if __name__ == "__main__":
    main()
