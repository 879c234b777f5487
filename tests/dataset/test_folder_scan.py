"""What is in a folder: by content, not by name; captions beside photos; Kohya's weights; one
scanner for all ways in.
"""

import json
import shutil
from collections import Counter

import pillow_heif
import pytest
from conftest import ROOT
from made_photos import picture, refusal
from PIL import Image

from lib.dataset.captions import Subject
from lib.dataset.folder_scan import report, scan
from lib.dataset.imagefolder import load_dataset
from lib.dataset.kohya_folders import from_kohya, to_kohya
from lib.dataset.preparation import plan, prepare
from lib.files.json_file import read_json
from lib.training import loop
from lib.training.batches import cache_latents, repeated

pillow_heif.register_heif_opener()  # so that Pillow can save HEIC

# Names that photos come under, and what they are; the last ones say nothing, or something else.
NAMES = {
    "a.jfif": "JPEG",
    "b.jpe": "JPEG",
    "c.mpo": "MPO",
    "d.apng": "PNG",
    "e.jp2": "JPEG2000",
    "f.tga": "TGA",
    "g.heic": "HEIF",
    "h.avif": "AVIF",
    "i.tif": "TIFF",
    "j.gif": "GIF",
    "k.j2k": "JPEG2000",
    "l.dib": "BMP",
    "IMG_0001": "JPEG",
    "IMG_0002.JPG_original": "PNG",
    "photo.jpg.download": "WEBP",
    "n.dat": "TIFF",
    "o.nef": "JPEG",
}


def photos_in(folder, count=4, start=0):
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(start, start + count):
        picture(k).save(folder / f"img{k}.png")
    return folder


def of_every_name(folder):
    folder.mkdir(parents=True)
    for k, (name, kind) in enumerate(NAMES.items()):
        more = {"save_all": True, "append_images": [picture(99)]} if kind == "MPO" else {}
        picture(k).save(folder / name, kind, **more)
    return folder


def captions_of(folder, out, **named):
    """The captions of a data set of all photos in the folder, and its notes."""
    dataset = prepare(folder, out, "toy", "zwx", held_out=0, **named)
    return [item.caption for item in dataset.train], dataset.notes


# ---- which files are photos


def test_photos_are_known_by_their_content(tmp_path):
    found = scan(of_every_name(tmp_path / "photos"))
    assert {p.path.name for p in found} == set(NAMES) and not found.ignored
    for photo in found:
        kind = {"MPO": "JPEG", "HEIF": "HEIC"}.get(NAMES[photo.path.name], NAMES[photo.path.name])
        assert (photo.error, photo.format, photo.width) == (None, kind, 200), photo.name
    dataset = prepare(tmp_path / "photos", tmp_path / "out", "toy", "zwx", held_out=0)
    assert len(dataset.train) == len(NAMES)


def test_kohyas_folders_are_scanned_by_the_same_rule(tmp_path):
    of_every_name(tmp_path / "kohya/img/1_zwx toy")
    of_every_name(tmp_path / "kohya/reg/1_toy")
    (tmp_path / "kohya/img/1_zwx toy/a.npz").write_bytes(b"PK\3\4 latents of another trainer")
    dataset, notes = from_kohya(tmp_path / "kohya", tmp_path / "out", held_out=0)
    assert len(dataset.train) == len(dataset.class_images) == len(NAMES)
    assert "1_zwx toy: ignored what is no photo: a.npz; nothing to do" in notes


def test_what_is_no_picture_stays_a_stray_or_is_named(tmp_path):
    photos = photos_in(tmp_path / "photos")
    strays = {
        "IMG_1.MOV": b"\0\0\0\x14ftypqt  \0\0\0\0qt  ",  # of a live photo
        "voice.m4a": b"\0\0\0\x1cftypM4A \0\0\0\0M4A mp42isom\0\0\0\0",
        "sound.wav": b"RIFF\x24\0\0\0WAVEfmt ",
        "BMW.doc": b"BM is how this letter begins, and it is none",
        "II.md": b"II. Second chapter",
        "IMG_1.aae": b"<?xml version='1.0'?>",
        "empty": b"",
    }
    for name, data in strays.items():
        (photos / name).write_bytes(data)
    named = {"a.tga": b"no picture at all, but long enough for a head", "b.jfif": b"<html>"}
    for name, data in named.items():
        (photos / name).write_bytes(data)
    found = scan(photos)
    assert set(found.ignored) == set(strays)
    errors = {p.path.name: p.error for p in found if p.error}
    assert set(errors) == set(named) and all("no picture" in error for error in errors.values())


