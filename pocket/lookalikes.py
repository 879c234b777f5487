"""Look-alikes for the identity encoder: groups of subjects that share backgrounds and differ in
what makes them themselves.

A group is four subjects, each in the same five scenes: one, two that differ from it in a colour, a
pattern, an accessory or a part, and a stranger. An encoder that tells them apart on one background,
and knows them on another, reads identity (the NearID test, arXiv 2604.01973). Subjects are world
identities, world identities in free colours, and *creatures*: things assembled from random parts,
so that the judge has seen that subjects exist which no class of the world describes.

    python -m pocket.lookalikes sheet.png      # draws groups to look at
"""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from .objects import ACCESSORIES
from .pen import PATTERNS, SUPERSAMPLE, Color, Frame, Pen, Point, Rgb, near
from .pictures import any_rgb, background, dead_leaves
from .places import PAINTERS
from .world import (
    COLORS,
    EYES,
    SIZE,
    Identity,
    draw_object,
    render,
    sample_identity,
    sample_scene,
)

MEMBERS, SCENES = 4, 5
NOBODY = Identity("robot", (0, 0, 0), (0, 0, 0))  # stands in a creature's scene, never drawn
SHAPES = ("ellipse", "box", "triangle", "star", "blob")
# shape, x, y, rx, ry, colour index, mirrored, turn
Part = tuple[str, float, float, float, float, int, bool, float]


@dataclass(frozen=True)
class Creature:
    """A subject assembled from `parts`, largest first, in four colours."""

    parts: tuple[Part, ...]
    palette: tuple[Rgb, ...]
    pattern: str
    period: float
    eyes: str | None
    eye_at: tuple[float, float, float]


Subject = Identity | Creature


def _points(shape: str, x: float, y: float, rx: float, ry: float, turn: float) -> list[Point]:
    """The outline of a part as points in object units; `turn` in radians."""
    k = {"triangle": 3, "star": 10, "blob": 7}[shape]
    reach = [
        1.0 if shape == "triangle" or i % 2 == 0 else (0.45 if shape == "star" else 0.75)
        for i in range(k)
    ]
    return [
        (
            x + rx * r * np.cos(turn + 2 * np.pi * i / k),
            y + ry * r * np.sin(turn + 2 * np.pi * i / k),
        )
        for i, r in enumerate(reach)
    ]


def _part(rng: np.random.Generator, first: bool = False) -> Part:
    rx, ry = (
        rng.uniform(0.4, 0.75, 2) if first else np.exp(rng.uniform(np.log(0.1), np.log(0.45), 2))
    )
    x, y = (
        (0, rng.uniform(-0.1, 0.3)) if first else (rng.uniform(-0.7, 0.7), rng.uniform(-0.85, 0.85))
    )
    shape = str(rng.choice(SHAPES[:2] if first and rng.random() < 0.7 else SHAPES))
    color = 0 if first else int(rng.integers(0, 5))
    return (
        shape,
        float(x),
        float(y),
        float(rx),
        float(ry),
        color,
        bool(rng.random() < 0.6),
        float(rng.uniform(0, 6.28)),
    )


def _any_color(rng: np.random.Generator) -> Rgb:
    """A colour of the world or any other."""
    return (
        near(rng, COLORS[str(rng.choice(list(COLORS)))], 14) if rng.random() < 0.5 else any_rgb(rng)
    )


def _palette(rng: np.random.Generator) -> tuple[Rgb, ...]:
    """Four colours of which the first two can be told apart."""
    colors = [_any_color(rng) for _ in range(4)]
    while np.abs(np.subtract(colors[0], colors[1])).sum() < 120:
        colors[1] = _any_color(rng)
    return tuple(colors)


def sample_creature(rng: np.random.Generator) -> Creature:
    """A random creature: a body, two to seven parts (most of them mirrored), perhaps eyes."""
    parts = tuple(_part(rng, first=i == 0) for i in range(int(rng.integers(3, 9))))
    eyes = str(rng.choice(EYES)) if rng.random() < 0.7 else None
    return Creature(
        parts,
        _palette(rng),
        str(rng.choice(PATTERNS)),
        float(rng.uniform(0.15, 0.4)),
        eyes,
        (
            float(rng.uniform(0.1, 0.3)),
            float(rng.uniform(-0.5, 0.1)),
            float(rng.uniform(0.08, 0.17)),
        ),
    )


