"""What stands in README.md, docs/settings.md and docs/formats.md, made from rows and settings.

    python -m benchmarks.pages

Each part is written between its marks, such as `<!-- figures: answer -->`. A test holds what stands
there to what this module makes, so that none can grow old.
"""

import math
import re
from typing import Any

import nbformat

from benchmarks.analysis.bench_figures import said
from benchmarks.analysis.effects import CUT, CUT_TWICE, TIME, effect
from benchmarks.analysis.study_rows import read_bench
from benchmarks.analysis.verdicts import read_forecast, shipped_bytes
from benchmarks.interop.table import FORMATS_PAGE, who_reads_it
from benchmarks.interop.table import RESULTS as INTEROP
from benchmarks.sections import README, SETTINGS_PAGE, into_file, read, spread
from lib.config import METHOD_NAMES
from lib.config.checked import described
from lib.config.presets import PRESETS
from lib.config.settings import Settings
from lib.files.paths import ROOT
from lib.files.text import amount, size_text
from lib.memory.cards import CARDS, usable_bytes

SPEED = ROOT / "benchmarks" / "results" / "pocket.json"
COLUMNS = ["", "LoRA", "DreamBooth", "DreamBooth cut to a LoRA", "so"]
QUESTIONS = {
    "01_dataset_prep": "What makes photos ready to train on?",
    "02_lora_training": "What is a low-rank update, and what does it learn?",
    "03_dreambooth_training": "What changes when every weight trains?",
    "04_comparison": "Which one, at what cost, and how sure?",
    "05_compose_and_ship": "How do I combine, merge, cut down and share?",
    "06_many_runs": "How do I train a grid, and what may its table say?",
}
RANK = PRESETS["lora", "sd1"]["rank"]  # of the LoRA whose file is computed


def answer(rows: list[dict[str, Any]], speed: dict[str, Any]) -> str:
    """The five rows and their caveat as Markdown.

    rows: PocketBench's, one a run. speed: what `make bench` measured on one machine
    (benchmarks/results/pocket.json), of today's training step.
    """
    likeness = effect(rows, "dino")
    seconds = speed["seconds"]
    memory = {
        method: f"{speed['memory'][method]['peak_bytes'] / 2**20:.0f} MiB"
        for method in ("lora", "dreambooth")
    }  # whole: the bench's other photos take some kilobytes more
    forecast = {method: on_card(read_forecast()["sdxl", method]) for method in memory}
    file = {method: amount(speed["memory"][method]["file_bytes"], "bytes") for method in memory}
    sd15 = {method: size_text(shipped_bytes("sd15", method, RANK)) for method in memory}
    lines = [
        [
            "seconds a training step",
            spread(seconds["lora"]),
            spread(seconds["dreambooth"]),
            "as DreamBooth",
            f"{quicker(seconds['ratio']['median'])}: DreamBooth's step takes"
            f" {spread(seconds['ratio'])} times as long in the same round",
        ],
        [
            "memory of training; SDXL at 1024 pixels, smallest recipe (forecast)",
            f"{memory['lora']}; {forecast['lora']}",
            f"{memory['dreambooth']}; {forecast['dreambooth']}",
            "as DreamBooth",
            f"{smaller(speed, 'peak_bytes')}: this decides on a small card",
        ],
        [
            f"file to share; Stable Diffusion 1.5 (rank {RANK}, computed)",
            f"{file['lora']}; {sd15['lora']}",
            f"{file['dreambooth']}; {sd15['dreambooth']}",
            "as LoRA",
            f"{smaller(speed, 'file_bytes')}: this decides with many subjects",
        ],
        _scored(
            rows,
            "likeness to held-out photos (DINO; a third of the prompts ask for another colour)",
            "dino",
        ),
        _scored(rows, "the class turns into the subject (PRES minus the base's)", "pres"),
    ]
    table = ["| " + " | ".join(COLUMNS) + " |", "| --- | --- | --- | --- | --- |"]
    table += ["| " + " | ".join(line) + " |" for line in lines]
    subjects = likeness.text().rsplit("), ", 1)[-1]
    return "\n".join(
        [
            *table,
            "",
            f"Measured on the small base model that ships (drawings of 64 pixels): {subjects}, each"
            " method at the lowest of the learning rates that did best; intervals are 95 % over"
            " subjects. The class is asked for in words that no class image has. **One caveat**:"
            " the captions of these photos name the place. Where captions name none, a subject in"
            " another drawing style took DreamBooth more steps"
            " ([what helps](docs/troubleshooting.md)): look at your own.",
            "",
        ]
    )


