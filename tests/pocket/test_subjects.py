"""The example subjects and the prompts: complete, redrawn the same, and out of reach of the base's
world.
"""

import itertools
import json
import string
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from pocket import figures, subjects
from pocket.clip import OTHER_WORDS
from pocket.objects import CLASSES
from pocket.places import PHRASES
from pocket.world import COLORS, RARE_WORDS, SIZE, render, sample_identity, sample_scene

DATA = ROOT / "data"
KINDS = ("character", "product", "clothing", "style", "pose", "lighting")


def facts(kind):
    return json.loads((DATA / "subjects" / kind / "subject.json").read_text(encoding="utf-8"))


def pixels(path, size):
    return np.asarray(
        Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BOX), float
    )


@pytest.mark.parametrize("kind", KINDS)
def test_folder_is_complete(kind):
    about, folder = facts(kind), DATA / "subjects" / kind
    pictures = {p.name for p in folder.glob("*.png")}
    assert (
        about["kind"] == kind
        and about["license"] == "CC0-1.0"
        and "CC0" in (folder / "README.md").read_text(encoding="utf-8")
    )
    assert len(pictures) == 8 and set(about["captions"]) == pictures
    assert {p.name for p in folder.iterdir()} == pictures | {"subject.json", "README.md"}
    assert all(about["identifier"] in text.split() for text in about["captions"].values())
    for name in pictures:
        with Image.open(folder / name) as image:
            assert (image.size, image.mode, image.format) == ((256, 256), "RGB", "PNG")


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_places_are_new(kind):
    """Two or more pictures are held out, and no training caption names one of their places."""
    about = facts(kind)
    held_out = about["held_out"]
    assert len(held_out) >= 2 and set(held_out) < set(about["captions"])
    phrase = {name: PHRASES.get(Path(name).stem) for name in about["captions"]}
    trained = [text for name, text in about["captions"].items() if name not in held_out]
    for name in held_out:
        assert phrase[name] in about["captions"][name]
        assert not any(phrase[name] in text for text in trained)


def test_captions_name_what_is_shown():
    assert facts("character")["captions"]["forest.png"] == "a zwx robot in the forest"
    assert (
        facts("product")["captions"]["garden.png"] == "a qzj teapot"
    )  # the base has no word for this place
    assert facts("style")["captions"]["beach.png"] == "a boat on the beach in jxv style"
    assert facts("pose")["captions"]["snow.png"] == "an orange cat in wqk pose in the snow"
    assert facts("lighting")["captions"]["city.png"] == "a car in the city in vqx light"


def test_identifiers_are_rare_and_differ():
    """So that two subjects can be learnt, and combined, without one's word meaning the other."""
    used = [facts(kind)["identifier"] for kind in KINDS]
    assert len(set(used)) == len(KINDS) and set(used) <= set(RARE_WORDS)


def test_redraw_equals_the_committed_files(tmp_path):
    """Names and words of all folders, and of each kind a training and a held-out picture in full.

    Pixels are compared with half a level to spare, because another Pillow may round an edge
    differently.
    """
    subjects.draw_all(tmp_path, size=32)
    made = {p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()}
    kept = {
        p.relative_to(DATA / "subjects") for p in (DATA / "subjects").rglob("*") if p.is_file()
    } - {Path("README.md")}
    assert made == kept
    for name in made:
        if name.suffix != ".png":
            made_text, kept_text = (
                (root / name).read_text(encoding="utf-8") for root in (tmp_path, DATA / "subjects")
            )
            assert made_text.replace("32 x 32", "256 x 256") == kept_text, name
    for example, place in itertools.product(subjects.EXAMPLES.values(), ("city", "snow")):
        drawn = np.asarray(subjects.picture(example, place), float)
        assert (
            np.abs(drawn - pixels(DATA / "subjects" / example.kind / f"{place}.png", 256)).mean()
            < 0.5
        ), (example.kind, place)


def test_draws_are_not_the_worlds():
    """No class of the world draws a subject; where a subject has its own main colour, the world
    never paints a thing in it.
    """
    assert not {e.draw for e in subjects.EXAMPLES.values()} & set(CLASSES.values())
    rng = np.random.default_rng(0)
    mains = np.array([sample_identity(rng, plain=0.0)[0].main for _ in range(4000)], float)
    for color in (figures.TEAL, figures.MINT, figures.PLUM):
        assert np.linalg.norm(mains - color, axis=1).min() > 40


@pytest.mark.parametrize("kind", KINDS)
def test_no_scene_of_the_base_comes_near(kind):
    """Each picture against base scenes of its own class and place: further away than those scenes'
    own nearest neighbours.
    """
    example = subjects.EXAMPLES[kind]
    for place in ("beach", "snow"):
        noun, color = (
            example.things[(subjects.TRAIN + subjects.HELD_OUT).index(place)]
            if example.things
            else (example.class_noun, None)
        )
        base = np.stack(
            [
                np.asarray(
                    render(sample_scene(900 + i, kind=noun, color=color, place=place)), float
                )
                for i in range(24)
            ]
        )
        apart = np.sqrt(((base[:, None] - base[None]) ** 2).mean((2, 3, 4))) + 1e9 * np.eye(
            len(base)
        )
        mine = np.sqrt(
            ((base - pixels(DATA / "subjects" / kind / f"{place}.png", SIZE)) ** 2).mean((1, 2, 3))
        )
        assert mine.min() > np.median(apart.min(1)), (kind, place)


