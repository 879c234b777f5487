"""A pen for the pocket world: shapes in an object's own units, patterned fills, one outline style.

An object lives in the square [-1, 1] x [-1, 1], x to the right, y *down*, its foot on y = 1. The
pen maps that square onto the canvas (position, size, facing), so that drawing code never sees
pixels.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw

SUPERSAMPLE = 4
PATTERNS = ("plain", "stripes", "bands", "dots", "checks", "split", "diagonal")

Point = tuple[float, float]
Rgb = tuple[int, int, int]  # 0-255
Color = Literal["body", "main", "second"] | Rgb  # one of the identity's own, or any


def as_rgb(values: Iterable[float]) -> Rgb:
    """Three numbers as a colour, cut to integers."""
    red, green, blue = values
    return int(red), int(green), int(blue)


def shade(rgb: Rgb, factor: float) -> Rgb:
    """`rgb` made darker (factor < 1) or lighter (factor > 1)."""
    if factor <= 1:
        return as_rgb(c * factor for c in rgb)
    return as_rgb(c + (255 - c) * (factor - 1) for c in rgb)


def near(rng: np.random.Generator, rgb: Rgb, amount: float = 10) -> Rgb:
    """A random colour near `rgb`, each channel off by a normal deviation of `amount`."""
    return as_rgb(np.clip(c + d, 0, 255) for c, d in zip(rgb, rng.normal(0, amount, 3)))


def pattern_mask(kind: str, size: int, period: float, phase: float = 0.0) -> np.ndarray:
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

    def __init__(
        self,
        image: Image.Image,
        frame: Frame,
        main: Rgb,
        second: Rgb,
        pattern: str = "plain",
        period: float = 0.25,
        line: float = 0.055,
    ) -> None:
        self.image, self.frame, self.main, self.second = image, frame, main, second
        self.draw = ImageDraw.Draw(image)
        self.size = image.width
        self.unit = frame.half * self.size
        self.width = max(1, round(line * self.unit))
        self.ink = shade(main, 0.28)
        self.fill: Image.Image | None = None
        if pattern != "plain":
            left, top = frame.x * self.size - self.unit, frame.y * self.size - self.unit
            side = max(2, math.ceil(2 * self.unit))
            mask = pattern_mask(pattern, side, max(2.0, period * self.unit))
            tile = np.where(mask[..., None], np.array(second, np.uint8), np.array(main, np.uint8))
            if frame.flip:
                tile = tile[:, ::-1]
            self.fill = Image.new("RGB", image.size, main)
            self.fill.paste(Image.fromarray(np.ascontiguousarray(tile)), (round(left), round(top)))

    def at(self, x: float, y: float) -> Point:
        """Object units to canvas pixels."""
        f = self.frame
        side = -1 if f.flip else 1
        return (f.x * self.size + side * x * self.unit * f.stretch, f.y * self.size + y * self.unit)

    def _rgb(self, color: Color) -> Rgb:
        if color in ("body", "main"):
            return self.main
        return self.second if color == "second" else color

    def _paint(self, method: str, box: list, color: Color, outline: bool, **extra: Any) -> None:
        width = self.width if outline else 0
        fill: Rgb | None = None
        if color == "body" and self.fill is not None:
            mask = Image.new("L", self.image.size, 0)
            getattr(ImageDraw.Draw(mask), method)(box, fill=255, **extra)
            self.image.paste(self.fill, (0, 0), mask)
        else:
            fill = self._rgb(color)
        if method == "polygon":
            if fill is not None:
                self.draw.polygon(box, fill=fill)
            if width:
                self.draw.line(box + box[:2], fill=self.ink, width=width, joint="curve")
        elif fill is not None or width:
            getattr(self.draw, method)(
                box, fill=fill, outline=self.ink if width else None, width=width, **extra
            )

    def polygon(self, points: Iterable[Point], color: Color = "body", outline: bool = True) -> None:
        self._paint("polygon", [self.at(*p) for p in points], color, outline)

    def _box(self, x: float, y: float, rx: float, ry: float) -> list[float]:
        (ax, ay), (bx, by) = self.at(x - rx, y - ry), self.at(x + rx, y + ry)
        return [min(ax, bx), min(ay, by), max(ax, bx), max(ay, by)]

    def ellipse(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float,
        color: Color = "body",
        outline: bool = True,
    ) -> None:
        self._paint("ellipse", self._box(x, y, rx, ry), color, outline)

    def box(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float,
        color: Color = "body",
        outline: bool = True,
        round_: float = 0.12,
    ) -> None:
        box = self._box(x, y, rx, ry)
        room = (
            min(box[2] - box[0], box[3] - box[1]) / 2 - self.width - 1
        )  # Pillow refuses corners that meet
        self._paint(
            "rounded_rectangle", box, color, outline, radius=max(0, min(round_ * self.unit, room))
        )

    def curve(
        self, points: Sequence[Point], color: Color | None = None, width: float = 0.1
    ) -> None:
        """A rounded line through `points`, `width` in object units; without a colour, in ink."""
        pixels = [self.at(*p) for p in points]
        w = max(1, round(width * self.unit))
        fill = self.ink if color is None else self._rgb(color)
        self.draw.line(pixels, fill=fill, width=w, joint="curve")
        for x, y in (pixels[0], pixels[-1]):
            self.draw.ellipse([x - w / 2, y - w / 2, x + w / 2, y + w / 2], fill=fill)

    def eye(self, x: float, y: float, r: float, style: str = "round") -> None:
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
