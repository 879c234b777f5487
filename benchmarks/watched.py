"""Run one training in this process, and write down when its steps ended and what memory it took. `benchmarks/race.py` calls it.

    python -m benchmarks.watched RESULT.json STEPS train_dreambooth.py --resolution 64 ...      # a script by its path
    python -m benchmarks.watched RESULT.json STEPS lib.train settings.json                      # or a module

The training is not touched and not told: torch itself announces the end of every optimiser step to whoever asks for it. So both sides of the
race are measured by the same lines. Times are seconds since the epoch, which the caller knows too.
"""

import gc
import json
import os
import runpy
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from lib.memory import PeakMemory, resident_bytes

SHORT = 5  # steps of the short run, with which every run begins; steady state is the rest


class Watch:
    """Called after each optimiser step: `ends` (time of each), `peak` (bytes of all live tensors at the worst moment of step 2)."""

    def __init__(self, steps, count=True):
        self.steps, self.count, self.ends, self.peak, self.memory = steps, count, [], None, None

    def __call__(self, optimizer, *_):
        step = len(self.ends) + 1
        if torch.cuda.is_available() and step in (1, SHORT, self.steps):
            torch.cuda.synchronize()  # only where a time is read: a wait in every step would slow down whoever has none
        self.ends.append(time.time())
        if self.count and step == 1:
            self.begin(optimizer)
        elif self.count and step == 2:
            self.end()

    def begin(self, optimizer):
        """Count from here on: what is alive now, whoever holds it, and what the next step makes."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            return
        gc.collect()
        alive = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
        weights = [t for t in alive if issubclass(type(t), torch.nn.Parameter)]
        everything = SimpleNamespace(parameters=lambda: weights, buffers=lambda: [])
        self.memory = PeakMemory(everything, getattr(optimizer, "optimizer", optimizer), alive).__enter__()

    def end(self):
        """The worst moment since `begin`."""
        if torch.cuda.is_available():
            self.peak = torch.cuda.max_memory_allocated()
            return
        self.memory.__exit__(None, None, None)
        self.peak, self.memory = self.memory.bytes, None


def main():
    result, steps, program, *arguments = sys.argv[1:]
    watch = Watch(int(steps), count="ACCELERATE_DYNAMO_BACKEND" not in os.environ)  # compiled code cannot be followed tensor by tensor
    register_optimizer_step_post_hook(watch)
    sys.argv = [program, *arguments]
    if program.endswith(".py"):
        from .torchvision_standin import install

        without = install()
        runpy.run_path(program, run_name="__main__")
    else:
        without = False
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    found = {"ends": watch.ends, "peak_bytes": watch.peak, "resident_bytes": resident_bytes(), "standin": without}
    Path(result).write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    main()
