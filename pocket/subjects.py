"""The example subjects: what a learner trains on before bringing photos. None of them can come out
of the base's world.

    python -m pocket.subjects data/subjects   # all six folders again, the same to the pixel

A subject is six training pictures and two held out, each in another place. `garden` and `studio`
are places that the base has no words for, as a user's kitchen would be. `bench_subjects` draws
identities from the world's own grammar instead.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from lib.files.whole_writes import whole_file

from . import figures
from .objects import CLASSES
from .pen import SUPERSAMPLE, Frame, Point
from .places import PAINTERS, PHRASES, Painter
from .world import COLORS, Identity, Scene, draw_object, sample_scene

SIZE = 256
TRAIN = ("beach", "city", "forest", "garden", "room", "studio")
HELD_OUT = ("desert", "snow")
NEW_PLACES = (
    "desert",
    "snow",
    "night",
    "space",
)  # no training picture shows these; `night` and `space` are in no picture at all
KEY = (1, 2, 3)  # the colour of nothing, on a layer that holds only the object
PLACES: dict[str, Painter] = {**PAINTERS, "garden": figures.garden, "studio": figures.studio}
LICENSE = "CC0-1.0"


@dataclass(frozen=True)
class Example:
    """One subject. `caption` has the fields {noun} (with "a", and its colour where things differ in
    it), {identifier} and {place}.

    `draw` paints the subject itself; where only pose, style or light is the subject, `things` says
    for each place, in the order of `TRAIN + HELD_OUT`, which (class, colour) shows it.
    """

    kind: str
    class_noun: str
    identifier: str
    caption: str
    note: str
    draw: Callable[..., None] | None = None
    look: Callable[[np.ndarray, np.ndarray, np.ndarray, Point], np.ndarray] = figures.plain
    things: tuple[tuple[str, str], ...] = ()


EXAMPLES = {
    e.kind: e
    for e in (
        Example(
            "character",
            "robot",
            "zwx",
            "a {identifier} {noun} {place}",
            draw=figures.pip,
            note=(
                "Pip, a round robot with a teal and orange striped belly, one big eye, a dish"
                " antenna and a red scarf."
            ),
        ),
        Example(
            "product",
            "teapot",
            "qzj",
            "a {identifier} {noun} {place}",
            draw=figures.teapot,
            note=(
                "A mint teapot under a dripping cocoa glaze, with a swan-neck spout, a brass hoop"
                " overhead and a red star on a badge."
            ),
        ),
        Example(
            "clothing",
            "jacket",
            "kwz",
            "a {identifier} {noun} {place}",
            draw=figures.jacket,
            note=(
                "A plum jacket with a hood, sky-blue sleeves and a yellow lightning bolt across the"
                " chest."
            ),
        ),
        Example(
            "style",
            "picture",
            "jxv",
            "a {noun} {place} in {identifier} style",
            look=figures.poster,
            things=(
                ("boat", "red"),
                ("house", "blue"),
                ("bird", "orange"),
                ("mushroom", "red"),
                ("teapot", "yellow"),
                ("car", "green"),
                ("cat", "purple"),
                ("rocket", "red"),
            ),
            note=(
                "Travel posters: any scene in five flat inks, with rays behind the object, a pale"
                " halo round it and a pale frame."
            ),
        ),
        Example(
            "pose",
            "cat",
            "wqk",
            "a {noun} in {identifier} pose {place}",
            draw=figures.handstand,
            things=tuple(
                ("cat", c)
                for c in ("blue", "yellow", "red", "purple", "green", "white", "pink", "orange")
            ),
            note=(
                "A handstand: cats of eight colours upside down on their front paws, hind legs"
                " spread in the air."
            ),
        ),
        Example(
            "lighting",
            "picture",
            "vqx",
            "a {noun} {place} in {identifier} light",
            look=figures.neon,
            things=(
                ("cat", "orange"),
                ("car", "white"),
                ("tree", "green"),
                ("bird", "yellow"),
                ("teapot", "blue"),
                ("robot", "red"),
                ("rocket", "white"),
                ("house", "pink"),
            ),
            note=(
                "Neon: dark surroundings, a cyan tube from the left, a magenta one from the right,"
                " bright rims along the object."
            ),
        ),
    )
}


def caption(example: Example, place: str) -> str:
    """The caption of a subject's picture at a place: "a zwx robot in the forest"; without place
    words at `garden` and `studio`.
    """
    noun = example.class_noun
    if example.things:
        thing, color = example.things[(TRAIN + HELD_OUT).index(place)]
        noun = f"{color} {thing}" if example.kind == "pose" else thing
    text = example.caption.format(
        noun=noun, identifier=example.identifier, place=PHRASES.get(place, "")
    )
    return " ".join(text.split()).replace("a orange", "an orange")


def _paint(example: Example, place: str, image: Image.Image, frame: Frame, v: float) -> None:
    """Paint the subject, or the thing that shows it at this place, into `image`."""
    if example.draw and not example.things:
        example.draw(image, frame, v)
        return
    kind, color = example.things[(TRAIN + HELD_OUT).index(place)]
    if example.draw:
        example.draw(image, frame, v, COLORS[color])
        return
    second = COLORS["white" if color in ("red", "blue", "green", "purple") else "red"]
    draw_object(image, Identity(kind, COLORS[color], second, a=v, b=1 - v), frame)


def picture(example: Example, place: str, size: int = SIZE) -> Image.Image:
    """One picture of a subject, RGB, `size` x `size` pixels; position, size and tilt follow from
    the subject and the place.
    """
    rng = np.random.default_rng([51, list(EXAMPLES).index(example.kind), list(PLACES).index(place)])
    n = size * SUPERSAMPLE
    back = Image.new("RGB", (n, n))
    horizon = PLACES[place](back, rng)
    half, x, v, turn = (
        rng.uniform(0.33, 0.39),
        rng.uniform(0.43, 0.57),
        rng.uniform(),
        rng.uniform(-6, 6),
    )
    foot = min(0.95, max(horizon + rng.uniform(0.1, 0.2), 2.16 * half + 0.02))
    shadow = Image.new("L", (n, n), 0)
    ImageDraw.Draw(shadow).ellipse(
        [
            (x - half * 0.9) * n,
            (foot - 0.1 * half) * n,
            (x + half * 0.9) * n,
            (foot + 0.14 * half) * n,
        ],
        fill=90,
    )
    back.paste((0, 0, 0), (0, 0), shadow)
    drawn = Image.new("RGB", (n, n), KEY)
    _paint(example, place, drawn, Frame(x, foot - half, half), v)
    layer = np.asarray(drawn.rotate(turn, center=(x * n, foot * n), fillcolor=KEY), float)
    out = example.look(np.asarray(back, float), layer, (layer != KEY).any(-1), (x, foot - half))
    return Image.fromarray(np.clip(out, 0, 255).astype(np.uint8)).resize(
        (size, size), Image.Resampling.BOX
    )


def describe(example: Example) -> dict[str, Any]:
    """The subject.json of an example, as a dict."""
    return {
        "kind": example.kind,
        "class_noun": example.class_noun,
        "identifier": example.identifier,
        "license": LICENSE,
        "made_by": "python -m pocket.subjects data/subjects",
        "held_out": [f"{p}.png" for p in HELD_OUT],
        "captions": {f"{p}.png": caption(example, p) for p in TRAIN + HELD_OUT},
        "note": example.note,
    }


def _write(path: Path, content: str | Image.Image) -> None:
    """Write text or an image to `path`, whole or not at all."""
    with whole_file(path) as unfinished:
        if isinstance(content, str):
            unfinished.write_text(content, encoding="utf-8")
        else:
            content.save(unfinished, format="PNG", optimize=True)


def draw_all(root: str | Path, size: int = SIZE) -> None:
    """Draw all subjects into `root`/<kind>/ (pictures, subject.json, README.md) and
    `root`/sheet.png, held-out columns last.

    `size` is the pictures' height and width in pixels.
    """
    root = Path(root)
    sheet = Image.new("RGB", (8 * 132 + 8, len(EXAMPLES) * 132 - 4), "white")
    for row, example in enumerate(EXAMPLES.values()):
        folder = root / example.kind
        for column, place in enumerate(TRAIN + HELD_OUT):
            image = picture(example, place, size)
            _write(folder / f"{place}.png", image)
            sheet.paste(
                image.resize((128, 128), Image.Resampling.BOX),
                (column * 132 + 12 * (column >= len(TRAIN)), row * 132),
            )
        _write(folder / "subject.json", json.dumps(describe(example), indent=2) + "\n")
        about = (
            f"{example.note} Eight pictures of {size} x {size} pixels, each in another place;"
            f" `{HELD_OUT[0]}.png` and "
            f"`{HELD_OUT[1]}.png` are held out from training. The caption of the first:"
            f' "{caption(example, TRAIN[0])}". '
            "Drawn by `python -m pocket.subjects data/subjects`; licence CC0 1.0: use it as you"
            " like."
        )
        _write(folder / "README.md", f"# {example.kind.capitalize()}\n\n{about}\n")
    _write(root / "sheet.png", sheet)


@dataclass(frozen=True)
class BenchSubject:
    """An identity of the world's own grammar in eight scenes, to be rendered by `world.render`;
    `train` six, `test` two.
    """

    name: str
    class_noun: str
    identity: Identity
    train: tuple[Scene, ...]
    test: tuple[Scene, ...]


def bench_subjects(n: int = 30) -> list[BenchSubject]:
    """`n` identity subjects for the bench, patterned or two-coloured, classes in turn. The base and
    the judge never saw them.

    All follow from seeds under the salt "bench". Which two places are held out goes round from one
    subject to the next.
    """
    if n < 1:
        raise ValueError(f"bench_subjects: n = {n} is not a number of subjects; ask for 1 or more.")
    kinds, places, subjects = list(CLASSES), list(PAINTERS), []
    for i in range(n):
        kind = kinds[i % len(kinds)]
        first = sample_scene(i, kind=kind, plain=0.0, salt="bench")
        order = places[i % 8 :] + places[: i % 8]
        scenes = tuple(
            replace(
                sample_scene(
                    10_000 + 8 * i + k, place=place, identity=first.identity, salt="bench"
                ),
                color=first.color,
            )
            for k, place in enumerate(order)
        )
        subjects.append(
            BenchSubject(f"{i:02d}-{kind}", kind, first.identity, scenes[:6], scenes[6:])
        )
    return subjects


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(
            "usage: python -m pocket.subjects FOLDER (the folder to draw the subjects into, such as"
            " data/subjects)"
        )
    draw_all(sys.argv[1])
