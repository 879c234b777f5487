"""Effects on PocketBench's rows: paired differences or ratios, their 95 % intervals, and what an interval allows to say.

The subject is the independent unit (DreamBooth's protocol: Ruiz et al. 2022, arXiv 2208.12242), so seeds are averaged within it and
whole subjects are drawn anew (the bootstrap: Efron 1979, Annals of Statistics 7). `rows` are dicts, one a run, as `lib.sweep` writes.
"""

import math
from collections import defaultdict
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from statistics import NormalDist

import numpy as np

from .rows import read_table
from .settings import BadInput

BENCH = Path(__file__).resolve().parent.parent / "data" / "results" / "pocketbench.csv"
RESAMPLES, FEWEST = 10_000, 3       # bootstrap samples; subjects for an interval
ENOUGH = 6              # subjects for a verdict: the interval lies within its n values, so it covers at most 1 - 2^(1 - n) of the time
# Equivalence margins: differences that are the same to whoever has to choose.
COSINE = 0.02           # a fifth of the 0.1 of DINO that matters to people, by DreamBooth's own tables
COST = 0.05             # one step timed again on one machine differs by more (README, Figures)
SPREAD = 0.005          # diversity and consistency are themselves only some hundredths
POWER = 0.01            # drift: a hundredth of the mean square of what the base model predicts
# measure -> (kind, unit, margin). A "ratio" is averaged as its logarithm.
MEASURES = {
    **dict.fromkeys(("seconds_per_step", "train_seconds", "seconds_to_half", "seconds_to_best"), ("ratio", "s", COST)),
    **dict.fromkeys(("iteration_seconds", "transfer_seconds"), ("ratio", "s", COST)),
    **dict.fromkeys(("peak_bytes", "file_bytes"), ("ratio", "bytes", COST)),
    **dict.fromkeys("dino dino_train dino_real clip_i clip_i_train clip_i_real clip_t memorising nearest pres".split(),
                    ("difference", "cosine", COSINE)),
    **dict.fromkeys(("diversity", "consistency"), ("difference", "cosine", SPREAD)),
    "drift": ("difference", "share of the base's mean square", POWER),
}
PARTS = 4               # of a training, at whose ends PocketBench's columns dino_0_of_4 to drift_4_of_4 are measured
MEASURES |= {f"{m}_{k}_of_{PARTS}": MEASURES[m] for m in ("dino", "clip_t", "pres", "drift") for k in range(PARTS + 1)}
LORA, FULL, BASE = {"method": "lora"}, {"method": "dreambooth"}, {"method": "base"}
NOT_MEASURED = "not measured yet: make pocketbench"


def read_bench(path=BENCH):
    """PocketBench's rows. Where they were not made yet: none, and a line that says how to make them. Raises BadInput as `read_table`."""
    if Path(path).is_file():
        return read_table(path)
    print(f"PocketBench has not been run here: `make pocketbench` makes {path}, and every figure and verdict that rests on it.")
    return []


@dataclass(frozen=True)
class Effect:
    """One side (`of`) minus the other (`against`): mean over subjects of paired differences, or geometric mean of ratios.

    `low` and `high` bound the 95 % interval: None with fewer than three subjects; `value` is None with none. `seeds`: those of the
    subject that has fewest. `of` and `against`: the sides' means, in `unit`. `margin`: the largest difference that is none.
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

    def text(self):
        """The effect, its interval and what it rests on: "+0.031 (+0.012 to +0.050), 30 subjects x 3 seeds"."""
        form = "x {:.2f}".format if self.kind == "ratio" else "{:+.3f}".format
        ends = "no interval" if self.low is None else f"{form(self.low)} to {form(self.high)}"
        size = " x ".join(f"{n} {noun}{'s' * (n != 1)}" for n, noun in ((self.subjects, "subject"), (self.seeds, "seed")))
        return f"{form(self.value)} ({ends}), {size}" if self.subjects else "-"


def interval(values, seed=0):
    """(low, high), the 95 % interval of the mean of N independent values; (None, None) for N < 3.

    Percentiles of bootstrap means: not 2.5 and 97.5, which are too narrow for few values (twelve cover 91 %), but as far out as Student's
    interval is for normal data (Hesterberg 2015, arXiv 1411.5279; t after Abramowitz and Stegun 26.7.5).
    """
    n = len(values)
    if n < FEWEST:
        return None, None
    tail = NormalDist().cdf(-student(n - 1) * math.sqrt(n / (n - 1)))
    means = np.asarray(values, float)[np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))].mean(1)
    return tuple(np.quantile(means, [tail, 1 - tail]).tolist())


def student(v):
    """The 97.5 % point of Student's t with `v` degrees of freedom, 2 or more."""
    z = NormalDist().inv_cdf(0.975)
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    return z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2) + third


