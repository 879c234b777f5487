"""Write whole models: an adapter merged into its base, or DreamBooth's tuned weights, as a
diffusers folder or as one file.

    merge(["runs/course/lora"], "checkpoint", "robot.safetensors")         # W + (alpha / rank) up down, in fp16
    merge("runs/course/dreambooth", "diffusers", "robot")

One tensor at a time is in memory, so a checkpoint of any size passes.
"""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from lib.convert.adapter import read_adapter
from lib.convert.exporting import (
    CONTENT_HASHES,
    check_output_path,
    header_texts,
    read_with_base,
    run_facts,
)
from lib.convert.readers import checkpoint_readers, folder_readers, reader_lines
from lib.files.errors import BadInput
from lib.files.json_file import read_json, write_json
from lib.files.safetensors_file import write_weights
from lib.files.whole_writes import size_of, takes_place
from lib.models.base_weights import read_target
from lib.models.compatibility import check_base, check_fit
from lib.models.layer_names import PARTS
from lib.models.single_file import layout

MODEL_FORMS = ("checkpoint", "diffusers")


FILES = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}


@dataclass(frozen=True)
class Merged:
    """What was written: `path`, `form`, `bytes`, `seconds`, number of `tensors`, how many of them
    are not the base's (`changed`), and `readers`: {tool: (keys that load, keys that do not)}. Every
    tensor was read back.
    """

    path: Path
    form: str
    bytes: int
    seconds: float
    tensors: int
    changed: int
    readers: dict

    def lines(self):
        """What can be said of it, in sentences."""
        yield (
            f"{self.tensors} tensors in fp16, {self.changed} of them not the base's, all read back"
            " and the same"
        )
        yield from reader_lines(self.readers)


def merge(sources, to, out, base=None, weights=None, title=None, other_base=False):
    """Write the base with `sources` in it, as `to` "checkpoint" (one file, original layout) or
    "diffusers" (a folder), all fp16. `Merged`.

    `sources`: a DreamBooth run, or one or several LoRAs (runs, files, PEFT folders), each with its
    weight (1 where none are given). `base`: by default that of the first. Raises BadInput, before
    anything is written, for adapters that do not fit or are damaged, and for values that fp16
    cannot hold; and if a key would not load, or a tensor, read back, is not what was meant.
    """
    sources = [sources] if isinstance(sources, str | Path) else list(sources)
    if to not in MODEL_FORMS:
        raise BadInput(
            f"There is no form '{to}' for a whole model: choose one of {', '.join(MODEL_FORMS)}."
        )
    weights = [1.0] * len(sources) if weights is None else list(weights)
    if len(weights) != len(sources):
        raise BadInput(
            f"There are {len(weights)} weights for {len(sources)} adapters: give one for each."
        )
    out, started = check_output_path(out, folder=to == "diffusers"), time.perf_counter()
    known = run_facts(sources[0])
    tuned = known.get("settings", {}).get("method") == "dreambooth"
    if tuned and len(sources) > 1:
        raise BadInput(
            f"{sources[0]} is a DreamBooth run, a whole model of its own: give it alone, or merge"
            " LoRAs."
        )
    if tuned:
        target = read_target(base or known["settings"].get("base", "pocket"), sources[0])
    else:
        target = read_with_base(sources[0], base, known)[1]
    if tuned and not target.tuned:
        raise BadInput(
            f"{sources[0]} has no tuned weights (no folder unet): its training did not finish;"
            " train it again."
        )
    adapters = (
        []
        if tuned
        else [
            (read_adapter(source, target.layers), weight)
            for source, weight in zip(sources, weights)
        ]
    )
    for adapter, _ in adapters:
        check_fit(adapter, target, other_base)
    read = reader(target, adapters)
    plain, merged_from = (
        read_target(target.name),
        ", ".join([target.name, *(Path(source).name for source in sources)]),
    )
    if tuned and not other_base:
        check_base(sources[0], plain)
    metadata = header_texts(plain, known, title or out.stem) | {
        "modelspec.merged_from": merged_from
    }
    metadata |= {
        key: text for key, text in CONTENT_HASHES.items() if not key.startswith("sshs_")
    }  # those are for LoRAs
    known_to = (_one_file if to == "checkpoint" else _folder)(out, target, read, metadata)
    changed = sum(len(target.shapes[part]) for part in target.tuned) or len(
        {(p, n) for a, _ in adapters for p, n, _ in a}
    )
    count = len(next(iter(known_to.values()))[0])
    return Merged(out, to, size_of(out), time.perf_counter() - started, count, changed, known_to)


