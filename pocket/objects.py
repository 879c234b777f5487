"""The pocket world's objects: one function a class, each a drawing in an object's own units (see
`pen.py`).

A function gets the pen and the identity's proportions: `a` and `b`, two numbers in [0, 1] that make
one teapot slender and another squat, and `eyes`. To add a class, write its function and name it in
`CLASSES`.
"""

import math
from collections.abc import Callable

from .pen import Pen, Point, Rgb

GLASS = (196, 232, 246)
METAL = (176, 184, 196)
DARK = (52, 54, 66)
WOOD = (146, 98, 60)
CREAM = (250, 240, 220)


def _arc(
    x: float, y: float, rx: float, ry: float, start: float, stop: float, n: int = 14
) -> list[Point]:
    """Points on an ellipse from `start` to `stop` degrees (0 = right, 90 = down)."""
    angles = [math.radians(start + (stop - start) * i / (n - 1)) for i in range(n)]
    return [(x + rx * math.cos(t), y + ry * math.sin(t)) for t in angles]


def robot(p: Pen, a: float, b: float, eyes: str) -> None:
    w = 0.42 + 0.14 * a
    for side in (-1, 1):
        p.curve([(side * w, 0.05), (side * (w + 0.24), 0.3), (side * (w + 0.2), 0.5)], METAL, 0.15)
        p.ellipse(side * (w + 0.2), 0.54, 0.12, 0.12, "second")
        p.box(side * 0.24, 0.82, 0.15, 0.2, METAL)
    p.box(0, 0.3, w, 0.4)
    p.box(0, 0.3, w * 0.42, 0.14, "second")
    p.curve([(0, -0.66), (0, -0.9)], METAL, 0.08)
    p.ellipse(0, -0.92, 0.1, 0.1, "second")
    p.box(0, -0.38, w * (0.8 + 0.2 * b), 0.3, "main", round_=0.14)
    for side in (-1, 1):
        p.eye(side * 0.2, -0.42, 0.13, eyes)
    p.curve([(-0.16, -0.2), (0.16, -0.2)], width=0.06)


def cat(p: Pen, a: float, b: float, eyes: str) -> None:
    p.curve(
        [(-0.42, 0.75), (-0.78, 0.6), (-0.84, 0.2 - 0.3 * b), (-0.66, 0.02 - 0.3 * b)],
        "second",
        0.17,
    )
    p.ellipse(0, 0.5, 0.42 + 0.14 * a, 0.5)
    p.ellipse(0.02, 0.62, 0.22, 0.3, CREAM, outline=False)
    for side in (-1, 1):
        p.ellipse(side * 0.22, 0.92, 0.16, 0.1, "main")
    p.polygon([(-0.5, -0.3), (-0.46, -0.92), (-0.08, -0.56)], "main")
    p.polygon([(0.5, -0.3), (0.46, -0.92), (0.08, -0.56)], "main")
    p.ellipse(0, -0.28, 0.54, 0.42, "main")
    for side in (-1, 1):
        p.eye(side * 0.22, -0.32, 0.12, eyes)
        p.curve([(side * 0.3, -0.1), (side * 0.62, -0.14)], width=0.035)
    p.polygon([(-0.08, -0.16), (0.08, -0.16), (0, -0.06)], (240, 130, 140), outline=False)


def bird(p: Pen, a: float, b: float, eyes: str) -> None:
    p.curve([(-0.1, 0.7), (-0.12, 0.98)], (230, 150, 50), 0.08)
    p.curve([(0.14, 0.7), (0.14, 0.98)], (230, 150, 50), 0.08)
    p.polygon([(-0.5, 0.25), (-0.98, 0.05), (-0.92, 0.48), (-0.4, 0.55)], "second")
    p.ellipse(-0.02, 0.3, 0.6, 0.42 + 0.1 * a)
    p.polygon([(0.68, -0.42), (0.99, -0.3), (0.66, -0.18)], (244, 166, 44))
    p.ellipse(0.4, -0.3, 0.36, 0.36, "main")
    p.polygon(_arc(-0.12, 0.22, 0.38, 0.3 + 0.1 * b, 0, 180) + [(-0.5, 0.16)], "second")
    p.eye(0.48, -0.36, 0.12, eyes)


def fish(p: Pen, a: float, b: float, eyes: str) -> None:
    p.polygon([(-0.45, 0.1), (-0.96, -0.36), (-0.84, 0.1), (-0.96, 0.56)], "second")
    p.polygon([(-0.25, -0.28), (0.02, -0.72 - 0.2 * b), (0.34, -0.3)], "second")
    p.ellipse(0.12, 0.1, 0.72, 0.42 + 0.16 * a)
    p.polygon([(-0.02, 0.18), (-0.28, 0.44), (0.12, 0.4)], "second")
    p.eye(0.52, -0.02, 0.13, eyes)
    p.curve([(0.66, 0.28), (0.54, 0.32)], width=0.06)


