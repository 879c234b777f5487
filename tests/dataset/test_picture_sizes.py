"""Photos that keep their aspect: the sizes, the data set, the batches, SDXL's size conditions,
training and going on, the forecast.
"""

from collections import Counter

import numpy as np
import pytest
from made_photos import picture, refusal
from PIL import Image
from short_runs import losses, same, stop_at
from tiny import make_tiny

from lib.config.picture_sizes import bucket, buckets, trimmed
from lib.config.settings import Settings
from lib.dataset.class_images import draw_class_images
from lib.dataset.folder_scan import scan
from lib.dataset.imagefolder import add_class_images
from lib.dataset.kohya_folders import from_kohya, to_kohya
from lib.dataset.preparation import plan, prepare
from lib.evaluation.drift import fixed_noise
from lib.files.json_file import read_json
from lib.memory.cards import recipe_key
from lib.memory.forecasting import forecast, largest_size
from lib.models.base import load_base
from lib.models.families import preset
from lib.training import loop
from lib.training.batches import batches, cache_latents
from lib.widgets.photo_panel import PhotosPanel

SHAPES = {
    "a.png": (300, 400),
    "b.png": (306, 400),
    "c.png": (300, 390),
    "d.png": (420, 280),
    "e.png": (300, 300),
}
SIZES = {(300, 400): (56, 72), (420, 280): (72, 48), (300, 300): (64, 64)}  # what they become at 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("photos")
    for k, (name, size) in enumerate(SHAPES.items()):
        picture(k, size).save(place / name)
    return place


@pytest.fixture(scope="module")
def xl(tmp_path_factory):
    return make_tiny("sdxl", tmp_path_factory.mktemp("xl") / "base")


@pytest.fixture(scope="module")
def dataset(folder, xl, tmp_path_factory):
    """Five photos of three sizes, and ten class images drawn to fit."""
    made = prepare(
        folder, tmp_path_factory.mktemp("set") / "data", "robot", "zwx", held_out=0, aspect="photo"
    )
    return draw_class_images(load_base(xl), made, 10, steps=1)


@pytest.fixture
def make(xl, dataset, tmp_path):
    def make(method="lora", **changes):
        values = dict(
            base=xl,
            data=str(dataset.root),
            output=str(tmp_path / method),
            steps=6,
            batch_size=2,
            sample_every=0,
        )
        return preset(method, **(values | changes))

    return make


@pytest.mark.parametrize("side", [64, 512, 768, 1024])
def test_sizes_have_the_squares_pixels_and_are_their_own_buckets(side):
    for height, width in buckets(side).values():
        assert height % 8 == width % 8 == 0 and abs(height * width / side**2 - 1) < 0.25
        assert bucket((width, height), side) == (width, height)
    assert bucket((700, 700), side) == (side, side)


def test_a_phones_photo_lands_where_diffusers_puts_it_and_loses_little():
    assert bucket((3024, 4032), 512) == (448, 576) and bucket((3024, 4032), 1024) == (896, 1152)
    assert bucket((6000, 1000), 512) == (1024, 256), "no size is longer than 4 to 1"
    left, top, right, bottom = trimmed([0, 0, 3024, 4032], 512)
    assert (left, right) == (0, 3024) and top == 72 and bottom == 4032 - 72, (
        "3888 rows of 4032, cut on both sides"
    )
    assert trimmed([0, 0, 6000, 1000], 512) == [1000, 0, 5000, 1000]


