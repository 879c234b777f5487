"""A whole model in the original single-file layout, written and read.

CompVis's layout for Stable Diffusion 1.x and 2.x, Stability's for SDXL. Names follow the original
repositories' modules (CompVis/stable-diffusion ldm/modules, Stability-AI/generative-models
sgm/modules, mlfoundations/open_clip): `model.diffusion_model.` the U-Net, `first_stage_model.` the
VAE, `cond_stage_model.` or `conditioner.embedders.` the text encoders. WebUI, ComfyUI, Forge and
diffusers' `from_single_file` read this.

    entries = layout(base)                  # {original key: Entry}, to write a base in that layout
    shapes, places = read_single_file("v1-5-pruned-emaonly.safetensors")    # the inverse
    stated_prediction("noob-vpred.safetensors")     # {"prediction_type": "v_prediction", ...}

Nothing is converted or copied: each tensor is cut out of the file when it is asked for.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch

from lib.files import BadInput, listed, say
from lib.files.safetensors_file import open_weights
from lib.models.base_files import Shapes
from lib.models.layer_names import LEVELS, beginning, diffusers_names, original_names

# Tensor name -> (file, key in it, how): "" as it is, "flat" a 1 x 1 convolution as a matrix,
# "transpose", or "0", "1", "2" that third of stacked query, key and value.
Places = dict[str, tuple[Path, str, str]]

# How the keys of each part begin; `layout` says which of the text encoders' a model has.
UNET = "model.diffusion_model."
PREFIXES = {
    UNET: "unet",
    "first_stage_model.": "vae",
    "cond_stage_model.transformer.": "text_encoder",
    "cond_stage_model.model.": "text_encoder",
    "conditioner.embedders.0.transformer.": "text_encoder",
    "conditioner.embedders.1.model.": "text_encoder_2",
}

# Where the text encoders of a family stand, if not where Stable Diffusion 1.x has its own.
TEXTS = {
    "Stable Diffusion 2.x": ("cond_stage_model.model.",),
    "SDXL": ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."),
}

# The other tables hold how names begin, by diffusers' or transformers' names.
VAE = {
    "conv_in": "conv_in",
    "conv_out": "conv_out",
    "conv_norm_out": "norm_out",
    "mid_block.attentions.0.group_norm": "mid.attn_1.norm",
    "mid_block.attentions.0.to_q": "mid.attn_1.q",
    "mid_block.attentions.0.to_k": "mid.attn_1.k",
    "mid_block.attentions.0.to_v": "mid.attn_1.v",
    "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
}

CLIP = ("text_model.embeddings", "text_model.encoder.layers", "text_model.final_layer_norm")

# OpenCLIP's names: of a block's layers, and outside. Of stacked query, key and value the first
# stands for all three.
OPENCLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
    "self_attn.q_proj.weight": "attn.in_proj_weight",
    "self_attn.q_proj.bias": "attn.in_proj_bias",
}
OUTSIDE = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm": "ln_final",
    "text_projection.weight": "text_projection",
}
TEXT_BLOCKS = 48  # more than any text encoder has

# What such files hold beside weights: running averages, the noise schedule, the VAE's training,
# counters, marks.
BESIDE = re.compile(
    r"model_ema\..+|(.+\.)?(position_ids|logit_scale|attn_mask)|betas|.+\.text_projection\.weight"
    r"|(\w+_)?alphas_cumprod(_prev)?|posterior_\w+|logvar|lvlb_weights|scale_factor|global_step"
    r"|first_stage_model\.loss\..+|denoiser\.sigmas|v_pred|ztsnr"
)


@dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint, and how it is made.

    - sources: the (part, name) pairs that it is made of
    - how: "" as it is, in this shape; "stack" or "transpose"
    """

    shape: tuple[int, ...]
    sources: tuple[tuple[str, str], ...]
    how: str = ""

    def make(self, read: Callable[[str, str], torch.Tensor]) -> torch.Tensor:
        """The tensor, by `read(part, name)`."""
        tensors = [read(part, name) for part, name in self.sources]
        if self.how == "stack":
            return torch.cat(tensors)
        return tensors[0].T if self.how == "transpose" else tensors[0].reshape(self.shape)


