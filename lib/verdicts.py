"""A verdict on each claim of shared/claims.md, from PocketBench's rows: the effect, its 95 % interval, and what may be said.

    python -m lib.verdicts data/results/pocketbench.csv       # prints the table

The subject is the independent unit (DreamBooth's protocol: Ruiz et al. 2022, arXiv 2208.12242), so seeds are averaged within it and
whole subjects are drawn anew (the bootstrap: Efron 1979, Annals of Statistics 7). `rows` are dicts, one a run, as `lib.sweep` writes.
"""

import math
from collections import defaultdict, namedtuple
from dataclasses import dataclass
from numbers import Real
from statistics import NormalDist

import numpy as np

from .settings import BadInput

RESAMPLES, FEWEST = 10_000, 3       # bootstrap samples; subjects for an interval
ENOUGH = 6              # subjects for a verdict: the interval lies within its n values, so it covers at most 1 - 2^(1 - n) of the time
# Equivalence margins: differences that are the same to whoever has to choose.
COSINE = 0.02           # a fifth of the 0.1 of DINO that matters to people, by DreamBooth's own tables
COST = 0.05             # one step timed again on one machine differs by more (README, Figures)
SPREAD = 0.005          # diversity and consistency are themselves only some hundredths
POWER = 0.01            # drift: a hundredth of the mean square of what the base model predicts
SAMPLE_SECONDS, BANDWIDTH = 0.2, 20e6   # a picture of 25 guided steps (benchmarks/results/pocket.json); bits a second, of claim 4
# measure -> (kind, unit, margin). A "ratio" is averaged as its logarithm.
MEASURES = {
    **dict.fromkeys(("seconds_per_step", "train_seconds", "iteration_seconds", "transfer_seconds"), ("ratio", "s", COST)),
    **dict.fromkeys(("peak_bytes", "file_bytes"), ("ratio", "bytes", COST)),
    **dict.fromkeys("dino dino_train clip_i clip_i_train clip_t memorising nearest pres".split(), ("difference", "cosine", COSINE)),
    **dict.fromkeys(("diversity", "consistency"), ("difference", "cosine", SPREAD)),
    "drift": ("difference", "share of the base's mean square", POWER),
}
LORA, FULL, BASE = {"method": "lora"}, {"method": "dreambooth"}, {"method": "base"}
NOT_MEASURED, LATER = "not measured yet: make pocketbench", "measured in notebook 05"


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
    n, v, z = len(values), len(values) - 1, NormalDist().inv_cdf(0.975)
    if n < FEWEST:
        return None, None
    t = z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2) + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    tail = NormalDist().cdf(-t * math.sqrt(n / v))
    means = np.asarray(values, float)[np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))].mean(1)
    return tuple(np.quantile(means, [tail, 1 - tail]).tolist())


def number(row, measure):
    """The finite number (of a cost: above 0) in a row, or None where the cell is empty; BadInput, naming the run, for anything else."""
    value, cost = row.get(measure), measure in MEASURES and MEASURES[measure][0] == "ratio"
    if value is None or (isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value) and (value > 0 or not cost)):
        return value
    run = ", ".join(f"{key} {row[key]}" for key in ("study", "subject", "method", "seed") if row.get(key) is not None)
    raise BadInput(f"The run of {run} has {measure} = {value!r} where a {'number above 0' if cost else 'finite number'} belongs: "
                   "take it out of the results and make it again with `make pocketbench`.")


def effect(rows, measure, study="main", of=FULL, against=LORA, pair=("seed",)):
    """The `Effect` on `measure` in a study: runs that match `of` against runs that match `against`.

    `of` and `against` map columns to a value, or a tuple of them. Runs of a subject are paired where the columns `pair` agree (and, for
    costs, the device); without a partner they do not count. With `pair=()` each side is averaged within the subject first: the base
    has no seed. BadInput: an unknown measure, a number that is none, two runs where one belongs, unlike base models or judges.
    """
    if measure not in MEASURES:
        raise BadInput(f"There is no measure '{measure}': known are {', '.join(MEASURES)}.")
    kind, unit, margin = MEASURES[measure]
    ratio, sides, ground = kind == "ratio", [], defaultdict(set)
    for where in (of, against):
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
    for key in sorted(sides[0].keys() & sides[1].keys(), key=str):
        subjects[key[0]].append([np.mean([value for value, _ in side[key]]) for side in sides])
        seeds[key[0]].update(seed for _, seed in sides[0][key])
    if not subjects:
        return Effect(None, None, None, 0, 0, unit, kind, margin)
    means = np.array([np.mean(subjects[s], axis=0) for s in sorted(subjects, key=str)])
    gaps = means[:, 0] - means[:, 1]
    found = [v if v is None else float(np.exp(v) if ratio else v) for v in (gaps.mean(), *interval(gaps), *means.mean(0))]
    return Effect(*found[:3], len(subjects), min(map(len, seeds.values())), unit, kind, margin, *found[3:])


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


