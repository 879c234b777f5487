"""What was measured on many subjects, as it ships: verdicts, studies, what survives of concepts.

`python -m benchmarks.analysis` writes the files of data/results that are read here, from the
bench's rows. Nothing is computed again, so notebooks show them at once:

    verdict_table()            # the 17 claims, what was measured, and what may be said
    study("rank")              # a study's picture, with its numbers as a table
"""

import math
import re
from typing import Any

from lib.config import MEASURE_NAMES, METHOD_NAMES, METHODS
from lib.evaluation.comparison_table import COLUMNS, Comparison
from lib.files import ROOT, BadInput, read_json
from lib.files.text import amount
from lib.plots import Figure, Table

RESULTS = ROOT / "data" / "results"
# The difference of DINO that matters to people, by the tables of DreamBooth's paper (Ruiz et al.
# 2022, arXiv 2208.12242). A concept's share of a smaller distance from the base is mostly noise.
CLEAR = 0.1
NOT_MEASURED = "not measured yet: make pocketbench"

IN_A_WORD = (
    "Holds, does not hold (the opposite, or shown to be the same), depends, or not told apart: the"
    " interval allows either. Times (x) and differences (+, -) with 95 % intervals over subjects."
    " Your own run is one subject and one seed: it decides nothing."
)


def verdict_table(own: Comparison | None = None, found: dict[str, Any] | None = None) -> Table:
    """The claims, each with one word, one number with its interval, and the reader's own run; all
    that was measured of them (`verdict_details`) is its `rest`.

    own, found: as of `verdict_details`, and raises as it does.
    """
    found = found or read_result("verdicts")
    rest = verdict_details(own, found)
    rows = [
        [
            *(str(claim["claim"]), claim["words"], verdict_word(claim["verdict"])),
            *(_measured(claim), line[-1].split("; ")[0]),
        ]
        for claim, line in zip(found["claims"], rest.rows)
    ]
    columns = ["claim", "in words", "verdict", "DreamBooth against LoRA", rest.columns[-1]]
    return Table(rows, columns, f"PocketBench's verdicts. {IN_A_WORD}", rest)


# Rows of the short table: the measure, its name with its unit, the format of a number, and what a
# number is divided by.
SHORT = {
    "seconds_per_step": ("seconds a step", "{:.3g}", 1),
    "peak_bytes": ("memory, MiB", "{:.3g}", 2**20),
    "file_bytes": ("file, MiB", "{:.3g}", 2**20),
    "dino": ("likeness (DINO)", "{:.3f}", 1),
    "clip_t": ("prompt followed (CLIP-T)", "{:.3f}", 1),
    "pres": ("class lost (PRES - base)", "{:+.3f}", 1),
}


SHORT_NOTE = (
    "Your own run, beside it the base model and real photos. Many subjects:"
    " PocketBench's DreamBooth against LoRA, times (x) or differences, with 95 % intervals."
)


def answer_table(own: Comparison, found: dict[str, Any] | None = None) -> Table:
    """The own run in five columns: a measure, LoRA, DreamBooth, the base model and real photos, and
    what PocketBench measured of DreamBooth against LoRA on many subjects.

    found: what verdicts.json holds.
    """
    found = found or read_result("verdicts")
    # A measure's first own part is the comparison itself, before its variants.
    parts = [part for claim in found["claims"] for part in claim["parts"] if part["own"]]
    measured = {part["measure"]: part for part in reversed(parts)}
    rows = []
    for measure, (words, form, per) in SHORT.items():
        values = {
            name: form.format(row[measure] / per)
            for name, row in own.rows.items()
            if row.get(measure) is not None
        }
        ends = [values[name] for name in ("base_model", "real_photos") if name in values]
        sides = (values.get(method, "-") for method in METHODS)
        rows.append([words, *sides, ", ".join(ends) or "-", _against(measured.get(measure))])
    return Table(rows, ["", "LoRA", "DreamBooth", "base, real photos", "many subjects"], SHORT_NOTE)


def _against(part: dict[str, Any] | None) -> str:
    """The effect of DreamBooth against LoRA, with its interval; a dash without one."""
    if part is None or part["value"] is None:
        return "-"
    form = "x {:.2f}" if part["unit"] in ("s", "bytes") else "{:+.3f}"
    value = form.format(part["value"])
    if part["low"] is None or part["high"] is None:
        return value
    return f"{value} ({form.format(part['low'])} to {form.format(part['high'])})"


def verdict_word(verdict: str) -> str:
    """A verdict in a word: "holds", "does not hold", "not told apart", or on what it depends."""
    said = re.sub(r" \([^)]*\)", "", verdict).split(":")[0]
    if said.startswith("depends"):
        return said
    if said.startswith("not measured"):
        return "not measured"
    words = [part for part in said.split("; ") if not part.startswith("no figure")]
    if all(part.startswith("holds") for part in words):
        return words[0] if len(words) == 1 else "holds"  # "holds for the key schemes" holds no more
    alike = all(re.match("no difference(?! found)", part) for part in words)
    return "does not hold" if alike or said.startswith("does not hold") else "not told apart"


