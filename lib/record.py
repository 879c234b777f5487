"""What a run writes down while it trains and when it ends: step times, the log, the metrics."""

import json
import platform
import time
from importlib.metadata import version

import torch

from .memory import resident_bytes

FLUSH = 10  # steps between reading losses off the device


class Clock:
    """Times steps: `with clock:` around each. `total` in seconds; `per_step` their median, without the first, slow ones."""

    def __init__(self, device):
        self.device, self.steps = device, []

    def _now(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()  # kernels run behind Python's back: without this a step would seem to take no time
        return time.perf_counter()

    def __enter__(self):
        self.start = self._now()

    def __exit__(self, *error):
        self.steps.append(self._now() - self.start)

    @property
    def total(self):
        return sum(self.steps)

    @property
    def per_step(self):
        settled = sorted(self.steps[2:] or self.steps)
        return settled[len(settled) // 2]


def flush(log, losses, state, clock, settings):
    """Move the losses gathered on the device into the log and the state. Raises RuntimeError at the first that is not finite."""
    if not losses:
        return
    first = len(state.losses)
    for k, (instance, prior) in enumerate(torch.stack(losses).tolist()):
        total = instance + settings.prior_weight * prior
        if not total - total == 0:
            raise RuntimeError(
                f"The loss is {total} at step {first + k + 1}: lower learning_rate ({settings.learning_rate}) or set precision to 'fp32'."
            )
        state.losses.append(total)
        rate = settings.learning_rate * min(1, (first + k + 1) / max(1, settings.warmup))
        row = {
            "step": first + k + 1,
            "loss": total,
            "instance_loss": instance,
            "prior_loss": prior,
            "seconds": sum(clock.steps[: first + k + 1]),
            "learning_rate": rate,
        }
        log.write(json.dumps(row) + "\n")
    log.flush()
    losses.clear()
    left = clock.per_step * (state.steps - state.step)
    if state.step % (5 * FLUSH) == 0 or state.step == state.steps:
        mean = sum(state.losses[-50:]) / len(state.losses[-50:])
        say(f"{settings.method}: step {state.step} of {state.steps}, loss {mean:.4f}, {left:.0f} s left")


def metrics(settings, state, clock, peak, weights, file_bytes, base):
    """What was measured, with units, versions and device: the content of metrics.json."""
    on_cuda = base.device.type == "cuda"
    peak_bytes = torch.cuda.max_memory_allocated() if on_cuda else peak.bytes if peak else None
    return {
        "method": settings.method,
        "family": base.family.name,
        "steps": state.step,
        "stopped_early": state.stopping,
        "seconds_per_step": clock.per_step,
        "train_seconds": clock.total,
        "peak_bytes": peak_bytes,
        "peak_by_category": peak.by_category if peak else None,
        "peak_measured_by": "torch.cuda.max_memory_allocated" if on_cuda else "bytes of all live tensors in step 2",
        "resident_bytes": resident_bytes(),
        "file_bytes": file_bytes,
        "trainable_parameters": sum(p.numel() for p in weights),
        "final_loss": sum(state.losses[-20:]) / max(1, len(state.losses[-20:])),
        "units": {
            "seconds_per_step": "s, median",
            "train_seconds": "s, steps alone",
            "peak_bytes": "bytes",
            "resident_bytes": "bytes",
            "file_bytes": "bytes",
        },
        "versions": versions(),
        "device": device_name(base.device),
    }


def versions():
    """What a result must name beside its device: the versions of the stack and of Python."""
    return {name: version(name) for name in ("torch", "diffusers", "transformers", "peft")} | {"python": platform.python_version()}


def device_name(device):
    """A device in words: the card's name, or the processor with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads, {platform.machine()}"


def say(text):
    """A progress line, which the course's runner passes on."""
    print(f"[stage] {text}", flush=True)
