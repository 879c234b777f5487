"""Where names go in a chart so that none hides another: beside points, and at the right end of
lines.

By hand, since a legend sends the eye to and fro, and libraries that place labels (adjustText) push
them about until a limit of time or rounds is met: here a label takes the best of twelve places, and
a figure made again is the same to the pixel.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Chart

# Where a label may stand: right and up from its point, in points of type.
PLACES = (
    (6, 6),
    (6, -13),
    (-6, 6),
    (-6, -13),
    (0, 11),
    (0, -18),
    (13, -4),
    (-13, -4),
    (18, 14),
    (-18, 14),
    (18, -20),
    (-18, -20),
)

SIZE = 10  # of the type, in points
LINE_HEIGHT = 25  # pixels between names at the ends of lines


def label_points(chart: "Chart", axes: "Axes", found: list[tuple[str, float, float, str]]) -> None:
    """Write each (label, x, y, color) of `found` beside its point, where it hides least.

    A label that lies outside the axes, or nearer to another point, counts as hiding far more.
    """
    chart.draw_without_rendering()
    scale, frame = chart.dpi / 72, axes.get_window_extent()
    dots = [axes.transData.transform((x, y)) for _, x, y, _ in found]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in dots] + [
        (x - 1, y - 1, x + 1, y + 1) for x, y in _along(axes)
    ]
    for (label, x, y, color), dot in zip(found, dots):
        if not label:
            continue
        boxes = {place: _box(dot, place, len(label), scale) for place in PLACES}
        hidden = {
            place: sum(_shared(box, other) for other in taken)
            + 9 * _outside(box, frame)
            + 99 * _strays(box, dot, dots)
            for place, box in boxes.items()
        }
        place = min(PLACES, key=lambda place: hidden[place])  # the first of the best
        taken.append(boxes[place])
        where = {"textcoords": "offset points", "ha": _side(place[0]), "annotation_clip": False}
        axes.annotate(label, (x, y), place, fontsize=SIZE, color=color, **where)


def label_ends(chart: "Chart", axes: "Axes", ends: list[tuple[float, float, str, str]]) -> None:
    """Write the name of each (x, y, name, color) at its line's right end, instead of a legend.

    Names that would overlap are pushed apart.
    """
    chart.draw_without_rendering()
    wanted = sorted((axes.transData.transform((x, y))[1], k) for k, (x, y, _, _) in enumerate(ends))
    placed = -math.inf
    for height, k in wanted:
        placed = max(height, placed + LINE_HEIGHT)
        x, y, name, color = ends[k]
        axes.annotate(
            f"{name} ",
            (x, y),
            (8, (placed - height) * 72 / chart.dpi),
            textcoords="offset points",
            color=color,
            va="center",
            fontsize=11,
            fontweight="bold",
            annotation_clip=False,
        )


def _strays(box, dot, dots):
    """Whether the middle of a box is nearer to another of the `dots` than to its own."""
    middle = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return min(math.dist(middle, other) for other in dots) < math.dist(middle, dot)


def _along(axes, step=4):
    """Places in pixels, so many apart, along the lines that are drawn."""
    for line in axes.get_lines():
        ends = axes.transData.transform(line.get_xydata()) if line.get_linestyle() != "None" else []
        for one, other in zip(ends, ends[1:]):
            yield from np.linspace(one, other, 2 + int(np.hypot(*(other - one)) / step))


def _side(right):
    """How a label that begins so far to the right of its point is aligned."""
    if right == 0:
        return "center"
    return "left" if right > 0 else "right"


def _box(dot, place, letters, scale):
    """(left, bottom, right, top) in pixels of a label of so many letters."""
    wide, high = 0.62 * SIZE * letters * scale, SIZE * scale
    before = {"left": 0, "center": wide / 2, "right": wide}[_side(place[0])]
    left = dot[0] + place[0] * scale - before
    bottom = dot[1] + place[1] * scale
    return left, bottom, left + wide, bottom + high


def _shared(one, other):
    """Square pixels that two boxes share."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return max(0, wide) * max(0, high)


def _outside(box, frame):
    """Square pixels of a box beyond the frame of the axes."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    return area - _shared(box, (frame.x0, frame.y0, frame.x1, frame.y1))
