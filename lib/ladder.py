"""The ladder of recipes: what to give up for memory, the least slow first, and the step down when memory runs out."""

# For each method: changes of settings, cheapest first. A rung counts on those above it; one that is in force already is passed over.
RUNGS = {
    "lora": (
        ({"checkpointing": True}, "gradient checkpointing, a third more time a step"),
        ({"quantize": "nf4"}, "the frozen layers in 4 bits"),
        ({"optimizer": "adamw8bit"}, "8-bit moments"),
    ),
    "dreambooth": (
        ({"fused_backward": True}, "each weight updated within the backward pass"),
        ({"optimizer": "adamw8bit"}, "8-bit moments"),
        ({"checkpointing": True}, "gradient checkpointing, a third more time a step"),
        ({"weights": "bf16", "precision": "auto"}, "weights in bf16, rounded stochastically"),
    ),
}


def step_down(settings):
    """(settings one rung lower, what that means in words), or None at the foot of the ladder."""
    for changes, words in RUNGS[settings.method]:
        lower = settings.replace(**changes)
        if lower != settings:
            return lower, words
    return None


def out_of_memory(error):
    """Whether an exception says that memory ran out, on a card or on the CPU."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator" in str(error) or "CUDA out of memory" in str(error)
    )
