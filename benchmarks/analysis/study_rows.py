"""PocketBench's rows, read and made ready: which may be compared, and what a study rests on. `rows`
are dicts, one a run.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.analysis.effects import BASE, BENCH, Columns, Rows, are_mixed
from benchmarks.csv_rows import read_table

# a run whose step took so many times the median of its like shared the machine with other work
BUSY = 1.5


TIMES = ("seconds_per_step", "train_seconds", "seconds_to_half", "seconds_to_best")


# What a step's time depends on, beside the method.
RECIPE = (
    "base_hash",
    "device",
    "method",
    "rank",
    "targets",
    "prior_weight",
    "text_encoder_rate",
    "precision",
    "checkpointing",
    "optimizer",
    "weights",
    "fused_backward",
    "quantize",
)


def read_bench(path: str | Path = BENCH) -> Rows:
    """PocketBench's rows, with `loss_gap`, and without the times of runs that shared the machine
    (see `busy`), which are set to None.

    Where they were not made yet: none, and a line that says how to make them. Raises BadInput as
    `read_table`.
    """
    if not Path(path).is_file():
        print(
            f"PocketBench has not been run here: `make pocketbench` makes {path}, and every figure"
            " and verdict that rests on it."
        )
        return []
    rows = read_table(path)
    slow = {id(row) for row in busy(rows)}
    for row in rows:
        held_out, train = row.get("loss_held_out"), row.get("loss_train")
        if held_out is not None and train is not None:
            row["loss_gap"] = held_out - train
        if id(row) in slow:
            row |= {name: None for name in TIMES if name in row}
    return rows


def busy(rows: Rows) -> Rows:
    """The rows whose seconds a step are more than `BUSY` times the median of the runs of the same
    recipe.
    """
    like = defaultdict(list)
    for row in rows:
        if row.get("seconds_per_step") is not None:
            like[tuple(row.get(name) for name in RECIPE)].append(row)
    return [
        row
        for some in like.values()
        for row in some
        if row["seconds_per_step"] > BUSY * median(r["seconds_per_step"] for r in some)
    ]


def is_of_mains_base(rows: Rows, study: str) -> bool:
    """Whether a study was run on the base model and by the judge of the main one.

    A study keeps its rows until it is run anew, so it may speak of a former base: then it is held
    against itself alone, and says so.
    """
    return not unlike_main(rows, study)


def unlike_main(rows: Rows, study: str) -> str:
    """What a study was run on where that is not what the main one was run on, in words; empty where
    they are alike.
    """
    both = [row for row in rows if row.get("study") in (study, "main")]
    if are_mixed(both, "base_hash"):
        return "on a former base model"
    return "with former prompts or by a former judge" if are_mixed(both, "judge") else ""


def ranked(rows: Rows) -> list[int]:
    """The ranks of the study of ranks, in order."""
    return sorted(
        {int(r["rank"]) for r in rows if r.get("study") == "rank" and r.get("rank") is not None}
    )


def common(rows: Rows, wanted: Sequence[tuple[str, Columns]], seeds: bool = True) -> Rows:
    """The rows of those subjects (and seeds) that have a run in each of `wanted`: pairs (study,
    columns that match).
    """
    there = [
        [r for r in rows if r.get("study") == study and of.items() <= r.items()]
        for study, of in wanted
    ]
    subjects = set.intersection(*({r["subject"] for r in some} for some in there))
    kept = [
        {r["seed"] for r in some} for some, (_, of) in zip(there, wanted) if seeds and of != BASE
    ]
    return [
        r
        for r in rows
        if r["subject"] in subjects
        and (r["method"] == "base" or all(r["seed"] in each for each in kept))
    ]


def size(rows: Rows, study: str = "main") -> str:
    """What a study rests on, such as "30 subjects x 3 seeds", or "x 1 to 3" while some lack runs:
    seeds that every method of it has run.
    """
    some, there, seeds = (
        [r for r in rows if r.get("study") == study and r.get("method") != "base"],
        defaultdict(set),
        defaultdict(set),
    )
    for r in some:
        there[r["subject"], r.get("seed")].add(r["method"])
    for (subject, seed), methods in there.items():
        if methods == {r["method"] for r in some}:
            seeds[subject].add(seed)
    few, most = (pick(map(len, seeds.values()), default=0) for pick in (min, max))
    return (
        f"{len(seeds)} subject{'s' * (len(seeds) != 1)} x {f'{few} to ' * (few < most)}{most}"
        f" seed{'s' * (most != 1)}"
    )


def steps(rows: Rows, study: str = "main") -> str:
    """The training steps of a study as text."""
    return " or ".join(
        str(n)
        for n in sorted({r["steps"] for r in rows if r.get("study") == study and r.get("steps")})
    )
