"""The one training loop, for both methods. `python -m lib.train settings.json` runs it from the shell.

Every run of the same data and seed sees the same pictures, noise and timesteps in the same order, whichever weights train.
"""

import hashlib
import shutil
import sys
from pathlib import Path

import torch
from PIL import Image
from torch.utils._pytree import tree_map

from .base import load_base
from .memory import PeakMemory
from .methods import save_weights
from .photos import load_dataset, prompts
from .record import FLUSH, Clock, flush, metrics, say
from .settings import BadInput, Settings, write_json
from .step import Step

SAMPLE_PLACES = ("", "in the forest", "in the snow", "in space")


class State:
    """What a watcher sees after each step: `step`, `steps`, `losses` (so far), `seconds` of training, `samples` [(step, images)]."""

    def __init__(self, steps):
        self.steps, self.step, self.seconds, self.losses, self.samples, self.stopping = steps, 0, 0.0, [], [], False

    def stop(self):
        """End the training after this step; what was learnt is saved and usable."""
        self.stopping = True


def cache_latents(base, items):
    """Latents and conditions of a list of items, encoded once: (mean, deviation, conditions, index of each item's caption in them)."""
    mean, std = base.encode_images([Image.open(item.path).convert("RGB") for item in items])
    captions = sorted({item.caption for item in items})
    return mean, std, base.conditions(captions), torch.tensor([captions.index(i.caption) for i in items], device=base.device)


def gather(base, sources, batch, train_steps):
    """A batch of `batches` on the device, as a step takes it: (latents, noise, timesteps, conditions), instance images first."""
    chosen, wobble, noise, when = batch
    wobble, noise, when = (t.to(base.device) for t in (wobble, noise, when))
    chosen = [c.to(base.device) for c in chosen]
    mean, std = (torch.cat([s[k][c] for s, c in zip(sources, chosen)]) for k in (0, 1))
    rows = [tree_map(lambda t, at=s[3][c]: t[at], s[2]) for s, c in zip(sources, chosen)]
    return mean + std * wobble, noise, (when * train_steps).long(), tree_map(lambda *parts: torch.cat(parts), *rows)


def batches(settings, sizes, latent_shape):
    """Endless (indices per source, posterior noise, diffusion noise, timesteps in [0, 1)), all from the seed alone.

    Each source's pictures pass in a fresh order, none again before all have passed; timesteps are stratified over the batch,
    which lowers the variance of the loss (Kingma et al. 2021, appendix I.1).
    """
    generator = torch.Generator().manual_seed(settings.seed)
    waiting = [torch.empty(0, dtype=torch.long) for _ in sizes]
    while True:
        chosen = []
        for k, size in enumerate(sizes):
            while len(waiting[k]) < settings.batch_size:
                waiting[k] = torch.cat([waiting[k], torch.randperm(size, generator=generator)])
            chosen.append(waiting[k][: settings.batch_size])
            waiting[k] = waiting[k][settings.batch_size :]
        shape = (settings.batch_size * len(sizes), *latent_shape)
        strata = [
            (torch.randperm(settings.batch_size, generator=generator) + torch.rand(settings.batch_size, generator=generator))
            / settings.batch_size
            for _ in sizes
        ]
        yield chosen, torch.randn(shape, generator=generator), torch.randn(shape, generator=generator), torch.cat(strata)


def prepare_run(settings, dataset):
    """Check that the run can begin and make its folder. Raises BadInput before anything slow."""
    if settings.prior_weight > 0 and not dataset.class_images:
        raise BadInput(
            f"Data set {dataset.root} has no class images, which prior_weight {settings.prior_weight} needs: "
            "make them in notebook 01, or set prior_weight to 0."
        )
    run = Path(settings.output)
    if run.exists() and not run.is_dir() or run.is_dir() and any(run.iterdir()) and not (run / "settings.json").is_file():
        raise BadInput(f"Output {run} exists and is no run folder: choose another folder.")
    shutil.rmtree(run, ignore_errors=True)
    (run / "samples").mkdir(parents=True)
    settings.save(run / "settings.json")
    return run


def train(settings, base=None, watchers=()):
    """Train by `settings` and return the run folder. `base`, a fresh base model, is used up if given.

    Each of `watchers` is called as watcher(state) after every step; see `State`. Raises BadInput before anything slow if the settings,
    the data set or the base do not fit.
    """
    dataset = load_dataset(settings.data)
    run = prepare_run(settings, dataset)
    base = base or load_base(settings.base)
    base.check_words(dataset.subject.class_noun, dataset.subject.identifier)
    say(f"caching the latents of {len(dataset.train)} instance and {len(dataset.class_images)} class images")
    sources = [cache_latents(base, dataset.train)]
    if settings.prior_weight > 0:
        sources.append(cache_latents(base, dataset.class_images))
    step = Step(base, settings)
    stream = batches(settings, [len(s[0]) for s in sources], sources[0][0].shape[1:])
    train_steps, state, losses, clock, peak = step.scheduler.config.num_train_timesteps, State(settings.steps), [], Clock(base.device), None

    def one_step():
        losses.append(step(*gather(base, sources, next(stream), train_steps)))

    with open(run / "log.jsonl", "w", encoding="utf-8") as log:
        while state.step < settings.steps and not state.stopping:
            with clock:
                if state.step == 1:  # the second step: by then the optimiser's state is there
                    with PeakMemory(step.unet, step.optimizer, sources) as peak:
                        one_step()
                else:
                    one_step()
            state.step, state.seconds = state.step + 1, clock.total
            if state.step % FLUSH == 0 or state.step == settings.steps:
                flush(log, losses, state, clock, settings)
            if settings.sample_every and state.step % settings.sample_every == 0:
                state.samples.append((state.step, sample(base, dataset, settings, run, state.step)))
            for watch in watchers:
                watch(state)
        flush(log, losses, state, clock, settings)
    base.unet.eval()
    file_bytes = save_weights(base, settings, run)
    data = {"data_sha256": hashlib.sha256((dataset.root / "dataset.json").read_bytes()).hexdigest()}
    write_json(run / "metrics.json", data | metrics(settings, state, clock, peak, step.weights, file_bytes, base))
    return run


def sample(base, dataset, settings, run, step):
    """Fixed-seed pictures of the subject in `SAMPLE_PLACES`, drawn with the weights as they are and saved in the run. Off the clock."""
    texts = [prompts(dataset.subject, place) for place in SAMPLE_PLACES]
    base.unet.eval()
    images = base.generate(texts, list(range(len(texts))), settings.sample_steps, settings.guidance)
    base.unet.train()
    for k, image in enumerate(images):
        image.save(run / "samples" / f"step_{step:04d}_{k}.png")
    return images


if __name__ == "__main__":
    try:
        print(train(Settings.load(sys.argv[1] if len(sys.argv) > 1 else "settings.json")))
    except BadInput as error:
        sys.exit(str(error))
