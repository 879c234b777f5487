"""A whole model in the original single-file layout: CompVis's for Stable Diffusion 1.x and 2.x, Stability's for SDXL.

Names follow the original repositories' modules (CompVis/stable-diffusion ldm/modules, Stability-AI/generative-models sgm/modules,
mlfoundations/open_clip): `model.diffusion_model.` the U-Net, `first_stage_model.` the VAE, `cond_stage_model.` or
`conditioner.embedders.` the text encoders. WebUI, ComfyUI, Forge and diffusers' `from_single_file` read this.
"""

import re
from dataclasses import dataclass

import torch

from .keys import to_original

OPENCLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
            "self_attn.out_proj": "attn.out_proj"}
OUTSIDE = {"text_model.embeddings.token_embedding.weight": "token_embedding.weight",
           "text_model.embeddings.position_embedding.weight": "positional_embedding",
           "text_model.final_layer_norm.weight": "ln_final.weight", "text_model.final_layer_norm.bias": "ln_final.bias"}
VAE = {"conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut", "mid_block.attentions.0.group_norm": "mid.attn_1.norm",
       "mid_block.attentions.0.to_q": "mid.attn_1.q", "mid_block.attentions.0.to_k": "mid.attn_1.k",
       "mid_block.attentions.0.to_v": "mid.attn_1.v", "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
       "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2"}


@dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint: its `shape`, the (part, name) pairs it is made of, and how: "", "stack" or "transpose"."""

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
    """{original key: Entry} of every tensor of a base model, a `lib.target.Target`."""
    found, ups = {}, len({n.split(".")[2] for n in target.shapes.get("vae", {}) if n.startswith("decoder.up_blocks.")})
    for name, shape in target.shapes["unet"].items():
        key = f"model.diffusion_model.{to_original(name, target.layers, target.attended)}"
        found[key] = Entry(shape, (("unet", name),))
    for name, shape in target.shapes.get("vae", {}).items():
        flat = ".attentions." in name and name.endswith("weight") and len(shape) == 2
        found[f"first_stage_model.{vae_name(name, ups)}"] = Entry((*shape, 1, 1) if flat else shape, (("vae", name),))
    if target.sdxl:
        found |= _clip("text_encoder", target, "conditioner.embedders.0.transformer.")
        found |= _openclip("text_encoder_2", target, "conditioner.embedders.1.model.")
    elif target.family == "Stable Diffusion 2.x":
        found |= _openclip("text_encoder", target, "cond_stage_model.model.")
    else:
        found |= _clip("text_encoder", target, "cond_stage_model.transformer.")
    return found


def vae_name(name, ups):
    """A VAE tensor's original name; `ups`: number of the decoder's up blocks, which are counted from the other end there."""
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.conv", r"down.\1.downsample.conv", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda hit: f"up.{ups - 1 - int(hit[1])}.block.", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0\.conv", lambda hit: f"up.{ups - 1 - int(hit[1])}.upsample.conv", name)
    for ours, theirs in VAE.items():
        name = re.sub(rf"(^|\.){re.escape(ours)}(?=\.)", rf"\g<1>{theirs}", name)
    return name


def _clip(part, target, before):
    return {before + name: Entry(shape, ((part, name),)) for name, shape in target.shapes[part].items()
            if not name.startswith("text_projection")}


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
                three = tuple((part, name.replace("q_proj", each)) for each in ("q_proj", "k_proj", "v_proj"))
                found[f"{block}attn.in_proj_{kind}"] = Entry((3 * shape[0], *shape[1:]), three, "stack")
            elif rest in OPENCLIP:
                found[f"{block}{OPENCLIP[rest]}.{kind}"] = Entry(shape, ((part, name),))
    return found
