"""Charts that read without colour, each a `Figure` with alternative text and its numbers: curves,
points, intervals, bars.
"""

import io
import json
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image

from lib.config.names import MEASURE_NAMES, METHOD_NAMES
from lib.files.errors import BadInput
from lib.plots.figure import Figure, Table, number
from lib.plots.labels import label_ends, label_points

# Okabe and Ito's colours, which the colour-blind can tell apart; style, marker and hatch say the
# same without any colour.
COLORS = ("#0072B2", "#D55E00", "#000000", "#009E73", "#CC79A7", "#56B4E9")


# An axis says whose drift it is, which a table says in its caption.
AXIS_NAMES = MEASURE_NAMES | {"drift": "drift of the class"}


STYLES, MARKERS, HATCHES = (
    ("-", "--", ":", "-."),
    ("o", "s", "^", "D", "v", "X"),
    ("", "///", "...", "xxx", "\\\\\\", "++"),
)


def curves(
    series, x="step", y="loss", smooth=1, caption="", alt=None, log_x=False, log_y=False, mark=None
):
    """A line chart `Figure` of `series`: name -> values (x counts from 1), or -> (xs, ys). Lines
    differ in style and marker as in colour.

    `smooth`: mean of the last so many values, drawn over the faint raw ones. `mark`: name -> x of a
    point to ring, such as the best.
    """
    chart, axes = _axes(caption, x, y)
    ends, rows, words = [], [], []
    for k, (name, values) in enumerate(series.items()):
        xs, ys = values if isinstance(values, tuple) else (range(1, len(values) + 1), values)
        xs, raw = np.asarray(xs, float), np.asarray(ys, float)
        if not len(xs) or len(xs) != len(raw):
            raise ValueError(
                f"Series {name!r} has {len(xs)} x and {len(raw)} y values: give as many of both, at"
                " least one"
            )
        total, count = np.concatenate([[0.0], np.cumsum(raw)]), np.arange(1, len(raw) + 1)
        line = (total[count] - total[np.maximum(0, count - smooth)]) / np.minimum(count, smooth)
        color, few = (
            COLORS[k % len(COLORS)],
            np.unique(np.linspace(0, len(xs) - 1, min(len(xs), 9)).round().astype(int)),
        )
        if smooth > 1:
            axes.plot(xs, raw, color=color, alpha=0.18, linewidth=0.8)
        axes.plot(
            xs,
            line,
            STYLES[k % len(STYLES)],
            marker=MARKERS[k % len(MARKERS)],
            markevery=list(few),
            color=color,
            label=name,
        )
        if mark and name in mark:
            at = int(np.abs(xs - mark[name]).argmin())
            axes.plot(
                xs[at],
                line[at],
                "o",
                markersize=14,
                markerfacecolor="none",
                markeredgecolor=color,
                markeredgewidth=1.8,
            )
        ends.append((xs[-1], line[-1], name, color))
        rows.append((name, xs, line, few))
        low = int(np.nanargmin(line)), int(np.nanargmax(line))
        words.append(
            f"{name} goes from {number(line[0])} at {number(xs[0])} to {number(line[-1])} at"
            f" {number(xs[-1])}, lowest {number(line[low[0]])} at {number(xs[low[0]])}, highest"
            f" {number(line[low[1]])} at {number(xs[low[1]])}"
        )
    if log_x:
        _log(axes)
    if log_y:
        axes.set_yscale("log")
    label_ends(chart, axes, ends)
    at = sorted({float(xs[i]) for _, xs, _, few in rows for i in few})
    found = [{float(v): float(w) for v, w in zip(xs, line)} for _, xs, line, _ in rows]
    body = [[int(v) if v == int(v) else v, *(f.get(v) for f in found)] for v in at]
    numbers = Table(
        body, [x, *series], y + (f", mean of the last {smooth} values" if smooth > 1 else "")
    )
    return _finish(
        chart, f"{alt or f'Line chart of {y} against {x}'}: {'; '.join(words)}.", numbers, caption
    )


def losses(runs, smooth=20, part="loss", caption=""):
    """Loss against step of `runs`: name -> run folder, or -> list of losses. `part`: "loss",
    "instance_loss" or "prior_loss".
    """
    found = {}
    for name, run in runs.items():
        found[name] = run
        if isinstance(run, str | Path):
            try:
                lines = (Path(run) / "log.jsonl").read_text("utf-8").splitlines()
                found[name] = [json.loads(line)[part] for line in lines]
            except (OSError, ValueError, KeyError) as error:
                raise BadInput(
                    f"{Path(run) / 'log.jsonl'} cannot be read ({error}): train the run again."
                ) from None
    return curves(found, "step", part.replace("_", " "), smooth, caption)