Entries = dict[str, Entry]


def layout(base: Any) -> Entries:
    """{original key: Entry} of every tensor of a base model, given as its `BaseWeights`."""
    ups = len({name.split(".")[2] for name in base.shapes.get("vae", ()) if ".up_blocks." in name})
    texts = TEXTS.get(base.family, ("cond_stage_model.transformer.",))
    found: Entries = {}
    for prefix in (UNET, "first_stage_model.", *texts):
        part, table = PREFIXES[prefix], _names(prefix, ups)
        if prefix == UNET:
            table = original_names(base.layers, tuple(base.attended))
        for name, shape in base.shapes.get(part, {}).items():
            if head := beginning(name, table):
                key = prefix + table[head] + name[len(head) :]
                found[key] = _entry(key, part, name, shape)
    return found


def _entry(key: str, part: str, name: str, shape: tuple[int, ...]) -> Entry:
    if ".in_proj_" in key:
        sources = tuple((part, each) for each in _query_key_value(name))
        return Entry((3 * shape[0], *shape[1:]), sources, "stack")
    if name == "text_projection.weight":
        return Entry(shape[::-1], ((part, name),), "transpose")
    flat = part == "vae" and ".attentions." in name and len(shape) == 2
    return Entry((*shape, 1, 1) if flat else shape, ((part, name),))


def _query_key_value(name: str) -> list[str]:
    return [name.replace(".q_proj.", f".{each}_proj.") for each in "qkv"]


@cache
def _names(prefix: str, ups: int) -> dict[str, str]:
    """{how names of the VAE or a text encoder begin: how they do in the original layout}.

    `ups`: number of the VAE's up blocks, which the original layout counts from the other end.
    """
    if prefix == "first_stage_model.":
        return _vae_names(ups)
    if prefix.endswith("transformer."):
        return {name: name for name in CLIP}
    return OUTSIDE | {
        f"text_model.encoder.layers.{k}.{ours}": f"transformer.resblocks.{k}.{theirs}"
        for k in range(TEXT_BLOCKS)
        for ours, theirs in OPENCLIP.items()
    }


def _vae_names(ups: int) -> dict[str, str]:
    found = {name: name for name in ("quant_conv", "post_quant_conv")}
    for side in ("encoder", "decoder"):
        found |= {f"{side}.{ours}": f"{side}.{theirs}" for ours, theirs in VAE.items()}
    for block in range(ups):
        down, up = f"encoder.down.{block}", f"decoder.up.{ups - 1 - block}"
        blocks = {f"encoder.down_blocks.{block}": down, f"decoder.up_blocks.{block}": up}
        for (ours, theirs), k in product(blocks.items(), range(LEVELS)):
            found[f"{ours}.resnets.{k}"] = f"{theirs}.block.{k}"
            found[f"{ours}.resnets.{k}.conv_shortcut"] = f"{theirs}.block.{k}.nin_shortcut"
        found[f"encoder.down_blocks.{block}.downsamplers.0.conv"] = f"{down}.downsample.conv"
        found[f"decoder.up_blocks.{block}.upsamplers.0.conv"] = f"{up}.upsample.conv"
    return found


