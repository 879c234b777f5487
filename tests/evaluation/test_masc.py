"""MaSC beside DINO and CLIP: the subject of the photos alone, where it was asked for."""

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lib.course.parameters import check_parameters
from lib.dataset.imagefolder import load_dataset
from lib.evaluation.comparison import choose_judge
from lib.evaluation.comparison_table import COLUMNS, agreement
from lib.evaluation.fidelity import EvaluationPlan, evaluate, real_row
from lib.evaluation.judge import load_judge, load_masc
from lib.files.errors import BadInput

SIDE = 64


class StandIn:
    """The package's scorer, as far as it is used: 1 minus how far the picture's mean is from that
    of the photo's subject.
    """

    def __init__(self, folder, device):
        self.folder, self.device, self.is_naflex = folder, device, None
        self.model = SimpleNamespace(config=SimpleNamespace(model_type="siglip2"))

    def score(self, photo, mask, picture, hidden, prompt):
        assert mask.shape == photo.size[::-1] and hidden.shape == picture.size[::-1]
        assert hidden.min() == 1, "no part of the picture counts as background"
        there = np.asarray(photo, float)[mask > 0]
        if not len(there):
            return SimpleNamespace(cp=float("nan"))
        return SimpleNamespace(cp=1 - abs(there.mean() - np.asarray(picture, float).mean()) / 255)


@pytest.fixture
def package(monkeypatch):
    module = ModuleType("masc")
    module.MaSC = StandIn
    monkeypatch.setitem(sys.modules, "masc", module)


@pytest.fixture
def weights(tmp_path):
    folder = tmp_path / "siglip"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Two photos to train on and two held out: a square on the left of a black picture."""
    from lib.dataset.preparation import prepare

    photos = tmp_path_factory.mktemp("photos")
    for k in range(4):
        picture = Image.effect_noise((SIDE, SIDE), 60 + k).convert("RGB")
        picture.paste((60 * k + 40,) * 3, (8, 8, 40, 40))
        picture.save(photos / f"{k}.png")
    root = tmp_path_factory.mktemp("set") / "data"
    prepare(photos, root, "toy", "zwx", resolution=SIDE, held_out=2)
    return load_dataset(root)


def masks(dataset):
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, (8, 8, 40, 40))
    return {f"test/{item.path.name}": mask for item in dataset.test}


class Painter:
    """A base model that draws pictures of one grey."""

    def __init__(self, *greys):
        self.greys = greys

    def generate(self, prompts, seeds, **sampling):
        return [Image.new("RGB", (SIDE, SIDE), (grey,) * 3) for grey in self.greys]


PLAN = EvaluationPlan([("a zwx toy", "a toy")], (1, 2))


def test_the_subject_alone_is_held_against_every_picture(package, weights, dataset):
    judge = choose_judge("pocket", masc=str(weights))
    subject = [
        np.asarray(Image.open(item.path).convert("RGB"), float)[8:40, 8:40].mean()
        for item in dataset.test
    ]
    drawn = (30, 200)
    expected = np.mean([1 - abs(s - grey) / 255 for s in subject for grey in drawn])
    row = evaluate(Painter(*drawn), dataset, judge, PLAN, masks(dataset))
    assert row["masc"] == pytest.approx(expected)
    assert row["dino"] == evaluate(Painter(*drawn), dataset, load_judge(), PLAN)["dino"]
    photos = [np.asarray(Image.open(item.path).convert("RGB"), float) for item in dataset.train]
    ceiling = np.mean([1 - abs(s - photo.mean()) / 255 for s in subject for photo in photos])
    assert real_row(judge, dataset, masks(dataset))["masc"] == pytest.approx(ceiling)
    assert judge.describe()["masc"] == str(weights)


def test_without_masks_or_without_asking_there_is_no_score(package, weights, dataset):
    asked = choose_judge("pocket", masc=str(weights))
    assert "masc" not in evaluate(Painter(1, 2), dataset, asked, PLAN)
    plain = choose_judge("pocket")
    assert evaluate(Painter(1, 2), dataset, plain, PLAN, masks(dataset)).get("masc") is None
    assert plain.describe()["masc"] == "not asked for"


def test_a_score_that_is_no_number_is_refused(package, weights):
    judge = choose_judge("pocket", masc=str(weights))
    grey = Image.new("RGB", (SIDE, SIDE), "grey")
    with pytest.raises(BadInput, match="so small that it fills no patch"):
        judge.masked_likeness([(grey, Image.new("L", (SIDE, SIDE)))], [grey])


def test_whether_pictures_keep_their_shape_is_read_from_the_weights(package, weights, monkeypatch):
    made = []
    monkeypatch.setattr(
        sys.modules["masc"], "MaSC", lambda *given: made.append(StandIn(*given)) or made[-1]
    )
    load_masc(weights)
    assert made[0].is_naflex is True, "whatever the folder is called"


def test_what_is_missing_is_told_before_anything_is_drawn(package, weights, monkeypatch, tmp_path):
    (weights / "model.safetensors").rename(weights / "pytorch_model.bin")
    with pytest.raises(BadInput, match="no .safetensors file"):
        load_masc(weights)
    with pytest.raises(BadInput, match="hf download nobody/siglip"):
        load_masc("nobody/siglip")
    monkeypatch.setitem(sys.modules, "masc", None)
    with pytest.raises(BadInput, match="pip install --no-deps masc-metric"):
        load_masc(weights)
    with pytest.raises(BadInput, match="'masc' needs masks"):
        check_parameters({"masc": "google/siglip2-base-patch16-224"})


def test_the_measures_agreement_with_people_stands_beside_them():
    table = {row[1]: float(row[2]) for row in agreement().rows}
    assert table["MaSC"] == 0.471 and table["DINO"] == 0.311 and table["CLIP-T"] == 0.327
    assert max(table, key=lambda name: table[name]) == "people, one with another"
    assert COLUMNS["masc"].heading == "MaSC"


def test_the_package_itself_scores_a_photo_against_itself_as_1(tmp_path):
    """With a SigLIP of random weights: how the real package is called, not what it finds."""
    pytest.importorskip("masc", reason="needs `pip install --no-deps masc-metric`")
    from tokenizers import Tokenizer, models
    from transformers import (
        PreTrainedTokenizerFast,
        SiglipConfig,
        SiglipImageProcessor,
        SiglipModel,
        SiglipProcessor,
    )

    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    seen = size | {"num_hidden_layers": 2, "image_size": 32, "patch_size": 8}
    read = size | {"num_hidden_layers": 1, "vocab_size": 64, "max_position_embeddings": 16}
    SiglipModel(SiglipConfig(text_config=read, vision_config=seen)).save_pretrained(tmp_path)
    words = Tokenizer(models.WordLevel({"a": 0, "<pad>": 1}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>")
    pictures = SiglipImageProcessor(size={"height": 32, "width": 32})
    SiglipProcessor(pictures, tokenizer).save_pretrained(tmp_path)

    preserved = load_masc(tmp_path)
    photo, other = (Image.effect_noise((64, 64), k).convert("RGB") for k in (50, 90))
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    assert preserved(photo, mask, photo) == pytest.approx(1, abs=1e-4)
    assert preserved(photo, mask, other) < 0.99
    judge = replace(load_judge(), masc=preserved, masc_name="random")
    with pytest.raises(BadInput, match="not a number"):
        judge.masked_likeness([(photo, Image.new("L", (64, 64)))], [other])
