"""Effects on PocketBench's rows: paired differences or ratios, their 95 % intervals, and what an
interval allows to say.

The subject is the independent unit (DreamBooth's protocol: Ruiz et al. 2022, arXiv 2208.12242), so
seeds are averaged within it and whole subjects are drawn anew (the bootstrap: Efron 1979, Annals of
Statistics 7). `rows` are dicts, one a run, as `lib.course.sweeping` writes.
"""

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cache
from numbers import Real
from statistics import NormalDist

import numpy as np

from lib.files.errors import BadInput
from lib.files.paths import ROOT

BENCH = ROOT / "data" / "results" / "pocketbench.csv"


RESAMPLES = 10_000


# subjects for an interval: it lies within its n values, so it covers at most 1 - 2^(1 - n) of the
# time
ENOUGH = 6


# Equivalence margins: differences that are the same to whoever has to choose.
COSINE = 0.02  # a fifth of the 0.1 of DINO that matters to people, by DreamBooth's own tables


CLEAR = (
    5 * COSINE
)  # those 0.1 themselves: of a smaller distance, a difference that counts as the same would be over a fifth


COST = 0.05  # one step timed again on one machine differs by more (README, Figures)


SPREAD = 0.002  # diversity and consistency of a tuned model are themselves one or two hundredths


# drift and losses: a hundredth of the mean square of the noise to be predicted, a thirtieth of the
# base's loss
POWER = 0.01


# A fifth of what plain copies of the training photos score with the pocket judge (columns
# memorising_copies and nearest_copies): it is made to read a subject whatever the place, so copying
# hardly shows in it.
COPIED = {"memorising": 0.001, "nearest": 0.0025}


SAME = (
    f"The same: the whole interval lies within {COSINE} of a cosine, {COST:.0%} of a cost, {SPREAD}"
    f" of a diversity or spread, {POWER} of drift and losses, a fifth of what plain copies of the"
    " training photos score in memorising."
)


# measure -> (kind, unit, margin). A "ratio" is averaged as its logarithm.
MEASURES = {
    **dict.fromkeys(
        ("seconds_per_step", "train_seconds", "seconds_to_half", "seconds_to_best"),
        ("ratio", "s", COST),
    ),
    **dict.fromkeys(("iteration_seconds", "transfer_seconds"), ("ratio", "s", COST)),
    **dict.fromkeys(("peak_bytes", "file_bytes"), ("ratio", "bytes", COST)),
    **dict.fromkeys(
        "dino dino_new dino_train dino_real dino_equal_time dino_best clip_i clip_i_train"
        " clip_i_real clip_t clip_t_new pres".split(),
        ("difference", "cosine", COSINE),
    ),
    **{
        f"{m}{of}": ("difference", "cosine", margin)
        for m, margin in COPIED.items()
        for of in ("", "_copies")
    },
    **dict.fromkeys(
        ("diversity", "consistency", "prompt_spread"), ("difference", "cosine", SPREAD)
    ),
    **dict.fromkeys(
        ("loss_train", "loss_held_out", "loss_gap"), ("difference", "mean squared error", POWER)
    ),
    "drift": ("difference", "share of the base's mean square", POWER),
}


PARTS = (
    4  # of a training, at whose ends PocketBench's columns dino_0_of_4 to drift_4_of_4 are measured
)


MEASURES |= {
    f"{m}_{k}_of_{PARTS}": MEASURES[m]
    for m in ("dino", "clip_t", "pres", "drift")
    for k in range(PARTS + 1)
}


LORA, FULL, BASE = {"method": "lora"}, {"method": "dreambooth"}, {"method": "base"}


NOT_MEASURED = "not measured yet: make pocketbench"


@dataclass(frozen=True)
class Effect:
    """One side (`of`) minus the other (`against`): mean over subjects of paired differences, or
    geometric mean of ratios.

    `low` and `high` bound the 95 % interval: None with fewer than `ENOUGH` subjects; `value` is
    None with none. `seeds`: those of the subject that has fewest. `of` and `against`: the sides'
    means, in `unit`. `margin`: the largest difference that is none. `error`: the standard error
    over subjects, of a ratio's logarithm; None where there is no interval.
    """

    value: float | None
    low: float | None
    high: float | None
    subjects: int
    seeds: int
    unit: str
    kind: str
    margin: float
    of: float | None = None
    against: float | None = None
    error: float | None = None

    def beside(self, count):
        """The same with an interval so wide that `count` of its kind hold all at once in 95 %
        (Bonferroni; Student's, for so far out no bootstrap sees).
        """
        if self.error is None:
            return self
        middle, reach = (
            math.log(self.value) if self.kind == "ratio" else self.value,
            student(0.025 / count, self.subjects - 1) * self.error,
        )
        ends = (
            math.exp(v) if self.kind == "ratio" else v for v in (middle - reach, middle + reach)
        )
        return replace(self, **dict(zip(("low", "high"), ends)))

    def text(self):
        """The effect, its interval and what it rests on: "+0.031 (+0.012 to +0.050), 30 subjects x
        3 seeds".
        """
        form = "x {:.2f}".format if self.kind == "ratio" else "{:+.3f}".format
        ends = "no interval" if self.low is None else f"{form(self.low)} to {form(self.high)}"
        size = " x ".join(
            f"{n} {noun}{'s' * (n != 1)}"
            for n, noun in ((self.subjects, "subject"), (self.seeds, "seed"))
        )
        return f"{form(self.value)} ({ends}), {size}" if self.subjects else "-"


