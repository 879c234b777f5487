"""Memory for a training: the recipe that there is room for, the base model's weights as that recipe
wants them, and what a step takes.
"""

from contextlib import contextmanager

import torch

from lib.files.errors import BadInput
from lib.files.text import say
from lib.memory.tracker import PeakMemory
from lib.models.devices import free_memory, out_of_memory, reclaim
from lib.step.methods import tuned_parts

# Bytes that a step takes at most for each number of the U-Net, and for each pixel of its pictures,
# where the U-Net is as wide as the pocket base's: what stays far below the memory that is free is
# not forecast, which takes seconds.
A_NUMBER, A_PIXEL, FAR = 20, 8192, 0.5


def choose_recipe(recipe, base):
    """The recipe itself, or the least slow one below it that there is memory for, which is said.
    Raises BadInput where there is none.
    """
    held = 0
    if base.device.type == "cuda":
        base.pipe.unet.to("cpu")  # until it is needed, if it was: pictures are encoded without it
        reclaim(base.device)
    elif is_small(recipe, base):
        return recipe
    else:
        held = sum(p.nbytes for p in base.pipe.unet.parameters())
    from lib.memory.cards import choose_for

    recipe, sentence = choose_for(recipe, base.device, held)
    say(sentence)
    return recipe


def is_small(recipe, base):
    """Whether a step takes far less than the free memory of this machine, by a rough count from
    above.
    """
    numbers, rows = (
        sum(p.numel() for p in base.pipe.unet.parameters()),
        recipe.batch_size * (1 + (recipe.prior_weight > 0)),
    )
    wide = max(1.0, max(base.pipe.unet.config.block_out_channels) / 256)
    return numbers * A_NUMBER + rows * base.resolution**2 * A_PIXEL * wide < FAR * free_memory()


def exact(recipe):
    """The precision in which to read the weights that a recipe trains, where the base's own would
    round them before: fp32, or None.
    """
    return torch.float32 if recipe.method == "dreambooth" and recipe.weights == "fp32" else None


def reload_trained(base, recipe):
    """Load the parts that a recipe trains again from disk, untouched. Raises BadInput where memory
    runs out.
    """
    try:
        base.renew(
            list(tuned_parts(base, recipe)), exact(recipe)
        )  # names alone: the parts themselves must go
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise BadInput(
            "Memory ran out while the base model was loaded again: free memory that other programs"
            " hold, and train again by the same settings to go on."
        ) from error


class PeakMeter:
    """What a training's step takes at its worst moment, in bytes by category: `peak`, None until it
    is known.

    On the CPU that is measured in the second step, when the optimiser's state is there, and
    wherever a batch has larger pictures. On a card it is the forecast's, for following each tensor
    there takes seconds, and CUDA's own counter measures the sum.
    """

    def __init__(self, settings, device):
        self.peak, self.largest, self.warm = None, 0, False
        if device.type == "cuda":
            from lib.memory.cards import weigh

            self.resume(weigh(settings)["by_category"])

    def resume(self, peak):
        """Go on with the `peak` of a checkpoint."""
        self.peak = self.peak or peak
        self.largest = float("inf") if self.peak else 0

    @contextmanager
    def during(self, step, size, sources):
        """Around a `Step` on a batch of `size` numbers, taken from `sources`."""
        worth, self.warm = self.warm and size > self.largest, True
        if not worth:
            yield
            return
        with PeakMemory(step.parts, step.optimizer, sources) as measured:
            yield
        self.peak, self.largest = measured.by_category, size
