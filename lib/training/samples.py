"""What is looked at along a training, off its clock: samples drawn from fixed seeds."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from lib.dataset.captions import Subject, prompts
from lib.dataset.photo_file import upright
from lib.files import BadInput, say
from lib.models import out_of_memory, reclaim
from lib.models.base import evaluation_mode
from lib.plots import Figure, grid
from lib.step import Step
from lib.step.run_weights import as_saved

SAMPLE_PLACES = ("", "in the forest", "in the snow", "in space")
# Colours come first, shapes then, details last: most of it before the first fixed interval is over.
EARLY_STEPS = (10, 25, 50)

Samples = list[tuple[int, list[Image.Image]]]  # (step, the pictures drawn after it)


def memory_suffices(what: str, step: Step, do: Callable[[], object]) -> bool:
    """Call `do`, and whether memory sufficed for it.

    Where it did not, that is said of `what`, and the training goes on without it.
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
    reclaim(step.base.device)  # only here, where the error is gone, is the memory free
    return False


def samples_due(step: int, every: int, last: int) -> bool:
    """Whether samples are drawn after `step`: after each `every` steps (0: never), after
    `EARLY_STEPS` before the first of those, and after the `last`.
    """
    early = step in EARLY_STEPS and step < every
    return every > 0 and (step % every == 0 or early or step == last)


def draw_samples(step: Step, subject: Subject, run: Path) -> list[Image.Image]:
    """Draw and save pictures of the subject in `SAMPLE_PLACES`, from the same seeds every time.

    They are drawn with the weights as they would be saved now.
    """
    texts = [prompts(subject, place) for place in SAMPLE_PLACES]
    settings = step.settings
    with as_saved(step.weights), evaluation_mode(step.base):
        images = step.base.generate(
            texts, list(range(len(texts))), settings.sample_steps, settings.guidance
        )
    for k, image in enumerate(images):
        image.save(run / "samples" / f"step_{step.taken:04d}_{k}.png")
    return images


def read_samples(run: Path) -> Samples:
    """The samples in a run folder, without those that a killed process left half written."""
    found: dict[int, list[Image.Image]] = {}
    for path in sorted((run / "samples").glob("step_*_*.png")):
        with suppress(BadInput):
            image = upright(path)
            found.setdefault(int(path.stem.split("_")[1]), []).append(image)
    return sorted(found.items())


def sample_progress(
    run: str | Path | Samples,
    labels: Sequence[str] | None = None,
    most: int = 6,
    caption: str = "",
    scale: int = 2,
) -> Figure:
    """The fixed-seed samples of a run along its training, a row for each of at most `most` steps.

    First and last are always among them. `run`: a run folder, or `[(step, [PIL images])]` as a
    watcher sees it. `labels`: what each column shows, such as its prompt. Raises ValueError for a
    run without samples.
    """
    samples = read_samples(Path(run)) if isinstance(run, str | Path) else run
    if not samples:
        raise ValueError(
            "The run has no samples: set sample_every to a number of steps and train again"
        )
    evenly = np.linspace(0, len(samples) - 1, min(most, len(samples)))
    shown = [samples[i] for i in sorted({round(i) for i in evenly})]
    return grid(
        [images for _, images in shown],
        [f"step {step}" for step, _ in shown],
        labels,
        caption,
        "Samples along the training",
        scale,
    )
