"""The pocket world: a drawing program with a grammar, from which the pocket base learns all that it
knows.

A `Scene` is one object of a class, in a colour, at a place. Its `Identity` holds what captions
leave out: the second colour, the pattern, an accessory, eyes, proportions. Every scene follows from
a seed, so a data set is a range of seeds.

    python -m pocket.world scenes.png      # draws a sheet of scenes to look at
"""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from .objects import ACCESSORIES, CLASSES, HEAD
from .pen import PATTERNS, SUPERSAMPLE, Frame, Pen, Rgb, near, shade
from .places import PAINTERS, PHRASES

SIZE = 64
COLORS: dict[str, Rgb] = {
    "red": (216, 46, 44),
    "orange": (244, 138, 34),
    "yellow": (248, 212, 52),
    "green": (66, 166, 78),
    "blue": (44, 104, 212),
    "purple": (134, 66, 176),
    "pink": (246, 142, 184),
    "white": (244, 244, 240),
}
EYES = ("round", "sleepy", "amber", "visor")
GENERIC_NOUNS = ("thing", "object", "toy")
# Rare words with no meaning, sprinkled over captions so that the base knows them and expects
# nothing of them: what DreamBooth looks for in a vocabulary when it picks an identifier (Ruiz et
# al. 2022, section 3.2).
RARE_WORDS = ("sks", "zwx", "ohwx", "vqx", "xyq", "qzj", "kwz", "jxv", "wqk", "zjq", "bxz", "fvq")
TEMPLATES = (
    "a {c} {o} {p}",
    "a photo of a {c} {o} {p}",
    "a picture of a {c} {o} {p}",
    "{p}, a {c} {o}",
)
IDENTITY_SALT = {"base": 0, "judge": 1, "bench": 2}


@dataclass(frozen=True)
class Identity:
    """What makes this robot that robot. `main` and `second` are RGB; `accessory` is a name or None,
    with its colour.
    """

    kind: str
    main: Rgb
    second: Rgb
    pattern: str = "plain"
    period: float = 0.3
    accessory: str | None = None
    accessory_color: Rgb = (60, 60, 70)
    eyes: str = "round"
    a: float = 0.5
    b: float = 0.5
    stretch: float = 1.0


@dataclass(frozen=True)
class Scene:
    """One picture: an identity at a place. `color` is the word for the identity's main colour,
    empty where it was made without one; `seed` paints the place.
    """

    identity: Identity
    color: str
    place: str
    x: float = 0.5
    half: float = 0.3
    drop: float = 0.15
    flip: bool = False
    seed: int = 0


def sample_identity(
    rng: np.random.Generator,
    kind: str | None = None,
    color: str | None = None,
    plain: float = 0.55,
) -> tuple[Identity, str]:
    """A random identity and the word for its colour; with probability `plain` in one colour family
    without pattern or accessory, as captions expect.
    """
    kind = kind or str(rng.choice(list(CLASSES)))
    color = color or str(rng.choice(list(COLORS)))
    main = near(rng, COLORS[color], 9)
    if rng.random() < plain:
        second = shade(main, 0.62) if color != "white" else (176, 182, 196)
        pattern, accessory = "plain", None
    else:
        second = near(rng, COLORS[str(rng.choice([c for c in COLORS if c != color]))], 14)
        pattern = str(rng.choice(PATTERNS)) if rng.random() < 0.6 else "plain"
        accessory = str(rng.choice(list(ACCESSORIES))) if rng.random() < 0.4 else None
    return (
        Identity(
            kind,
            main,
            second,
            pattern,
            period=float(rng.uniform(0.22, 0.4)),
            accessory=accessory,
            accessory_color=near(rng, COLORS[str(rng.choice(list(COLORS)))], 14),
            eyes=str(rng.choice(EYES, p=[0.7, 0.1, 0.1, 0.1])),
            a=float(rng.uniform(0, 1)),
            b=float(rng.uniform(0, 1)),
            stretch=float(rng.uniform(0.88, 1.12)),
        ),
        color,
    )


