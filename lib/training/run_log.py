"""What a run writes down while it trains and when it ends: step times, the log, the metrics."""

import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from lib.config import Settings
from lib.files import say
from lib.models.devices import device_name, resident_bytes, use_fair_threads, versions

READ_EVERY = 10  # steps between reading losses off the device
PACE_STEPS = 10  # whose median is compared with that of the first
SEVERAL_TIMES = 3.0
SAY_EVERY = 50  # steps between progress lines

# What a run may end up with otherwise than its settings ask for: where the device cannot do it, or
# memory ran out.
RECIPE_SETTINGS = (
    "checkpointing",
    "optimizer",
    "weights",
    "fused_backward",
    "quantize",
    "accumulate",
)

Row = dict[str, Any]  # a line of log.jsonl


class NotFinite(RuntimeError):
    """A loss or gradient that is no number.

    Its text is one sentence: where, in which picture, the likely cause, what to do.
    """


@dataclass
class State:
    """What a watcher sees after each step.

    `step` of `steps`; `losses` so far; `seconds` of training; `samples`: [(step, PIL images)].
    """

    steps: int
    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    samples: list[tuple[int, list[Any]]] = field(default_factory=list)
    skipped: int = 0  # steps, in fp16, whose gradient was not finite and changed nothing
    stopping: bool = False  # to end after this step
    drawing: bool = True  # samples, until memory does not suffice for them

    def stop(self) -> None:
        """End the training after this step; what was learnt is saved and usable."""
        self.stopping = True


class Clock:
    """Times steps: `with clock:` around each.

    `ends` are seconds of training until the end of each step that is over. On CUDA kernels run
    behind Python's back, and waiting for each step would slow it down: there events are recorded,
    which `settle` reads. `peak` is the largest `torch.cuda.max_memory_allocated` within steps, in
    bytes: samples and curves do not count.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.ends: list[float] = []
        self.waiting: list[tuple[Any, Any]] = []  # (start, end) of steps that are not in `ends` yet
        self.peak = 0

    def _now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def __enter__(self) -> None:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        self.start = self._now()

    def __exit__(self, *error: object) -> None:
        self.waiting.append((self.start, self._now()))
        if self.cuda:
            self.peak = max(self.peak, torch.cuda.max_memory_allocated())
        else:
            self.settle()

    def settle(self) -> None:
        """Move what was recorded into `ends`; on CUDA this waits for the last step."""
        for start, end in self.waiting:
            if self.cuda:
                end.synchronize()
                seconds = start.elapsed_time(end) / 1000
            else:
                seconds = end - start
            self.ends.append(self.total + seconds)
        self.waiting.clear()

    @property
    def total(self) -> float:
        """Seconds of training until the end of the last step that is settled."""
        return self.ends[-1] if self.ends else 0.0

    @property
    def per_step(self) -> float:
        """Seconds of a step, the median, without the first two, which are slow."""
        steps = [after - before for before, after in zip([0.0, *self.ends], self.ends)]
        return median(steps[2:] or steps)


class Pace:
    """Notices when steps turn several times slower than the first ones of this `Clock` were."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.begun, self.told = clock, len(clock.ends), False

    def slower(self) -> float:
        """How many times longer the last ten steps take than the first ten; 1 until there are.

        By the medians; the first two, which are slow, do not count.
        """
        ends = self.clock.ends[self.begun :]
        if len(ends) < 2 * PACE_STEPS + 3:
            return 1.0
        steps = [after - before for before, after in zip(ends, ends[1:])][1:]
        return median(steps[-PACE_STEPS:]) / median(steps[:PACE_STEPS])

    def look(self, exact: bool) -> None:
        """Say so once, and what helps. Where sums need not be `exact`, threads give way too."""
        times = self.slower()
        if self.told or self.clock.cuda or times < SEVERAL_TIMES:
            return
        self.told = True
        before = torch.get_num_threads()
        now = before if exact else use_fair_threads(always=True)
        helps = "it helps to stop those"
        if now < before:
            helps = f"going on with {now} of {before} threads"
        elif before > 1:
            helps += (
                ", or to stop this training and begin a new one with OMP_NUM_THREADS=1 (the threads"
                f" of this one, {before}, stay: its sums depend on them)"
            )
        say(
            f"steps take {times:.0f} times as long as the first ones, as other programs want the"
            f" processor: {helps}."
        )