def read_single_file(path: Path) -> tuple[dict[str, Shapes], dict[str, Places]]:
    """(part -> shapes, part -> places) of a file, as if it were a diffusers folder.

    Keys that are nobody's are left out, which is said once, in a line. Raises BadInput if the file
    is damaged, no Stable Diffusion in the original layout, or has no VAE.
    """
    shapes: dict[str, Shapes] = {}
    places: dict[str, Places] = {}
    unknown = []
    with open_weights(path) as file:
        tables = _names_back(file.names)
        for key in file.names:
            found = _places(key, tables)
            if not found and not BESIDE.fullmatch(key):
                unknown.append(key)
            for part, name, how in found:
                shapes.setdefault(part, {})[name] = _shape(file.shape(key), how)
                places.setdefault(part, {})[name] = path, key, how
    if not {"unet", "text_encoder"} <= set(shapes):
        raise BadInput(
            f"{path} is no Stable Diffusion checkpoint in the original layout (no U-Net and text"
            " encoder by its names): name a base model, or a LoRA where a LoRA is asked for."
        )
    if "vae" not in shapes:
        raise BadInput(
            f"{path} holds no VAE (no key begins with first_stage_model.), without which it draws"
            " nothing: get the file with its VAE in it, or name the model as a diffusers folder."
        )
    if unknown:
        _say_once(
            f"{path}: {len(unknown)} of its keys belong to no part of the model and are left out"
            f" ({listed(sorted(unknown), 2)})"
        )
    return shapes, places


def _names_back(keys: list[str]) -> dict[str, dict[str, str]]:
    """{prefix: {how keys go on behind it: how diffusers' names begin}}, for a file's keys."""
    start = "first_stage_model.decoder.up."
    ups = len({key.split(".")[3] for key in keys if key.startswith(start)})
    # The number of the downsampler that ends the first level.
    hits = (re.fullmatch(rf"{UNET}input_blocks\.(\d+)\.0\.op\.weight", key) for key in keys)
    layers = min((int(hit[1]) for hit in hits if hit), default=3) - 1
    tables = {
        prefix: {theirs: ours for ours, theirs in _names(prefix, ups).items()}
        for prefix in PREFIXES
        if prefix != UNET
    }
    return tables | {UNET: diffusers_names(layers)}


def _shape(shape: tuple[int, ...], how: str) -> tuple[int, ...]:
    """The shape of what is cut out of a tensor."""
    if how == "flat":
        return shape[:2]
    if how == "transpose":
        return shape[::-1]
    return (shape[0] // 3, *shape[1:]) if how else shape


_say_once = cache(say)


def stated_prediction(path: Path) -> dict[str, str | bool]:
    """What a single file says of its model's prediction, as a scheduler's settings, or {}.

    A key `v_pred` marks a model of velocity, `ztsnr` beside it one with zero terminal SNR (ComfyUI
    comfy/supported_models.py), which must be sampled from the last timestep on (Lin et al. 2023,
    arXiv 2305.08891, section 3.3). Else the header's word is taken (`modelspec.prediction_type`,
    ComfyUI's `modelspec.predict_key`), which many tools write without knowing.
    """
    file = open_weights(path)
    header = file.metadata
    stated = header.get("modelspec.prediction_type") or header.get("modelspec.predict_key")
    if "v_pred" not in file.names and stated != "v":
        return {"prediction_type": "epsilon"} if stated == "epsilon" else {}
    settings: dict[str, str | bool] = {"prediction_type": "v_prediction"}
    if "ztsnr" in file.names:
        settings |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return settings


def _places(key: str, tables: Mapping[str, Mapping[str, str]]) -> list[tuple[str, str, str]]:
    """[(part, diffusers name, how)] of an original key, by `_names_back`.

    Three where query, key and value are stacked, none where nothing here knows it.
    """
    prefix = next((prefix for prefix in PREFIXES if key.startswith(prefix)), None)
    if not prefix:
        return []
    part, rest, table = PREFIXES[prefix], key.removeprefix(prefix), tables[prefix]
    head = beginning(rest, table)
    if not head:
        return []
    name = table[head] + rest[len(head) :]
    if ".in_proj_" in key:
        return [(part, each, str(k)) for k, each in enumerate(_query_key_value(name))]
    if name == "text_projection.weight":
        return [(part, name, "transpose")]
    matrix = part == "vae" and ".attentions." in name and name.endswith("weight")
    return [(part, name, "flat" if matrix and "group_norm" not in name else "")]
