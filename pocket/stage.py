"""One stage of training the pocket base: a loop with a progress line, an average of the weights,
and a checkpoint to go on from.
"""

import os
import time
from pathlib import Path

import torch

from .muon import MuonAdamW


def rate(step, steps, peak, warmup=100, cooldown=0.3):
    """Learning rate at `step`: a short rise, a plateau, a straight fall to zero over the last
    `cooldown` of the steps.
    """
    fall = (steps - step) / max(1, cooldown * steps)
    return peak * min(1, (step + 1) / warmup, max(fall, 0.002))


class Stage:
    """Trains `model` for `steps` steps of `loss(model) -> (tensor, dict of numbers to print)`; safe
    to kill, goes on where it was.

    The plateau schedule lets a finished or unfinished stage be prolonged: call again with more
    steps. `average` is the decay of the exponential moving average of the weights (0 keeps none).
    `run` leaves the averaged weights in the model.
    """

    def __init__(
        self, name, model, loss, steps, peak, folder, average=0.0, every=50, save=250, limit=None
    ):
        self.name, self.model, self.loss, self.steps, self.peak = name, model, loss, steps, peak
        self.file = Path(folder) / f"{name}.pt"
        self.average, self.every, self.save_every, self.limit = average, every, save, limit
        self.optimizer = MuonAdamW(model, peak)
        self.step, self.seconds = 0, 0.0
        self.mean = (
            {k: v.detach().clone() for k, v in model.state_dict().items()} if average else None
        )
        if self.file.is_file():
            state = torch.load(self.file, weights_only=True)
            model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds, self.mean = state["step"], state["seconds"], state["mean"]
            torch.set_rng_state(state["random"])

    def _save(self):
        self.file.parent.mkdir(parents=True, exist_ok=True)
        state = dict(
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            step=self.step,
            seconds=self.seconds,
            mean=self.mean,
            random=torch.get_rng_state(),
        )
        torch.save(state, self.file.with_suffix(".part"))
        os.replace(self.file.with_suffix(".part"), self.file)

    def _average(self):
        decay = min(self.average, (1 + self.step) / (10 + self.step))
        for k, v in self.model.state_dict().items():
            if v.is_floating_point():
                self.mean[k].lerp_(v, 1 - decay)
            else:
                self.mean[k].copy_(v)

    def run(self, watch=None):
        """Train to the last step. `watch(step)` is called at each progress line."""
        start, shown = time.time() - self.seconds, {}
        device = next(self.model.parameters()).device.type
        self.model.train()
        while self.step < self.steps:
            lr = rate(self.step, self.steps, self.peak)
            with torch.autocast(device, torch.bfloat16):
                loss, numbers = self.loss(self.model)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step(lr)
            self.step += 1
            for k, v in {"loss": loss.detach(), **numbers}.items():
                shown[k] = 0.98 * shown.get(k, float(v)) + 0.02 * float(v)
            if self.average:
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
        if self.average:
            self.model.load_state_dict(self.mean)
        self.model.eval()
        return {
            "steps": self.step,
            "seconds": round(self.seconds, 1),
            **{k: round(v, 5) for k, v in shown.items()},
        }
