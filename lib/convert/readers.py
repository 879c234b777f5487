"""Who reads an exported file: every key against each tool's scheme, and a reader that is not ours.

Of an adapter: the schemes are the tools' own (ComfyUI comfy/lora.py and comfy/utils.py, which Forge
shares; AUTOMATIC1111 extensions-builtin/Lora; kohya-ss sd-scripts networks/lora.py; diffusers
loaders; PEFT), written down here as sets of names for one base model.

Of a whole model: every key of it is sent through diffusers' own converter of checkpoints, or held
against its classes. Only names, shapes and the order of weights are looked at, on tensors that hold
one number each, repeated: gigabytes take no memory. What is in them is read back when they are
written (`lib.files.safetensors_file.check_written`).
"""

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from lib.convert.adapter import Adapter, Layer
from lib.files import BadInput, listed
from lib.models import BaseWeights
from lib.models.base_weights import class_shapes, skeleton
from lib.models.layer_names import full_name, kohya_name, short_name, to_original

# {tool: (keys that will load, keys that will not)}
Readers = dict[str, tuple[list[str], list[str]]]

# The ends of a layer's keys, in PEFT's names and in Kohya's.
PEFT_ENDS = ("lora_A.weight", "lora_B.weight")
KOHYA_ENDS = ("lora_down.weight", "lora_up.weight", "alpha")

LAYER_END = re.compile(r"\.(lora_\w+(\.weight)?|alpha)$")

# Where sd-scripts wraps layers when it loads a LoRA: in Transformer2DModel, ResnetBlock2D,
# Downsample2D and Upsample2D, in CLIPAttention and CLIPMLP. Keys of others, which a full fine-tune
# changes too, it passes over in silence.
WRAPPED_IN_UNET = re.compile(r"\.(attentions|resnets|downsamplers|upsamplers)\.")
WRAPPED_IN_TEXT_ENCODER = re.compile(r"encoder\.layers\.\d+\.(self_attn|mlp)\.")

# Whom a form of adapter is for; the first one must read all of it.
TOOLS = {
    "kohya": ("ComfyUI", "Forge", "WebUI", "Kohya", "diffusers"),
    "diffusers": ("diffusers", "ComfyUI", "Forge", "WebUI", "Kohya"),
    "peft": ("PEFT",),
}

# Why a DoRA may come back as another (diffusers 0.42, PEFT 0.21).
MAGNITUDES_UNREAD = (
    "of a DoRA's magnitudes diffusers reads none of a text encoder, and PEFT those of all layers of"
    " a part or none: write it --to peft, or merge it --to checkpoint."
)

# Share of the keys beyond which a file is not for a tool that leaves them aside.
MOST_LEFT = 0.25

# All of these read the one layout in which Stable Diffusion was published; only diffusers' code for
# it runs here.
SAME_LAYOUT = ("ComfyUI", "Forge", "WebUI", "Kohya")

# What a checkpoint does without: the first text encoder's projection, which no Stable Diffusion
# uses, and positions, which are 0, 1, 2, ...
NOT_NEEDED = ("text_projection.weight", "position_ids")


def adapter_readers(names: Iterable[str], form: str, base_weights: BaseWeights) -> Readers:
    """Who reads an adapter with these keys in a form, on a base like `base_weights`."""
    names, readers = list(names), {}
    for tool in TOOLS[form]:
        known = known_keys(tool, base_weights)
        readers[tool] = [n for n in names if n in known], [n for n in names if n not in known]
    return readers