def _measured(claim: dict[str, Any]) -> str:
    """The number of a claim's first part that is judged, with its interval; a dash without one."""
    part = next((part for part in claim["parts"] if part["judged"]), None)
    if part is None or part["value"] is None:
        return "-"
    what = part["label"] or MEASURE_NAMES.get(part["measure"], "")
    return f"{what} {_against(part)}".strip()


def verdict_details(own: Comparison | None = None, found: dict[str, Any] | None = None) -> Table:
    """The claims with their measurements and verdicts whole, and beside them the reader's own run.

    own: the comparison of the reader's two runs; without it the last column is empty. found: what
    verdicts.json holds. Raises BadInput for a number of `own` that is none.
    """
    found = found or read_result("verdicts")
    own = own or Comparison({}, {})
    mine = {method: _with_derived(own, method, found) for method in METHODS}
    rows = [
        [
            str(claim["claim"]),
            claim["words"],
            claim["measurement"],
            claim["effect"],
            claim["verdict"],
            "; ".join(filter(None, (_own_text(part, own, mine) for part in claim["parts"]))) or "-",
        ]
        for claim in found["claims"]
    ]
    return Table(rows, [*found["columns"], "your own run"], found["caption"])


def _with_derived(own: Comparison, method: str, found: dict[str, Any]) -> dict[str, Any]:
    """The own run's row, checked, with the costs that are computed from others, in seconds."""
    row = dict(own.rows.get(method, {}))
    for name, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise BadInput(
                f"The run of your own, method {method} has {name} = {value!r} where a finite number"
                " belongs: train it again, then compare."
            )
    train, size = row.get("train_seconds"), row.get("file_bytes")
    row["iteration_seconds"] = train and train + found["sample_seconds"]
    row["transfer_seconds"] = size and size * 8 / found["upload_bits_per_second"]
    return row


def _own_text(part: dict[str, Any], own: Comparison, mine: dict[str, dict[str, Any]]) -> str:
    """What the own run measured of one part of a claim; nothing where it did not."""
    measure, unit = part["measure"], part["unit"]
    lora, dreambooth = (mine[method].get(measure) for method in METHODS)
    if not part["own"] or lora is None or dreambooth is None:
        return ""
    encoder = "clip" if measure.startswith(("clip", "diversity")) else "dino"
    judge = own.about.get(encoder)
    by = f" (by {judge['encoder']})" if judge and unit == "cosine" else ""
    sides = f"LoRA {amount(lora, unit)}, DreamBooth {amount(dreambooth, unit)}"
    return f"{part['label']} {sides}{by}".strip()


def range_lines(own: Comparison, found: dict[str, Any] | None = None) -> list[str]:
    """Whether the reader's own run lies where PocketBench's subjects do, in sentences.

    own: the comparison of the reader's two runs. found: what ranges.json holds, of each method and
    measure the 95 % prediction interval of one more subject. A run of another judge is not held
    against them.
    """
    found = found or read_result("ranges")
    if own.about.get("judge") != "pocket" or own.about.get("base") != "pocket":
        return ["PocketBench is of the pocket base and its judge: your run is held against none."]
    outside, count = [], 0
    for method in METHODS:
        row = own.rows.get(method, {})
        for measure, (low, high) in found[method].items():
            value = row.get(measure)
            if value is None:
                continue
            if measure == "obedience":  # the bench's is what training changed
                value -= own.rows["base_model"][measure]
            count += 1
            if not low <= value <= high:
                name = f"{METHOD_NAMES[method]}'s {COLUMNS[measure].heading}"
                outside.append(f"{name} is {value:.3f} (the bench's {low:.3f} to {high:.3f})")
    subjects = (
        "numbers your run lies where one more subject is expected by PocketBench's"
        f" {found['subjects']}"
    )
    if not outside:
        return [f"On all {count} {subjects}."]
    return [f"On {count - len(outside)} of {count} {subjects}; not so:", *outside]


def study(name: str) -> Figure:
    """The picture of one of PocketBench's studies, its numbers as a table, what it rests on.

    Raises BadInput for a study that was not run.
    """
    found = read_result("studies")
    if name not in found:
        raise BadInput(
            f"There is no study '{name}' in {RESULTS / 'studies.json'}: known are"
            f" {', '.join(found)}."
        )
    return _figure(found[name])


def survival_table() -> Table:
    """What is left of each of three concepts, by the way that they were put into one model.

    1 is as when a concept is alone, 0 as the base model draws it.
    """
    found = read_result("shipping")["survival"]
    return Table(
        found["rows"],
        found["columns"],
        f"Three concepts in one model (data/results/shipping.csv): {found['note']}",
    )


def extraction_figure() -> Figure:
    """Likeness of the LoRA that is extracted from a DreamBooth run, by its rank."""
    return _figure(read_result("shipping")["extraction"])


def _figure(found: dict[str, Any]) -> Figure:
    from PIL import Image

    table = Table(found["table"]["rows"], found["table"]["columns"], found["table"]["caption"])
    with Image.open(RESULTS / found["picture"]) as picture:
        return Figure(picture.copy(), found["alt"], table, found["caption"], drawn=True)


def read_result(name: str) -> dict[str, Any]:
    """What the file data/results/<name>.json holds. Raises BadInput where it is not there."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        raise BadInput(
            f"The bench's results are not here ({path} is missing): restore it with `git checkout"
            " data/results`, or make it with `python -m benchmarks.analysis`."
        )
    return read_json(path)
