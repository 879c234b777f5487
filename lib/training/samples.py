"""What is looked at along a training, off its clock: fixed-seed samples, and what else is left out
where memory does not suffice.
"""

from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from lib.dataset.captions import prompts
from lib.dataset.photo_file import upright
from lib.files.errors import BadInput
from lib.files.text import say
from lib.models.base import at_rest
from lib.models.devices import out_of_memory, reclaim
from lib.plots.image_grid import grid
from lib.step.run_weights import as_saved

SAMPLE_PLACES = ("", "in the forest", "in the snow", "in space")


def draw(base, dataset, step, run, state):
    """Add `sample` to the state's, as long as memory suffices for that."""
    if state.draws:
        state.draws = fits(
            base,
            step,
            "samples",
            lambda: state.samples.append((step.taken, sample(base, dataset, step, run))),
        )


def read_samples(step, run):
    """[(step, its pictures)] that lie in a run folder, until `step`; later ones are deleted, for
    they will be drawn again.
    """
    drawn = {}
    for path in sorted((run / "samples").glob("step_[0-9]*_[0-9].png")):
        at, image = int(path.stem.split("_")[1]), None
        with suppress(BadInput):  # the process was killed while it wrote this one
            image = upright(path) if at <= step else None
        if image:
            drawn.setdefault(at, []).append(image)
        else:
            path.unlink()
    return sorted(drawn.items())


def fits(base, step, what, do):
    """Call `do`; False where memory did not suffice, which is said: from then on it is left out,
    and the training goes on.
    """
    try:
        do()
        return True
    except (RuntimeError, MemoryError, BadInput) as error:
        if not out_of_memory(error):
            raise
        say(
            f"memory does not suffice for {what} at step {step.taken}: the training goes on without"
        )
    reclaim(base.device)  # only here, where the error is gone, is the memory free
    return False


def sample(base, dataset, step, run):
    """Fixed-seed pictures of the subject in `SAMPLE_PLACES`, drawn with the weights as they would
    be saved now.
    """
    texts = [prompts(dataset.subject, place) for place in SAMPLE_PLACES]
    with as_saved(step.weights), at_rest(base):
        images = base.generate(
            texts, list(range(len(texts))), step.settings.sample_steps, step.settings.guidance
        )
    for k, image in enumerate(images):
        image.save(run / "samples" / f"step_{step.taken:04d}_{k}.png")
    return images


def sample_progress(run, labels=None, most=5, caption="", scale=2):
    """The fixed-seed samples of a run along its training, a row for each of at most `most` steps,
    first and last always among them.

    `run`: a run folder, or `[(step, [PIL images])]` as a watcher sees it. `labels`: what each
    column shows, such as its prompt.
    """
    if isinstance(run, str | Path):
        files = {}
        for path in sorted((Path(run) / "samples").glob("step_*_*.png")):
            _, step, k = path.stem.split("_")
            files.setdefault(int(step), {})[int(k)] = path
        run = [
            (step, [Image.open(p).convert("RGB") for _, p in sorted(some.items())])
            for step, some in sorted(files.items())
        ]
    if not run:
        raise ValueError(
            "The run has no samples: set sample_every to a number of steps and train again"
        )
    kept = [
        run[i]
        for i in sorted({round(i) for i in np.linspace(0, len(run) - 1, min(most, len(run)))})
    ]
    return grid(
        [images for _, images in kept],
        [f"step {step}" for step, _ in kept],
        labels,
        caption,
        "Samples along the training",
        scale,
    )