@cache
def student(tail, v):
    """What Student's t with `v` degrees of freedom exceeds with the probability `tail`: the angle
    with tan = t / sqrt(v) has a density proportional to cos^(v - 1).
    """
    angle = np.linspace(0, math.pi / 2, 100_001)
    density = np.cos(angle) ** (v - 1)
    share = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(v) * math.tan(np.interp(1 - 2 * tail, share / share[-1], angle))


def interval(values, seed=0):
    """(low, high), the 95 % interval of the mean of N independent values; (None, None) for N <
    `ENOUGH`.

    Percentiles of bootstrap means: not 2.5 and 97.5, but as far out as Student's interval is for
    normal data (Hesterberg 2015, arXiv 1411.5279). Of 6, 8, 12 and 30 normal values it covers the
    mean 94 to 95 % of the time, where plain percentiles cover 87, 89, 90 and 94 and BCa's, made for
    large samples, no more; of strongly skewed ones (exponential) 89 to 92 %, as Student's does
    (1,500 trials).
    """
    n = len(values)
    if n < ENOUGH:
        return None, None
    tail = NormalDist().cdf(-student(0.025, n - 1) * math.sqrt(n / (n - 1)))
    means = np.asarray(values, float)[
        np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))
    ].mean(1)
    return tuple(np.quantile(means, [tail, 1 - tail]).tolist())


def number(row, measure):
    """The finite number (of a cost: above 0) in a row, or None where the cell is empty; BadInput,
    naming the run, for anything else.
    """
    value, cost = row.get(measure), measure in MEASURES and MEASURES[measure][0] == "ratio"
    if value is None or (
        isinstance(value, Real)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and (value > 0 or not cost)
    ):
        return value
    run = ", ".join(
        f"{key} {row[key]}"
        for key in ("study", "subject", "method", "seed")
        if row.get(key) is not None
    )
    raise BadInput(
        f"The run of {run} has {measure} = {value!r} where a"
        f" {'number above 0' if cost else 'finite number'} belongs: take it out of the results and"
        " make it again with `make pocketbench`."
    )


def effect(rows, measure, study="main", of=FULL, against=LORA, pair=("seed",)):
    """The `Effect` on `measure` in a study: runs that match `of` against runs that match `against`,
    or (None) their own level.

    `of` and `against` map columns to a value, or a tuple of them. Runs of a subject are paired
    where the columns `pair` agree (and, for costs, the device); without a partner they do not
    count. With `pair=()` each side is averaged within the subject first: the base has no seed.
    BadInput: an unknown measure, a number that is none, two runs where one belongs, unlike base
    models or judges.
    """
    means, seeds = _means(rows, measure, study, of, against, pair)
    return _effect(
        measure,
        {s: m[0] - m[1] if against else m[0] for s, m in means.items()},
        seeds,
        np.array(list(means.values())),
    )


def repeated(rows, measure, study="again"):
    """The `Effect` by which DreamBooth against LoRA came out otherwise in `study` than in the main
    one, over the subjects of both.

    Around 0 where the two agree: what a subject is like cancels, so what is left is the luck of the
    training seeds. `of` and `against`: the effect in `study` and in the main one. Raises BadInput
    as `effect`.
    """
    (again, seeds), (main, _) = (
        _means(rows, measure, s, FULL, LORA, ("seed",)) for s in (study, "main")
    )
    gaps = {s: [m[s][0] - m[s][1] for m in (again, main)] for s in again if s in main}
    return _effect(
        measure,
        {s: a - b for s, (a, b) in gaps.items()},
        {s: seeds[s] for s in gaps},
        np.array(list(gaps.values())),
    )