def car(p: Pen, a: float, b: float, eyes: str) -> None:
    top = -0.32 - 0.22 * a
    p.polygon([(-0.62, 0.18), (-0.4, top), (0.28 + 0.2 * b, top), (0.66, 0.18)], "main")
    p.polygon([(-0.46, 0.14), (-0.32, top + 0.12), (-0.06, top + 0.12), (-0.06, 0.14)], GLASS)
    p.polygon(
        [(0.06, 0.14), (0.06, top + 0.12), (0.24 + 0.16 * b, top + 0.12), (0.48, 0.14)], GLASS
    )
    p.box(0, 0.4, 0.95, 0.28, round_=0.16)
    p.ellipse(0.86, 0.34, 0.08, 0.1, (255, 240, 150))
    for x in (-0.52, 0.52):
        p.ellipse(x, 0.7, 0.27, 0.27, DARK)
        p.ellipse(x, 0.7, 0.12, 0.12, "second", outline=False)


def boat(p: Pen, a: float, b: float, eyes: str) -> None:
    p.curve([(0, 0.4), (0, -0.92)], WOOD, 0.09)
    p.polygon([(0.08, -0.86), (0.08, 0.24), (0.7 + 0.1 * a, 0.24)], "second")
    p.polygon([(-0.08, -0.6 - 0.2 * b), (-0.08, 0.24), (-0.56, 0.24)], CREAM)
    p.polygon([(0, -0.98), (0.34, -0.9), (0, -0.8)], "main")
    p.polygon([(-0.94, 0.38), (0.94, 0.38), (0.62, 0.96), (-0.66, 0.96)])
    p.curve([(-0.9, 0.46), (0.9, 0.46)], CREAM, 0.08)


def rocket(p: Pen, a: float, b: float, eyes: str) -> None:
    w = 0.3 + 0.1 * a
    p.polygon([(-0.18, 0.62), (0, 1.0), (0.18, 0.62)], (255, 170, 40), outline=False)
    p.polygon([(-0.1, 0.62), (0, 0.84), (0.1, 0.62)], (255, 236, 130), outline=False)
    for side in (-1, 1):
        p.polygon(
            [
                (side * w * 0.8, 0.1),
                (side * (w + 0.34), 0.5 + 0.14 * b),
                (side * (w + 0.3), 0.76),
                (side * w * 0.6, 0.58),
            ],
            "second",
        )
    p.polygon(_arc(0, 0.0, w, 0.95, 180, 360, 24) + [(w * 0.8, 0.62), (-w * 0.8, 0.62)])
    p.polygon(_arc(0, 0.0, w, 0.95, 222, 318, 12), "second")
    p.ellipse(0, -0.2, 0.17, 0.17, GLASS)


def house(p: Pen, a: float, b: float, eyes: str) -> None:
    p.box(0.46, -0.52, 0.11, 0.3, (150, 110, 96), round_=0.02)
    p.box(0, 0.42, 0.68, 0.54, round_=0.03)
    p.polygon([(-0.9, 0.0), (0, -0.72 - 0.2 * a), (0.9, 0.0)], "second")
    p.box(-0.04 if b < 0.5 else 0.3, 0.66, 0.16, 0.3, WOOD, round_=0.04)
    p.box(-0.42, 0.32, 0.14, 0.16, (255, 236, 160), round_=0.02)
    if b < 0.5:
        p.box(0.4, 0.32, 0.14, 0.16, (255, 236, 160), round_=0.02)


def teapot(p: Pen, a: float, b: float, eyes: str) -> None:
    p.curve(_arc(-0.52, 0.24, 0.36, 0.3, 70, 290), "second", 0.13)
    p.polygon([(0.4, 0.5), (0.92, -0.22), (0.76, -0.3), (0.34, 0.12)], "main")
    p.ellipse(0, 0.3, 0.56 + 0.08 * a, 0.52 + 0.12 * b)
    p.polygon(_arc(0, -0.14, 0.36, 0.22, 180, 360), "second")
    p.ellipse(0, -0.42, 0.1, 0.1, "main")
    p.box(0, 0.86, 0.36, 0.07, "second", round_=0.04)


def mushroom(p: Pen, a: float, b: float, eyes: str) -> None:
    w = 0.2 + 0.12 * b
    p.polygon([(-w, 0.0), (w, 0.0), (w + 0.1, 0.9), (-w - 0.1, 0.9)], CREAM)
    p.polygon(_arc(0, 0.08, 0.88, 0.86 + 0.12 * a, 180, 360, 24))
    for x, y, r in ((-0.42, -0.24, 0.13), (0.08, -0.5, 0.15), (0.5, -0.2, 0.12)):
        p.ellipse(x, y, r, r, "second", outline=False)
    for side in (-1, 1):
        p.eye(side * 0.13, 0.34, 0.09, eyes)


