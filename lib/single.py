"""A single-file checkpoint in the original layout, described as if it were a diffusers folder: the inverse of `lib.original`.

    shapes, places = read_single("v1-5-pruned-emaonly.safetensors")       # part -> {diffusers name: shape}, {name: (file, key, how)}
    told("noob-vpred.safetensors")                                         # {"prediction_type": "v_prediction", ...}

Nothing is converted or copied: each tensor is cut out of the file when it is asked for. `how`: "" as it is, "flat" a 1 x 1 convolution as
a matrix, "transpose", or "0", "1", "2" that third of stacked query, key and value.
"""

import json
import re
from functools import cache, lru_cache

import torch

from .keys import from_original
from .original import OPENCLIP, OUTSIDE, VAE
from .record import say
from .safefile import open_weights, some
from .settings import BadInput, read_json

CLIP = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")
OPEN = {"cond_stage_model.model.": "text_encoder", "conditioner.embedders.1.model.": "text_encoder_2"}
BACK = {theirs: ours for ours, theirs in OUTSIDE.items()}
LAYERS = {theirs: ours for ours, theirs in OPENCLIP.items()}
# The names that a part has in diffusers; what is called otherwise is none of its weights.
KNOWN = {"unet": re.compile(r"(conv_in|conv_norm_out|conv_out|(time|add)_embedding\.linear_[12]|mid_block|down_blocks|up_blocks)\."),
         "vae": re.compile(r"(encoder|decoder)\.(conv_in|conv_norm_out|conv_out|mid_block|down_blocks|up_blocks)\.|(post_)?quant_conv\."),
         "text_encoder": re.compile(r"text_model\.(embeddings|encoder\.layers\.\d+|final_layer_norm)\.|text_projection\.")}
# What such files hold beside weights: running averages, the noise schedule, the VAE's training, counters, marks.
BESIDE = re.compile(r"model_ema\..+|(.+\.)?(position_ids|logit_scale|attn_mask)|betas|(\w+_)?alphas_cumprod(_prev)?|posterior_\w+|logvar|"
                    r"lvlb_weights|scale_factor|global_step|first_stage_model\.loss\..+|denoiser\.sigmas|v_pred|ztsnr")


def read_single(path):
    """(shapes, places) as above. Keys that are nobody's are left out, which is said once, in a line.

    Raises BadInput if the file is damaged, no Stable Diffusion in the original layout, or has no VAE.
    """
    shapes, places, unknown = {}, {}, []
    with open_weights(path) as file:
        ups = len({k.split(".")[3] for k in file.names if k.startswith("first_stage_model.decoder.up.")})
        # A level ends in a downsampler, so the first one's number tells how many resnets a level has.
        ends = (re.fullmatch(r"model\.diffusion_model\.input_blocks\.(\d+)\.0\.op\.weight", key) for key in file.names)
        layers = min((int(end[1]) for end in ends if end), default=3) - 1
        for key in file.names:
            made = _names(key, ups, layers)
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
        raise BadInput(f"{path} is no Stable Diffusion checkpoint in the original layout (no U-Net and text encoder by its names): "
                       "name a base model, or a LoRA where a LoRA is asked for.")
    if "vae" not in shapes:
        raise BadInput(f"{path} holds no VAE (no key begins with first_stage_model.), without which it draws nothing: get the file with "
                       "its VAE in it, or name the model as a diffusers folder.")
    if unknown:
        _once(f"{path}: {len(unknown)} of its keys belong to no part of the model and are left out ({some(unknown, 2)})")
    return shapes, places


_once = cache(say)