def _effect(measure, gaps, seeds, levels):
    """The `Effect` of a gap for each subject, with the means of its sides, all on the logarithm's
    scale for a ratio.
    """
    kind, unit, margin = MEASURES[measure]
    if not gaps:
        return Effect(None, None, None, 0, 0, unit, kind, margin)
    values = np.array(list(gaps.values()))
    found = [
        v if v is None else float(np.exp(v) if kind == "ratio" else v)
        for v in (values.mean(), *interval(values), *levels.mean(0))
    ]
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) >= ENOUGH else None
    return Effect(
        *found[:3],
        len(values),
        min(map(len, seeds.values())),
        unit,
        kind,
        margin,
        *(found[3:] + [None])[:2],
        error,
    )


def _means(rows, measure, study, of, against, pair):
    """({subject: [mean of each side]}, {subject: its seeds}), as `effect` takes them; the mean of
    logarithms for a ratio.
    """
    if measure not in MEASURES:
        raise BadInput(f"There is no measure '{measure}': known are {', '.join(MEASURES)}.")
    ratio, sides, ground = MEASURES[measure][0] == "ratio", [], defaultdict(set)
    for where in (of, against) if against else (of,):
        sides.append(side := defaultdict(list))
        for row in rows:
            if row.get("study") == study and all(
                row.get(k) in (v if isinstance(v, tuple) else (v,)) for k, v in where.items()
            ):
                value, key = (
                    number(row, measure),
                    (row["subject"], *(row.get(c) for c in pair + ("device",) * ratio)),
                )
                if value is not None:
                    side[key].append((math.log(value) if ratio else value, row.get("seed")))
                    if pair and len(side[key]) > 1:
                        raise BadInput(
                            f"The study '{study}' has two runs of {row['subject']}, {where}, with"
                            f" one {pair}: keep one row."
                        )
                    for name in ("base_hash",) if ratio else ("base_hash", "judge"):
                        ground[name].add(row.get(name))
    for name, found in ground.items():
        if len(found - {None}) > 1:
            raise BadInput(
                f"The study '{study}' mixes {name} {', '.join(map(str, found))}, which don't"
                " compare: keep the rows of one."
            )
    subjects, seeds = defaultdict(list), defaultdict(set)
    for key in sorted(set.intersection(*map(set, sides)), key=str):
        subjects[key[0]].append([np.mean([value for value, _ in side[key]]) for side in sides])
        seeds[key[0]].update(seed for _, seed in sides[0][key])
    return {s: np.mean(subjects[s], axis=0) for s in sorted(subjects, key=str)}, seeds


def swing(rows, measure, study, of, subjects):
    """How far another seed alone moves a mean over so many `subjects`, 95 times in 100; None where
    too few runs tell.

    The runs of a study that match `of` are of one recipe on several seeds. Their variance within a
    subject, pooled, is that of one run; the difference of two means of `subjects` runs has 2 /
    subjects of it (Student 1908, Biometrika 6).
    """
    runs = defaultdict(list)
    for row in rows:
        if (
            row.get("study") == study
            and of.items() <= row.items()
            and number(row, measure) is not None
        ):
            runs[row["subject"]].append(row[measure])
    free = sum(len(values) - 1 for values in runs.values())
    if free < ENOUGH or not subjects:
        return None
    return student(0.025, free) * math.sqrt(
        sum(np.var(values) * len(values) for values in runs.values()) / free * 2 / subjects
    )


def decide(effect, sign=1):
    """(verdict, detail) on the claim that the effect is upwards (`sign` 1) or downwards (-1): what
    the interval allows, and no more.
    """
    if effect.subjects < ENOUGH:
        return (
            ("not enough subjects", f"{effect.subjects}; a verdict takes {ENOUGH}")
            if effect.subjects
            else (NOT_MEASURED, "")
        )
    ratio, low, high, edge = effect.kind == "ratio", effect.low, effect.high, effect.margin
    low, high, edge = (
        (math.log(low), math.log(high), math.log1p(edge)) if ratio else (low, high, edge)
    )
    if -edge <= low and high <= edge:
        side = "" if low <= 0 <= high else f"; {'more' if low > 0 else 'less'}, by less than that"
        return (
            "no difference",
            "the same within " + (f"{effect.margin:.0%}" if ratio else f"{effect.margin:g}") + side,
        )
    if low <= 0 <= high:
        most = max(-low, high)
        return (
            "no difference found",
            f"cannot exclude up to {f'x {math.exp(most):.2f}' if ratio else f'{most:.3f}'}",
        )
    return ("holds", "") if low * sign > 0 else ("does not hold", "the other way round")


def shown(value, unit):
    """A measure as text, such as "0.242 s", "20.8 MiB", "0.613"."""
    return (
        f"{value:.3g} s"
        if unit == "s"
        else f"{value / 2**20:.3g} MiB"
        if unit == "bytes"
        else f"{value:.3f}"
    )
