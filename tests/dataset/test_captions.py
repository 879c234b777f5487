"""Captions: the identifier is in each, and in none of the class."""

import json
import shutil

import pytest
from conftest import ROOT
from made_photos import picture, refusal

from lib.dataset.captions import (
    Subject,
    check_caption,
    class_caption,
    prompts,
    read_subject,
    with_identifier,
)
from lib.dataset.folder_scan import scan
from lib.dataset.kohya_folders import from_kohya
from lib.dataset.preparation import open_or_prepare, plan, prepare
from lib.models.base import load_base
from lib.widgets.photo_panel import PhotosPanel

LONG = "a drawing of a beach with grey sand and a wide sea and many small waves and two white boats"


def photos_in(folder, captions=(), count=4):
    """A folder of photos 0.png ... and a caption file beside those for which there is a caption."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        picture(k).save(folder / f"{k}.png")
    for k, caption in enumerate(captions):
        (folder / f"{k}.txt").write_text(caption, "utf-8")
    return folder


@pytest.mark.parametrize(
    "kind, identifier, caption, wanted",
    [
        ("character", "zwx-", "a zwx- robot in the snow", "a robot in the snow"),
        ("character", "zwx-", "a zwx-robot", "a robot"),
        ("style", "zwx_", "a robot in space in zwx_ style", "a robot in space"),
        ("lighting", "zwx'", "a cat in ZWX' light, at night", "a cat, at night"),
        ("character", "-zwx", "a -zwx robot", "a robot"),
        ("character", "zwx", "zwx, a robot in the snow", "a robot in the snow"),
        ("character", "zwx", "a zwx-robot in the snow", "a robot in the snow"),
        ("character", "zwx", "a zwx in the snow", "a robot in the snow"),
        ("character", "zwx", "two zwxy robots", "two zwxy robots"),
        ("character", "zwx", "a zwx style robot", "a style robot"),
        ("style", "zwx", "a robot in zwx styled light", "a robot styled light"),
        ("character", "zwx", "robots, a zwx", "robots, a"),
    ],
)
def test_the_caption_of_the_class_keeps_nothing_of_the_identifier(
    kind, identifier, caption, wanted
):
    assert class_caption(Subject(kind, "robot", identifier), caption) == wanted


@pytest.mark.parametrize("noun", ["lighthouse", "light bulb", "light", "style guide", "pose"])
def test_a_class_noun_that_begins_as_a_manner_stays_whole(noun):
    subject = Subject("character", noun, "zwx")
    assert class_caption(subject, f"a zwx {noun} in the snow") == f"a {noun} in the snow"


@pytest.mark.parametrize(
    "kind, caption, wanted",
    [
        ("character", "a robot in the snow", "a zwx robot in the snow"),
        ("product", "a Robot beside a robot", "a zwx robot beside a robot"),
        ("style", "a red robot in the snow", "a red robot in zwx style in the snow"),
        ("character", "metal thing on a table", "a zwx robot, metal thing on a table"),
        ("character", "zwxy robots", "a zwx robot, zwxy robots"),
        ("character", "a ZWX robot", "a ZWX robot"),
    ],
)
def test_a_caption_of_other_tools_gets_the_identifier_and_its_class_caption_loses_it(
    kind, caption, wanted
):
    subject = Subject(kind, "robot", "zwx")
    assert with_identifier(subject, caption) == wanted
    assert "zwx " not in class_caption(subject, wanted).lower()


def test_an_identifier_that_ends_in_no_letter_is_replaced_in_the_captions_of_subject_json(tmp_path):
    words = {"class_noun": "toy", "identifier": "zwx-", "captions": {"0.png": "A Zwx- toy, red"}}
    (tmp_path / "subject.json").write_text(json.dumps(words))
    found = read_subject(tmp_path, class_noun="car", identifier="vqx")
    assert found.captions == {"0.png": "A vqx car, red"}


@pytest.mark.parametrize(
    "identifier, caption, wanted",
    [
        ("σος", "A ΣΟΣ toy beside a σοσ", "A vqx toy beside a vqx"),
        ("ini", "an ını toy, an İni toy", "an vqx toy, an vqx toy"),
        ("sks", "a ſks toy", "a vqx toy"),
    ],
)
def test_a_word_with_more_than_one_small_form_is_replaced(tmp_path, identifier, caption, wanted):
    """The small letters of what was found were looked up among those of the word: a KeyError."""
    words = {"class_noun": "toy", "identifier": identifier, "captions": {"0.png": caption}}
    (tmp_path / "subject.json").write_text(json.dumps(words))
    assert read_subject(tmp_path, identifier="vqx").captions == {"0.png": wanted}


@pytest.mark.parametrize(
    "caption", ["a z\u200bwx toy", "a ｚｗｘ toy", "a zwx2 toy", "a _zwx_ toy", "a \u202exwz toy"]
)
def test_what_only_looks_like_the_identifier_is_none(caption):
    assert "0.png" in refusal(check_caption, "0.png", caption, "zwx")


def test_a_tokenizers_own_mark_in_a_caption_is_refused(tiny_folder):
    """An encoder that looks for the mark of the end finds it before the identifier."""
    base = load_base(tiny_folder)
    for mark in {base.pipe.tokenizer.bos_token, base.pipe.tokenizer.eos_token}:
        said = refusal(base.check_captions, {"0.png": f"a toy {mark} in zwx style"}, "zwx")
        assert f"caption of 0.png holds {mark!r}" in said and "take it out" in said
    base.check_captions({"0.png": "a (zwx:1.2) toy <lora:zwx:1> | /zwx/"}, "zwx")


def test_accents_in_two_characters_are_those_in_one(tmp_path):
    words = {
        "class_noun": "toy",
        "identifier": "z\u00e9x",
        "captions": {"0.png": "a ze\u0301x toy"},
    }
    (tmp_path / "subject.json").write_text(json.dumps(words))
    found = read_subject(tmp_path, identifier="ze\u0301x")
    assert found.captions == {"0.png": "a z\u00e9x toy"} and found.identifier == "z\u00e9x"


def test_a_typed_caption_without_the_identifier_is_refused_before_anything_is_written(tmp_path):
    photos = photos_in(tmp_path / "photos")
    edits = [{"file": "0.png", "caption": "a toy on a table"}]
    said = refusal(prepare, photos, tmp_path / "out", "toy", "zwx", edits=edits)
    assert "caption of 0.png lacks the identifier 'zwx'" in said and "write 'zwx' into it" in said
    edits[0]["caption"] = "zwxy toys"
    assert "lacks" in refusal(prepare, photos, tmp_path / "out", "toy", "zwx", edits=edits)
    (photos / "subject.json").write_text(json.dumps({"captions": {"1.png": "a toy"}}))
    assert "caption of 1.png lacks" in refusal(prepare, photos, tmp_path / "out", "toy", "zwx")
    assert not (tmp_path / "out").exists()
    assert check_caption("0.png", "a (ZWX) toy", "zwx") == "a (ZWX) toy"


def test_the_panel_keeps_the_caption_that_holds_the_identifier(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_HEADLESS", "0")
    photos = photos_in(tmp_path / "photos")
    entries = plan(scan(photos), Subject("character", "toy", "zwx"))
    panel = PhotosPanel(entries, photos, "zwx")
    panel.caption.value = "a toy on a table"
    assert "lacks the identifier" in panel.message.value
    assert entries[0]["caption"] == panel.caption.value == "a zwx toy"
    panel.caption.value = "a zwx toy on a table"
    assert entries[0]["caption"] == "a zwx toy on a table" and not panel.message.value


def test_kohyas_captions_get_the_identifier_and_it_is_said(tmp_path):
    photos_in(tmp_path / "kohya/img/10_zwx toy", ["a red toy", "zwx toy, blue", "", "on a table"])
    reg = photos_in(tmp_path / "kohya/reg/1_toy", ["a zwx toy", "a toy"], 2)
    dataset, notes = from_kohya(tmp_path / "kohya", tmp_path / "out", held_out=0)
    assert [item.caption for item in dataset.train] == [
        "a red zwx toy",
        "zwx toy, blue",
        "zwx toy",
        "a zwx toy, on a table",
    ]
    assert "the identifier 'zwx' is written into the captions that lacked it" in notes[0]
    assert "0.png, 3.png" in notes[0] and "'a red zwx toy'" in notes[0]
    assert {item.caption for item in dataset.class_images} == {"a toy"}
    assert (reg / "0.txt").read_text() == "a zwx toy", "what was there is as it was"


def test_kohyas_captions_get_the_words_that_are_asked_for(tmp_path):
    photos_in(tmp_path / "kohya/1_sks toy", ["a sks toy", "a red toy"])
    dataset, _ = from_kohya(tmp_path / "kohya", tmp_path / "out", "car", "zwx", "style", held_out=0)
    assert [item.caption for item in dataset.train] == [
        "a zwx car",
        "a red car in zwx style",
        "zwx car",
        "zwx car",
    ]
    assert "kind 'car'" in refusal(from_kohya, tmp_path / "kohya", tmp_path / "out", kind="car")


def test_a_long_caption_is_refused_before_class_images_are_drawn(
    tiny_folder, tmp_path, monkeypatch
):
    photos = photos_in(tmp_path / "photos")
    words = {"class_noun": "toy", "kind": "style", "captions": {"0.png": f"{LONG} in zwx style"}}
    (photos / "subject.json").write_text(json.dumps(words))
    base = load_base(tiny_folder)
    monkeypatch.setattr(type(base), "generate", lambda *_, **__: pytest.fail("that is slow"))
    said = refusal(open_or_prepare, tmp_path / "out", base, photos, identifier="zwx")
    assert "longer than the 30 pieces" in said and "shorten it" in said
    assert f"'{tiny_folder}'" in said


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n"])
def test_captions_of_a_table_are_read_with_the_line_ends_of_any_system(tmp_path, end):
    folder = photos_in(tmp_path)
    lines = ["file_name;text", '0.png;"a toy, here"', "1.png;a toy there", ""]
    (folder / "metadata.csv").write_bytes(end.join(lines).encode())
    assert [photo.caption for photo in scan(folder)][:3] == ["a toy, here", "a toy there", ""]
    (folder / "metadata.csv").unlink()
    rows = [{"file_name": f"{k}.png", "text": f"toy {k}"} for k in (0, 1)]
    (folder / "metadata.jsonl").write_bytes(end.join(map(json.dumps, rows)).encode())
    assert [photo.caption for photo in scan(folder)][:3] == ["toy 0", "toy 1", ""]


def test_a_table_that_is_none_and_a_caption_with_a_line_separator(tmp_path):
    folder = photos_in(tmp_path)
    (folder / "metadata.csv").write_text(f"file_name,text\n0.png,{'x' * 140_000}\n")
    assert "metadata.csv cannot be read as a table" in refusal(scan, folder)
    (folder / "metadata.csv").unlink()
    row = json.dumps({"file_name": "0.png", "text": "a toy\u2028here"}, ensure_ascii=False)
    (folder / "metadata.jsonl").write_text(row, "utf-8")
    assert scan(folder)[0].caption == "a toy here"


def test_every_example_subject_holds_its_identifier_as_it_did(tmp_path):
    for folder in sorted((ROOT / "data" / "subjects").iterdir()):
        if (folder / "subject.json").is_file():
            shutil.copy(folder / "subject.json", tmp_path)
            found, written = (
                read_subject(tmp_path),
                json.loads((folder / "subject.json").read_text()),
            )
            assert found.captions == written.get("captions", {}) and prompts(found)
