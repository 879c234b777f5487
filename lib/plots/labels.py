"""Where names go in a chart so that none hides another: beside points, and at the right end of
lines.
"""

import math

import numpy as np

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


SIZE = 9  # of the type, in points


def label_points(chart, axes, found):
    """Write each (label, x, y, color) of `found` beside its point, at the place (of `PLACES`,
    points from it) that hides least.
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
        place = min(PLACES, key=hidden.get)  # the first of the best
        taken.append(boxes[place])
        where = {"textcoords": "offset points", "ha": _side(place[0]), "annotation_clip": False}
        axes.annotate(label, (x, y), place, fontsize=SIZE, color=color, **where)


def label_ends(chart, axes, ends):
    """Write the name of each (x, y, name, color) at its line's right end, pushed apart where they
    would overlap, instead of a legend.
    """
    chart.draw_without_rendering()
    wanted = sorted((axes.transData.transform((x, y))[1], k) for k, (x, y, _, _) in enumerate(ends))
    placed = -math.inf
    for height, k in wanted:
        placed, (x, y, name, color) = max(height, placed + 17), ends[k]
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
    return "left" if right > 0 else "right" if right < 0 else "center"


def _box(dot, place, letters, scale):
    """(left, bottom, right, top) in pixels of a label of so many letters."""
    wide, high = 0.62 * SIZE * letters * scale, SIZE * scale
    left = (
        dot[0] + place[0] * scale - {"left": 0, "center": wide / 2, "right": wide}[_side(place[0])]
    )
    bottom = dot[1] + place[1] * scale
    return left, bottom, left + wide, bottom + high


def _shared(one, other):
    """Square pixels that two boxes share."""
    return max(0, min(one[2], other[2]) - max(one[0], other[0])) * max(
        0, min(one[3], other[3]) - max(one[1], other[1])
    )


def _outside(box, frame):
    """Square pixels of a box beyond the frame of the axes."""
    return (box[2] - box[0]) * (box[3] - box[1]) - _shared(
        box, (frame.x0, frame.y0, frame.x1, frame.y1)
    )