def tree(p: Pen, a: float, b: float, eyes: str) -> None:
    p.box(0, 0.72, 0.13, 0.28, WOOD, round_=0.03)
    if b < 0.5:
        for y, r in ((0.28, 0.64), (-0.14, 0.52), (-0.54, 0.38)):
            p.polygon([(-r - 0.1 * a, y + 0.22), (0, y - 0.4), (r + 0.1 * a, y + 0.22)])
    else:
        for x, y, r in ((-0.36, 0.1, 0.38), (0.36, 0.1, 0.38), (0, -0.36, 0.46)):
            p.ellipse(x, y, r + 0.06 * a, r)
        p.ellipse(0, 0.04, 0.36, 0.34, "body", outline=False)
    for x, y in ((-0.26, 0.14), (0.24, 0.18), (0.02, -0.32)):
        p.ellipse(x, y, 0.08, 0.08, "second", outline=False)


def jacket(p: Pen, a: float, b: float, eyes: str) -> None:
    for side in (-1, 1):
        p.polygon(
            [
                (side * 0.36, -0.66),
                (side * 0.64, -0.5),
                (side * (0.92 + 0.06 * a), 0.5),
                (side * 0.64, 0.62),
                (side * 0.42, -0.02),
            ],
            "main",
        )
        p.polygon(
            [(side * 0.92, 0.42), (side * 0.94, 0.56), (side * 0.66, 0.68), (side * 0.62, 0.54)],
            "second",
        )
    p.polygon(
        [
            (-0.34, -0.72),
            (0.34, -0.72),
            (0.52, -0.4),
            (0.5, 0.86 + 0.1 * b),
            (-0.5, 0.86 + 0.1 * b),
            (-0.52, -0.4),
        ]
    )
    p.polygon([(-0.24, -0.74), (0.24, -0.74), (0, -0.32)], "second")
    p.curve([(0, -0.3), (0, 0.9 + 0.06 * b)], width=0.05)
    for y in (0.0, 0.3, 0.6):
        p.ellipse(0.12, y, 0.055, 0.055, CREAM, outline=False)


CLASSES: dict[str, Callable[[Pen, float, float, str], None]] = {
    f.__name__: f
    for f in (robot, cat, bird, fish, car, boat, rocket, house, teapot, mushroom, tree, jacket)
}

# Where an accessory sits on each class: (x, y, scale) of the top of the head, and of the neck or
# waist.
HEAD: dict[str, tuple[float, float, float]] = {
    "robot": (0, -0.68, 0.8),
    "cat": (0, -0.66, 0.8),
    "bird": (0.4, -0.62, 0.6),
    "fish": (0.1, -0.36, 0.6),
    "car": (0, -0.42, 0.7),
    "boat": (-0.5, 0.34, 0.5),
    "rocket": (0, -0.8, 0.5),
    "house": (-0.1, -0.66, 0.7),
    "teapot": (0, -0.42, 0.7),
    "mushroom": (0, -0.76, 0.8),
    "tree": (0, -0.8, 0.7),
    "jacket": (0, -0.7, 0.6),
}


def hat(p: Pen, x: float, y: float, s: float, color: Rgb) -> None:
    p.box(x, y - 0.02, 0.42 * s, 0.07 * s, color)
    p.box(x, y - 0.26 * s, 0.26 * s, 0.22 * s, color, round_=0.05)


def bow(p: Pen, x: float, y: float, s: float, color: Rgb) -> None:
    p.polygon([(x, y), (x - 0.34 * s, y - 0.22 * s), (x - 0.34 * s, y + 0.22 * s)], color)
    p.polygon([(x, y), (x + 0.34 * s, y - 0.22 * s), (x + 0.34 * s, y + 0.22 * s)], color)
    p.ellipse(x, y, 0.1 * s, 0.1 * s, color)


def flag(p: Pen, x: float, y: float, s: float, color: Rgb) -> None:
    p.curve([(x, y + 0.1 * s), (x, y - 0.62 * s)], WOOD, 0.06)
    p.polygon([(x, y - 0.62 * s), (x + 0.46 * s, y - 0.46 * s), (x, y - 0.28 * s)], color)


def crown(p: Pen, x: float, y: float, s: float, color: Rgb) -> None:
    w, h = 0.36 * s, 0.36 * s
    p.polygon(
        [
            (x - w, y),
            (x - w, y - h),
            (x - w / 2, y - h / 2),
            (x, y - h * 1.2),
            (x + w / 2, y - h / 2),
            (x + w, y - h),
            (x + w, y),
        ],
        color,
    )


def scarf(p: Pen, x: float, y: float, s: float, color: Rgb) -> None:
    y = y + 0.66 * s
    p.box(x, y, 0.46 * s, 0.1 * s, color, round_=0.1)
    p.box(x + 0.28 * s, y + 0.24 * s, 0.1 * s, 0.24 * s, color, round_=0.04)


ACCESSORIES: dict[str, Callable[[Pen, float, float, float, Rgb], None]] = {
    f.__name__: f for f in (hat, bow, flag, crown, scarf)
}