def told(path):
    """What a single file says of its model's prediction, as a scheduler's settings, {} where it says nothing.

    A key `v_pred` marks a model of velocity, `ztsnr` beside it one with zero terminal SNR (ComfyUI comfy/supported_models.py), which
    must be sampled from the last timestep on (Lin et al. 2023, arXiv 2305.08891, section 3.3). Else the header's word is taken
    (`modelspec.prediction_type`, ComfyUI's `modelspec.predict_key`), which many tools write without knowing.
    """
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        names, header = set(file.keys()), file.metadata() or {}
    said = header.get("modelspec.prediction_type") or header.get("modelspec.predict_key")
    if "v_pred" not in names and said not in ("v", "epsilon"):
        return {}
    if "v_pred" not in names and said == "epsilon":
        return {"prediction_type": "epsilon"}
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if "ztsnr" in names else {}
    return {"prediction_type": "v_prediction"} | zero


def check_whole(path, shapes, folder):
    """Raise BadInput unless U-Net and VAE of the file are, weight by weight, what the configurations in `folder` describe."""
    for part in ("unet", "vae"):
        wanted = _described(part, json.dumps(read_json(folder / part / "config.json")))
        missing = sorted(wanted.keys() - shapes[part].keys())
        other = sorted(name for name, shape in shapes[part].items() if wanted.get(name) != shape)
        if missing or other:
            raise BadInput(f"{path} is not what {folder} describes: of its {part} {len(missing)} weights are missing and {len(other)} "
                           f"of another shape or unknown ({some(missing or other, 2)}); get the whole file, or put the configurations "
                           f"that it was made with into {path.with_suffix('')}/.")


@lru_cache(maxsize=8)
def _described(part, config):
    """{name: shape} of the weights of a U-Net or VAE with a configuration, as JSON; nothing is made but their names."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with torch.device("meta"):
        model = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[part].from_config(json.loads(config))
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


def _names(key, ups, layers):
    """[(part, diffusers name, how)] of an original key: three where query, key and value are stacked, none where nothing here knows it."""
    if key.startswith("model.diffusion_model."):
        found = "unet", from_original(key.removeprefix("model.diffusion_model."), layers), ""
    elif key.startswith("first_stage_model."):
        name = _vae(key.removeprefix("first_stage_model."), ups)
        flat = ".attentions." in name and name.endswith("weight") and "group_norm" not in name
        found = "vae", name, "flat" if flat else ""
    else:
        prefix = next((prefix for prefix in CLIP if key.startswith(prefix)), None)
        found = prefix and ("text_encoder", key.removeprefix(prefix), "")
    if found:
        return [found] if KNOWN[found[0]].match(found[1]) else []
    for prefix, part in OPEN.items():
        if key.startswith(prefix):
            return [(part, name, how) for name, how in _openclip(key.removeprefix(prefix))]
    return []


def _openclip(name):
    if name in BACK:
        return [(BACK[name], "")]
    if name == "text_projection":
        return [("text_projection.weight", "transpose")]
    if hit := re.fullmatch(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", name):
        return [(f"text_model.encoder.layers.{hit[1]}.self_attn.{p}_proj.{hit[2]}", str(k)) for k, p in enumerate("qkv")]
    hit = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)", name)
    return [(f"text_model.encoder.layers.{hit[1]}.{LAYERS[hit[2]]}.{hit[3]}", "")] if hit and hit[2] in LAYERS else []


def _vae(name, ups):
    for ours, theirs in VAE.items():
        name = re.sub(rf"(^|\.){re.escape(theirs)}(?=\.)", rf"\g<1>{ours}", name)
    name = re.sub(r"(?<=encoder\.)down\.(\d+)\.block\.", r"down_blocks.\1.resnets.", name)
    name = re.sub(r"(?<=encoder\.)down\.(\d+)\.downsample\.conv", r"down_blocks.\1.downsamplers.0.conv", name)
    name = re.sub(r"(?<=decoder\.)up\.(\d+)\.block\.", lambda hit: f"up_blocks.{ups - 1 - int(hit[1])}.resnets.", name)
    return re.sub(r"(?<=decoder\.)up\.(\d+)\.upsample\.conv", lambda hit: f"up_blocks.{ups - 1 - int(hit[1])}.upsamplers.0.conv", name)
