"""One stage of training the pocket base: a loop with a progress line, an average of the weights,
and a checkpoint to go on from.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from lib.files.whole_writes import whole_file
from lib.models.devices import fast_arithmetic, map_side_by_side

from .muon import MuonAdamW

# of a model, and of rows where the stage draws them: what is lowered, and numbers to print
Loss = Callable[..., tuple[torch.Tensor, dict[str, torch.Tensor]]]
Decay = Callable[[int], float]  # an average's, by step


def rate(step: int, steps: int, peak: float, warmup: int = 100, cooldown: float = 0.3) -> float:
    """Learning rate at `step`: a short rise, a plateau, a straight fall to zero over the last
    `cooldown` of the steps.
    """
    fall = (steps - step) / max(1, cooldown * steps)
    return peak * min(1, (step + 1) / warmup, max(fall, 0.002))


def constant(decay: float) -> Decay:
    """An exponential moving average's decay by step: `decay`, less at the start."""
    return lambda step: min(decay, (1 + step) / (10 + step))


def power(width: float) -> Decay:
    """The decay by step of an average whose spread is `width` of the training so far, however long
    that is: .05 is short, .1 long.

    The power-function average of Karras et al. 2024 (arXiv 2312.02696, equations 2 and 3): decay (1
    - 1/t)^(g + 1), where the relative deviation is width = sqrt((g + 1) / ((g + 2)^2 (g + 3))).
    """
    low, high = 0.0, 1e4
    for _ in range(100):
        g = (low + high) / 2
        wide = ((g + 1) / ((g + 2) ** 2 * (g + 3))) ** 0.5 > width
        low, high = (g, high) if wide else (low, g)
    return lambda step: (1 - 1 / max(1, step)) ** (g + 1)


class Stage:
    """Trains `model` for `steps` steps of `loss(model) -> (tensor, dict of numbers to print)`; safe
    to kill, goes on where it was.

    With `draw`, a function that gives tensors of B rows each, the loss is `loss(model, *rows)`, a
    mean over rows that do not know of each other: on a processor they are shared out among as many
    threads as torch has, which is half as fast again as sharing out each operation.

    The plateau schedule lets a finished or unfinished stage be prolonged: call again with more
    steps. `averages` are the decays by step (`constant`, `power`) of moving averages of the
    weights; `run` leaves the first of them in the model. A checkpoint is written every `save` steps
    and at the end. In bf16 where the device multiplies it natively, in fp32 elsewhere.
    """

    def __init__(
        self,
        name: str,
        model: torch.nn.Module,
        loss: Loss,
        steps: int,
        peak: float,
        folder: str | Path,
        averages: Sequence[Decay] = (),
        every: int = 50,
        save: int = 250,
        draw: Callable[[], Sequence[torch.Tensor]] | None = None,
    ) -> None:
        self.draw = draw
        self.name, self.model, self.loss, self.steps, self.peak = name, model, loss, steps, peak
        self.file = Path(folder) / f"{name}.pt"
        self.averages, self.every, self.save_every = averages, every, save
        self.optimizer = MuonAdamW(model, peak)
        self.step, self.seconds = 0, 0.0
        self.means = [
            {k: v.detach().clone() for k, v in model.state_dict().items()} for _ in averages
        ]
        if self.file.is_file():
            state = torch.load(
                self.file, weights_only=True, map_location=next(model.parameters()).device
            )
            model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds, self.means = state["step"], state["seconds"], state["means"]
            torch.set_rng_state(state["random"].cpu())

    def _save(self) -> None:
        state = dict(
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            step=self.step,
            seconds=self.seconds,
            means=self.means,
            random=torch.get_rng_state(),
        )
        with whole_file(self.file) as unfinished:
            torch.save(state, unfinished)

    def _average(self) -> None:
        now = self.model.state_dict()
        for decay, mean in zip(self.averages, self.means):
            for k, v in now.items():
                if v.is_floating_point():
                    mean[k].lerp_(v, 1 - decay(self.step))
                else:
                    mean[k].copy_(v)

    def _add_gradients(self) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The backward pass; returns the loss and the numbers to print."""
        rows = self.draw() if self.draw else ()
        total = len(rows[0]) if rows else 1
        device = next(self.model.parameters()).device
        at_once = torch.get_num_threads() if rows and device.type == "cpu" else 1
        parts: list[Sequence[torch.Tensor]] = list(zip(*(t.chunk(at_once) for t in rows))) or [()]

        def add(part: Sequence[torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            with (
                torch.autocast(device.type, torch.bfloat16)
                if fast_arithmetic(device) == "bf16"
                else nullcontext()
            ):
                loss, numbers = self.loss(self.model, *part)
            share = len(part[0]) / total if part else 1
            (loss * share).backward()
            return loss.detach() * share, numbers

        losses, numbers = zip(*map_side_by_side(add, parts, at_once))
        return torch.stack(losses).sum(), numbers[0]

    def run(self, watch: Callable[[int], None] | None = None) -> dict[str, float]:
        """Train to the last step. `watch(step)` is called at each progress line."""
        start = time.time() - self.seconds
        shown: dict[str, float] = {}
        self.model.train()
        while self.step < self.steps:
            lr = rate(self.step, self.steps, self.peak)
            loss, numbers = self._add_gradients()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step(lr)
            self.step += 1
            for k, v in {"loss": loss, **numbers}.items():
                shown[k] = 0.98 * shown.get(k, float(v)) + 0.02 * float(v)
            if self.averages:
                self._average()
            if self.step % self.every == 0 or self.step == self.steps:
                self.seconds = time.time() - start
                left = self.seconds / self.step * (self.steps - self.step)
                words = "  ".join(f"{k} {v:.4g}" for k, v in shown.items())
                print(
                    f"{self.name}: step {self.step}/{self.steps}  {words}  {self.seconds / 60:.1f}"
                    f" min, {left / 60:.1f} left",
                    flush=True,
                )
                if watch:
                    watch(self.step)
            if self.step % self.save_every == 0 or self.step == self.steps:
                self._save()
        if self.averages:
            self.model.load_state_dict(self.means[0])
        self.model.eval()
        return {
            "steps": self.step,
            "seconds": round(self.seconds, 1),
            **{k: round(v, 5) for k, v in shown.items()},
        }
