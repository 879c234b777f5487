"""What the shipping bench's rows say: tables, a figure, and the measurements of claims 7, 8, 16.

The rows are data/results/shipping.csv, made by benchmarks/shipping_bench.py.

The subject is the independent unit here too: seeds are averaged within it, and whole subjects drawn
anew (benchmarks/analysis/effects.py).
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.analysis.effects import COST, ENOUGH, Rows, interval
from benchmarks.csv_rows import read_table
from benchmarks.interop.table import claim as interop_claim
from lib.evaluation.results import CLEAR
from lib.files.paths import ROOT
from lib.plots.charts import Axis, points
from lib.plots.figure import Figure, Table

RESULTS = ROOT / "data" / "results" / "shipping.csv"


KINDS = ("character", "clothing", "lighting")
# (how concepts were put together, at which weight) -> subject -> the share that survives
Ways = dict[tuple[str, float], dict[str, float]]


def rows_of(path: str | Path = RESULTS) -> Rows:
    """The bench's rows, or [] where it was not run."""
    return read_table(path) if Path(path).is_file() else []


def even(rows: Rows) -> tuple[Rows, str]:
    """(rows, a sentence or ""): of a subject and seed every way is judged by the same concepts,
    those that any side had learned.

    A concept whose own run, LoRA or DreamBooth, stands no more than `CLEAR` above the base is left
    out of all ways of its subject and seed, and `survives` is the mean over the rest: else one
    side's mean would be of other concepts, or of one share that is mostly noise.
    """
    groups, made, asked, out = defaultdict(list), [], 0, 0
    for row in rows:
        groups[row["subject"], row["seed"]].append(row)
    for group in groups.values():
        kinds = [
            kind for kind in KINDS if any(row.get(f"alone_{kind}") is not None for row in group)
        ]
        clear = [kind for kind in kinds if all(_is_clear(row, kind) for row in group)]
        asked, out = asked + len(kinds), out + len(kinds) - len(clear)
        for row in group:
            kept = {
                f"survives_{kind}": row[f"survives_{kind}"] if kind in clear else None
                for kind in kinds
            }
            shares = [share for share in kept.values() if share is not None]
            made.append(row | kept | {"survives": float(np.mean(shares)) if shares else None})
    said = (
        f"{out} of {asked} concepts left out, whose own run is hardly above the base (by {CLEAR:g}"
        " or less)"
    )
    return made, said if out else ""


def _is_clear(row: dict[str, Any], kind: str) -> bool:
    alone, floor, share = (row.get(f"{what}_{kind}") for what in ("alone", "floor", "survives"))
    if alone is None or floor is None or share is None:
        return False
    return alone - floor > CLEAR


def by_subject(rows: Rows, key: str, **where: Any) -> dict[str, float]:
    """{subject: mean of column `key`} over the rows whose columns are as in `where`."""
    found = defaultdict(list)
    for row in rows:
        if row.get(key) is not None and all(row.get(k) == v for k, v in where.items()):
            found[row["subject"]].append(row[key])
    return {subject: float(np.mean(values)) for subject, values in found.items()}


def summary_rows(
    path: str | Path = RESULTS, concepts: int = 3
) -> tuple[list[list[Any]], list[str], str]:
    """(rows, headings, a note) for a table: what survives of `concepts` concepts, by the way that
    they were put into one model; beside the mean that of one concept fewer.
    """
    (rows, left_out), (fewer, _) = (
        even([r for r in rows_of(path) if r["study"] == "compose" and r["concepts"] == n])
        for n in (concepts, concepts - 1)
    )
    ways, table = dict.fromkeys((r["how"], r["weight"]) for r in rows), []
    for how, weight in ways:
        means, two = (
            by_subject(some, "survives", how=how, weight=weight) for some in (rows, fewer)
        )
        kinds = [by_subject(rows, f"survives_{kind}", how=how, weight=weight) for kind in KINDS]
        label = how if weight == 1 else f"{how} at {weight:g}"
        table.append([label, *(_mean(some) if some else None for some in (means, two, *kinds))])
    count = len({r["subject"] for r in rows})
    said = f"{count} subject{'s' * (count != 1)}; " + (
        "no interval: a verdict takes 6" if count < 6 else "means over subjects"
    )
    said += f"; {left_out}" if left_out else ""
    table.sort(key=lambda line: -9 if line[1] is None else line[1], reverse=True)
    return (
        table,
        ["way", "mean", f"mean of {concepts - 1}", *KINDS],
        said if rows else "Not measured yet: python -m benchmarks.shipping_bench",
    )


