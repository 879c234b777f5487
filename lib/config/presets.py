"""What each method starts from on each family of base models, and why."""

from typing import Any

# The field's own recipes, from the READMEs of diffusers' examples/dreambooth: batch size 1; all
# weights with prior preservation take 800 steps at a rate of 5e-6. A LoRA takes 500 there at 1e-4:
# here as many steps as the other, for the two are compared.
_DREAMBOOTH: dict[str, Any] = {"learning_rate": 5e-6, "steps": 800, "batch_size": 1}

# Rank 8 is twice their 4: it is still a file of megabytes.
_LORA: dict[str, Any] = _DREAMBOOTH | {"learning_rate": 1e-4, "rank": 8}

# 150 steps, each method at its own rate: the study of lengths in docs/results.md (300 are likelier
# to the photos, obey less, and take twice as long). The pocket base's pictures are no nearer to
# drawings in 12 steps of sampling than in 8. At guidance 4 a tuned one draws colours that no photo
# has.
_POCKET: dict[str, Any] = {"steps": 150, "sample_steps": 8, "guidance": 2.0}

# (method, family) -> settings that differ from the defaults of `Settings`. Guidance is the default
# of each family's pipeline in diffusers.
PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    ("lora", "pocket"): _POCKET
    | {
        # Of the sweep in data/results/learning_rates.json, shown in notebook 02: the lowest of the
        # best, which are not told apart. It was run with this rank, beside all layers.
        "learning_rate": 4e-3,
        "rank": 16,
        "targets": "all",
        # Class images weigh less than photos: at weight 1 a full fine-tune of photos whose captions
        # name no place draws them in no other.
        "prior_weight": 0.3,
    },
    # The rate of the same sweep by the same rule, shown in notebook 03; the weight is LoRA's, so
    # that the two methods learn from the same loss.
    ("dreambooth", "pocket"): _POCKET | {"learning_rate": 1.2e-3, "prior_weight": 0.3},
    ("lora", "sd1"): _LORA | {"guidance": 7.5},
    ("dreambooth", "sd1"): _DREAMBOOTH | {"guidance": 7.5},
    ("lora", "sd2"): _LORA | {"guidance": 7.5},
    ("dreambooth", "sd2"): _DREAMBOOTH | {"guidance": 7.5},
    # examples/dreambooth/README_sdxl: the same rate as for SD 1.
    ("lora", "sdxl"): _LORA | {"guidance": 5.0},
    # SDXL's only published recipe for all weights: examples/text_to_image/README_sdxl.
    ("dreambooth", "sdxl"): _DREAMBOOTH | {"learning_rate": 1e-6, "guidance": 5.0},
}