def test_a_data_set_keeps_the_photos_aspect(folder, dataset, tmp_path):
    assert Counter(dataset.sizes) == {(56, 72): 3, (72, 48): 1, (64, 64): 1}
    photo, item = Image.open(folder / "a.png"), dataset.train[0]
    left, top, right, bottom = trimmed([0, 0, 300, 400], 64)
    expected = np.asarray(
        photo.crop((left, top, right, bottom)).resize((56, 72), Image.Resampling.LANCZOS), int
    )
    assert np.abs(np.asarray(Image.open(item.path), int) - expected).mean() < 2
    assert item.shown == (400, 300, round(top * 56 / 300), 0) and item.shown[2] > 0
    edit = [{"file": "a.png", "crop": [100, 40, 300, 240]}]
    again = prepare(folder, tmp_path / "b", "robot", "zwx", held_out=0, aspect="photo", edits=edit)
    assert again.train[0].size == (64, 64) and again.train[0].shown == (
        400,
        300,
        round(40 * 64 / 200),
        32,
    ), "a crop of one's own"
    assert "at least 16" in refusal(
        prepare,
        folder,
        tmp_path / "c",
        "robot",
        "zwx",
        aspect="photo",
        edits=[{"file": "a.png", "crop": [0, 0, 300, 8]}],
    )
    assert "square or photo" in refusal(
        prepare, folder, tmp_path / "c", "robot", "zwx", aspect="wide"
    )


def test_a_square_data_set_says_nothing_of_aspects(folder, tmp_path):
    made = prepare(folder, tmp_path / "a", "robot", "zwx", held_out=0)
    assert set(made.sizes) == {(64, 64)} and not any(item.shown for item in made.train)
    assert "shown" not in (made.root / "train" / "metadata.jsonl").read_text()
    assert [p.crop[2] - p.crop[0] for p in scan(folder)] == [300, 306, 300, 280, 300]
    assert [e["crop"] for e in plan(scan(folder, aspect="photo"), made.subject)][:2] == [
        [0, 0, 300, 400],
        [0, 0, 306, 400],
    ]


def test_kohyas_folders_may_keep_their_pictures_aspect(folder, dataset, tmp_path):
    kohya = to_kohya(dataset.root, tmp_path / "kohya")
    back, _ = from_kohya(kohya, tmp_path / "back", aspect="photo")
    assert Counter(back.sizes) + Counter(i.size for i in back.test) == Counter(dataset.sizes)
    assert {item.size for item in back.class_images} == set(back.sizes)


def test_a_crop_in_the_panel_keeps_its_aspect(folder, dataset, monkeypatch):
    monkeypatch.setenv("WORKBENCH_HEADLESS", "0")
    entries = plan(scan(folder, aspect="photo"), dataset.subject)
    panel = PhotosPanel(entries, folder)
    assert (panel.side.max, panel.side.value, panel.left.max, panel.top.max) == (300, 300, 0, 0)
    panel.side.value = 150
    assert entries[0]["crop"] == [75, 100, 225, 300], (
        "half as wide and half as high, about the same middle"
    )
    panel.top.value = 400
    assert panel.top.value == 200 and entries[0]["crop"] == [75, 200, 225, 400]


def test_class_images_have_the_photos_sizes_in_proportion(dataset, tmp_path):
    assert Counter(item.size for item in dataset.class_images) == {
        (56, 72): 6,
        (72, 48): 2,
        (64, 64): 2,
    }
    assert "56 x 72 or 64 x 64 or 72 x 48" in refusal(
        add_class_images, dataset, [Image.new("RGB", (64, 40))], ["a robot"]
    )


def test_photos_without_class_images_of_their_size_are_refused_before_anything_slow(
    folder, make, tmp_path
):
    bare = prepare(folder, tmp_path / "few", "robot", "zwx", held_out=0, aspect="photo")
    few = add_class_images(bare, [Image.new("RGB", (56, 72))] * 3, ["a robot"] * 3)
    assert "64 x 64 pixels and no class image of that size" in refusal(
        loop.train, make(data=str(few.root))
    )


def test_batches_of_one_size_are_as_they_were():
    settings = Settings("lora", "-", "-", batch_size=4)
    stream = batches(settings, [[(1, 2, 2)] * 6, [(1, 2, 2)] * 3])
    first, second = next(stream), next(stream)
    assert [c.tolist() for c in first[0]] == [[2, 5, 3, 0], [0, 2, 1, 1]]
    assert [c.tolist() for c in second[0]] == [[1, 4, 1, 5], [2, 0, 1, 0]]
    assert first[1].sum().item() == pytest.approx(4.02155, abs=1e-4) and second[
        2
    ].sum().item() == pytest.approx(8.34776, abs=1e-4)