@pytest.mark.parametrize(
    "name, reason",
    [
        ("trip/", "photos are taken from the folder itself"),
        ("0.json", "captions are read from .txt"),  # a caption file of other tools
        ("meta_cap.json", "captions are read from .txt"),  # Kohya's fine tuning
        ("metadata.parquet", "captions are read from .txt"),
        ("captions.csv", "captions are read from .txt"),
        ("prompts.tsv", "captions are read from .txt"),
        ("labels.xlsx", "captions are read from .txt"),
        ("tags.yml", "captions are read from .txt"),
        ("photos.zip", "archives are not opened"),
    ],
)
def test_what_may_be_meant_is_not_called_nothing_to_do(tmp_path, name, reason):
    photos = photos_in(tmp_path / "photos")
    if name.endswith("/"):
        (photos / name).mkdir()
        picture(77).save(photos / name / "a.png")
    else:
        (photos / name).write_bytes(b'{"caption": "a zwx toy"}')
    (photos / "empty").mkdir()
    found = scan(photos)
    said = [finding for finding in found.findings if name in finding]
    assert len(said) == 1 and said[0].startswith("not used: ") and reason in said[0]
    assert found.ignored == ("empty/",)


def test_photos_that_lie_deeper_are_told_too(tmp_path):
    photos = photos_in(tmp_path / "photos")
    (photos / "2024" / "05").mkdir(parents=True)
    picture(77).save(photos / "2024" / "05" / "a.png")
    (photos / "old" / "notes").mkdir(parents=True)
    found = scan(photos)
    assert any(said.startswith("not used: 2024/, for photos are taken") for said in found.findings)
    assert found.ignored == ("old/",)
    (tmp_path / "camera" / "DCIM" / "100").mkdir(parents=True)
    picture(1).save(tmp_path / "camera" / "DCIM" / "100" / "a.png")
    assert "its subfolders do (DCIM): give one of these" in refusal(scan, tmp_path / "camera")


@pytest.mark.parametrize("name, told", [("captions.txt", True), ("README.txt", False)])
def test_one_text_alone_counts_where_its_name_says_so(tmp_path, name, told):
    photos = photos_in(tmp_path / "photos")
    (photos / name).write_text("img0.png: a zwx toy")
    assert any(f"by the name of {name}" in said for said in scan(photos).findings) is told


def test_every_stray_is_named(tmp_path):
    photos = photos_in(tmp_path / "photos")
    for k in range(9):
        (photos / f"clip{k}.mov").write_bytes(b"\0\0\0\x14ftypqt  \0\0\0\0qt  ")
    assert all(f"clip{k}.mov" in report(scan(photos)) for k in range(9))


@pytest.mark.parametrize("name", ["a.xcf", "a.kra", "a.ppm", "a.ico", "a.nrw", "a.x3f"])
def test_what_its_owner_calls_a_picture_is_no_stray(tmp_path, name):
    photos = photos_in(tmp_path / "photos")
    (photos / name).write_bytes(b"no form that is known here" + bytes(100))
    [error] = [p.error for p in scan(photos) if p.path.name == name]
    assert f"is a {name[2:].upper()} file, which cannot be read here; export it as" in error


@pytest.mark.parametrize(
    "name, head, said",
    [
        ("a.jpg", b"\0\0\0\x0cJXL \r\n\x87\n", "is a JXL file"),
        ("a.png", b"8BPS\0\1", "is a PSD file"),
        ("a.tif", b"II*\0\x10\0\0\0CR\2\0", "is a CR2 file"),
        ("a.pef", b"MM\0*\0\0\0\x08", "is a PEF file"),
        ("camera", b"II*\0\x10\0\0\0CR\2\0", "is a CR2 file"),
    ],
)
def test_a_format_that_cannot_be_read_is_called_by_its_content(tmp_path, name, head, said):
    photos = photos_in(tmp_path / "photos")
    (photos / name).write_bytes(head + bytes(100))
    assert said in next(p.error for p in scan(photos) if p.path.name == name)


