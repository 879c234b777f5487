"""The ladder of recipes: what to give up for memory, the least slow first; the choice for a card,
and the step down when memory runs out.

Why in this order, from arithmetic and bytes (data/results/forecast.json); seconds on a GPU are
still to be measured.

LoRA:

- checkpointing the largest transformers: about half of the activations, for part of a second
  forward pass
- checkpointing all: nearly all activations, for a complete second forward pass, a third of a step's
  arithmetic
- NF4: most of the frozen weights, which are rounded and written out again for every product
- 8-bit moments: little, for so few weights
- the pictures of a batch one by one (`accumulate`): the last activations, for kernels that are too
  small to fill a card; last because it is of use to larger batches alone

DreamBooth:

- 8-bit moments and bf16 weights: most of all, for little arithmetic (a random number for two
  weights)
- the largest transformers next, since only when activations are few do the gradients count that an
  update within the backward pass, in many small kernels, frees
- checkpointing all: the most time
- no pictures one by one: all gradients would stay from pass to pass, which the update within the
  backward pass frees, and in bf16 their sums would be rounded
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from lib.config import Settings
from lib.files import BadInput
from lib.files.text import rough_size
from lib.step.quantization import supported_settings

# For each method: changes of settings, cheapest first. A rung counts on those above it, whose
# setting it may take further; one that is in force already is passed over.
RUNGS = {
    "lora": (
        ({"checkpointing": "largest"}, "gradient checkpointing of the largest transformers"),
        ({"checkpointing": "all"}, "gradient checkpointing"),
        ({"quantize": "nf4"}, "the frozen layers in 4 bits"),
        ({"optimizer": "adamw8bit"}, "8-bit moments"),
    ),
    "dreambooth": (
        ({"optimizer": "adamw8bit"}, "8-bit moments"),
        ({"weights": "bf16", "precision": "auto"}, "weights in bf16, rounded stochastically"),
        ({"checkpointing": "largest"}, "gradient checkpointing of the largest transformers"),
        ({"fused_backward": True}, "weights updated within the backward pass"),
        ({"checkpointing": "all"}, "gradient checkpointing"),
    ),
}


def rungs_of(settings: Settings) -> tuple[tuple[dict[str, Any], str], ...]:
    """The rungs that there are for `settings`."""
    rungs = RUNGS[settings.method]
    if settings.method == "lora":
        one_by_one = {"accumulate": settings.batch_size}
        return (*rungs, (one_by_one, "the pictures of a batch one by one"))
    if settings.accumulate > 1:  # asked for, and it excludes this
        return tuple(rung for rung in rungs if "fused_backward" not in rung[0])
    return rungs


def recipes(
    settings: Settings, device: torch.device | None = None
) -> Iterator[tuple[Settings, tuple[str, ...]]]:
    """Each (settings, words of what was given up), from `settings` down to the foot of the ladder.

    `device` as `step_down` has it.
    """
    rungs = [rung for rung in rungs_of(settings) if would_change(settings, rung[0])]
    lower = settings, ""
    while lower:
        recipe, _ = lower
        yield recipe, tuple(words for changes, words in rungs if not would_change(recipe, changes))
        lower = step_down(recipe, device)


def choose_rung(
    settings: Settings,
    available: int,
    forecast_bytes: Callable[[Settings], int],
    where: str = "the card",
    device: torch.device | None = None,
) -> tuple[Settings, int, str]:
    """The least slow recipe from `settings` down that takes `available` bytes or fewer.

    Returns (settings, bytes that it takes, sentence). Rungs that `device`, if given, cannot take
    are passed over. Raises BadInput if none fits `where`, with what the smallest takes.
    """
    sizes: list[int] = []
    for recipe, given_up in recipes(settings, device):
        sizes.append(forecast_bytes(recipe))
        if sizes[-1] <= available:
            return recipe, sizes[-1], _choice(given_up, sizes, available, where)
    raise BadInput(
        f"No recipe for {settings.method} on '{settings.base}' fits {where}: the smallest takes"
        f" {rough_size(min(sizes))} and there are {rough_size(max(available, 0))} to be had:"
        " lower the resolution or batch_size, leave out the class images (prior_weight 0), or take"
        f" {'a smaller base' if settings.method == 'lora' else 'LoRA or a smaller base'}."
    )


def _choice(given_up: tuple[str, ...], sizes: list[int], available: int, where: str) -> str:
    takes = f"{rough_size(sizes[-1])} of the {rough_size(available)} to be had on {where}"
    if not given_up:
        return f"Chosen: the plain recipe, which takes {takes}."
    return (
        f"Chosen: {'; '.join(given_up)}: it takes {takes}, and a rung higher it would be"
        f" {rough_size(sizes[-2])}."
    )


def step_down(
    settings: Settings, device: torch.device | None = None
) -> tuple[Settings, str] | None:
    """(settings one rung lower, what that means in words), or None at the foot of the ladder.

    Rungs that `device`, where one is given, cannot take (no bitsandbytes) are passed over.
    """
    rungs = rungs_of(settings)
    for k, (changes, words) in enumerate(rungs):
        if any(
            changes.keys() & below.keys() and not would_change(settings, below)
            for below, _ in rungs[k:]
        ):
            continue  # this rung is in force, or one further down in the same setting
        lower = settings.replace(**changes)
        if device is not None:
            lower = supported_settings(lower, device)
        if lower != settings:
            return lower, words
    return None


def would_change(settings: Settings, changes: Mapping[str, Any]) -> bool:
    """Whether `changes` would change anything."""
    return settings.replace(**changes) != settings