def reader(target, adapters=()):
    """A function (part, name) -> tensor: the target's weight with the (adapter, weight) pairs
    merged in, in float32 if it is changed.
    """

    def read(part, name):
        tensor, layer_name = target.read(part, name), name.removesuffix(".weight")
        layers = [
            (a.layers[part][layer_name], w)
            for a, w in adapters
            if name.endswith(".weight") and layer_name in a.layers.get(part, {})
        ]
        return merged_weight(tensor, layers) if layers else tensor

    return read


def merged_weight(tensor, layers):
    """A weight in float32 with its (Layer, weight) pairs merged in. DoRA (Liu et al. 2024, eq. 5):
    the sum, scaled row by row to the magnitudes learnt; a weight other than 1 goes that share of
    the way.
    """
    total = tensor.float()
    for layer, weight in layers:
        if layer.magnitude is None:
            total = total + layer.delta(weight).reshape(total.shape)
        else:
            moved = total + layer.delta().reshape(total.shape)
            rows = moved.flatten(1).norm(dim=1).reshape(-1, *[1] * (moved.ndim - 1))
            total = total + weight * (
                moved * layer.magnitude.float().reshape(rows.shape) / rows - total
            )
    return total


def _one_file(out, target, read, metadata):
    entries = layout(target)
    known_to = _all_load(checkpoint_readers(entries, target), out)
    shapes = {
        key: (_kind(target, *entry.sources[0]), entry.shape) for key, entry in entries.items()
    }
    shapes |= {mark: ("F32", (0,)) for mark in target.marks}
    with takes_place(out) as part:
        write_weights(
            part,
            shapes,
            lambda key: entries[key].make(read) if key in entries else torch.zeros(0),
            metadata,
            check=True,
        )
    return known_to


def _all_load(known_to, out):
    for tool, (_, bad) in known_to.items():
        if bad:
            raise BadInput(
                f"{out} was not written: {len(bad)} of its keys would not load in {tool}"
                f" ({bad[0]}): look whether the base's own files are whole."
            )
    return known_to


def _folder(out, target, read, metadata):
    """The diffusers folder: weights in fp16, everything else as the base has it, without a safety
    checker (which loads no other way).
    """
    folder = target.configurations()
    known_to = _all_load(folder_readers(target), out)
    with takes_place(out) as path:
        _write_folder(path, folder, target, read, metadata)
    return known_to


def _write_folder(path, folder, target, read, metadata):
    for source in sorted(folder.iterdir()):
        if source.is_dir() and source.name in (
            *PARTS,
            "vae",
            "scheduler",
            "tokenizer",
            "tokenizer_2",
            "feature_extractor",
        ):
            (path / source.name).mkdir(parents=True)
            for file in sorted(source.iterdir()):
                if file.suffix in (".json", ".txt"):
                    shutil.copyfile(file, path / source.name / file.name)
            (path / source.name / "diffusion_pytorch_model.safetensors.index.json").unlink(
                missing_ok=True
            )
    if target.path.is_file():
        _settle_prediction(path, target)
    for part, names in target.shapes.items():
        spare = target.spare(part)
        shapes = {
            name: (_kind(target, part, name), shape)
            for name, shape in names.items()
            if name not in spare
        }
        write_weights(
            path / part / FILES.get(part, "model.safetensors"),
            shapes,
            lambda name, part=part: read(part, name),
            metadata if part == "unet" else {"format": "pt"},
            check=True,
        )
    index = read_json(folder / "model_index.json")
    index |= {
        part: [None, None]
        for part in ("feature_extractor", "image_encoder")
        if part in index and not (path / part).is_dir()
    }
    if "safety_checker" in index:
        index |= {"safety_checker": [None, None], "requires_safety_checker": False}
    write_json(path / "model_index.json", index)


def _settle_prediction(path, target):
    """Let the scheduler in the folder `path` say what the single file `target` predicts, which its
    family's configuration may not know.
    """
    scheduler, unet = path / "scheduler" / "scheduler_config.json", path / "unet" / "config.json"
    known = target.scheduler
    if (
        target.prediction is None
    ):  # the file does not say either: the model itself does, once it is loaded
        from lib.models.base import load_base

        pipe = load_base(target.name, "cpu").pipe
        known = {"prediction_type": pipe.scheduler.config.prediction_type}
        write_json(unet, read_json(unet) | {"sample_size": pipe.unet.config.sample_size})
    write_json(scheduler, read_json(scheduler) | known)


def _kind(target, part, name):
    return (
        "F16"
        if target.dtype(part, name) in ("F64", "F32", "F16", "BF16")
        else target.dtype(part, name)
    )
