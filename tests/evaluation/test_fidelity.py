"""The judge and the measures. Each bug of public evaluation code that the project knows of is
caught here by construction.
"""

import json
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lib.dataset.captions import Subject
from lib.dataset.class_images import class_prompts
from lib.evaluation.fidelity import (
    GREY,
    PROMPTS,
    EvaluationPlan,
    _prompt_file,
    class_protocol,
    evaluate,
    evaluation_prompts,
    finite,
    obedience,
    real_row,
    score,
    similarity,
    similarity_within,
    subject_alone,
    subject_masks,
)
from lib.evaluation.judge import FOLDER, load_identity, load_judge
from lib.files.errors import BadInput
from pocket.identity import TEST_GROUPS, area_under_curve, certificate
from pocket.lookalikes import group
from pocket.measure import read_scene
from pocket.places import PHRASES
from pocket.world import COLORS, held_out, render, sample_scene


@pytest.fixture(scope="module")
def judge():
    return load_judge()


@pytest.fixture(scope="module")
def pictures():
    """Twelve pictures of nothing in common."""
    return [render(sample_scene(9_000_000 + i, salt="judge")) for i in range(12)]


@pytest.fixture(scope="module")
def subjects():
    """Pictures [member][scene] of one group: a subject, two look-alikes and a stranger, each in the
    same five scenes.
    """
    return [[Image.fromarray(p) for p in member] for member in group(TEST_GROUPS[0] + 5000)]


class Vectors:
    """A judge of things that are unit vectors already, so that every score is known by hand."""

    def identity(self, things):
        return torch.tensor([[np.cos(np.radians(a)), np.sin(np.radians(a))] for a in things])

    clip_images = identity
    lpips = None, "vectors have none"

    def clip_texts(self, texts):
        return torch.tensor([[1.0, 0.0]] * len(texts)).double()


class Printer:
    """A base model that draws what it is given, in turn."""

    def __init__(self, images):
        self.images, self.asked = images, []

    def generate(self, prompts, seeds, **sampling):
        self.asked = list(zip(prompts, seeds))
        return (self.images * len(prompts))[: len(prompts)]


def online(*args, **kwargs):
    pytest.fail(f"the judge went online: {args[:1]}")


def cos(degrees):
    return float(np.cos(np.radians(degrees)))


def same(a, b, within=1e-5):
    return a == pytest.approx(b, abs=within)


def test_a_picture_is_exactly_like_itself(judge, pictures):
    for encode in (judge.identity, judge.clip_images):
        for picture in pictures:
            rows = encode([picture])
            assert same(similarity(rows, encode([picture.copy()])), 1.0)


def test_order_of_pictures_and_photos_does_not_matter(judge, pictures):
    prompts = [f"a robot {i % 3}" for i in range(8)]
    plain = score(judge, pictures[:8], prompts, pictures[8:])
    turned = score(judge, pictures[7::-1], prompts[::-1], pictures[:7:-1])
    for key in ("dino", "clip_i", "clip_t", "diversity"):
        assert same(plain[key], turned[key])
    for row, other in zip(plain["pictures"], turned["pictures"][::-1]):
        assert row["prompt"] == other["prompt"]
        assert all(same(row[key], other[key]) for key in ("dino", "clip_i", "clip_t"))


def test_n_pictures_give_n_scores_even_repeated_and_over_several_batches(judge, pictures):
    many = (pictures * 12)[:131]
    result = score(judge, many, ["a cat"] * 131, pictures[:2])
    assert len(result["pictures"]) == 131
    assert (
        result["pictures"][0]["dino"]
        == result["pictures"][12]["dino"]
        != result["pictures"][1]["dino"]
    )


def test_every_photo_counts_not_one_reference(judge, pictures):
    both, first, second = (
        score(judge, pictures[:3], ["a cat"] * 3, real)
        for real in (pictures[5:7], pictures[5:6], pictures[6:7])
    )
    for key in ("dino", "clip_i"):
        assert same(both[key], (first[key] + second[key]) / 2)
        assert not same(first[key], second[key], 1e-3)


