"""Who reads a whole model: every key of it sent through diffusers' own converter of checkpoints, or held against its classes.

    found = checkpoint_readers(layout(target), target)        # {"diffusers": (keys that will load, keys that will not), ...}

Only names, shapes and the order of weights are looked at, on tensors that hold one number each, repeated: gigabytes take no room. What is
in them is read back when they are written (`lib.safefile.check_written`).
"""

from types import SimpleNamespace

import torch

from .keys import full_name
from .readers import hollow_part
from .settings import BadInput, read_json

# All of these read the one layout in which Stable Diffusion was published; only diffusers' code for it runs here.
SAME_LAYOUT = ("ComfyUI", "Forge", "WebUI", "Kohya")
# What a checkpoint does without: the first text encoder's projection, which no Stable Diffusion uses, and positions, which are 0, 1, 2, ...
NOT_NEEDED = ("text_projection.weight", "position_ids")


def checkpoint_readers(entries, target):
    """{tool: (keys that will load, keys that will not)} of a checkpoint of `entries` (`lib.original.layout`), made from `target`.

    A key will load if diffusers' converter makes of it the very weights of which it was made, each in its place and shape. Raises
    BadInput if a weight of the base has no place in the layout.
    """
    from diffusers.loaders.single_file_utils import SD_2_TEXT_ENCODER_KEYS_TO_IGNORE

    numbers = {(part, name): k for k, (part, name) in enumerate((p, n) for p, names in target.shapes.items() for n in names)}
    placed = {source for entry in entries.values() for source in entry.sources}
    if lost := [f"{part}.{name}" for part, name in numbers if (part, name) not in placed and not name.endswith(NOT_NEEDED)]:
        raise BadInput(f"'{target.name}' cannot be written as one file: {len(lost)} of its weights, such as {lost[0]}, have no place in "
                       "the original layout; write a diffusers folder.")

    def read(part, name):
        return torch.tensor(numbers[part, name], dtype=torch.int16).expand(target.shapes[part][name])

    converted, good, bad = _converted({key: entry.make(read) for key, entry in entries.items()}, target), [], []
    for key, entry in entries.items():
        if key in SD_2_TEXT_ENCODER_KEYS_TO_IGNORE:  # the last layer and the projection, which no reader uses, as diffusers says
            continue
        (good if all(_is(converted.get(source), read(*source)) for source in entry.sources) else bad).append(key)
    return {"diffusers": (good, bad)} | {tool: (good, bad) for tool in SAME_LAYOUT}


def _is(found, wanted):
    """Whether a converted tensor is the wanted one: its shape, and its number at both ends."""
    if found is None or found.shape != wanted.shape:
        return False
    return all(found[(end,) * found.ndim] == wanted[(end,) * wanted.ndim] for end in (0, -1)[:1 if 0 in found.shape else 2])


def _converted(checkpoint, target):
    """{(part, name): tensor} of a checkpoint, by the functions with which diffusers' `from_single_file` reads one."""
    from diffusers.loaders import single_file_utils as theirs

    blocks = {n.split(".")[2] for n in target.shapes.get("vae", {}) if n.startswith("encoder.down_blocks.")}
    config = {"layers_per_block": target.layers, "down_block_types": blocks, "up_block_types": blocks}
    config |= {"addition_embed_type": "text_time"} if "add_embedding.linear_1.weight" in target.shapes["unet"] else {}
    made = {"unet": theirs.convert_ldm_unet_checkpoint(dict(checkpoint), config),
            "text_encoder": theirs.convert_ldm_clip_checkpoint(checkpoint)}
    if blocks:
        made["vae"] = theirs.convert_ldm_vae_checkpoint(dict(checkpoint), config)
    for part, prefix in (("text_encoder", "cond_stage_model.model."), ("text_encoder_2", "conditioner.embedders.1.model.")):
        if any(key.startswith(prefix) for key in checkpoint):
            width = target.shapes[part]["text_model.embeddings.token_embedding.weight"][1]
            made[part] = theirs.convert_open_clip_checkpoint(SimpleNamespace(config=SimpleNamespace(hidden_size=width)), checkpoint, prefix)
    return {(part, full_name(part, name)): tensor for part, names in made.items() for name, tensor in names.items()}


def folder_readers(target):
    """{"diffusers": (keys that will load, keys that will not)} of a diffusers folder with `target`'s weights, by the classes' own names."""
    from diffusers import AutoencoderKL

    good, bad = [], []
    for part, names in target.shapes.items():
        spare = target.spare(part)
        names = {name: shape for name, shape in names.items() if name not in spare}
        if part == "vae":
            with torch.device("meta"):
                model = AutoencoderKL.from_config(read_json(target.configurations() / "vae" / "config.json"))
        else:
            model = hollow_part(part, target)
        known = {full_name(part, n): tuple(t.shape) for n, t in model.state_dict().items()}
        for name, shape in names.items():
            passed_over = part.startswith("text") and name.endswith("position_ids")  # rightly
            fits = known.get(name) == tuple(shape) or passed_over
            (good if fits else bad).append(f"{part}.{name}")
        bad += [f"{part}.{name}, which is missing" for name in known.keys() - names.keys() if not name.endswith("position_ids")]
    return {"diffusers": (good, bad)}
