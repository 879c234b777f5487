"""Effects on PocketBench's rows: paired differences or ratios, their 95 % intervals, and what an
interval allows to say.

The subject is the independent unit (DreamBooth's protocol: Ruiz et al. 2022, arXiv 2208.12242), so
seeds are averaged within it and whole subjects are drawn anew (the bootstrap: Efron 1979, Annals of
Statistics 7). `rows` are dicts, one a run, as `lib.course.sweeping` writes.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np

from lib.evaluation.results import CLEAR, NOT_MEASURED
from lib.files.errors import BadInput
from lib.files.paths import ROOT

Row = dict[str, Any]
Rows = list[Row]
Columns = dict[str, Any]

BENCH = ROOT / "data" / "results" / "pocketbench.csv"

RESAMPLES = 10_000

# subjects for an interval: it lies within its n values, so it covers at most 1 - 2^(1 - n) of the
# time
ENOUGH = 6

# Equivalence margins: differences that are the same to whoever has to choose.
COSINE = CLEAR / 5  # a fifth of what matters to people

SHARE = 0.05  # of what prompts of the class ask: one thing in twenty

COST = 0.05  # bytes; of pictures a second, one run timed again differs by more (docs/results.md)

# Which method's step is the quicker one depends on the machine: the same pair of steps gave a ratio
# of 1.10 on the processor of the bench and of 0.94 on that of the README's first table. What lies
# nearer than a fifth is no reason to choose.
TIME = 0.2

SPREAD = 0.002  # diversity and consistency of a tuned model are themselves one or two hundredths

# drift and losses: a hundredth of the mean square of the noise to be predicted, a thirtieth of the
# base's loss
POWER = 0.01

# A fifth of what plain copies of the training photos score with the pocket judge (columns
# memorising_copies and nearest_copies): it is made to read a subject whatever the place, so copying
# hardly shows in it.
COPIED = {"memorising": 0.001, "nearest": 0.0025}

SAME = (
    f"The same: the whole interval lies within {COSINE} of a cosine, {TIME:.0%} of a time,"
    f" {COST:.0%} of a size, {SPREAD} of a diversity or spread, {POWER} of drift and losses,"
    f" {SHARE:.0%} of what the class is asked, a fifth of what plain copies of the training photos"
    " score in memorising."
)

# measure -> (kind, unit, margin). A "ratio" is averaged as its logarithm.
MEASURES = {
    **dict.fromkeys(
        ("seconds_per_step", "train_seconds", "seconds_to_half", "seconds_to_best"),
        ("ratio", "s", TIME),
    ),
    **dict.fromkeys(("iteration_seconds", "transfer_seconds"), ("ratio", "s", TIME)),
    **dict.fromkeys(("peak_bytes", "file_bytes"), ("ratio", "bytes", COST)),
    **dict.fromkeys(
        "dino dino_new dino_place dino_colour dino_train dino_real dino_equal_time dino_best"
        " clip_i clip_i_train clip_i_real clip_t clip_t_new clip_t_place clip_t_colour"
        " pres pres_trained".split(),
        ("difference", "cosine", COSINE),
    ),
    **dict.fromkeys(
        ("obedience", "place_drawn", "colour_drawn"),
        ("difference", "share of what is asked", SHARE),
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

# of a training, at whose ends PocketBench's columns dino_0_of_4 to drift_4_of_4 are measured
PARTS = 4

MEASURES |= {
    f"{m}_{k}_of_{PARTS}": MEASURES[m]
    for m in ("dino", "clip_t", "pres", "drift", "obedience")
    for k in range(PARTS + 1)
}

LORA, FULL, BASE = {"method": "lora"}, {"method": "dreambooth"}, {"method": "base"}
# DreamBooth cut to a LoRA, of LoRA's rank and of twice that.
CUT, CUT_TWICE = {"method": "extracted"}, {"method": "extracted_twice"}


@dataclass(frozen=True)
class Effect:
    """One side (`of`) minus the other (`against`): mean over subjects of paired differences, or
    geometric mean of ratios.

    value: None without subjects.
    low, high: the ends of the 95 % interval; None with fewer than `ENOUGH` subjects.
    seeds: those of the subject that has fewest.
    kind: "ratio", or "difference", in `unit`.
    margin: the largest difference that counts as none.
    of, against: the sides' means, in `unit`.
    error: the standard error over subjects, of a ratio's logarithm; None without an interval.
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

    def beside(self, count: int) -> "Effect":
        """The same with an interval so wide that `count` of its kind hold all at once in 95 %
        (Bonferroni; Student's, for so far out no bootstrap sees).
        """
        if self.error is None or self.value is None:
            return self
        reach = student(0.025 / count, self.subjects - 1) * self.error
        if self.kind == "ratio":
            middle = math.log(self.value)
            return replace(self, low=math.exp(middle - reach), high=math.exp(middle + reach))
        return replace(self, low=self.value - reach, high=self.value + reach)

    def text(self) -> str:
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
def student(tail: float, v: int) -> float:
    """What Student's t with `v` degrees of freedom exceeds with the probability `tail`: the angle
    with tan = t / sqrt(v) has a density proportional to cos^(v - 1).
    """
    angle = np.linspace(0, math.pi / 2, 100_001)
    density = np.cos(angle) ** (v - 1)
    share = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(v) * math.tan(np.interp(1 - 2 * tail, share / share[-1], angle))


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float] | tuple[None, None]:
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
    low, high = np.quantile(means, [tail, 1 - tail]).tolist()
    return low, high


