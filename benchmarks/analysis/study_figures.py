"""PocketBench's studies as figures, each with its numbers as a table: what rank, prior
preservation, careless data, precision, low-memory recipes and a trained text encoder change.
`FIGURES` has the main comparison's too (benchmarks/analysis/bench_figures.py).
"""

import math
from typing import Any

from benchmarks.analysis.bench_figures import FIGURES as MAIN
from benchmarks.analysis.bench_figures import SCORES, WHO, dots, level, said
from benchmarks.analysis.effects import (
    COSINE,
    ENOUGH,
    LORA,
    MEASURES,
    Rows,
    effect,
    swing,
)
from benchmarks.analysis.study_rows import ranked, size, unlike_main
from benchmarks.analysis.tuning_figures import length, rates
from benchmarks.studies import WAYS
from lib.config.presets import PRESETS
from lib.files.text import amount
from lib.plots.charts import Axis, intervals, points
from lib.plots.figure import Figure, Table

# The columns of the studies "precision" and "recipes" in which a run differs from plain training,
# each in words.
RECIPES = {
    "precision": "precision {}",
    "optimizer": "8-bit moments",
    "weights": "bf16 weights",
    "quantize": "{} base",
    "fused_backward": "fused update",
    "checkpointing": "checkpointing",
}


def rank_curve(rows: Rows) -> Figure | None:
    """DINO and CLIP-T against LoRA's rank; in the table each rank against the preset's, subject by
    subject.
    """
    ranks, preset = ranked(rows), PRESETS["lora", "pocket"]["rank"]
    if not ranks:
        return None
    levels = {
        m: {r: level(rows, m, "rank", LORA | {"rank": r}) for r in ranks}
        for m in ("dino", "clip_t")
    }
    found = {
        SCORES[m]: [(r, r, value, None, ends) for r, (value, *ends) in by.items()]
        for m, by in levels.items()
    }
    about = (
        f"What rank buys at the one learning rate of all, {size(rows, 'rank')}; in numbers each"
        f" rank minus rank {preset} (95 %)"
    )
    figure, measures, lines = (
        points(found, Axis("rank", log=True), "cosine", about),
        ("dino", "clip_t", "drift", "loss_gap"),
        [],
    )
    for r in ranks:
        against = [
            effect(rows, m, "rank", LORA | {"rank": r}, LORA | {"rank": preset}) for m in measures
        ]
        lines.append(
            [
                str(r),
                *(_mean(by[r]) for by in levels.values()),
                *("-" if r == preset else _change(e) for e in against),
            ]
        )
    figure.table = Table(
        lines, ["rank", "DINO", "CLIP-T", *(f"{SCORES[m]}, change" for m in measures)]
    )
    return figure


def _mean(ends):
    """A `level` as a cell."""
    value, low, high = ends
    return (
        "-"
        if value is None
        else f"{value:.3f}"
        if low is None
        else f"{value:.3f} ({low:.3f} to {high:.3f})"
    )


def _change(found):
    """An effect as a cell: its value, its interval, and what that allows to say."""
    return f"{_ends(found)}: {said(found)}" if found.subjects >= ENOUGH else _ends(found)


# The columns of the runs with class images as the preset has them.
CLASS_IMAGES: dict[str, Any] = {
    "prior_weight": PRESETS["lora", "pocket"]["prior_weight"],
    "prior": None,
    "variant": "good",
}


def prior(rows: Rows) -> Figure | None:
    """What prior preservation does: scores with class images as the preset has them minus without,
    for both methods.
    """
    images = CLASS_IMAGES
    found = {
        (m, name): effect(
            rows, m, "prior", where | images, where | {"prior_weight": 0, "variant": "good"}
        )
        for m in ("dino", "clip_t", "pres", "obedience", "drift", "loss_gap", "diversity")
        for name, where in WHO.items()
    }
    drawn = dots(
        {f"{SCORES[m]}, {name}": e for (m, name), e in found.items() if MEASURES[m][2] == COSINE}
    )
    about = (
        f"With prior preservation (weight {images['prior_weight']:g}) minus without,"
        f" {size(rows, 'prior')}; the band counts as the same"
    )
    lines = [
        [f"{SCORES[m]}, {name}", *e.text().split(", "), said(e)]
        for (m, name), e in found.items()
        if e.subjects
    ]
    return _with_table(
        drawn,
        lines,
        "difference of cosines",
        about,
        ["with minus without (95 %)", "of", "so with it there is"],
    )


