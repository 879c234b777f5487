"""A LoRA in memory, whatever form it came in, and its tensors in every form that tools load.

    adapter = read_adapter("runs/course/lora")
    tensors, header = kohya_tensors(adapter, sdxl=False)

What is read: a run, a .safetensors file of diffusers, Kohya or ComfyUI, or a PEFT folder. The
update of a layer is (alpha / rank) up down (Hu et al. 2021, arXiv 2106.09685). Forms differ in
names and in where alpha stands: Kohya has a tensor beside each layer, diffusers a JSON text in the
header, PEFT an adapter_config.json; some tools leave it in the header alone. Without any, alpha is
the rank. Every setting that changes what the layers do is converted exactly or refused by name.

Kohya's form is written here and not by diffusers' converter, for that one writes the rank in
alpha's place, so that an adapter whose alpha is another would be drawn at another strength.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lib.convert.adapter_config import (
    CONFIG_FILE,
    CONFIG_KEY,
    Config,
    check_config,
    config_beside,
    configured_alpha,
    header_configs,
)
from lib.convert.layer import (
    Cut,
    Layer,
    Tensors,
    cut_products,
    product_kind,
)
from lib.files import BadInput, listed, write_json
from lib.files.safetensors_file import open_weights, save_weights_file
from lib.models.base_files import TRAINABLE_PARTS
from lib.models.layer_names import kohya_name, parse, short_name

Header = dict[str, str]

# How the last words of keys begin in LyCORIS' updates that are no LoRA.
OTHER_KINDS = {
    "hada_": "LoHa (a Hadamard product)",
    "lokr_": "LoKr (a Kronecker product)",
    "oft_": "OFT (a rotation)",
    "boft_": "BOFT (a product of rotations)",
    "on_input": "IA3 (a scaling)",
    "diff": "full difference of weights",
}

# How a LoRA's halves are stored.
PRECISIONS = ("F16", "BF16", "F32", "F64")

HEAVIEST = 100  # of an adapter's weight; more overflows fp16 or is a slip

# What a header says of its own file, and does not go with the adapter into another.
OF_THE_FILE = (
    CONFIG_KEY,
    "format",
    "modelspec.hash_sha256",
    "sshs_model_hash",
    "sshs_legacy_hash",
    "workbench.export",
)

# What a header says of a LoHa or LoKr, and is not true of the LoRA that it is cut to.
OF_A_PRODUCT = ("ss_network_module", "ss_network_args", "ss_network_dim", "ss_network_alpha")


@dataclass(frozen=True)
class Adapter:
    """A LoRA: its `layers`, {part: {layer name: Layer}}, the texts of its header, and its path.

    Names of text encoders' layers begin with `text_model.`. `told`: what was lost in reading it.
    """

    layers: dict[str, dict[str, Layer]]
    metadata: Header = field(default_factory=dict)
    source: str = ""
    told: str = ""

    def __iter__(self) -> Iterator[tuple[str, str, Layer]]:
        """(part, name, layer) of every layer."""
        for part, layers in self.layers.items():
            for name, layer in layers.items():
                yield part, name, layer

    @property
    def ranks(self) -> list[int]:
        return sorted({layer.rank for _, _, layer in self})


Source = str | Path | Adapter  # what a LoRA is read from; one in memory is taken as it is


def path_of(source: Source) -> Path:
    """Where a LoRA lies, or came from."""
    return Path(source.source if isinstance(source, Adapter) else source)


def read_adapter(source: Source, layers: int = 2, cut: Cut | None = None) -> Adapter:
    """The `Adapter` in a run folder, a .safetensors file or a PEFT folder.

    `layers`: as in `lib.models.layer_names.parse`. `cut`: to read a LoHa or LoKr, and nothing else.
    Raises BadInput for files that are none or damaged, for keys that belong to no LoRA or lack
    their partner (all listed), for DoRA as Kohya stores it, and for values that are no numbers.
    """
    if isinstance(source, Adapter):
        return source
    source = Path(source).expanduser()
    if not source.is_dir():
        return _from_files({source: None}, source, layers, cut)
    if (source / "adapter.safetensors").is_file():
        return _from_files({source / "adapter.safetensors": None}, source, layers, cut)
    folders = {part: source / part for part in TRAINABLE_PARTS}
    folders = {p: f for p, f in folders.items() if (f / CONFIG_FILE).is_file()}
    if not folders and (source / CONFIG_FILE).is_file():
        folders = {_part_of(source): source}
    if not folders and (source / "unet").is_dir():
        raise BadInput(
            f"{source} holds tuned weights of a whole model, no LoRA: extract one with `python"
            " -m lib extract`."
        )
    if not folders:
        inside = listed(sorted(path.name for path in source.glob("*.safetensors")))
        raise BadInput(
            f"{source} is no run and no PEFT folder (no adapter.safetensors, no"
            f" adapter_config.json): name {f'a file in it ({inside})' if inside else 'another'}."
        )
    files = {folder / "adapter_model.safetensors": part for part, folder in folders.items()}
    # Where one is not there, another of its name may be, such as a pickle, which is then refused.
    files = {
        file if file.exists() else next(file.parent.glob("adapter_model.*"), file): part
        for file, part in files.items()
    }
    return _from_files(files, source, layers, cut)


def _part_of(folder: Path) -> str:
    """The part of a PEFT folder for one model, which only its name may say.

    Without, it is the U-Net, which is what LoRAs of this project's field are for.
    """
    return folder.name if folder.name in TRAINABLE_PARTS else "unet"


def _from_files(
    files: Mapping[Path, str | None], source: Path, layers: int, cut: Cut | None = None
) -> Adapter:
    """The `Adapter` in files: of a PEFT folder's the part of the model is known, else None."""
    found: dict[tuple[str, str], Tensors] = {}  # (part, layer name) -> {role: tensor}
    unknown: list[str] = []
    texts: Header = {}
    configs: dict[str, Config] = {}
    for path, known_part in files.items():
        with open_weights(path) as weights:
            texts |= weights.metadata
            if not known_part and _of_peft(weights.names):
                known_part = _part_of(path.absolute().parent)
            if known_part:
                configs[known_part] = config_beside(path)
            else:
                configs |= header_configs(weights.metadata, path)
            for key in weights.names:
                part, name, role = parse(key, known_part, layers) or ("", "", "")
                if not role or not cut and product_kind({role: key}):
                    unknown.append(key)
                elif role in found.setdefault((part, name), {}):
                    unknown.append(f"{key}, which is there twice")
                else:
                    _check_precision(weights.dtype(key), role, path)
                    found[part, name][role] = weights.read(key)
    for config in configs.values():
        check_config(config, source)
    products = {where: found.pop(where) for where in list(found) if product_kind(found[where])}
    if cut and not products:
        raise BadInput(f"{source} holds no LoHa or LoKr to be cut to a rank: leave the rank out.")
    _check_complete(found, unknown, source, some=bool(products))
    cut_layers, told = cut_products(products, cut, source) if cut else ({}, "")
    made: dict[str, dict[str, Layer]] = {part: {} for part in TRAINABLE_PARTS}
    for (part, name), roles in found.items():
        made[part][name] = _layer(source, part, name, roles, configs.get(part, {}))
    for (part, name), layer in cut_layers.items():
        made[part][name] = layer
    layers_of = {part: some for part, some in made.items() if some}
    _check_dora(layers_of, configs, source)
    left_out = OF_THE_FILE + (OF_A_PRODUCT if products else ())
    metadata = {key: value for key, value in texts.items() if key not in left_out}
    if told:
        metadata["ss_training_comment"] = told
    return Adapter(layers_of, metadata, str(source), told)


