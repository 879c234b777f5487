"""A subject drawn in a way that no file of the project knows: a patchwork owl toy, shaded, in eight
scenes of its own.

    python tests/foreign.py FOLDER

It imports nothing of `lib`, and only numpy draws: distance fields with soft edges, light from the
upper left, felt grain, stitches. None of its scenes is one of the pocket world's places, so that
each of those is a new place to this subject.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

SCENES = ("table", "shelf", "lawn", "quilt", "window", "brick", "pier", "tiles")
HELD_OUT = ("pier", "quilt")
PATCHES = np.array(
    [
        (196, 62, 70),
        (236, 178, 60),
        (62, 108, 148),
        (120, 156, 96),
        (226, 140, 120),
        (108, 70, 122),
    ],
    float,
)


class Canvas:
    """Float RGB [n, n, 3] with coordinates; everything is blended in by a coverage between 0 and 1."""

    def __init__(self, n, seed):
        self.n, self.rng = n, np.random.default_rng(seed)
        self.y, self.x = (np.mgrid[0:n, 0:n] + 0.5) / n
        self.rgb = np.zeros((n, n, 3))

    def noise(self, cells, seed):
        """Smooth noise in [-1, 1]: random values on a grid of `cells`, interpolated."""
        grid = np.random.default_rng(seed).uniform(-1, 1, (cells + 2, cells + 2))
        fy, fx = self.y * cells, self.x * cells
        iy, ix = fy.astype(int), fx.astype(int)
        ty, tx = (3 * (f - i) ** 2 - 2 * (f - i) ** 3 for f, i in ((fy, iy), (fx, ix)))
        top = grid[iy, ix] * (1 - tx) + grid[iy, ix + 1] * tx
        return top * (1 - ty) + (grid[iy + 1, ix] * (1 - tx) + grid[iy + 1, ix + 1] * tx) * ty

    def blend(self, coverage, rgb):
        self.rgb = (
            self.rgb * (1 - coverage[..., None]) + np.asarray(rgb, float) * coverage[..., None]
        )


def background(c, scene):
    """Paint one of the scenes over the whole canvas."""
    x, y = c.x, c.y
    low = (y > 0.68).astype(float)
    grain = c.noise(60, 5) * 5
    if scene == "table":
        c.blend(np.ones_like(x), (226, 216, 196))
        c.blend(low, (150, 100, 62))
        c.blend(low * (0.5 + 0.5 * np.sin(y * 160 + 3 * c.noise(6, 1))) * 0.3, (96, 60, 36))
    elif scene == "shelf":
        c.blend(np.ones_like(x), (74, 52, 44))
        books = np.random.default_rng(3).uniform(50, 220, (16, 3))
        spine = np.minimum((x * 15 + 0.3).astype(int), 15)
        c.blend(((y > 0.1 + 0.08 * (spine % 3)) & (y < 0.68)).astype(float), books[spine])
        c.blend(low, (122, 84, 56))
    elif scene == "lawn":
        c.blend(np.ones_like(x), (196, 220, 236))
        c.blend((y > 0.4 + 0.03 * c.noise(8, 2)).astype(float), (92, 140, 70))
        c.blend(np.clip(c.noise(50, 4), 0, 1) * (y > 0.45), (140, 184, 90))
    elif scene == "quilt":
        square = ((x * 5).astype(int) + (y * 5).astype(int)) % 2
        c.blend(np.ones_like(x), (212, 220, 232))
        c.blend(square.astype(float), (160, 178, 208))
        grain = grain + 12 * np.abs(np.sin(x * 5 * np.pi) * np.sin(y * 5 * np.pi)) - 6
    elif scene == "window":
        c.blend(np.ones_like(x), (238, 232, 220))
        pane = ((np.abs(x - 0.5) < 0.42) & (y < 0.62) & (np.abs(x - 0.5) > 0.02)).astype(float)
        c.blend(pane, (150, 190, 216))
        c.blend(pane * np.clip(c.noise(5, 8) * 1.4, 0, 1), (244, 246, 248))
        c.blend(low, (204, 190, 168))
    elif scene == "brick":
        row = (y * 14).astype(int)
        mortar = ((y * 14) % 1 < 0.12) | ((x * 7 + 0.5 * (row % 2)) % 1 < 0.06)
        c.blend(np.ones_like(x), (166, 92, 74))
        c.blend(mortar.astype(float), (206, 194, 182))
        c.blend((y > 0.76).astype(float), (134, 132, 128))
    elif scene == "pier":
        c.blend(np.ones_like(x), np.stack([236 - 60 * y, 170 + 20 * y, 170 + 50 * y], -1))
        c.blend((y > 0.5).astype(float), (70, 108, 132))
        c.blend(np.clip(c.noise(30, 9), 0, 1) * (y > 0.5), (120, 160, 176))
        c.blend(low, (132, 116, 104))
        c.blend(low * ((x * 9 + (x - 0.5) * (y - 0.7) * 9) % 1 < 0.08), (70, 60, 56))
    else:
        c.blend(np.ones_like(x), (216, 232, 226))
        c.blend(((x * 8 % 1 < 0.07) | (y * 8 % 1 < 0.07)).astype(float), (168, 196, 190))
        c.blend(low, (88, 94, 104))
    c.rgb += grain[..., None]


def oval(c, at, u, v, ru, rv):
    """Signed distance (object units, about) to an oval at (u, v) with radii (ru, rv)."""
    return (np.hypot((at[0] - u) / ru, (at[1] - v) / rv) - 1) * min(ru, rv)


def felt(c, distance, scale, rgb, round_=0.5):
    """Blend in a piece of felt: soft edge, lit from the upper left as if it were stuffed."""
    gy, gx = np.gradient(distance)
    size = np.hypot(gx, gy) + 1e-9
    rim = np.exp(np.minimum(distance, 0) / (0.22 * round_))
    light = 1 + (-0.34 * gx / size - 0.42 * gy / size) * rim * 0.9 - 0.12 * rim
    grain = 1 + 0.06 * c.noise(90, 11)
    c.blend(
        np.clip(0.5 - distance * scale * c.n, 0, 1),
        np.clip(np.asarray(rgb) * (light * grain)[..., None], 0, 255),
    )


def owl(c, x, y, scale, turn):
    """The owl itself: six felt patches, button eyes that differ, a beak, tufts and crossed stitches
    along the seams.
    """
    dx, dy = (c.x - x) / scale, (c.y - y) / scale
    at = (dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn))
    shadow = oval(c, (dx, dy), 0.12, 0.98, 0.86, 0.16)
    c.blend(0.45 * np.clip(0.2 - 9 * shadow, 0, 1), (20, 16, 22))
    for side in (-1, 1):
        felt(c, oval(c, at, side * 0.26, 0.94, 0.2, 0.1), scale, (238, 150, 50))
        tuft = np.maximum(
            np.abs(at[0] - side * (0.5 - 0.06 * (at[1] + 0.9))) - 0.36 * (at[1] + 1.02),
            -at[1] - 1.02,
        )
        felt(c, np.maximum(tuft, at[1] + 0.5), scale, PATCHES[2 if side < 0 else 0])
        felt(c, oval(c, at, side * 0.7, 0.34, 0.22, 0.44), scale, PATCHES[0 if side < 0 else 3])
    body = np.minimum(oval(c, at, 0, 0.34, 0.68, 0.64), oval(c, at, 0, -0.34, 0.64, 0.46))
    seeds = np.array(
        [(-0.4, -0.5), (0.42, -0.46), (-0.36, 0.16), (0.34, 0.2), (-0.14, 0.78), (0.5, 0.72)]
    )
    gaps = np.stack([np.hypot(at[0] - u, at[1] - v) for u, v in seeds])
    order = np.sort(gaps, 0)
    felt(c, body, scale, PATCHES[gaps.argmin(0)], 0.8)
    seam = (order[1] - order[0] < 0.035) & (body < -0.02)
    c.blend(0.9 * (seam & (np.sin((at[0] + at[1]) * 46) > -0.1)), (248, 240, 222))
    felt(c, oval(c, at, 0, 0.48, 0.3, 0.32), scale, (246, 232, 204))
    for v in (0.36, 0.5, 0.64):
        c.blend(
            0.8 * ((np.abs(at[1] - v - 0.05 * np.cos(at[0] * 32)) < 0.018) & (np.abs(at[0]) < 0.2)),
            (150, 100, 80),
        )
    for side, ring, iris in (
        (-1, (252, 246, 228), (40, 150, 120)),
        (1, (252, 246, 228), (222, 112, 36)),
    ):
        felt(c, oval(c, at, side * 0.28, -0.36, 0.28, 0.28), scale, ring)
        felt(c, oval(c, at, side * 0.26, -0.35, 0.18, 0.18), scale, iris)
        felt(c, oval(c, at, side * 0.25, -0.34, 0.1, 0.1), scale, (24, 20, 26))
        c.blend(
            np.clip(0.5 - oval(c, at, side * 0.25 - 0.05, -0.4, 0.035, 0.035) * scale * c.n, 0, 1),
            (255, 255, 255),
        )
    beak = np.maximum(np.abs(at[0]) - 0.55 * (0.06 - at[1]), -at[1] - 0.24)
    felt(c, beak, scale, (244, 170, 40))


def draw(scene, size=256):
    """One picture of the owl, RGB, `size` x `size` pixels."""
    k = SCENES.index(scene)
    c = Canvas(2 * size, k)
    background(c, scene)
    owl(
        c,
        c.rng.uniform(0.42, 0.58),
        c.rng.uniform(0.5, 0.56),
        c.rng.uniform(0.31, 0.37),
        c.rng.uniform(-0.12, 0.12),
    )
    return Image.fromarray(np.clip(c.rgb, 0, 255).astype(np.uint8)).resize(
        (size, size), Image.Resampling.BOX
    )


def write(folder, size=256):
    """The eight pictures and a subject.json (class noun "bird", identifier "ohwx", two held out) in
    `folder`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for scene in SCENES:
        draw(scene, size).save(folder / f"{scene}.png")
    about = {
        "kind": "character",
        "class_noun": "bird",
        "identifier": "ohwx",
        "license": "CC0-1.0",
        "made_by": "tests/foreign.py",
        "held_out": [f"{s}.png" for s in HELD_OUT],
        "captions": {f"{s}.png": "a ohwx bird" for s in SCENES},
        "note": "A patchwork owl toy.",
    }
    (folder / "subject.json").write_text(json.dumps(about, indent=2), encoding="utf-8")
    return folder


if __name__ == "__main__":
    write(sys.argv[1])
