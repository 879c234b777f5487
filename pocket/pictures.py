"""Pictures for the VAE: far more than the world, because what a VAE cannot draw, no fine-tuning can
learn.

A third scenes (half of them recoloured), a third free drawings (overlapping shapes, lines and world
objects in any colour and pattern), a third dead leaves, whose statistics are near those of
photographs (Lee, Mumford and Huang 2001). All from seeds.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .objects import CLASSES
from .pen import PATTERNS, SUPERSAMPLE, Frame, Point, Rgb, as_rgb, pattern_mask
from .world import SIZE, Identity, draw_object, render, sample_scene

T = TypeVar("T")


def any_rgb(rng: np.random.Generator) -> Rgb:
    """A random RGB colour, vivid, pale, dark or grey."""
    rgb = rng.integers(0, 256, 3)
    if rng.random() < 0.25:
        return as_rgb(rgb * 0.25 + rng.integers(0, 192))
    return as_rgb(rgb)


def background(rng: np.random.Generator, n: int) -> Image.Image:
    """A canvas of n x n pixels: flat, or a gradient between two colours in any direction."""
    if rng.random() < 0.35:
        return Image.new("RGB", (n, n), any_rgb(rng))
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:n, 0:n] / n - 0.5
    t = np.clip((x * np.cos(angle) + y * np.sin(angle)) + 0.5, 0, 1)[..., None]
    return Image.fromarray(
        (np.asarray(any_rgb(rng)) * (1 - t) + np.asarray(any_rgb(rng)) * t).astype(np.uint8)
    )


def _blob(rng: np.random.Generator, n: int) -> list[Point]:
    """The outline of a random shape: polygon, star or smooth blob, as points in pixels."""
    k = int(rng.integers(3, 14))
    angle = np.sort(rng.uniform(0, 2 * np.pi, k))
    radius = n * np.exp(rng.uniform(np.log(0.04), np.log(0.5))) * rng.uniform(0.5, 1, k)
    cx, cy = rng.uniform(0, n, 2)
    return [(cx + r * np.cos(t), cy + r * np.sin(t)) for r, t in zip(radius, angle)]


def free_drawing(rng: np.random.Generator, size: int = SIZE) -> Image.Image:
    """Overlapping shapes, lines and world objects in any colour and pattern."""
    n = size * SUPERSAMPLE
    image = background(rng, n)
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(3, 14))):
        what = rng.random()
        if what < 0.16:
            identity = Identity(
                str(rng.choice(list(CLASSES))),
                any_rgb(rng),
                any_rgb(rng),
                str(rng.choice(PATTERNS)),
                float(rng.uniform(0.15, 0.45)),
                a=rng.random(),
                b=rng.random(),
                stretch=rng.uniform(0.7, 1.3),
            )
            draw_object(
                image,
                identity,
                Frame(
                    rng.uniform(0.1, 0.9),
                    rng.uniform(0.1, 0.9),
                    rng.uniform(0.12, 0.55),
                    bool(rng.random() < 0.5),
                ),
            )
        elif what < 0.36:
            points = [tuple(p) for p in rng.uniform(0, n, (int(rng.integers(2, 5)), 2))]
            draw.line(
                points,
                fill=any_rgb(rng),
                width=int(n * np.exp(rng.uniform(np.log(0.008), np.log(0.08)))),
                joint="curve",
            )
        elif what < 0.5:
            mask = Image.new("L", (n, n), 0)
            ImageDraw.Draw(mask).polygon(_blob(rng, n), fill=255)
            kind = str(rng.choice(PATTERNS[1:]))
            tile = np.where(
                pattern_mask(kind, n, n * rng.uniform(0.03, 0.12), rng.random())[..., None],
                np.array(any_rgb(rng), np.uint8),
                np.array(any_rgb(rng), np.uint8),
            )
            image.paste(Image.fromarray(tile), (0, 0), mask)
        elif what < 0.75:
            outline = any_rgb(rng) if rng.random() < 0.5 else None
            draw.polygon(
                _blob(rng, n), fill=any_rgb(rng), outline=outline, width=int(rng.integers(2, 10))
            )
        else:
            (x, y), rx, ry = (
                rng.uniform(0, n, 2),
                *(n * np.exp(rng.uniform(np.log(0.02), np.log(0.4), 2))),
            )
            outline = any_rgb(rng) if rng.random() < 0.4 else None
            shape = draw.ellipse if rng.random() < 0.6 else draw.rectangle
            shape(
                [x - rx, y - ry, x + rx, y + ry],
                fill=any_rgb(rng),
                outline=outline,
                width=int(rng.integers(2, 10)),
            )
    return image.resize((size, size), Image.Resampling.BOX)


def _cloud(rng: np.random.Generator, n: int, power: float) -> np.ndarray:
    """Noise with a 1/f^power amplitude spectrum, zero mean and unit deviation, [n, n]."""
    f = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.fftfreq(n)[None])
    f[0, 0] = 1
    spectrum = np.fft.fft2(rng.normal(size=(n, n))) / f**power
    spectrum[0, 0] = 0
    cloud = np.fft.ifft2(spectrum).real
    return cloud / cloud.std()


def dead_leaves(rng: np.random.Generator, size: int = SIZE) -> Image.Image:
    """Opaque shapes whose areas follow a power law, each shaded and textured: the classic stand-in
    for photographs.
    """
    n = 2 * size
    cloud = _cloud(rng, n, rng.uniform(0.8, 1.6))
    tilt = _cloud(rng, n, 2.0)
    palette = [np.asarray(any_rgb(rng)) for _ in range(int(rng.integers(2, 8)))]
    mean = np.mean(palette, 0)
    grey = rng.uniform(0.2, 1.0)  # photographs are seldom vivid
    palette = [grey * p + (1 - grey) * p.mean() for p in palette]
    image = Image.fromarray((np.ones((n, n, 1)) * mean).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    smallest = rng.uniform(0.02, 0.12)
    for r in np.sort(
        (smallest**-2 + rng.random(int(rng.integers(30, 220))) * (0.5**-2 - smallest**-2)) ** -0.5
    )[::-1]:
        x, y = rng.uniform(0, n, 2)
        rgb = as_rgb(
            np.clip(
                palette[rng.integers(len(palette))] * rng.uniform(0.5, 1.3) + rng.normal(0, 12, 3),
                0,
                255,
            )
        )
        if rng.random() < 0.5:
            draw.ellipse([x - r * n, y - r * n * 0.8, x + r * n, y + r * n * 0.8], fill=rgb)
        else:
            draw.polygon(
                [
                    (x + r * n * np.cos(t), y + r * n * np.sin(t))
                    for t in np.sort(rng.uniform(0, 6.28, 5))
                ],
                fill=rgb,
            )
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 2)))).astype(
        np.float32
    )
    pixels += (cloud * rng.uniform(2, 14) + tilt * rng.uniform(5, 40))[..., None] * rng.uniform(
        0.7, 1.3, 3
    )
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).resize(
        (size, size), Image.Resampling.BOX
    )


def picture(seed: int, size: int = SIZE) -> Image.Image:
    """The picture of a seed, an RGB image of `size` x `size` pixels."""
    rng = np.random.default_rng([7, seed])
    kind = seed % 3
    if kind == 0:
        image = render(sample_scene(seed), size)
        if rng.random() < 0.5:
            pixels = np.asarray(image)[..., rng.permutation(3)]
            image = Image.fromarray(
                255 - pixels if rng.random() < 0.5 else np.ascontiguousarray(pixels)
            )
        return image
    return free_drawing(rng, size) if kind == 1 else dead_leaves(rng, size)


def pool(make: Callable[[T, int], Image.Image], items: Sequence[T], size: int = SIZE) -> np.ndarray:
    """`make(item, size)` for every item, on all cores, as a uint8 array [len(items), size, size,
    3].
    """
    if len(items) < 64:
        return np.stack([np.asarray(make(item, size)) for item in items])
    with ProcessPoolExecutor(os.cpu_count()) as workers:
        done = workers.map(make, items, [size] * len(items), chunksize=64)
        return np.stack([np.asarray(image) for image in done])


if __name__ == "__main__":
    import sys

    sheet = Image.new("RGB", (12 * 96, 6 * 96))
    for i in range(72):
        sheet.paste(picture(i, 96), (i % 12 * 96, i // 12 * 96))
    sheet.save(sys.argv[1])