def _check_precision(kind: str, role: str, path: Path) -> None:
    """Raise BadInput for whole numbers and the like, whose scale stands in no key of a LoRA."""
    if role != "alpha" and kind not in PRECISIONS:
        raise BadInput(
            f"{path} holds a LoRA's halves in {kind}, quantised in a way that no LoRA file states:"
            " get it in fp16, bf16 or fp32."
        )


def check_weights(weights: Iterable[float]) -> None:
    """Raise BadInput unless every weight of an adapter is a number of a size that can be meant."""
    for weight in weights:
        if not abs(weight) <= HEAVIEST:  # `not <=`, so that NaN is refused too
            raise BadInput(
                f"The weight {weight} of an adapter is outside -{HEAVIEST} to {HEAVIEST}: 1 is as"
                " it was trained, 0.6 a part of that."
            )


def _of_peft(keys: Iterable[str]) -> bool:
    """Whether keys are those of PEFT's adapter_model, which do not say of which part."""
    keys = list(keys)
    return bool(keys) and all(key.startswith("base_model.model.") for key in keys)


def _check_dora(
    layers: Mapping[str, Mapping[str, Layer]], configs: Mapping[str, Config], source: Path
) -> None:
    """Raise BadInput where a configuration and the tensors disagree on whether it is a DoRA."""
    for part, some in layers.items():
        said = configs.get(part, {}).get("use_dora")
        held = any(layer.magnitude is not None for layer in some.values())
        if said is not None and bool(said) != held:
            raise BadInput(
                f"{source} is damaged: of its {part} it says `use_dora: {said}` and it holds"
                f" {'' if held else 'no '}magnitudes; get the file again."
            )


