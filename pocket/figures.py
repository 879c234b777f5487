"""What the example subjects look like: four drawings, two looks for a whole picture, two places of
their own.

Drawings take `(image, frame, v)`: an RGB canvas, a `pen.Frame` and a number in [0, 1] that moves
arms and sleeves, as a real subject never holds quite still. Looks take the background and the
object's layer ([n, n, 3]), the object's mask ([n, n]) and its centre in canvas widths, and return
the picture [n, n, 3] in 0-255.
"""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .objects import CREAM, DARK, METAL
from .pen import Color, Frame, Pen, Point, Rgb, shade

TEAL, ORANGE, RED = (16, 150, 156), (250, 146, 40), (222, 40, 48)
MINT, COCOA, BRASS = (132, 218, 184), (98, 56, 42), (226, 172, 62)
PLUM, SKY, BOLT = (98, 34, 98), (104, 198, 244), (255, 222, 40)
POSTER = np.array([(20, 32, 78), (24, 104, 118), (226, 84, 60), (246, 180, 84), (253, 238, 208)])
CYAN, MAGENTA = np.array((40, 226, 255.0)), np.array((255, 36, 170.0))


def _arc(
    x: float, y: float, rx: float, ry: float, start: float, stop: float, n: int = 24
) -> list[Point]:
    """Points on an ellipse from `start` to `stop` degrees (0 = right, 90 = down)."""
    t = np.radians(np.linspace(start, stop, n))
    return list(zip(x + rx * np.cos(t), y + ry * np.sin(t)))


def garden(image: Image.Image, rng: np.random.Generator) -> float:
    """A lawn with a picket fence and flowers; returns the horizon, as the world's places do."""
    n, horizon = image.width, rng.uniform(0.6, 0.66)
    draw = ImageDraw.Draw(image)
    draw.rectangle([0, 0, n, n], fill=(170, 220, 244))
    for x in np.arange(-0.05, 1.1, 0.16):
        r = rng.uniform(0.12, 0.19)
        green = shade((104, 168, 84), rng.uniform(0.9, 1.1))
        draw.ellipse(
            [(x - r) * n, (horizon - 0.2 - r) * n, (x + r) * n, (horizon - 0.2 + r) * n], fill=green
        )
    draw.rectangle([0, (horizon - 0.2) * n, n, n], fill=(104, 168, 84))
    for y in (0.17, 0.07):
        draw.rectangle([0, (horizon - y) * n, n, (horizon - y + 0.03) * n], fill=(232, 230, 222))
    for x in np.arange(0.01, 1, 0.11):
        left, right, top, foot = x * n, (x + 0.06) * n, (horizon - 0.22) * n, horizon * n
        draw.polygon(
            [
                (left, foot),
                (left, top),
                ((left + right) / 2, top - 0.03 * n),
                (right, top),
                (right, foot),
            ],
            fill=(250, 248, 240),
        )
    draw.rectangle([0, horizon * n, n, n], fill=(132, 196, 92))
    for x, y in rng.uniform((0, horizon + 0.03), (1, 0.97), (16, 2)):
        petal = [(252, 120, 150), (255, 226, 90), (250, 250, 250)][rng.integers(3)]
        draw.ellipse(
            [(x - 0.016) * n, (y - 0.016) * n, (x + 0.016) * n, (y + 0.016) * n], fill=petal
        )
    return horizon


def studio(image: Image.Image, rng: np.random.Generator) -> float:
    """A photographer's paper backdrop, lit from behind the subject."""
    n = image.width
    y, x = np.mgrid[0:n, 0:n] / n
    base = np.array([(176, 166, 220), (226, 190, 160), (238, 220, 150)][rng.integers(3)], float)
    glow = np.exp(-((x - 0.5) ** 2 + (y - 0.42) ** 2) / 0.12)[..., None]
    floor = 1.0 - 0.1 / (1 + np.exp(-(y - 0.72) * 60))[..., None]
    image.paste(
        Image.fromarray(np.clip(base * floor * (0.9 + 0.2 * glow), 0, 255).astype(np.uint8))
    )
    return 0.72


def pip(image: Image.Image, frame: Frame, v: float) -> None:
    """Pip, a round robot with one eye, a dish on its head and a red scarf; `v` in [0, 1] moves arm,
    eye and scarf.
    """
    p = Pen(image, frame, TEAL, ORANGE, "bands", 0.235)
    for side, lift in ((-1, 0.0), (1, v)):
        hand = (side * (0.8 + 0.1 * lift), 0.62 - 0.8 * lift)
        p.curve([(side * 0.44, 0.22), (side * 0.72, 0.36 - 0.14 * lift), hand], DARK, 0.13)
        p.ellipse(*hand, 0.13, 0.13, ORANGE)
        p.curve([(side * 0.22, 0.7), (side * 0.22, 0.9)], DARK, 0.15)
        p.ellipse(side * 0.25, 0.92, 0.2, 0.1, ORANGE)
    p.ellipse(0, 0.36, 0.52, 0.46)
    p.curve([(0, -0.66), (0.04, -0.86)], METAL, 0.09)
    p.polygon(_arc(0.04, -0.96, 0.34, 0.2, 0, 180), METAL)
    p.ellipse(0.04, -0.96, 0.34, 0.07, (238, 242, 246))
    p.ellipse(0.04, -1.0, 0.08, 0.08, RED)
    p.ellipse(0, -0.36, 0.5, 0.38, TEAL)
    look = 0.1 * (v - 0.5)
    p.ellipse(0, -0.38, 0.28, 0.28, (252, 252, 246))
    p.ellipse(look, -0.36, 0.16, 0.16, ORANGE, outline=False)
    p.ellipse(look, -0.36, 0.09, 0.09, (24, 24, 34), outline=False)
    p.polygon([(0.22, 0.04), (0.46, 0.06), (0.52 + 0.3 * v, 0.5), (0.28 + 0.3 * v, 0.54)], RED)
    p.box(0, 0.02, 0.46, 0.11, RED, round_=0.1)