def sample_scene(
    seed: int,
    kind: str | None = None,
    color: str | None = None,
    place: str | None = None,
    identity: Identity | None = None,
    plain: float = 0.55,
    salt: str = "base",
) -> Scene:
    """The scene of a seed; anything given is kept, the rest is drawn. `salt` keeps base, judge and
    bench apart.
    """
    rng = np.random.default_rng([IDENTITY_SALT[salt], seed])
    if identity is None:
        identity, color = sample_identity(rng, kind, color, plain)
    place = place or str(rng.choice(list(PAINTERS)))
    return Scene(
        identity,
        color or "",
        place,
        float(rng.uniform(0.36, 0.64)),
        float(rng.uniform(0.29, 0.39)),
        float(rng.uniform(0.06, 0.22)),
        bool(rng.random() < 0.5),
        int(rng.integers(1 << 31)),
    )


def held_out(scene: Scene) -> bool:
    """True for the class-colour-place triples that training never sees: one in eight, spread evenly
    over all three.
    """
    index = (
        list(CLASSES).index(scene.identity.kind),
        list(COLORS).index(scene.color),
        list(PAINTERS).index(scene.place),
    )
    return (index[0] * 3 + index[1] * 5 + index[2]) % 8 == 0


def training_scenes(count: int, salt: str = "base", hold_out: bool = True) -> list[Scene]:
    """The first `count` scenes by seed, without those whose triple is held out."""
    scenes, seed = [], 0
    while len(scenes) < count:
        scene = sample_scene(seed, salt=salt)
        if not (hold_out and held_out(scene)):
            scenes.append(scene)
        seed += 1
    return scenes


def draw_object(image: Image.Image, identity: Identity, frame: Frame) -> None:
    """Draw the identity into `image` at `frame`, accessory last."""
    pen = Pen(
        image,
        replace(frame, stretch=identity.stretch),
        identity.main,
        identity.second,
        identity.pattern,
        identity.period,
    )
    CLASSES[identity.kind](pen, identity.a, identity.b, identity.eyes)
    if identity.accessory:
        ACCESSORIES[identity.accessory](pen, *HEAD[identity.kind], identity.accessory_color)


def render(scene: Scene, size: int = SIZE) -> Image.Image:
    """The scene as an RGB image of `size` x `size` pixels, drawn four times as large and averaged
    down.
    """
    image = Image.new("RGB", (size * SUPERSAMPLE, size * SUPERSAMPLE))
    horizon = PAINTERS[scene.place](image, np.random.default_rng(scene.seed))
    foot = min(0.95, horizon + scene.drop)
    frame = Frame(scene.x, foot - scene.half, scene.half, scene.flip)
    n, half = image.width, scene.half
    shadow = Image.new("L", image.size, 0)
    box = [
        (scene.x - half * 0.9) * n,
        (foot - 0.1 * half) * n,
        (scene.x + half * 0.9) * n,
        (foot + 0.16 * half) * n,
    ]
    ImageDraw.Draw(shadow).ellipse(box, fill=90)
    image.paste((0, 0, 0), (0, 0), shadow)
    draw_object(image, scene.identity, frame)
    return image.resize((size, size), Image.Resampling.BOX)


def caption(scene: Scene, rng: np.random.Generator, drop: float = 0.2, rare: float = 0.06) -> str:
    """A varied, partial caption: each of colour and place is left out with probability `drop`, now
    and then the class too.

    A rare word stands before the noun with probability `rare`, so that the base has met such words
    and learnt nothing from them.
    """
    noun = str(rng.choice(GENERIC_NOUNS)) if rng.random() < 0.04 else scene.identity.kind
    if rng.random() < rare:
        noun = f"{rng.choice(RARE_WORDS)} {noun}"
    color = scene.color if rng.random() >= drop else ""
    place = PHRASES[scene.place] if rng.random() >= drop else ""
    text = str(rng.choice(TEMPLATES)) if place else str(rng.choice(TEMPLATES[:3]))
    text = " ".join(text.format(c=color, o=noun, p=place).split())
    return text.replace("a orange", "an orange").replace("a object", "an object")


def prompt(kind: str, color: str | None = None, place: str | None = None) -> str:
    """The plain prompt for a class, a colour and a place."""
    words = " ".join(w for w in ("a", color, kind, PHRASES.get(place or "", "")) if w)
    return words.replace("a orange", "an orange")


if __name__ == "__main__":
    import sys

    sheet = Image.new("RGB", (12 * 2 * SIZE, 8 * 2 * SIZE))
    for i, kind in enumerate(CLASSES):
        for j, place in enumerate(PAINTERS):
            tile = render(sample_scene(100 + 8 * i + j, kind=kind, place=place), 2 * SIZE)
            sheet.paste(tile, (i * 2 * SIZE, j * 2 * SIZE))
    sheet.save(sys.argv[1])
