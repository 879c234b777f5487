"""What each tool calls a layer of Stable Diffusion.

Diffusers and PEFT write names with dots, Kohya with underscores, the original layout (CompVis
openaimodel.py) with block numbers. Everywhere else in the project a layer is (part, name):

- part: one of `lib.models.base_files.TRAINABLE_PARTS`;
- name: as diffusers and transformers have it in files, text encoders with `text_model.` before it
  (transformers from 5.6 dropped that in memory, not on disk).
"""

import re
from collections.abc import Container, Sequence
from functools import cache

from lib.models.base_files import TRAINABLE_PARTS

# Words with an underscore in them: all other underscores of a Kohya key stand for dots.
WORDS = """
down_blocks mid_block up_blocks input_blocks middle_block output_blocks transformer_blocks
to_q to_k to_v to_out proj_in proj_out time_emb_proj time_embedding add_embedding time_embed
label_emb linear_1 linear_2 conv_in conv_out conv_shortcut in_layers out_layers emb_layers
skip_connection text_model self_attn q_proj k_proj v_proj out_proj text_projection token_embedding
position_embedding
""".split()
SPLIT = re.compile("|".join(sorted(WORDS, key=len, reverse=True)) + "|[^_]+")

# Prefixes of Kohya's keys. Stable Diffusion 1.x and 2.x have one text encoder, `te`; SDXL has `te1`
# and `te2`.
PREFIXES = {
    "lora_unet": "unet",
    "lora_te": "text_encoder",
    "lora_te1": "text_encoder",
    "lora_te2": "text_encoder_2",
}

KOHYA = re.compile(
    r"(lora_unet|lora_te1|lora_te2|lora_te)_([^.]+)\."
    r"(lora_down\.weight|lora_up\.weight|lora_mid\.weight|alpha|dora_scale|hada_\w+|lokr_\w+)"
)

# What stands before a name with dots: the part's own name (diffusers, OneTrainer), or the place in
# ComfyUI's models (comfy/lora.py; its LoraSave node writes these).
DOTTED_PREFIXES = {
    "unet": "unet",
    "text_encoder_2": "text_encoder_2",
    "text_encoder": "text_encoder",
    "diffusion_model": "unet",
    "model.diffusion_model": "unet",
    "text_encoders.clip_l.transformer": "text_encoder",
    "text_encoders.clip_h.transformer": "text_encoder",
    "text_encoders.clip_g.transformer": "text_encoder_2",
}

DOTTED = re.compile(
    rf"(?:({'|'.join(map(re.escape, DOTTED_PREFIXES))})\.)?(?:base_model\.model\.)?(.+?)[._]"
    r"(lora_A(?:\.\w+)?\.weight|lora_B(?:\.\w+)?\.weight|lora\.down\.weight|lora\.up\.weight|"
    r"lora_down\.weight|lora_up\.weight|lora_mid\.weight|"
    r"lora_linear_layer\.down\.weight|lora_linear_layer\.up\.weight|"
    r"lora_magnitude_vector(?:\.weight)?|dora_scale|alpha|hada_\w+|lokr_\w+)"
)

# How names of the U-Net begin: keys without a prefix are its (diffusers' older `save_attn_procs`).
OF_THE_UNET = re.compile(
    r"(down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding|add_embedding)\."
)

# What an adapter's key says of a tensor's role; the first word that is in it counts.
ROLES = {
    "lora_A": "down",
    "lora_B": "up",
    "down": "down",
    "up": "up",
    "mid": "mid",
    "alpha": "alpha",
    "dora_scale": "dora_scale",
    "magnitude": "magnitude",
}

LEVELS = 8  # more than any model has blocks, or resnets in one

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}

OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.attentions.0": "middle_block.1",
}


def parse(key: str, part: str | None = None, layers: int = 2) -> tuple[str, str, str] | None:
    """(part, name, role) of an adapter's key in any form, or None if it is none.

    Roles: down, up, mid, alpha, magnitude, dora_scale, or those of LyCORIS' products by their own
    names (hada_w1_a, lokr_w1, ...). `part`: whose keys they are where keys
    don't say (PEFT's). `layers`: of each U-Net block, to read SDXL's block numbers.
    """
    if hit := KOHYA.fullmatch(key):
        part, name, role = PREFIXES[hit[1]], ".".join(SPLIT.findall(hit[2])), hit[3]
        if part == "unet":
            name = from_original(name, layers)
    elif hit := DOTTED.fullmatch(key):
        known, name, role = DOTTED_PREFIXES.get(hit[1], part), hit[2], hit[3]
        name = from_original(name.replace(".processor.", "."), layers)
        part = known or ("unet" if OF_THE_UNET.match(f"{name}.") else None)
        name = name + ".0" if name.endswith(".to_out") else name
    else:
        return None
    if part is None or part not in TRAINABLE_PARTS:
        return None
    product = role.startswith(("hada_", "lokr_"))
    found = role if product else next(ROLES[word] for word in ROLES if word in role)
    return part, full_name(part, name), found