def test_a_batch_is_of_one_size_and_every_picture_comes_as_often():
    shapes = [
        [(1, 9, 7)] * 3 + [(1, 6, 9)] + [(1, 8, 8)] * 2,
        [(1, 9, 7)] * 5 + [(1, 8, 8)] * 2 + [(1, 6, 9)],
    ]
    stream, seen = batches(Settings("lora", "-", "-", batch_size=2), shapes), Counter()
    for _ in range(300):
        chosen, wobble, noise, when = next(stream)
        found = {shapes[k][i] for k, some in enumerate(chosen) for i in some.tolist()}
        assert (
            len(found) == 1 and wobble.shape == noise.shape == (4, *found.pop()) and len(when) == 4
        )
        seen.update(chosen[0].tolist())
    assert len(seen) == 6 and max(seen.values()) - min(seen.values()) <= 4


def test_sdxl_is_told_the_photos_size_the_crop_and_what_is_drawn(dataset, xl):
    base = load_base(xl)
    mean, std, conditions, rows = cache_latents(base, dataset.train)
    told = conditions["added_cond_kwargs"]["time_ids"][rows].int().tolist()
    for item, latent, deviation, said in zip(dataset.train, mean, std, told):
        width, height = item.size
        assert said == [*item.shown, height, width] and latent.shape == deviation.shape == (
            1,
            4,
            height // 8,
            width // 8,
        )
    drawn = cache_latents(base, dataset.class_images)
    assert {
        tuple(row)
        for row in drawn.conditions["added_cond_kwargs"]["time_ids"][drawn.rows].int().tolist()
    } == {(h, w, 0, 0, h, w) for w, h in SIZES.values()}
    assert fixed_noise(
        base, [i.path for i in dataset.train], ["a robot"] * 5, 1, 1
    ).latents.shape == (5, 4, 8, 8)


@pytest.mark.parametrize(
    "method, changes",
    [("lora", {}), ("dreambooth", {}), ("lora", {"prior": "teacher", "text_encoder_rate": 1e-4})],
)
def test_training_on_several_sizes_goes_on_bit_for_bit(
    make, tmp_path, monkeypatch, method, changes
):
    gather, shapes = loop.gather, []

    def watched(*arguments):
        batch = gather(*arguments)
        shapes.append(tuple(batch[0].shape))
        return batch

    monkeypatch.setattr(loop, "gather", watched)
    whole = loop.train(make(method, output=str(tmp_path / "whole"), **changes))
    assert len(set(shapes)) >= 2 and all(len(shape) == 4 and shape[0] == 4 for shape in shapes)
    settings = make(method, output=str(tmp_path / "cut"), **changes)
    cut = loop.train(settings, watchers=[stop_at(3)])
    assert len(losses(cut)) == 3 and loop.train(settings) == cut and same(whole, cut)


def test_the_forecast_is_of_the_largest_pictures(make, dataset, xl, monkeypatch):
    settings = make(steps=12)
    assert largest_size(settings) == (64, 64) and largest_size(
        settings.replace(resolution=1024)
    ) == (
        1024,
        1024,
    )
    monkeypatch.setattr(
        "lib.memory.forecasting.CACHED_PICTURES", (len(dataset.train), len(dataset.class_images))
    )
    said, found = (
        forecast(settings, "cpu", load_base(xl).fast).bytes,
        read_json(loop.train(settings) / "metrics.json"),
    )
    assert said == pytest.approx(found["peak_bytes"], rel=0.02)


def test_a_forecast_for_portraits_is_no_squares(folder, make, tmp_path):
    for name in ("d.png", "e.png"):
        assert (folder / name).is_file()
    edits = [{"file": name, "use": "out"} for name in ("d.png", "e.png")]
    portraits = prepare(
        folder,
        tmp_path / "p",
        "robot",
        "zwx",
        edits=edits,
        resolution=512,
        held_out=0,
        aspect="photo",
    )
    settings = make(base="pocket", data=str(portraits.root), resolution=512)
    assert largest_size(settings) == (448, 576) and recipe_key(settings)["resolution"] == [448, 576]
    assert recipe_key(settings.replace(data="-"))["resolution"] == 512
