"""PocketBench's main comparison as figures, each with its numbers as a table.

`python -m benchmarks.analysis` writes them to data/results.

`rows` are dicts, one a run, as in `benchmarks.analysis.effects`. A figure for which the rows hold
no run is None. The other studies: benchmarks/analysis/study_figures.py.
"""

from collections.abc import Mapping

from benchmarks.analysis.effects import (
    BASE,
    COSINE,
    CUT,
    CUT_TWICE,
    FULL,
    LORA,
    MEASURES,
    PARTS,
    TIME,
    Columns,
    Effect,
    Rows,
    decide,
    effect,
)
from benchmarks.analysis.study_rows import common, is_of_mains_base, ranked, size
from lib.config.names import CONTESTANT_NAMES, MEASURE_NAMES
from lib.files.text import amount
from lib.plots.charts import intervals, points
from lib.plots.figure import Figure, Table

# (value, low, high), to three decimals
Ends = tuple[float | None, ...]

COSTS = {
    measure: MEASURE_NAMES[measure]
    for measure in ("seconds_per_step", "train_seconds", "peak_bytes", "file_bytes")
}


SCORES = {measure: name for measure, name in MEASURE_NAMES.items() if measure not in COSTS}


WHO = {"LoRA": LORA, "DreamBooth": FULL}
CUTS = {CONTESTANT_NAMES["extracted"]: CUT, CONTESTANT_NAMES["extracted_twice"]: CUT_TWICE}


SMALL = "on 4 pictures a point, other prompts than the main table's"


def level(rows: Rows, measure: str, study: str = "main", of: Columns = FULL) -> Ends:
    """(mean over subjects, low, high), to three decimals, of the runs that match `of`; (None, None,
    None) without any.
    """
    return (dots({"": effect(rows, measure, study, of, None, ())}) or {"": (None, None, None)})[""]


def dots(found: Mapping[str, Effect]) -> dict[str, Ends] | None:
    """name -> (value, low, high) to three decimals, of name -> `Effect`; None without any."""
    ends = {name: (e.value, e.low, e.high) for name, e in found.items() if e.subjects}
    return {
        name: tuple(v if v is None else round(v, 3) + 0.0 for v in values)
        for name, values in ends.items()
    } or None


def said(found: Effect) -> str:
    """What the interval of an effect allows to say of its first side, in a few words."""
    kind, detail = decide(found)
    more = {"holds": "more", "does not hold": "less"}.get(kind, kind)
    return f"{more} ({detail})" if detail and more == kind else more


def _measured_cuts(rows: Rows) -> dict[str, Columns]:
    """Those of `CUTS` that the rows have runs for."""
    return {name: of for name, of in CUTS.items() if level(rows, "dino", of=of)[0] is not None}


def main_table(rows: Rows) -> Table:
    """The main comparison, a line a measure: base, real photos, the contestants, the effect of
    DreamBooth against LoRA, and what its interval allows to say.
    """
    cuts = _measured_cuts(rows)
    lines = []
    for measure, name in (SCORES | COSTS).items():
        found, unit = effect(rows, measure), MEASURES[measure][1]
        if not found.subjects:
            continue
        floor, ceiling = (
            level(rows, m, of=BASE)[0] if m in MEASURES else None
            for m in (measure, f"{measure}_real")
        )
        cut = [level(rows, measure, of=of)[0] for of in cuts.values()]
        levels = [
            "-" if value is None else amount(value, unit)
            for value in (floor, ceiling, found.against, found.of, *cut)
        ]
        lines.append([name, *levels, *found.text().split(", "), said(found)])
    columns = ["", "base", "real photos", "LoRA", "DreamBooth", *cuts]
    return Table(lines, [*columns, "DreamBooth against LoRA (95 %)", "of", "so DreamBooth has"])


def scores(rows: Rows) -> Figure | None:
    """DreamBooth minus LoRA on every score, each at its own best rate: dots on their intervals,
    beside the margin that counts as none.
    """
    found = dots({name: effect(rows, m) for m, name in SCORES.items() if MEASURES[m][2] == COSINE})
    about = f"DreamBooth minus LoRA, {size(rows)}; the band counts as the same"
    return (
        intervals(found, "difference of cosines", about, around=0, margin=COSINE) if found else None
    )


