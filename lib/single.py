"""A single-file checkpoint in the original layout, described as if it were a diffusers folder: the inverse of `lib.original`.

    shapes, places = read_single("v1-5-pruned-emaonly.safetensors")       # part -> {diffusers name: shape}, {name: (file, key, how)}

Nothing is converted or copied: each tensor is cut out of the file when it is asked for. `how`: "" as it is, "flat" a 1 x 1 convolution as
a matrix, "transpose", or "0", "1", "2" that third of stacked query, key and value.
"""

import re

from .keys import from_original
from .original import OPENCLIP, OUTSIDE, VAE
from .safefile import open_weights
from .settings import BadInput

CLIP = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")
OPEN = {"cond_stage_model.model.": "text_encoder", "conditioner.embedders.1.model.": "text_encoder_2"}
BACK = {theirs: ours for ours, theirs in OUTSIDE.items()}
LAYERS = {theirs: ours for ours, theirs in OPENCLIP.items()}


def read_single(path):
    """(shapes, places) as above. Raises BadInput if the file is damaged, or no Stable Diffusion in the original layout."""
    shapes, places = {}, {}
    with open_weights(path) as file:
        ups = len({k.split(".")[3] for k in file.names if k.startswith("first_stage_model.decoder.up.")})
        for key in file.names:
            for part, name, how in _names(key, ups):
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
    return shapes, places


def _names(key, ups):
    """[(part, diffusers name, how)] of an original key: three where query, key and value are stacked, none where nothing here knows it."""
    if key.startswith("model.diffusion_model."):
        return [("unet", from_original(key.removeprefix("model.diffusion_model.")), "")]
    if key.startswith("first_stage_model."):
        name = _vae(key.removeprefix("first_stage_model."), ups)
        flat = ".attentions." in name and name.endswith("weight") and "group_norm" not in name
        return [("vae", name, "flat" if flat else "")]
    for prefix in CLIP:
        if key.startswith(prefix):
            return [("text_encoder", key.removeprefix(prefix), "")]
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
