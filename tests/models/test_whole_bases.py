"""All parts of a base are looked at before it is used, and what is wrong is blamed on that part."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from original import write_original
from safetensors.torch import load_file, save_file
from tiny import make_tiny

from lib.files.errors import BadInput
from lib.files.json_file import read_json, write_json
from lib.files.safetensors_file import open_weights
from lib.models.base import load_base
from lib.models.base_files import locate
from lib.models.base_weights import open_base_weights

PARTS = ["unet", "vae", "text_encoder"]


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {kind: make_tiny(kind, folder / kind) for kind in ("sd1", "sdxl")}


@pytest.fixture
def copy(originals, tmp_path):
    """copy("sd1") -> the folder of a tiny base to spoil."""
    return lambda kind="sd1": Path(shutil.copytree(originals[kind], tmp_path / kind))


def weights_of(folder, part):
    """(file, {name: tensor}) of one part."""
    (file,) = (folder / part).glob("*.safetensors")
    return file, load_file(file)


def spoil(folder, part):
    """Put a value that is no number into a part; returns its name in the file."""
    file, weights = weights_of(folder, part)
    name = sorted(name for name, weight in weights.items() if weight.is_floating_point())[3]
    weights[name].view(-1)[0] = float("nan")
    save_file(weights, file, {"format": "pt"})
    return name


def rename_part(folder, part, value):
    index = json.loads((folder / "model_index.json").read_text())
    if value is None:
        del index[part]
    else:
        index[part] = value
    (folder / "model_index.json").write_text(json.dumps(index))


def refusal(folder):
    with pytest.raises(BadInput) as caught:
        load_base(str(folder))
    text = str(caught.value)
    assert str(folder) in text and "\n" not in text and "Pipeline <class" not in text
    return text


@pytest.mark.parametrize("part", PARTS)
def test_a_value_that_is_no_number_is_blamed_on_the_bases_own_part(copy, part):
    folder = copy()
    spoil(folder, part)
    said = refusal(folder)
    assert f"not numbers (in {part}." in said and "learning rate" not in said


def test_a_single_file_is_looked_through_as_well(copy, tmp_path):
    folder = copy()
    spoil(folder, "vae")
    pipe = load_base_unchecked(folder)
    path = Path(write_original(pipe, tmp_path / "one.safetensors"))
    shutil.copytree(folder, tmp_path / "one")
    assert "not numbers (in vae." in refusal(path)
    base = open_base_weights(str(path))
    with pytest.raises(BadInput, match=r"not numbers \(in vae.*take another base") as caught:
        for name in base.shapes["vae"]:
            base.read("vae", name)
    assert "learning rate" not in str(caught.value)


def load_base_unchecked(folder):
    import diffusers

    return diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)


def test_git_lfs_pointers_are_told_by_name_and_how_to_get_the_files(copy, tmp_path):
    folder = copy()
    file, _ = weights_of(folder, "unet")
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n")
    assert "git lfs pull" in refusal(folder)
    lora = shutil.copyfile(file, tmp_path / "lora.safetensors")
    with pytest.raises(BadInput, match="git lfs pull"):
        open_weights(lora)


@pytest.mark.parametrize("part", PARTS)
def test_one_part_in_half_precision_alone_is_loaded(originals, copy, part):
    folder = copy()
    file, weights = weights_of(folder, part)
    halves = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    file.unlink()
    save_file(halves, file.with_suffix(".fp16.safetensors"), {"format": "pt"})
    loaded, whole = load_base(str(folder)), load_base(originals["sd1"])
    for name in PARTS:
        mine = dict(getattr(loaded.pipe, name).named_parameters())
        for key, weight in getattr(whole.pipe, name).named_parameters():
            expected = weight.half().float() if name == part else weight
            assert mine[key].dtype == torch.float32 and torch.equal(mine[key], expected), key


@pytest.mark.parametrize(
    "kind, part", [("sd1", "tokenizer"), ("sd1", "scheduler"), ("sdxl", "tokenizer_2")]
)
def test_a_base_without_tokenizer_or_scheduler_is_incomplete(copy, kind, part):
    folder = copy(kind)
    shutil.rmtree(folder / part)
    assert f"is incomplete ({part}/ holds no " in refusal(folder)


@pytest.mark.parametrize("part", ["tokenizer", "tokenizer_2", "text_encoder", "vae", "scheduler"])
@pytest.mark.parametrize("value", [[None, None], None])
def test_a_part_that_the_index_leaves_out_is_named(copy, part, value):
    folder = copy("sdxl")
    rename_part(folder, part, value)
    assert f"is incomplete (model_index.json names no {part})" in refusal(folder)


@pytest.mark.parametrize(
    "name, value",
    [
        ("prediction_type", "sample"),
        ("prediction_type", "v-prediction"),
        ("prediction_type", None),
        ("num_train_timesteps", 0),
        ("num_train_timesteps", "1000"),
        ("beta_end", 1.2),
        ("beta_start", None),
    ],
)
def test_a_noise_schedule_that_no_training_can_follow_is_refused(copy, name, value):
    """A prediction type that was not velocity was taken for noise: a wrong loss without a word."""
    folder = copy("sd1")
    file = folder / "scheduler" / "scheduler_config.json"
    write_json(file, read_json(file) | {name: value})
    said = refusal(folder)
    assert said.startswith(f"{file} says {name}") or "beta_start and beta_end" in said
    assert "take another base" in said and repr(value) in said


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_folder_in_eight_bits_is_refused_before_anything_is_drawn(copy, part):
    folder = copy("sd1")
    file, weights = weights_of(folder, part)
    coarse = {k: w.to(torch.float8_e4m3fn) if w.ndim > 1 else w for k, w in weights.items()}
    save_file(coarse, file, {"format": "pt"})
    assert f"{file} holds weights in F8_E4M3, too coarse" in refusal(folder)


@pytest.mark.parametrize("scale", [0, -0.18, "0.18", None, float("inf")])
def test_a_scale_of_latents_that_is_none_is_refused(copy, scale):
    """With 0 every picture was the same nothing, and it trained without a word."""
    folder = copy("sd1")
    file = folder / "vae" / "config.json"
    write_json(file, read_json(file) | {"scaling_factor": scale})
    said = refusal(folder)
    assert said.startswith(f"{file} says scaling_factor {scale!r}")
    assert said.endswith("or take another base.")


@pytest.mark.parametrize("part", ["tokenizer", "tokenizer_2"])
def test_a_tokenizer_without_vocabulary_is_none(copy, part):
    folder = copy("sdxl")
    for file in (folder / part).iterdir():
        if file.name != "tokenizer_config.json":
            file.unlink()
    assert f"{part}/ holds no tokenizer.json or merges.txt" in refusal(folder)


def test_every_tokenizer_must_hold_the_words(originals):
    base = load_base(originals["sdxl"])
    base.check_words("robot", "zwx")
    base.pipe.tokenizer_2 = type(base.pipe.tokenizer)()  # one that knows no word
    with pytest.raises(BadInput, match="has no letters that the tokenizer"):
        base.check_words("robot", "zwx")


def test_a_text_encoder_of_another_width_is_refused(originals, copy):
    folder = copy()
    shutil.rmtree(folder / "text_encoder")
    shutil.copytree(Path(originals["sdxl"]) / "text_encoder_2", folder / "text_encoder")
    assert "reads texts of width 32, not of 48" in refusal(folder)


def test_a_tokenizer_of_a_larger_vocabulary_is_refused(copy):
    folder = copy()
    config = json.loads((folder / "text_encoder" / "config.json").read_text())
    (folder / "text_encoder" / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    file, weights = weights_of(folder, "text_encoder")
    for name in weights:
        if "token_embedding" in name:
            weights[name] = weights[name][:100].clone()
    save_file(weights, file, {"format": "pt"})
    assert "tokens, its text_encoder knows 100)" in refusal(folder)


def test_a_vae_of_other_channels_is_refused(copy):
    import diffusers

    folder = copy()
    config = dict(diffusers.AutoencoderKL.from_pretrained(folder / "vae").config)
    shutil.rmtree(folder / "vae")
    other = diffusers.AutoencoderKL.from_config(config | {"latent_channels": 8})
    other.save_pretrained(folder / "vae")
    assert "takes 4 channels, its VAE makes 8)" in refusal(folder)


@pytest.mark.parametrize(
    "typed, meant", [("sd51", "sd15"), ("other.safetensor", "other.safetensors")]
)
def test_a_mistyped_path_asks_for_no_download(tmp_path, monkeypatch, typed, meant):
    (tmp_path / "models" / "sd15").mkdir(parents=True)
    (tmp_path / "models" / "other.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput) as caught:
        locate(f"models/{typed}")
    assert str(caught.value) == (
        f"There is no base model models/{typed} in the folder models: did you mean"
        f" {Path('models', meant)}?"
    )
    with pytest.raises(BadInput, match=r"models/xyz in the folder models: check the path\."):
        locate("models/xyz")


@pytest.mark.parametrize("typed, meant", [("sd51", "sd15"), ("SD15", "sd15"), ("xyz", "")])
def test_a_whole_path_and_a_bare_name_are_told_what_lies_beside(
    tmp_path, monkeypatch, typed, meant
):
    (tmp_path / "sd15").mkdir()
    monkeypatch.chdir(tmp_path)
    for before in ("", f"{tmp_path}/", "./"):
        with pytest.raises(BadInput) as caught:
            locate(f"{before}{typed}")
        told = f" (did you mean {Path(before, meant)}?)." if meant else "'owner/model'."
        assert str(caught.value).endswith(told)


def test_a_name_that_may_be_a_path_or_the_hubs_is_told_both(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="check the path, or set WORKBENCH_DOWNLOAD=1"):
        locate("modles/sd15")