@dataclass(frozen=True)
class Written:
    """What was written: `path`, `bytes`, and `seconds` of writing.

    - readers: {tool: (keys that load, keys that do not)}
    - read_back: whether a library read it back and it was the same
    - tensors, changed: of a whole model, how many it has and how many of them are not the base's
    """

    path: Path
    bytes: int
    seconds: float
    readers: Readers
    read_back: bool = True
    tensors: int = 0
    changed: int = 0

    def lines(self) -> Iterator[str]:
        """What can be said of it, a sentence a tool: "256 of 256 keys will load in ComfyUI".

        With the layers that a tool leaves aside; and a warning where that is much of the file.
        """
        if self.tensors:
            yield (
                f"{self.tensors} tensors in fp16, {self.changed} of them not the base's, all read"
                " back and the same"
            )
        little = {}
        for tool, (good, bad) in self.readers.items():
            loads = f"{len(good)} of {len(good) + len(bad)} keys"
            if len(bad) > MOST_LEFT * (len(good) + len(bad)):
                little[tool] = loads
                continue
            line = f"{loads} will load in {tool}"
            layers = dict.fromkeys(LAYER_END.sub("", key) for key in bad)
            yield f"{line}; it leaves aside {listed(layers, 6)}" if layers else line
        if little:
            told = ", ".join(f"{loads} in {tool}" for tool, loads in little.items())
            yield (
                f"Warning: of this form will load only {told}, without a word of theirs: for"
                f" {' and '.join(little)} write it --to kohya."
            )
        if not self.read_back:
            yield (
                "not read back by diffusers: the base is a single file, and this machine has no"
                " configuration to build a model by"
            )


def known_keys(tool: str, base_weights: BaseWeights) -> set[str]:
    """The keys that `tool` knows for adapters of a base model like `base_weights`."""
    keys: set[str] = set()
    for part in base_weights.shapes:
        for name in base_weights.layer_shapes(part) if part != "vae" else ():
            if tool == "Kohya" and not _is_wrapped(part, name):
                continue
            if tool != "PEFT":
                names = _kohya_names(tool, part, name, base_weights)
                keys |= {f"{known}.{end}" for known in names for end in KOHYA_ENDS}
            keys |= _dotted_keys(tool, part, name)
    return keys


def _is_wrapped(part: str, name: str) -> bool:
    """Whether sd-scripts wraps a layer."""
    pattern = WRAPPED_IN_UNET if part == "unet" else WRAPPED_IN_TEXT_ENCODER
    return pattern.search(f".{name}") is not None


def _kohya_names(tool: str, part: str, name: str, base_weights: BaseWeights) -> set[str]:
    """The names in Kohya's form by which a tool knows a layer."""
    if name == "text_projection":  # comfy/lora.py has it, after OneTrainer
        known = tool in ("ComfyUI", "Forge", "diffusers")
        return {kohya_name(part, name, base_weights.sdxl)} if known else set()
    if part != "unet" and tool in SAME_LAYOUT and not _is_wrapped(part, name):
        return set()
    shape = (base_weights.layers, base_weights.attended)
    names = {kohya_name(part, name, base_weights.sdxl, *shape)}
    if part == "unet" and tool != "Kohya":
        names.add(kohya_name(part, name, False))
        names.add(f"lora_unet_{to_original(name, *shape)}".replace(".", "_"))
    if part == "text_encoder" and tool in ("ComfyUI", "Forge"):
        names.add(kohya_name(part, name, True))
    return names


def _dotted_keys(tool: str, part: str, name: str) -> set[str]:
    """The keys with dots by which a tool knows a layer."""
    if tool in ("diffusers", "PEFT"):
        before = f"{part}." if tool == "diffusers" else "base_model.model."
        return {
            f"{before}{known}.{end}"
            for known in {name, short_name(part, name)}
            for end in (*PEFT_ENDS, "lora_magnitude_vector")
        }
    if tool in ("ComfyUI", "Forge"):  # attention of the U-Net goes by diffusers' older names there
        older = name.replace(".to_", ".processor.to_") if part == "unet" else name
        older = older.removesuffix(".0") if older.endswith(".to_out.0") else older
        return {f"{part}.{older}.{end}" for end in PEFT_ENDS}
    return set()


Loaded = dict[tuple[str, str], Layer]  # by (part, layer name), as diffusers or PEFT read it


def load_back(path: Path, form: str, base_weights: BaseWeights) -> Loaded:
    """An exported adapter as diffusers (or PEFT) reads it.

    It is loaded into models whose own weights are never touched. Memory that is only reserved takes
    no room, so this needs a base model's configuration and not its gigabytes.
    """
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline  # late: takes seconds

    from lib.models.pipeline import silence_libraries

    silence_libraries()
    unet = unfilled_model("unet", base_weights)
    if form == "peft":
        return _load_back_peft(path, unet, base_weights)
    pipe: Any = StableDiffusionXLPipeline if base_weights.sdxl else StableDiffusionPipeline
    tensors, alphas, metadata = pipe.lora_state_dict(
        str(path), unet_config=unet.config, return_lora_metadata=True
    )
    loaded: Loaded = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own calls of what it deprecates
        for part in sorted({key.partition(".")[0] for key in tensors}):
            model = unet if part == "unet" else unfilled_model(part, base_weights)
            if part == "unet":
                pipe.load_lora_into_unet(
                    tensors, alphas, unet, "check", metadata=metadata, low_cpu_mem_usage=True
                )
            else:
                pipe.load_lora_into_text_encoder(
                    tensors, alphas, model, prefix=part, adapter_name="check", metadata=metadata
                )
            loaded |= loaded_layers(part, model)
    return loaded


