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

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch

from lib.files import BadInput, listed, read_json, say
from lib.files.safetensors_file import open_weights
from lib.models.base_files import Shapes
from lib.models.layer_names import from_original, to_original

# Tensor name -> (file, key in it, how): "" as it is, "flat" a 1 x 1 convolution as a matrix,
# "transpose", or "0", "1", "2" that third of stacked query, key and value.
Places = dict[str, tuple[Path, str, str]]

# OpenCLIP's names of a text encoder's layers, by transformers': within a block, and outside.
OPENCLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
OUTSIDE = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
OPENCLIP_BACK = {theirs: ours for ours, theirs in OPENCLIP.items()}
OUTSIDE_BACK = {theirs: ours for ours, theirs in OUTSIDE.items()}

VAE = {
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "mid_block.attentions.0.group_norm": "mid.attn_1.norm",
    "mid_block.attentions.0.to_q": "mid.attn_1.q",
    "mid_block.attentions.0.to_k": "mid.attn_1.k",
    "mid_block.attentions.0.to_v": "mid.attn_1.v",
    "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
}

# Where text encoders stand: those of CLIP's names, and those of OpenCLIP's by part.
CLIP = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")
OPEN = {
    "cond_stage_model.model.": "text_encoder",
    "conditioner.embedders.1.model.": "text_encoder_2",
}

# The names that a part has in diffusers; what is called otherwise is none of its weights.
KNOWN = {
    "unet": re.compile(
        r"(conv_in|conv_norm_out|conv_out|(time|add)_embedding\.linear_[12]"
        r"|mid_block|down_blocks|up_blocks)\."
    ),
    "vae": re.compile(
        r"(encoder|decoder)\.(conv_in|conv_norm_out|conv_out|mid_block|down_blocks|up_blocks)\."
        r"|(post_)?quant_conv\."
    ),
    "text_encoder": re.compile(
        r"text_model\.(embeddings|encoder\.layers\.\d+|final_layer_norm)\.|text_projection\."
    ),
}

# What such files hold beside weights: running averages, the noise schedule, the VAE's training,
# counters, marks.
BESIDE = re.compile(
    r"model_ema\..+|(.+\.)?(position_ids|logit_scale|attn_mask)|betas"
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
    found: Entries = {}
    for name, shape in base.shapes["unet"].items():
        key = f"model.diffusion_model.{to_original(name, base.layers, base.attended)}"
        found[key] = Entry(shape, (("unet", name),))
    vae = base.shapes.get("vae", {})
    ups = len({name.split(".")[2] for name in vae if name.startswith("decoder.up_blocks.")})
    for name, shape in vae.items():
        flat = ".attentions." in name and name.endswith("weight") and len(shape) == 2
        key = f"first_stage_model.{vae_name(name, ups)}"
        found[key] = Entry((*shape, 1, 1) if flat else shape, (("vae", name),))
    if base.sdxl:
        found |= _clip("text_encoder", base, "conditioner.embedders.0.transformer.")
        found |= _openclip("text_encoder_2", base, "conditioner.embedders.1.model.")
    elif base.family == "Stable Diffusion 2.x":
        found |= _openclip("text_encoder", base, "cond_stage_model.model.")
    else:
        found |= _clip("text_encoder", base, "cond_stage_model.transformer.")
    return found


def vae_name(name: str, ups: int) -> str:
    """A VAE tensor's original name.

    `ups`: number of the decoder's up blocks, which are counted from the other end there.
    """
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.conv", r"down.\1.downsample.conv", name)
    name = re.sub(
        r"up_blocks\.(\d+)\.resnets\.", lambda hit: f"up.{ups - 1 - int(hit[1])}.block.", name
    )
    name = re.sub(
        r"up_blocks\.(\d+)\.upsamplers\.0\.conv",
        lambda hit: f"up.{ups - 1 - int(hit[1])}.upsample.conv",
        name,
    )
    for ours, theirs in VAE.items():
        name = re.sub(rf"(^|\.){re.escape(ours)}(?=\.)", rf"\g<1>{theirs}", name)
    return name


def _clip(part: str, base: Any, prefix: str) -> Entries:
    return {
        prefix + name: Entry(shape, ((part, name),))
        for name, shape in base.shapes[part].items()
        if not name.startswith("text_projection")
    }


def _openclip(part: str, base: Any, prefix: str) -> Entries:
    found: Entries = {}
    for name, shape in base.shapes[part].items():
        if name in OUTSIDE:
            found[prefix + OUTSIDE[name]] = Entry(shape, ((part, name),))
        elif name == "text_projection.weight":
            found[prefix + "text_projection"] = Entry(shape[::-1], ((part, name),), "transpose")
        elif hit := re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name):
            block, layer, kind = f"{prefix}transformer.resblocks.{hit[1]}.", hit[2], hit[3]
            if layer == "self_attn.q_proj":
                names = [name.replace("q_proj", each) for each in ("q_proj", "k_proj", "v_proj")]
                found[f"{block}attn.in_proj_{kind}"] = Entry(
                    (3 * shape[0], *shape[1:]), tuple((part, each) for each in names), "stack"
                )
            elif layer in OPENCLIP:
                found[f"{block}{OPENCLIP[layer]}.{kind}"] = Entry(shape, ((part, name),))
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
        ups, layers = _count_up_blocks(file.names), _count_resnets(file.names)
        for key in file.names:
            found = _places(key, ups, layers)
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