def extraction(path: str | Path = RESULTS) -> Figure | None:
    """A `Figure`: likeness of the LoRA taken out of a DreamBooth run, by its rank, beside that run,
    a trained LoRA and the base; in the table also the share of the change that is kept, bytes as
    MiB, and differences paired by subject. None where it was not measured.
    """
    rows = [r for r in rows_of(path) if r["study"] == "extract"]
    ranks = sorted({r["rank"] for r in rows if r.get("rank") is not None})
    cut = {f"rank {rank}": {"method": "extracted", "rank": rank} for rank in ranks}
    whole = {
        "DreamBooth": {"method": "dreambooth"},
        "LoRA": {"method": "lora"},
        "base": {"method": "base"},
    }
    found = {name: by_subject(rows, "dino", **where) for name, where in (cut | whole).items()}
    if not ranks or not all(found.values()):
        return None
    series = {
        "extracted": [
            (r, r, _mean(found[name]), None, interval(list(found[name].values())))
            for name, r in zip(cut, ranks)
        ]
    }
    series |= {
        name: [("", rank, _mean(found[name])) for rank in (ranks[0], ranks[-1])] for name in whole
    }
    lines = []
    for name, where in (cut | whole).items():
        kept, size = (by_subject(rows, key, **where) for key in ("kept_of_layers", "file_bytes"))
        gaps = [
            "-" if name == other else _gap(found[name], found[other])
            for other in ("DreamBooth", "LoRA")
        ]
        sizes = f"{_mean(kept):.3f}" if kept else "-", f"{_mean(size) / 2**20:.2f}" if size else "-"
        lines.append([name, *sizes, f"{_mean(found[name]):.3f}", *gaps])
    count = len({r["subject"] for r in rows})
    about = (
        f"DreamBooth's likeness at a LoRA's size: the LoRA that is extracted, by rank, {count}"
        " subjects, 18 pictures each"
    )
    figure = points(series, Axis("rank", log=True), "DINO", about)
    figure.table = Table(
        lines,
        [
            "",
            "of the change",
            "MiB",
            "DINO",
            "minus DreamBooth (95 %)",
            "minus LoRA (95 %)",
        ],
    )
    return figure


def _mean(by: dict[str, float]) -> float:
    return float(np.mean(list(by.values())))


def _gap(by: dict[str, float], other: dict[str, float]) -> str:
    """The mean difference over the subjects of both, with its interval, as text."""
    gaps = [by[s] - other[s] for s in sorted(by.keys() & other.keys())]
    low, high = interval(gaps)
    return (
        f"{np.mean(gaps):+.3f} ({'no interval' if low is None else f'{low:+.3f} to {high:+.3f}'})"
    )


def shipping_facts(path: Path = RESULTS) -> dict[str, Any]:
    """What shipping.json holds beside the picture of extracted LoRAs: what survives of concepts."""
    rows, columns, note = summary_rows(path)
    return {"survival": {"columns": columns, "rows": rows, "note": note}}


def claim_rows(path: Path = RESULTS) -> dict[int, tuple[str, str]]:
    """{claim: (effect, verdict)} of claims 7, 8 and 16 as texts, for
    `benchmarks.analysis.verdicts`' table; {} where the bench was not run.

    7: survival of three concepts. 8: seconds to change concept. 16: what the tests hold (every
    export against every tool's scheme) and what the tools themselves did (`make interop`).
    """
    rows = rows_of(path)
    if not rows:
        return {}
    claims = {7: _combining(rows), 8: _switching(rows), 16: interop_claim()}
    return {number: claim for number, claim in claims.items() if claim}


def _combining(rows: Rows) -> tuple[str, str] | None:
    """Claim 7: adapters at the best of the measured weights or mixes against checkpoints averaged
    or added.

    For each subject the way that is best for the *others* counts, or the side with more ways would
    win by choice alone.
    """
    three, left_out = even([r for r in rows if r["study"] == "compose" and r["concepts"] == 3])
    sides = {
        side: _ways(three, starts)
        for side, starts in (
            ("adapters", ("adapters", "mix ")),
            ("checkpoints", ("checkpoints",)),
            ("trained on all", ("trained on all",)),
        )
    }
    if not sides["adapters"] or not sides["checkpoints"]:
        return None
    one, two = (_chosen_on_others(sides[side]) for side in ("adapters", "checkpoints"))
    gaps = [one[s] - two[s] for s in sorted(one.keys() & two.keys())]
    low, high = interval(gaps)
    ends = "no interval" if low is None else f"{low:+.2f} to {high:+.2f}"
    each = "; ".join(_best_way(side, ways) for side, ways in sides.items() if ways)
    effect = (
        f"{each}; adapters minus checkpoints {np.mean(gaps):+.2f} ({ends}), {len(gaps)}"
        " characters with one and the same clothing and lighting"
        + (f"; {left_out}" if left_out else "")
    )
    if low is None or high is None:
        return effect, f"not enough subjects ({len(gaps)}; a verdict takes {ENOUGH})"
    verdict = "holds" if low > 0 else "does not hold" if high < 0 else "no difference found"
    return effect, verdict


