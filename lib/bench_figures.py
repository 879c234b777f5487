"""PocketBench's rows as figures, each with its numbers as a table; `python -m benchmarks.figures` writes them to data/results.

`rows` are dicts, one a run, as in `lib.effects`. A figure for which the rows hold no run is None.
"""

from collections import defaultdict

from .charts import intervals, points
from .effects import BASE, COSINE, COST, FULL, LORA, MEASURES, PARTS, decide, effect, repeated, shown
from .figure import Table

SCORES = {"dino": "DINO", "clip_i": "CLIP-I", "clip_t": "CLIP-T", "dino_train": "DINO, training photos", "memorising": "train - held-out",
          "nearest": "nearest photo", "pres": "PRES - base", "drift": "drift", "diversity": "diversity", "consistency": "consistency"}
COSTS = {"seconds_per_step": "seconds a step", "train_seconds": "seconds of training", "peak_bytes": "peak memory", "file_bytes": "file"}
WHO = {"LoRA": LORA, "DreamBooth": FULL}
NOT_AGAIN = "The repetition on another training seed has not been run yet: `python -m benchmarks.pocketbench --studies again`"


def level(rows, measure, study="main", of=FULL):
    """(mean over subjects, low, high), to three decimals, of the runs that match `of`; (None, None, None) without any."""
    return (_dots({"": effect(rows, measure, study, of, None, ())}) or {"": (None, None, None)})[""]


def _dots(found):
    """name -> (value, low, high) to three decimals, of name -> `Effect`; None without any."""
    ends = {name: (e.value, e.low, e.high) for name, e in found.items() if e.subjects}
    return {name: tuple(v if v is None else round(v, 3) + 0.0 for v in values) for name, values in ends.items()} or None


def said(found):
    """What the interval of an effect allows to say of DreamBooth, in a few words."""
    kind, detail = decide(found)
    more = {"holds": "more", "does not hold": "less"}.get(kind, kind)
    return f"{more} ({detail})" if detail and more == kind else more


def main_table(rows):
    """The main comparison, a line a measure: base, real photos, LoRA, DreamBooth, the effect, and what its interval allows to say."""
    lines = []
    for measure, name in (SCORES | COSTS).items():
        found, unit = effect(rows, measure), MEASURES[measure][1]
        if found.subjects:
            ends = [level(rows, m, of=BASE)[0] if m in MEASURES else None for m in (measure, f"{measure}_real")]
            texts = ["-" if value is None else shown(value, unit) for value in (*ends, found.against, found.of)]
            lines.append([name, *texts, *found.text().split(", "), said(found)])
    return Table(lines, ["", "base", "real photos", "LoRA", "DreamBooth", "DreamBooth against LoRA (95 %)", "of", "so DreamBooth has"])


def scores(rows):
    """DreamBooth minus LoRA on every score, each at its own best rate: dots on their intervals, beside the margin that counts as none."""
    found = _dots({name: effect(rows, m) for m, name in SCORES.items() if MEASURES[m][2] == COSINE})
    about = f"DreamBooth minus LoRA, {size(rows)}; the band counts as the same"
    return intervals(found, "difference of cosines", about, around=0, margin=COSINE) if found else None


def costs(rows):
    """DreamBooth against LoRA in time, memory and file: ratios on their intervals."""
    found = _dots({name: effect(rows, m) for m, name in COSTS.items()})
    about = f"DreamBooth's costs as multiples of LoRA's, {size(rows)}; 1 is the same"
    return intervals(found, "DreamBooth / LoRA", about, around=1, margin=COST, log=True) if found else None


def pareto(rows):
    """Likeness against prompt following, of the base, of LoRA at every rank and of DreamBooth, on the subjects that all of them have."""
    ranks = ranked(rows)
    sides = {"base model": [("", "main", BASE)], "LoRA": [(f"rank {r}", "rank", LORA | {"rank": r}) for r in ranks],
             "DreamBooth": [("", "main", FULL)]}
    sides["LoRA"] = sides["LoRA"] or [("", "main", LORA)]
    wanted = [(study, of) for side in sides.values() for _, study, of in side]
    rows = common(rows, wanted)
    found = {name: [(label, *_both(rows, study, of)) for label, study, of in side] for name, side in sides.items()}
    if any(p[1] is None for side in found.values() for p in side):
        return None
    about = f"Likeness against prompt following, {size(rows)}: up and to the right is better"
    return points(found, "CLIP-T (follows the prompt)", "DINO (looks like the subject)", about)


def _both(rows, study, of):
    (x, *across), (y, *up) = (level(rows, measure, study, of) for measure in ("clip_t", "dino"))
    return x, y, tuple(across), tuple(up)