def draw_creature(image: Image.Image, creature: Creature, frame: Frame) -> None:
    """Draw the creature into `image` at `frame`."""
    main, second, *others = creature.palette
    pen = Pen(image, frame, main, second, creature.pattern, creature.period)
    colors: tuple[Color, ...] = ("body", "second", "main", *others)
    for shape, x, y, rx, ry, color, mirrored, turn in creature.parts:
        for side in (1, -1) if mirrored and x else (1,):
            if shape in ("ellipse", "box"):
                getattr(pen, shape)(side * x, y, rx, ry, colors[color])
            else:
                pen.polygon(
                    [(side * px, py) for px, py in _points(shape, x, y, rx, ry, turn)],
                    colors[color],
                )
    if creature.eyes:
        x, y, r = creature.eye_at
        for side in (1, -1):
            pen.eye(side * x, y, r, creature.eyes)


def sample_subject(rng: np.random.Generator) -> Subject:
    """A subject: a richly dressed world identity, one in free colours, or a creature."""
    if rng.random() < 0.35:
        return sample_creature(rng)
    identity, _ = sample_identity(rng, plain=0.3)
    if rng.random() < 0.45:
        main, second, third, _ = _palette(rng)
        identity = replace(identity, main=main, second=second, accessory_color=third)
    return identity


def lookalike(rng: np.random.Generator, subject: Subject) -> Subject:
    """A subject that differs from `subject` in one or two visible things."""
    if isinstance(subject, Creature):
        if rng.random() < 0.5:
            colors = list(_palette(rng))
            keep = int(rng.integers(0, 2))
            colors[keep] = subject.palette[keep]
            return replace(subject, palette=tuple(colors))
        half = 1 + len(subject.parts) // 2
        parts = subject.parts[:half] + tuple(
            _part(rng) for _ in range(len(subject.parts) - half + 1)
        )
        return replace(subject, parts=parts, pattern=str(rng.choice(PATTERNS)))
    what, other = rng.random(), sample_identity(rng, kind=subject.kind, plain=0.0)[0]
    if what < 0.35:
        color = _any_color(rng)
        while np.abs(np.subtract(color, subject.main)).sum() < 110:
            color = _any_color(rng)
        return replace(subject, main=color)
    pattern = str(rng.choice([p for p in PATTERNS if p != subject.pattern]))
    if what < 0.7:
        return replace(subject, pattern=pattern, second=other.second)
    accessory = str(rng.choice([name for name in ACCESSORIES if name != subject.accessory]))
    return replace(
        subject,
        accessory=accessory,
        accessory_color=other.accessory_color,
        second=other.second,
        eyes=other.eyes,
        a=other.a,
        b=other.b,
    )


def picture(
    subject: Subject, seed: int, moved: np.random.Generator | None = None, size: int = SIZE
) -> Image.Image:
    """`subject` in the scene of `seed`: the same background for every subject; with a generator
    `moved`, elsewhere on it.
    """
    known = subject if isinstance(subject, Identity) else NOBODY
    scene = sample_scene(seed, identity=known, salt="judge")
    if moved is not None:
        scene = replace(
            scene,
            x=float(moved.uniform(0.3, 0.7)),
            half=float(moved.uniform(0.24, 0.42)),
            drop=float(moved.uniform(0.04, 0.24)),
            flip=bool(moved.random() < 0.5),
        )
    rng = np.random.default_rng([1, 1, seed])
    kind = rng.random()
    if kind < 0.6 and isinstance(subject, Identity):
        return render(scene, size)
    n, horizon = size * SUPERSAMPLE, 0.6
    if kind < 0.6:
        image = Image.new("RGB", (n, n))
        horizon = PAINTERS[scene.place](image, np.random.default_rng(scene.seed))
    else:
        image = background(rng, n) if kind < 0.82 else dead_leaves(rng, size).resize((n, n))
    foot = min(0.95, horizon + scene.drop)
    frame = Frame(scene.x, foot - scene.half, scene.half, scene.flip)
    if isinstance(subject, Identity):
        draw_object(image, subject, frame)
    else:
        draw_creature(image, subject, frame)
    return image.resize((size, size), Image.Resampling.BOX)


def group(number: int, size: int = SIZE) -> np.ndarray:
    """The pictures of a group, uint8 [MEMBERS, SCENES, size, size, 3]; the number decides
    everything.
    """
    rng = np.random.default_rng([1, 2, number])
    first = sample_subject(rng)
    members = [first, lookalike(rng, first), lookalike(rng, first), sample_subject(rng)]
    return np.stack(
        [
            [
                np.asarray(
                    picture(subject, 16 * number + s, rng if rng.random() < 0.5 else None, size)
                )
                for s in range(SCENES)
            ]
            for subject in members
        ]
    )


if __name__ == "__main__":
    import sys

    rows = [np.concatenate(list(np.concatenate(list(group(10**7 + g)), 1)), 1) for g in range(10)]
    Image.fromarray(np.concatenate(rows, 0)).save(sys.argv[1])
