"""What the decision guide rests on (data/results/advice.json): effects, costs by rank, and ranks.

`lib.evaluation.advice` reads the file and knows nothing of the rows that it is made from.
"""

from typing import Any

from benchmarks.analysis.effects import ENOUGH, LORA, Effect, Rows, decide, effect, number
from benchmarks.analysis.study_rows import is_of_mains_base
from benchmarks.analysis.verdicts import SHAPES, shipped_bytes
from lib.config.settings import METHODS
from lib.evaluation.advice import COSTS


def advice_facts(rows: Rows) -> dict[str, Any]:
    """What advice.json holds, from PocketBench's rows; without rows, that nothing was measured.

    Raises BadInput as `effect` does.
    """
    rows = _with_main_ranks(rows)
    measures = [measure for measure, _ in COSTS.values()]
    effects = {measure: _record(effect(rows, measure)) for measure in ("dino", *measures)}
    best, ranks = _ranks(rows)
    return {
        "enough": ENOUGH,
        "effects": effects,
        "best_rank": best,
        "ranks": ranks,
        "costs": {m: {method: _levels(rows, m, method) for method in METHODS} for m in measures},
        "files": {
            base: {
                "lora_a_rank": shipped_bytes(base, "lora", 1),
                "dreambooth": shipped_bytes(base, "dreambooth", 1),
            }
            for base in SHAPES
        },
    }


def _with_main_ranks(rows: Rows) -> Rows:
    """The rows, with the main study's LoRA runs copied into the study of ranks where that has none
    of their rank and is of the same base model.
    """
    if not is_of_mains_base(rows, "rank"):
        return rows
    runs = [row for row in rows if row.get("method") == "lora" and row.get("rank") is not None]
    there = {row["rank"] for row in runs if row.get("study") == "rank"}
    copies = [
        row | {"study": "rank"}
        for row in runs
        if row.get("study") == "main" and row["rank"] not in there
    ]
    return [*rows, *copies]


def _ranks(rows: Rows) -> tuple[int | None, list[dict[str, Any]]]:
    """The rank with the highest DINO, and for each rank by how much that is ahead of it."""

    def against(one: int, other: int) -> Effect:
        return effect(rows, "dino", "rank", LORA | {"rank": one}, LORA | {"rank": other})

    runs = [row for row in rows if row.get("study") == "rank" and row.get("method") == "lora"]
    ranks = sorted({int(row["rank"]) for row in runs})
    if not ranks:
        return None, []
    best = ranks[0]
    for rank in ranks[1:]:
        best = rank if (against(rank, best).value or 0) > 0 else best
    return best, [{"rank": r, "best_minus_this": _record(against(best, r))} for r in ranks]


def _record(found: Effect) -> dict[str, Any]:
    """An effect with its interval, and what that allows to say."""
    verdict, detail = decide(found)
    names = ("value", "low", "high", "of", "against", "subjects", "seeds", "unit", "margin")
    return {name: getattr(found, name) for name in names} | {
        "text": found.text(),
        "verdict": verdict,
        "detail": detail,
    }


def _levels(rows: Rows, measure: str, method: str) -> dict[str, dict[str, Any]]:
    """A cost's mean and largest value over the main study's runs, and over those of each rank."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row.get("method") == method and number(row, measure) is not None:
            if row.get("study") == "rank" and row.get("rank") is not None:
                groups.setdefault(f"rank {int(row['rank'])}", []).append(row)
            elif row.get("study") == "main":
                groups.setdefault("main", []).append(row)
    return {name: _level(runs, measure) for name, runs in groups.items()}


def _level(runs: Rows, measure: str) -> dict[str, Any]:
    found = [run[measure] for run in runs]
    return {
        "mean": sum(found) / len(found),
        "largest": max(found),
        "runs": len(runs),
        "devices": ", ".join(sorted({str(run.get("device")) for run in runs})),
    }
