"""Between what one more subject is expected to lie, by those of the main comparison: what a
reader's own run is held against.
"""

import math
from typing import Any

import numpy as np

from benchmarks.analysis.effects import ENOUGH, MEASURES, Rows, student
from lib.config.settings import METHODS

# Columns that the bench's rows and a comparison's have in common. Of CLIP-T the share of what real
# photos score (`with_share`): a subject that CLIP hardly takes for its class lowers both.
COLUMNS = tuple(
    "dino clip_t_share place_drawn colour_drawn memorising nearest diversity consistency"
    " pres pres_trained obedience drift".split()
)
NUMBERS = len(COLUMNS) * len(METHODS)


def ranges(rows: Rows) -> dict[str, Any]:
    """{"subjects": how many, "judge": whose scores, "lora": {column: [low, high]}, ...} of the
    main comparison; a column that too few subjects have is left out.

    Prediction intervals of one more subject, means over seeds being the values: mean +- t * s *
    sqrt(1 + 1 / n), so wide that 95 of 100 subjects would lie in all of them at once (Bonferroni),
    and none narrower than what counts as the same.
    """
    main = [with_share(row) for row in rows if row.get("study") == "main"]
    found: dict[str, Any] = {
        "subjects": len({row["subject"] for row in main}),
        "judge": next((row["judge"] for row in main if row.get("judge")), None),
    }
    for method in METHODS:
        own = [row for row in main if row["method"] == method]
        found[method] = {
            column: [round(end, 4) for end in ends]
            for column in COLUMNS
            if (ends := predicted(own, column))
        }
    return found


def with_share(row: dict[str, Any]) -> dict[str, Any]:
    """A row with `clip_t_share`, as `lib.evaluation.comparison.add_shares` has it, where the real
    photos' CLIP-T was measured.
    """
    found, real = row.get("clip_t"), row.get("clip_t_real")
    return row if found is None or not real else row | {"clip_t_share": found / real}


def predicted(rows: Rows, column: str) -> tuple[float, float] | None:
    """The interval of one more subject in a column, or None with too few subjects."""
    by_subject: dict[str, list[float]] = {}
    for row in rows:
        if row.get(column) is not None:
            by_subject.setdefault(row["subject"], []).append(row[column])
    if len(by_subject) < ENOUGH:
        return None
    means = np.array([np.mean(values) for values in by_subject.values()])
    count = len(means)
    spread = means.std(ddof=1) * math.sqrt(1 + 1 / count)
    margin = MEASURES[column][2] if column in MEASURES else 0.0
    reach = max(student(0.025 / NUMBERS, count - 1) * spread, margin)
    return float(means.mean() - reach), float(means.mean() + reach)
