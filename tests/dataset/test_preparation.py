"""lib.dataset.preparation: every kind of bad photo, folder, word and edit; and the data set that
comes out.
"""

import hashlib
import io
import json
import os
import resource
import shutil
import zlib

import numpy as np
import pillow_heif
import pytest
from conftest import ROOT
from made_photos import picture, refusal
from PIL import ExifTags, Image, ImageCms, ImageFile, ImageFilter, ImageOps

from lib.dataset.captions import prompts, read_subject
from lib.dataset.folder_scan import scan, softness
from lib.dataset.imagefolder import add_class_images, load_dataset
from lib.dataset.photo_file import open_photo
from lib.dataset.preparation import plan, prepare

pillow_heif.register_heif_opener()  # so that Pillow can save HEIC

REAL = ROOT.parent / "shared" / "photos"


def folder_of(path, count=5, **options):
    path.mkdir(parents=True)
    for i in range(count):
        picture(i, **options).save(path / f"{i}.png")
    return path


def snapshot(folder):
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else None)
        for p in sorted(folder.rglob("*"))
    }


def contents(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def look(path, image, name="a.png", **options):
    """Save one picture into a folder of its own and return its `Photo`."""
    path.mkdir(exist_ok=True)
    image.save(path / name, **options)
    return next(p for p in scan(path) if p.path.name == name)


def said(photo, words):
    return any(words in finding for finding in photo.findings)


def close(image, colour, tolerance=6):
    return np.abs(np.asarray(image, int) - np.asarray(colour)).max() <= tolerance


# ---- the data set


def test_data_set_is_imagefolder_and_photos_stay_as_they_were(tmp_path):
    photos = folder_of(tmp_path / "photos", size=(220, 180))
    before = snapshot(photos)
    data = prepare(photos, tmp_path / "out", "toy", "zwx")
    assert snapshot(photos) == before
    assert (len(data.train), len(data.test), data.class_images) == (3, 2, [])
    for split, items in (("train", data.train), ("test", data.test)):
        lines = [
            json.loads(line)
            for line in (data.root / split / "metadata.jsonl").read_text().splitlines()
        ]
        assert lines == [{"file_name": item.path.name, "text": "a zwx toy"} for item in items]
        for item in items:
            with Image.open(item.path) as image:
                assert (image.format, image.mode, image.size) == ("PNG", "RGB", (64, 64))
    assert any("held out" in note for note in data.notes)
    assert sorted(os.listdir(tmp_path)) == ["out", "photos"]  # no temporary folder is left


def test_same_inputs_give_the_same_bytes_and_another_seed_another_split(tmp_path):
    photos = folder_of(tmp_path / "photos", 6)
    first = prepare(photos, tmp_path / "a", "toy", "zwx")
    prepare(photos, tmp_path / "a", "toy", "zwx")
    prepare(photos, tmp_path / "b", "toy", "zwx")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    held_out = set()
    for seed in range(5):
        record = json.loads(
            (
                prepare(photos, tmp_path / "c", "toy", "zwx", seed=seed).root / "dataset.json"
            ).read_text()
        )
        held_out.add(tuple(p["file"] for p in record["photos"] if p["use"] == "test"))
    assert len(held_out) > 1
    assert first.train[0].path.parent.parent == (tmp_path / "a").resolve()


@pytest.mark.parametrize("count, held_out", [(2, 0), (3, 0), (4, 1), (5, 2), (7, 2)])
def test_number_held_out(tmp_path, count, held_out):
    data = prepare(folder_of(tmp_path / "photos", count), tmp_path / "out", "toy", "zwx")
    assert len(data.test) == held_out and len(data.train) == count - held_out
    assert any("no photo is held out" in note for note in data.notes) == (held_out == 0)
    assert (data.root / "test").exists() == (held_out > 0)


def test_class_images_are_added_and_replaced(tmp_path):
    data = prepare(folder_of(tmp_path / "photos"), tmp_path / "out", "toy", "zwx")
    before = contents(data.root / "train")
    images = [picture(i, (64, 64)) for i in range(3)]
    more = add_class_images(data, images, ["a toy", "a toy in the snow", "a toy"])
    assert [item.caption for item in more.class_images] == ["a toy", "a toy in the snow", "a toy"]
    assert np.array_equal(np.asarray(Image.open(more.class_images[1].path)), np.asarray(images[1]))
    assert len(add_class_images(more, images[:1], ["a toy"]).class_images) == 1
    assert (
        contents(data.root / "train") == before and len(load_dataset(data.root).class_images) == 1
    )
    assert "2 captions" in refusal(add_class_images, data, images, ["a", "b"])
    assert "make it 64 x 64" in refusal(add_class_images, data, [picture(1, (32, 32))], ["a toy"])


def test_load_refuses_what_is_incomplete_or_damaged(tmp_path):
    data = prepare(folder_of(tmp_path / "photos"), tmp_path / "out", "toy", "zwx")
    assert load_dataset(data.root) == data
    shutil.copytree(data.root, tmp_path / "missing")
    (tmp_path / "missing/train/001.png").unlink()
    assert "train/001.png is missing" in refusal(load_dataset, tmp_path / "missing")
    shutil.copytree(data.root, tmp_path / "damaged")
    whole = (tmp_path / "damaged/test/000.png").read_bytes()
    (tmp_path / "damaged/test/000.png").write_bytes(whole[:-20])
    assert "test/000.png" in refusal(load_dataset, tmp_path / "damaged")
    assert "no prepared data set" in refusal(load_dataset, tmp_path / "photos")
    assert "no prepared data set" in refusal(load_dataset, tmp_path / "nowhere")


def test_output_never_replaces_what_is_the_users(tmp_path):
    photos = folder_of(tmp_path / "photos")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    assert "exists and is no data set" in refusal(prepare, photos, mine, "toy", "zwx")
    assert (mine / "thesis.txt").read_text() == "years of work"
    for output in (photos, photos / "out", tmp_path):
        assert "within each other" in refusal(prepare, photos, output, "toy", "zwx")
    data = prepare(photos, tmp_path / "out", "toy", "zwx")
    (data.root / "notes.txt").write_text("mine too")
    assert "notes.txt" in refusal(prepare, photos, tmp_path / "out", "toy", "zwx")
    assert (data.root / "notes.txt").exists()
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in refusal(
        prepare, photos, tmp_path / "file" / "out", "toy", "zwx"
    )
    (tmp_path / "empty").mkdir()
    assert prepare(photos, tmp_path / "empty", "toy", "zwx").train


def test_a_failure_while_writing_leaves_the_earlier_data_set(tmp_path):
    photos = folder_of(tmp_path / "photos")
    prepare(photos, tmp_path / "out", "toy", "zwx")
    before = contents(tmp_path / "out")

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:  # a disk that takes no file of more than 20 kB
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        assert "cannot be written" in refusal(
            prepare, photos, tmp_path / "out", "toy", "vqx", resolution=512
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(tmp_path / "out") == before and sorted(os.listdir(tmp_path)) == [
        "out",
        "photos",
    ]


# ---- folders


def test_missing_empty_and_one_picture_folders(tmp_path):
    assert "does not exist" in refusal(scan, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds no photos" in refusal(scan, tmp_path / "empty")
    assert "only one photo" in refusal(
        prepare, folder_of(tmp_path / "one", 1), tmp_path / "out", "toy", "zwx"
    )
    (tmp_path / "file.zip").write_bytes(b"PK")
    assert "unpack" in refusal(scan, tmp_path / "file.zip")
    folder_of(tmp_path / "parent" / "cat")
    assert "(cat)" in refusal(scan, tmp_path / "parent")
    assert not (tmp_path / "out").exists()


def test_strays_are_ignored_and_named(tmp_path):
    photos = folder_of(tmp_path / "photos")
    (photos / ".ipynb_checkpoints").mkdir()
    picture(9).save(photos / ".ipynb_checkpoints" / "0-checkpoint.png")
    picture(9).save(photos / "._0.png")
    for name in ("Thumbs.db", ".DS_Store", "notes.txt", "desktop.ini"):
        (photos / name).write_bytes(b"x")
    (photos / "folder.png").mkdir()
    found = scan(photos)
    assert [p.path.name for p in found] == [f"{i}.png" for i in range(5)]
    assert set(found.ignored) == {
        ".ipynb_checkpoints/",
        "._0.png",
        "Thumbs.db",
        ".DS_Store",
        "notes.txt",
        "desktop.ini",
        "folder.png/",
    }
    assert any("ignored" in finding for finding in found.findings)
    assert len(prepare(photos, tmp_path / "out", "toy", "zwx").train) == 3


def test_names_with_spaces_other_alphabets_and_no_text_at_all(tmp_path):
    photos = tmp_path / "my photos"
    photos.mkdir()
    names = ["my robot (1).PNG", "снимок.png", "写真.png", "صورة.png", "e\u0301t\u00e9 🌞.png"]
    for i, name in enumerate(names):
        picture(i).save(photos / name)
    shutil.copyfile(photos / names[0], os.fsencode(photos) + b"/\xff\n.png")
    (photos / "subject.json").write_text(
        json.dumps(
            {"held_out": ["\u00e9t\u00e9 🌞.png"], "captions": {"写真.png": "a zwx toy 写真"}}
        )
    )
    data = prepare(photos, tmp_path / "naïve out", "toy", "zwx")
    assert len(data.test) == 1 and "a zwx toy 写真" in [item.caption for item in data.train]
    assert all(note.isprintable() for note in data.notes)
    assert load_dataset(data.root) == data


# ---- files that cannot be used


def encoded(format):
    """The bytes of a picture in a format of phones."""
    file = io.BytesIO()
    picture(1).save(file, format, quality=90)
    return file.getvalue()


def broken_files(path):
    """Every kind of file that cannot be used, with words that its sentence must hold."""
    picture(1).save(path / "whole.jpg", quality=90)
    picture(1).save(path / "whole.png")
    (path / "cut.jpg").write_bytes((path / "whole.jpg").read_bytes()[:3000])
    (path / "cut.png").write_bytes((path / "whole.png").read_bytes()[:3000])
    (path / "text.jpg").write_text("I am no picture")
    (path / "page.png").write_text("<html>404</html>")
    (path / "empty.jpg").write_bytes(b"")
    heic, avif = encoded("HEIF"), encoded("AVIF")
    (path / "cut.heic").write_bytes(heic[: len(heic) // 2])
    data = heic.index(b"mdat") + 4
    (path / "zeros.heic").write_bytes(heic[:data] + bytes(len(heic) - data))
    (path / "scratched.heic").write_bytes(heic[:200] + bytes(100) + heic[300:])
    (path / "cut.avif").write_bytes(avif[: len(avif) // 2])
    (path / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(50))
    (path / "renamed.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(50))
    (path / "camera.cr2").write_bytes(b"II*\0" + bytes(50))
    Image.new("RGB", (8, 8), "red").save(path / "dot.png")
    bomb = bytearray((path / "whole.png").read_bytes())
    bomb[16:24] = (60000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    (path / "bomb.png").write_bytes(bomb)
    (path / "link.jpg").symlink_to(path / "gone.jpg")
    (path / "renamed.png").write_bytes(b"\0\0\0\x1cftypavif" + bytes(50))
    return {
        "renamed.png": "AVIF",
        "cut.heic": "damaged or cut short (HEIC: ",
        "zeros.heic": "damaged or cut short (HEIC: ",
        "scratched.heic": "damaged or cut short (HEIC: ",
        "cut.avif": "damaged or cut short (AVIF: ",
        "cut.jpg": "damaged or cut short",
        "cut.png": "damaged or cut short",
        "text.jpg": "no picture",
        "page.png": "no picture",
        "empty.jpg": "0 bytes",
        "phone.HEIC": "HEIC",
        "renamed.jpg": "HEIC",
        "camera.cr2": "export it as JPEG",
        "dot.png": "8 x 8",
        "bomb.png": "60000 x 60000",
        "link.jpg": "broken link",
    }


def test_files_that_cannot_be_used_are_named_with_reason_and_remedy(tmp_path):
    expected = broken_files(tmp_path)
    found = {p.path.name: p for p in scan(tmp_path)}
    assert {name for name, p in found.items() if p.error} == set(expected)
    for name, words in expected.items():
        assert words in found[name].error and (";" in found[name].error)
        text = refusal(open_photo, tmp_path / name)
        assert text.startswith(f"{name}: ") and found[name].error in text


def test_broken_files_are_left_out_and_said_and_refused_when_nothing_else_is_there(tmp_path):
    (tmp_path / "photos").mkdir()
    expected = broken_files(tmp_path / "photos")
    (tmp_path / "photos/whole.jpg").unlink()
    text = refusal(prepare, tmp_path / "photos", tmp_path / "out", "toy", "zwx")
    assert "only one photo" in text and "bomb.png" in text and "more" in text
    for i in range(3):
        picture(10 + i).save(tmp_path / f"photos/good{i}.png")
    data = prepare(tmp_path / "photos", tmp_path / "out", "toy", "zwx")
    assert len(data.train) + len(data.test) == 4
    for name in expected:
        assert any(note.startswith(f"{name}: ") for note in data.notes)
    text = refusal(
        prepare,
        tmp_path / "photos",
        tmp_path / "out",
        "toy",
        "zwx",
        edits=[{"file": "cut.jpg", "use": "train"}],
    )
    assert text.startswith("cut.jpg: is damaged")


def test_truncation_is_seen_even_if_another_library_told_pillow_to_ignore_it(tmp_path, monkeypatch):
    broken_files(tmp_path)
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    assert "cut short" in refusal(open_photo, tmp_path / "cut.jpg")
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 1000)
    assert open_photo(tmp_path / "whole.png")[0].size == (200, 200)
    assert Image.MAX_IMAGE_PIXELS == 1000 and ImageFile.LOAD_TRUNCATED_IMAGES is True


# ---- unusual pictures


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".heic", ".avif"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_rotation(tmp_path, turn, suffix):
    upright = Image.new("RGB", (120, 60), "red")
    upright.paste("blue", (0, 0, 60, 30))  # blue where an upright picture has its upper left
    stored = {
        1: upright,
        2: ImageOps.mirror(upright),
        3: upright.rotate(180),
        4: ImageOps.flip(upright),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[turn]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turn
    stored.save(
        tmp_path / f"a{suffix}",
        # A HEIC is turned by a box of its own, which Pillow's writer makes of EXIF in bytes.
        exif=exif.tobytes() if suffix == ".heic" else exif,
        **({} if suffix in (".png", ".tif") else {"quality": 95}),
    )
    image, size, *_ = open_photo(tmp_path / f"a{suffix}")
    assert size == image.size == (120, 60)
    assert close(image.getpixel((10, 10)), (0, 0, 255), 12) and close(
        image.getpixel((110, 50)), (255, 0, 0), 12
    )


def test_a_heic_without_its_package_and_an_avif_without_its_decoder_are_refused_with_the_remedy(
    tmp_path, monkeypatch
):
    picture(1).save(tmp_path / "a.heic", quality=90)
    picture(1).save(tmp_path / "b.avif", quality=90)
    monkeypatch.setattr("lib.dataset.photo_file.find_spec", lambda name: None)
    monkeypatch.setattr("lib.dataset.photo_file.features.check", lambda name: False)
    text = refusal(open_photo, tmp_path / "a.heic")
    assert "pip install pillow-heif" in text and "Most Compatible" in text
    text = refusal(open_photo, tmp_path / "b.avif")
    assert "pip install --upgrade pillow" in text and "JPEG" in text


@pytest.mark.parametrize("suffix", [".heic", ".avif"])
def test_what_phones_save_is_read_as_a_jpeg_is(tmp_path, suffix):
    whole, clear = picture(1, (400, 300)), Image.new("RGBA", (64, 48), (255, 0, 0, 128))
    whole.save(tmp_path / f"a{suffix}", quality=90)
    whole.save(tmp_path / "renamed.jpg", format={".heic": "HEIF", ".avif": "AVIF"}[suffix])
    clear.save(tmp_path / f"clear{suffix}", quality=95)
    found = {photo.path.name: photo for photo in scan(tmp_path)}
    for name in (f"a{suffix}", "renamed.jpg"):
        photo = found[name]
        assert (photo.width, photo.height, photo.error) == (400, 300, None)
        assert photo.format == suffix[1:].upper() and photo.mode == "RGB"
    full, small = open_photo(tmp_path / f"a{suffix}"), open_photo(tmp_path / f"a{suffix}", 100)
    difference = np.asarray(full.picture, int) - np.asarray(whole, int)
    assert np.abs(difference).mean() < 12 and not full.picture.info and not full.findings
    assert small.picture.size == (134, 100) and small.size == (400, 300)
    on_white = open_photo(tmp_path / f"clear{suffix}")
    assert close(on_white.picture.getpixel((30, 20)), (255, 127, 127), 6)
    assert any("partly transparent" in finding for finding in on_white.findings)


def test_a_heic_of_10_bits_is_scaled_to_8_and_says_so(tmp_path):
    values = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    data = np.stack([values] * 3, -1).tobytes()
    deep = pillow_heif.from_bytes(mode="RGB;16", size=(64, 64), data=data)
    deep.save(tmp_path / "a.heic", quality=-1)
    photo = open_photo(tmp_path / "a.heic")
    assert np.abs(np.asarray(photo.picture)[..., 0] - values / 257.0).max() < 4
    assert any("10 bits" in finding for finding in photo.findings)


def test_gps_is_said_and_nothing_of_the_metadata_reaches_the_data_set(tmp_path):
    photos = folder_of(tmp_path / "photos", 3)
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "SecretCam"
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(
        {1: "N", 2: (52.0, 31.0, 12.0), 3: "E", 4: (13.0, 24.0, 18.0)}
    )
    picture(7).save(photos / "gps.jpg", exif=exif, comment=b"SecretCam", quality=95)
    picture(8).save(photos / "gps.png", exif=exif)
    picture(9).save(photos / "gps.heic", exif=exif, quality=95)
    picture(10).save(photos / "gps.avif", exif=exif, quality=95)
    found = {p.path.name: p for p in scan(photos)}
    assert (
        said(found["gps.jpg"], "GPS")
        and said(found["gps.png"], "GPS")
        and said(found["gps.heic"], "GPS")
        and said(found["gps.avif"], "GPS")
        and not said(found["0.png"], "GPS")
    )
    data = prepare(photos, tmp_path / "out", "toy", "zwx", held_out=0)
    for item in data.train:
        assert b"SecretCam" not in item.path.read_bytes() and b"eXIf" not in item.path.read_bytes()
        with Image.open(item.path) as image:
            assert not image.getexif() and not image.info


def test_mpo_of_a_phone_counts_as_jpeg(tmp_path):
    picture(1).save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[picture(2)])
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.format == "MPO"
    (photo,) = scan(tmp_path)
    assert photo.format == "JPEG" and not photo.error and not said(photo, "frames")


@pytest.mark.parametrize(
    "name, mode",
    [
        ("a.png", "P"),
        ("a.gif", "P"),
        ("a.png", "1"),
        ("a.png", "L"),
        ("a.jpg", "CMYK"),
        ("a.tif", "CMYK"),
        ("a.tif", "LAB"),
        ("a.bmp", "RGB"),
        ("a.webp", "RGB"),
        ("a.tiff", "RGB"),
    ],
)
def test_modes_and_formats_become_rgb_of_the_same_look(tmp_path, name, mode):
    grey = picture(3).convert("L").convert("RGB") if mode in ("1", "L") else picture(3)
    if mode == "LAB":
        stored = ImageCms.profileToProfile(
            grey, *map(ImageCms.createProfile, ("sRGB", "LAB")), outputMode="LAB"
        )
    else:
        stored = grey.convert(mode)
    stored.save(tmp_path / name, **({"quality": 95} if name == "a.jpg" else {}))
    image, _, _, found, _ = open_photo(tmp_path / name)
    assert image.mode == "RGB" and found == mode
    small, expected = (
        np.asarray(p.resize((20, 20), Image.Resampling.BOX), int) for p in (image, grey)
    )
    assert np.abs(small - expected).mean() < 12


def test_sixteen_bits_are_scaled_and_said(tmp_path):
    ramp = np.linspace(0, 65535, 200 * 200).reshape(200, 200)
    whole, share = ramp.astype(np.uint16), (ramp / 65535).astype(np.float32)
    for name, values in (("a.png", whole), ("a.tif", whole), ("b.tif", share)):
        photo = look(tmp_path, Image.fromarray(values), name)
        assert said(photo, "more than 8 bits") and not photo.error
        image = np.asarray(open_photo(tmp_path / name)[0], float)
        assert np.abs(image[..., 0] - ramp / 257).max() < 1.5


def test_transparency_is_put_on_white_and_said(tmp_path):
    cut_out = picture(1).convert("RGBA")
    cut_out.paste((0, 0, 0, 0), (0, 0, 200, 60))
    palette = Image.new("P", (100, 100), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.paste(0, (0, 0, 100, 40))
    grey = Image.merge(
        "LA", (Image.new("L", (100, 100), 90), cut_out.getchannel("A").resize((100, 100)))
    )
    for name, image, options in (
        ("a.png", cut_out, {}),
        ("a.webp", cut_out, {"lossless": True}),
        ("p.png", palette, {"transparency": 0}),
        ("p.gif", palette, {"transparency": 0}),
        ("la.png", grey, {}),
    ):
        photo = look(tmp_path, image, name, **options)
        assert said(photo, "transparent"), name
        assert open_photo(tmp_path / name)[0].getpixel((50, 5)) == (255, 255, 255), name
    assert not said(look(tmp_path, picture(2).convert("RGBA"), "opaque.png"), "transparent")


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_of_an_animation_the_first_frame_is_used_and_it_is_said(tmp_path, name):
    options = {"lossless": True} if name == "a.webp" else {}
    photo = look(
        tmp_path, picture(1), name, save_all=True, append_images=[picture(2), picture(3)], **options
    )
    assert said(photo, "3 frames")
    assert (
        np.abs(
            np.asarray(open_photo(tmp_path / name)[0], float) - np.asarray(picture(1), float)
        ).mean()
        < 12
    )


def test_embedded_colour_profile_is_applied(tmp_path):
    """A linear-light profile stands for any that is not sRGB: read without it, the grey would be
    far too dark.
    """
    profile = ImageCms.createProfile("LAB")
    lab = Image.merge("LAB", [Image.new("L", (100, 100), v) for v in (128, 128, 128)])
    lab.save(tmp_path / "a.tif", icc_profile=ImageCms.ImageCmsProfile(profile).tobytes())
    assert close(open_photo(tmp_path / "a.tif")[0].getpixel((50, 50)), (119, 119, 119), 6)
    picture(1).save(tmp_path / "b.png", icc_profile=b"no profile at all")
    assert open_photo(tmp_path / "b.png")[0].size == (200, 200)


def test_huge_jpeg_is_decoded_small_and_crops_stay_in_full_pixels(tmp_path):
    photos = folder_of(tmp_path / "photos", 3)
    huge = picture(5, (40, 30)).resize((8000, 6000), Image.Resampling.NEAREST)
    huge.save(photos / "huge.jpg", quality=60)
    photo = next(p for p in scan(photos) if p.path.name == "huge.jpg")
    assert (photo.width, photo.height, photo.crop[2] - photo.crop[0]) == (8000, 6000, 6000)
    assert open_photo(photos / "huge.jpg", size=256)[0].width < 800
    edits = [{"file": "huge.jpg", "use": "train", "crop": [4000, 2000, 6400, 4400]}]
    data = prepare(photos, tmp_path / "out", "toy", "zwx", edits=edits, held_out=0)
    expected = huge.crop((4000, 2000, 6400, 4400)).resize((64, 64), Image.Resampling.LANCZOS)
    assert (
        np.abs(
            np.asarray(Image.open(data.train[-1].path), float) - np.asarray(expected, float)
        ).mean()
        < 8
    )


# ---- what is found in good files


def test_a_good_photo_gives_no_finding(tmp_path):
    photos = folder_of(tmp_path / "photos")
    found = scan(photos)
    assert [p.findings for p in found] == [()] * 5 and found.findings == ()
    assert found[0].crop == (0, 0, 200, 200) and len({p.group for p in found}) == 5
    assert found[0].sha256 == hashlib.sha256((photos / "0.png").read_bytes()).hexdigest()


def test_small_narrow_dark_bright_flat_and_blurred(tmp_path):
    sharp = picture(1, (400, 400))
    cases = {
        "enlarged to 64": picture(1, (40, 40)),
        "loses most": picture(1, (600, 100)),
        "very dark": sharp.point(lambda v: v // 6),
        "overexposed": sharp.point(lambda v: 200 + v // 4),
        "one even colour": Image.new("RGB", (100, 100), "teal"),
        "blurred": sharp.filter(ImageFilter.GaussianBlur(6)),
    }
    for i, (words, image) in enumerate(cases.items()):
        photo = look(tmp_path / str(i), image)
        assert said(photo, words), words
        assert not any(said(photo, others) for others in cases if others != words), (
            words,
            photo.findings,
        )
    assert softness(sharp) < 0.5 and softness(cases["blurred"]) > 0.75
    small = look(tmp_path / "resolution", picture(1, (200, 200)))
    assert not small.findings and said(
        scan(small.path.parent, resolution=512)[0], "enlarged to 512"
    )


@pytest.mark.parametrize("bars", [(0, 40, 0, 40), (50, 0, 50, 0), (0, 0, 0, 60), (30, 30, 30, 30)])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_black_bars_are_found_and_cropped_away(tmp_path, bars, suffix):
    image = Image.new("RGB", (400, 400))
    left, top, right, bottom = bars
    image.paste(
        picture(4, (400 - left - right, 400 - top - bottom)).point(lambda v: 60 + v * 3 // 4),
        (left, top),
    )
    photo = look(tmp_path, image, f"a{suffix}")
    assert said(photo, "black bars")
    assert (
        photo.crop[0] >= left
        and photo.crop[1] >= top
        and photo.crop[2] <= 400 - right
        and photo.crop[3] <= 400 - bottom
    )
    assert photo.crop[2] - photo.crop[0] >= 400 - max(left + right, top + bottom) - 12


def test_a_dark_scene_has_no_bars(tmp_path):
    night = Image.new("RGB", (300, 300), (4, 4, 8))
    night.paste(picture(4, (120, 120)), (90, 120))
    assert not said(look(tmp_path, night), "bars")


@pytest.mark.parametrize("side", ["left", "right", "bottom"])
def test_default_crop_follows_a_subject_on_an_even_background(tmp_path, side):
    image = Image.new("RGB", (200, 500) if side == "bottom" else (500, 200), (200, 205, 210))
    where = {"left": (20, 40), "right": (360, 40), "bottom": (40, 360)}[side]
    image.paste(picture(1, (120, 120)), where)
    left, top, right, bottom = look(tmp_path, image).crop
    assert (right - left, bottom - top) == (200, 200)
    assert (
        left <= where[0]
        and top <= where[1]
        and right >= where[0] + 120
        and bottom >= where[1] + 120
    )


def variants(image):
    w, h = image.size
    crop = image.crop((w // 10, h // 8, w * 8 // 10, h * 8 // 10))
    return {
        "mirrored": ImageOps.mirror(image),
        "re-cropped": crop,
        "mirrored and re-cropped": ImageOps.mirror(crop),
        "shifted": image.crop((0, 0, w * 85 // 100, h)),
        "half of it": image.crop((w // 4, h // 4, w * 3 // 4, h * 3 // 4)),
        "smaller": image.resize((w // 2, h // 2)),
        "brighter": image.point(lambda v: min(255, v + 15)),
    }


@pytest.mark.parametrize("how", list(variants(Image.new("RGB", (9, 9)))))
@pytest.mark.parametrize("seed", [11, 12, 13])
def test_near_duplicates_share_a_group(tmp_path, how, seed):
    photos = folder_of(tmp_path / "photos", 3)
    original = picture(seed, (300, 240)).filter(ImageFilter.GaussianBlur(0.7))
    original.save(photos / "a.png")
    variants(original)[how].save(photos / "b.jpg", quality=85)
    found = {p.path.name: p for p in scan(photos)}
    assert found["a.png"].group == found["b.jpg"].group
    assert len({p.group for p in found.values()}) == 4
    assert said(found["b.jpg"], "same picture as a.png") and said(found["b.jpg"], "(mirrored)") == (
        "mirrored" in how
    )


def test_of_many_pictures_that_are_the_same_a_photo_says_it_once(tmp_path):
    photos = folder_of(tmp_path / "photos", 3)
    original = picture(11, (300, 240)).filter(ImageFilter.GaussianBlur(0.7))
    for name, size in (("a", 300), ("b", 250), ("c", 200)):
        original.resize((size, size * 4 // 5)).save(photos / f"{name}.png")
    found = {p.path.name: p for p in scan(photos)}
    assert said(found["c.png"], "same picture as a.png, b.png, so")
    assert len(found["c.png"].findings) == 1


@pytest.mark.parametrize("name", ["Screenshot_2026.png", "Screen Shot 3.png", "screen-capture.png"])
def test_a_picture_of_a_screen_is_told_by_its_name(tmp_path, name):
    photos = folder_of(tmp_path / "photos", 3)
    picture(5).save(photos / name)
    found = {p.path.name: p for p in scan(photos)}
    assert said(found.pop(name), "picture of a screen; take it out")
    assert not any(p.findings for p in found.values())


def test_one_subject_before_several_backgrounds_is_no_duplicate(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(5):
        picture(i, subject=99).save(tmp_path / "photos" / f"{i}.png")
    assert len({p.group for p in scan(tmp_path / "photos")}) == 5


def test_copies_are_left_out_and_twins_stay_on_one_side(tmp_path):
    photos = folder_of(tmp_path / "photos", 4)
    shutil.copyfile(photos / "0.png", photos / "0 copy.png")
    ImageOps.mirror(picture(1)).save(photos / "1 mirrored.png")
    for seed in range(6):
        data = prepare(photos, tmp_path / "out", "toy", "zwx", seed=seed)
        use = {
            p["file"]: p["use"]
            for p in json.loads((data.root / "dataset.json").read_text())["photos"]
        }
        assert (
            list(use.values()).count("out") == 1
            and use["1.png"] == use["1 mirrored.png"] == "train"
        )
        assert len(data.test) == 1  # four different pictures, not six
    assert any("exact copy" in note for note in data.notes) and any(
        "same picture" in note for note in data.notes
    )
    text = refusal(
        prepare, photos, tmp_path / "out", "toy", "zwx", edits=[{"file": "1.png", "use": "test"}]
    )
    assert "1.png" in text and "1 mirrored.png" in text and "same picture" in text
    (photos / "subject.json").write_text(json.dumps({"held_out": ["1.png"]}))
    assert (
        len(prepare(photos, tmp_path / "out", "toy", "zwx").test) == 2
    )  # its mirror image goes with it


def test_copies_only_are_one_photo(tmp_path):
    photos = folder_of(tmp_path / "photos", 1)
    shutil.copyfile(photos / "0.png", photos / "1.png")
    assert "only one photo" in refusal(prepare, photos, tmp_path / "out", "toy", "zwx")


def test_one_background_behind_most_photos_is_said(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(5):
        wall = Image.new("RGB", (200, 200), (210, 120, 40)) if i < 4 else picture(50)
        wall.paste(picture(i, (90, 90)), (40 + 5 * i, 60))
        wall.save(tmp_path / "photos" / f"{i}.png")
    found = scan(tmp_path / "photos")
    assert any("4 of 5" in finding and "background" in finding for finding in found.findings)
    assert len({p.group for p in found}) == 5
    assert not scan(tmp_path / "photos", kind="style").findings


# ---- words, plan and edits


def test_prompt_forms():
    forms = {
        "character": "a zwx robot in the snow",
        "product": "a zwx robot in the snow",
        "clothing": "a zwx robot in the snow",
        "style": "a robot in the snow in zwx style",
        "pose": "a robot in zwx pose in the snow",
        "lighting": "a robot in the snow in zwx light",
    }
    for kind, text in forms.items():
        subject = read_subject(".", kind, "robot", "zwx")
        assert prompts(subject, "in the snow") == text
        assert prompts(subject, "in the snow", with_identifier=False) == "a robot in the snow"
    assert prompts(read_subject(".", "style", "robot", "zwx")) == "a robot in zwx style"
    assert prompts(read_subject(".", class_noun="rc car", identifier="zwx")) == "a zwx rc car"


@pytest.mark.parametrize(
    "setting, value",
    [
        ("class_noun", ""),
        ("class_noun", "  "),
        ("class_noun", None),
        ("class_noun", 3),
        ("class_noun", "../toy"),
        ("class_noun", "a\nb"),
        ("class_noun", "x" * 50),
        ("identifier", ""),
        ("identifier", "two words"),
        ("identifier", "a/b"),
        ("identifier", "{zwx}"),
        ("identifier", "toy"),
        ("kind", "charakter"),
        ("resolution", 60),
        ("resolution", 0),
        ("resolution", "64"),
        ("resolution", 8192),
        ("held_out", -1),
        ("held_out", True),
        ("seed", 1.5),
    ],
)
def test_bad_words_and_settings_are_refused_by_name(tmp_path, setting, value):
    text = refusal(
        prepare,
        folder_of(tmp_path / "photos"),
        tmp_path / "out",
        **{"class_noun": "toy", "identifier": "zwx", setting: value},
    )
    assert text.startswith(setting) and not (tmp_path / "out").exists()


def test_subject_json_is_used_and_words_given_go_before_it(tmp_path):
    photos = folder_of(tmp_path / "photos")
    (photos / "subject.json").write_text(
        json.dumps(
            {
                "kind": "style",
                "class_noun": "robot",
                "identifier": "zwx",
                "license": "CC0-1.0",
                "held_out": ["3.png"],
                "captions": {"0.png": "a red robot in zwx style"},
            }
        )
    )
    data = prepare(photos, tmp_path / "out")
    assert data.subject.license == "CC0-1.0" and data.subject.kind == "style"
    assert [item.caption for item in data.train] == ["a red robot in zwx style"] + [
        "a robot in zwx style"
    ] * 3
    assert np.array_equal(
        np.asarray(Image.open(data.test[0].path)),
        np.asarray(Image.open(prepare(photos, tmp_path / "b").test[0].path)),
    )
    other = prepare(
        photos, tmp_path / "out", identifier="sks", class_noun="zwx"
    )  # replaced once, not twice
    assert [item.caption for item in other.train][:2] == [
        "a red zwx in sks style",
        "a zwx in sks style",
    ]


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", "no JSON"),
        ("[]", "no JSON object"),
        ('{"classnoun": "toy"}', "did you mean class_noun"),
        ('{"held_out": ["9.png"]}', "9.png"),
        ('{"captions": {"9.png": "a"}}', "9.png"),
        ('{"captions": {"1.png": ""}}', "1.png"),
        ('{"held_out": "1.png"}', "list"),
        ('{"captions": []}', "captions"),
        ('{"kind": "car"}', "kind"),
    ],
)
def test_bad_subject_json(tmp_path, text, words):
    photos = folder_of(tmp_path / "photos")
    (photos / "subject.json").write_text(text)
    assert words in refusal(prepare, photos, tmp_path / "out", "toy", "zwx")


def test_plan_used_as_it_is_changes_nothing_and_edits_change_what_they_say(tmp_path):
    photos = folder_of(tmp_path / "photos", size=(300, 200))
    subject = read_subject(photos, class_noun="toy", identifier="zwx")
    entries = plan(scan(photos), subject)
    assert json.loads(json.dumps(entries)) == entries
    prepare(photos, tmp_path / "a", "toy", "zwx")
    prepare(photos, tmp_path / "b", "toy", "zwx", edits=entries)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    edits = [
        {
            "file": "0.png",
            "use": "train",
            "crop": [100, 0, 300, 200],
            "caption": " a zwx  toy on a table ",
        },
        {"file": "1.png", "use": "out"},
        {"file": "2.png", "use": "test"},
        {"file": "3.png", "use": "train"},
        {"file": "4.png", "use": "train"},
    ]
    data = prepare(photos, tmp_path / "c", "toy", "zwx", edits=edits)
    assert [item.caption for item in data.train] == [
        "a zwx toy on a table",
        "a zwx toy",
        "a zwx toy",
    ] and len(data.test) == 1
    expected = (
        picture(0, (300, 200)).crop((100, 0, 300, 200)).resize((64, 64), Image.Resampling.LANCZOS)
    )
    assert close(Image.open(data.train[0].path), expected, 3)


@pytest.mark.parametrize(
    "edit, words",
    [
        ({"file": "9.png"}, "9.png"),
        ("0.png", "dict"),
        ({"file": "0.png", "use": "validation"}, "validation"),
        ({"file": "0.png", "zoom": 2}, "zoom"),
        ({"file": "0.png", "use": "train", "caption": " "}, "caption"),
        ({"file": "0.png", "use": "train", "crop": [0, 0, 300, 300]}, "not within"),
        ({"file": "0.png", "use": "train", "crop": [0, 0, 100, 50]}, "square"),
        ({"file": "0.png", "use": "train", "crop": "all"}, "crop"),
    ],
)
def test_bad_edits(tmp_path, edit, words):
    assert words in refusal(
        prepare, folder_of(tmp_path / "photos"), tmp_path / "out", "toy", "zwx", edits=[edit]
    )
    assert not (tmp_path / "out").exists()


# ---- real photographs


@pytest.mark.parametrize("name", ["rc_car", "backpack_dog", "monster_toy"])
def test_real_photos(tmp_path, name):
    if not (REAL / name).is_dir():
        pytest.skip(f"the real photos are not here ({REAL / name})")
    found = scan(REAL / name)
    assert (
        [p.findings for p in found] == [()] * 5
        and found.findings == ()
        and len({p.group for p in found}) == 5
    )
    data = prepare(REAL / name, tmp_path / "out", "toy", "zwx")
    assert (len(data.train), len(data.test)) == (3, 2)
    (tmp_path / "more").mkdir()
    for photo in found:
        shutil.copyfile(photo.path, tmp_path / "more" / photo.path.name)
    whole = open_photo(found[0].path)[0]
    ImageOps.mirror(whole.crop((100, 200, 1200, 1300))).save(tmp_path / "more" / "mirrored.jpg")
    more = {p.path.name: p for p in scan(tmp_path / "more")}
    assert (
        more["mirrored.jpg"].group == more["00.jpg"].group
        and len({p.group for p in more.values()}) == 5
    )
