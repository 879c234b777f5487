"""What the presets of the pocket base were chosen by, as figures with their numbers: each method's
learning rate, and how long to train.
"""

from collections.abc import Mapping
from typing import Any

from benchmarks import learning_rates
from benchmarks.analysis.effects import Rows
from benchmarks.analysis.study_rows import size
from lib.config.names import METHOD_NAMES
from lib.plots.charts import Axis, points
from lib.plots.figure import Figure, as_table

# Columns of `learning_rates.curves`, and what they are called in tables.
COLUMNS = {
    "learning_rate": "learning rate",
    "likeness": "likeness",
    "obedience": "obedience",
    "both": "both (harmonic mean)",
    "error": "its standard error",
    "dino": "DINO",
    "clip_t": "CLIP-T",
}


def rates(rows: Rows) -> Figure | None:
    """What each learning rate is worth: the mean of likeness and obedience by which it is chosen,
    give or take its standard error, the chosen one ringed.
    """
    found = {name: points for name, points in learning_rates.curves(rows).items() if points}
    if not found:
        return None
    best = {METHOD_NAMES[m]: f"{learning_rates.best(points):g}" for m, points in found.items()}
    ends = {
        METHOD_NAMES[m]: [f"{points[k]['learning_rate']:g}" for k in (0, -1)]
        for m, points in found.items()
    }
    chosen = ", ".join(
        f"{n} {r}{' (at the end of what was tried)' * (r in ends[n])}" for n, r in best.items()
    )
    lines = {
        METHOD_NAMES[m]: [
            (f"{p['learning_rate']:g}", p["learning_rate"], p["both"], None, _give_or_take(p))
            for p in points
        ]
        for m, points in found.items()
    }
    about = (
        f"Each method's learning rate, {size(rows, 'rate')}, {_sets(rows, 'rate')} photo sets;"
        f" chosen: {chosen}, the lowest within one standard error (the bars) of the highest"
    )
    figure = points(
        lines, Axis("learning rate", log=True), "likeness and obedience", about, mark=best
    )
    body = [
        [METHOD_NAMES[m], *(p[c] for c in COLUMNS)] for m, points in found.items() for p in points
    ]
    figure.table = as_table(body, ["", *COLUMNS.values()])
    return figure


def length(rows: Rows) -> Figure | None:
    """How long to train: trainings of several lengths, each at the best of the rates that were
    tried at that length.
    """
    own = [r for r in rows if r.get("study") == "length"]
    lengths = sorted({int(r["steps"]) for r in own if r.get("steps")})
    if not lengths:
        return None
    lines: dict[str, list[tuple[Any, ...]]] = {}
    body: list[list[Any]] = []
    for steps in lengths:
        for m, tried in learning_rates.curves(rows, "length", steps).items():
            if not tried:
                continue
            (chosen,) = [p for p in tried if p["learning_rate"] == learning_rates.best(tried)]
            point = steps, steps, chosen["both"], None, _give_or_take(chosen)
            lines.setdefault(METHOD_NAMES[m], []).append(point)
            body += [[METHOD_NAMES[m], steps, *(p[c] for c in COLUMNS)] for p in tried]
    about = (
        f"How long to train, {size(rows, 'length')}, {_sets(rows, 'length')} photo sets: each"
        " length at the best of the rates tried at it, give or take one standard error"
    )
    figure = points(lines, Axis("steps"), "likeness and obedience", about)
    figure.table = as_table(sorted(body), ["", "steps", *COLUMNS.values()])
    return figure


def _give_or_take(point: Mapping[str, float]) -> tuple[float, float]:
    """A point of `learning_rates.curves`, its standard error taken away and added."""
    return point["both"] - point["error"], point["both"] + point["error"]


def _sets(rows: Rows, study: str) -> int:
    """The sets of photos of a study: a subject with captions that name places is one, without
    another.
    """
    return len({(r["subject"], r["variant"]) for r in rows if r.get("study") == study})