class Log:
    """The run's log.jsonl, whose `file` whoever made this closes.

    Losses stay on the device until `flush` reads them all at once, every `READ_EVERY` steps.
    `names` are the pictures of each source, `rows` those of the steps taken before an interruption,
    which the file begins with.
    """

    def __init__(
        self,
        path: Path,
        settings: Settings,
        state: State,
        clock: Clock,
        names: Sequence[Sequence[str]],
        rows: Iterable[Row] = (),
    ) -> None:
        self.settings, self.state, self.clock, self.names = settings, state, clock, names
        self.rows = list(rows)
        self.waiting: list[tuple[torch.Tensor, Sequence[torch.Tensor]]] = []
        self.file = open(path, "w", encoding="utf-8")
        self.file.write("".join(json.dumps(row) + "\n" for row in self.rows))

    def add(self, numbers: torch.Tensor, chosen: Sequence[torch.Tensor]) -> None:
        """What a step returned, and which pictures of each source it saw."""
        self.waiting.append((numbers, chosen))

    def flush(self) -> None:
        """Move what was added into file and state.

        Raises NotFinite at the first loss or gradient that is no number.
        """
        if not self.waiting:
            return
        self.clock.settle()
        read = torch.stack([numbers for numbers, _ in self.waiting]).tolist()
        for numbers, (_, chosen) in zip(read, self.waiting):
            self._write(numbers, chosen)
        self.file.flush()
        self.waiting.clear()
        state, recent = self.state, self.state.losses[-50:]
        if state.step % SAY_EVERY == 0 or state.step == state.steps:
            say(
                f"{self.settings.method}: step {state.step} of {state.steps}, loss"
                f" {sum(recent) / len(recent):.4f},"
                f" {self.clock.per_step * (state.steps - state.step):.0f} s left"
            )

    def _write(self, numbers: Sequence[float], chosen: Sequence[torch.Tensor]) -> None:
        instance, prior, norm, *each = numbers
        step = len(self.rows) + 1
        loss = instance + self.settings.prior_weight * prior
        scale = each[sum(len(some) for some in chosen) :]  # in fp16
        # Halved down to 1 without help, it is not what made the gradient too large.
        skipped = bool(scale) and scale[0] > 1 and not math.isfinite(norm)
        if not math.isfinite(loss) or not (skipped or math.isfinite(norm)):
            raise NotFinite(self._diagnosis(loss, norm, each, chosen))
        self.state.losses.append(loss)
        self.state.skipped += skipped
        row = {
            "step": step,
            "loss": loss,
            "instance_loss": instance,
            "prior_loss": prior,
            "gradient_norm": None if skipped else norm,
            "seconds": self.clock.ends[step - 1],
            "learning_rate": self.settings.rate(step - 1),
        }
        if scale:
            row |= {"loss_scale": scale[0], "skipped": skipped}
        self.rows.append(row)
        self.file.write(json.dumps(row) + "\n")

    def _diagnosis(
        self, loss: float, norm: float, each: Sequence[float], chosen: Sequence[torch.Tensor]
    ) -> str:
        """What to say of a `loss` or gradient `norm` that is no number; `each`: of each picture."""
        step, settings = len(self.rows) + 1, self.settings
        seen: list[str] = [
            names[int(k)] for names, some in zip(self.names, chosen) for k in some.tolist()
        ]
        bad = [name for name, value in zip(seen, each) if not math.isfinite(value)]
        exact = settings.precision == "fp32" or settings.weights == "bf16"
        if step == 1:  # no weight has changed yet
            another = f"take another base than '{settings.base}'"
            first = ", where the learning rate has changed nothing yet: "
            cause = first + (another if exact else f"set precision to 'fp32', or {another}")
            take_out = "take it out"
        else:
            rate = f"learning_rate ({settings.learning_rate}) is likely too high: lower it"
            cause = f"; {rate}" + ("" if exact else ", or set precision to 'fp32'")
            take_out = f"take it out, or {rate}"
        if not bad:
            return f"The gradient's norm is {norm} at step {step}, with all losses finite{cause}."
        if len(bad) == len(seen):
            return f"The loss is {loss} at step {step}, for every picture{cause}."
        return (
            f"The loss is {loss} at step {step}, because of {' and '.join(dict.fromkeys(bad))}"
            f" alone: {take_out}."
        )


def metrics(
    settings: Settings,
    state: State,
    clock: Clock,
    peak_by_category: dict[str, int] | None,
    device: torch.device,
) -> dict[str, Any]:
    """What was measured, with units, versions and device: most of metrics.json.

    The peak memory of a step is CUDA's own count, or on the CPU the sum of its categories.
    """
    last = state.losses[-20:]
    peak: int | None = clock.peak
    how = "torch.cuda.max_memory_allocated within steps; categories by the forecast"
    if not clock.cuda:
        peak = sum(peak_by_category.values()) if peak_by_category else None
        how = "bytes of all live tensors in step 2"
    return {
        "method": settings.method,
        "steps": state.step,
        "recipe": {name: getattr(settings, name) for name in RECIPE_SETTINGS},
        "stopped_early": state.step < state.steps,
        "seconds_per_step": clock.per_step,
        "train_seconds": clock.total,
        "peak_bytes": peak,
        "peak_by_category": peak_by_category,
        "peak_measured_by": how,
        "resident_bytes": resident_bytes(),
        "final_loss": sum(last) / max(1, len(last)),
        "units": {
            "seconds_per_step": "s, median",
            "train_seconds": "s, steps alone",
            "peak_bytes": "bytes",
            "resident_bytes": "bytes",
            "file_bytes": "bytes",
        },
        "versions": versions(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
    }
