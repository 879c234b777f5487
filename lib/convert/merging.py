"""Write whole models: an adapter merged into its base, or DreamBooth's tuned weights.

    merge("runs/course/lora", "checkpoint", "robot.safetensors")    # one file, original layout
    merge("runs/course/dreambooth", "diffusers", "robot")           # a folder

A merged weight is W + (alpha / rank) up down, in fp16. It is written here and not by diffusers'
`fuse_lora` and `save_pretrained`, for those hold all of a model at once: here one tensor at a time
is in memory, so that a checkpoint of any size passes.
"""

import itertools
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from lib.convert.adapter import (
    Adapter,
    Header,
    Layer,
    Source,
    check_weights,
    path_of,
    read_adapter,
)
from lib.convert.exporting import (
    CONTENT_HASHES,
    Facts,
    base_of,
    check_output,
    model_texts,
    public_name,
    public_texts,
    run_facts,
    tuned_weights,
)
from lib.convert.readers import Readers, Written, checkpoint_readers, folder_readers
from lib.files import BadInput, read_json, whole_folder, write_json
from lib.files.safetensors_file import write_weights
from lib.files.text import progress_lines
from lib.files.whole_writes import size_of, unwritable_refused
from lib.models import BaseWeights, open_base_weights
from lib.models.base_files import TRAINABLE_PARTS
from lib.models.compatibility import check_compatible
from lib.models.single_file import layout

# What a whole model can be written as, and whether that is a folder.
MODEL_FORMS = {"checkpoint": False, "diffusers": True}

# What is copied from the base's folder beside the weights: its JSON and text files.
CONFIGURED = (*TRAINABLE_PARTS, "vae", "scheduler", "tokenizer", "tokenizer_2", "feature_extractor")

# Where a part's configuration says what it was loaded from, which may be a path.
OWN_NAMES = ("_name_or_path", "name_or_path")

Reader = Callable[[str, str], torch.Tensor]  # (part, name) -> the tensor


@dataclass(frozen=True)
class Model:
    """A whole model that is not written yet: `base_weights`, and the `adapters` to merge in.

    `facts`: of the first source (`run_facts`). `merged_from`: the names of base and sources.
    """

    base_weights: BaseWeights
    adapters: Sequence[tuple[Adapter, float]]
    facts: Facts
    merged_from: str


def merge(
    sources: Source | Sequence[Source],
    to: str,
    out: str | Path,
    base: str | None = None,
    weights: Sequence[float] | None = None,
    other_base: bool = False,
) -> Written:
    """Write the base with `sources` in it, all in fp16, to `out`.

    `sources`: a DreamBooth run, or one or several LoRAs (runs, files, PEFT folders), each with its
    weight (1 where none are given). `to`: "checkpoint" (one file, original layout) or "diffusers"
    (a folder). `base`: by default that of the first.

    Raises BadInput, before anything is written, for adapters that do not fit or are damaged, and
    for values that fp16 cannot hold; and if a key would not load, or a tensor, read back, is not
    what was meant.
    """
    sources = [sources] if isinstance(sources, Source) else list(sources)
    return write_model(whole_model(sources, weights, base, other_base), to, out)


def whole_model(
    sources: Sequence[Source],
    weights: Sequence[float] | None = None,
    base: str | None = None,
    other_base: bool = False,
) -> Model:
    """The `Model` of a DreamBooth run, or of LoRAs with a weight each, as in `merge`.

    Of no sources it is the bare `base`. Raises BadInput if the sources cannot be put together or
    do not fit the base.
    """
    weights = [1.0] * len(sources) if weights is None else list(weights)
    if len(weights) != len(sources):
        raise BadInput(
            f"There are {len(weights)} weights for {len(sources)} adapters: give one for each."
        )
    check_weights(weights)
    if not sources:
        if base is None:
            raise BadInput("Nothing is named: name LoRAs, or with --base the model to write bare.")
        return Model(open_base_weights(base), [], {}, "")
    first = sources[0]
    facts = run_facts(first)
    if not isinstance(first, Adapter) and facts.get("settings", {}).get("method") == "dreambooth":
        if len(sources) > 1:
            raise BadInput(
                f"{first} is a DreamBooth run, a whole model of its own: give it alone, or merge"
                " LoRAs."
            )
        base_weights = tuned_weights(first, facts, base, other_base)
        adapters = []
    else:
        base_weights = open_base_weights(base_of(first, base, facts))
        adapters = [
            (read_adapter(source, base_weights.layers), w) for source, w in zip(sources, weights)
        ]
        for adapter, _ in adapters:
            check_compatible(adapter, base_weights, other_base)
    merged_from = ", ".join([base_weights.name, *(path_of(source).name for source in sources)])
    return Model(base_weights, adapters, facts, merged_from)