def along(tracks, measure="dino", x="step", caption=""):
    """`measure` along training, the best step ringed: of `tracks`, name -> what a run's curve.json
    holds (see `lib.evaluation.curve`).

    `x`: "step" or "seconds" of training. A point where the measure is None is left out, and a track
    without any.
    """
    lines, mark = {}, {}
    for name, track in tracks.items():
        found = [p for p in track["points"] if p[measure] is not None]
        if found:
            lines[name] = [p[x] for p in found], [p[measure] for p in found]
            mark |= {name: p[x] for p in found if p["step"] == track["best_step"]}
    words = {"seconds": "seconds of training"}.get(x, x)
    return (
        curves(lines, words, AXIS_NAMES.get(measure, measure), 1, caption, mark=mark)
        if lines
        else None
    )


def trade(tracks, x, y, caption=""):
    """Two measures of curve.json against each other along training: points by step, the best step
    ringed.
    """
    lines = {
        name: [(p["step"], p[x], p[y]) for p in track["points"] if None not in (p[x], p[y])]
        for name, track in tracks.items()
    }
    lines = {name: found for name, found in lines.items() if found}
    mark = {name: tracks[name]["best_step"] for name in lines}
    return (
        points(lines, AXIS_NAMES.get(x, x), AXIS_NAMES.get(y, y), caption, mark=mark)
        if lines
        else None
    )


def learning_rate_curve(sweep, y="dino", caption=""):
    """The sweep that chose the learning rates: `y` against learning rate for each method, the best
    ringed.

    `sweep`: method -> {learning rate: score, or scores of several seeds}, or -> dicts with
    "learning_rate" and `y`, as they stand in data/results/learning_rates.json.
    """
    sweep = {
        METHOD_NAMES.get(name, name): (
            points if isinstance(points, dict) else {row["learning_rate"]: row[y] for row in points}
        )
        for name, points in sweep.items()
    }
    means = {
        name: {
            float(rate): float(np.mean(scores))
            for rate, scores in sorted(points.items(), key=lambda p: float(p[0]))
        }
        for name, points in sweep.items()
    }
    best = {name: max(points, key=points.get) for name, points in means.items()}
    chosen = ", ".join(f"{name} {number(rate)}" for name, rate in best.items())
    return curves(
        {name: (list(p), list(p.values())) for name, p in means.items()},
        "learning rate",
        y,
        1,
        caption or f"Each method has a learning rate of its own; highest {y} at: {chosen}",
        log_x=True,
        mark=best,
    )


def bars(values, unit="", caption="", alt=None, log=False):
    """A bar chart `Figure` of `values`: name -> number, or name -> {series: number}; None leaves a
    gap. Series differ in hatching.

    Every bar has its number beside it. `log`: logarithmic axis, for numbers that lie far apart.
    """
    grouped = {name: v if isinstance(v, dict) else {"": v} for name, v in values.items()}
    series = list(dict.fromkeys(s for v in grouped.values() for s in v))
    if not series:
        raise ValueError("There is no number to show as a bar: give at least one")
    chart, axes = _axes(caption, unit, "", height=0.9 + 0.3 * len(grouped) * (len(series) + 0.6))
    thick, largest = (
        0.8 / len(series),
        max((v for g in grouped.values() for v in g.values() if v is not None), default=1),
    )
    for k, name in enumerate(series):
        for at, group in enumerate(grouped.values()):
            value = group.get(name)
            if value is not None:
                where = at + thick * (k - (len(series) - 1) / 2)
                look = {
                    "color": COLORS[k % len(COLORS)],
                    "hatch": HATCHES[k % len(HATCHES)],
                    "edgecolor": "white",
                    "linewidth": 0,
                }
                axes.barh(where, value, thick * 0.92, **look)
                beside = {
                    "xytext": (5, 0),
                    "textcoords": "offset points",
                    "va": "center",
                    "fontsize": 10,
                }
                axes.annotate(f"{number(value)} {name}", (max(value, 0), where), **beside)
    if log:
        axes.set_xscale("log")
    low = (
        min(v for g in grouped.values() for v in g.values() if v) / 10
        if log
        else min(axes.get_xlim()[0], 0)
    )
    axes.set_xlim(
        low, largest * (largest / low) ** 0.4 if log else largest + 0.35 * ((largest - low) or 1)
    )  # room for the numbers
    axes.set_yticks(range(len(grouped)), [textwrap.fill(name, 22) for name in grouped])
    axes.set_ylim(len(grouped) - 0.5, -0.5)
    axes.grid(False, axis="y")
    words = "; ".join(
        f"{name}: " + ", ".join(f"{s} {number(g.get(s))}".strip() for s in series)
        for name, g in grouped.items()
    )
    rows = [[name] + [g.get(s) for s in series] for name, g in grouped.items()]
    numbers = Table(
        rows, ["", *(s or unit or "value" for s in series)], unit if series != [""] else ""
    )
    return _finish(
        chart, f"{alt or caption or 'Bar chart'} ({unit or 'no unit'}): {words}.", numbers, caption
    )


