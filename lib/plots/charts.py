"""Charts that read without colour, each a `Figure` with alternative text and its numbers: curves,
points, intervals, bars.
"""

import io
import json
import textwrap
from collections.abc import Collection, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from lib.config import MEASURE_NAMES, METHOD_NAMES
from lib.files import BadInput
from lib.plots.figure import CHART_WIDTH, Figure, Table, number
from lib.plots.labels import label_ends, label_points
from lib.plots.looks import PLAIN, looks, own_look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Chart

# An axis says whose drift it is, which a table says in its caption.
AXIS_NAMES = MEASURE_NAMES | {"drift": "drift of the class"}


class Axis(NamedTuple):
    """What an axis shows, where that is more than its name."""

    name: str
    log: bool = False  # logarithmic
    share: bool = False  # from 0 to 1, so that one picture in nine is not the height of the chart


class Point(NamedTuple):
    """A point of `points`; `across` and `up` are the intervals (low, high) of x and of y."""

    label: str
    x: float
    y: float
    across: tuple[float | None, float | None] | None = None
    up: tuple[float | None, float | None] | None = None


class _Line(NamedTuple):
    name: str
    xs: np.ndarray
    raw: np.ndarray
    ys: np.ndarray  # what is drawn and told: `raw`, smoothed
    marked: list[int]  # the places of the markers, which the table shows too


def curves(
    series: Mapping[str, Any],
    x: str | Axis = "step",
    y: str | Axis = "loss",
    smooth: int = 1,
    caption: str = "",
    mark: Mapping[str, float] | None = None,
) -> Figure:
    """A line chart of `series`: name -> values (x counts from 1), or -> (xs, ys).

    Lines differ in style and marker as in colour. smooth: mean of the last so many values, drawn
    over the faint raw ones. mark: name -> x of a point to ring, such as the best. Raises ValueError
    for a series without values, or with another number of x than of y.
    """
    axis, upright = (a if isinstance(a, Axis) else Axis(a) for a in (x, y))
    lines = [_line(name, values, smooth) for name, values in series.items()]
    chart, axes = _chart(axis.name, upright.name)
    own = looks(series)
    for line in lines:
        look = own[line.name]
        if smooth > 1:
            axes.plot(line.xs, line.raw, color=look.color, alpha=0.18, linewidth=0.8)
        axes.plot(
            line.xs,
            line.ys,
            linestyle=look.style,
            marker=look.marker,
            markevery=line.marked,
            color=look.color,
            label=line.name,
        )
        if mark and line.name in mark:
            at = int(np.abs(line.xs - mark[line.name]).argmin())
            _ring(axes, line.xs[at], line.ys[at], look.color)
    if axis.log:
        _make_logarithmic(axes)
    elif all(float(value).is_integer() for line in lines for value in line.xs):
        axes.locator_params(axis="x", integer=True)  # no tick at 1.5 of whole steps
    if upright.share:
        axes.set_ylim(0, 1.05)
    ends = [(line.xs[-1], line.ys[-1], line.name, own[line.name].color) for line in lines]
    label_ends(chart, axes, ends)
    words = "; ".join(map(_line_in_words, lines))
    title = upright.name + (f", mean of the last {smooth} values" if smooth > 1 else "")
    return _finish(
        chart,
        f"Line chart of {upright.name} against {axis.name}: {words}.",
        _line_table(lines, axis.name, title),
        caption,
    )


def _line(name, values, smooth):
    xs, ys = values if isinstance(values, tuple) else (range(1, len(values) + 1), values)
    xs, raw = np.asarray(xs, float), np.asarray(ys, float)
    if not len(xs) or len(xs) != len(raw):
        raise ValueError(
            f"Series {name!r} has {len(xs)} x and {len(raw)} y values: give as many of both, at"
            " least one"
        )
    total, count = np.concatenate([[0.0], np.cumsum(raw)]), np.arange(1, len(raw) + 1)
    smoothed = (total[count] - total[np.maximum(0, count - smooth)]) / np.minimum(count, smooth)
    marked = np.unique(np.linspace(0, len(xs) - 1, min(len(xs), 9)).round().astype(int))
    return _Line(name, xs, raw, smoothed, list(marked))


def _line_in_words(line):
    low, high = int(np.nanargmin(line.ys)), int(np.nanargmax(line.ys))
    return (
        f"{line.name} goes from {number(line.ys[0])} at {number(line.xs[0])} to"
        f" {number(line.ys[-1])} at {number(line.xs[-1])}, lowest {number(line.ys[low])} at"
        f" {number(line.xs[low])}, highest {number(line.ys[high])} at {number(line.xs[high])}"
    )


