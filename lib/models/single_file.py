"""A whole model in the original single-file layout: CompVis's for Stable Diffusion 1.x and 2.x,
Stability's for SDXL.

Names follow the original repositories' modules (CompVis/stable-diffusion ldm/modules,
Stability-AI/generative-models sgm/modules, mlfoundations/open_clip): `model.diffusion_model.` the
U-Net, `first_stage_model.` the VAE, `cond_stage_model.` or `conditioner.embedders.` the text
encoders. WebUI, ComfyUI, Forge and diffusers' `from_single_file` read this.

A single-file checkpoint in the original layout, described as if it were a diffusers folder: the
inverse of `lib.models.single_file`.

    shapes, places = read_single("v1-5-pruned-emaonly.safetensors")       # part -> {diffusers name: shape}, {name: (file, key, how)}
    told("noob-vpred.safetensors")                                         # {"prediction_type": "v_prediction", ...}

Nothing is converted or copied: each tensor is cut out of the file when it is asked for. `how`: ""
as it is, "flat" a 1 x 1 convolution as a matrix, "transpose", or "0", "1", "2" that third of
stacked query, key and value.
"""

import json
import re
from dataclasses import dataclass
from functools import cache, lru_cache

import torch

from lib.files.errors import BadInput
from lib.files.json_file import read_json
from lib.files.safetensors_file import open_weights
from lib.files.text import say, some
from lib.models.layer_names import from_original, to_original

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


@dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint: its `shape`, the (part, name) pairs it is made of, and how: "",
    "stack" or "transpose".
    """

    shape: tuple
    sources: tuple
    how: str = ""

    def make(self, read):
        """The tensor, by `read(part, name)`."""
        tensors = [read(part, name) for part, name in self.sources]
        if self.how == "stack":
            return torch.cat(tensors)
        return tensors[0].T if self.how == "transpose" else tensors[0].reshape(self.shape)


def layout(target):
    """{original key: Entry} of every tensor of a base model, a `lib.models.base_weights.Target`."""
    found, ups = (
        {},
        len(
            {
                n.split(".")[2]
                for n in target.shapes.get("vae", {})
                if n.startswith("decoder.up_blocks.")
            }
        ),
    )
    for name, shape in target.shapes["unet"].items():
        key = f"model.diffusion_model.{to_original(name, target.layers, target.attended)}"
        found[key] = Entry(shape, (("unet", name),))
    for name, shape in target.shapes.get("vae", {}).items():
        flat = ".attentions." in name and name.endswith("weight") and len(shape) == 2
        found[f"first_stage_model.{vae_name(name, ups)}"] = Entry(
            (*shape, 1, 1) if flat else shape, (("vae", name),)
        )
    if target.sdxl:
        found |= _clip("text_encoder", target, "conditioner.embedders.0.transformer.")
        found |= _openclip("text_encoder_2", target, "conditioner.embedders.1.model.")
    elif target.family == "Stable Diffusion 2.x":
        found |= _openclip("text_encoder", target, "cond_stage_model.model.")
    else:
        found |= _clip("text_encoder", target, "cond_stage_model.transformer.")
    return found


def vae_name(name, ups):
    """A VAE tensor's original name; `ups`: number of the decoder's up blocks, which are counted
    from the other end there.
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


def _clip(part, target, before):
    return {
        before + name: Entry(shape, ((part, name),))
        for name, shape in target.shapes[part].items()
        if not name.startswith("text_projection")
    }


def _openclip(part, target, before):
    found, shapes = {}, target.shapes[part]
    for name, shape in shapes.items():
        if name in OUTSIDE:
            found[before + OUTSIDE[name]] = Entry(shape, ((part, name),))
        elif name == "text_projection.weight":
            found[before + "text_projection"] = Entry(shape[::-1], ((part, name),), "transpose")
        elif hit := re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name):
            block, rest, kind = f"{before}transformer.resblocks.{hit[1]}.", hit[2], hit[3]
            if rest == "self_attn.q_proj":
                three = tuple(
                    (part, name.replace("q_proj", each)) for each in ("q_proj", "k_proj", "v_proj")
                )
                found[f"{block}attn.in_proj_{kind}"] = Entry(
                    (3 * shape[0], *shape[1:]), three, "stack"
                )
            elif rest in OPENCLIP:
                found[f"{block}{OPENCLIP[rest]}.{kind}"] = Entry(shape, ((part, name),))
    return found


CLIP = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")


OPEN = {
    "cond_stage_model.model.": "text_encoder",
    "conditioner.embedders.1.model.": "text_encoder_2",
}


BACK = {theirs: ours for ours, theirs in OUTSIDE.items()}


LAYERS = {theirs: ours for ours, theirs in OPENCLIP.items()}


# The names that a part has in diffusers; what is called otherwise is none of its weights.
KNOWN = {
    "unet": re.compile(
        r"(conv_in|conv_norm_out|conv_out|(time|add)_embedding\.linear_[12]|mid_block|down_blocks|up_blocks)\."
    ),
    "vae": re.compile(
        r"(encoder|decoder)\.(conv_in|conv_norm_out|conv_out|mid_block|down_blocks|up_blocks)\.|(post_)?quant_conv\."
    ),
    "text_encoder": re.compile(
        r"text_model\.(embeddings|encoder\.layers\.\d+|final_layer_norm)\.|text_projection\."
    ),
}


