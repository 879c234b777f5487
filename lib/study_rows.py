"""Which of PocketBench's rows may be compared, and what a study rests on: rows are dicts, one a run, as in `lib.effects`."""

from collections import defaultdict

from .effects import BASE


def ranked(rows):
    """The ranks of the study of ranks, in order."""
    return sorted({int(r["rank"]) for r in rows if r.get("study") == "rank" and r.get("rank") is not None})


def common(rows, wanted, seeds=True):
    """The rows of those subjects (and seeds) that have a run in each of `wanted`: pairs (study, columns that match)."""
    there = [[r for r in rows if r.get("study") == study and of.items() <= r.items()] for study, of in wanted]
    subjects = set.intersection(*({r["subject"] for r in some} for some in there))
    kept = [{r["seed"] for r in some} for some, (_, of) in zip(there, wanted) if seeds and of != BASE]
    return [r for r in rows if r["subject"] in subjects and (r["method"] == "base" or all(r["seed"] in each for each in kept))]


def size(rows, study="main"):
    """What a study rests on, such as "30 subjects x 3 seeds", or "x 1 to 3" while some lack runs: seeds that every method of it has run."""
    some, there, seeds = [r for r in rows if r.get("study") == study and r.get("method") != "base"], defaultdict(set), defaultdict(set)
    for r in some:
        there[r["subject"], r.get("seed")].add(r["method"])
    for (subject, seed), methods in there.items():
        if methods == {r["method"] for r in some}:
            seeds[subject].add(seed)
    few, most = (pick(map(len, seeds.values()), default=0) for pick in (min, max))
    return f"{len(seeds)} subject{'s' * (len(seeds) != 1)} x {f'{few} to ' * (few < most)}{most} seed{'s' * (most != 1)}"


def steps(rows, study="main"):
    """The training steps of a study as text."""
    return " or ".join(str(n) for n in sorted({r["steps"] for r in rows if r.get("study") == study and r.get("steps")}))