def _line_table(lines, x, title):
    at = sorted({float(line.xs[i]) for line in lines for i in line.marked})
    found = [{float(v): float(w) for v, w in zip(line.xs, line.ys)} for line in lines]
    rows = [[int(v) if v == int(v) else v, *(values.get(v) for values in found)] for v in at]
    return Table(rows, [x, *(line.name for line in lines)], title)


def losses(
    runs: Mapping[str, Any], smooth: int = 20, part: str = "loss", caption: str = ""
) -> Figure:
    """Loss against step of `runs`: name -> run folder, or -> list of losses.

    part: "loss", "instance_loss" or "prior_loss". Raises BadInput for a log that cannot be read.
    """
    found = {
        name: _read_log(Path(run), part) if isinstance(run, str | Path) else run
        for name, run in runs.items()
    }
    return curves(found, "step", part.replace("_", " "), smooth, caption)


def _read_log(run, part):
    log = run / "log.jsonl"
    try:
        return [json.loads(line)[part] for line in log.read_text("utf-8").splitlines()]
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"{log} cannot be read ({error}): train the run again.") from None


def along(
    tracks: Mapping[str, Mapping], measure: str = "dino", x: str = "step", caption: str = ""
) -> Figure | None:
    """`measure` along training; None where it was not measured. Of DINO, by which a step is called
    the best, that step is ringed.

    tracks: name -> what a run's curve.json holds (see `lib.evaluation.curve`). x: "step" or
    "seconds" of training. caption: what the chart shows, unless given. A point where the measure is
    None is left out, and a track without any.
    """
    measured = _measured(tracks, measure)
    if not measured:
        return None
    axis = Axis(AXIS_NAMES.get(measure, measure), share=measure == "obedience")
    words = axis.name if axis.name.isupper() else axis.name.capitalize()
    ringed = ", the best step ringed" if measure == "dino" else ""
    return curves(
        {name: ([p[x] for p in found], [p[measure] for p in found]) for name, found in measured},
        "seconds of training" if x == "seconds" else x,
        axis,
        caption=caption or f"{words} along the training{ringed}",
        mark={
            name: p[x]
            for name, found in measured
            for p in found
            if measure == "dino" and p["step"] == tracks[name]["best_step"]
        },
    )


def trade(tracks: Mapping[str, Mapping], x: str, y: str, caption: str = "") -> Figure | None:
    """Two measures of curve.json against each other along training, the best step ringed.

    Points are labelled by step. None where the two were not measured.
    """
    measured = _measured(tracks, x, y)
    if not measured:
        return None
    return points(
        {name: [(p["step"], p[x], p[y]) for p in found] for name, found in measured},
        AXIS_NAMES.get(x, x),
        AXIS_NAMES.get(y, y),
        caption,
        mark={name: tracks[name]["best_step"] for name, _ in measured},
    )


def _measured(tracks, *measures):
    """[(name, its points that have all of `measures`)], without tracks that have no such point."""
    found = {
        name: [p for p in track["points"] if None not in [p.get(measure) for measure in measures]]
        for name, track in tracks.items()
    }
    return [(name, points) for name, points in found.items() if points]


def learning_rate_curve(
    sweep: Mapping[str, Any], chosen: Mapping[str, float], y: str = "dino"
) -> Figure:
    """The sweep that chose the learning rates: `y` against learning rate, the `chosen` ringed.

    sweep: method -> {learning rate: score, or scores of several seeds}, or -> dicts with
    "learning_rate" and `y`. chosen: method -> learning rate. learning_rates.json holds both.
    """
    means = {METHOD_NAMES.get(name, name): _mean_scores(rows, y) for name, rows in sweep.items()}
    ringed = {METHOD_NAMES.get(name, name): chosen[name] for name in sweep}
    rates = ", ".join(f"{name} {number(rate)}" for name, rate in ringed.items())
    return curves(
        {name: (list(scores), list(scores.values())) for name, scores in means.items()},
        Axis("learning rate", log=True),
        y,
        1,
        f"Each method has a learning rate of its own. The ring marks the preset's: {rates}",
        ringed,
    )


def _mean_scores(rows, y):
    """{learning rate: mean score}, by rate."""
    scores = rows if isinstance(rows, dict) else {row["learning_rate"]: row[y] for row in rows}
    return {float(rate): float(np.mean(scores[rate])) for rate in sorted(scores, key=float)}


