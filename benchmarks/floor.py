"""Our training step against the floor: its arithmetic at the processor's measured matrix rate, its
bytes at the measured bandwidth.

    python -m benchmarks.floor [--steps 20] [--output FILE]

About a minute, on the card where there is one; writes benchmarks/results/floor.json.

Arithmetic is what torch.utils.flop_counter counts in the step (matrix products, convolutions,
attention). Bytes are those of every operation's inputs and outputs, as if nothing stayed in a
cache: on a small model much does, so that is an upper estimate, not a bound.

Prediction, written before the measurement: arithmetic alone is a third to a half of the step, since
convolutions on few pixels and channels run below the rate of a 2,048-wide product; AdamW and
clipping are a tenth of DreamBooth's step and nearly nothing of LoRA's.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from lib.files.json_file import write_json
from lib.files.paths import ROOT
from lib.models.base import load_base
from lib.models.devices import device_name, versions
from lib.models.families import preset

from .sections import OWN_README, into_file

RESULTS = ROOT / "benchmarks" / "results" / "floor.json"
WIDTH = 2048  # of the matrices whose product tells the rate
COPIED = 2**28  # bytes of the tensor whose copy tells the bandwidth
PHASES = ("forward", "backward", "clip and update")


class Traffic(TorchDispatchMode):
    """Counts `bytes` that operations read and write; views move none."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if not function.is_view:
            touched = {
                t.data_ptr(): t.numel() * t.element_size()
                for t in tree_leaves((args, kwargs, out))
                if isinstance(t, torch.Tensor)
            }
            self.bytes += sum(touched.values())
        return out