HEADINGS = ["claim", "in words", "measurement", "effect of DreamBooth against LoRA (95 % interval)", "verdict", "your own run"]
CAPTION = (f"Means over subjects of paired differences, or ratios (x); intervals: bootstrap over subjects, {RESAMPLES:,} resamples, each "
           f"claim by itself. Counts as the same: {COSINE} of a cosine, {COST:.0%} of a cost, {SPREAD} of diversity and consistency. "
           "Your own run is one subject and one seed: no interval, no verdict.")
# One measurement of a claim: `sign` 1 or -1 is the direction claimed, 0 shows the effect without judging by it.
Part = namedtuple("Part", "label measure sign study of against pair", defaults=(1, "main", FULL, LORA, ("seed",)))
RARE, POOR, OVERFITS = {"variant": "rare"}, {"variant": ("duplicates", "one_background")}, {"memorising": 1, "PRES": 1, "diversity": -1}
# Number, claim, how it is measured, and its parts; instead of parts, the verdict on what these rows cannot decide.
CLAIMS = (
    (1, "LoRA trains faster", "seconds a step", [Part("", "seconds_per_step")]),
    (2, "DreamBooth needs more memory", "peak of training on the pocket base; Stable Diffusion: the forecast", [Part("", "peak_bytes")]),
    (3, "LoRA's file is smaller", "bytes as shipped, pocket base; gigabytes are Stable Diffusion's", [Part("", "file_bytes")]),
    (4, "LoRA is easier to share", "upload at 20 Mbit/s, computed; 1 file against 2; tools: notebook 05", [Part("", "transfer_seconds")]),
    (5, "LoRA is quicker to try again", f"training and one sample of {SAMPLE_SECONDS} s", [Part("", "iteration_seconds")]),
    (6, "DreamBooth is more faithful", "likeness to held-out photos, each method at its own best rate, equal steps",
     [Part("DINO", "dino"), Part("CLIP-I", "clip_i"), Part("beside it CLIP-T", "clip_t", 0),
      *(Part(f"{name} over base, DINO", "dino", 0, "main", of, BASE, ()) for name, of in (("LoRA", LORA), ("DreamBooth", FULL)))]),
    (7, "LoRAs combine, checkpoints hardly", "what survives of each of three concepts", LATER),
    (8, "LoRA is more flexible in production", "seconds to switch, concepts a GB, pictures a second", LATER),
    (9, "LoRA for most, DreamBooth for some", "the decision guide (lib/guide.py)", "depends on your memory, disk, time, concepts, wishes"),
    (10, "LoRA leaves the base unchanged", "hash of the base's weights; adapter off", "holds: 0 bits differ, whenever notebook 02 runs"),
    (11, "DreamBooth binds a rare word to the subject", "DINO with a rare identifier and the right noun, minus DINO of the others",
     [*(Part(f"{who}{variant.replace('_', ' ')}", "dino", sign, "identifier", of | RARE, of | {"variant": variant})
        for who, of, sign in (("", FULL, 1), ("beside it LoRA, ", LORA, 0))
        for variant in ("without_identifier", "common", "wrong_noun", "no_noun"))]),
    (12, "DreamBooth is more consistent", "standard deviation of DINO over seeds, smaller is better", [Part("", "consistency", -1)]),
    (13, "DreamBooth overfits and memorises more", "train minus held-out DINO (memorising), PRES over base, diversity",
     [*(Part(label, label.lower(), sign) for label, sign in OVERFITS.items()), Part("drift beside it", "drift", 0),
      *(Part(f"{label} on careless data", label.lower(), sign, "careless", FULL | POOR, LORA | POOR, ("seed", "variant"))
        for label, sign in OVERFITS.items()),
      *(Part(f"DreamBooth's memorising with {variant.replace('_', ' ')} over good data", "memorising", 1, "careless",
             FULL | {"variant": variant}, FULL | {"variant": "good"}) for variant in POOR["variant"])]),
    (14, "DreamBooth takes longer to tune", "training seconds of the learning-rate sweep",
     [Part("the whole sweep", "train_seconds", 1, "rate, sum"), Part("one run of it", "train_seconds", 1, "rate, mean")]),
    (15, "LoRA learns subjects of every kind", "LoRA's DINO over base, one subject a kind",
     [Part(kind, "dino", 1, "kinds", LORA | {"subject": kind}, BASE, ()) for kind in "character style clothing product pose".split()]),
    (16, "LoRA files load in every tool", "exported files checked key by key and loaded back", LATER),
    (17, "DreamBooth for the highest fidelity", "DINO at tuned settings, its cost beside it: is there a gap worth it?",
     [Part("DINO", "dino"), Part("seconds", "seconds_per_step", 0), Part("memory", "peak_bytes", 0), Part("file", "file_bytes", 0)]),
)