def bars(values: Mapping[str, Any], unit: str = "", caption: str = "") -> Figure:
    """A bar chart of `values`: name -> number, or name -> {series: number}; None leaves a gap.

    Every bar begins at 0, so that its length is its number, which stands beside it; series differ
    in hatching. Raises ValueError where there is no number.
    """
    groups = {name: v if isinstance(v, dict) else {"": v} for name, v in values.items()}
    series = list(dict.fromkeys(s for group in groups.values() for s in group))
    if not series:
        raise ValueError("There is no number to show as a bar: give at least one")
    chart, axes = _chart(unit, "", height=0.9 + 0.3 * len(groups) * (len(series) + 0.6))
    thickness = 0.8 / len(series)
    own = looks(series)
    for k, name in enumerate(series):
        middle = thickness * (k - (len(series) - 1) / 2)
        for at, (row, group) in enumerate(groups.items()):
            if group.get(name) is not None:
                look = own[name] if name else own_look(row)
                _bar(axes, at + middle, group[name], name, thickness * 0.92, look)
    _bar_limits(axes, [v for group in groups.values() for v in group.values()])
    axes.set_yticks(range(len(groups)), [textwrap.fill(name, 16) for name in groups])
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.grid(False, axis="y")
    words = "; ".join(
        f"{name}: " + ", ".join(f"{s} {number(group.get(s))}".strip() for s in series)
        for name, group in groups.items()
    )
    numbers = Table(
        [[name, *(group.get(s) for s in series)] for name, group in groups.items()],
        ["", *(s or unit or "value" for s in series)],
        unit if series != [""] else "",
    )
    alt = f"{caption or 'Bar chart'} ({unit or 'no unit'}): {words}."
    return _finish(chart, alt, numbers, caption)


def _bar(axes, place, value, name, thickness, look):
    drawn = {"color": look.color, "hatch": look.hatch, "edgecolor": "white"}
    axes.barh(place, value, thickness, linewidth=0, **drawn)
    axes.annotate(
        f"{number(value)} {name}",
        (max(value, 0), place),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        fontsize=10,
    )


def _bar_limits(axes, values):
    """Limits of the axis of values that leave place for the numbers beside the bars."""
    largest = max((v for v in values if v is not None), default=1)
    low = min(axes.get_xlim()[0], 0)
    axes.set_xlim(low, largest + 0.35 * ((largest - low) or 1))


def points(
    series: Mapping[str, Sequence[tuple]],
    x: str | Axis,
    y: str,
    caption: str = "",
    mark: Mapping[str, Any] | None = None,
    aside: Collection[str] = (),
) -> Figure:
    """A scatter chart of `series`: name -> tuples as `Point` has them, with or without intervals.

    A line joins a series in its order, and every point has its label beside it. mark: name -> label
    of a point to ring. aside: labels, or names of series, that are not drawn, for they lie so far
    off that the others would run together; the table has them.
    """
    axis = x if isinstance(x, Axis) else Axis(x)
    given = {name: [Point(*point) for point in found] for name, found in series.items()}
    chart, axes = _chart(axis.name, y, height=4.2)
    labels = []
    for name, look in looks(given).items():
        drawn = [p for p in given[name] if name not in aside and p.label not in aside]
        _draw_points(axes, name, drawn, look, mark.get(name) if mark else None)
        labels += [(str(p.label), p.x, p.y, look.color) for p in drawn]
    if axis.log:
        _make_logarithmic(axes)
        if len(ticks := sorted({p.x for found in given.values() for p in found})) <= 6:
            axes.set_xticks(ticks, [number(tick) for tick in ticks])
        axes.minorticks_off()  # their labels run into each other
    axes.legend(frameon=False)
    label_points(chart, axes, labels)
    words = "; ".join(
        f"{name}: " + ", ".join(f"{p.label} at {number(p.x)}, {number(p.y)}".strip() for p in found)
        for name, found in given.items()
    )
    return _finish(
        chart,
        f"Scatter plot of {y} against {axis.name}: {words}.",
        _point_table(given, axis.name, y),
        caption,
    )


def _draw_points(axes, name, drawn, look, ringed):
    color = look.color
    if drawn:
        axes.plot(
            [p.x for p in drawn],
            [p.y for p in drawn],
            linestyle=look.style,
            label=name,
            color=color,
            marker=look.marker,
        )
    for p in drawn:
        for ends, value, where in ((p.across, p.x, "xerr"), (p.up, p.y, "yerr")):
            if ends and ends[0] is not None:
                error = {where: [[value - ends[0]], [ends[1] - value]]}
                axes.errorbar(p.x, p.y, **error, color=color, capsize=3, linewidth=1, alpha=0.5)
        if ringed is not None and p.label == ringed:
            _ring(axes, p.x, p.y, color)


