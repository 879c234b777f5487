"""Memory for a training: the recipe that it suffices for, and what a step takes.

The recipe decides too in which precision the base model's weights are read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lib.config import Settings
from lib.files import BadInput, say
from lib.memory import PeakMemory
from lib.memory.known_cards import unused_card
from lib.models import Base, out_of_memory, reclaim
from lib.models.devices import free_memory
from lib.step import Step, tuned_parts

# Bytes that a step takes at most for each number of the U-Net, and for each pixel of its pictures,
# where the U-Net is as wide as the pocket base's: what stays far below the memory that is free is
# not forecast, which takes seconds.
BYTES_PER_NUMBER = 20
BYTES_PER_PIXEL = 8192
SMALL_SHARE = 0.5  # of the free memory


def choose_recipe(recipe: Settings, base: Base) -> Settings:
    """The recipe itself, or the least slow one below it that memory suffices for, which is said.

    Raises BadInput where there is none.
    """
    held = 0
    if base.device.type == "cpu" and (unused := unused_card()):
        say(unused)
    if base.device.type == "cuda":
        base.stored_denoiser.to(
            "cpu"
        )  # until it is needed, if it was: pictures are encoded without it
        reclaim(base.device)
    elif is_small(recipe, base):
        return recipe
    else:
        held = sum(p.nbytes for p in base.stored_denoiser.parameters())
    from lib.memory.cards import choose_recipe_for  # late: a small training forecasts nothing

    recipe, sentence = choose_recipe_for(recipe, base.device, held)
    say(sentence)
    return recipe


def is_small(recipe: Settings, base: Base) -> bool:
    """Whether a step takes far less than the free memory, by a rough count from above."""
    numbers = sum(p.numel() for p in base.stored_denoiser.parameters())
    width = max(1.0, max(base.stored_denoiser.config.block_out_channels) / 256)
    pixels = recipe.batch_size * (1 + (recipe.prior_weight > 0)) * base.resolution**2
    needed = numbers * BYTES_PER_NUMBER + pixels * BYTES_PER_PIXEL * width
    return needed < SMALL_SHARE * free_memory()


def dtype_to_train(recipe: Settings) -> torch.dtype | None:
    """In which precision to read the weights that a recipe trains; None for the base's own.

    fp32 where the base's own would round them before they are trained.
    """
    return torch.float32 if recipe.method == "dreambooth" and recipe.weights == "fp32" else None


def reload_trained_parts(base: Base, recipe: Settings) -> None:
    """Load the parts that a recipe trains again from disk, untouched.

    Raises BadInput where memory runs out.
    """
    names = list(tuned_parts(base, recipe))  # names alone: the parts themselves must go
    try:
        base.read_again(names, dtype_to_train(recipe))
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise BadInput(
            "Memory ran out while the base model was loaded again: free memory that other programs"
            " hold, and train again by the same settings to go on."
        ) from error


class PeakMeter:
    """What a training's step takes at its worst moment.

    `peak`: bytes by category, None until it is known. On the CPU that is measured in the second
    step, when the optimiser's state is there, and wherever a batch has larger pictures. On a card
    it is the forecast's, for following each tensor there takes seconds, and CUDA's own counter
    measures the sum.
    """

    def __init__(self, settings: Settings, device: torch.device) -> None:
        self.peak: dict[Any, int] | None = None
        self.largest: float = 0  # numbers in the largest batch that was measured
        self.first_step = True
        if device.type == "cuda":
            from lib.memory.cards import forecast_recipe  # late: on the CPU nothing is forecast

            self.resume(forecast_recipe(settings)["by_category"])

    def resume(self, peak: dict[str, int] | None) -> None:
        """Go on with the `peak` of a checkpoint."""
        self.peak = self.peak or peak
        self.largest = float("inf") if self.peak else 0

    @contextmanager
    def during(self, step: Step, size: int, inputs: Any) -> Iterator[None]:
        """Around a `Step` on a batch of `size` numbers, taken from `inputs`."""
        if self.first_step or size <= self.largest:
            self.first_step = False
            yield
            return
        with PeakMemory(step.parts, step.optimizer, inputs) as measured:
            yield
        self.peak, self.largest = measured.by_category, size