def full_name(part: str, name: str) -> str:
    """The name of a layer or weight as it stands in files.

    That is with `text_model.` in a text encoder, but for its projection.
    """
    within = part.startswith("text") and not name.startswith(("text_model.", "text_projection"))
    return f"text_model.{name}" if within else name


def short_name(part: str, name: str) -> str:
    """A layer's name without `text_model.`: as an ending it fits every version of transformers."""
    return name if part == "unet" else name.removeprefix("text_model.")


def kohya_name(
    part: str, name: str, sdxl: bool, layers: int = 2, attended: Sequence[int] = ()
) -> str:
    """Kohya's name of a layer; `layers` and `attended` as in `to_original`.

    SDXL's U-Net goes by the original layout, as Kohya's trainer has it; 1.x and 2.x by diffusers'
    names.
    """
    prefix = {
        "unet": "lora_unet",
        "text_encoder": "lora_te1" if sdxl else "lora_te",
        "text_encoder_2": "lora_te2",
    }[part]
    if part == "unet" and sdxl:
        name = to_original(name, layers, attended)
    return f"{prefix}_{name.replace('.', '_')}"


def to_original(name: str, layers: int = 2, attended: Sequence[int] = ()) -> str:
    """The original layout's name of a U-Net layer (or tensor), without `model.diffusion_model.`.

    `layers`: resnets of a down block. `attended`: the up blocks (numbers) that have attention,
    after which the upsampler comes third. Raises ValueError for what has no place there.
    """
    table = original_names(layers, tuple(attended))
    head = beginning(name, table)
    if not head:
        raise ValueError(f"{name} has no place in the original layout")
    return table[head] + name[len(head) :]


def from_original(name: str, layers: int = 2) -> str:
    """The inverse of `to_original`; a name that has no place in the layout comes back as it is."""
    table = diffusers_names(layers)
    head = beginning(name, table)
    return table.get(head, "") + name[len(head) :]


def beginning(name: str, table: Container[str]) -> str:
    """The longest beginning of `name`, up to a dot or its end, that is in `table`; or ""."""
    while name and name not in table:
        name = name.rpartition(".")[0]
    return name


@cache
def original_names(layers: int, attended: tuple[int, ...]) -> dict[str, str]:
    """{how the U-Net's names begin: how they do in the original layout}; see `to_original`."""
    found, level = dict(OUTSIDE), layers + 1
    resnets = {"mid_block.resnets.0": "middle_block.0", "mid_block.resnets.1": "middle_block.2"}
    for block in range(LEVELS):
        first = block * level
        for k in range(level):
            down, up = f"input_blocks.{first + k + 1}", f"output_blocks.{first + k}"
            resnets[f"down_blocks.{block}.resnets.{k}"] = f"{down}.0"
            resnets[f"up_blocks.{block}.resnets.{k}"] = f"{up}.0"
            found[f"down_blocks.{block}.attentions.{k}"] = f"{down}.1"
            found[f"up_blocks.{block}.attentions.{k}"] = f"{up}.1"
        found[f"down_blocks.{block}.downsamplers.0.conv"] = f"input_blocks.{first + level}.0.op"
        place = f"output_blocks.{first + layers}.{2 if block in attended else 1}"
        found[f"up_blocks.{block}.upsamplers.0.conv"] = f"{place}.conv"
    for ours, theirs in resnets.items():
        found |= {f"{ours}.{name}": f"{theirs}.{original}" for name, original in RESNET.items()}
    return found


@cache
def diffusers_names(layers: int) -> dict[str, str]:
    """The inverse of `original_names`, whichever blocks have attention."""
    tables = (original_names(layers, ()), original_names(layers, tuple(range(LEVELS))))
    return {theirs: ours for table in tables for ours, theirs in table.items()}