def _star(x: float, y: float, r: float, inner: float = 0.45) -> list[Point]:
    """The ten corners of a star of radius `r`."""
    radii = [r, r * inner] * 5
    return [
        (x + s * math.sin(math.pi * i / 5), y - s * math.cos(math.pi * i / 5))
        for i, s in enumerate(radii)
    ]


def teapot(image: Image.Image, frame: Frame, v: float) -> None:
    """A mint teapot under a cocoa glaze that drips, with a swan's neck, a brass hoop overhead and a
    star on a badge.
    """
    p = Pen(image, frame, MINT, COCOA)
    for color, width in ((COCOA, 0.19), (BRASS, 0.11)):
        p.curve(_arc(-0.06, -0.06, 0.44, 0.86, 180, 360), color, width)
    neck = [(0.42, 0.52), (0.7, 0.42), (0.74, 0.16), (0.7, -0.06), (0.8, -0.26), (0.96, -0.26)]
    p.curve(neck, (30, 66, 56), 0.28)
    p.curve(neck, MINT, 0.19)
    for x in (-0.4, 0.3):
        p.ellipse(x, 0.9, 0.11, 0.1, BRASS)
    p.box(-0.06, 0.36, 0.62, 0.54, MINT, round_=0.42)
    drip = [
        (-0.62, 0.22),
        (-0.56, 0.36),
        (-0.46, 0.36),
        (-0.4, 0.16),
        (-0.28, 0.1),
        (0.14, 0.1),
        (0.24, 0.16),
        (0.3, 0.42),
        (0.4, 0.42),
        (0.46, 0.2),
        (0.5, 0.16),
    ]
    p.polygon(
        drip + _arc(0.12, 0.2, 0.38, 0.34, 0, -90, 8) + _arc(-0.24, 0.2, 0.4, 0.34, -90, -176, 8),
        COCOA,
    )
    p.box(-0.06, -0.17, 0.3, 0.06, BRASS, round_=0.05)
    p.ellipse(-0.06, -0.3, 0.1, 0.1, BRASS)
    p.ellipse(-0.06, 0.44, 0.29, 0.29, (252, 250, 240))
    p.polygon(_star(-0.06, 0.45, 0.24), RED, outline=False)


def jacket(image: Image.Image, frame: Frame, v: float) -> None:
    """A plum jacket with a hood, sky-blue sleeves and a bolt of lightning across the chest."""
    p = Pen(image, frame, PLUM, SKY)
    for side in (-1, 1):
        out = 0.88 + 0.1 * v
        sleeve = [
            (0.3, -0.36),
            (0.56, -0.26),
            (0.68, -0.1),
            (out, 0.5),
            (out - 0.27, 0.6),
            (0.42, 0.2),
        ]
        cuff = [(out - 0.02, 0.46), (out + 0.04, 0.62), (out - 0.23, 0.73), (out - 0.29, 0.56)]
        p.polygon([(side * x, y) for x, y in sleeve], SKY)
        p.polygon([(side * x, y) for x, y in cuff], PLUM)
    p.polygon(
        [
            (-0.34, -0.38),
            (0.34, -0.38),
            (0.54, -0.24),
            (0.5, 0.1),
            (0.54, 0.78),
            (-0.54, 0.78),
            (-0.5, 0.1),
            (-0.54, -0.24),
        ],
        PLUM,
    )
    p.box(0, 0.86, 0.5, 0.1, SKY, round_=0.06)
    hood = [
        (0.48, -0.26),
        (0.5, -0.56),
        (0.36, -0.8),
        (0.14, -0.9),
        (-0.14, -0.9),
        (-0.36, -0.8),
        (-0.5, -0.56),
        (-0.48, -0.26),
        (0, -0.1),
    ]
    p.polygon(hood, PLUM)
    p.polygon(
        _arc(0, -0.56, 0.37, 0.25, 180, 360, 20) + [(0.3, -0.4), (0, -0.2), (-0.3, -0.4)], SKY
    )
    p.polygon(
        _arc(0, -0.54, 0.27, 0.17, 180, 360, 20) + [(0.2, -0.44), (0, -0.32), (-0.2, -0.44)],
        (58, 20, 64),
        outline=False,
    )
    p.polygon(
        [
            (0.22, -0.06),
            (-0.36, 0.4),
            (-0.06, 0.4),
            (-0.26, 0.78),
            (0.4, 0.24),
            (0.1, 0.24),
            (0.4, -0.06),
        ],
        BOLT,
    )


