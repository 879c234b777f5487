"""What each tool calls a layer: diffusers and PEFT with dots, Kohya with underscores, the original
layout with block numbers.

A layer is (part, name) everywhere else in the project: the part `unet`, `text_encoder` or
`text_encoder_2`, the name as diffusers and transformers have it in files, text encoders with
`text_model.` before it (transformers from 5.6 dropped that in memory, not on disk).
"""

import re

PARTS = ("unet", "text_encoder", "text_encoder_2")


# Words with an underscore in them: all other underscores of a Kohya key stand for dots.
WORDS = """down_blocks mid_block up_blocks input_blocks middle_block output_blocks transformer_blocks to_q to_k to_v to_out proj_in proj_out
time_emb_proj time_embedding add_embedding time_embed label_emb linear_1 linear_2 conv_in conv_out conv_shortcut in_layers out_layers
emb_layers skip_connection text_model self_attn q_proj k_proj v_proj out_proj text_projection token_embedding position_embedding""".split()


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
    r"(lora_unet|lora_te1|lora_te2|lora_te)_([^.]+)\.(lora_down\.weight|lora_up\.weight|lora_mid\.weight|alpha|dora_scale)"
)


DOTTED = re.compile(
    r"(?:(unet|text_encoder_2|text_encoder)\.)?(?:base_model\.model\.)?(.+?)[._]"
    r"(lora_A(?:\.\w+)?\.weight|lora_B(?:\.\w+)?\.weight|lora\.down\.weight|lora\.up\.weight|lora_linear_layer\.down\.weight|"
    r"lora_linear_layer\.up\.weight|lora_magnitude_vector(?:\.weight)?|alpha)"
)


ROLES = {
    "lora_down": "down",
    "lora_A": "down",
    "lora_up": "up",
    "lora_B": "up",
    "lora_mid": "mid",
    "alpha": "alpha",
    "dora_scale": "dora_scale",
    "lora_magnitude_vector": "magnitude",
}


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
}


def parse(key, part=None, layers=2):
    """(part, name, role) of an adapter's key in any form, or None if it is none; role: down, up,
    mid, alpha, magnitude or dora_scale.

    `part`: whose keys they are where keys don't say (PEFT's). `layers`: of each U-Net block, to
    read SDXL's block numbers.
    """
    if hit := KOHYA.fullmatch(key):
        part, name, role = PREFIXES[hit[1]], ".".join(SPLIT.findall(hit[2])), hit[3]
        if part == "unet" and re.match(
            "(input_blocks|middle_block|output_blocks|time_embed|label_emb|out)[.]", name
        ):
            name = from_original(name, layers)
    elif hit := DOTTED.fullmatch(key):
        part, name, role = hit[1] or part, hit[2].replace(".processor.", "."), hit[3]
        name = name + ".0" if name.endswith(".to_out") else name
    else:
        return None
    if part not in PARTS:
        return None
    role = "down" if ".down." in role else "up" if ".up." in role else ROLES[role.split(".")[0]]
    return part, full_name(part, name), role


def full_name(part, name):
    """The name of a layer or weight as it stands in files: with `text_model.` in a text encoder,
    but for its projection.
    """
    within = part.startswith("text") and not name.startswith(("text_model.", "text_projection"))
    return f"text_model.{name}" if within else name


def short_name(part, name):
    """A layer's name without `text_model.`: as an ending it fits every version of transformers."""
    return name if part == "unet" else name.removeprefix("text_model.")


def kohya_name(part, name, sdxl, layers=2, attended=()):
    """Kohya's name of a layer. SDXL's U-Net goes by the original layout, as Kohya's trainer has it;
    1.x and 2.x by diffusers' names.

    `layers`, `attended` as in `to_original`.
    """
    prefix = {
        "unet": "lora_unet",
        "text_encoder": "lora_te1" if sdxl else "lora_te",
        "text_encoder_2": "lora_te2",
    }[part]
    if part == "unet" and sdxl:
        name = to_original(name, layers, attended)
    return f"{prefix}_{name.replace('.', '_')}"


def to_original(name, layers=2, attended=()):
    """A U-Net layer (or tensor) of diffusers in the original layout (CompVis openaimodel.py),
    without `model.diffusion_model.`.

    `layers`: resnets of a down block. `attended`: the up blocks (numbers) that have attention,
    after which the upsampler comes third.
    """
    for ours, theirs in OUTSIDE.items():
        if name == ours or name.startswith(f"{ours}."):
            return theirs + name[len(ours) :]
    if hit := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", name):
        way, block, kind, k, rest = hit[1], int(hit[2]), hit[3], int(hit[4]), hit[5]
        at = block * (layers + 1) + k + (way == "down")
        where = f"{'input' if way == 'down' else 'output'}_blocks.{at}.{int(kind == 'attentions')}"
        return f"{where}.{_resnet(rest) if kind == 'resnets' else rest}"
    if hit := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        return (
            f"middle_block.{2 * int(hit[2])}.{_resnet(hit[3])}"
            if hit[1] == "resnets"
            else f"middle_block.1.{hit[3]}"
        )
    if hit := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv(.*)", name):
        return f"input_blocks.{(int(hit[1]) + 1) * (layers + 1)}.0.op{hit[2]}"
    if hit := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.conv(.*)", name):
        block = int(hit[1])
        return f"output_blocks.{block * (layers + 1) + layers}.{2 if block in attended else 1}.conv{hit[2]}"
    raise ValueError(f"{name} has no place in the original layout")


def from_original(name, layers=2):
    """The inverse of `to_original`; a name that has no place in the layout comes back as it is."""
    for ours, theirs in OUTSIDE.items():
        if name == theirs or name.startswith(f"{theirs}."):
            return ours + name[len(theirs) :]
    if hit := re.fullmatch(r"input_blocks\.(\d+)\.0\.op(.*)", name):
        return f"down_blocks.{int(hit[1]) // (layers + 1) - 1}.downsamplers.0.conv{hit[2]}"
    if hit := re.fullmatch(r"output_blocks\.(\d+)\.[12]\.conv(|\..*)", name):
        return f"up_blocks.{int(hit[1]) // (layers + 1)}.upsamplers.0.conv{hit[2]}"
    if hit := re.fullmatch(r"(in|out)put_blocks\.(\d+)\.([01])\.(.+)", name):
        way, at = ("down", int(hit[2]) - 1) if hit[1] == "in" else ("up", int(hit[2]))
        block, k = divmod(at, layers + 1)
        rest = (
            f"attentions.{k}.{hit[4]}"
            if hit[3] == "1"
            else f"resnets.{k}.{_resnet(hit[4], back=True)}"
        )
        return f"{way}_blocks.{block}.{rest}"
    if hit := re.fullmatch(r"middle_block\.([012])\.(.+)", name):
        at = int(hit[1])
        return (
            f"mid_block.attentions.0.{hit[2]}"
            if at == 1
            else f"mid_block.resnets.{at // 2}.{_resnet(hit[2], back=True)}"
        )
    return name


def attended_blocks(names):
    """The numbers of the up blocks that have attention, from a list of U-Net names."""
    return sorted(
        {
            int(hit[1])
            for name in names
            if (hit := re.match(r"up_blocks\.(\d+)\.attentions\.", name))
        }
    )


def _resnet(rest, back=False):
    for ours, theirs in RESNET.items():
        old, new = (theirs, ours) if back else (ours, theirs)
        if rest == old or rest.startswith(f"{old}."):
            return new + rest[len(old) :]
    return rest