def test_a_cut_download_is_no_stray(tmp_path):
    photos = photos_in(tmp_path / "photos")
    picture(9).save(tmp_path / "whole.jpg", quality=90)
    (photos / "a.crdownload").write_bytes((tmp_path / "whole.jpg").read_bytes()[:3000])
    assert "a.crdownload: is damaged or cut short" in report(scan(photos))


# ---- captions beside photos


def test_captions_beside_the_photos_are_used_and_it_is_said(tmp_path):
    photos = photos_in(tmp_path / "photos", 5)
    (photos / "img0.txt").write_text("a zwx toy\n on a table \n")
    (photos / "IMG1.TXT").write_text("a red toy")
    (photos / "img2.caption").write_text("\ufeffa zwx toy in the snow", "utf-8")
    (photos / "img3.png.txt").write_text("a zwx toy, m\u00fcde", "utf-16")  # of Windows' Notepad
    (photos / "img4.txt").write_text(" \n")
    (photos / "notes.txt").write_text("bought in May")
    captions, notes = captions_of(photos, tmp_path / "out")
    assert captions == [
        "a zwx toy on a table",
        "a red zwx toy",
        "a zwx toy in the snow",
        "a zwx toy, m\u00fcde",
        "a zwx toy",
    ]
    assert "img0.png: has the caption of img0.txt" in notes
    assert "img1.png: has the caption of IMG1.TXT, with the identifier 'zwx'" in notes
    assert not any(note.startswith("img4.png: has the caption") for note in notes)
    assert any("no photo goes by the name of notes.txt" in note for note in notes)
    found = scan(photos)
    assert found.ignored == ("notes.txt",)
    assert "captions are taken from img0.txt, IMG1.TXT, img2.caption" in report(found)


@pytest.mark.parametrize("column", ["text", "caption", "prompt"])
@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_captions_of_a_table_are_used(tmp_path, name, column):
    photos = photos_in(tmp_path / "photos", 3)
    rows = [("img0.png", "a zwx toy, red"), ("img1.png", "a toy"), ("gone.png", "a zwx toy")]
    if name.endswith(".csv"):
        lines = [f"file_name,{column}", *(f'{file},"{text}"' for file, text in rows)]
    else:
        lines = [json.dumps({"file_name": file, column: text}) for file, text in rows]
    (photos / name).write_text("\n".join(lines) + "\n\n")
    captions, notes = captions_of(photos, tmp_path / "out")
    assert captions == ["a zwx toy, red", "a zwx toy", "a zwx toy"]
    assert f"img0.png: has the caption of {name}" in notes
    assert any("names gone.png, which the folder does not have" in note for note in notes)
    (photos / "img0.txt").write_text("a zwx toy, blue")
    assert captions_of(photos, tmp_path / "out")[0][0] == "a zwx toy, blue", "the nearer one counts"


@pytest.mark.parametrize("written", ["./img0.png", "IMG0.PNG", "x/../img0.png"])
def test_a_table_may_write_a_name_in_another_way(tmp_path, written):
    photos = photos_in(tmp_path / "photos", 3)
    row = {"file_name": written, "text": "a zwx toy, red"}
    (photos / "metadata.jsonl").write_text(json.dumps(row))
    captions, notes = captions_of(photos, tmp_path / "out")
    assert captions[0] == "a zwx toy, red" and not any("does not have" in note for note in notes)


