"""What a LoRA file says of itself, in its names, its header and its configuration, is read before
it is believed: converted exactly, or refused by name.
"""

import json
import re
from dataclasses import replace

import pytest
import torch
from adapters import adapter_for
from safetensors.torch import load_file, save_file

from lib.convert.adapter import Adapter, Layer, kohya_tensors, read_adapter
from lib.convert.composition import mix
from lib.convert.exporting import ADAPTER_FORMS, export_lora
from lib.convert.merging import merge, merged_weight, whole_model
from lib.files.errors import BadInput
from lib.files.json_file import read_json, write_json
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


# --- settings


def kohya_file(adapter, path, header=None, alpha=False):
    """With names of Kohya's, and no alpha beside the layers unless it is asked for."""

    def name(part, layer_name):
        prefix = "lora_unet" if part == "unet" else "lora_te"
        return f"{prefix}_{layer_name.replace('.', '_')}."

    return save_named(adapter, path, name, COMFY, header, alpha)


ALPHAS = {
    "kohya": ({"ss_network_alpha": "2"}, 2.0),
    "kohya, no number": ({"ss_network_alpha": "None"}, 4.0),
    "kohya, 0 is the rank": ({"ss_network_alpha": "0"}, 4.0),
    "flat": ({"unet.lora_alpha": "2", "text_encoder.lora_alpha": "2", "unet.r": "4"}, 2.0),
    "for all parts": ({"lora_alpha": "2.0"}, 2.0),
    "for all parts, rslora": ({"lora_alpha": "2.0", "use_rslora": "True"}, 4.0),
    "one part counts more": (
        {"lora_alpha": "9", "unet.lora_alpha": "2", "text_encoder.lora_alpha": "2"},
        2.0,
    ),
    "none": ({"ss_seed": "1"}, 4.0),
}


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
@pytest.mark.parametrize("case", ALPHAS)
def test_an_alpha_that_stands_in_the_header_alone_is_read(tiny, tmp_path, form, case):
    """It was taken to be the rank, so that the adapter was twice too strong."""
    header, alpha = ALPHAS[case]
    adapter, path = adapter_for(tiny("sd1")[0], rank=4), tmp_path / "x.safetensors"
    if form == "kohya":
        kohya_file(adapter, path, header)
    else:
        save_named(adapter, path, lambda p, n: f"{p}.{n}.", PEFT, header)
    assert {layer.alpha for *_, layer in read_adapter(path)} == {alpha}


def test_kohyas_convolutions_have_an_alpha_of_their_own_and_a_tensor_counts_most(tiny, tmp_path):
    adapter, path = adapter_for(tiny("sd1")[0], rank=4, alpha=3.0), tmp_path / "x.safetensors"
    header = {"ss_network_alpha": "2", "ss_network_args": '{"conv_dim": "4", "conv_alpha": "1"}'}
    for part, name, layer in read_adapter(kohya_file(adapter, path, header)):
        assert layer.alpha == (1.0 if layer.down.shape[2:].numel() > 1 else 2.0), (part, name)
    kohya_file(adapter, path, header, alpha=True)
    assert {layer.alpha for *_, layer in read_adapter(path)} == {3.0}
    header["ss_network_args"] = '{"block_alphas": "1,2,3"}'
    with pytest.raises(BadInput, match="the header has block_alphas"):
        read_adapter(kohya_file(adapter, path, header))