def write_model(model: Model, to: str, out: str | Path, title: str | None = None) -> Written:
    """Write a `Model` as `to` to `out`.

    `title`: the name that tools show, by default the file's. Raises BadInput as `merge` does.
    """
    out, started = check_output(to, out, MODEL_FORMS), time.perf_counter()
    base_weights = model.base_weights
    # The header is of the base itself: a tuned base_weights has other weights.
    texts = model_texts(open_base_weights(base_weights.name), model.facts, title or out.stem)
    texts |= {"modelspec.merged_from": model.merged_from} if model.merged_from else {}
    texts = public_texts(texts)
    # Kohya's hashes are for LoRAs.
    texts |= {key: text for key, text in CONTENT_HASHES.items() if not key.startswith("sshs_")}
    write = _write_file if to == "checkpoint" else _write_folder
    read = _telling(merged_reader(base_weights, model.adapters), out, base_weights)
    readers = write(out, base_weights, read, texts)
    seconds = time.perf_counter() - started
    count = len(next(iter(readers.values()))[0])
    changed = {(part, name) for part in base_weights.tuned for name in base_weights.shapes[part]}
    changed |= {(part, name) for adapter, _ in model.adapters for part, name, _ in adapter}
    return Written(out, size_of(out), seconds, readers, tensors=count, changed=len(changed))


def merged_reader(
    base_weights: BaseWeights, adapters: Sequence[tuple[Adapter, float]] = ()
) -> Reader:
    """A function (part, name) -> the base_weights's tensor with (adapter, weight) pairs merged in.

    In float32 if it is changed.
    """

    def read(part: str, name: str) -> torch.Tensor:
        tensor, layer_name = base_weights.read(part, name), name.removesuffix(".weight")
        layers = [
            (adapter.layers[part][layer_name], weight)
            for adapter, weight in adapters
            if name.endswith(".weight") and layer_name in adapter.layers.get(part, {})
        ]
        return merged_weight(tensor, layers) if layers else tensor

    return read


def _telling(read: Reader, out: Path, base_weights: BaseWeights) -> Reader:
    """The same reader, which prints how far the writing is where that takes long."""
    # From the first tensor on: what comes before it, such as imports, says nothing of the others.
    tell = cache(lambda: progress_lines(f"writing {out.name}"))
    done, total = itertools.count(1), sum(map(len, base_weights.shapes.values()))

    def told(part: str, name: str) -> torch.Tensor:
        tensor = read(part, name)
        tell()(next(done), total)
        return tensor

    return told


def merged_weight(tensor: torch.Tensor, layers: Sequence[tuple[Layer, float]]) -> torch.Tensor:
    """A weight in float32 with its (Layer, weight) pairs merged in.

    DoRA (Liu et al. 2024, eq. 5): the sum, scaled row by row to the magnitudes learnt; a weight
    other than 1 goes that share of the way.
    """
    total = tensor.float()
    for layer, weight in layers:
        if layer.magnitude is None:
            total = total + layer.delta(weight).reshape(total.shape)
        else:
            moved = total + layer.delta().reshape(total.shape)
            rows = moved.flatten(1).norm(dim=1).reshape(-1, *[1] * (moved.ndim - 1))
            magnitude = layer.magnitude.float().reshape(rows.shape)
            total = total + weight * (moved * magnitude / rows - total)
    return total


