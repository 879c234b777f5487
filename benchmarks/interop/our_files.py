"""The files that the tools are given: a base of a published shape, a LoRA and a checkpoint of it.

The base's weights are zeros in sparse files, gigabytes that take no room: what a tool makes of a
file's keys does not depend on them. The LoRA's numbers are random, beside every layer that one can
sit beside, as if it were extracted from a full fine-tune.
"""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from benchmarks.random_base import PIPELINES
from lib.convert import export
from lib.convert.adapter import Adapter
from lib.convert.layer import Layer
from lib.files.json_file import write_json
from lib.files.safetensors_file import TYPES
from lib.memory.forecasting import SHAPES
from lib.models import BaseWeights, open_base_weights
from lib.models.base_files import POCKET
from lib.models.base_weights import class_shapes
from lib.models.layer_names import kohya_name
from lib.models.single_file import layout

RANK, ALPHA = 4, 2.0

WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}


def sparse_file(path: Path, shapes: Mapping[str, tuple[int, ...]], kind: str = "F16") -> Path:
    """Write a safetensors file of zeros, of which the disk holds the header alone."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * TYPES[kind].itemsize
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def sparse_base(name: str, folder: Path) -> BaseWeights:
    """A diffusers folder of the shape `name` (data/shapes) in `folder`, its weights zeros."""
    shutil.copytree(SHAPES / name, folder, dirs_exist_ok=True)
    for part in sorted(path.parent.name for path in folder.glob("*/config.json")):
        shapes = class_shapes(folder, part)
        sparse_file(folder / part / f"{WEIGHTS.get(part, 'model')}.safetensors", shapes)
    for part in folder.glob("text_encoder*"):
        words = folder / part.name.replace("text_encoder", "tokenizer")
        shutil.copytree(POCKET / "tokenizer", words, dirs_exist_ok=True)
    write_json(folder / "model_index.json", {"_class_name": PIPELINES[name]})
    return open_base_weights(str(folder))


def random_lora(base: BaseWeights, in_blocks: bool = False) -> Adapter:
    """A LoRA beside every layer of a base that one can sit beside; its alpha is not its rank.

    `in_blocks`: none beside layers outside of blocks, which sd-scripts leaves aside.
    """
    generator = torch.Generator().manual_seed(0)
    layers: dict[str, dict[str, Layer]] = {}
    for part in (part for part in base.shapes if part != "vae"):
        for name, shape in base.layer_shapes(part).items():
            if in_blocks and part == "unet" and "block" not in name:
                continue
            down = torch.randn(RANK, *shape[1:], generator=generator) / math.sqrt(
                math.prod(shape[1:])
            )
            up = torch.randn(shape[0], RANK, *[1] * (len(shape) - 2), generator=generator) * 0.1
            layers.setdefault(part, {})[name] = Layer(down.half(), up.half(), ALPHA)
    return Adapter(layers)


def our_lora(lora: Adapter, base: BaseWeights, folder: Path, form: str) -> Path:
    """A LoRA exported in a form by the code that users call."""
    path = folder / f"lora_{form}.safetensors"
    export(lora, form, path, base.name)
    return path


def our_checkpoint(base: BaseWeights, path: Path) -> Path:
    """A sparse file with the keys and shapes that a checkpoint of `base` is written with."""
    return sparse_file(path, {key: entry.shape for key, entry in layout(base).items()})


def probes(adapter: Adapter, base: BaseWeights) -> dict[str, torch.Tensor]:
    """{Kohya's name of a layer: its change of weights, times a fixed vector of inputs}.

    By these a tool's own changes are held to ours without gigabytes passing between the two.
    """
    found = {}
    for part, name, layer in adapter:
        key = kohya_name(part, name, base.sdxl, base.layers, base.attended)
        down, up = layer.down.float().flatten(1), layer.up.float().flatten(1)
        inputs = torch.cos(torch.arange(down.shape[1], dtype=torch.float32))
        found[key] = up @ (down @ inputs) * (layer.alpha / layer.rank)
    return found


def relative_error(theirs: Mapping[str, torch.Tensor], ours: Mapping[str, torch.Tensor]) -> float:
    """The largest difference of a layer's probe from ours, as a share of ours."""
    gaps = ((theirs[name].float() - mine).norm() / mine.norm() for name, mine in ours.items())
    return max((gap.item() for gap in gaps), default=0.0)