def now(device):
    """The time in seconds, when all that was asked of `device` is done: CUDA runs behind Python's
    back.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def best(function, device, repeats=7):
    """Seconds of the fastest of some calls, after one that does not count."""
    function()
    times = []
    for _ in range(repeats):
        start = now(device)
        function()
        times.append(now(device) - start)
    return min(times)


def machine(device):
    """Of a device {"bf16", "fp32": matrix rate in FLOP a second, "bandwidth": bytes a second read
    and written}.
    """
    found, width = {}, WIDTH * (4 if device.type == "cuda" else 1)  # a card is not busy with less
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a, b = (torch.randn(width, width, dtype=dtype, device=device) for _ in range(2))
        found[name] = 2 * width**3 / best(lambda a=a, b=b: a @ b, device)
    source = torch.zeros(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return found | {"bandwidth": 2 * COPIED / best(lambda: target.copy_(source), device)}


def profile(method, steps):
    """The parts of a step of `method` by the course's recipe: seconds of each phase, FLOP, bytes,
    and the slowest operations.
    """
    from lib.step.training_step import Step

    base = load_base()
    step = Step(base, preset(method, data="-", output="-"))
    torch.manual_seed(0)
    side = base.denoiser.config.sample_size
    latents, noise = (
        torch.randn(8, base.denoiser.config.in_channels, side, side).to(base.device)
        for _ in range(2)
    )
    inputs = (
        latents,
        noise,
        torch.randint(0, 1000, (8,)).to(base.device),
        base.conditions(["a zwx robot", "a robot"] * 4),
    )
    base.offload()

    marks, step.run = [], step.take_step  # recorded as a whole, as on a card, a step has no phases
    for holder, part in (
        (step, "loss"),
        (step.optimizer, "step"),
    ):  # the step itself, which calls these two
        setattr(holder, part, _marked(getattr(holder, part), marks, base.device))

    def phases():
        marks.clear()
        began = now(base.device)
        step(*inputs)
        (_, predicted), (back, updated) = marks
        return predicted - began, back - predicted, updated - back

    for _ in range(3):
        phases()
    times = [phases() for _ in range(steps)]
    with FlopCounterMode(display=False) as counted:
        phases()
    with Traffic() as traffic:
        phases()
    kinds, cuda = torch.profiler.ProfilerActivity, base.device.type == "cuda"
    with torch.profiler.profile(
        activities=[kinds.CPU, kinds.CUDA] if cuda else [kinds.CPU]
    ) as seen:
        phases()

    def own(event):
        return event.self_device_time_total if cuda else event.self_cpu_time_total

    # On CUDA an operation's time is that of its kernels, which are events of their own besides.
    events = sorted(
        (e for e in seen.key_averages() if e.device_type == torch.autograd.DeviceType.CPU),
        key=lambda e: -own(e),
    )
    total = sum(map(own, events))
    return {
        "step": statistics.median(sum(t) for t in times),
        "phases": {name: statistics.median(t[k] for t in times) for k, name in enumerate(PHASES)},
        "flop": counted.get_total_flops(),
        "bytes": traffic.bytes,
        "operations": [
            {"name": e.key, "share": own(e) / total, "calls": e.count} for e in events[:10]
        ],
        "bf16": base.fast == "bf16",
    }


def _marked(function, marks, device):
    """`function`, which adds (its start, its end) to `marks`."""

    def called(*inputs):
        start = now(device)
        found = function(*inputs)
        marks.append((start, now(device)))
        return found

    return called


def against(machine, profile):
    """A profile with its floor: seconds of arithmetic and of traffic on this machine, and the
    arithmetic's share of the step.
    """
    arithmetic = profile["flop"] / machine["bf16" if profile["bf16"] else "fp32"]
    traffic = profile["bytes"] / machine["bandwidth"]
    return profile | {
        "arithmetic": arithmetic,
        "traffic": traffic,
        "share": arithmetic / profile["step"],
    }


def figures(found):
    """The profile as Markdown; None is one that was not made."""
    if found is None:
        return "Not measured on this version yet: `python -m benchmarks.floor`.\n"
    m = found["machine"]
    lines = [
        (
            f"On {found['device']}, torch {found['versions']['torch']}: {m['bf16'] / 1e9:.0f} GFLOP"
            f" a second in bf16, {m['fp32'] / 1e9:.0f} in fp32, {m['bandwidth'] / 1e9:.1f} GB a"
            " second."
        ),
        "",
        "| | LoRA | DreamBooth |",
        "| --- | ---: | ---: |",
    ]
    both = [found["methods"][name] for name in ("lora", "dreambooth")]
    rows = [("seconds a step", lambda p: f"{p['step']:.3f}")]
    rows += [
        (f"of these, {name}", lambda p, name=name: f"{p['phases'][name]:.3f}") for name in PHASES
    ]
    rows += [
        ("GFLOP", lambda p: f"{p['flop'] / 1e9:.1f}"),
        ("seconds of arithmetic at the matrix rate", lambda p: f"{p['arithmetic']:.3f}"),
        ("GB read and written by operations", lambda p: f"{p['bytes'] / 1e9:.2f}"),
        ("seconds of these at the bandwidth", lambda p: f"{p['traffic']:.3f}"),
        ("share of the step that is arithmetic", lambda p: f"{p['share']:.0%}"),
    ]
    lines += [f"| {name} | {value(both[0])} | {value(both[1])} |" for name, value in rows]
    lines += [
        "",
        "Slowest operations, share of the step: "
        + "; ".join(
            f"{name}: "
            + ", ".join(
                f"{o['name'].removeprefix('aten::')} {o['share']:.0%}" for o in p["operations"][:6]
            )
            for name, p in zip(("LoRA", "DreamBooth"), both)
        )
        + ".",
    ]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rates = machine(device)
    methods = {
        method: against(rates, profile(method, args.steps)) for method in ("lora", "dreambooth")
    }
    found = {
        "machine": rates,
        "methods": methods,
        "device": device_name(device),
        "versions": versions(),
        "steps": args.steps,
    }
    write_json(args.output, found)
    if args.output == RESULTS:
        into_file(OWN_README, "floor", figures(found))
    print(figures(found))


if __name__ == "__main__":
    main()