def _count_up_blocks(keys: list[str]) -> int:
    """Up blocks of the VAE's decoder."""
    start = "first_stage_model.decoder.up."
    return len({key.split(".")[3] for key in keys if key.startswith(start)})


def _count_resnets(keys: list[str]) -> int:
    """Resnets of a level of the U-Net, by the number of the downsampler that ends the first."""
    downsampler = re.compile(r"model\.diffusion_model\.input_blocks\.(\d+)\.0\.op\.weight")
    hits = (downsampler.fullmatch(key) for key in keys)
    return min((int(hit[1]) for hit in hits if hit), default=3) - 1


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
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        names, header = set(file.keys()), file.metadata() or {}
    stated = header.get("modelspec.prediction_type") or header.get("modelspec.predict_key")
    if "v_pred" not in names and stated not in ("v", "epsilon"):
        return {}
    if "v_pred" not in names and stated == "epsilon":
        return {"prediction_type": "epsilon"}
    settings: dict[str, str | bool] = {"prediction_type": "v_prediction"}
    if "ztsnr" in names:
        settings |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return settings


def check_complete(path: Path, shapes: Mapping[str, Shapes], folder: Path) -> None:
    """Raise BadInput unless U-Net and VAE of the file are what the folder's configurations say."""
    for part in ("unet", "vae"):
        wanted = _described(part, json.dumps(read_json(folder / part / "config.json")))
        missing = sorted(wanted.keys() - shapes[part].keys())
        other = sorted(name for name, shape in shapes[part].items() if wanted.get(name) != shape)
        if missing or other:
            raise BadInput(
                f"{path} is not what {folder} describes: of its {part} {len(missing)} weights are"
                f" missing and {len(other)} of another shape or unknown"
                f" ({listed(sorted(missing or other), 2)}); get the whole file, or put the"
                f" configurations that it was made with into {path.with_suffix('')}/."
            )


@lru_cache(maxsize=8)
def _described(part: str, config: str) -> Shapes:
    """The shapes of a U-Net or VAE with a configuration, as JSON; nothing is made but names."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    kind = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[part]
    with torch.device("meta"):
        model = kind.from_config(json.loads(config))
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


def _places(key: str, ups: int, layers: int) -> list[tuple[str, str, str]]:
    """[(part, diffusers name, how)] of an original key.

    Three where query, key and value are stacked, none where nothing here knows it.
    """
    if key.startswith("model.diffusion_model."):
        name = from_original(key.removeprefix("model.diffusion_model."), layers)
        return _if_known("unet", name)
    if key.startswith("first_stage_model."):
        name = _from_vae(key.removeprefix("first_stage_model."), ups)
        flat = ".attentions." in name and name.endswith("weight") and "group_norm" not in name
        return _if_known("vae", name, "flat" if flat else "")
    for prefix in CLIP:
        if key.startswith(prefix):
            return _if_known("text_encoder", key.removeprefix(prefix))
    for prefix, part in OPEN.items():
        if key.startswith(prefix):
            return [(part, name, how) for name, how in _from_openclip(key.removeprefix(prefix))]
    return []


def _if_known(part: str, name: str, how: str = "") -> list[tuple[str, str, str]]:
    return [(part, name, how)] if KNOWN[part].match(name) else []


def _from_openclip(name: str) -> list[tuple[str, str]]:
    """[(transformers' name, how)] of a name of OpenCLIP's."""
    if name in OUTSIDE_BACK:
        return [(OUTSIDE_BACK[name], "")]
    if name == "text_projection":
        return [("text_projection.weight", "transpose")]
    if hit := re.fullmatch(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", name):
        attention = f"text_model.encoder.layers.{hit[1]}.self_attn"
        return [(f"{attention}.{each}_proj.{hit[2]}", str(k)) for k, each in enumerate("qkv")]
    hit = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)", name)
    if not hit or hit[2] not in OPENCLIP_BACK:
        return []
    return [(f"text_model.encoder.layers.{hit[1]}.{OPENCLIP_BACK[hit[2]]}.{hit[3]}", "")]


def _from_vae(name: str, ups: int) -> str:
    for ours, theirs in VAE.items():
        name = re.sub(rf"(^|\.){re.escape(theirs)}(?=\.)", rf"\g<1>{ours}", name)
    name = re.sub(r"(?<=encoder\.)down\.(\d+)\.block\.", r"down_blocks.\1.resnets.", name)
    name = re.sub(
        r"(?<=encoder\.)down\.(\d+)\.downsample\.conv", r"down_blocks.\1.downsamplers.0.conv", name
    )
    name = re.sub(
        r"(?<=decoder\.)up\.(\d+)\.block\.",
        lambda hit: f"up_blocks.{ups - 1 - int(hit[1])}.resnets.",
        name,
    )
    return re.sub(
        r"(?<=decoder\.)up\.(\d+)\.upsample\.conv",
        lambda hit: f"up_blocks.{ups - 1 - int(hit[1])}.upsamplers.0.conv",
        name,
    )