def number(row, measure):
    """The finite number (of a cost: above 0) in a row, or None where the cell is empty; BadInput, naming the run, for anything else."""
    value, cost = row.get(measure), measure in MEASURES and MEASURES[measure][0] == "ratio"
    if value is None or (isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value) and (value > 0 or not cost)):
        return value
    run = ", ".join(f"{key} {row[key]}" for key in ("study", "subject", "method", "seed") if row.get(key) is not None)
    raise BadInput(f"The run of {run} has {measure} = {value!r} where a {'number above 0' if cost else 'finite number'} belongs: "
                   "take it out of the results and make it again with `make pocketbench`.")


def effect(rows, measure, study="main", of=FULL, against=LORA, pair=("seed",)):
    """The `Effect` on `measure` in a study: runs that match `of` against runs that match `against`, or (None) their own level.

    `of` and `against` map columns to a value, or a tuple of them. Runs of a subject are paired where the columns `pair` agree (and, for
    costs, the device); without a partner they do not count. With `pair=()` each side is averaged within the subject first: the base
    has no seed. BadInput: an unknown measure, a number that is none, two runs where one belongs, unlike base models or judges.
    """
    if measure not in MEASURES:
        raise BadInput(f"There is no measure '{measure}': known are {', '.join(MEASURES)}.")
    kind, unit, margin = MEASURES[measure]
    ratio, sides, ground = kind == "ratio", [], defaultdict(set)
    for where in (of, against) if against else (of,):
        sides.append(side := defaultdict(list))
        for row in rows:
            if row.get("study") == study and all(row.get(k) in (v if isinstance(v, tuple) else (v,)) for k, v in where.items()):
                value, key = number(row, measure), (row["subject"], *(row.get(c) for c in pair + ("device",) * ratio))
                if value is not None:
                    side[key].append((math.log(value) if ratio else value, row.get("seed")))
                    if pair and len(side[key]) > 1:
                        raise BadInput(f"The study '{study}' has two runs of {row['subject']}, {where}, with one {pair}: keep one row.")
                    for name in ("base_hash",) if ratio else ("base_hash", "judge"):
                        ground[name].add(row.get(name))
    for name, found in ground.items():
        if len(found - {None}) > 1:
            raise BadInput(f"The study '{study}' mixes {name} {', '.join(map(str, found))}, which don't compare: keep the rows of one.")
    subjects, seeds = defaultdict(list), defaultdict(set)
    for key in sorted(set.intersection(*map(set, sides)), key=str):
        subjects[key[0]].append([np.mean([value for value, _ in side[key]]) for side in sides])
        seeds[key[0]].update(seed for _, seed in sides[0][key])
    if not subjects:
        return Effect(None, None, None, 0, 0, unit, kind, margin)
    means = np.array([np.mean(subjects[s], axis=0) for s in sorted(subjects, key=str)])
    gaps = means[:, 0] - means[:, 1] if against else means[:, 0]
    found = [v if v is None else float(np.exp(v) if ratio else v) for v in (gaps.mean(), *interval(gaps), *means.mean(0))]
    return Effect(*found[:3], len(subjects), min(map(len, seeds.values())), unit, kind, margin, *found[3:])


def swing(rows, measure, study, of, subjects):
    """How far another seed alone moves a mean over so many `subjects`, 95 times in 100; None where too few runs tell.

    The runs of a study that match `of` are of one recipe on several seeds. Their variance within a subject, pooled, is that of one run;
    the difference of two means of `subjects` runs has 2 / subjects of it (Student 1908, Biometrika 6).
    """
    runs = defaultdict(list)
    for row in rows:
        if row.get("study") == study and of.items() <= row.items() and number(row, measure) is not None:
            runs[row["subject"]].append(row[measure])
    free = sum(len(values) - 1 for values in runs.values())
    if free < FEWEST or not subjects:
        return None
    return student(free) * math.sqrt(sum(np.var(values) * len(values) for values in runs.values()) / free * 2 / subjects)


def decide(effect, sign=1):
    """(verdict, detail) on the claim that the effect is upwards (`sign` 1) or downwards (-1): what the interval allows, and no more."""
    if effect.subjects < ENOUGH:
        return ("not enough subjects", f"{effect.subjects}; a verdict takes {ENOUGH}") if effect.subjects else (NOT_MEASURED, "")
    ratio, low, high, edge = effect.kind == "ratio", effect.low, effect.high, effect.margin
    low, high, edge = (math.log(low), math.log(high), math.log1p(edge)) if ratio else (low, high, edge)
    if -edge <= low and high <= edge:
        return "no difference", "the same within " + (f"{effect.margin:.0%}" if ratio else f"{effect.margin:g}")
    if low <= 0 <= high:
        most = max(-low, high)
        return "no difference found", f"cannot exclude up to {f'x {math.exp(most):.2f}' if ratio else f'{most:.3f}'}"
    return ("holds", "") if low * sign > 0 else ("does not hold", "the other way round")


def shown(value, unit):
    """A measure as text, such as "0.242 s", "20.8 MiB", "0.613"."""
    return f"{value:.3g} s" if unit == "s" else f"{value / 2**20:.3g} MiB" if unit == "bytes" else f"{value:.3f}"