def costs(rows: Rows) -> Figure | None:
    """DreamBooth against LoRA in time, memory and file: ratios on their intervals."""
    found = dots({name: effect(rows, m) for m, name in COSTS.items()})
    about = f"DreamBooth's costs as multiples of LoRA's, {size(rows)}; the band counts as one time"
    return (
        intervals(found, "DreamBooth / LoRA", about, around=1, margin=TIME, log=True)
        if found
        else None
    )


def pareto(rows: Rows) -> Figure | None:
    """Likeness against prompt following, of the base, of LoRA at every rank, of DreamBooth and of
    DreamBooth cut to a LoRA, on the subjects that all of them have.
    """
    ranks = ranked(rows) if is_of_mains_base(rows, "rank") else []
    lora = (
        {"LoRA by rank": [(r, "rank", LORA | {"rank": r}) for r in ranks]}
        if ranks
        else {"LoRA": [("", "main", LORA)]}
    )
    cuts = _measured_cuts(rows)
    whole = {name: [("", "main", of)] for name, of in ({"DreamBooth": FULL} | cuts).items()}
    sides = {"base model": [("", "main", BASE)]} | lora | whole
    wanted = [(study, of) for side in sides.values() for _, study, of in side]
    rows = common(rows, wanted)
    found = {
        name: [(label, *_both(rows, study, of)) for label, study, of in side]
        for name, side in sides.items()
    }
    if any(p[1] is None for side in found.values() for p in side):
        return None
    about = (
        f"Likeness against prompt following, {size(rows)}: up and to the right is better."
        f" {_far('The base model', found['base model'])}"
    )
    return points(
        found,
        "CLIP-T (follows the prompt)",
        "DINO (looks like the subject)",
        about,
        aside=("base model",),
    )


def _both(rows, study, of):
    (x, *across), (y, *up) = (level(rows, measure, study, of) for measure in ("clip_t", "dino"))
    return x, y, tuple(across), tuple(up)


def path(rows: Rows) -> Figure | None:
    """Likeness against prompt following along the training, at each quarter of it."""
    found = {name: _quarters(rows, where, "clip_t", "dino") for name, where in WHO.items()}
    return _along(
        found,
        "CLIP-T (follows the prompt)",
        "DINO (looks like the subject)",
        f"Along the training, at each quarter of it, {size(rows)}, {SMALL}: up and to the right is"
        " better",
    )


def forgetting(rows: Rows) -> Figure | None:
    """Drift of the class against likeness along the training: forgetting against learning."""
    found = {name: _quarters(rows, where, "dino", "drift") for name, where in WHO.items()}
    about = (
        f"Forgetting against learning, at each quarter of the training, {size(rows)}, {SMALL},"
        " drift of the class in words that no class image has: down and to the"
        " right is better"
    )
    return _along(found, "DINO (looks like the subject)", "drift of the class", about)


def _along(found, x, y, about):
    """`points` of quarters of a training, without the start, far off; None without any."""
    start = f"0/{PARTS}"
    starts = [p for side in found.values() for p in side if p[0] == start]
    return (
        points(found, x, y, f"{about}. {_far('The start', starts)}", aside=(start,))
        if starts
        else None
    )


def _far(name, found):
    """Where the first of the points `found` is, which is not drawn."""
    return (
        f"{name}, at {found[0][1]:.3f} across and {found[0][2]:.3f} up, is not drawn, for it lies"
        " far off"
    )


def _quarters(rows, where, *measures):
    ends = [
        (k, *(level(rows, f"{m}_{k}_of_{PARTS}", of=where) for m in measures))
        for k in range(PARTS + 1)
    ]
    return [
        (f"{k}/{PARTS}", x[0], y[0], x[1:], y[1:]) for k, x, y in ends if None not in (x[0], y[0])
    ]


FIGURES = {
    "scores": scores,
    "costs": costs,
    "pareto": pareto,
    "path": path,
    "forgetting": forgetting,
}