def prior_ways(rows: Rows) -> Figure | None:
    """What else may hold the class, in place of class images as the preset has them: scores minus
    those with these, for both methods.
    """
    images, measures = CLASS_IMAGES, ("dino", "clip_t", "pres", "obedience", "drift")
    found = {
        (name, way): {
            m: effect(rows, m, "prior", where | images | changes, where | images) for m in measures
        }
        for name, where in WHO.items()
        for way, changes in WAYS.items()
    }
    found = {who: by for who, by in found.items() if by["dino"].subjects}
    drawn = dots(
        {
            f"{SCORES[m]}, {name}, {way}": by[m]
            for m in ("dino", "pres")
            for (name, way), by in found.items()
        }
    )
    lines = [
        [*who, *(_change(e) for e in by.values()), by["dino"].text().split(", ")[-1]]
        for who, by in found.items()
    ]
    about = (
        f"What else may hold the class, minus class images (weight {images['prior_weight']:g});"
        " a teacher is LoRA's alone; the band counts as the same"
    )
    columns = ["in place of them", *(f"{SCORES[m]}, change (95 %)" for m in measures), "of"]
    return _with_table(drawn, lines, "difference of cosines", about, columns)


def careless(rows: Rows) -> Figure | None:
    """The loss gap with good and with careless data; in the table what careless data change in
    every other measure of overfitting.
    """
    measures, found, lines = ("loss_gap", "memorising", "clip_t", "diversity", "pres"), {}, []
    for variant in ("good", "duplicates", "one_background"):
        for name, where in WHO.items():
            of, label = where | {"variant": variant}, f"{variant.replace('_', ' ')}, {name}"
            found[label] = effect(rows, "loss_gap", "careless", of, None, ())
            against = [
                effect(rows, m, "careless", of, where | {"variant": "good"}) for m in measures
            ]
            drawn = dots(found) or {}
            if label in drawn:
                changes = ["-"] * len(measures) if variant == "good" else map(_change, against)
                lines.append([label, _mean(drawn[label]), *changes])
    about = (
        "Memorising with good and with careless data: loss on held-out photos minus loss on"
        f" training photos, {size(rows, 'careless')}; changes are against good data"
    )
    columns = ["loss gap (95 %)", *(f"{SCORES[m]}, change" for m in measures)]
    return _with_table(
        dots(found), lines, "difference of mean squared errors", about, columns, None
    )


def recipes(rows: Rows) -> Figure | None:
    """Low-memory recipes against plain fp32 training."""
    return _against_plain(rows, "recipes", "Low-memory recipes")


def precision(rows: Rows) -> Figure | None:
    """Arithmetic in bf16 and in fp16 against plain fp32 training."""
    return _against_plain(rows, "precision", "Arithmetic in bf16 and in fp16")


def _against_plain(rows: Rows, study: str, what: str) -> Figure | None:
    """A study's recipes against plain fp32 training: DINO drawn, the rest in the table, beside what
    another seed alone does.
    """
    drawn, lines, measures = {}, [], ("dino", "clip_t", "drift")
    for who, where in WHO.items():
        plain = where | {"precision": "fp32"}
        size_of = effect(rows, "dino", study, plain, None, ()).subjects
        moves = {m: swing(rows, m, study, plain, size_of) for m in measures}
        if size_of:
            lines += [
                _levels(rows, study, f"{who}, plain fp32", plain, (*measures, "peak_bytes"))
                + ["-"],
                [
                    f"{who}, another seed",
                    *("-" if v is None else f"up to {v:.3f}" for v in moves.values()),
                    "-",
                    "-",
                ],
            ]
            drawn |= (
                {f"{who}, another seed": (0.0, -moves["dino"], moves["dino"])}
                if moves["dino"]
                else {}
            )
        for words, of in _given_up(rows, study, where).items():
            found = {m: effect(rows, m, study, of, plain) for m in (*measures, "peak_bytes")}
            if found["dino"].subjects:
                moves = {m: swing(rows, m, study, plain, found[m].subjects) for m in measures}
                beyond = [SCORES[m] for m in measures if _is_beyond(found[m].value, moves[m])]
                lines.append(
                    [
                        f"{who}, {words}",
                        *map(_ends, found.values()),
                        (
                            "-"
                            if None in moves.values()
                            else f"no: {', '.join(beyond)}"
                            if beyond
                            else "yes"
                        ),
                    ]
                )
                drawn[f"{who}, {words}"] = (
                    found["dino"].value,
                    found["dino"].low,
                    found["dino"].high,
                )
    about = (
        f"{what} minus plain fp32 training, {size(rows, study)}, each against the"
        " same seed; another seed: how far that alone moves such a mean, 95 times in 100; the band"
        " counts as the same"
    )
    return _with_table(
        drawn,
        lines,
        "difference of DINO",
        about,
        ["DINO", "CLIP-T", "drift", "peak memory", "within another seed's reach"],
    )