def _write_file(out: Path, base_weights: BaseWeights, read: Reader, texts: Header) -> Readers:
    """One file in the original layout. Returns who reads it."""
    entries = layout(base_weights)
    readers = _check_all_load(checkpoint_readers(entries, base_weights), out)
    shapes = {
        key: (_stored_type(base_weights, *entry.sources[0]), entry.shape)
        for key, entry in entries.items()
    }
    shapes |= {mark: ("F32", (0,)) for mark in base_weights.marks}

    def tensor(key: str) -> torch.Tensor:
        return entries[key].make(read) if key in entries else torch.zeros(0)

    write_weights(out, shapes, tensor, texts, check=True)
    return readers


def _write_folder(out: Path, base_weights: BaseWeights, read: Reader, texts: Header) -> Readers:
    """The diffusers folder: weights in fp16, everything else as the base has it.

    Without a safety checker, which loads no other way. Returns who reads it.
    """
    configurations = base_weights.configurations()
    readers = _check_all_load(folder_readers(base_weights), out)
    with unwritable_refused(out), whole_folder(out, mark=True) as path:
        _copy_configurations(configurations, path)
        if base_weights.path.is_file():
            _write_prediction(path, base_weights)
        for part, names in base_weights.shapes.items():
            spare = base_weights.unread_names(part)
            shapes = {
                name: (_stored_type(base_weights, part, name), shape)
                for name, shape in names.items()
                if name not in spare
            }
            file = "diffusion_pytorch_model" if part in ("unet", "vae") else "model"
            write_weights(
                path / part / f"{file}.safetensors",
                shapes,
                lambda name, part=part: read(part, name),
                texts if part == "unet" else {"format": "pt"},
                check=True,
            )
        write_json(path / "model_index.json", _model_index(configurations, path))
    return readers


def _check_all_load(readers: Readers, out: Path) -> Readers:
    for tool, (_, bad) in readers.items():
        if bad:
            raise BadInput(
                f"{out} was not written: {len(bad)} of its keys would not load in {tool}"
                f" ({bad[0]}): look whether the base's own files are whole."
            )
    return readers


def _copy_configurations(folder: Path, path: Path) -> None:
    """Copy the JSON and text files of each part of a pipeline, but for indices of its weights."""

    def others(inside: str, names: list[str]) -> list[str]:
        if Path(inside) == folder:
            return [name for name in names if name not in CONFIGURED or (folder / name).is_file()]
        index = "diffusion_pytorch_model.safetensors.index.json"
        return [name for name in names if not name.endswith((".json", ".txt")) or name == index]

    shutil.copytree(folder, path, ignore=others, copy_function=shutil.copyfile, dirs_exist_ok=True)
    for file in path.rglob("*config.json"):
        config = read_json(file)
        named = {key: public_name(config[key], True) for key in OWN_NAMES if config.get(key)}
        if any(config[key] != name for key, name in named.items()):
            write_json(file, config | named)


def _write_prediction(path: Path, base_weights: BaseWeights) -> None:
    """Let the scheduler in the folder `path` say what the single file `base_weights` predicts.

    Its family's configuration may not know.
    """
    scheduler, unet = path / "scheduler" / "scheduler_config.json", path / "unet" / "config.json"
    known = base_weights.scheduler
    # Where the file does not say either, the model itself does, once it is loaded.
    if base_weights.prediction is None:
        from lib.models import load_base  # late: diffusers takes seconds to import

        pipe = load_base(base_weights.name, "cpu").pipe
        known = {"prediction_type": pipe.scheduler.config.prediction_type}
        write_json(unet, read_json(unet) | {"sample_size": pipe.unet.config.sample_size})
    write_json(scheduler, read_json(scheduler) | known)


def _model_index(folder: Path, path: Path) -> dict[str, object]:
    """The base's model_index.json for the folder `path`, which may lack some parts."""
    index = read_json(folder / "model_index.json")
    for part in ("feature_extractor", "image_encoder"):
        if part in index and not (path / part).is_dir():
            index[part] = [None, None]
    if "safety_checker" in index:
        index |= {"safety_checker": [None, None], "requires_safety_checker": False}
    return index


def _stored_type(base_weights: BaseWeights, part: str, name: str) -> str:
    """The type in which a tensor is written: fp16 for all floating-point ones."""
    kind = base_weights.dtype(part, name)
    return "F16" if kind in ("F64", "F32", "F16", "BF16") else kind