def _check_complete(
    found: Mapping[tuple[str, str], Tensors], unknown: list[str], source: Path, some: bool = False
) -> None:
    """Raise BadInput if something of the files would be lost: keys, halves, DoRA of Kohya's.

    `some`: whether they hold layers that are not in `found`.
    """
    if not some and not any({"down", "up"} & set(roles) for roles in found.values()):
        raise BadInput(f"{source} holds no LoRA: {_other_kind(unknown)}; name another file.")
    dora = [
        name
        for (_, name), roles in found.items()
        if "dora_scale" in roles and not _of_outputs(roles)
    ]
    if dora:
        raise BadInput(
            f"{source} is a DoRA of Kohya's kind ({len(dora)} layers), whose magnitudes go with a"
            " layer's inputs (PEFT's and newer LyCORIS files' go with its outputs): no exact"
            " conversion exists; merge it with the tool that made it, then extract a LoRA."
        )
    halved = [
        f"{part}.{name} ({', '.join(sorted(roles))})"
        for (part, name), roles in found.items()
        if not {"down", "up"} <= set(roles)
    ]
    lost = [
        f"{len(names)} {what}: {listed(sorted(names), 5)}"
        for what, names in (("unknown keys", unknown), ("halved layers", halved))
        if names
    ]
    if lost:
        raise BadInput(
            f"{source} is not read, for a part of it would be lost ({'; '.join(lost)}): get it as a"
            " plain LoRA, without those."
        )


def _other_kind(unknown: list[str]) -> str:
    """What a file without a LoRA holds, in words."""
    some = listed(sorted(unknown), 2)
    last = {key.rpartition(".")[2] for key in unknown}
    for start, kind in OTHER_KINDS.items():
        if not any(word.startswith(start) for word in last):
            continue
        if product_kind(dict.fromkeys(last)):
            return (
                f"it is a {kind} ({len(unknown)} keys, such as {some}), which comes in as a LoRA of"
                " a rank that you choose, by `python -m lib import FILE --rank 32`, or else"
            )
        return f"it is a {kind}, which is not read ({len(unknown)} keys, such as {some})"
    return f"none of its {len(unknown)} keys ({some}) is one of diffusers', PEFT's or Kohya's LoRA"


def _of_outputs(roles: Tensors) -> bool:
    """Whether a layer's `dora_scale` is [out, 1, ...], as LyCORIS has it by default from 3.0 on."""
    scale, up = roles["dora_scale"], roles.get("up")
    return up is not None and scale.ndim > 1 and len(scale) == len(up) == scale.numel()


def _layer(source: Path, part: str, name: str, roles: Tensors, config: Config) -> Layer:
    down, up, mid = roles["down"], roles["up"], roles.get("mid")
    if mid is not None:  # LoCon's three factors as two: the same product
        down = torch.einsum("mn...,nj->mj...", mid.float(), down.flatten(1).float()).to(down.dtype)
    where = f"layer {part}.{name}"
    if down.ndim < 2 or up.ndim < 2 or up.shape[1] != down.shape[0] or not len(down):
        raise BadInput(
            f"{source} is damaged: {where} has halves of {tuple(down.shape)} and"
            f" {tuple(up.shape)}, which do not fit together; get the file again."
        )
    try:
        own = roles.get("alpha")
        alpha = configured_alpha(config, part, name, down) if own is None else float(own)
    except (TypeError, ValueError, AttributeError, RuntimeError, re.error) as error:
        raise BadInput(
            f"{source} has no readable alpha at {where} ({error}): the file is damaged; get it"
            " again."
        ) from None
    magnitude = roles.get("magnitude")
    if "dora_scale" in roles:  # in PEFT's shape
        magnitude = roles["dora_scale"].reshape((1, -1, 1, 1) if up.ndim > 2 else -1)
    if magnitude is not None and magnitude.numel() != len(up):
        raise BadInput(
            f"{source} is damaged: {where} has {len(up)} outputs and DoRA magnitudes for"
            f" {magnitude.numel()}; get the file again."
        )
    if not 0 < abs(alpha) < 1e6:
        raise BadInput(
            f"{source} has alpha {alpha} at {where}, which no training gives: the file is damaged;"
            " get it again."
        )
    return Layer(down, up, alpha, magnitude)