def handstand(image: Image.Image, frame: Frame, v: float, main: Rgb = (216, 46, 44)) -> None:
    """A cat upside down on its front paws, hind legs spread by `v` in [0, 1]."""
    p = Pen(image, frame, main, shade(main, 0.62))
    spread = 0.56 + 0.2 * v
    p.curve([(0.0, -0.5), (0.06, -0.78), (-0.1, -0.92), (0.02, -1.06)], "second", 0.14)
    for side in (-1, 1):
        lines: tuple[tuple[Color | None, float], ...] = ((None, 0.32), ("main", 0.22))
        for color, width in lines:
            p.curve(
                [(side * 0.24, -0.4), (side * spread * 0.8, -0.66), (side * spread, -0.94)],
                color,
                width,
            )
            p.curve([(side * 0.3, 0.02), (side * 0.66, 0.4), (side * 0.66, 0.9)], color, width)
        p.ellipse(side * 0.7, 0.92, 0.19, 0.1, CREAM)
        p.ellipse(side * spread, -0.98, 0.15, 0.13, CREAM)
    p.ellipse(0, -0.16, 0.4, 0.48, "main")
    p.ellipse(0, -0.18, 0.2, 0.3, CREAM, outline=False)
    for side in (-1, 1):
        p.polygon([(side * 0.44, 0.5), (side * 0.4, 0.98), (side * 0.06, 0.74)], "main")
    p.ellipse(0, 0.46, 0.48, 0.36, "main")
    for side in (-1, 1):
        p.eye(side * 0.2, 0.5, 0.12)
        p.curve([(side * 0.26, 0.32), (side * 0.56, 0.36)], width=0.035)
    p.polygon([(-0.08, 0.36), (0.08, 0.36), (0, 0.26)], (240, 130, 140), outline=False)


def plain(back: np.ndarray, layer: np.ndarray, mask: np.ndarray, centre: Point) -> np.ndarray:
    """The object on its background, [n, n, 3] floats."""
    return np.where(mask[..., None], layer, back)


def poster(back: np.ndarray, layer: np.ndarray, mask: np.ndarray, centre: Point) -> np.ndarray:
    """A travel poster in five flat inks: rays from behind the object, a pale halo round it, a pale
    frame.
    """
    n = len(back)
    y, x = np.mgrid[0:n, 0:n] / n
    rays = (np.arctan2(y - centre[1], x - centre[0]) / (2 * np.pi) * 14) % 1 < 0.5
    tone = (
        np.asarray(
            Image.fromarray(back.astype(np.uint8)).convert("L").filter(ImageFilter.MedianFilter(9))
        )
        / 255.0
    )
    low, high = np.percentile(tone, (3, 97))
    tone = np.clip((tone - low) / (high - low), 0, 1) * 0.74 + 0.26 * rays * (y < centre[1] + 0.12)
    out = POSTER[np.digitize(tone, (0.24, 0.44, 0.66, 0.86))]
    halo = (
        np.asarray(Image.fromarray(mask).convert("L").filter(ImageFilter.GaussianBlur(n / 90))) > 40
    )
    out[halo] = POSTER[4]
    out[mask] = POSTER[np.argmin(((layer[mask][:, None] - POSTER) ** 2).sum(-1), -1)]
    edge = 0.035
    out[(x < edge) | (x > 1 - edge) | (y < edge) | (y > 1 - edge)] = POSTER[4]
    return out


def neon(back: np.ndarray, layer: np.ndarray, mask: np.ndarray, centre: Point) -> np.ndarray:
    """Two neon tubes in the dark, cyan from the left and magenta from the right, with bright rims
    along the object.
    """
    n = len(back)
    y, x = np.mgrid[0:n, 0:n] / n
    picture = plain(back, layer, mask, centre)
    side = (1 / (1 + np.exp(-(x - centre[0]) * 14)))[..., None]
    light = CYAN * (1 - side) + MAGENTA * side
    grey = picture.mean(-1, keepdims=True) / 255
    near = np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / 0.16)[..., None]
    out = np.where(
        mask[..., None],
        (0.24 + 0.74 * grey) * light * 0.88 + 0.12 * picture,
        (0.16 + 0.62 * near) * (0.1 + 0.9 * grey) * light,
    )
    step = round(0.024 * n)
    for shift, color in ((step, CYAN), (-step, MAGENTA)):
        rim = (
            Image.fromarray(mask & ~np.roll(mask, shift, 1))
            .convert("L")
            .filter(ImageFilter.GaussianBlur(n / 200))
        )
        rim = np.asarray(rim)[..., None] / 255
        out = out * (1 - rim) + (0.35 * 255 + 0.65 * color) * rim
    return out
