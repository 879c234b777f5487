"""A LoRA in memory, whatever form it came in, and its tensors in every form that tools load.

    adapter = read_adapter("runs/course/lora")          # a run, a .safetensors file of diffusers or Kohya, or a PEFT folder
    tensors, metadata = to_kohya(adapter, sdxl=False)

The update of a layer is (alpha / rank) up down (Hu et al. 2021, arXiv 2106.09685). Forms differ in
names and in where alpha is kept: Kohya has a tensor beside each layer, diffusers a JSON text in the
header, PEFT an adapter_config.json. Without any, alpha is the rank.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import torch

from lib.files.errors import BadInput
from lib.files.json_file import read_json
from lib.files.safetensors_file import open_weights
from lib.files.text import some
from lib.models.layer_names import PARTS, kohya_name, parse, short_name

IN_HEADER = (  # where diffusers keeps the configuration (diffusers.loaders.lora_base)
    "lora_adapter_metadata"
)


# What a header says of its own file, and does not go with the adapter into another.
OF_THE_FILE = (IN_HEADER, "format", "modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")


@dataclass(frozen=True)
class Layer:
    """One layer's update: down [r, in, ...kernel], up [out, r, ...1], alpha; `magnitude` [out] or
    [1, out, 1, 1] if it is DoRA's.
    """

    down: torch.Tensor
    up: torch.Tensor
    alpha: float
    magnitude: torch.Tensor | None = None

    @property
    def rank(self):
        return self.down.shape[0]

    def delta(self, weight=1.0):
        """`weight` times the update as a matrix in float32, [out, in, ...kernel]. DoRA's magnitude
        is not in it.
        """
        flat = (
            self.up.flatten(1).float()
            @ self.down.flatten(1).float()
            * (weight * self.alpha / self.rank)
        )
        return flat.reshape(self.up.shape[0], *self.down.shape[1:])


@dataclass(frozen=True)
class Adapter:
    """`layers`: part -> {layer name: Layer}, text encoders' with `text_model.`. `metadata`: the
    header's texts. `source`: its path.
    """

    layers: dict
    metadata: dict = field(default_factory=dict)
    source: str = ""

    def __iter__(self):
        """(part, name, layer) of every layer."""
        return (
            (part, name, layer)
            for part, some in self.layers.items()
            for name, layer in some.items()
        )

    @property
    def ranks(self):
        return sorted({layer.rank for _, _, layer in self})


def read_adapter(source, layers=2):
    """The `Adapter` in a run folder, a .safetensors file or a PEFT folder. `layers`: as in
    `lib.models.layer_names.parse`.

    Raises BadInput for files that are none or damaged, for keys that belong to no LoRA or lack
    their partner (all listed), for DoRA as Kohya stores it, and for values that are no numbers.
    """
    source = Path(source).expanduser()
    if not source.is_dir():
        return _from_files([(source, None, None)], source, layers)
    if (source / "adapter.safetensors").is_file():
        return _from_files([(source / "adapter.safetensors", None, None)], source, layers)
    folders = {
        part: source / part for part in PARTS if (source / part / "adapter_config.json").is_file()
    }
    if not folders and (source / "adapter_config.json").is_file():
        folders = {
            "unet": source
        }  # PEFT's folder for one model says not which; in this project's field it is the U-Net
    if not folders:
        if (source / "unet").is_dir():
            raise BadInput(
                f"{source} holds tuned weights of a whole model, no LoRA: extract one with `python"
                " -m lib extract`."
            )
        raise BadInput(
            f"{source} holds no LoRA (no adapter.safetensors, no adapter_config.json): name a run,"
            " a file or a PEFT folder."
        )
    files = [
        (folder / "adapter_model.safetensors", part, read_json(folder / "adapter_config.json"))
        for part, folder in folders.items()
    ]
    return _from_files(files, source, layers)


def _from_files(files, source, layers):
    found, unknown, metadata, config = {}, [], {}, {}
    for path, part, own in files:
        with open_weights(path) as file:
            metadata |= file.metadata
            config |= {part: own} if own else _configs(file.metadata, path)
            for key in file.names:
                where = parse(key, part, layers)
                if where is None:
                    unknown.append(key)
                elif where[2] in found.get(where[:2], {}):
                    unknown.append(f"{key}, which is there twice")
                else:
                    found.setdefault(where[:2], {})[where[2]] = file.read(key)
    if not found:
        raise BadInput(
            f"{source} holds no LoRA: none of its {len(unknown)} keys ({some(unknown, 2)}) is one"
            " of diffusers', PEFT's or Kohya's LoRA; name another file."
        )
    dora = [name for (_, name), roles in found.items() if "dora_scale" in roles]
    if dora:
        raise BadInput(
            f"{source} is a DoRA of Kohya's kind ({len(dora)} layers), whose magnitudes go with a"
            " layer's inputs where PEFT's go with its outputs: no exact conversion exists; merge"
            " it with the tool that made it, then extract a LoRA."
        )
    broken = [
        f"{part}.{name} ({', '.join(sorted(roles))})"
        for (part, name), roles in found.items()
        if not {"down", "up"} <= set(roles)
    ]
    if unknown or broken:
        what = [
            f"{len(names)} {what}: {some(names)}"
            for what, names in (("unknown keys", unknown), ("halved layers", broken))
            if names
        ]
        raise BadInput(
            f"{source} is not read, for a part of it would be lost ({'; '.join(what)}): get it as a"
            " plain LoRA, without those."
        )
    made = {part: {} for part in PARTS}
    for (part, name), roles in found.items():
        made[part][name] = _layer(source, part, name, roles, config.get(part) or {})
    metadata = {key: value for key, value in metadata.items() if key not in OF_THE_FILE}
    return Adapter({part: layers for part, layers in made.items() if layers}, metadata, str(source))


def _layer(source, part, name, roles, config):
    down, up, mid = roles["down"], roles["up"], roles.get("mid")
    if mid is not None:  # LoCon's three factors as two: the same product
        down = torch.einsum("mn...,nj->mj...", mid.float(), down.flatten(1).float()).to(down.dtype)
    if down.ndim < 2 or up.ndim < 2 or up.shape[1] != down.shape[0] or not len(down):
        raise BadInput(
            f"{source} is damaged: layer {part}.{name} has halves of {tuple(down.shape)} and"
            f" {tuple(up.shape)}, which do not fit together; get the file again."
        )
    try:
        alpha = (
            float(roles["alpha"])
            if "alpha" in roles
            else _pattern(config, part, name, down.shape[0])
        )
    except (TypeError, ValueError, AttributeError, RuntimeError, re.error) as error:
        raise BadInput(
            f"{source} has no readable alpha at layer {part}.{name} ({error}): the file is damaged;"
            " get it again."
        ) from None
    if "magnitude" in roles and roles["magnitude"].numel() != len(up):
        raise BadInput(
            f"{source} is damaged: layer {part}.{name} has {len(up)} outputs and DoRA magnitudes"
            f" for {roles['magnitude'].numel()}; get the file again."
        )
    if not 0 < abs(alpha) < 1e6:
        raise BadInput(
            f"{source} has alpha {alpha} at layer {part}.{name}, which no training gives: the file"
            " is damaged; get it again."
        )
    return Layer(down, up, alpha, roles.get("magnitude"))


def _pattern(config, part, name, rank):
    """A layer's alpha by PEFT's configuration, whose patterns are regular expressions for the end
    of a name; the rank if it has none.
    """
    if "lora_alpha" not in config:
        return float(rank)
    from peft.utils.other import get_pattern_key

    patterns, known = config.get("alpha_pattern") or {}, short_name(part, name)
    key = next(
        (k for k in (get_pattern_key(patterns, n) for n in (name, known)) if k in patterns), None
    )
    alpha = patterns[key] if key else config["lora_alpha"]
    return float(alpha * rank**0.5 if config.get("use_rslora") else alpha)


def _configs(metadata, path):
    """part -> PEFT's configuration, from diffusers' header."""
    if not metadata.get(IN_HEADER):
        return {}
    try:
        flat, found = json.loads(metadata[IN_HEADER]), {}
        for key, value in flat.items():
            part, _, setting = key.partition(".")
            found.setdefault(part, {})[setting] = value
        return found
    except (ValueError, AttributeError) as error:
        raise BadInput(
            f"{path} has a header whose LoRA settings cannot be read ({error}): get the file again."
        ) from None


def with_one_alpha(adapter):
    """The same adapter with one alpha for all its layers, the commonest: where it differed, `up`
    takes up the difference.

    diffusers 0.42 reads a Kohya file with several alphas wrongly: it looks for attention layers by
    a name that is none of theirs.
    """
    alpha = Counter(layer.alpha for _, _, layer in adapter).most_common(1)[0][0]

    def even(layer):
        up = (layer.up.float() * (layer.alpha / alpha)).to(layer.up.dtype)
        return layer if layer.alpha == alpha else replace(layer, up=up, alpha=alpha)

    return replace(
        adapter,
        layers={
            part: {n: even(layer) for n, layer in layers.items()}
            for part, layers in adapter.layers.items()
        },
    )


def kohya_tensors(adapter, sdxl=False, layers=2, attended=()):
    """(tensors, header) in Kohya's form. BadInput for DoRA, whose magnitudes go another way there.
    `layers`, `attended`: `lib.models.layer_names`.
    """
    tensors = {}
    for part, name, layer in with_one_alpha(adapter):
        if layer.magnitude is not None:
            raise BadInput(
                "This adapter is a DoRA: Kohya's form keeps a magnitude for each input of a layer"
                " where PEFT's keeps one for each output, so it cannot be written there; export it"
                " `--to diffusers`, or merge it and extract a plain LoRA."
            )
        key = kohya_name(part, name, sdxl, layers, attended)
        tensors |= {
            f"{key}.lora_down.weight": layer.down,
            f"{key}.lora_up.weight": layer.up,
            f"{key}.alpha": torch.tensor(layer.alpha),
        }
    return tensors, dict(adapter.metadata)


def diffusers_tensors(adapter):
    """(tensors, header) in diffusers' form: PEFT's names behind the part, and the configuration in
    the header.
    """
    tensors, flat = {}, {}
    for part, layers in adapter.layers.items():
        for name, layer in layers.items():
            tensors |= _peft_tensors(f"{part}.{name}", layer)
        flat |= {f"{part}.{key}": value for key, value in peft_config(part, layers).items()}
    return tensors, adapter.metadata | {IN_HEADER: json.dumps(flat, sort_keys=True)}


def peft_tensors(adapter):
    """part -> (tensors, header, configuration): the files of one PEFT folder each."""
    made = {}
    for part, layers in adapter.layers.items():
        tensors = {}
        for full, layer in layers.items():
            tensors |= _peft_tensors(f"base_model.model.{memory_name(part, full)}", layer)
        made[part] = (
            tensors,
            dict(adapter.metadata),
            peft_config(part, layers) | {"peft_type": "LORA", "inference_mode": True},
        )
    return made


def memory_name(part, name):
    """A layer's name as it stands in the installed transformers' model, by which PEFT looks it up:
    from 5.6 on a CLIPTextModel has no `text_model.` in it, and a CLIPTextModelWithProjection
    (SDXL's second encoder) still has.
    """
    flat = part == "text_encoder" and tuple(map(int, version("transformers").split(".")[:2])) >= (
        5,
        6,
    )
    return short_name(part, name) if flat else name


def _peft_tensors(name, layer):
    pair = {f"{name}.lora_A.weight": layer.down, f"{name}.lora_B.weight": layer.up}
    return (
        pair
        if layer.magnitude is None
        else pair | {f"{name}.lora_magnitude_vector": layer.magnitude}
    )


def peft_config(part, layers):
    """PEFT's LoraConfig as a dict: commonest rank and alpha, patterns for the rest, and layers by
    names that end as in memory.
    """
    rank, alpha = (
        Counter(values).most_common(1)[0][0]
        for values in zip(*((y.rank, y.alpha) for y in layers.values()))
    )
    ends = {short_name(part, name): layer for name, layer in layers.items()}
    whole = {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(ends),
        "bias": "none",
        "use_dora": False,
        "lora_dropout": 0.0,
    }
    whole["use_dora"] = any(layer.magnitude is not None for layer in layers.values())
    patterns = {
        "rank_pattern": {e: y.rank for e, y in ends.items() if y.rank != rank},
        "alpha_pattern": {e: y.alpha for e, y in ends.items() if y.alpha != alpha},
    }
    return whole | patterns
