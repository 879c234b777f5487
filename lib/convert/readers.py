"""Who reads an exported adapter: every key against each tool's scheme, and the file loaded back by
a reader that is not ours.

The schemes are the tools' own (ComfyUI comfy/lora.py and comfy/utils.py, which Forge shares;
AUTOMATIC1111 extensions-builtin/Lora; kohya-ss sd-scripts networks/lora.py; diffusers loaders;
PEFT), written down here as sets of names for one base model.

Who reads a whole model: every key of it sent through diffusers' own converter of checkpoints, or
held against its classes.

    found = checkpoint_readers(layout(target), target)        # {"diffusers": (keys that will load, keys that will not), ...}

Only names, shapes and the order of weights are looked at, on tensors that hold one number each,
repeated: gigabytes take no room. What is in them is read back when they are written
(`lib.files.safetensors_file.check_written`).
"""

import re
import warnings
from types import SimpleNamespace

import torch

from lib.files.errors import BadInput
from lib.files.json_file import read_json
from lib.models.layer_names import full_name, kohya_name, short_name, to_original

PAIR = ("lora_A.weight", "lora_B.weight")


HALVES = ("lora_down.weight", "lora_up.weight", "alpha")


# Where sd-scripts wraps layers when it loads a LoRA: in Transformer2DModel, ResnetBlock2D,
# Downsample2D and Upsample2D, in CLIPAttention and CLIPMLP. Keys of others, which a full fine-tune
# changes too, it passes over in silence.
WRAPPED = {
    "unet": r"\.(attentions|resnets|downsamplers|upsamplers)\.",
    "text": r"encoder\.layers\.\d+\.(self_attn|mlp)\.",
}


TOOLS = {
    "kohya": ("ComfyUI", "Forge", "WebUI", "Kohya", "diffusers"),
    "diffusers": ("diffusers", "ComfyUI"),
    "peft": ("PEFT",),
}


def scheme(tool, target):
    """The set of keys that `tool` knows for a base model like `target`, a
    `lib.models.base_weights.Target`.
    """
    keys, sdxl, shape = set(), target.sdxl, (target.layers, target.attended)
    for part in target.shapes:
        for name in target.layer_shapes(part) if part != "vae" else ():
            if tool == "Kohya" and not re.search(
                WRAPPED["unet" if part == "unet" else "text"], f".{name}"
            ):
                continue
            names = {kohya_name(part, name, sdxl, *shape)}
            if part == "unet" and tool in ("ComfyUI", "Forge", "WebUI", "diffusers"):
                names |= {
                    kohya_name(part, name, False),
                    f"lora_unet_{to_original(name, *shape)}".replace(".", "_"),
                }
            if part == "text_encoder" and tool in ("ComfyUI", "Forge"):
                names |= {kohya_name(part, name, True)}
            if (
                part != "unet"
                and tool in ("ComfyUI", "Forge", "WebUI")
                and not re.search(WRAPPED["text"], name)
            ):
                names = set()
            if tool != "PEFT":
                keys |= {f"{n}.{half}" for n in names for half in HALVES}
            keys |= _dotted(tool, part, name)
    return keys


def _dotted(tool, part, name):
    if tool in ("diffusers", "PEFT"):
        before = f"{part}." if tool == "diffusers" else "base_model.model."
        return {
            f"{before}{n}.{end}"
            for n in {name, short_name(part, name)}
            for end in (*PAIR, "lora_magnitude_vector")
        }
    if tool in ("ComfyUI", "Forge"):  # attention of the U-Net goes by diffusers' older names there
        older = name.replace(".to_", ".processor.to_") if part == "unet" else name
        older = older.removesuffix(".0") if older.endswith(".to_out.0") else older
        return {f"{part}.{older}.{end}" for end in PAIR}
    return set()


def adapter_readers(names, form, target):
    """{tool: (keys that will load, keys that will not)} of an adapter's key names in a form,
    against `target`.
    """
    found = {}
    for tool in TOOLS[form]:
        known = scheme(tool, target)
        found[tool] = [n for n in names if n in known], [n for n in names if n not in known]
    return found


def reader_lines(found):
    """What `readers` found, a sentence a tool: "256 of 256 keys will load in ComfyUI", with the
    layers that it leaves aside.
    """
    for tool, (good, bad) in found.items():
        aside = dict.fromkeys(re.sub(r"\.(lora_\w+(\.weight)?|alpha)$", "", key) for key in bad)
        some = ", ".join(list(aside)[:6]) + (
            f" and {len(aside) - 6} more" if len(aside) > 6 else ""
        )
        yield f"{len(good)} of {len(good) + len(bad)} keys will load in {tool}" + (
            f"; it leaves aside {some}" if bad else ""
        )