def _load_back_peft(path: Path, unet: Any, base_weights: BaseWeights) -> Loaded:
    from peft import PeftModel

    loaded: Loaded = {}
    for folder in (p for p in path.iterdir() if p.is_dir()):
        part = folder.name
        plain = unet if part == "unet" else unfilled_model(part, base_weights)
        model = PeftModel.from_pretrained(plain, folder, "check", low_cpu_mem_usage=True)
        loaded |= loaded_layers(part, model.base_model.model)
    return loaded


def loaded_layers(part: str, model: Any, adapter: str = "check") -> Loaded:
    """The layers of an adapter that PEFT has put into a model."""
    loaded: Loaded = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and adapter in module.lora_A:
            down = module.lora_A[adapter].weight.detach()
            up = module.lora_B[adapter].weight.detach()
            dora = adapter in module.lora_magnitude_vector
            magnitude = module.lora_magnitude_vector[adapter].weight.detach() if dora else None
            alpha = module.scaling[adapter] * len(down)
            loaded[part, full_name(part, name)] = Layer(down, up, alpha, magnitude)
    return loaded


def unfilled_model(part: str, base_weights: BaseWeights, dtype: torch.dtype = torch.float32) -> Any:
    """The U-Net or a text encoder with its weights reserved and never written.

    For looking at an adapter's weights alone. They are read in the model's `dtype`: in float32
    those of fp16, bf16 and fp32 are what they were.
    """
    model = skeleton(base_weights.configurations(), part)
    model = model.half() if dtype == torch.half else model.float()
    return model.to_empty(device="cpu")


def check_loaded_back(adapter: Adapter, loaded: Loaded, path: Path) -> None:
    """Raise BadInput unless what was `loaded` from `path` is the adapter, layer by layer."""
    loaded, wrong = dict(loaded), []
    for part, name, layer in adapter:
        theirs = loaded.pop((part, name), None)
        if theirs is None or not (
            _same(theirs.down, layer.down)
            and _same(theirs.up, layer.up)
            and _same(theirs.magnitude, layer.magnitude)
            and abs(theirs.alpha - layer.alpha) <= 1e-6 * abs(layer.alpha)
        ):
            wrong.append(f"{part}.{name}")
    wrong += [".".join(where) for where in loaded]
    if wrong:
        why = (
            MAGNITUDES_UNREAD
            if any(layer.magnitude is not None for *_, layer in adapter)
            else "this is an error of the export, please report it."
        )
        raise BadInput(
            f"{path} was not written: read back it differs in {len(wrong)} layers"
            f" ({', '.join(wrong[:3])}); {why}"
        )


def _same(theirs: torch.Tensor | None, ours: torch.Tensor | None) -> bool:
    """Whether a tensor that was read back is ours; magnitudes are None where there is no DoRA.

    One on the meta device was never read. Held to as many digits as the reader has.
    """
    if theirs is None or ours is None:
        return theirs is ours
    return theirs.device.type != "meta" and torch.equal(theirs.cpu(), ours.to(theirs.dtype))


