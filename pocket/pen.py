"""A pen for the pocket world: shapes in an object's own units, patterned fills, one outline style.

An object lives in the square [-1, 1] x [-1, 1], x to the right, y *down*, its foot on y = 1. The
pen maps that square onto the canvas (position, size, facing), so that drawing code never sees
pixels.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SUPERSAMPLE = 4
PATTERNS = ("plain", "stripes", "bands", "dots", "checks", "split", "diagonal")


def shade(rgb, factor):
    """`rgb` (three 0-255 numbers) made darker (factor < 1) or lighter (factor > 1, towards white)."""
    if factor <= 1:
        return tuple(int(c * factor) for c in rgb)
    return tuple(int(c + (255 - c) * (factor - 1)) for c in rgb)


def pattern_mask(kind, size, period, phase=0.0):
    """Boolean array [size, size]: where the second colour of a pattern shows. `period` is in
    pixels.

    The second colour has about a third of the surface, so that "a red robot" is red whatever its
    pattern.
    """
    y, x = (np.mgrid[0:size, 0:size] + phase * period) / period
    if kind == "stripes":
        return x % 2 >= 1.35
    if kind == "bands":
        return y % 2 >= 1.35
    if kind == "diagonal":
        return (x + y) / 1.4 % 2 >= 1.35
    if kind == "checks":
        return (x % 2 >= 0.9) & (y % 2 >= 0.9)
    if kind == "dots":
        dx, dy = (x + (y // 1.6 % 2) * 0.8) % 1.6 - 0.8, y % 1.6 - 0.8
        return dx**2 + dy**2 < 0.27
    if kind == "split":
        return x > 0.64 * size / period
    return np.zeros((size, size), bool)


@dataclass(frozen=True)
class Frame:
    """Where an object stands: centre (x, y) and half-size, in canvas widths; `flip` makes it face
    left.
    """

    x: float
    y: float
    half: float
    flip: bool = False
    stretch: float = 1.0


class Pen:
    """Draws on an RGB canvas in object units. `main` and `second` are the identity's colours,
    `pattern` fills the body.
    """

    def __init__(self, image, frame, main, second, pattern="plain", period=0.25, line=0.055):
        self.image, self.frame, self.main, self.second = image, frame, main, second
        self.draw = ImageDraw.Draw(image)
        self.size = image.width
        self.unit = frame.half * self.size
        self.width = max(1, round(line * self.unit))
        self.ink = shade(main, 0.28)
        self.fill = None
        if pattern != "plain":
            left, top = frame.x * self.size - self.unit, frame.y * self.size - self.unit
            side = max(2, math.ceil(2 * self.unit))
            mask = pattern_mask(pattern, side, max(2.0, period * self.unit))
            tile = np.where(mask[..., None], np.uint8(second), np.uint8(main))
            if frame.flip:
                tile = tile[:, ::-1]
            self.fill = Image.new("RGB", image.size, main)
            self.fill.paste(Image.fromarray(np.ascontiguousarray(tile)), (round(left), round(top)))

    def at(self, x, y):
        """Object units to canvas pixels."""
        f = self.frame
        side = -1 if f.flip else 1
        return (f.x * self.size + side * x * self.unit * f.stretch, f.y * self.size + y * self.unit)

    def _paint(self, method, box, color, outline, **extra):
        width = self.width if outline else 0
        ink = self.ink if outline is True else outline
        if color == "body" and self.fill is not None:
            mask = Image.new("L", self.image.size, 0)
            getattr(ImageDraw.Draw(mask), method)(box, fill=255, **extra)
            self.image.paste(self.fill, (0, 0), mask)
            color = None
        elif color in ("body", "main"):
            color = self.main
        elif color == "second":
            color = self.second
        if method == "polygon":
            if color is not None:
                self.draw.polygon(box, fill=color)
            if width:
                self.draw.line(list(box) + list(box[:2]), fill=ink, width=width, joint="curve")
        elif color is not None or width:
            getattr(self.draw, method)(
                box, fill=color, outline=ink if width else None, width=width, **extra
            )

    def polygon(self, points, color="body", outline=True):
        self._paint("polygon", [self.at(*p) for p in points], color, outline)

    def _box(self, x, y, rx, ry):
        (ax, ay), (bx, by) = self.at(x - rx, y - ry), self.at(x + rx, y + ry)
        return [min(ax, bx), min(ay, by), max(ax, bx), max(ay, by)]

    def ellipse(self, x, y, rx, ry, color="body", outline=True):
        self._paint("ellipse", self._box(x, y, rx, ry), color, outline)

    def box(self, x, y, rx, ry, color="body", outline=True, round_=0.12):
        box = self._box(x, y, rx, ry)
        room = (
            min(box[2] - box[0], box[3] - box[1]) / 2 - self.width - 1
        )  # Pillow refuses corners that meet
        self._paint(
            "rounded_rectangle", box, color, outline, radius=max(0, min(round_ * self.unit, room))
        )

    def curve(self, points, color=None, width=0.1):
        """A rounded line through `points`, `width` in object units; without a colour, in ink."""
        pixels = [self.at(*p) for p in points]
        w = max(1, round(width * self.unit))
        color = {"main": self.main, "second": self.second, None: self.ink}.get(color, color)
        self.draw.line(pixels, fill=color, width=w, joint="curve")
        for x, y in (pixels[0], pixels[-1]):
            self.draw.ellipse([x - w / 2, y - w / 2, x + w / 2, y + w / 2], fill=color)

    def eye(self, x, y, r, style="round"):
        """One eye, in one of the styles that identities have."""
        if style == "sleepy":
            self.curve([(x - r, y), (x, y + r * 0.6), (x + r, y)], width=r * 0.7)
            return
        if style == "visor":
            self.box(x, y, r * 1.3, r * 0.8, (40, 46, 60), outline=False)
            self.box(x, y, r * 0.9, r * 0.25, (130, 240, 250), outline=False, round_=0.02)
            return
        white = (255, 214, 80) if style == "amber" else (250, 250, 250)
        self.ellipse(x, y, r, r, white, outline=True)
        self.ellipse(x + 0.15 * r, y + 0.1 * r, r * 0.5, r * 0.55, (25, 25, 35), outline=False)
