"""Base models of the hub: looked up on this machine, downloaded only when asked, and every refusal
one sentence.
"""

import shutil
from pathlib import Path

import pytest
from fake_hub import fake_hub
from original import write_original
from tiny import make_tiny

from lib.files.errors import BadInput
from lib.models.base import load_base
from lib.models.base_files import chosen_files, locate


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny Stable Diffusion 1.x as a hub repository holds it: with pickles, variants and a single
    file beside what is needed.
    """
    folder = Path(make_tiny("sd1", tmp_path_factory.mktemp("hub") / "model"))
    for extra in (
        "v1-5-pruned.safetensors",
        "v1-5-pruned.ckpt",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "safety_checker/model.safetensors",
    ):
        (folder / extra).parent.mkdir(exist_ok=True)
        (folder / extra).write_bytes(b"not needed")
    return folder


def refusal(name):
    with pytest.raises(BadInput) as caught:
        load_base(name)
    text = str(caught.value)
    assert name in text and "\n" not in text
    return text


def test_nothing_is_asked_of_the_hub_without_permission(monkeypatch, tmp_path, model):
    with fake_hub(monkeypatch, tmp_path / "cache", {"owner/model": model}) as seen:
        assert "WORKBENCH_DOWNLOAD=1" in refusal("owner/model")
        assert not seen


def test_a_download_says_size_and_licence_first_fetches_only_what_is_needed_and_is_then_offline(
    monkeypatch, tmp_path, model, capsys
):
    monkeypatch.setenv("WORKBENCH_DOWNLOAD", "1")
    with fake_hub(monkeypatch, tmp_path / "cache", {"owner/model": model}) as seen:
        assert load_base("owner/model").family.name == "sd1"
        bodies = [path for method, path, _ in seen if method == "GET" and "/resolve/" in path]
        said = capsys.readouterr().out
        assert "creativeml-openrail-m" in said and "MiB" in said and "owner/model" in said
        assert bodies and not [
            p
            for p in bodies
            if any(w in p for w in (".ckpt", ".bin", "fp16", "non_ema", "v1-5-pruned", "safety"))
        ]
        load_base("owner/model")
        assert "downloading" not in capsys.readouterr().out, "what is here is not announced again"
        del seen[:]
        monkeypatch.delenv("WORKBENCH_DOWNLOAD")
        assert load_base("owner/model").resolution == 64 and not seen


def test_an_interrupted_download_goes_on_where_it_stopped(monkeypatch, tmp_path, model):
    monkeypatch.setenv("WORKBENCH_DOWNLOAD", "1")
    with fake_hub(monkeypatch, tmp_path / "cache", {"owner/model": model}, cuts=1) as seen:
        load_base("owner/model")
        assert any(span and not span.startswith("bytes=0-") for _, _, span in seen), (
            "the second half alone was asked for"
        )


def test_a_cache_with_holes_is_refused_and_says_how_to_fill_them(monkeypatch, tmp_path, model):
    monkeypatch.setenv("WORKBENCH_DOWNLOAD", "1")
    with fake_hub(monkeypatch, tmp_path / "cache", {"owner/model": model}):
        folder = locate("owner/model")
        (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
        monkeypatch.delenv("WORKBENCH_DOWNLOAD")
        assert "vae" in (text := refusal("owner/model")) and "WORKBENCH_DOWNLOAD=1" in text
        monkeypatch.setenv("WORKBENCH_DOWNLOAD", "1")
        load_base("owner/model")


def test_gated_absent_and_unreachable_models_are_told_apart(monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBENCH_DOWNLOAD", "1")
    with fake_hub(monkeypatch, tmp_path / "cache", {"owner/gated": 403}):
        assert "gated" in (text := refusal("owner/gated")) and "hf auth login" in text
        assert "no such model" in refusal("owner/absent")
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    assert "cannot be reached" in refusal("owner/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refusal("owner/model")


def test_a_single_file_takes_configurations_from_the_hub_only_when_allowed(
    monkeypatch, tmp_path, model
):
    path = write_original(load_base(str(model)).pipe, tmp_path / "my model.safetensors")
    repository = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    with fake_hub(monkeypatch, tmp_path / "cache", {repository: model}) as seen:
        assert repository in (text := refusal(path)) and "WORKBENCH_DOWNLOAD=1" in text and not seen
        monkeypatch.setenv("WORKBENCH_DOWNLOAD", "1")
        load_base(path)
        assert not [p for method, p, _ in seen if method == "GET" and p.endswith(".safetensors")], (
            "no weights"
        )
        monkeypatch.delenv("WORKBENCH_DOWNLOAD")
        assert load_base(path).family.name == "sd1"


def test_of_two_sets_of_weights_the_full_one_is_chosen_and_half_precision_where_it_is_alone(
    tmp_path, model
):
    names = [f.relative_to(model).as_posix() for f in model.rglob("*") if f.is_file()]
    assert {n for n in chosen_files(names) if n.startswith("unet/")} == {
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }
    half = Path(shutil.copytree(model, tmp_path / "half"))
    for part in ("unet", "vae", "text_encoder"):
        full = (
            half
            / part
            / (
                "model.safetensors"
                if part == "text_encoder"
                else "diffusion_pytorch_model.safetensors"
            )
        )
        full.replace(full.with_suffix(".fp16.safetensors"))
    (half / "unet" / "diffusion_pytorch_model.bin").unlink()
    assert load_base(str(half)).family.name == "sd1"
    names = [f.relative_to(half).as_posix() for f in half.rglob("*") if f.is_file()]
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in chosen_files(names)