def with_one_alpha(adapter: Adapter) -> Adapter:
    """The same adapter with one alpha for all its layers, the commonest.

    Where it differed, `up` takes up the difference. diffusers 0.42 reads a Kohya file with several
    alphas wrongly: it looks for attention layers by a name that is none of theirs.
    """
    alpha = _commonest(layer.alpha for _, _, layer in adapter)
    layers: dict[str, dict[str, Layer]] = {part: {} for part in adapter.layers}
    for part, name, layer in adapter:
        if layer.alpha != alpha:
            up = (layer.up.float() * (layer.alpha / alpha)).to(layer.up.dtype)
            layer = replace(layer, up=up, alpha=alpha)
        layers[part][name] = layer
    return replace(adapter, layers=layers)


def kohya_tensors(
    adapter: Adapter, sdxl: bool = False, layers: int = 2, attended: Sequence[int] = ()
) -> tuple[Tensors, Header]:
    """(tensors, header) in Kohya's form, with the true alpha.

    `layers`, `attended`: as in `lib.models.layer_names`. Raises BadInput for DoRA, whose magnitudes
    go another way there.
    """
    tensors: Tensors = {}
    for part, name, layer in with_one_alpha(adapter):
        if layer.magnitude is not None:
            raise BadInput(
                "This adapter is a DoRA: of the tools that read Kohya's form some take a layer's"
                " magnitudes for its inputs, some for its outputs and some not at all, so it is not"
                " written there; export it `--to diffusers`, or merge it and extract a plain LoRA."
            )
        key = kohya_name(part, name, sdxl, layers, attended)
        tensors[f"{key}.lora_down.weight"] = layer.down
        tensors[f"{key}.lora_up.weight"] = layer.up
        tensors[f"{key}.alpha"] = torch.tensor(layer.alpha)
    return tensors, dict(adapter.metadata)


def diffusers_tensors(adapter: Adapter) -> tuple[Tensors, Header]:
    """(tensors, header) in diffusers' form.

    PEFT's names stand behind the part, and the configuration in the header.
    """
    tensors: Tensors = {}
    configs: Config = {}
    for part, layers in adapter.layers.items():
        for name, layer in layers.items():
            tensors |= _peft_layer(f"{part}.{name}", layer)
        configs |= {f"{part}.{key}": value for key, value in peft_config(part, layers).items()}
    return tensors, adapter.metadata | {CONFIG_KEY: json.dumps(configs, sort_keys=True)}


def write_peft(folder: Path, part: str, layers: dict[str, Layer], texts: Header) -> list[str]:
    """Write the PEFT folder of one part, with `texts` in the header. Returns the keys in it."""
    # PEFT looks layers up by their names in memory: from transformers 5.6 on a CLIPTextModel has no
    # `text_model.` in them, and a CLIPTextModelWithProjection (SDXL's second encoder) still has.
    release = tuple(map(int, version("transformers").split(".")[:2]))
    short = part == "text_encoder" and release >= (5, 6)
    tensors: Tensors = {}
    for name, layer in layers.items():
        in_memory = short_name(part, name) if short else name
        tensors |= _peft_layer(f"base_model.model.{in_memory}", layer)
    save_weights_file(folder / "adapter_model.safetensors", tensors, texts, check=True)
    config = peft_config(part, layers) | {"peft_type": "LORA", "inference_mode": True}
    write_json(folder / "adapter_config.json", config)
    return list(tensors)


def _peft_layer(name: str, layer: Layer) -> Tensors:
    tensors = {f"{name}.lora_A.weight": layer.down, f"{name}.lora_B.weight": layer.up}
    if layer.magnitude is not None:
        tensors[f"{name}.lora_magnitude_vector"] = layer.magnitude
    return tensors


def peft_config(part: str, layers: dict[str, Layer]) -> Config:
    """PEFT's LoraConfig as a dict: commonest rank and alpha, and patterns for the others.

    Layers are named by the ends of their names, as they are in memory.
    """
    by_end = {short_name(part, name): layer for name, layer in layers.items()}
    rank = _commonest(layer.rank for layer in layers.values())
    alpha = _commonest(layer.alpha for layer in layers.values())
    return {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(by_end),
        "bias": "none",
        "use_dora": any(layer.magnitude is not None for layer in layers.values()),
        "lora_dropout": 0.0,
        "rank_pattern": {end: y.rank for end, y in by_end.items() if y.rank != rank},
        "alpha_pattern": {end: y.alpha for end, y in by_end.items() if y.alpha != alpha},
    }


def _commonest(values: Iterable[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]
