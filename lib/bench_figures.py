"""PocketBench's rows as figures, each with its numbers as a table; `python -m benchmarks.figures` writes them to data/results.

`rows` are dicts, one a run, as in `lib.effects`. A figure for which the rows hold no run is None.
"""

import math

from .charts import intervals, points
from .effects import BASE, COSINE, COST, FULL, LORA, MEASURES, PARTS, decide, effect, repeated, shown, swing
from .figure import Table
from .study_rows import common, ranked, size

SCORES = {"dino": "DINO", "clip_i": "CLIP-I", "clip_t": "CLIP-T", "dino_train": "DINO, training photos", "memorising": "train - held-out",
          "nearest": "nearest photo", "pres": "PRES - base", "drift": "drift", "diversity": "diversity", "consistency": "consistency"}
COSTS = {"seconds_per_step": "seconds a step", "train_seconds": "seconds of training", "peak_bytes": "peak memory", "file_bytes": "file"}
WHO = {"LoRA": LORA, "DreamBooth": FULL}
NOT_AGAIN = "The repetition on another training seed has not been run yet: `python -m benchmarks.pocketbench --studies again`"
# The columns of the study "recipes" in which one differs from plain training, each in words.
RECIPES = {"optimizer": "8-bit moments", "weights": "bf16 weights", "quantize": "{} base", "fused_backward": "fused update",
           "checkpointing": "checkpointing"}


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


def recipes(rows):
    """Low-memory recipes against plain fp32 training: DINO drawn, the rest in the table, beside what another seed alone does."""
    dots, lines, measures = {}, [], ("dino", "clip_t", "drift")
    for who, where in WHO.items():
        plain = where | {"precision": "fp32"}
        size_of = effect(rows, "dino", "recipes", plain, None, ()).subjects
        moves = {m: swing(rows, m, "recipes", plain, size_of) for m in measures}
        if size_of:
            lines += [_levels(rows, "recipes", f"{who}, plain fp32", plain, (*measures, "peak_bytes")) + ["-"],
                      [f"{who}, another seed", *("-" if v is None else f"up to {v:.3f}" for v in moves.values()), "-", "-"]]
            dots |= {f"{who}, another seed": (0.0, -moves["dino"], moves["dino"])} if moves["dino"] else {}
        for words, of in _given_up(rows, where).items():
            found = {m: effect(rows, m, "recipes", of, plain) for m in (*measures, "peak_bytes")}
            if found["dino"].subjects:
                moves = {m: swing(rows, m, "recipes", plain, found[m].subjects) for m in measures}
                beyond = [SCORES[m] for m in measures if moves[m] is not None and abs(found[m].value) > moves[m]]
                lines.append([f"{who}, {words}", *map(_ends, found.values()),
                              "-" if None in moves.values() else f"no: {', '.join(beyond)}" if beyond else "yes"])
                dots[f"{who}, {words}"] = (found["dino"].value, found["dino"].low, found["dino"].high)
    about = (f"Low-memory recipes minus plain fp32 training, {size(rows, 'recipes')}, each against the same seed; another seed: how far "
             "that alone moves such a mean, 95 times in 100; the band counts as the same")
    return _with_table(dots, lines, "difference of DINO", about, ["DINO", "CLIP-T", "drift", "peak memory", "within another seed's reach"])


def text_encoder(rows):
    """What it does to train the text encoder too, at several rates, against leaving it frozen."""
    dots, lines, measures = {}, [], ("dino", "clip_t", "drift", "pres", "peak_bytes", "file_bytes")
    rates = sorted({r["text_encoder_rate"] for r in rows if r.get("study") == "text_encoder" and r.get("text_encoder_rate")})
    for who, where in WHO.items():
        frozen = where | {"text_encoder_rate": None}
        if effect(rows, "dino", "text_encoder", frozen, None, ()).subjects:
            lines.append(_levels(rows, "text_encoder", f"{who}, frozen", frozen, measures))
        for rate in rates:
            found = {m: effect(rows, m, "text_encoder", where | {"text_encoder_rate": rate}, frozen) for m in measures}
            if found["dino"].subjects:
                lines.append([f"{who}, trained at {rate:g}", *map(_ends, found.values())])
                dots |= {f"{SCORES[m]}, {who}, {rate:g}": (e.value, e.low, e.high) for m, e in found.items() if m in ("dino", "clip_t")}
    about = f"Text encoder trained, at learning rates of its own, minus frozen, {size(rows, 'text_encoder')}; the band counts as the same"
    return _with_table(dots, lines, "difference of cosines", about, ["DINO", "CLIP-T", "drift", "PRES - base", "peak memory", "file"])


def _given_up(rows, where):
    """{a recipe in words: the columns it matches} of the study "recipes", in the order of the words."""
    found = {}
    for row in rows:
        if row.get("study") == "recipes" and row.get("precision") is None and where.items() <= row.items():
            words = [told.format(row[name]) for name, told in RECIPES.items() if row.get(name)]
            found[" + ".join(words) or "precision auto"] = where | {name: row.get(name) for name in ("precision", *RECIPES)}
    return dict(sorted(found.items(), key=lambda item: (item[0].count("+"), item[0])))


def _levels(rows, study, name, of, measures):
    """A line of a table: the means of the runs that match `of`, by themselves."""
    found = [effect(rows, m, study, of, None, ()) for m in measures]
    return [name, *("-" if e.value is None else shown(e.value, e.unit) for e in found)]


def _ends(found):
    """An effect as a cell: its value and interval; of a ratio the value alone, where every subject has the same."""
    text = found.text().split(", ")[0]
    return text.split(" (")[0] if found.kind == "ratio" and found.low and math.isclose(found.low, found.high, rel_tol=0.01) else text


def _with_table(dots, lines, x, about, columns):
    """A figure of intervals whose table says more than it draws; None without any."""
    if not dots:
        return None
    rounded = {name: tuple(v if v is None else round(v, 3) + 0.0 for v in ends) for name, ends in dots.items()}
    figure = intervals(rounded, x, about, around=0, margin=COSINE)
    figure.table = Table(lines, ["", *columns])
    return figure


FIGURES = {"scores": scores, "costs": costs, "pareto": pareto, "path": path, "forgetting": forgetting, "rank": rank_curve, "prior": prior,
           "memorising": memorising, "again": again, "recipes": recipes, "text_encoder": text_encoder}
