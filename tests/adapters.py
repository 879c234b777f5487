"""Random adapters and tuned runs beside tiny bases, for what is written for other tools."""

import shutil

import torch

from lib.convert.adapter import Adapter, Layer, diffusers_tensors
from lib.files.safetensors_file import save_weights_file
from lib.models.base_weights import read_target
from lib.models.families import preset
from tests import scheme

FAMILIES = ("sd1", "sd2", "sdxl")


def adapter_for(folder, rank=4, alpha=2.0, seed=0):
    """A random LoRA beside every layer of every part that a folder has, convolutions and text
    encoders included; alpha is not rank.
    """
    target = read_target(str(folder))
    shapes = {
        (p, n): s
        for p in target.shapes
        if p != "vae"
        for n, s in target.layer_shapes(p).items()
        if n != "text_projection"
    }
    layers = {}
    for (part, name), (down, up) in scheme.random_adapter(shapes, rank, seed).items():
        layers.setdefault(part, {})[name] = Layer(down, up, alpha)
    return Adapter(layers, {"workbench.identifier": "zwx"})


def written(adapter, path):
    tensors, header = diffusers_tensors(adapter)
    save_weights_file(path, tensors, header)
    return path


def tuned_run(folder, where, dataset, parts=("unet",)):
    """A DreamBooth run of a tiny base: every weight of some parts moved by chance, as a training
    would leave them.
    """
    where.mkdir()
    target = read_target(str(folder))
    generator = torch.Generator().manual_seed(1)
    for part in parts:
        (where / part).mkdir()
        names = {n: target.read(part, n) for n in target.shapes[part]}
        moved = {
            n: (
                (w + 0.02 * torch.randn(w.shape, generator=generator)).half()
                if w.is_floating_point()
                else w
            )
            for n, w in names.items()
        }
        save_weights_file(
            where / part / "diffusion_pytorch_model.safetensors", moved, {"format": "pt"}
        )
        shutil.copyfile(folder / part / "config.json", where / part / "config.json")
    preset("dreambooth", str(folder), data=str(dataset.root), output=str(where)).save(
        where / "settings.json"
    )
    return where