def checkpoint_readers(entries: Mapping[str, Any], base_weights: BaseWeights) -> Readers:
    """Who reads a checkpoint of a base model's `entries` (`lib.models.single_file.layout`).

    A key will load if diffusers' converter makes of it the very weights of which it was made, each
    in its place and shape. Raises BadInput if a weight of the base has no place in the layout.
    """
    # The last layer and the projection, which no reader uses, as diffusers says.
    from diffusers.loaders.single_file_utils import SD_2_TEXT_ENCODER_KEYS_TO_IGNORE as UNREAD

    weights = [(part, name) for part, names in base_weights.shapes.items() for name in names]
    _check_all_placed(entries, weights, base_weights)
    numbers = {weight: k for k, weight in enumerate(weights)}

    def numbered(part: str, name: str) -> torch.Tensor:
        number = torch.tensor(numbers[part, name], dtype=torch.int16)
        return number.expand(base_weights.shapes[part][name])

    checkpoint = {key: entry.make(numbered) for key, entry in entries.items()}
    converted = _converted(checkpoint, base_weights)
    good, bad = [], []
    for key, entry in entries.items():
        if key in UNREAD:
            continue
        arrived = all(_arrived(converted.get(where), numbered(*where)) for where in entry.sources)
        (good if arrived else bad).append(key)
    return {"diffusers": (good, bad)} | {tool: (good, bad) for tool in SAME_LAYOUT}


def _check_all_placed(
    entries: Mapping[str, Any], weights: Iterable[tuple[str, str]], base_weights: BaseWeights
) -> None:
    placed = {source for entry in entries.values() for source in entry.sources}
    lost = [
        f"{part}.{name}"
        for part, name in weights
        if (part, name) not in placed and not name.endswith(NOT_NEEDED)
    ]
    if lost:
        raise BadInput(
            f"'{base_weights.name}' cannot be written as one file: {len(lost)} of its weights, such"
            f" as {lost[0]}, have no place in the original layout; write a diffusers folder."
        )


def _arrived(found: torch.Tensor | None, wanted: torch.Tensor) -> bool:
    """Whether a converted tensor is the wanted one: its shape, and its number at both ends."""
    if found is None or found.shape != wanted.shape:
        return False
    ends = (0,) if 0 in found.shape else (0, -1)
    return all(found[(end,) * found.ndim] == wanted[(end,) * wanted.ndim] for end in ends)


def _converted(
    checkpoint: dict[str, torch.Tensor], base_weights: BaseWeights
) -> dict[tuple[str, str], torch.Tensor]:
    """{(part, name): tensor} of a checkpoint, by diffusers' functions for `from_single_file`."""
    from diffusers.loaders import single_file_utils

    convert: Any = single_file_utils
    vae_blocks = {
        name.split(".")[2]
        for name in base_weights.shapes.get("vae", {})
        if name.startswith("encoder.down_blocks.")
    }
    config: dict[str, Any] = {
        "layers_per_block": base_weights.layers,
        "down_block_types": vae_blocks,
        "up_block_types": vae_blocks,
    }
    if "add_embedding.linear_1.weight" in base_weights.shapes["unet"]:
        config["addition_embed_type"] = "text_time"
    parts = {
        "unet": convert.convert_ldm_unet_checkpoint(dict(checkpoint), config),
        "text_encoder": convert.convert_ldm_clip_checkpoint(checkpoint),
    }
    if vae_blocks:
        parts["vae"] = convert.convert_ldm_vae_checkpoint(dict(checkpoint), config)
    for part, prefix in (
        ("text_encoder", "cond_stage_model.model."),
        ("text_encoder_2", "conditioner.embedders.1.model."),
    ):
        if any(key.startswith(prefix) for key in checkpoint):
            width = base_weights.shapes[part]["text_model.embeddings.token_embedding.weight"][1]
            model = SimpleNamespace(config=SimpleNamespace(hidden_size=width))
            parts[part] = convert.convert_open_clip_checkpoint(model, checkpoint, prefix)
    return {
        (part, full_name(part, name)): tensor
        for part, tensors in parts.items()
        for name, tensor in tensors.items()
    }


def folder_readers(base_weights: BaseWeights) -> Readers:
    """Who reads a diffusers folder with `base_weights`'s weights, by the classes' own names."""
    good, bad = [], []
    for part, names in base_weights.shapes.items():
        spare = base_weights.unread_names(part)
        known = class_shapes(base_weights.configurations(), part)
        for name in (name for name in names if name not in spare):
            passed_over = part.startswith("text") and name.endswith("position_ids")  # rightly
            loads = known.get(name) == tuple(names[name]) or passed_over
            (good if loads else bad).append(f"{part}.{name}")
        bad += [
            f"{part}.{name}, which is missing"
            for name in known.keys() - (names.keys() - spare)
            if not name.endswith("position_ids")
        ]
    return {"diffusers": (good, bad)}