def test_a_table_of_a_name_in_capitals_and_one_without_keeps_them_apart(tmp_path):
    photos = photos_in(tmp_path / "photos", 3)
    picture(9).save(photos / "IMG0.png")
    rows = [{"file_name": f"{name}.png", "text": f"a zwx toy, {name}"} for name in ("img0", "IMG0")]
    (photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = {photo.path.name: photo.caption for photo in scan(photos)}
    assert found["img0.png"] == "a zwx toy, img0" and found["IMG0.png"] == "a zwx toy, IMG0"


@pytest.mark.parametrize("between", [";", "\t"])
def test_a_spreadsheets_columns_may_be_parted_otherwise(tmp_path, between):
    photos = photos_in(tmp_path / "photos", 3)
    rows = [["file_name", "text"], ["img0.png", "a zwx toy, red"]]
    lines = "\r\n".join(between.join(row) for row in rows)
    (photos / "metadata.csv").write_text(lines, "utf-8-sig", newline="")
    assert captions_of(photos, tmp_path / "out")[0][0] == "a zwx toy, red"


def test_a_caption_of_several_texts_is_refused_and_not_written_as_python_shows_it(tmp_path):
    photos = photos_in(tmp_path / "photos", 3)
    row = {"file_name": "img0.png", "text": ["a zwx toy", "a red zwx toy"]}
    (photos / "metadata.jsonl").write_text(json.dumps(row))
    said = refusal(scan, photos)
    assert "metadata.jsonl: the caption of img0.png is no text (['a zwx toy'" in said


def test_the_caption_of_a_left_out_copy_is_the_pictures(tmp_path):
    """It lay beside the copy that is left out, and was lost without a word."""
    photos = photos_in(tmp_path / "photos")
    for k in (0, 1):
        shutil.copy(photos / f"img{k}.png", photos / f"img{k} (1).png")
    (photos / "img0.txt").write_text("a zwx toy in the snow")
    (photos / "subject.json").write_text(json.dumps({"captions": {"img1.png": "a zwx toy, mine"}}))
    captions, notes = captions_of(photos, tmp_path / "out")
    assert captions[:2] == ["a zwx toy in the snow", "a zwx toy, mine"]
    assert "img0 (1).png: has the caption of img0.txt" in notes
    assert "img0.png: has the caption of img0.txt" not in notes, "it is left out"


def test_a_data_set_of_ours_is_prepared_again_with_its_captions(tmp_path):
    photos = photos_in(tmp_path / "photos")
    edits = [{"file": "img1.png", "caption": "a zwx toy in the snow"}]
    first, _ = captions_of(photos, tmp_path / "out", edits=edits)
    shutil.copytree(tmp_path / "out" / "train", tmp_path / "copied")
    assert captions_of(tmp_path / "copied", tmp_path / "again")[0] == first


def test_the_words_of_subject_json_and_of_the_plan_come_before_a_file(tmp_path):
    photos = photos_in(tmp_path / "photos")
    for k in range(3):
        (photos / f"img{k}.txt").write_text(f"zwx toy {k}")
    (photos / "subject.json").write_text(json.dumps({"captions": {"img0.png": "a zwx toy, mine"}}))
    edits = [{"file": "img1.png", "caption": "a zwx toy, typed"}]
    captions, notes = captions_of(photos, tmp_path / "out", edits=edits)
    assert captions == ["a zwx toy, mine", "a zwx toy, typed", "zwx toy 2", "a zwx toy"]
    assert not any(note.startswith("img0.png: has the caption") for note in notes)
    entries = plan(scan(photos), Subject("style", "toy", "vqx"))
    assert entries[2]["caption"] == "zwx toy in vqx style 2"


def test_caption_files_that_cannot_be_read_are_refused_by_name(tmp_path):
    photos = photos_in(tmp_path / "photos")
    (photos / "img0.txt").write_bytes(b"a zwx toy, m\xfcde")
    assert "img0.txt cannot be read as text" in refusal(scan, photos)
    (photos / "img0.txt").unlink()
    (photos / "metadata.jsonl").write_text('{"file_name": "img0.png", "text": "a"}\n[1]\n')
    assert "metadata.jsonl: line 2 is no JSON object" in refusal(scan, photos)
    (photos / "metadata.jsonl").write_text('{"file": "img0.png", "label": 3}\n')
    found = scan(photos)
    assert found.ignored == ("metadata.jsonl",)
    assert any("metadata.jsonl has no captions that can be read" in f for f in found.findings)
    (photos / "metadata.jsonl").unlink()
    (photos / "img1.txt").write_text("zwx toy " * 50)
    assert "caption of img1.png is 399 characters long" in refusal(
        prepare, photos, tmp_path / "out", "toy", "zwx"
    )


# ---- Kohya's repeats


@pytest.fixture
def weighted(tmp_path):
    """Two photos that count three times (12 repeats to 4) as much as two others; the class."""
    photos_in(tmp_path / "kohya/img/12_zwx toy", 2)
    photos_in(tmp_path / "kohya/img/4_zwx toy", 2, start=2)
    photos_in(tmp_path / "kohya/reg/1_toy", 2, start=4)
    return tmp_path / "kohya"


def test_kohyas_repeats_are_kept_as_weights(weighted, make, tmp_path, monkeypatch):
    dataset, notes = from_kohya(weighted, tmp_path / "data", held_out=0)
    assert [item.repeats for item in dataset.train] == [3, 3, 1, 1]
    assert "the repeats of 12_zwx toy, 4_zwx toy are kept as weights" in notes[0]
    assert [item.repeats for item in load_dataset(dataset.root).train] == [3, 3, 1, 1]
    gather, seen = loop.gather, Counter()

    def watched(base, sources, draw, train_steps):
        batch = gather(base, sources, draw, train_steps)
        seen.update(id(sources[0].means[k]) for k in draw.indices[0].tolist())
        return batch

    monkeypatch.setattr(loop, "gather", watched)
    loop.train(make(data=str(dataset.root), steps=8, batch_size=2))
    assert sorted(seen.values()) == [2, 2, 6, 6]


def test_a_picture_that_comes_repeatedly_is_encoded_once(weighted, tiny_folder, tmp_path):
    from lib.models.base import load_base

    dataset, _ = from_kohya(weighted, tmp_path / "data", held_out=0)
    base = load_base(tiny_folder)
    once, often = cache_latents(base, dataset.train), cache_latents(base, repeated(dataset.train))
    assert len(often.means) == 8 and len({id(mean) for mean in often.means}) == 4
    assert all(bool((often.means[k] == once.means[0]).all()) for k in range(3))
    assert often.rows.tolist() == [once.rows[k].item() for k in (0, 0, 0, 1, 1, 1, 2, 3)]


def test_weights_go_back_to_kohyas_folders(weighted, tmp_path):
    dataset, _ = from_kohya(weighted, tmp_path / "data", held_out=0)
    out = to_kohya(dataset.root, tmp_path / "back", repeats=5)
    names = {path.name: len(list(path.glob("*.png"))) for path in (out / "train").iterdir()}
    assert names == {"15_zwx toy": 2, "5_zwx toy": 2}
    again, _ = from_kohya(out, tmp_path / "again", held_out=0)
    assert sorted(item.repeats for item in again.train) == [1, 1, 3, 3]


def test_what_of_kohyas_repeats_is_lost_is_said(weighted, tmp_path):
    photos_in(weighted / "reg/3_toy", 1, start=6)
    photos_in(weighted / "img/0_zwx toy", 1, start=7)
    (weighted / "reg/1_toy/broken.png").write_bytes(b"\x89PNG")
    dataset, notes = from_kohya(weighted, tmp_path / "data", held_out=0)
    assert len(dataset.train) == 4 and len(dataset.class_images) == 3
    assert "the repeats of 1_toy, 3_toy are not kept" in " ".join(notes)
    assert "0_zwx toy: 0 repeats, so it is not trained on; give it 1 to use it" in notes
    assert any(note.startswith("1_toy: broken.png: is damaged") for note in notes)


def test_a_picture_in_two_of_kohyas_folders_counts_for_both(tmp_path):
    """It was "an exact copy ... nothing to do", and had the weight of one folder alone."""
    photos_in(tmp_path / "kohya/img/4_zwx toy", 4)
    best = photos_in(tmp_path / "kohya/img/3_zwx toy", 2)
    (best / "img0.txt").write_text("a zwx toy in the snow")
    (tmp_path / "kohya/img/4_zwx toy/img1.txt").write_text("a zwx toy on a table")
    dataset, notes = from_kohya(tmp_path / "kohya", tmp_path / "data", held_out=0)
    assert [item.repeats for item in dataset.train] == [7, 7, 4, 4]
    assert [item.caption for item in dataset.train[:2]] == [
        "a zwx toy in the snow",
        "a zwx toy on a table",
    ]
    told = "in more than one folder, so that the repeats of all of them count: "
    assert f"{told}4_zwx toy - img0.png, 4_zwx toy - img1.png" in notes
    assert not any("exact copy" in note for note in notes)


def test_what_lies_beside_kohyas_folders_is_not_passed_over_without_a_word(tmp_path):
    photos_in(tmp_path / "kohya/img/5_zwx toy", 4)
    photos_in(tmp_path / "kohya/img/zwx toy", 2, start=4)
    photos_in(tmp_path / "kohya/img", 1, start=6)
    photos_in(tmp_path / "kohya/class/1_toy", 1, start=7)
    photos_in(tmp_path / "kohya/reg/1_toy", 1, start=8)
    (tmp_path / "kohya/model").mkdir()
    _, notes = from_kohya(tmp_path / "kohya", tmp_path / "data", held_out=0)
    assert notes[0].startswith("not used: class, img6.png, zwx toy, for no folder such as '10_zwx")
    photos_in(tmp_path / "plain/5_zwx toy", 4)
    _, notes = from_kohya(tmp_path / "plain", tmp_path / "data", held_out=0)
    assert not any(note.startswith("not used") for note in notes)


def test_what_is_said_of_kohyas_pictures_names_their_folder_and_file(tmp_path):
    """It named the files of a folder that is made on the way: train_0_img0.png."""
    photos = photos_in(tmp_path / "kohya/4_zwx toy")
    photos_in(tmp_path / "kohya/held_out/4_zwx toy", 1, start=5)
    (photos / "broken.png").write_bytes(b"\x89PNG")
    dataset, notes = from_kohya(tmp_path / "kohya", tmp_path / "data")
    assert any(note.startswith("4_zwx toy - broken.png: is damaged") for note in notes)
    assert any(note.endswith(": held_out - 4_zwx toy - img5.png") for note in notes)
    assert len(dataset.test) == 1 and len(dataset.train) == 4
    (photos / "img0.txt").write_text("zwx toy " * 50)
    said = refusal(from_kohya, tmp_path / "kohya", tmp_path / "other")
    assert said.startswith("caption of 4_zwx toy - img0.png is 399 characters long")


def test_kohyas_pictures_may_have_names_as_long_as_a_disk_takes(tmp_path):
    folder = photos_in(tmp_path / "kohya/4_zwx toy", 2)
    for k in (2, 3):
        picture(k).save(folder / f"{'n' * 246}{k}.png")
    dataset, _ = from_kohya(tmp_path / "kohya", tmp_path / "data", held_out=0)
    assert len(dataset.train) == 4


@pytest.mark.parametrize(
    "folders, asked, said",
    [
        (["1_zwx toy", "1_abc toy"], "", "move the folders of the others elsewhere"),
        (["1_zwx_toy"], "", "write into its name what it is, such as '1_zwx_toy robot'"),
        (["1_zwx toy"], "1_zwx toy", "name the folder that it lies in, "),
    ],
)
def test_what_kohyas_folders_are_refused_for_says_what_to_do(tmp_path, folders, asked, said):
    for k, folder in enumerate(folders):
        photos_in(tmp_path / folder, start=4 * k)
    assert said in refusal(from_kohya, tmp_path / asked, tmp_path / "out")


def test_equal_repeats_change_nothing(tmp_path):
    photos_in(tmp_path / "kohya/10_zwx toy")
    dataset, notes = from_kohya(tmp_path / "kohya", tmp_path / "data", held_out=0)
    assert {item.repeats for item in dataset.train} == {1} and "lengthen an epoch" in notes[0]
    assert "repeats" not in (dataset.root / "train" / "metadata.jsonl").read_text()
    assert "repeats" not in str(read_json(dataset.root / "dataset.json")["photos"])


@pytest.mark.parametrize("repeats", [0, 2.5, True, "3", 10**6])
def test_repeats_in_a_plan_are_whole_numbers(tmp_path, repeats):
    photos = photos_in(tmp_path / "photos")
    edits = [{"file": "img0.png", "repeats": repeats}]
    said = refusal(prepare, photos, tmp_path / "out", "toy", "zwx", edits=edits)
    assert "plan of img0.png: repeats is" in said and "from 1 to 10000" in said


def test_a_folder_of_kohyas_folders_names_the_command_for_it(tmp_path):
    photos_in(tmp_path / "kohya/10_zwx toy")
    assert "python -m lib from-kohya" in refusal(scan, tmp_path / "kohya")
    assert Image.open(tmp_path / "kohya/10_zwx toy/img0.png").size == (200, 200)


@pytest.mark.parametrize("kind, told", [(None, False), ("character", True), ("style", False)])
def test_a_folder_says_itself_that_its_backgrounds_may_be_alike(kind, told):
    found = scan(ROOT / "data" / "subjects" / "lighting", kind=kind).findings
    assert any("same background" in line for line in found) == told
