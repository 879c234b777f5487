"""Run one training in this process, and write down when its steps ended and what memory it took.
`benchmarks/race.py` calls it.

    python -m benchmarks.watched RESULT.json STEPS train_dreambooth.py --resolution 64    # a path
    python -m benchmarks.watched RESULT.json STEPS lib train settings.json                # a module

The training is not touched and not told. The end of a step is the end of the optimiser's step in
their scripts, which torch announces to whoever asks, that of the rate's scheduler in kohya's
sd-scripts, and the end of `lib.step.training_step.Step` in ours, which comes after it. Memory is
counted by the same lines for all: on the CPU over every tensor that is alive in step 2, whoever
holds it; on CUDA it is what the allocator gave, and held, in steps 2 to 5. Times are seconds since
the epoch, which the caller knows too.

Where `BENCHMARK_TURNS` names a path and a number of steps ("/tmp/turns/name:20"), the training
waits after the first `SHORT` steps, and again after each so many: it says so in <path>.<k>.ready,
and goes on when there is a <path>.<k>.go. So trainings that are all ready can be timed on one card
one after the other (`benchmarks/cuda_race.py`).
"""

import gc
import json
import os
import runpy
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from lib.memory.tracker import PeakMemory
from lib.models.devices import resident_bytes

SHORT = 5  # steps of the short run, with which every run begins; steady state is the rest


class Watch:
    """Called after each optimiser step: `ends` (time of each), `peak` (bytes of all live tensors at
    the worst moment of step 2).
    """

    def __init__(self, steps, count=True):
        self.steps, self.count = steps, count
        self.ends: list[float] = []
        self.peak: int | None = None
        self.categories: dict[str, int] | None = None
        self.memory: PeakMemory | None = None
        turns = os.environ.get("BENCHMARK_TURNS", "")
        self.turns, self.size, self.begins = (
            turns.rpartition(":")[0],
            int(turns.rpartition(":")[2] or 0),
            [],
        )

    def __call__(self, *_):
        step = len(self.ends) + 1
        turn = self.turns and step >= SHORT and (step - SHORT) % self.size == 0
        if torch.cuda.is_available() and (turn or step in (1, SHORT, self.steps)):
            # only where a time is read: a wait in every step would slow down whoever has none
            torch.cuda.synchronize()
        self.ends.append(time.time())
        if torch.cuda.is_available():
            self.on_card(step)
        elif self.count and step == 1:
            self.begin()
        elif self.count and step == 2:
            self.end()
        if turn:
            self.wait((step - SHORT) // self.size)

    def on_card(self, step):
        """What CUDA's allocator gave at most after step 1, and what it held: ours resets both
        before each step, so each step is read.
        """
        if step == 1:
            torch.cuda.reset_peak_memory_stats()
            self.peak, self.categories = 0, {"reserved": 0}
        elif step <= SHORT:
            self.peak = max(self.peak or 0, torch.cuda.max_memory_allocated())
            before = (self.categories or {}).get("reserved", 0)
            self.categories = {"reserved": max(before, torch.cuda.max_memory_reserved())}

    def wait(self, k):
        """Say that `k` turns are over, and wait for the next one; `begins` are the times at which
        they began.
        """
        Path(f"{self.turns}.{k}.ready").touch()
        while len(self.ends) < self.steps and not Path(f"{self.turns}.{k}.go").exists():
            time.sleep(0.01)
        self.begins.append(time.time())

    def begin(self):
        """Count from here on: what is alive now, whoever holds it, and what the next step makes."""
        gc.collect()
        alive = [
            thing
            for thing in gc.get_objects()
            if issubclass(type(thing), torch.Tensor) and thing.device.type != "meta"
        ]
        weights = [t for t in alive if issubclass(type(t), torch.nn.Parameter)]
        everything: Any = SimpleNamespace(parameters=lambda: weights, buffers=lambda: [])
        self.memory = PeakMemory(everything, None, alive).__enter__()
        self.memory.inputs = ()  # or gradients that step 2 frees would live on here

    def end(self):
        """The worst moment since `begin`."""
        if self.memory is None:
            raise RuntimeError("nothing was counted: begin() comes before end()")
        self.memory.__exit__(None, None, None)
        self.peak, self.categories, self.memory = self.memory.bytes, self.memory.by_category, None


def watch_ours(watch):
    """Have `watch` called after each step of ours: recipes that fuse the optimiser into the
    backward pass have many optimisers, or none.
    """
    from lib.step.training_step import Step

    step = Step.__call__

    def watched(self, *inputs):
        numbers = step(self, *inputs)
        if not isinstance(self.weights[0], FakeTensor):  # a forecast takes a step of such
            watch()
        return numbers

    setattr(Step, "__call__", watched)


def watch_theirs(watch, folder):
    """Have `watch` called after each step of a script in `folder`. Returns whether torchvision has
    a stand-in.
    """
    if not (folder / "library" / "train_util.py").is_file():
        from .torchvision_standin import install

        register_optimizer_step_post_hook(watch)
        return install()
    # sd-scripts: an update within the backward pass is no optimiser's step, so the scheduler's step
    # counts, which follows. On a processor torchvision's wheel lacks its own operators.
    from accelerate.scheduler import AcceleratedScheduler

    from .interop.tool_side import stand_in_for_torchvision

    if not torch.cuda.is_available():
        stand_in_for_torchvision()
    sys.path.insert(0, str(folder))
    step = AcceleratedScheduler.step

    def watched(self, *inputs, **options):
        step(self, *inputs, **options)
        watch()

    setattr(AcceleratedScheduler, "step", watched)
    return False


def main():
    result, steps, program, *arguments = sys.argv[1:]
    compiled = (
        os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no"
    )  # that cannot be followed tensor by tensor
    watch = Watch(int(steps), count=not compiled)
    sys.argv = [program, *arguments]
    if program.endswith(".py"):
        without = watch_theirs(watch, Path(program).parent)
        runpy.run_path(program, run_name="__main__")
    else:
        watch_ours(watch)
        without = False
        try:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            if end.code:
                raise
    peak = {
        "peak_bytes": watch.peak,
        "peak_by_category": watch.categories,
        "resident_bytes": resident_bytes(),
    }
    found = peak | {"ends": watch.ends, "begins": watch.begins, "standin": without}
    Path(result).write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    main()