def test_every_picture_of_a_prompt_counts_and_every_prompt_counts_the_same(judge, pictures):
    result = score(judge, pictures[:4], ["a cat", "a cat", "a cat", "a robot"], pictures[6:])
    for key in ("dino", "clip_i", "clip_t"):
        value = [row[key] for row in result["pictures"]]
        assert same(result[key], (np.mean(value[:3]) + value[3]) / 2)


def test_pictures_and_photos_are_not_mixed_up(judge, subjects):
    own = score(judge, subjects[0][:2], ["a robot"] * 2, subjects[0][2:])
    foreign = score(judge, subjects[3][:2], ["a robot"] * 2, subjects[0][2:])
    assert own["dino"] > foreign["dino"] + 0.2
    assert foreign["dino"] < 0.9


def test_text_score_is_the_plain_cosine(judge, pictures):
    prompts = ["a cat", "a red robot in the forest"]
    result = score(judge, pictures[:2], prompts, pictures[4:])
    image, text = judge.clip_images(pictures[:2]), judge.clip_texts(prompts)
    assert same(image.norm(dim=1).tolist(), [1, 1]) and same(text.norm(dim=1).tolist(), [1, 1])
    for i, row in enumerate(result["pictures"]):
        assert same(row["clip_t"], float(image[i] @ text[i])) and -1 <= row["clip_t"] <= 1


