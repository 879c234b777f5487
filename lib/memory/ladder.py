"""The ladder of recipes: what to give up for memory, the least slow first; the choice for a card,
and the step down when memory runs out.

Why in this order, from arithmetic and bytes (data/results/forecast.json); seconds on a GPU are
still to be measured. LoRA. Checkpointing the largest transformers: about half of the activations,
for part of a second forward pass. Checkpointing all: nearly all activations, for a whole second
forward pass, a third of a step's arithmetic. NF4: most of the frozen weights, which are rounded and
written out again for every product. 8-bit moments: little, for so few weights. DreamBooth. 8-bit
moments and bf16 weights: most of all, for little arithmetic (a random number for two weights). The
largest transformers next, since only when activations are few do the gradients count that an update
within the backward pass, in many small kernels, frees. Checkpointing all: the most time.
"""

from lib.files.errors import BadInput
from lib.files.text import gib

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


def recipes(settings, device=None):
    """Each (settings, words of what was given up), from `settings` as they are down to the foot of
    the ladder; see `step_down`.
    """
    rungs, lower = (
        [rung for rung in RUNGS[settings.method] if changed(settings, rung[0])],
        (settings, None),
    )
    while lower:
        yield lower[0], tuple(words for changes, words in rungs if not changed(lower[0], changes))
        lower = step_down(lower[0], device)


def choose(settings, room, weigh, where="the card", device=None):
    """(settings, bytes, sentence) of the least slow recipe from `settings` down that takes no more
    than `room` bytes.

    weigh(settings) -> bytes, such as `lib.memory.forecasting`'s. Rungs that `device`, if given,
    cannot take are passed over. Raises BadInput if none fits `where`, with what the smallest takes.
    """
    weighed = []
    for recipe, words in recipes(settings, device):
        weighed.append(weigh(recipe))
        if weighed[-1] <= room:
            size = f"{gib(weighed[-1])} of the {gib(room)} to be had on {where}"
            if not words:
                return recipe, weighed[-1], f"Chosen: the plain recipe, which takes {size}."
            given_up = "; ".join(words)
            return (
                recipe,
                weighed[-1],
                (
                    f"Chosen: {given_up}: it takes {size}, and a rung higher it would be"
                    f" {gib(weighed[-2])}."
                ),
            )
    raise BadInput(
        f"No recipe for {settings.method} on '{settings.base}' fits {where}: the smallest takes"
        f" {gib(min(weighed))} and there are {gib(max(room, 0))} to be had: lower the resolution or"
        " batch_size, leave out the class images (prior_weight 0), or take"
        f" {'a smaller base' if settings.method == 'lora' else 'LoRA or a smaller base'}."
    )


def step_down(settings, device=None):
    """(settings one rung lower, what that means in words), or None at the foot of the ladder.

    Rungs that `device`, where one is given, cannot take (no bitsandbytes) are passed over.
    """
    from lib.step.quantization import settle

    rungs = RUNGS[settings.method]
    for k, (changes, words) in enumerate(rungs):
        if any(
            changes.keys() & below.keys() and not changed(settings, below) for below, _ in rungs[k:]
        ):
            continue  # this rung is in force, or one further down in the same setting
        lower = settings.replace(**changes)
        if device is not None:
            lower = settle(lower, device)
        if lower != settings:
            return lower, words
    return None


def changed(settings, changes):
    """Whether `changes` would change anything."""
    return settings.replace(**changes) != settings