# What such files hold beside weights: running averages, the noise schedule, the VAE's training,
# counters, marks.
BESIDE = re.compile(
    r"model_ema\..+|(.+\.)?(position_ids|logit_scale|attn_mask)|betas|(\w+_)?alphas_cumprod(_prev)?|posterior_\w+|logvar|"
    r"lvlb_weights|scale_factor|global_step|first_stage_model\.loss\..+|denoiser\.sigmas|v_pred|ztsnr"
)


def read_single(path):
    """(shapes, places) as above. Keys that are nobody's are left out, which is said once, in a
    line.

    Raises BadInput if the file is damaged, no Stable Diffusion in the original layout, or has no
    VAE.
    """
    shapes, places, unknown = {}, {}, []
    with open_weights(path) as file:
        ups = len(
            {k.split(".")[3] for k in file.names if k.startswith("first_stage_model.decoder.up.")}
        )
        # A level ends in a downsampler, so the first one's number tells how many resnets a level
        # has.
        ends = (
            re.fullmatch(r"model\.diffusion_model\.input_blocks\.(\d+)\.0\.op\.weight", key)
            for key in file.names
        )
        layers = min((int(end[1]) for end in ends if end), default=3) - 1
        for key in file.names:
            made = _places(key, ups, layers)
            unknown += [key] if not made and not BESIDE.fullmatch(key) else []
            for part, name, how in made:
                shape = file.shape(key)
                if how == "flat":
                    shape = shape[:2]
                elif how == "transpose":
                    shape = shape[::-1]
                elif how:
                    shape = (shape[0] // 3, *shape[1:])
                shapes.setdefault(part, {})[name] = shape
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
        _once(
            f"{path}: {len(unknown)} of its keys belong to no part of the model and are left out"
            f" ({some(unknown, 2)})"
        )
    return shapes, places


_once = cache(say)


def told(path):
    """What a single file says of its model's prediction, as a scheduler's settings, {} where it
    says nothing.

    A key `v_pred` marks a model of velocity, `ztsnr` beside it one with zero terminal SNR (ComfyUI
    comfy/supported_models.py), which must be sampled from the last timestep on (Lin et al. 2023,
    arXiv 2305.08891, section 3.3). Else the header's word is taken (`modelspec.prediction_type`,
    ComfyUI's `modelspec.predict_key`), which many tools write without knowing.
    """
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        names, header = set(file.keys()), file.metadata() or {}
    said = header.get("modelspec.prediction_type") or header.get("modelspec.predict_key")
    if "v_pred" not in names and said not in ("v", "epsilon"):
        return {}
    if "v_pred" not in names and said == "epsilon":
        return {"prediction_type": "epsilon"}
    zero = (
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if "ztsnr" in names else {}
    )
    return {"prediction_type": "v_prediction"} | zero


def check_whole(path, shapes, folder):
    """Raise BadInput unless U-Net and VAE of the file are, weight by weight, what the
    configurations in `folder` describe.
    """
    for part in ("unet", "vae"):
        wanted = _described(part, json.dumps(read_json(folder / part / "config.json")))
        missing = sorted(wanted.keys() - shapes[part].keys())
        other = sorted(name for name, shape in shapes[part].items() if wanted.get(name) != shape)
        if missing or other:
            raise BadInput(
                f"{path} is not what {folder} describes: of its {part} {len(missing)} weights are"
                f" missing and {len(other)} of another shape or unknown"
                f" ({some(missing or other, 2)}); get the whole file, or put the configurations"
                f" that it was made with into {path.with_suffix('')}/."
            )


@lru_cache(maxsize=8)
def _described(part, config):
    """{name: shape} of the weights of a U-Net or VAE with a configuration, as JSON; nothing is made
    but their names.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with torch.device("meta"):
        model = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[part].from_config(
            json.loads(config)
        )
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


def _places(key, ups, layers):
    """[(part, diffusers name, how)] of an original key: three where query, key and value are
    stacked, none where nothing here knows it.
    """
    if key.startswith("model.diffusion_model."):
        found = "unet", from_original(key.removeprefix("model.diffusion_model."), layers), ""
    elif key.startswith("first_stage_model."):
        name = _from_vae(key.removeprefix("first_stage_model."), ups)
        flat = ".attentions." in name and name.endswith("weight") and "group_norm" not in name
        found = "vae", name, "flat" if flat else ""
    else:
        prefix = next((prefix for prefix in CLIP if key.startswith(prefix)), None)
        found = prefix and ("text_encoder", key.removeprefix(prefix), "")
    if found:
        return [found] if KNOWN[found[0]].match(found[1]) else []
    for prefix, part in OPEN.items():
        if key.startswith(prefix):
            return [(part, name, how) for name, how in _from_openclip(key.removeprefix(prefix))]
    return []


def _from_openclip(name):
    if name in BACK:
        return [(BACK[name], "")]
    if name == "text_projection":
        return [("text_projection.weight", "transpose")]
    if hit := re.fullmatch(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", name):
        return [
            (f"text_model.encoder.layers.{hit[1]}.self_attn.{p}_proj.{hit[2]}", str(k))
            for k, p in enumerate("qkv")
        ]
    hit = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)", name)
    return (
        [(f"text_model.encoder.layers.{hit[1]}.{LAYERS[hit[2]]}.{hit[3]}", "")]
        if hit and hit[2] in LAYERS
        else []
    )


def _from_vae(name, ups):
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