def test_real_photos_meet_no_copy_of_themselves(judge, pictures):
    rows = judge.identity(pictures[:3])
    cosine = [float(rows[i] @ rows[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert same(similarity_within(rows), np.mean(cosine))
    assert similarity_within(rows) < similarity(rows, rows) - 0.05
    with pytest.raises(BadInput, match="at least two"):
        similarity_within(rows[:1])


def test_a_rotated_copy_with_its_exif_tag_scores_as_the_upright_one(judge, pictures, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn a quarter clockwise to see me upright"
    pictures[0].transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    pictures[0].transpose(Image.Transpose.ROTATE_90).save(tmp_path / "really turned.png")
    upright, turned, lying = (
        score(judge, [p], ["a cat"], pictures[3:])
        for p in (pictures[0], tmp_path / "turned.png", tmp_path / "really turned.png")
    )
    for key in ("dino", "clip_i", "clip_t"):
        assert upright[key] == turned[key]
    assert upright["dino"] != lying["dino"]


def test_transparency_is_white(judge, pictures):
    layer = pictures[0].convert("RGBA")
    layer.putalpha(Image.fromarray(np.uint8(np.arange(64)[None].repeat(64, 0) > 31) * 255))
    flat = Image.new("RGB", (64, 64), "white")
    flat.paste(layer, (0, 0), layer)
    assert torch.equal(judge.identity([layer]), judge.identity([flat]))


def test_the_size_of_a_file_hardly_matters(judge):
    scene = sample_scene(9_100_000, salt="judge")
    assert (
        similarity(judge.identity([render(scene, 64)]), judge.identity([render(scene, 192)])) > 0.9
    )


def test_a_row_does_not_depend_on_its_batch(pictures):
    alone = torch.cat([load_identity()([p]) for p in pictures[:3]])
    assert torch.allclose(alone, load_identity()(pictures)[:3], atol=1e-5)


def test_prompts_with_the_identifier_are_refused(judge, pictures):
    with pytest.raises(BadInput, match="class noun only"):
        score(judge, pictures[:1], ["a zwx robot"], pictures[2:], identifier="zwx")
    with pytest.raises(BadInput, match="1 pictures, 2 prompts"):
        score(judge, pictures[:1], ["a robot", "a cat"], pictures[2:])


def test_not_a_number_is_an_error_and_no_average(pictures):
    for value in (float("nan"), float("inf"), torch.tensor(float("nan"))):
        with pytest.raises(BadInput, match="came out as"):
            finite("similarity", value)
    broken = load_identity()
    with torch.no_grad():
        next(broken.model.parameters()).fill_(float("nan"))
    with pytest.raises(BadInput, match="not a number"):
        broken(pictures[:1])


def test_missing_encoders_are_named_with_the_remedy_without_asking_the_network(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("socket.getaddrinfo", online)
    with pytest.raises(BadInput, match=r"nobody/such-clip.*hf download nobody/such-clip.*folder"):
        load_judge("mine", clip="nobody/such-clip", identity=tmp_path)
    with pytest.raises(BadInput, match="choose one of pocket, real"):
        load_judge("dinov9")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BadInput, match=re.escape(str(tmp_path))):
        load_identity(tmp_path)


def save_vit(folder, patch=32):
    """A small ViT with random weights, published as DINO is; returns the model."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    small = ViTConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        patch_size=patch,
    )
    vit = ViTModel(small, add_pooling_layer=False)
    vit.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"size": 224, "image_mean": [0.4] * 3, "image_std": [0.2] * 3})
    )
    return vit


def test_an_encoder_in_the_hubs_cache_is_read_without_asking_the_network(
    tmp_path, monkeypatch, pictures
):
    repository = tmp_path / "models--nobody--vit"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    save_vit(repository / "snapshots" / "abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.getaddrinfo", online)
    encode = load_identity("nobody/vit")
    assert encode.name == "nobody/vit" and encode(pictures[:2]).shape == (2, 32)


def test_a_vit_is_read_at_its_class_token_with_dinos_own_crop(tmp_path, pictures):
    """The published DINO has no trained pooler: its `pooler_output` would be noise, another on each
    load.
    """
    vit = save_vit(tmp_path)
    encode = load_identity(tmp_path)
    assert encode.rule == "short side 256 bicubic, centre crop 224"
    image = pictures[0].resize((256, 256), Image.Resampling.BICUBIC).crop((16, 16, 240, 240))
    x = ((torch.from_numpy(np.asarray(image, np.float32)) / 255 - 0.4) / 0.2).permute(2, 0, 1)[None]
    with torch.no_grad():
        token = vit.eval()(x).last_hidden_state[:, 0]
    assert torch.allclose(encode([pictures[0]]), token / token.norm(), atol=1e-4)


def test_results_name_their_encoders(judge):
    about = judge.describe()
    assert about["dino"] == {
        "encoder": "data/judge/identity",
        "resize": "short side 64 bicubic, centre crop 64",
    }
    assert about["clip"]["encoder"] == "data/judge/clip" and judge.identity.crop == 64


def test_vits_of_other_patches_are_told_apart_in_folders_of_one_name(judge, tmp_path):
    described = []
    for patch in (16, 8):
        save_vit(tmp_path / "dino", patch)
        described.append(
            replace(judge, identity=load_identity(tmp_path / "dino")).describe()["dino"]
        )
    assert [d["patch"] for d in described] == [16, 8] and described[0]["encoder"] == described[1][
        "encoder"
    ], "S/8 is never S/16's column"


@pytest.fixture
def lpips_here(monkeypatch, tmp_path):
    """The packages that LPIPS takes, with a network whose answer is known: mean difference of
    pixels, which run from -1 to 1.
    """

    class Network(torch.nn.Module):
        def __init__(self, net, verbose):
            super().__init__()
            assert net == "alex" and weights.is_file()

        def forward(self, one, other):
            assert one.min() == -1 and other.max() == 1
            return (one - other).abs().mean((1, 2, 3), keepdim=True)

    weights = tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth"
    url = SimpleNamespace(
        DEFAULT=SimpleNamespace(url=f"https://download.pytorch.org/models/{weights.name}")
    )
    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=Network))
    monkeypatch.setitem(sys.modules, "torchvision.models", SimpleNamespace(AlexNet_Weights=url))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.delenv("WORKBENCH_DOWNLOAD", raising=False)
    return weights


def grey(*levels):
    return [Image.new("RGB", (8, 8), (v, 0, 255)) for v in levels]


def test_lpips_is_the_mean_over_pairs_of_different_pictures_of_a_prompt(lpips_here):
    lpips_here.parent.mkdir()
    lpips_here.touch()
    judge = load_judge()
    found = score(judge, grey(0, 255, 255, 0, 51), ["a cat"] * 3 + ["a dog"] * 2, grey(0))
    assert same(found["lpips"], np.mean([2 / 3 * 2 / 3, 2 / 3 * 0.2])), (
        "0, 2/3, 2/3 for three pictures; a prompt counts once"
    )
    assert found["diversity"] not in (None, found["lpips"]), "the stand-in keeps its own column"
    assert (
        judge.describe()["lpips"] == "LPIPS 0.1 with AlexNet"
        and score(judge, grey(0), ["a cat"], grey(0))["lpips"] is None
    )


def test_without_lpips_the_stand_in_is_named_with_the_reason(lpips_here, monkeypatch, capsys):
    judge = load_judge()
    assert score(judge, grey(0, 255), ["a cat"] * 2, grey(0))["lpips"] is None
    assert re.search(
        "diversity stands in: .*alexnet-owt.* is missing: WORKBENCH_DOWNLOAD=1 fetches it",
        judge.describe()["lpips"],
    )
    monkeypatch.setenv("WORKBENCH_DOWNLOAD", "1")
    lpips_here.parent.mkdir()

    def fetch(net, verbose):
        assert "233 MB, licence BSD-3-Clause" in capsys.readouterr().out, (
            "said before it is fetched"
        )
        raise OSError("no network")

    monkeypatch.setattr(sys.modules["lpips"], "LPIPS", fetch)
    assert "cannot be loaded" in load_judge().describe()["lpips"]
    monkeypatch.setitem(sys.modules, "lpips", None)
    assert "lpips and torchvision cannot be imported" in load_judge().describe()["lpips"]


def test_area_under_curve_counts_pairs():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, 40) + 2, rng.integers(0, 9, 30)
    pairs = np.mean([(x > y) + 0.5 * (x == y) for x in a for y in b])
    assert same(area_under_curve(a, b), pairs, 1e-9)


def test_the_certificate_holds_on_identities_of_its_own(judge):
    shipped = json.loads((FOLDER / "identity" / "certificate.json").read_text())["held_out"]
    assert shipped["auc"] >= 0.98 and shipped["nearid"] >= 0.90
    again = certificate(judge.identity, TEST_GROUPS[:25])
    assert again["auc"] >= 0.97 and again["nearid"] >= 0.85
    assert again["cosine_same"] > again["cosine_lookalike"] > again["cosine_stranger"]


def test_the_encoder_is_small_and_holds_no_pickles():
    weights = FOLDER / "identity" / "model.safetensors"
    assert weights.stat().st_size < 7e6
    assert not list(FOLDER.rglob("*.bin")) and not list(FOLDER.rglob("*.pt"))


def test_the_judge_reads_class_colour_and_place(judge):
    scenes = [
        s
        for s in (sample_scene(9_200_000 + i, plain=1.0, salt="judge") for i in range(400))
        if held_out(s)
    ][:48]
    seen = read_scene(judge, [render(s) for s in scenes])
    right = {
        "class": [s.identity.kind for s in scenes],
        "color": [s.color for s in scenes],
        "place": [s.place for s in scenes],
    }
    for key, words in right.items():
        assert np.mean([row[key] == word for row, word in zip(seen, words)]) >= 0.95, key


ROBOT = Subject(kind="character", class_noun="robot", identifier="zwx")


def test_obedience_counts_what_a_prompt_of_the_class_asks_and_its_picture_shows(judge):
    asked = class_protocol(ROBOT, SimpleNamespace(family=SimpleNamespace(name="pocket")))
    places = {words: name for name, words in PHRASES.items()}

    def drawn(kind=None, color=None):
        """A drawing for each prompt: right but for what is given."""
        scenes = []
        for k, prompt in enumerate(asked):
            red = next((c for c in COLORS if f" {c} " in prompt.text), "green")
            place = next((places[p] for p in places if p in prompt.text), "room")
            made = kind or "robot", color or red, place
            scenes.append(sample_scene(9_300_000 + k, *made, plain=1.0, salt="judge"))
        return [render(scene) for scene in scenes]

    count = sum(len(prompt.others) for prompt in asked)
    colours = sum("colour" in prompt.others for prompt in asked)
    assert obedience(judge, drawn(), asked) == 1
    assert obedience(judge, drawn("teapot"), asked) == pytest.approx(1 - len(asked) / count)
    # No prompt asks for pink.
    assert obedience(judge, drawn(color="pink"), asked) == pytest.approx(1 - colours / count)
    with pytest.raises(BadInput, match="7 pictures of the class came with 8 prompts"):
        obedience(judge, drawn()[:7], asked)


@pytest.mark.parametrize("family", ["pocket", "sd1"])
def test_the_class_is_asked_in_words_that_no_class_image_has(family):
    base = SimpleNamespace(family=SimpleNamespace(name=family))
    data = SimpleNamespace(subject=ROBOT, train=[])
    trained = class_prompts(data, 200)
    asked = class_protocol(ROBOT, base)
    assert len({prompt.text for prompt in asked}) == 8
    listed = json.loads((PROMPTS / _prompt_file(base)).read_text())
    for prompt, form in zip(asked, listed["class"]["prompts"]):
        assert "zwx" not in prompt.text and "robot" in prompt.text
        for name, others in prompt.others.items():
            assert len(set(others)) >= 7 and prompt.text not in others, name
        for word in (form.get("colour"), form.get("place")):
            assert not word or not [text for text in trained if word in text], word
        frame = form["prompt"].split("{")[0]
        assert not frame or not [text for text in trained if text.startswith(frame)]


def test_prompts_come_in_pairs_with_and_without_the_identifier():
    for asked, plain in evaluation_prompts(ROBOT):
        assert "zwx" in asked.split() and "zwx" not in plain and "robot" in plain


def test_every_measure_on_vectors_whose_answers_are_known():
    """Pictures at 0, 60 (one prompt) and 30 degrees (another); held-out photos at 0 and 90;
    training photos at 10 and 50.
    """
    result = score(
        Vectors(), [0, 60, 30], ["a cat", "a cat", "a cat at night"], [0, 90], train=[10, 50]
    )
    dino = [0.5, (cos(60) + cos(30)) / 2, (cos(30) + cos(60)) / 2]
    known = [(cos(10) + cos(50)) / 2, (cos(50) + cos(10)) / 2, cos(20)]
    nearest = [cos(10), cos(10), cos(20)]
    assert [r["dino"] for r in result["pictures"]] == pytest.approx(dino)
    assert [r["dino_train"] for r in result["pictures"]] == pytest.approx(known)
    assert [r["nearest_raw"] for r in result["pictures"]] == pytest.approx(nearest)
    assert [r["nearest_photo"] for r in result["pictures"]][:2] == [0, 1]
    for key, values in (
        ("dino", dino),
        ("dino_train", known),
        ("clip_i_train", known),
        ("nearest_raw", nearest),
    ):
        assert result[key] == pytest.approx(((values[0] + values[1]) / 2 + values[2]) / 2), key
    assert result["clip_t"] == pytest.approx(((1 + cos(60)) / 2 + cos(30)) / 2)
    assert result["diversity"] == pytest.approx(1 - cos(60)), (
        "the prompt with one picture has no pairs"
    )
    assert result["consistency"] == pytest.approx(abs(dino[0] - dino[1]) / np.sqrt(2)), (
        "n - 1 in the denominator"
    )
    alone = score(Vectors(), [0, 30], ["a cat", "a cat at night"], [0, 90])
    assert alone["consistency"] is None and alone["diversity"] is None and "dino_train" not in alone


def of(subject="character", train=(10, 50), test=(0, 90)):
    """A data set of vectors."""
    words = SimpleNamespace(kind=subject, class_noun="cat", identifier="zwx")
    return SimpleNamespace(
        subject=words,
        root=None,
        train=[SimpleNamespace(path=a, caption="a zwx cat") for a in train],
        test=[SimpleNamespace(path=a, caption="a zwx cat at home") for a in test],
    )


def test_nearest_is_the_excess_over_what_true_photos_have():
    base, asked = Printer([0, 60]), [("a zwx cat", "a cat")]
    result = evaluate(base, of(), Vectors(), EvaluationPlan(asked, (7, 8)))
    assert base.asked == [("a zwx cat", 7), ("a zwx cat", 8)]
    assert result["nearest_raw"] == pytest.approx(cos(10)) and result[
        "nearest_real"
    ] == pytest.approx((cos(10) + cos(40)) / 2)
    assert (
        result["nearest"] == pytest.approx(result["nearest_raw"] - result["nearest_real"])
        and result["nearest"] > 0
    )
    assert result["memorising"] == pytest.approx(
        (cos(10) + cos(50)) / 2 - (0.5 + (cos(60) + cos(30)) / 2) / 2
    )
    copied = evaluate(Printer([10, 50]), of(), Vectors(), EvaluationPlan(asked, (7, 8)))
    assert copied["nearest_raw"] == pytest.approx(1) and copied["nearest"] > result["nearest"], (
        "copies of training photos lie nearest"
    )
    assert evaluate(Printer([0, 90]), of(), Vectors(), EvaluationPlan(asked, (7, 8)))[
        "nearest"
    ] == pytest.approx(0)


def test_without_held_out_photos_what_needs_them_is_none():
    result = evaluate(
        Printer([0]), of(test=()), Vectors(), EvaluationPlan([("a zwx cat", "a cat")])
    )
    assert result["reference"] == "training photos" and result["dino"] == result["dino_train"]
    assert (
        result["memorising"] is result["nearest"] is result["nearest_real"] is None
        and "dino_subject" not in result
    )
    one = evaluate(
        Printer([0]), of(train=(10,), test=()), Vectors(), EvaluationPlan([("a zwx cat", "a cat")])
    )
    assert one["dino"] == pytest.approx(cos(10))


def test_real_photos_are_held_against_their_own_captions_without_the_identifier():
    class Reader(Vectors):
        def clip_texts(self, texts):
            self.read = texts
            return super().clip_texts(texts)

    judge = Reader()
    real_row(judge, of(train=(10,), test=(0, 90)))
    assert judge.read == ["a cat", "a cat at home", "a cat at home"]


def test_the_row_of_real_photos_on_vectors():
    row = real_row(Vectors(), of())
    assert row["dino"] == pytest.approx((cos(10) + cos(80) + cos(50) + cos(40)) / 4) and row[
        "dino_train"
    ] == pytest.approx(cos(40))
    assert row["nearest"] == 0 and row["consistency"] is row["diversity"] is None
    assert row["clip_t"] == pytest.approx((cos(10) + cos(50) + cos(0) + cos(90)) / 4)
    alone = real_row(Vectors(), of(test=()))
    assert (
        alone["dino"] == alone["dino_train"] == pytest.approx(cos(40)) and alone["nearest"] is None
    )
    assert real_row(Vectors(), of(train=(10,)))["dino_train"] is None
    with pytest.raises(BadInput, match="at least two"):
        real_row(Vectors(), of(train=(10,), test=()))


def test_prompts_are_checked_before_anything_is_drawn():
    for plain, sentence in (
        ("a Zwx, cat", "class noun only"),
        ("in the snow", "does not name the class noun 'cat'"),
        ("a bobcat", "does not name"),
    ):
        base = Printer([0])
        with pytest.raises(BadInput, match=sentence):
            evaluate(base, of(), Vectors(), EvaluationPlan([("a zwx cat", plain)]))
        assert not base.asked
    assert (
        evaluate(Printer([0]), of(), Vectors(), EvaluationPlan([("zwx", "two Cats")]))["clip_t"]
        == 1
    ), "what is asked of the model is free"
    assert (
        evaluate(
            Printer([0]),
            of("style"),
            Vectors(),
            EvaluationPlan([("a fish in zwx style", "a fish")]),
        )["clip_t"]
        == 1
    )


def test_a_masked_photo_is_its_subject_on_grey_whatever_stood_behind_it(
    judge, subjects, tmp_path, dataset
):
    photos, box = [Image.open(i.path).convert("RGB") for i in dataset.test], (16, 8, 48, 60)
    mask = Image.new("L", (64, 64))
    mask.paste(255, box)
    masks = {f"test/{i.path.name}": mask for i in dataset.test}
    alone = subject_alone(subject_masks([i.path for i in dataset.test], masks, dataset.root))
    for photo, picture in zip(photos, alone):
        assert (
            picture.getpixel((0, 0)) == GREY
            and picture.crop(box).tobytes() == photo.crop(box).tobytes()
        )
    made, asked = subjects[0][:2], [("a zwx robot", "a robot")]
    result = evaluate(Printer(made), dataset, judge, EvaluationPlan(asked), masks)
    for key, encode in (("dino", judge.identity), ("clip_i", judge.clip_images)):
        assert same(result[f"{key}_subject"], similarity(encode(made), encode(alone)))
        assert result[f"{key}_subject"] != result[key]
        assert same(
            real_row(judge, dataset, masks)[f"{key}_subject"],
            similarity(encode([i.path for i in dataset.train]), encode(alone)),
        )
    assert (
        evaluate(Printer(made), dataset, judge, EvaluationPlan(asked))["dino"] == result["dino"]
    ), "the whole picture's score stays beside it"

    (tmp_path / "test").mkdir()
    for i, photo in zip(dataset.test, photos):  # the same subject before another wall
        wall = Image.new("RGB", (64, 64), "hotpink")
        wall.paste(photo.crop(box), box)
        wall.save(tmp_path / "test" / i.path.name)
    moved = replace(
        dataset,
        root=tmp_path,
        test=[replace(i, path=tmp_path / "test" / i.path.name) for i in dataset.test],
    )
    other = evaluate(Printer(made), moved, judge, EvaluationPlan(asked), masks)
    assert same(other["dino_subject"], result["dino_subject"]) and not same(
        other["dino"], result["dino"], 1e-3
    )


def test_masks_that_do_not_fit_are_refused_before_anything_is_drawn(judge, dataset):
    fitting = {f"test/{i.path.name}": Image.new("L", (64, 64), 255) for i in dataset.test}
    first = next(iter(fitting))
    for masks, sentence in (
        ({"test/nobody.png": fitting[first]}, f"no mask for {first}"),
        (
            fitting | {first: Image.new("L", (32, 64), 255)},
            f"mask of {first} is 32 x 64 pixels and the photo 64 x 64",
        ),
        (fitting | {first: Image.new("L", (64, 64))}, "black all over"),
    ):
        base = Printer([Image.new("RGB", (64, 64))])
        with pytest.raises(BadInput, match=sentence):
            evaluate(base, dataset, judge, EvaluationPlan([("a zwx robot", "a robot")]), masks)
        assert not base.asked


def test_encoders_run_in_batches_once_for_each_picture_and_share_nothing(pictures):
    judge, sizes = load_judge(), {"identity": [], "clip": []}
    judge.identity.model.register_forward_pre_hook(
        lambda m, args, kw: sizes["identity"].append(len((args or [*kw.values()])[0])),
        with_kwargs=True,
    )
    judge.clip_images.model.vision_model.register_forward_pre_hook(
        lambda m, args, kw: sizes["clip"].append(len((args or [*kw.values()])[0])), with_kwargs=True
    )
    many = [Image.fromarray(np.roll(np.asarray(p), k, 1)) for k in range(6) for p in pictures]
    for _ in range(2):
        rows, other = judge.identity(many + many), judge.clip_images(many[:5] * 3)
    assert sizes == {"identity": [64, 8], "clip": [5]}, (
        "by content: a copy of a picture, or asking again, costs nothing"
    )
    assert torch.equal(rows[:72], rows[72:]) and len(rows) == 144
    assert judge.identity.seen is not judge.clip_images.seen and rows.shape[1] != other.shape[1]
    assert len(judge.identity.seen) == 72 and len(judge.clip_images.seen) == 5
    wide, high = Image.new("RGB", (90, 64), "red"), Image.new("RGB", (64, 90), "red")
    judge.identity([wide, high])
    assert len(judge.identity.seen) == 74, "the same bytes in another shape are another picture"


def test_a_picture_that_cannot_be_read_is_named(judge, tmp_path):
    (tmp_path / "cut.png").write_bytes(b"no picture")
    for name in ("cut.png", "nobody.png"):
        with pytest.raises(BadInput, match=f"{name} cannot be read"):
            judge.identity([tmp_path / name])