@pytest.fixture
def peft_folder(tiny, tmp_path):
    """Make a PEFT folder, by PEFT itself, of the tiny base's U-Net, with some settings.

    peft_folder(settings) -> (folder, PEFT's own changes of the weights by layer).
    """
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig, get_peft_model

    def make(**settings):
        torch.manual_seed(0)
        unet = UNet2DConditionModel.from_pretrained(tiny("sd1")[0], subfolder="unet")
        config = {"r": 4, "lora_alpha": 2, "target_modules": ["to_q", "to_k", "conv1"]}
        model = get_peft_model(unet, LoraConfig(**(config | settings)))
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.1)
        model.save_pretrained(tmp_path / "peft")
        changes = {
            name: module.get_delta_weight("default").detach()
            for name, module in model.base_model.model.named_modules()
            if hasattr(module, "lora_A")
        }
        return tmp_path / "peft", changes

    return make


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"alpha_pattern": {"conv1": 8}, "rank_pattern": {"to_k": 2}},
        {"rank_pattern": {r"mid_block\..*to_q": 2}, "use_rslora": True},
        {"init_lora_weights": "gaussian"},
    ],
    ids=str,
)
def test_pefts_settings_are_converted_as_peft_applies_them(peft_folder, settings):
    folder, changes = peft_folder(**settings)
    for source in (folder, folder / "adapter_model.safetensors"):
        layers = read_adapter(source).layers["unet"]
        assert layers.keys() == changes.keys()
        for name, change in changes.items():
            assert torch.allclose(layers[name].delta(), change.float(), rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("start", ["milora", "PiSSA_niter_4", 3])
def test_a_start_that_nobody_knows_here_is_refused_and_those_that_leave_the_base_are_read(
    tiny, tmp_path, start
):
    """Of a later PEFT: it may move the base."""
    adapter = unet_alone(adapter_for(tiny("sd1")[0]))
    source = export_lora(adapter, "peft", tmp_path / "p", base=str(tiny("sd1")[0])).path
    config = source / "unet" / "adapter_config.json"
    write_json(config, read_json(config) | {"init_lora_weights": start})
    with pytest.raises(BadInput, match=f"init_lora_weights: {start}`"):
        read_adapter(source)
    for known in (True, False, None, "gaussian", "eva", "orthogonal", "mica"):
        write_json(config, read_json(config) | {"init_lora_weights": known})
        assert same_layers(read_adapter(source), adapter)


@pytest.mark.parametrize("names", [("pytorch_lora_weights",), ("a-000001", "a")])
def test_a_trainers_output_folder_is_told_which_file_to_name(tiny, tmp_path, names):
    """It "holds no LoRA", and the LoRA lay there."""
    folder = tmp_path / "output"
    folder.mkdir()
    for name in names:
        kohya_file(adapter_for(tiny("sd1")[0]), folder / f"{name}.safetensors", alpha=True)
    files = ", ".join(sorted(f"{name}.safetensors" for name in names))
    with pytest.raises(BadInput, match=f"name a file in it \\({files}\\)") as refused:
        read_adapter(folder)
    assert "no LoRA" not in str(refused.value)


def test_peft_folders_pickle_is_called_one(tiny, tmp_path):
    """ "There is no file adapter_model.safetensors: check the path." """
    adapter = unet_alone(adapter_for(tiny("sd1")[0]))
    source = export_lora(adapter, "peft", tmp_path / "p", base=str(tiny("sd1")[0])).path
    file = source / "unet" / "adapter_model.safetensors"
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(BadInput, match="adapter_model.bin is a pickle"):
        read_adapter(source)
    file.with_suffix(".bin").unlink()
    with pytest.raises(BadInput, match="There is no file .*adapter_model.safetensors"):
        read_adapter(source)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_a_start_that_moves_the_base_is_refused_by_name(peft_folder, tmp_path, tiny, start):
    """It merged with a change 26 times too large, and exit code 0."""
    folder, _ = peft_folder(init_lora_weights=start, target_modules=["to_q"])
    out = tmp_path / "merged.safetensors"
    with pytest.raises(BadInput, match=f"init_lora_weights: {start}.*path_initial_model_for"):
        merge(folder, "checkpoint", out, base=str(tiny("sd1")[0]))
    assert not out.exists()


ODD = {
    "bias": ("all", "bias: all"),
    "modules_to_save": (["conv_in"], "modules_to_save"),
    "lora_bias": (True, "lora_bias: True"),
    "layer_replication": ([[0, 2]], "layer_replication"),
    "init_lora_weights": ("loftq", "init_lora_weights: loftq"),
    "peft_type": ("LOHA", "PEFT's LOHA, no LoRA"),
    "use_dora": (True, "use_dora: True.*no magnitudes"),
    "r": (8, "the rank is 4 and the settings say 8"),
    "of_a_later_peft": ({"a": 1}, "of_a_later_peft"),
}


@pytest.mark.parametrize("form", ["peft", "diffusers"])
@pytest.mark.parametrize("name", ODD)
def test_a_setting_that_no_plain_lora_has_is_refused_by_name(tiny, tmp_path, form, name):
    value, said = ODD[name]
    adapter = unet_alone(adapter_for(tiny("sd1")[0]))
    source = tmp_path / ("peft" if form == "peft" else "x.safetensors")
    export_lora(adapter, form, source, base=str(tiny("sd1")[0]))
    if form == "peft":
        config = source / "unet" / "adapter_config.json"
        write_json(config, read_json(config) | {name: value})
    else:
        header = json.dumps({"unet.lora_alpha": 2, "unet.r": 4} | {f"unet.{name}": value})
        save_named(
            adapter,
            source,
            lambda p, n: f"{p}.{n}.",
            PEFT,
            {"lora_adapter_metadata": header},
        )
    with pytest.raises(BadInput, match=said):
        read_adapter(source)


def test_pefts_file_alone_is_read_with_its_settings_or_not_at_all(peft_folder):
    folder, _ = peft_folder()
    file = folder / "adapter_model.safetensors"
    assert {layer.alpha for *_, layer in read_adapter(file)} == {2.0}
    (folder / "adapter_config.json").unlink()
    with pytest.raises(BadInput, match="adapter_config.json, which holds alpha, is not beside it"):
        read_adapter(file)


# --- DoRA, and what is no LoRA


def test_a_dora_of_newer_lycoris_files_is_merged_as_lycoris_merges_it(tiny, tmp_path):
    """Its magnitudes are of outputs, [out, 1, ...], as PEFT's are: it was refused with words that
    were false for it.
    """
    folder = tiny("sd1")[0]
    base = open_base_weights(str(folder))
    plain = unet_alone(adapter_for(folder))
    path = kohya_file(plain, tmp_path / "x.safetensors", alpha=True)
    tensors, scales = load_file(path), {}
    for _, name, layer in plain:
        out = len(layer.up)
        scales[name] = (torch.rand(out) + 0.5).reshape(out, *[1] * (layer.up.ndim - 1))
        tensors[f"lora_unet_{name.replace('.', '_')}.dora_scale"] = scales[name]
    save_file(tensors, path)
    for _, name, layer in read_adapter(path):
        weight = base.read("unet", f"{name}.weight").float()
        moved = weight + plain.layers["unet"][name].delta().reshape(weight.shape)
        norms = moved.flatten(1).norm(dim=1).reshape(-1, *[1] * (moved.ndim - 1))
        # lycoris/functional/general.py, `weight_decompose` with wd_on_out
        wanted = moved * (scales[name].reshape(norms.shape) / norms)
        assert torch.allclose(merged_weight(weight, [(layer, 1.0)]), wanted, atol=1e-5), name
    done = export_lora(path, "diffusers", tmp_path / "d.safetensors", base=str(folder))
    assert done.read_back


@pytest.mark.parametrize("part, form", [("text_encoder", "diffusers"), ("unet", "peft")])
def test_a_dora_that_its_reader_reads_otherwise_is_no_error_of_the_export(
    tiny, tmp_path, part, form
):
    """diffusers leaves a text encoder's magnitudes as they were at the start, in silence."""
    folder = tiny("sd1")[0]
    layers = adapter_for(folder).layers[part]
    last = list(layers)[-1] if form == "peft" else ""  # that one is none
    made = {
        name: layer if name == last else replace(layer, magnitude=magnitudes(layer))
        for name, layer in layers.items()
    }
    out = tmp_path / ("p" if form == "peft" else "x.safetensors")
    with pytest.raises(BadInput, match="of a DoRA's magnitudes diffusers reads none") as refused:
        export_lora(Adapter({part: made}), form, out, base=str(folder))
    assert "error of the export" not in str(refused.value) and not out.exists()
    if form == "diffusers":
        assert export_lora(Adapter({part: made}), "peft", tmp_path / "p", base=str(folder))


def magnitudes(layer):
    """One for each output, in PEFT's shape."""
    return (torch.rand(len(layer.up)) + 0.5).reshape((1, -1, 1, 1) if layer.up.ndim > 2 else -1)


def test_a_dora_along_inputs_is_still_refused_and_the_reason_is_true(tiny, tmp_path):
    plain = unet_alone(adapter_for(tiny("sd1")[0]), attention=True)
    path = kohya_file(plain, tmp_path / "x.safetensors", alpha=True)
    scales = {
        f"lora_unet_{name.replace('.', '_')}.dora_scale": torch.ones(1, layer.down.shape[1])
        for _, name, layer in plain
    }
    save_file(load_file(path) | scales, path)
    with pytest.raises(BadInput, match=r"go with a layer's inputs \(PEFT's and newer LyCORIS"):
        read_adapter(path)


@pytest.mark.parametrize(
    "ends, said",
    [
        (("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), "LoHa"),
        (("lokr_w1", "lokr_w2"), "LoKr"),
        (("oft_blocks",), "OFT"),
        (("boft_blocks",), "BOFT"),
        (("diff", "diff_b"), "full difference"),
    ],
)
def test_what_is_no_lora_is_called_what_it_is(tmp_path, ends, said):
    names = (
        "lora_unet_mid_block_attentions_0_proj_in",
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
    )
    tensors = {f"{name}.{end}": torch.ones(2, 2) for name in names for end in ends}
    tensors |= {f"{name}.alpha": torch.tensor(1.0) for name in names}
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(BadInput, match=f"it is a {said}"):
        read_adapter(tmp_path / "x.safetensors")


# --- the check of what was written


@pytest.mark.parametrize("form", ADAPTER_FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_an_adapter_of_any_precision_is_written_and_read_back_as_it_is(tiny, tmp_path, form, dtype):
    """The check called it an error of the export, for its reader was halved."""
    folder = tiny("sd1")[0]
    generator = torch.Generator().manual_seed(3)

    def fresh(tensor):
        return torch.randn(tensor.shape, generator=generator).mul(1e-3).to(dtype)

    layers = {
        part: {n: replace(y, down=fresh(y.down), up=fresh(y.up)) for n, y in some.items()}
        for part, some in adapter_for(folder).layers.items()
    }
    adapter = Adapter(layers)
    path = tmp_path / ("p" if form == "peft" else "x.safetensors")
    done = export_lora(adapter, form, path, base=str(folder))
    assert done.read_back and same_layers(read_adapter(done.path), adapter)
    assert {layer.down.dtype for *_, layer in read_adapter(done.path)} == {dtype}


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
def test_halves_that_are_no_plain_numbers_are_refused_by_name(tiny, tmp_path, dtype):
    """Eight-bit ones mean nothing without their scale, which no LoRA file has a key for."""
    tensors, header = kohya_tensors(adapter_for(tiny("sd1")[0]))
    for key, tensor in tensors.items():
        if "alpha" not in key:
            tensors[key] = (10 * tensor.float()).to(dtype)
    path = tmp_path / "theirs.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, header)
    with pytest.raises(BadInput, match="quantised") as refused:
        read_adapter(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), 1e9])
def test_a_weight_that_nobody_means_is_blamed_on_the_weight(tiny, weight):
    """And not on a training that diverged, after the tensors were put together."""
    folder = str(tiny("sd1")[0])
    adapter = adapter_for(folder)
    for refused in (
        lambda: whole_model([adapter], [weight], folder),
        lambda: mix({"one": adapter, "two": adapter}, "cat", {"one": 1, "two": weight}, folder),
    ):
        with pytest.raises(BadInput, match="The weight .* is outside -100 to 100"):
            refused()