def points(series, x, y, caption="", alt=None, join=True, log_x=False, mark=None, aside=()):
    """A scatter `Figure` of `series`: name -> list of (label, x, y), each with up to two intervals
    (low, high) behind it: of x, then of y.

    Every point has its label beside it; `join` draws a line through a series in its order. `mark`:
    name -> label of a point to ring. `aside`: labels, or names of series, that are not drawn, for
    they lie so far off that the others would run together.
    """
    chart, axes = _axes(caption, x, y, height=4.2)
    rows, words, labels = [], [], []
    for k, (name, found) in enumerate(series.items()):
        look = {"color": COLORS[k % len(COLORS)], "marker": MARKERS[k % len(MARKERS)]}
        found = [(*p, None, None)[:5] for p in found]
        drawn = [p for p in found if name not in aside and p[0] not in aside]
        if drawn:
            axes.plot(
                [p[1] for p in drawn],
                [p[2] for p in drawn],
                linestyle=STYLES[k % len(STYLES)] if join else "",
                label=name,
                **look,
            )
        for label, a, b, across, up in drawn:
            for ends, value, where in ((across, a, "xerr"), (up, b, "yerr")):
                if ends and ends[0] is not None:
                    error = {where: [[value - ends[0]], [ends[1] - value]]}
                    axes.errorbar(
                        a, b, **error, color=look["color"], capsize=3, linewidth=1, alpha=0.5
                    )
            if mark and mark.get(name) == label:
                axes.plot(
                    a,
                    b,
                    "o",
                    markersize=14,
                    markerfacecolor="none",
                    markeredgecolor=look["color"],
                    markeredgewidth=1.8,
                )
            labels.append((str(label), a, b, look["color"]))
        rows += [
            [
                f"{name}, {p[0]}" if str(p[0]) not in ("", number(p[1])) else name,
                p[1],
                _ends(p[3]),
                p[2],
                _ends(p[4]),
            ]
            for p in found
        ]
        words.append(
            f"{name}: "
            + ", ".join(f"{label} at {number(a)}, {number(b)}".strip() for label, a, b, *_ in found)
        )
    if log_x:
        _log(axes)
        ticks = sorted({p[1] for found in series.values() for p in found})
        if len(ticks) <= 6:
            axes.set_xticks(ticks, [number(t) for t in ticks])
        axes.minorticks_off()  # their labels run into each other
    axes.legend(frameon=False)
    label_points(chart, axes, labels)
    keep = [c for c in range(5) if c not in (2, 4) or any(r[c] for r in rows)]
    columns = ["", x, "95 %", y, "95 % "]
    numbers = Table([[row[c] for c in keep] for row in rows], [columns[c] for c in keep])
    return _finish(
        chart, f"{alt or f'Scatter plot of {y} against {x}'}: {'; '.join(words)}.", numbers, caption
    )


def intervals(values, x, caption="", alt=None, around=None, margin=None, log=False):
    """A `Figure` of `values`: name -> (value, low, high), each a dot on its interval; low and high
    None where there is none.

    `around`: where no effect lies, a vertical line, with the `margin` that counts as none as a band
    about it (of a ratio: a factor).
    """
    from matplotlib.patheffects import withStroke

    chart, axes = _axes(caption, x, "", height=0.9 + 0.36 * len(values))
    halo = [
        withStroke(linewidth=3, foreground="white")
    ]  # so that a number on the line around which all lie can be read
    if around is not None:
        axes.axvline(around, color="black", linewidth=1)
        if margin:
            band = (
                (around / (1 + margin), around * (1 + margin))
                if log
                else (around - margin, around + margin)
            )
            axes.axvspan(*band, color="0.9", zorder=0)
    for k, (value, low, high) in enumerate(values.values()):
        if low is not None:
            axes.plot([low, high], [k, k], color=COLORS[0], linewidth=2, marker="|", markersize=9)
        axes.plot(value, k, "o", color=COLORS[0])
        axes.annotate(
            number(value),
            (value, k),
            (0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            path_effects=halo,
        )
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(range(len(values)), [textwrap.fill(name, 34) for name in values])
    axes.set_ylim(len(values) - 0.5, -0.7)
    axes.grid(False, axis="y")
    rows = [[name, value, _ends((low, high))] for name, (value, low, high) in values.items()]
    words = "; ".join(
        f"{name}: {number(value)} ({ends or 'no interval'})" for name, value, ends in rows
    )
    return _finish(
        chart,
        f"{alt or caption or 'Intervals'} ({x}): {words}.",
        Table(rows, ["", x, "95 % interval"]),
        caption,
    )


def _ends(pair):
    """An interval as text, or None."""
    return f"{number(pair[0])} to {number(pair[1])}" if pair and pair[0] is not None else None


def _axes(caption, x, y, height=3.4):
    from matplotlib.figure import (
        Figure as Chart,  # not pyplot: nothing is drawn twice, nothing global is changed
    )

    chart = Chart(figsize=(7.2, height), dpi=110, layout="constrained")
    axes = chart.add_subplot(xlabel=x, ylabel=y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return chart, axes


def _log(axes):
    """A logarithmic x axis, labelled at 1, 2 and 5 of each power of ten: matplotlib's own labels
    between the powers run together.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(float(value))))
    axes.minorticks_off()


def _finish(chart, alt, numbers, caption):
    file = io.BytesIO()
    chart.savefig(file, format="png", facecolor="white")
    return Figure(Image.open(file).convert("RGB"), alt, numbers, caption, chart)
