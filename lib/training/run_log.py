"""What a run writes down while it trains and when it ends: step times, the log, the metrics."""

import json
import math
import time

import torch

from lib.files.text import say
from lib.models.devices import device_name, resident_bytes, versions

READ_EVERY = 10  # steps between reading losses off the device


# What a run may end up with otherwise than its settings ask for: where the device cannot do it, or
# memory ran out.
RECIPE_SETTINGS = ("checkpointing", "optimizer", "weights", "fused_backward", "quantize")


class NotFinite(RuntimeError):
    """A loss or gradient that is no number. Its text is one sentence: where, in which picture, the
    likely cause, what to do.
    """


class Clock:
    """Times steps: `with clock:` around each. `ends` are seconds of training until the end of each
    that is over; `total` is the last of these, `per_step` the median of a step.

    On CUDA kernels run behind Python's back, and waiting for each step would slow it down: there
    events are recorded, which `settle` reads. `peak` is the largest
    `torch.cuda.max_memory_allocated` within steps, in bytes: samples and curves do not count.
    """

    def __init__(self, device):
        self.cuda, self.ends, self.waiting, self.peak = device.type == "cuda", [], [], 0

    def resume(self, rows, peak):
        """Go on from the `rows` of a log, whose steps had `peak`."""
        self.ends, self.peak = [row["seconds"] for row in rows], peak

    def _now(self):
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def __enter__(self):
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        self.start = self._now()

    def __exit__(self, *error):
        self.waiting.append((self.start, self._now()))
        if self.cuda:
            self.peak = max(self.peak, torch.cuda.max_memory_allocated())
        else:
            self.settle()

    def settle(self):
        """Move what was recorded into `ends`; on CUDA this waits for the last step."""
        for start, end in self.waiting:
            if self.cuda:
                end.synchronize()
            self.ends.append(
                self.total + (start.elapsed_time(end) / 1000 if self.cuda else end - start)
            )
        self.waiting.clear()

    @property
    def total(self):
        return self.ends[-1] if self.ends else 0.0

    @property
    def per_step(self):
        steps = [after - before for before, after in zip([0.0, *self.ends], self.ends)]
        settled = sorted(steps[2:] or steps)  # the first ones are slow
        return settled[len(settled) // 2]


class Log:
    """The run's log.jsonl: losses stay on the device until `flush` reads them all at once, every
    `READ_EVERY` steps.

    `names` are the pictures of each source, `rows` those of the steps taken before an interruption,
    which the file begins with.
    """

    def __init__(self, path, settings, state, clock, names, rows=()):
        self.settings, self.state, self.clock, self.names, self.rows, self.waiting = (
            settings,
            state,
            clock,
            names,
            list(rows),
            [],
        )
        self.file = open(path, "w", encoding="utf-8")
        self.file.write("".join(json.dumps(row) + "\n" for row in self.rows))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def add(self, numbers, chosen):
        """What a step returned, and which pictures of each source it saw."""
        self.waiting.append((numbers, chosen))

    def flush(self):
        """Move what was added into file and state. Raises NotFinite at the first loss or gradient
        that is no number.
        """
        if not self.waiting:
            return
        state, settings = self.state, self.settings
        self.clock.settle()
        read = torch.stack([numbers for numbers, _ in self.waiting]).tolist()
        for (instance, prior, norm, *each), (_, chosen) in zip(read, self.waiting):
            step = len(self.rows) + 1
            loss = instance + settings.prior_weight * prior
            if not math.isfinite(loss) or not math.isfinite(norm):
                raise NotFinite(self._diagnosis(step, loss, norm, each, chosen))
            state.losses.append(loss)
            row = {
                "step": step,
                "loss": loss,
                "instance_loss": instance,
                "prior_loss": prior,
                "gradient_norm": norm,
                "seconds": self.clock.ends[step - 1],
                "learning_rate": settings.rate(step - 1),
            }
            self.rows.append(row)
            self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        self.waiting.clear()
        if state.step % (5 * READ_EVERY) == 0 or state.step == state.steps:
            left, mean = (
                self.clock.per_step * (state.steps - state.step),
                sum(state.losses[-50:]) / len(state.losses[-50:]),
            )
            say(
                f"{settings.method}: step {state.step} of {state.steps}, loss {mean:.4f},"
                f" {left:.0f} s left"
            )

    def _diagnosis(self, step, loss, norm, each, chosen):
        seen = [self.names[source][k] for source, some in enumerate(chosen) for k in some.tolist()]
        bad = [name for name, value in zip(seen, each) if not math.isfinite(value)]
        rate = f"learning_rate ({self.settings.learning_rate}) is likely too high: lower it"
        exact = self.settings.precision == "fp32" or self.settings.weights == "bf16"
        more = "" if exact else ", or set precision to 'fp32'"
        if not bad:
            return (
                f"The gradient's norm is {norm} at step {step}, with all losses finite;"
                f" {rate}{more}."
            )
        if len(bad) == len(seen):
            return f"The loss is {loss} at step {step}, for every picture; {rate}{more}."
        return (
            f"The loss is {loss} at step {step}, because of {' and '.join(dict.fromkeys(bad))}"
            f" alone: take it out, or {rate}."
        )


def metrics(settings, state, clock, peak, trainable, file_bytes, device):
    """What was measured, with units, versions and device: the content of metrics.json."""
    on_cuda = device.type == "cuda"
    peak_bytes = clock.peak if on_cuda else sum(peak.values()) if peak else None
    by = (
        "torch.cuda.max_memory_allocated within steps; categories by the forecast"
        if on_cuda
        else "bytes of all live tensors in step 2"
    )
    return {
        "method": settings.method,
        "steps": state.step,
        "recipe": {name: getattr(settings, name) for name in RECIPE_SETTINGS},
        "stopped_early": state.step < state.steps,
        "seconds_per_step": clock.per_step,
        "train_seconds": clock.total,
        "peak_bytes": peak_bytes,
        "peak_by_category": peak,
        "peak_measured_by": by,
        "resident_bytes": resident_bytes(),
        "file_bytes": file_bytes,
        "trainable_parameters": trainable,
        "final_loss": sum(state.losses[-20:]) / max(1, len(state.losses[-20:])),
        "units": {
            "seconds_per_step": "s, median",
            "train_seconds": "s, steps alone",
            "peak_bytes": "bytes",
            "resident_bytes": "bytes",
            "file_bytes": "bytes",
        },
        "versions": versions(),
        "device": device_name(device),
    }
