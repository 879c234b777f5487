"""The forecast against the card: the peak of a real training step on CUDA, with random weights in the shapes of Stable Diffusion.

    python -m benchmarks.cuda_memory [sd15 sdxl]    # into benchmarks/results/cuda_memory.json; needs a GPU and no weights

For each recipe of the ladder, batch size 1 with and without class images: two steps, the second between a reset and a reading of
`torch.cuda.max_memory_allocated`. Wanted: within 8 %.
"""

import gc
import sys
from types import SimpleNamespace

import torch
from torch.utils._pytree import tree_map

from benchmarks.forecast import wanted
from lib.base import ROOT, Base, quiet
from lib.forecast import folder_of, forecast, hollow_base, hollow_inputs
from lib.hollow import fake_device
from lib.record import device_name, say, versions
from lib.settings import read_json, write_json
from lib.step import Step

RESULTS = ROOT / "benchmarks" / "results" / "cuda_memory.json"


def real(tensors, device):
    """The same shapes and types with memory, on `device`."""
    def one(t):
        return torch.randn(t.shape, device=device) if t.is_floating_point() else torch.zeros(t.shape, dtype=t.dtype, device=device)

    return tree_map(lambda t: one(t) if torch.is_tensor(t) else t, tensors)


def shapes(settings):
    """The step's inputs and the cached latents of `settings`, as meta tensors."""
    with fake_device("cuda"):
        found = hollow_inputs(hollow_base(settings.base), settings)
    return tree_map(lambda t: torch.empty(t.shape, dtype=t.dtype, device="meta") if torch.is_tensor(t) else t, found)


def measure(settings, device):
    """Peak bytes of the second training step of `settings` on a CUDA device."""
    from diffusers import UNet2DConditionModel

    gc.collect()  # of the recipe before
    torch.cuda.empty_cache()
    folder = folder_of(settings.base)
    inputs, cached = real(shapes(settings), device)
    with torch.device(device):
        unet = UNet2DConditionModel.from_config(read_json(folder / "unet" / "config.json")).to(torch.bfloat16)
    scheduler = SimpleNamespace(config=read_json(folder / "scheduler" / "scheduler_config.json"))
    step = Step(Base(SimpleNamespace(unet=unet, scheduler=scheduler), settings.base, device, True), settings)
    step(*inputs)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step(*inputs)
    torch.cuda.synchronize()
    del cached
    return torch.cuda.max_memory_allocated()


def main(bases):
    """Measure every recipe and write the results down. Ends with a sentence where there is no GPU."""
    if not torch.cuda.is_available():
        sys.exit("There is no CUDA device here: the forecast for Stable Diffusion stays unconfirmed until this runs on one.")
    quiet()
    device, rows = torch.device("cuda"), []
    for settings, words in wanted(bases):
        told = forecast(settings).bytes
        try:
            found = measure(settings, device)
        except torch.OutOfMemoryError:
            found = None
        row = {"base": settings.base, "method": settings.method, "class_images": settings.prior_weight > 0, "given_up": list(words)}
        rows.append(row | {"forecast": told, "measured": found, "error": found and told / found - 1})
        say(f"{row}: forecast {told / 2**30:.2f} GiB, measured {'out of memory' if found is None else f'{found / 2**30:.2f} GiB'}")
        write_json(RESULTS, {"device": device_name(device), "versions": versions(), "units": "bytes", "rows": rows})


if __name__ == "__main__":
    main(sys.argv[1:] or ("sd15", "sdxl"))