def load_back(path, form, target):
    """{(part, name): (down, up, scale, DoRA's magnitude or None)} as diffusers (or PEFT) reads the
    file.

    It is loaded into models whose own weights are never touched. Memory that is only reserved takes
    no room, so this needs a base model's configuration and not its gigabytes.
    """
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    from lib.models.pipeline import quiet

    quiet()
    unet = unfilled_model("unet", target)
    if form == "peft":
        return _peft_back(path, unet, target)
    pipe = StableDiffusionXLPipeline if target.sdxl else StableDiffusionPipeline
    tensors, alphas, metadata = pipe.lora_state_dict(
        str(path), unet_config=unet.config, return_lora_metadata=True
    )
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own calls of what it deprecates
        if any(key.startswith("unet.") for key in tensors):
            pipe.load_lora_into_unet(
                tensors, alphas, unet, "check", metadata=metadata, low_cpu_mem_usage=True
            )
            found |= {("unet", name): module for name, module in _modules(unet)}
        for part in ("text_encoder", "text_encoder_2"):
            if any(key.startswith(f"{part}.") for key in tensors):
                encoder = unfilled_model(part, target)
                pipe.load_lora_into_text_encoder(
                    tensors, alphas, encoder, prefix=part, adapter_name="check", metadata=metadata
                )
                found |= {
                    (part, full_name(part, name)): module for name, module in _modules(encoder)
                }
    return found


def _peft_back(path, unet, target):
    from peft import PeftModel

    found = {}
    for folder in (p for p in path.iterdir() if p.is_dir()):
        part = folder.name
        model = PeftModel.from_pretrained(
            unet if part == "unet" else unfilled_model(part, target),
            folder,
            "check",
            low_cpu_mem_usage=True,
        )
        for name, module in _modules(model.base_model.model):
            found[part, full_name(part, name)] = module
    return found


def _modules(model):
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and "check" in module.lora_A:
            magnitude = (
                module.lora_magnitude_vector["check"].weight.detach()
                if "check" in module.lora_magnitude_vector
                else None
            )
            yield (
                name,
                (
                    module.lora_A["check"].weight.detach(),
                    module.lora_B["check"].weight.detach(),
                    module.scaling["check"],
                    magnitude,
                ),
            )


def unfilled_model(part, target):
    """A model with its weights reserved and never written, where only an adapter's are looked at:
    the U-Net or a text encoder.
    """
    from diffusers import UNet2DConditionModel
    from transformers import AutoConfig, CLIPTextModel, CLIPTextModelWithProjection

    if part == "unet":
        target.configurations()  # of a single file there may be none
        config, kind = target.config, UNet2DConditionModel.from_config
    else:
        config = AutoConfig.from_pretrained(target.configurations() / part)
        kind = (
            CLIPTextModelWithProjection
            if "CLIPTextModelWithProjection" in (config.architectures or ())
            else CLIPTextModel
        )
    with torch.device("meta"):
        model = kind(config)
    return model.half().to_empty(device="cpu")


def check_loaded_back(adapter, found, path):
    """Raise BadInput unless what a foreign reader `found` (as of `load_back`) is the adapter, layer
    by layer.
    """
    wrong = []
    for part, name, layer in adapter:
        theirs = found.pop((part, name), None)
        scale = layer.alpha / layer.rank
        if theirs is None or not (
            _same(theirs[0], layer.down)
            and _same(theirs[1], layer.up)
            and _same(theirs[3], layer.magnitude)
            and abs(theirs[2] - scale) <= 1e-6 * abs(scale)
        ):
            wrong.append(f"{part}.{name}")
    if wrong or found:
        wrong += [".".join(name) for name in found]
        raise BadInput(
            f"{path} was not written: read back it differs in {len(wrong)} layers"
            f" ({', '.join(wrong[:3])}); this is an error of the export, please report it."
        )


def _same(theirs, ours):
    """Whether a tensor that was read back (on the meta device: never read) is ours; magnitudes are
    None where there is no DoRA.
    """
    if theirs is None or ours is None:
        return theirs is ours
    return theirs.device.type != "meta" and torch.equal(theirs.cpu().float(), ours.float())


# All of these read the one layout in which Stable Diffusion was published; only diffusers' code for
# it runs here.
SAME_LAYOUT = ("ComfyUI", "Forge", "WebUI", "Kohya")


# What a checkpoint does without: the first text encoder's projection, which no Stable Diffusion
# uses, and positions, which are 0, 1, 2, ...
NOT_NEEDED = ("text_projection.weight", "position_ids")