def _point_table(series, x, y):
    # A label that is x is said once; a column of intervals is there where there is one.
    rows = [
        [
            name if str(p.label) in ("", number(p.x)) else f"{name}, {p.label}",
            p.x,
            _ends(p.across),
            p.y,
            _ends(p.up),
        ]
        for name, found in series.items()
        for p in found
    ]
    shown = [True, True, any(row[2] for row in rows), True, any(row[4] for row in rows)]
    columns = compress(["", x, "95 %", y, "95 % "], shown)
    return Table([compress(row, shown) for row in rows], columns)


def intervals(
    values: Mapping[str, tuple],
    x: str,
    caption: str = "",
    around: float | None = None,
    margin: float | None = None,
    log: bool = False,
) -> Figure:
    """A chart of `values`: name -> (value, low, high), each a dot on its interval.

    low and high are None where there is no interval. around: where no effect lies, a vertical line,
    with the `margin` that counts as none as a band about it (of a ratio: a factor). log: a
    logarithmic axis, for ratios.
    """
    names = [textwrap.fill(name, 24) for name in values]
    tallest = 1 + max(name.count("\n") for name in names)
    apart = max(0.36, 0.1 + 0.16 * min(tallest, 3))  # inches; longer names have shorter neighbours
    chart, axes = _chart(x, "", height=0.9 + apart * len(values))
    if around is not None:
        axes.axvline(around, color="black", linewidth=1)
        if margin:
            factor = 1 + margin
            band = (around / factor, around * factor) if log else (around - margin, around + margin)
            axes.axvspan(*band, color="0.9", zorder=0)
    for k, (value, low, high) in enumerate(values.values()):
        _draw_interval(axes, k, value, low, high)
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(range(len(values)), names)
    axes.set_ylim(len(values) - 0.5, -0.7)
    axes.margins(x=0.1)  # so that the number over the outermost dot has room
    axes.grid(False, axis="y")
    rows = [[name, value, _ends((low, high))] for name, (value, low, high) in values.items()]
    words = "; ".join(
        f"{name}: {number(value)} ({ends or 'no interval'})" for name, value, ends in rows
    )
    return _finish(
        chart,
        f"{caption or 'Intervals'} ({x}): {words}.",
        Table(rows, ["", x, "95 % interval"]),
        caption,
    )


def _draw_interval(axes, k, value, low, high):
    from matplotlib.patheffects import withStroke  # late: matplotlib takes a second to start

    if low is not None:
        axes.plot([low, high], [k, k], color=PLAIN.color, linewidth=2, marker="|", markersize=9)
    axes.plot(value, k, "o", color=PLAIN.color)
    axes.annotate(
        number(value),
        (value, k),
        (0, 6),
        textcoords="offset points",
        ha="center",
        fontsize=10,
        # So that a number on the line around which all lie can be read.
        path_effects=[withStroke(linewidth=3, foreground="white")],
    )


def _ends(pair):
    """An interval as text, or None."""
    return f"{number(pair[0])} to {number(pair[1])}" if pair and pair[0] is not None else None


def _ring(axes, x, y, color):
    axes.plot(x, y, "o", ms=14, mfc="none", mec=color, mew=1.8)  # m...: of the marker


def _chart(x: str, y: str, height: float = 3.4) -> "tuple[Chart, Axes]":
    # Late: matplotlib takes a second to start. Not pyplot: nothing is drawn twice, nothing global
    # is changed.
    from matplotlib.figure import Figure as Chart

    chart = Chart(figsize=(CHART_WIDTH / 110, height), dpi=160, layout="constrained")
    axes = chart.add_subplot(xlabel=x, ylabel=y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.locator_params(axis="x", nbins=5)  # labels of four decimals run into each other
    return chart, axes


def _make_logarithmic(axes):
    """A logarithmic x axis, labelled at 1, 2 and 5 of each power of ten.

    matplotlib's own labels between the powers run together.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator  # late, as in `_chart`

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(float(value))))
    axes.minorticks_off()


def _finish(chart, alt, numbers, caption):
    file = io.BytesIO()
    chart.savefig(file, format="png", facecolor="white")
    return Figure(Image.open(file).convert("RGB"), alt, numbers, caption, chart)