def _is_beyond(value: float | None, reach: float | None) -> bool:
    """Whether a difference is larger than what another seed alone moves, where both are known."""
    return value is not None and reach is not None and abs(value) > reach


def text_encoder(rows: Rows) -> Figure | None:
    """What it does to train the text encoder too, at several rates, against leaving it frozen."""
    drawn, lines, measures = {}, [], ("dino", "clip_t", "drift", "pres", "peak_bytes", "file_bytes")
    rates = sorted(
        {
            r["text_encoder_rate"]
            for r in rows
            if r.get("study") == "text_encoder" and r.get("text_encoder_rate")
        }
    )
    for who, where in WHO.items():
        frozen = where | {"text_encoder_rate": None}
        if effect(rows, "dino", "text_encoder", frozen, None, ()).subjects:
            lines.append(_levels(rows, "text_encoder", f"{who}, frozen (level)", frozen, measures))
        for rate in rates:
            found = {
                m: effect(rows, m, "text_encoder", where | {"text_encoder_rate": rate}, frozen)
                for m in measures
            }
            if found["dino"].subjects:
                lines.append(
                    [f"{who}, trained at {rate:g} (change)", *map(_change, found.values())]
                )
                drawn |= {
                    f"{SCORES[m]}, {who}, {rate:g}": (e.value, e.low, e.high)
                    for m, e in found.items()
                    if m in ("dino", "clip_t")
                }
    about = (
        "Text encoder trained, at learning rates of its own, minus frozen,"
        f" {size(rows, 'text_encoder')}; the band counts as the same; of so many intervals one in"
        " twenty would miss by chance"
    )
    return _with_table(
        drawn,
        lines,
        "difference of cosines",
        about,
        ["DINO", "CLIP-T", "drift", "PRES - base", "peak memory", "file"],
    )


def _given_up(rows, study, where):
    """{a recipe in words: the columns it matches} of a study, in the order of the words."""
    found = {}
    for row in rows:
        if (
            row.get("study") == study
            and row.get("precision") != "fp32"
            and where.items() <= row.items()
        ):
            words = [told.format(row[name]) for name, told in RECIPES.items() if row.get(name)]
            found[" + ".join(words) or "precision auto"] = where | {
                name: row.get(name) for name in RECIPES
            }
    return dict(sorted(found.items(), key=lambda item: (item[0].count("+"), item[0])))


def _levels(rows, study, name, of, measures):
    """A line of a table: the means of the runs that match `of`, by themselves."""
    found = [effect(rows, m, study, of, None, ()) for m in measures]
    return [name, *("-" if e.value is None else amount(e.value, e.unit) for e in found)]


def _ends(found):
    """An effect as a cell: its value and interval; of a ratio the value alone, where every subject
    has the same.
    """
    text = found.text().split(", ")[0]
    return (
        text.split(" (")[0]
        if found.kind == "ratio" and found.low and math.isclose(found.low, found.high, rel_tol=0.01)
        else text
    )


def _with_table(
    drawn: dict[str, Any] | None,
    lines: list[list[Any]],
    x: str,
    about: str,
    columns: list[str],
    margin: float | None = COSINE,
) -> Figure | None:
    """A figure of intervals whose table says more than it draws; None without any."""
    if not drawn:
        return None
    rounded = {
        name: tuple(v if v is None else round(v, 3) + 0.0 for v in ends)
        for name, ends in drawn.items()
    }
    figure = intervals(rounded, x, about, around=0, margin=margin)
    figure.table = Table(lines, ["", *columns])
    return figure


FIGURES = MAIN | {
    "rank": rank_curve,
    "prior": prior,
    "prior_ways": prior_ways,
    "careless": careless,
    "precision": precision,
    "recipes": recipes,
    "text_encoder": text_encoder,
    "rates": rates,
    "length": length,
}
# Of the figures whose study goes by another name.
STUDIES = {"rates": "rate", "prior_ways": "prior"}


def figures(rows: Rows) -> dict[str, Figure]:
    """name -> its picture and table, of those that the rows have runs for."""
    made = {name: figure for name, make in FIGURES.items() if (figure := make(rows))}
    for name, figure in made.items():
        unlike = "" if name in MAIN else unlike_main(rows, STUDIES.get(name, name))
        if unlike:
            figure.caption += f". Run {unlike}: its numbers are for this study alone."
    return made