def checkpoint_readers(entries, target):
    """{tool: (keys that will load, keys that will not)} of a checkpoint of `entries`
    (`lib.models.single_file.layout`), made from `target`.

    A key will load if diffusers' converter makes of it the very weights of which it was made, each
    in its place and shape. Raises BadInput if a weight of the base has no place in the layout.
    """
    from diffusers.loaders.single_file_utils import SD_2_TEXT_ENCODER_KEYS_TO_IGNORE

    numbers = {
        (part, name): k
        for k, (part, name) in enumerate(
            (p, n) for p, names in target.shapes.items() for n in names
        )
    }
    placed = {source for entry in entries.values() for source in entry.sources}
    if lost := [
        f"{part}.{name}"
        for part, name in numbers
        if (part, name) not in placed and not name.endswith(NOT_NEEDED)
    ]:
        raise BadInput(
            f"'{target.name}' cannot be written as one file: {len(lost)} of its weights, such as"
            f" {lost[0]}, have no place in the original layout; write a diffusers folder."
        )

    def read(part, name):
        return torch.tensor(numbers[part, name], dtype=torch.int16).expand(
            target.shapes[part][name]
        )

    converted, good, bad = (
        _converted({key: entry.make(read) for key, entry in entries.items()}, target),
        [],
        [],
    )
    for key, entry in entries.items():
        if (
            key in SD_2_TEXT_ENCODER_KEYS_TO_IGNORE
        ):  # the last layer and the projection, which no reader uses, as diffusers says
            continue
        (
            good
            if all(_is(converted.get(source), read(*source)) for source in entry.sources)
            else bad
        ).append(key)
    return {"diffusers": (good, bad)} | {tool: (good, bad) for tool in SAME_LAYOUT}


def _is(found, wanted):
    """Whether a converted tensor is the wanted one: its shape, and its number at both ends."""
    if found is None or found.shape != wanted.shape:
        return False
    return all(
        found[(end,) * found.ndim] == wanted[(end,) * wanted.ndim]
        for end in (0, -1)[: 1 if 0 in found.shape else 2]
    )


def _converted(checkpoint, target):
    """{(part, name): tensor} of a checkpoint, by the functions with which diffusers'
    `from_single_file` reads one.
    """
    from diffusers.loaders import single_file_utils as theirs

    blocks = {
        n.split(".")[2]
        for n in target.shapes.get("vae", {})
        if n.startswith("encoder.down_blocks.")
    }
    config = {
        "layers_per_block": target.layers,
        "down_block_types": blocks,
        "up_block_types": blocks,
    }
    config |= (
        {"addition_embed_type": "text_time"}
        if "add_embedding.linear_1.weight" in target.shapes["unet"]
        else {}
    )
    made = {
        "unet": theirs.convert_ldm_unet_checkpoint(dict(checkpoint), config),
        "text_encoder": theirs.convert_ldm_clip_checkpoint(checkpoint),
    }
    if blocks:
        made["vae"] = theirs.convert_ldm_vae_checkpoint(dict(checkpoint), config)
    for part, prefix in (
        ("text_encoder", "cond_stage_model.model."),
        ("text_encoder_2", "conditioner.embedders.1.model."),
    ):
        if any(key.startswith(prefix) for key in checkpoint):
            width = target.shapes[part]["text_model.embeddings.token_embedding.weight"][1]
            made[part] = theirs.convert_open_clip_checkpoint(
                SimpleNamespace(config=SimpleNamespace(hidden_size=width)), checkpoint, prefix
            )
    return {
        (part, full_name(part, name)): tensor
        for part, names in made.items()
        for name, tensor in names.items()
    }


def folder_readers(target):
    """{"diffusers": (keys that will load, keys that will not)} of a diffusers folder with
    `target`'s weights, by the classes' own names.
    """
    from diffusers import AutoencoderKL

    good, bad = [], []
    for part, names in target.shapes.items():
        spare = target.spare(part)
        names = {name: shape for name, shape in names.items() if name not in spare}
        if part == "vae":
            with torch.device("meta"):
                model = AutoencoderKL.from_config(
                    read_json(target.configurations() / "vae" / "config.json")
                )
        else:
            model = unfilled_model(part, target)
        known = {full_name(part, n): tuple(t.shape) for n, t in model.state_dict().items()}
        for name, shape in names.items():
            passed_over = part.startswith("text") and name.endswith("position_ids")  # rightly
            fits = known.get(name) == tuple(shape) or passed_over
            (good if fits else bad).append(f"{part}.{name}")
        bad += [
            f"{part}.{name}, which is missing"
            for name in known.keys() - names.keys()
            if not name.endswith("position_ids")
        ]
    return {"diffusers": (good, bad)}