def test_subjects_keep_their_main_colours_at_64_pixels():
    """Small as the pocket base sees them, the colours that make them are still there in every
    picture.
    """
    for kind, colors in {
        "character": (figures.TEAL, figures.ORANGE, figures.RED),
        "product": (figures.MINT, figures.COCOA, figures.RED),
        "clothing": (figures.PLUM, figures.SKY, figures.BOLT),
    }.items():
        for name in facts(kind)["captions"]:
            picture = pixels(DATA / "subjects" / kind / name, SIZE)
            for color in colors:
                assert (np.linalg.norm(picture - color, axis=-1) < 30).sum() >= 12, (
                    kind,
                    name,
                    color,
                )


def test_bench_subjects():
    bench = subjects.bench_subjects()
    assert len(bench) == len({b.identity for b in bench}) == len({b.name for b in bench}) == 30
    assert bench == subjects.bench_subjects()
    assert bench[:5] == subjects.bench_subjects(5)
    for b in bench:
        places = [s.place for s in b.train + b.test]
        assert (len(b.train), len(b.test), len(set(places))) == (6, 2, 8)
        assert (
            all(s.identity == b.identity and s.color in COLORS for s in b.train + b.test)
            and b.identity.kind == b.class_noun
        )
        assert b.identity.second != tuple(
            int(c * 0.62) for c in b.identity.main
        )  # not one of the world's plain things
    seen = {sample_scene(i, salt=salt).identity for salt in ("base", "judge") for i in range(600)}
    assert not seen & {b.identity for b in bench}
    assert render(bench[0].train[0]).size == (SIZE, SIZE)
    with pytest.raises(ValueError, match="n = 0"):
        subjects.bench_subjects(0)


@pytest.mark.parametrize("base", ["pocket", "stable-diffusion"])
def test_prompt_files(base):
    book = json.loads((DATA / "prompts" / f"{base}.json").read_text(encoding="utf-8"))
    assert book["base"] == base and book["license"] == "CC0-1.0" and tuple(book["kinds"]) == KINDS
    for lists in book["kinds"].values():
        assert len(lists["full"]) == 25 and 6 <= len(lists["course"]) <= 8
        for part in lists.values():
            assert len({p["prompt"] for p in part}) == len(part)
            for p in part:
                assert set(p) == {"prompt", "class_prompt", "asks"}
                fields = [name for _, name, _, _ in string.Formatter().parse(p["prompt"]) if name]
                assert fields.count("identifier") == 1 and set(fields) <= {
                    "identifier",
                    "class_noun",
                }
                assert "{identifier}" not in p["class_prompt"] and p["class_prompt"] == " ".join(
                    p["class_prompt"].split()
                )
                words = [w for w in p["class_prompt"].split()]
                rest = iter(p["prompt"].split())
                assert all(w in rest for w in words), (
                    p
                )  # the twin is the prompt with words left out, in the same order


def test_pocket_prompts_are_in_the_bases_words_and_new():
    """Every word is one that the base knows; nothing is a training caption; the course's places are
    in no training picture.
    """
    book = json.loads((DATA / "prompts" / "pocket.json").read_text(encoding="utf-8"))
    known = {w for p in PHRASES.values() for w in p.split()} | {
        *CLASSES,
        *COLORS,
        *OTHER_WORDS,
        *RARE_WORDS,
        "a",
        "photo",
        "picture",
    }
    for kind, lists in book["kinds"].items():
        about = facts(kind)
        trained = {
            text for name, text in about["captions"].items() if name not in about["held_out"]
        }
        for part, prompts in lists.items():
            for p in prompts:
                text = p["prompt"].format(
                    identifier=about["identifier"], class_noun=about["class_noun"]
                )
                assert set(text.replace(",", "").split()) <= known, text
                assert text not in trained
                if part == "course":
                    assert any(PHRASES[place] in text for place in subjects.NEW_PLACES), text


def test_new_places_are_in_no_training_picture():
    assert not set(subjects.NEW_PLACES) & set(subjects.TRAIN) and set(subjects.HELD_OUT) <= set(
        subjects.NEW_PLACES
    )


def test_foreign_owl_is_foreign(tmp_path):
    """The owl for the course's test of an unknown subject: complete, the same each time, and no
    import of the project in it.
    """
    import foreign

    source = Path(foreign.__file__).read_text(encoding="utf-8")
    assert not [
        line
        for line in source.splitlines()
        if line.startswith(("import lib", "from lib", "from ."))
    ]
    folder = foreign.write(tmp_path / "owl", size=64)
    about = json.loads((folder / "subject.json").read_text(encoding="utf-8"))
    assert (
        {p.name for p in folder.glob("*.png")} == set(about["captions"])
        and len(about["captions"]) == 8
        and len(about["held_out"]) == 2
    )
    assert (
        np.asarray(foreign.draw("table", 64)) == np.asarray(Image.open(folder / "table.png"))
    ).all()
