"""What a LoRA file says of itself, in its names, its header and its configuration, is read before
it is believed: converted exactly, or refused by name.
"""

import re

import pytest
import torch
from adapters import adapter_for
from safetensors.torch import save_file

from lib.convert.adapter import Adapter, Layer, read_adapter
from lib.convert.exporting import ADAPTER_FORMS, export_lora
from lib.files.errors import BadInput
from lib.models.base_weights import open_base_weights
from lib.models.layer_names import to_original

OLD = {"down": "lora.down.weight", "up": "lora.up.weight"}
COMFY = {"down": "lora_down.weight", "up": "lora_up.weight"}
PEFT = {"down": "lora_A.weight", "up": "lora_B.weight"}


def save_named(adapter, path, name, ends=PEFT, header=None, alpha=False):
    """A file whose keys are name(part, layer name) and an ending for each half."""
    tensors = {}
    for part, layer_name, layer in adapter:
        key = name(part, layer_name)
        tensors[f"{key}{ends['down']}"] = layer.down
        tensors[f"{key}{ends['up']}"] = layer.up
        if alpha:
            tensors[f"{key}alpha"] = torch.tensor(layer.alpha)
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, header)
    return path


def same_layers(one, other):
    """Whether two adapters are the same update at every layer, and how many layers that are."""
    found = {(part, name): layer for part, name, layer in one}
    wanted = {(part, name): layer for part, name, layer in other}
    assert found.keys() == wanted.keys()
    for where, layer in wanted.items():
        assert found[where].alpha == pytest.approx(layer.alpha, rel=1e-6), where
        assert torch.equal(found[where].down, layer.down), where
        assert torch.equal(found[where].up, layer.up), where
    return bool(wanted)


def unet_alone(adapter, attention=False):
    layers = adapter.layers["unet"]
    if attention:
        layers = {n: y for n, y in layers.items() if re.search(r"attn\d\.to_", n)}
    return Adapter({"unet": layers})


# --- names


def test_older_diffusers_names_without_a_prefix_are_the_unets(tiny, tmp_path):
    """As `save_attn_procs` wrote them, up to diffusers 0.20 or so."""
    adapter = unet_alone(adapter_for(tiny("sd1")[0], alpha=4.0), attention=True)

    def name(_, layer_name):
        head, _, last = layer_name.removesuffix(".0").rpartition(".")
        return f"{head}.processor.{last}_"

    path = save_named(adapter, tmp_path / "old.safetensors", name, OLD)
    assert same_layers(read_adapter(path), adapter)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("prefix", ["diffusion_model.", "model.diffusion_model."])
@pytest.mark.parametrize("ends", [COMFY, PEFT], ids=["lora_up", "lora_B"])
def test_comfyuis_names_are_read_and_written_in_every_form(tiny, tmp_path, family, prefix, ends):
    """As its node LoraSave writes them: without alpha, which is the rank then."""
    folder, *_ = tiny(family)
    base = open_base_weights(str(folder))
    adapter = adapter_for(folder, alpha=4.0)
    texts = {
        "text_encoder": "clip_h" if family == "sd2" else "clip_l",
        "text_encoder_2": "clip_g",
    }

    def name(part, layer_name):
        if part == "unet":
            return f"{prefix}{to_original(layer_name, base.layers, base.attended)}."
        return f"text_encoders.{texts[part]}.transformer.{layer_name}."

    path = save_named(adapter, tmp_path / "comfy.safetensors", name, ends)
    assert same_layers(read_adapter(path, base.layers), adapter)
    if prefix == "diffusion_model." and ends is COMFY and family == "sdxl":
        for form in ADAPTER_FORMS:
            out = tmp_path / ("p" if form == "peft" else f"{form}.safetensors")
            done = export_lora(path, form, out, base=str(folder))
            assert same_layers(read_adapter(done.path, base.layers), adapter)


def test_onetrainers_dotted_names_are_read(tiny, tmp_path):
    adapter = adapter_for(tiny("sdxl")[0])
    path = save_named(
        adapter, tmp_path / "o.safetensors", lambda p, n: f"{p}.{n}.", COMFY, alpha=True
    )
    assert same_layers(read_adapter(path), adapter)


def test_a_text_encoders_name_without_a_prefix_is_of_no_known_part(tiny, tmp_path):
    """SDXL has two, so that a guess would be one."""
    adapter = Adapter({"text_encoder": adapter_for(tiny("sd1")[0]).layers["text_encoder"]})
    path = save_named(adapter, tmp_path / "t.safetensors", lambda _, n: f"{n}.", PEFT)
    with pytest.raises(BadInput, match="holds no LoRA"):
        read_adapter(path)


@pytest.mark.parametrize("form", ADAPTER_FORMS)
def test_sdxls_text_projection_has_its_place_in_the_base(tiny, tmp_path, form):
    """OneTrainer writes `lora_te2_text_projection`; it was called a LoRA for another base."""
    folder, *_ = tiny("sdxl")
    width = open_base_weights(str(folder)).shapes["text_encoder_2"]["text_projection.weight"]
    layer = Layer(torch.randn(4, width[1]).half(), torch.randn(width[0], 4).half(), 2.0)
    adapter = adapter_for(folder)
    adapter.layers["text_encoder_2"]["text_projection"] = layer
    path = save_named(
        adapter,
        tmp_path / "te2.safetensors",
        lambda p, n: f"{p}.{n}.",
        COMFY,
        alpha=True,
    )
    out = tmp_path / ("p" if form == "peft" else "x.safetensors")
    done = export_lora(path, form, out, base=str(folder))
    assert same_layers(read_adapter(done.path), adapter)
    if form == "kohya":
        good, _ = done.readers["ComfyUI"]
        assert "lora_te2_text_projection.lora_up.weight" in good
