"""python -m lib prepare: the data set of notebook 01, from the command line."""

import pytest
from made_photos import picture
from PIL import Image

from lib.__main__ import main
from lib.dataset.class_images import draw_class_images
from lib.dataset.imagefolder import load_dataset
from lib.dataset.preparation import prepare, read_words
from lib.models import base as base_module
from lib.models.base import load_base


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for k in range(4):
        picture(k, (220, 180)).save(folder / f"{k}.png")
    (folder / "1.txt").write_text("a toy on a table")
    return folder


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def no_base(monkeypatch):
    """No base may be loaded: that is slow."""
    monkeypatch.setattr(base_module, "read_pipeline", lambda *_: pytest.fail("a base was loaded"))


def test_it_makes_what_notebook_01_makes(photos, tiny_folder, tmp_path, capsys):
    before = contents(photos)
    given = ["--class-noun", "toy", "--base", tiny_folder, "--out", str(tmp_path / "a")]
    some = ["--class-images", "3", "--sample-steps", "2", "--guidance", "3", "--seed", "1"]
    assert main(["prepare", str(photos), *given, *some, "--held-out", "1"]) == 0
    out = capsys.readouterr().out
    model = load_base(tiny_folder)
    words = read_words(photos, model, "toy")
    made = prepare(
        photos, tmp_path / "b", "toy", words.identifier, held_out=1, seed=1, resolution=64
    )
    draw_class_images(model, made, 3, 1, steps=2, guidance=3.0)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") and contents(photos) == before
    assert "0.png: 220 x 180 PNG" in out and "3 pictures to train on, 1 held out, 3 of the" in out
    assert "1.png: has the caption of 1.txt, with the identifier" in out
    assert f"written: {(tmp_path / 'a').resolve()}" in out
    assert out.count("captions are taken from 1.txt") == 1, "nothing is said twice"


def test_photos_may_keep_their_aspect(photos, tiny_folder, tmp_path):
    Image.new("RGB", (300, 200), "teal").save(photos / "wide.png")
    given = ["--class-noun", "toy", "--identifier", "zwx", "--kind", "style", "--base", tiny_folder]
    some = ["--class-images", "5", "--sample-steps", "1", "--held-out", "0", "--aspect", "photo"]
    assert main(["prepare", str(photos), *given, *some, "--out", str(tmp_path / "a")]) == 0
    dataset = load_dataset(tmp_path / "a")
    assert len(set(dataset.sizes)) > 1 and dataset.subject.kind == "style"


@pytest.mark.parametrize(
    "given, said",
    [
        ([], "class_noun is missing"),
        (["--class-noun", "toy", "--identifier", "toy"], "is in the class noun too"),
        (["--class-noun", "toy", "--kind", "car"], "kind 'car' is unknown"),
        (["--class-noun", "toy", "--class-images", "0"], "'class_images' is 0"),
        (["--class-noun", "toy", "--sample-steps", "-1"], "'sample_steps' is -1"),
        (["--class-noun", "toy", "--aspect", "wide"], "aspect"),
        (["--class-noun", "toy", "--held-out", "two"], "'--held-out'"),
    ],
)
def test_what_cannot_be_used_is_one_sentence_before_a_base_is_loaded(
    given, said, photos, no_base, capsys
):
    assert main(["prepare", str(photos), *given]) == 1
    out, err = capsys.readouterr()
    assert said in err and err.count("\n") == 1 and not out


def test_what_became_of_each_photo_is_told_picture_by_picture(
    photos, tiny_folder, tmp_path, capsys
):
    """The list of those held out ended in "and 2 more", and none was called trained on."""
    for k in range(4, 9):
        picture(k, (220, 180)).save(photos / f"{k}.png")
    (photos / "copy of 0.png").write_bytes((photos / "0.png").read_bytes())
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff" + bytes(50))
    given = ["--class-noun", "toy", "--identifier", "zwx", "--base", tiny_folder]
    some = ["--class-images", "1", "--sample-steps", "1", "--held-out", "5"]
    assert main(["prepare", str(photos), *given, *some, "--out", str(tmp_path / "a")]) == 0
    lines = capsys.readouterr().out.splitlines()
    dataset = load_dataset(tmp_path / "a")
    assert len(dataset.photos) == 11
    for use, told in (("train", "trained on as"), ("test", "held out as"), ("out", "left out; is")):
        named = [photo["file"] for photo in dataset.photos if photo["use"] == use]
        assert named and all(any(x.startswith(f"{n}: {told} ") for x in lines) for n in named)
    assert any(
        ": trained on as 'a zwx toy on a table'" in x or "held out as 'a zwx" in x for x in lines
    )
    assert any(line.startswith("broken.jpg: left out; is damaged") for line in lines)


def test_a_caption_that_is_too_long_is_called_by_its_photos_name(
    photos, tiny_folder, tmp_path, capsys
):
    """It was called test/000.png, which nobody has seen."""
    long = "a drawing of a beach with grey sand and a wide sea and many small waves and boats"
    (photos / "1.txt").write_text(f"{long} and toys in zwx style")
    given = ["--class-noun", "toy", "--identifier", "zwx", "--kind", "style", "--base", tiny_folder]
    assert main(["prepare", str(photos), *given, "--out", str(tmp_path / "a")]) == 1
    assert capsys.readouterr().err.startswith("The caption of 1.png is longer than the")


def test_kohyas_folders_are_sent_to_their_command(photos, no_base, tmp_path, capsys):
    (tmp_path / "kohya").mkdir()
    photos.rename(tmp_path / "kohya" / "10_zwx toy")
    assert main(["prepare", str(tmp_path / "kohya"), "--class-noun", "toy"]) == 1
    assert "python -m lib from-kohya" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_said_before_words_are_asked_for(no_base, tmp_path, capsys):
    assert main(["prepare", str(tmp_path / "photoz")]) == 1
    out, err = capsys.readouterr()
    assert "photoz does not exist; check the path" in err and not out