def rank_curve(rows):
    """DINO and CLIP-T against LoRA's rank."""
    if not ranked(rows):
        return None
    found = {name: [(r, r, value, None, ends) for r in ranked(rows) for value, *ends in [level(rows, m, "rank", LORA | {"rank": r})]]
             for m, name in (("dino", "DINO"), ("clip_t", "CLIP-T"))}
    return points(found, "rank", "cosine", f"What rank buys at the one learning rate of all, {size(rows, 'rank')}", log_x=True)


def path(rows):
    """Likeness against prompt following along the training, at each quarter of it."""
    found = {name: _quarters(rows, where, "clip_t", "dino") for name, where in WHO.items()}
    about = f"Along the training, at each quarter of it, {size(rows)}: up and to the right is better"
    return points(found, "CLIP-T (follows the prompt)", "DINO (looks like the subject)", about) if any(found.values()) else None


def forgetting(rows):
    """Drift of the class against likeness along the training: forgetting against learning."""
    found = {name: _quarters(rows, where, "dino", "drift") for name, where in WHO.items()}
    about = f"Forgetting against learning, at each quarter of the training, {size(rows)}: down and to the right is better"
    return points(found, "DINO (looks like the subject)", "drift of the class", about) if any(found.values()) else None


def _quarters(rows, where, *measures):
    ends = [(k, *(level(rows, f"{m}_{k}_of_{PARTS}", of=where) for m in measures)) for k in range(PARTS + 1)]
    return [(f"{k}/{PARTS}", x[0], y[0], x[1:], y[1:]) for k, x, y in ends if None not in (x[0], y[0])]


def prior(rows):
    """What prior preservation does: scores with it minus without it, for both methods."""
    weight = max((r["prior_weight"] for r in rows if r.get("study") == "prior" and r["method"] != "base"), default=0)
    found = _dots({f"{SCORES[m]}, {name}": effect(rows, m, "prior", where | {"prior_weight": weight}, where | {"prior_weight": 0})
                   for m in ("dino", "clip_t", "pres", "memorising") for name, where in WHO.items()})
    about = f"With prior preservation (weight {weight:g}) minus without, {size(rows, 'prior')}; the band counts as the same"
    return intervals(found, "difference of cosines", about, around=0, margin=COSINE) if found else None


def again(rows):
    """A part of the main comparison on another training seed against the same subjects of the main one: by how much the effects differ."""
    some, found = common(rows, [("again", LORA), ("again", FULL)], seeds=False), {m: repeated(rows, m) for m in SCORES}
    found, lines, kinds = {m: e for m, e in found.items() if e.subjects}, [], []
    for m, e in found.items():
        kind, detail = decide(e)
        kinds.append(kind)
        word = {"holds": "differs", "does not hold": "differs", "no difference": "agrees", "no difference found": "agrees"}.get(kind, kind)
        lines.append([SCORES[m], *(effect(some, m, study).text().split(", ")[0] for study in ("main", "again")), *e.text().split(", "),
                      f"{word} ({detail})" if detail and kind in ("no difference", "no difference found") else word])
    if not found:
        return None
    same = kinds.count("no difference")
    about = (f"The effect of DreamBooth against LoRA on another training seed minus the main one's, same subjects ({size(rows, 'again')}): "
             f"{same + kinds.count('no difference found')} of {len(kinds)} agree within their intervals, {same} of them within the margin; "
             "1 in 20 would not by chance")
    dots = _dots({SCORES[m]: e for m, e in found.items() if MEASURES[m][2] == COSINE})
    figure = intervals(dots, "difference of the effects, cosines", about, around=0, margin=COSINE)
    figure.table = Table(lines, ["", "main, these subjects (95 %)", "again (95 %)", "again minus main (95 %)", "of", "so it"])
    return figure


def memorising(rows):
    """Training photos' DINO minus held-out photos', with good and with careless data."""
    found = _dots({f"{variant.replace('_', ' ')}, {name}": effect(rows, "memorising", "careless", where | {"variant": variant}, None, ())
                   for variant in ("good", "duplicates", "one_background") for name, where in WHO.items()})
    about = f"Memorising: DINO to training photos minus DINO to held-out photos, {size(rows, 'careless')}"
    return intervals(found, "difference of cosines", about, around=0, margin=COSINE) if found else None


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


FIGURES = {"scores": scores, "costs": costs, "pareto": pareto, "path": path, "forgetting": forgetting, "rank": rank_curve, "prior": prior,
           "memorising": memorising, "again": again}
