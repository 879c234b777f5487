"""What the probes share, in a tool's own environment: nothing here knows this project."""

import json
import logging
import sys
from pathlib import Path

import torch

# An operator lives as long as its library.
VISION = torch.library.Library("torchvision", "FRAGMENT")


def stand_in_for_torchvision():
    """Let torchvision be imported on a processor: its wheel is for CUDA, and without its own
    operators it stops at the first that it describes. None of them is called here.
    """
    for name in ("nms", "qnms"):
        VISION.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def listen():
    """The list to which all messages of the tool's log go from now on."""
    messages = []

    class Listener(logging.Handler):
        def emit(self, record):
            messages.append(record.getMessage())

    logging.getLogger().addHandler(Listener())
    logging.getLogger().setLevel(logging.DEBUG)
    return messages


def meta_weights(path, dtype=torch.half):
    """{name: tensor} of a safetensors file, by its header alone: they take no memory."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
    return {k: torch.empty(shape, dtype=dtype, device="meta") for k, shape in shapes.items()}


def keep(request, name, changes):
    """Save {layer: change of weight [out, in, ...] times a fixed vector} for our side to read."""
    found = {}
    for layer, change in changes.items():
        flat = change.detach().float().flatten(1)
        found[layer] = flat @ torch.cos(torch.arange(flat.shape[1], dtype=torch.float32))
    torch.save(found, Path(request["out"]).with_suffix(f".{name}.pt"))


def run_script(path, *arguments):
    """Run one of a tool's own scripts with its arguments, as from its folder."""
    import runpy

    stand_in_for_torchvision()
    sys.argv = [path, *arguments]
    folder = Path(path).parent
    sys.path[:0] = [str(folder), str(folder.parent)]
    runpy.run_path(path, run_name="__main__")


def answer_to(main):
    """Run a probe: the request's file is the first argument, and it names the answer's."""
    request = json.loads(Path(sys.argv[1]).read_text())
    Path(request["out"]).write_text(json.dumps(main(request)))


if __name__ == "__main__":
    run_script(*sys.argv[1:])
