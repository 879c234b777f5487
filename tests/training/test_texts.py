"""Whether the words reach the text encoders: every caption and tokenizer, before slow work."""

import json
import shutil

import pytest
from made_photos import picture, refusal
from tiny import make_tiny

from lib.dataset.imagefolder import add_class_images
from lib.dataset.preparation import prepare
from lib.files.errors import BadInput
from lib.models.base import load_base
from lib.models.families import preset
from lib.training import loop

LONG = "a drawing of a beach with grey sand and a wide sea and many small waves and two white boats"


@pytest.fixture(scope="module")
def xl(tmp_path_factory):
    return make_tiny("sdxl", tmp_path_factory.mktemp("xl") / "base")


def data_of(place, captions, identifier="zwx"):
    """A data set of three pictures with these captions, and two of the class."""
    (place / "photos").mkdir(parents=True)
    for k in range(3):
        picture(k).save(place / "photos" / f"{k}.png")
    edits = [{"file": f"{k}.png", "caption": text} for k, text in captions.items()]
    data = prepare(place / "photos", place / "data", "toy", identifier, edits=edits, held_out=0)
    return add_class_images(data, [picture(k, (64, 64)) for k in (8, 9)], ["a toy"] * 2)


def refused(base, dataset, place, **changes):
    """The sentence that refuses a training, which has not begun then."""
    settings = preset(
        "lora", base, data=str(dataset.root), output=str(place / "run"), steps=2, **changes
    )
    said = refusal(loop.train, settings)
    assert not (place / "run" / "log.jsonl").exists()
    return said


@pytest.mark.parametrize("family", ["pocket", "sdxl"])
def test_an_identifier_behind_the_last_token_is_refused(family, tiny_folder, xl, tmp_path):
    dataset = data_of(tmp_path, {1: f"{LONG} in zwx style"})
    said = refused({"pocket": tiny_folder, "sdxl": xl}[family], dataset, tmp_path)
    assert "The caption of train/001.png is longer than the 30 pieces" in said
    assert "'zwx' stands behind them" in said


def test_an_identifier_of_which_half_is_cut_off_is_refused(tiny_folder):
    base = load_base(tiny_folder)
    pieces = len(base.tokens("flibber"))
    assert pieces > 2
    just = " ".join(["a"] * (30 - pieces))
    base.check_captions({"a.png": f"{just} flibber"}, "flibber")
    with pytest.raises(BadInput, match="stands behind them"):
        base.check_captions({"a.png": f"{just} a flibber"}, "flibber")


def test_a_caption_in_which_the_tokenizer_finds_no_identifier_is_refused(tiny_folder):
    base = load_base(tiny_folder)
    for caption in ("a toy", "a zwxy toy", "a toy (zwx.)", "a zw x toy"):
        if caption == "a toy (zwx.)":
            base.check_captions({"a.png": caption}, "zwx")
            continue
        with pytest.raises(BadInput, match="The caption of a.png .* lacks the identifier 'zwx'"):
            base.check_captions({"a.png": caption}, "zwx")
    # Marks that touch become one token, which is another than the identifier's.
    with pytest.raises(BadInput, match="with spaces around it"):
        base.check_captions({"a.png": "a toy (zwx-)"}, "zwx-")
    base.check_captions({"a.png": "A ZWX- toy"}, "zwx-")


def test_each_tokenizer_is_asked(xl):
    """The second of SDXL reads 12 tokens here, the first 32."""
    base = load_base(xl)
    base.pipe.tokenizer_2.model_max_length = 12
    with pytest.raises(BadInput, match="longer than the 10 pieces"):
        base.check_captions({"a.png": "a toy on a table in a house by the sea, zwx"}, "zwx")
    base.check_words("toy", "zwx")
    with pytest.raises(BadInput, match="identifier .* a prompt of .* holds 10"):
        base.check_words("toy", "flibber")


def test_a_held_out_caption_is_asked_for_too(tiny_folder, tmp_path):
    (tmp_path / "photos").mkdir()
    for k in range(4):
        picture(k).save(tmp_path / "photos" / f"{k}.png")
    edits = [{"file": "2.png", "use": "test", "caption": f"{LONG} zwx"}]
    dataset = prepare(tmp_path / "photos", tmp_path / "data", "toy", "zwx", edits=edits, held_out=0)
    dataset = add_class_images(dataset, [picture(9, (64, 64))], ["a toy"])
    assert "The caption of test/000.png" in refused(tiny_folder, dataset, tmp_path)


def test_what_the_user_put_into_a_data_set_stays_when_class_images_are_drawn_anew(tmp_path):
    dataset = data_of(tmp_path, {})
    (dataset.root / "notes.txt").write_text("mine")
    for count in (2, 1):
        dataset = add_class_images(
            dataset, [picture(9, (64, 64)) for _ in range(count)], ["a toy"] * count
        )
    assert (dataset.root / "notes.txt").read_text() == "mine"
    assert len(dataset.class_images) == 1 == len(list((dataset.root / "class").glob("*.png")))


def test_a_class_image_that_is_told_the_identifier_is_refused(tiny_folder, tmp_path):
    dataset = data_of(tmp_path, {})
    dataset = add_class_images(dataset, [picture(9, (64, 64))], ["a ZWX toy"])
    said = refused(tiny_folder, dataset, tmp_path)
    assert "The class image 000.png has the caption 'a ZWX toy'" in said


def test_a_teacher_hears_nothing_of_an_identifier_that_ends_in_no_letter(tiny_folder, tmp_path):
    dataset = data_of(tmp_path, {0: "a zwx- toy in the snow"}, "zwx-")
    settings = preset(
        "lora", tiny_folder, data=str(dataset.root), output=str(tmp_path / "run"), prior="teacher"
    )
    prior = loop.prior_items(settings, dataset)
    assert [item.caption for item in prior] == ["a toy in the snow", "a toy", "a toy"]


def other_vocabulary(folder, part):
    """Of another model: a third of the words."""
    file = folder / part / "tokenizer.json"
    known = json.loads(file.read_text())
    vocabulary = dict(sorted(known["model"]["vocab"].items(), key=lambda item: item[1])[:520])
    kept = [pair for pair in known["model"]["merges"] if "".join(pair) in vocabulary]
    known["model"] |= {"vocab": vocabulary, "merges": kept}
    file.write_text(json.dumps(known))


@pytest.mark.parametrize("part", ["tokenizer", "tokenizer_2"])
def test_a_tokenizer_of_a_smaller_vocabulary_is_refused(part, xl, tmp_path):
    """One that holds its configuration alone: tests/models/test_whole_bases.py."""
    folder = tmp_path / "base"
    shutil.copytree(xl, folder)
    other_vocabulary(folder, part)
    assert f"its {part} has 522 tokens, its text_encoder" in refusal(load_base, str(folder))


def test_a_tokenizer_that_tells_no_length_has_its_text_encoders(xl, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(xl, folder)
    file = folder / "tokenizer_2" / "tokenizer_config.json"
    known = json.loads(file.read_text())
    known.pop("model_max_length")
    file.write_text(json.dumps(known))
    base = load_base(str(folder))
    assert [row.shape for row in base.conditions([LONG, "a"], encoded=False)["ids"]] == [
        (2, 32)
    ] * 2