def _best_way(side: str, ways: Ways) -> str:
    """The way of a side that is best by the means over all subjects, so that no side is judged by
    its worst, in words.
    """
    how, weight = max(ways, key=lambda way: _mean(ways[way]))
    at = "" if weight == 1 else f" at {weight:g}"
    return f"{side} ({how}{at}) keep {_mean(ways[how, weight]):.2f}"


def _switching(rows: Rows) -> tuple[str, str] | None:
    """Claim 8: seconds to change concept, concepts a GB, pictures a second."""
    runs = [r for r in rows if r["study"] == "switch"]
    if not runs:
        return None
    names = [name for name, value in runs[0].items() if isinstance(value, int | float)]
    mean = {name: float(np.mean([run[name] for run in runs])) for name in names}
    effect = (
        f"to change concept: {mean['choose_seconds']:.3f} s among loaded adapters,"
        f" {mean['load_seconds']:.2f} s from disk, {mean['checkpoint_seconds']:.2f} s a"
        f" checkpoint; {mean['concepts_per_gb_lora']:.0f} against"
        f" {mean['concepts_per_gb_dreambooth']:.0f} concepts a GB of files,"
        f" {mean['concepts_per_gb_memory_lora']:.0f} against"
        f" {mean['concepts_per_gb_memory_dreambooth']:.0f} of memory; pictures a second:"
        f" adapter beside {mean['pictures_per_second_adapter']:.1f}, fused"
        f" {mean['pictures_per_second_fused']:.1f}, checkpoint"
        f" {mean['pictures_per_second_checkpoint']:.1f}"
    )
    return effect, _flexible(mean)


def _flexible(mean: dict[str, float]) -> str:
    """The verdict on claim 8, part by part, from the means of the study "switch"; rates within 5 %
    (`COST`) are the same.
    """
    drawn, least = "pictures_per_second_", (1 - COST) * mean["pictures_per_second_checkpoint"]
    parts = {
        "choosing among loaded adapters": mean["choose_seconds"] < mean["checkpoint_seconds"],
        "loading from disk": mean["load_seconds"] < mean["checkpoint_seconds"],
        "concepts a GB": all(
            mean[f"concepts_per_gb_{of}lora"] > mean[f"concepts_per_gb_{of}dreambooth"]
            for of in ("", "memory_")
        ),
        "pictures a second, fused": mean[f"{drawn}fused"] >= least,
        "pictures a second, beside": mean[f"{drawn}adapter"] >= least,
    }
    holds, fails = (
        [name for name, good in parts.items() if good is side] for side in (True, False)
    )
    said = "; ".join(
        f"{word} for {', '.join(some)}"
        for word, some in (("holds", holds), ("does not hold", fails))
        if some
    )
    return (
        f"{'depends on the measure: ' if holds and fails else ''}{said} (pocket base, one machine)"
    )


def _chosen_on_others(ways: Ways) -> dict[str, float]:
    """{subject: share that survives by the way with the highest mean over the other subjects} (its
    own with one subject).
    """
    subjects = set.intersection(*map(set, ways.values()))

    def elsewhere(way: tuple[str, float], subject: str) -> float:
        others = [s for other, s in ways[way].items() if other != subject or len(subjects) == 1]
        return float(np.mean(others))

    return {s: ways[max(ways, key=lambda way, s=s: elsewhere(way, s))][s] for s in subjects}


def _ways(rows: Rows, starts: tuple[str, ...]) -> Ways:
    """{(how, weight): {subject: share that survives}} of the ways whose name starts so."""
    ways = dict.fromkeys((r["how"], r["weight"]) for r in rows if r["how"].startswith(starts))
    return {
        way: means
        for way in ways
        if (means := by_subject(rows, "survives", how=way[0], weight=way[1]))
    }