def number(row: Row, measure: str) -> float | None:
    """The finite number (of a cost: above 0) in a row, or None where the cell is empty; BadInput,
    naming the run, for anything else.
    """
    value = row.get(measure)
    cost = measure in MEASURES and MEASURES[measure][0] == "ratio"
    if value is None or (
        isinstance(value, int | float)
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


def effect(
    rows: Rows,
    measure: str,
    study: str = "main",
    of: Columns = FULL,
    against: Columns | None = LORA,
    pair: tuple[str, ...] = ("seed",),
) -> Effect:
    """The `Effect` on `measure` in a study: runs that match `of` against runs that match `against`,
    or (None) their own level.

    `of` and `against` map columns to a value, or a tuple of them. Runs of a subject are paired
    where the columns `pair` agree (and, for costs, the device); without a partner they do not
    count. With `pair=()` each side is averaged within the subject first: the base has no seed.
    BadInput: an unknown measure, a number that is none, two runs where one belongs, unlike base
    models or judges.
    """
    sides = (of, against) if against else (of,)
    means, seeds = _means(rows, measure, study, sides, pair)
    return _effect(
        measure=measure,
        gaps=[m[0] - m[1] if against else m[0] for m in means.values()],
        levels=np.array(list(means.values())),
        seeds=min(map(len, seeds.values()), default=0),
    )


def _effect(*, measure: str, gaps: list[float], levels: np.ndarray, seeds: int) -> Effect:
    """The `Effect` of one gap a subject, on the logarithm's scale for a ratio.

    levels: the means of the sides, [subjects, sides]. seeds: of the subject that has fewest.
    """
    kind, unit, margin = MEASURES[measure]
    if not gaps:
        return Effect(None, None, None, 0, 0, unit, kind, margin)
    values = np.array(gaps)
    low, high = interval(gaps)
    of, against = [*levels.mean(0), None][:2]

    def scaled(value: float | None) -> float | None:
        if value is None:
            return None
        return float(np.exp(value) if kind == "ratio" else value)

    return Effect(
        value=scaled(values.mean()),
        low=scaled(low),
        high=scaled(high),
        subjects=len(gaps),
        seeds=seeds,
        unit=unit,
        kind=kind,
        margin=margin,
        of=scaled(of),
        against=scaled(against),
        error=float(values.std(ddof=1) / math.sqrt(len(gaps))) if len(gaps) >= ENOUGH else None,
    )


def _means(
    rows: Rows, measure: str, study: str, sides: tuple[Columns, ...], pair: tuple[str, ...]
) -> tuple[dict[str, np.ndarray], dict[str, set]]:
    """({subject: [mean of each side]}, {subject: its seeds}); logarithms' means for a ratio."""
    if measure not in MEASURES:
        raise BadInput(f"There is no measure '{measure}': known are {', '.join(MEASURES)}.")
    is_ratio = MEASURES[measure][0] == "ratio"
    found = [_side(rows, measure, study, where) for where in sides]
    _check_alike([row for side in found for row, _ in side], study, is_ratio)
    columns = (*pair, "device") if is_ratio else pair
    keyed: list[dict[tuple, list[tuple[float, Any]]]] = []
    for where, side in zip(sides, found):
        values = defaultdict(list)
        for row, value in side:
            key = (row["subject"], *(row.get(column) for column in columns))
            values[key].append((math.log(value) if is_ratio else value, row.get("seed")))
            if pair and len(values[key]) > 1:
                raise BadInput(
                    f"The study '{study}' has two runs of {row['subject']}, {where}, with"
                    f" one {pair}: keep one row."
                )
        keyed.append(values)
    subjects, seeds = defaultdict(list), defaultdict(set)
    for key in sorted(set.intersection(*map(set, keyed)), key=str):
        subjects[key[0]].append([np.mean([value for value, _ in side[key]]) for side in keyed])
        seeds[key[0]].update(seed for _, seed in keyed[0][key])
    return {s: np.mean(subjects[s], axis=0) for s in sorted(subjects, key=str)}, seeds


def _side(rows: Rows, measure: str, study: str, where: Columns) -> list[tuple[Row, float]]:
    """The runs of a study that match `where` and have the measure, with its value."""
    found = []
    for row in rows:
        if row.get("study") == study and _matches(row, where):
            value = number(row, measure)
            if value is not None:
                found.append((row, value))
    return found


def _matches(row: Row, where: Columns) -> bool:
    return all(row.get(k) in (v if isinstance(v, tuple) else (v,)) for k, v in where.items())


def _check_alike(rows: Rows, study: str, is_ratio: bool) -> None:
    """Raise BadInput where the runs are of several base models or, for scores, several judges."""
    for name in ("base_hash",) if is_ratio else ("base_hash", "judge"):
        if are_mixed(rows, name):
            found = {row.get(name) for row in rows}
            raise BadInput(
                f"The study '{study}' mixes {name} {', '.join(map(str, found))}, which don't"
                " compare: keep the rows of one."
            )


def are_mixed(rows: Rows, name: str) -> bool:
    """Whether the rows that have a column have several values in it."""
    return len({row.get(name) for row in rows} - {None}) > 1


def swing(rows: Rows, measure: str, study: str, of: Columns, subjects: int) -> float | None:
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


def decide(effect: Effect, sign: int = 1) -> tuple[str, str]:
    """(verdict, detail) on the claim that the effect is upwards (`sign` 1) or downwards (-1): what
    the interval allows, and no more.
    """
    low, high, edge = effect.low, effect.high, effect.margin
    if effect.subjects < ENOUGH or low is None or high is None:
        few = f"{effect.subjects}; a verdict takes {ENOUGH}"
        return ("not enough subjects", few) if effect.subjects else (NOT_MEASURED, "")
    is_ratio, margin = effect.kind == "ratio", f"{edge:g}"
    if is_ratio:
        low, high, edge, margin = math.log(low), math.log(high), math.log1p(edge), f"{edge:.0%}"
    if -edge <= low and high <= edge:
        side = "" if low <= 0 <= high else f"; {'more' if low > 0 else 'less'}, by less than that"
        return "no difference", f"the same within {margin}{side}"
    if low <= 0 <= high:
        most = max(-low, high)
        text = f"x {math.exp(most):.2f}" if is_ratio else f"{most:.3f}"
        return "no difference found", f"cannot exclude up to {text}"
    return ("holds", "") if low * sign > 0 else ("does not hold", "the other way round")
