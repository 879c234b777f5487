"""The pocket world's places: one function each, painting an RGB canvas from a random generator.

Every function gets `(image, rng)` and returns the height of the horizon in canvas widths, on which
things stand. To add a place, write its function, name it in `PLACES` with the words that captions
use.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from .pen import Rgb, near, shade


def _sky(image: Image.Image, top: Rgb, bottom: Rgb, until: float = 1.0) -> None:
    """Fill the canvas with a vertical gradient from `top` to `bottom` (RGB), reached at height
    `until`.
    """
    n = image.height
    t = np.clip(np.linspace(0, 1, n) / until, 0, 1)[:, None, None]
    column = np.asarray(top) * (1 - t) + np.asarray(bottom) * t
    image.paste(Image.fromarray(np.broadcast_to(column, (n, image.width, 3)).astype(np.uint8)))


def _ground(draw: ImageDraw.ImageDraw, n: int, horizon: float, rgb: Rgb) -> None:
    draw.rectangle([0, horizon * n, n, n], fill=rgb)
    draw.rectangle([0, (horizon + 0.14) * n, n, n], fill=shade(rgb, 0.95))


def _hills(
    draw: ImageDraw.ImageDraw,
    n: int,
    rng: np.random.Generator,
    horizon: float,
    rgb: Rgb,
    height: float,
) -> None:
    x = np.linspace(0, 1, 40)
    y = horizon - height * (0.5 + 0.5 * np.sin(x * rng.uniform(4, 9) + rng.uniform(0, 6)))
    draw.polygon([(0, n)] + [(a * n, b * n) for a, b in zip(x, y)] + [(n, n)], fill=rgb)


def beach(image: Image.Image, rng: np.random.Generator) -> float:
    n, horizon = image.width, rng.uniform(0.56, 0.66)
    _sky(image, near(rng, (112, 192, 240)), near(rng, (206, 236, 250)), horizon)
    draw = ImageDraw.Draw(image)
    x, y, r = rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.22), 0.08
    draw.ellipse([(x - r) * n, (y - r) * n, (x + r) * n, (y + r) * n], fill=(255, 238, 140))
    draw.rectangle(
        [0, (horizon - 0.17) * n, n, (horizon + 0.02) * n], fill=near(rng, (40, 140, 190))
    )
    for _ in range(3):
        x, y = rng.uniform(0, 0.8), horizon - rng.uniform(0.02, 0.14)
        draw.line([x * n, y * n, (x + 0.16) * n, y * n], fill=(190, 232, 246), width=n // 100)
    _ground(draw, n, horizon, near(rng, (240, 214, 150)))
    return horizon


def forest(image: Image.Image, rng: np.random.Generator) -> float:
    n, horizon = image.width, rng.uniform(0.6, 0.7)
    _sky(image, near(rng, (150, 204, 160)), near(rng, (206, 230, 170)), horizon)
    draw = ImageDraw.Draw(image)
    for layer, rgb in enumerate(((84, 146, 92), (46, 106, 66))):
        for x in np.arange(-0.05, 1.1, 0.15) + rng.uniform(0, 0.12):
            w, top = rng.uniform(0.08, 0.12), horizon - rng.uniform(0.34, 0.56) + layer * 0.1
            c = near(rng, rgb, 6)
            for k in range(2):
                y = top + k * 0.14
                draw.polygon(
                    [((x - w) * n, (y + 0.3) * n), (x * n, y * n), ((x + w) * n, (y + 0.3) * n)],
                    fill=c,
                )
            draw.rectangle(
                [(x - 0.014) * n, (horizon - 0.08) * n, (x + 0.014) * n, (horizon + 0.04) * n],
                fill=(88, 62, 44),
            )
    _ground(draw, n, horizon, near(rng, (96, 148, 72)))
    return horizon


def night(image: Image.Image, rng: np.random.Generator) -> float:
    n, horizon = image.width, rng.uniform(0.64, 0.72)
    _sky(image, near(rng, (14, 18, 52), 5), near(rng, (52, 58, 116), 6), horizon)
    draw = ImageDraw.Draw(image)
    for x, y in rng.uniform(0, 1, (16, 2)):
        r = rng.uniform(0.004, 0.01)
        y *= horizon * 0.8
        draw.ellipse([(x - r) * n, (y - r) * n, (x + r) * n, (y + r) * n], fill=(250, 246, 210))
    x, y, r = rng.uniform(0.12, 0.88), rng.uniform(0.12, 0.22), 0.085
    draw.ellipse([(x - r) * n, (y - r) * n, (x + r) * n, (y + r) * n], fill=(248, 244, 206))
    draw.ellipse(
        [(x - r * 0.4) * n, (y - r * 1.1) * n, (x + r * 1.4) * n, (y + r * 0.7) * n],
        fill=(24, 28, 66),
    )
    _hills(draw, n, rng, horizon, (28, 34, 72), 0.12)
    _ground(draw, n, horizon, near(rng, (32, 40, 62), 5))
    return horizon


def snow(image: Image.Image, rng: np.random.Generator) -> float:
    n, horizon = image.width, rng.uniform(0.56, 0.66)
    _sky(image, near(rng, (176, 202, 226)), near(rng, (226, 236, 246), 5), horizon)
    draw = ImageDraw.Draw(image)
    for x in rng.uniform(0, 1, 2):
        h, w = rng.uniform(0.22, 0.36), rng.uniform(0.26, 0.36)
        draw.polygon(
            [((x - w) * n, horizon * n), (x * n, (horizon - h) * n), ((x + w) * n, horizon * n)],
            fill=(146, 168, 196),
        )
        draw.polygon(
            [
                ((x - w * 0.36) * n, (horizon - h * 0.64) * n),
                (x * n, (horizon - h) * n),
                ((x + w * 0.36) * n, (horizon - h * 0.64) * n),
            ],
            fill=(250, 252, 255),
        )
    _ground(draw, n, horizon, near(rng, (244, 248, 254), 3))
    for x, y in rng.uniform(0, 1, (22, 2)):
        r = rng.uniform(0.007, 0.013)
        draw.ellipse([(x - r) * n, (y - r) * n, (x + r) * n, (y + r) * n], fill=(255, 255, 255))
    return horizon


def city(image: Image.Image, rng: np.random.Generator) -> float:
    n, horizon = image.width, rng.uniform(0.66, 0.74)
    _sky(image, near(rng, (150, 186, 214)), near(rng, (236, 222, 206)), horizon)
    draw = ImageDraw.Draw(image)
    x = -rng.uniform(0, 0.1)
    while x < 1:
        w, top = rng.uniform(0.14, 0.22), rng.uniform(0.12, 0.42)
        c = near(rng, (118, 126, 142), 14)
        draw.rectangle([x * n, top * n, (x + w) * n, horizon * n], fill=c)
        for wy in np.arange(top + 0.05, horizon - 0.06, 0.09):
            for wx in np.arange(x + 0.03, x + w - 0.04, 0.065):
                lit = (250, 226, 150) if rng.random() < 0.5 else shade(c, 0.75)
                draw.rectangle([wx * n, wy * n, (wx + 0.034) * n, (wy + 0.046) * n], fill=lit)
        x += w + rng.uniform(0, 0.02)
    _ground(draw, n, horizon, near(rng, (92, 94, 102), 5))
    for x in np.arange(rng.uniform(-0.2, 0), 1, 0.3):
        draw.rectangle([x * n, 0.93 * n, (x + 0.16) * n, 0.95 * n], fill=(232, 226, 196))
    return horizon


def desert(image: Image.Image, rng: np.random.Generator) -> float:
    n, horizon = image.width, rng.uniform(0.58, 0.68)
    _sky(image, near(rng, (244, 176, 108)), near(rng, (252, 222, 166)), horizon)
    draw = ImageDraw.Draw(image)
    x, y, r = rng.uniform(0.1, 0.9), rng.uniform(0.14, 0.24), 0.1
    draw.ellipse([(x - r) * n, (y - r) * n, (x + r) * n, (y + r) * n], fill=(255, 240, 196))
    _hills(draw, n, rng, horizon, near(rng, (206, 128, 74), 6), 0.14)
    _ground(draw, n, horizon, near(rng, (222, 154, 92), 6))
    for x in rng.uniform(0.04, 0.96, 2):
        h = rng.uniform(0.16, 0.24)
        c = near(rng, (70, 128, 80), 8)
        draw.rounded_rectangle(
            [(x - 0.024) * n, (horizon - h) * n, (x + 0.024) * n, (horizon + 0.03) * n],
            radius=n * 0.024,
            fill=c,
        )
        draw.line(
            [
                x * n,
                (horizon - h * 0.4) * n,
                (x + 0.07) * n,
                (horizon - h * 0.4) * n,
                (x + 0.07) * n,
                (horizon - h * 0.75) * n,
            ],
            fill=c,
            width=n // 32,
            joint="curve",
        )
    return horizon


def space(image: Image.Image, rng: np.random.Generator) -> float:
    n = image.width
    _sky(image, near(rng, (16, 10, 34), 4), near(rng, (44, 20, 66), 6))
    draw = ImageDraw.Draw(image)
    for x, y in rng.uniform(0, 1, (34, 2)):
        r = rng.uniform(0.003, 0.011)
        draw.ellipse(
            [(x - r) * n, (y - r) * n, (x + r) * n, (y + r) * n],
            fill=near(rng, (236, 232, 246), 8),
        )
    x, y, r = (
        rng.choice([0.14, 0.86]) + rng.uniform(-0.05, 0.05),
        rng.uniform(0.12, 0.3),
        rng.uniform(0.1, 0.15),
    )
    c = near(rng, [(214, 140, 90), (120, 170, 210), (190, 120, 190)][rng.integers(3)])
    draw.ellipse([(x - r) * n, (y - r) * n, (x + r) * n, (y + r) * n], fill=c)
    draw.line(
        [(x - 1.6 * r) * n, (y + 0.4 * r) * n, (x + 1.6 * r) * n, (y - 0.4 * r) * n],
        fill=(230, 214, 190),
        width=n // 60,
    )
    draw.ellipse([-0.3 * n, 0.86 * n, 1.3 * n, 1.5 * n], fill=near(rng, (128, 122, 144), 6))
    for x in rng.uniform(0.1, 0.9, 3):
        draw.ellipse([(x - 0.06) * n, 0.92 * n, (x + 0.06) * n, 0.95 * n], fill=(104, 98, 122))
    return 0.78


def room(image: Image.Image, rng: np.random.Generator) -> float:
    n, horizon = image.width, rng.uniform(0.66, 0.74)
    wall = near(rng, (222, 196, 196), 10)
    _sky(image, wall, shade(wall, 0.94))
    draw = ImageDraw.Draw(image)
    x = rng.choice([0.08, 0.62]) + rng.uniform(-0.04, 0.04)
    draw.rectangle([x * n, 0.12 * n, (x + 0.3) * n, 0.46 * n], fill=(250, 250, 246))
    draw.rectangle(
        [(x + 0.02) * n, 0.14 * n, (x + 0.28) * n, 0.44 * n], fill=near(rng, (164, 214, 238))
    )
    draw.rectangle([(x + 0.142) * n, 0.14 * n, (x + 0.158) * n, 0.44 * n], fill=(250, 250, 246))
    draw.rectangle([(x + 0.02) * n, 0.28 * n, (x + 0.28) * n, 0.295 * n], fill=(250, 250, 246))
    floor = near(rng, (166, 116, 78), 8)
    _ground(draw, n, horizon, floor)
    for y in (0.79, 0.88, 0.96):
        draw.line([0, y * n, n, y * n], fill=shade(floor, 0.8), width=n // 110)
    draw.rectangle([0, (horizon - 0.025) * n, n, horizon * n], fill=(246, 240, 234))
    return horizon


Painter = Callable[[Image.Image, np.random.Generator], float]
PLACES: dict[Painter, str] = {
    beach: "on the beach",
    forest: "in the forest",
    night: "at night",
    snow: "in the snow",
    city: "in the city",
    desert: "in the desert",
    space: "in space",
    room: "in a room",
}
PHRASES = {f.__name__: words for f, words in PLACES.items()}
PAINTERS: dict[str, Painter] = {f.__name__: f for f in PLACES}
