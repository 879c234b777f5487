"""A diffusers pipeline -> one file in the original layout (CompVis' and Stability's key names),
written from the layout alone.
"""

import re

import torch
from safetensors.torch import save_file

UNET = [
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("conv_in", "input_blocks.0.0"),
    ("add_embedding.linear_1", "label_emb.0.0"),
    ("add_embedding.linear_2", "label_emb.0.2"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
    ("mid_block.resnets.0", "middle_block.0"),
    ("mid_block.attentions.0", "middle_block.1"),
    ("mid_block.resnets.1", "middle_block.2"),
]
RESNET = [
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
]
VAE = [
    ("conv_norm_out", "norm_out"),
    ("mid_block.resnets.0", "mid.block_1"),
    ("mid_block.resnets.1", "mid.block_2"),
    ("mid_block.attentions.0", "mid.attn_1"),
    ("conv_shortcut", "nin_shortcut"),
    ("group_norm", "norm"),
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
    ("to_out.0", "proj_out"),
    ("downsamplers.0.conv", "downsample.conv"),
    ("upsamplers.0.conv", "upsample.conv"),
]
OPEN_CLIP = [
    ("embeddings.token_embedding", "token_embedding"),
    ("final_layer_norm", "ln_final"),
    ("encoder.layers.", "transformer.resblocks."),
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("self_attn", "attn"),
]


def unet_key(key, layers, transformer):
    """The original key of a U-Net's key; `layers` residual blocks a level; `transformer`: names
    inside attentions stay as they are.
    """
    found = re.match(
        r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", key
    )
    if found:
        side, level, kind, k, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        if side == "down":
            at = 1 + level * (layers + 1) + (layers if kind == "downsamplers" else k)
            inner = {"resnets": "0.", "attentions": "1.", "downsamplers": "0.op."}[kind]
            key = f"input_blocks.{at}.{inner}{rest.removeprefix('conv.') if kind == 'downsamplers' else rest}"
        else:
            at = level * (layers + 1) + (layers if kind == "upsamplers" else k)
            inner = {
                "resnets": "0.",
                "attentions": "1.",
                "upsamplers": "2." if transformer(level) else "1.",
            }[kind]
            key = f"output_blocks.{at}.{inner}{rest}"
    else:
        for new, old in UNET:
            if key.startswith(new + "."):
                key = old + key[len(new) :]
    if not found or kind == "resnets":
        for new, old in RESNET:
            key = (
                key.replace(f".{new}.", f".{old}.")
                if "transformer_blocks" not in key and ".proj_" not in key
                else key
            )
    return key


def vae_key(key, levels):
    def level(found):
        return (
            f"down.{found[2]}.block."
            if found[1] == "down"
            else f"up.{levels - 1 - int(found[2])}.block."
        )

    key = re.sub(r"(down|up)_blocks\.(\d+)\.resnets\.", level, key)
    key = re.sub(r"down_blocks\.(\d+)\.", r"down.\1.", key)
    key = re.sub(r"up_blocks\.(\d+)\.", lambda found: f"up.{levels - 1 - int(found[1])}.", key)
    for new, old in VAE:
        key = re.sub(rf"(^|\.){re.escape(new)}\.", rf"\1{old}.", key)
    return key


def open_clip(state, prefix):
    """OpenCLIP's layout of a text encoder: one matrix for query, key and value."""
    out = {}
    state = {k.removeprefix("text_model."): v for k, v in state.items()}
    for key, value in state.items():
        if "position_embedding" in key:
            out[prefix + "positional_embedding"] = value
            continue
        if key == "text_projection.weight":
            out[prefix + "text_projection"] = value.T
            continue
        if ".k_proj." in key or ".v_proj." in key:
            continue
        if ".q_proj." in key:
            value = torch.cat([state[key.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"])
            key = key.replace(".q_proj.", ".in_proj_")
        for new, old in OPEN_CLIP:
            key = key.replace(new, old)
        out[prefix + key] = value
    return out


def write_original(pipe, path, metadata=None):
    """Write the U-Net, VAE and text encoders of a pipeline of any family to `path`."""
    config, out = pipe.unet.config, {}
    for key, value in pipe.unet.state_dict().items():
        transformer = lambda level: "CrossAttn" in config.up_block_types[level]  # noqa: E731
        out["model.diffusion_model." + unet_key(key, config.layers_per_block, transformer)] = value
    for key, value in pipe.vae.state_dict().items():
        attention = "mid_block.attentions" in key and key.endswith("weight") and value.ndim == 2
        out["first_stage_model." + vae_key(key, len(pipe.vae.config.block_out_channels))] = (
            value[:, :, None, None] if attention else value
        )
    first = {
        f"transformer.text_model.{k.removeprefix('text_model.')}": v
        for k, v in pipe.text_encoder.state_dict().items()
    }
    if hasattr(pipe, "text_encoder_2"):
        out |= {f"conditioner.embedders.0.{k}": v for k, v in first.items()}
        out |= open_clip(pipe.text_encoder_2.state_dict(), "conditioner.embedders.1.model.")
    elif config.use_linear_projection:
        out |= open_clip(pipe.text_encoder.state_dict(), "cond_stage_model.model.")
    else:
        out |= {f"cond_stage_model.{k}": v for k, v in first.items()}
    save_file({k: v.contiguous().clone() for k, v in out.items()}, path, metadata)
    return str(path)
