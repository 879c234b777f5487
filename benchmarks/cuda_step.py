"""What makes a training step fast on a card: one LoRA step of Stable Diffusion 1.5's shape in
several ways, turn about, in one process.

    python -m benchmarks.cuda_step [--steps 25] [--rounds 3]    # two minutes, most of them compiling; benchmarks/results/cuda_step.json

Random weights, batch 1 and one class image, 512 pixels, the adapter of `benchmarks/cuda_race.py`.
"Kernel by kernel" is our step as it is without a record: Python starts each of its kernels.
inductor compiles blocks, each shape once, and the rest stays as it is.
"""

import argparse
import time
from pathlib import Path

import torch

from lib.files.json_file import write_json
from lib.files.paths import ROOT
from lib.memory.forecasting import plan
from lib.models.devices import device_name, versions
from lib.models.pipeline import quiet
from lib.step.cuda_graph import Recorded, norms_in_bf16

from .contestants import LIKE
from .floor import now
from .random_base import step_of
from .sections import OWN_README, into_file, middle, spread

RESULTS = ROOT / "benchmarks" / "results" / "cuda_step.json"


def uncompiled(step, bf16):
    """The step's blocks as they come, norms in bf16 or fp32."""
    for module in step.unet.modules():
        module._compiled_call_impl = None
    norms_in_bf16(step.parts.values(), bf16)


def compiled(step, *kinds):
    """Its blocks of some classes by inductor, which fuses norms itself."""
    norms_in_bf16(step.parts.values(), False)
    for module in step.unet.modules():
        if isinstance(module, kinds):
            module.compile(dynamic=False)


def ways():
    """{name: what makes a step ready for it}, in an order in which each undoes the one before."""
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.resnet import ResnetBlock2D

    def search(step):
        uncompiled(step, True)
        torch.backends.cudnn.benchmark = True

    def blocks(step):
        torch.backends.cudnn.benchmark = False
        compiled(step, BasicTransformerBlock)

    return {
        "recorded, norms in fp32": lambda step: uncompiled(step, False),
        "recorded, norms in bf16 (ours)": lambda step: uncompiled(step, True),
        "recorded, cuDNN searches": search,
        "recorded, transformer blocks compiled": blocks,
        "recorded, residual blocks compiled too": lambda step: compiled(
            step, BasicTransformerBlock, ResnetBlock2D
        ),
    }


def measure(steps, rounds):
    """{way: {"ready": seconds until it is recorded, "step": seconds a step}}."""
    torch._dynamo.config.recompile_limit = 256  # each shape of block is compiled for itself
    device = torch.device("cuda")
    step, inputs = step_of(plan("lora", "sd15", **LIKE), device)
    inputs, found, known, times = (torch.full((), 1e-6, device=device), *inputs), {}, {}, {}
    step._work(*inputs)
    for name, prepare in ways().items():
        began = now(device)
        prepare(step)
        known[name] = Recorded(step._work, [step.optimizer.generator], step.optimizer.forget)
        for _ in range(3):
            known[name](*inputs)
        found[name] = {"ready": now(device) - began}
    for _ in range(rounds):
        for name, work in known.items():
            times.setdefault(name, []).append(_clock(work, inputs, steps, device))
    uncompiled(step, True)
    times["kernel by kernel"] = [_clock(step._work, inputs, steps, device) for _ in range(rounds)]
    found["kernel by kernel"] = {"ready": 0.0}
    return {name: row | {"step": middle(times[name])} for name, row in found.items()}


def _clock(work, inputs, steps, device):
    work(*inputs)
    began = now(device)
    for _ in range(steps):
        work(*inputs)
    return (now(device) - began) / steps


def figures(found):
    """The ways as Markdown; None is what was not measured."""
    if found is None:
        return "Not measured on this version yet: `python -m benchmarks.cuda_step`.\n"
    about = (
        f"On {found['device']}, torch {found['versions']['torch']}: median (smallest to largest) of"
        f" turns of {found['steps']} steps."
    )
    lines = [about, "", "| | milliseconds a step | seconds until ready |", "| --- | ---: | ---: |"]
    for name, row in found["ways"].items():
        step = {key: row["step"][key] * 1000 for key in ("median", "smallest", "largest")}
        lines.append(f"| {name} | {spread(step, 1)} | {row['ready']:.1f} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device here: run this command on a machine with one.")
    quiet()
    began = time.time()
    found = {
        "device": device_name(torch.device("cuda")),
        "versions": versions(),
        "steps": args.steps,
    }
    found["ways"] = measure(args.steps, args.rounds)
    write_json(args.output, found)
    if args.output == RESULTS:
        into_file(OWN_README, "cuda step", figures(found))
    print(figures(found), f"{time.time() - began:.0f} s")


if __name__ == "__main__":
    main()