def _derived(rows):
    """Copies of the rows, checked, with costs computed from others; and every sweep of learning rates as a row of its sum and its mean."""
    rows, sweeps = [dict(row) for row in rows], defaultdict(list)
    for row in rows:
        for key in [key for key in row if key in MEASURES or isinstance(row[key], float)]:
            number(row, key)
        train, size = row.get("train_seconds"), row.get("file_bytes")
        row |= {"iteration_seconds": train and train + SAMPLE_SECONDS, "transfer_seconds": size and size * 8 / BANDWIDTH}
        if row.get("study") == "rate" and train:
            sweeps[row["method"], row["subject"], row.get("seed"), row.get("device")].append(row)
    for (method, *_), runs in sweeps.items():
        if len(runs) == max(len(others) for key, others in sweeps.items() if key[0] == method):  # unfinished sweeps are shorter by chance
            total = sum(run["train_seconds"] for run in runs)
            rows += [runs[0] | {"study": f"rate, {what}", "train_seconds": s} for what, s in (("sum", total), ("mean", total / len(runs)))]
    return rows


def _said(found):
    """(effects, verdict) as text of [(part, effect)]: a claim that holds for some of its parts depends on what is measured."""
    groups, texts = defaultdict(list), []
    for part, e in found:
        if part.sign:
            groups[decide(e, part.sign)].append(part.label)
        if e.subjects:
            costs = f", LoRA {shown(e.against, e.unit)}, DreamBooth {shown(e.of, e.unit)}" if e.kind == "ratio" else ""
            texts.append(f"{part.label} {e.text()}{costs}".strip())
    if len(groups) == 1:
        (kind, detail), = groups
        return "; ".join(texts) or "-", f"{kind} ({detail})" if detail else kind
    missing, kinds = groups.pop((NOT_MEASURED, ""), ()), {kind for kind, _ in groups}
    verdict = "; ".join(f"{kind} for {', '.join(labels)}{detail and f' ({detail})'}" for (kind, detail), labels in groups.items())
    depends = "depends on the measure: " if "holds" in kinds and kinds - {"holds", "not enough subjects"} else ""
    return "; ".join(texts), depends + verdict + (f"; not measured yet for {', '.join(missing)}: make pocketbench" if missing else "")


def shown(value, unit):
    """A measure as text, such as "0.242 s", "20.8 MiB", "0.613"."""
    return f"{value:.3g} s" if unit == "s" else f"{value / 2**20:.3g} MiB" if unit == "bytes" else f"{value:.3f}"


def verdict_table(rows, own=None):
    """The 17 claims as rows of text under `HEADINGS`; `own`: the `Comparison` of the reader's own run. Raises BadInput as `effect` does."""
    rows, lines = _derived(rows), []
    mine = own and [_derived([{"study": "your own", "method": m} | own.rows.get(m, {})])[0] for m in ("lora", "dreambooth")]
    for count, claim, how, parts in CLAIMS:
        run, effects, verdict = [], "-", parts
        if not isinstance(parts, str):
            effects, verdict = _said([(part, effect(rows, part.measure, *part[3:])) for part in parts])
            for part in parts if mine else ():
                lora, full = (row.get(part.measure) for row in mine)
                if part[3:6] == ("main", FULL, LORA) and None not in (lora, full):
                    unit = MEASURES[part.measure][1]
                    run.append(f"{part.label} LoRA {shown(lora, unit)}, DreamBooth {shown(full, unit)}".strip())
        lines.append([str(count), claim, how, effects, verdict + (f"; the rest is {LATER}" if count == 15 else ""), "; ".join(run) or "-"])
    return lines


if __name__ == "__main__":
    import sys

    from .sweep import read_table

    try:
        rows = verdict_table(read_table((sys.argv[1:] or ["data/results/pocketbench.csv"])[0]))
        print(*(f"| {' | '.join(line)} |" for line in (HEADINGS, ["---"] * len(HEADINGS), *rows)), "", CAPTION, sep="\n")
    except BadInput as error:
        sys.exit(str(error))