def on_card(peak: float) -> str:
    """Bytes of a recipe, and the smallest common card that has as many to be had."""
    card = next(gb for gb in CARDS if usable_bytes(gb) >= peak)
    return f"{size_text(peak)}, a card of {card} GB"


def quicker(ratio: float) -> str:
    """Who is quicker where DreamBooth takes `ratio` times as long, as far as that is a reason to
    choose (`TIME`).
    """
    if 1 / (1 + TIME) < ratio < 1 + TIME:
        return "hardly a difference"
    return "LoRA" if ratio > 1 else "DreamBooth"


def smaller(speed: dict[str, Any], measure: str) -> str:
    """Who takes fewer bytes."""
    sides = {METHOD_NAMES[method]: speed["memory"][method][measure] for method in METHOD_NAMES}
    return min(sides, key=lambda name: sides[name])


def _scored(rows: list[dict[str, Any]], name: str, measure: str) -> list[str]:
    """A row of the table for a score, with the effect of DreamBooth against LoRA."""
    found = effect(rows, measure)
    sides = [
        "-" if value is None else amount(value, found.unit) for value in (found.against, found.of)
    ]
    change = found.text().rsplit(", ", 1)[0]
    return [name, *sides, _of_cuts(rows, measure), f"DreamBooth: {said(found)}; {change}"]


def _of_cuts(rows: list[dict[str, Any]], measure: str) -> str:
    """The mean of DreamBooth cut to a LoRA, of LoRA's rank and of twice that; a dash where it was
    not measured.
    """
    once, twice = (effect(rows, measure, of=of, against=None) for of in (CUT, CUT_TWICE))
    texts = [amount(e.value, e.unit) for e in (once, twice) if e.value is not None]
    return f"{texts[0]}; at twice the rank {texts[1]}" if len(texts) == 2 else "-"


def syllabus(speed: dict[str, Any]) -> str:
    """The course as a table: each notebook's question, minutes and memory.

    The minutes are those of `make bench`'s machine, a dash where it has not measured them; question
    and memory are what the notebook says.
    """
    lines = [
        "| notebook | its question | minutes on two cores | memory |",
        "| --- | --- | ---: | ---: |",
    ]
    for name, question in QUESTIONS.items():
        seconds = speed["notebooks"].get(name)
        minutes = f"{seconds / 60:.1f}" if seconds else "-"
        path = ROOT / "notebooks" / f"{name}.ipynb"
        opening = nbformat.read(path, as_version=4).cells[0].source
        memory = re.search(r"about ([\d.]+ GiB) of memory", opening)
        title = name.replace("_", " ")
        lines.append(
            f"| [{title}](notebooks/{name}.ipynb) | {question} | {minutes} |"
            f" {memory[1] if memory else '-'} |"
        )
    return "\n".join([*lines, ""])


def settings_page() -> str:
    """Every setting of a run as a table: what it may be, what it is by itself, what it means."""
    lines = ["| setting | may be | by itself | what it is |", "| --- | --- | --- | --- |"]
    for name, field in described(Settings).items():
        if field.choices:
            values = ", ".join(field.choices)
        elif math.isfinite(field.limits[0]):
            values = f"{field.limits[0]} to {field.limits[1]}"
        else:
            values = {str: "a text", bool: "true or false"}[field.kind]
        given = field.default if isinstance(field.default, str | int | float) else "must be given"
        lines.append(f"| `{name}` | {values} | {given} | {field.description} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Write all parts."""
    speed = read(SPEED)
    if speed is None:
        raise SystemExit(f"There is no {SPEED}: run make bench first.")
    into_file(README, "answer", answer(read_bench(), speed))
    into_file(README, "syllabus", syllabus(speed))
    into_file(SETTINGS_PAGE, "settings", settings_page())
    into_file(FORMATS_PAGE, "interop", who_reads_it(read(INTEROP)))


if __name__ == "__main__":
    main()
