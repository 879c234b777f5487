"""What each method starts from on each family of base models, and why."""

# What each method starts from on each family, and why. pocket: the best learning rates of the sweep
# in data/results/learning_rates.json (shown in notebooks 02 and 03), and class images that weigh
# less than photos: at weight 1 a full fine-tune of photos whose captions name no place draws them
# in no other. The others are the field's own, from the READMEs of diffusers' examples: dreambooth
# (LoRA 1e-4 for 500 steps; full 5e-6, 800 steps with prior preservation; batch 1),
# dreambooth/README_sdxl (LoRA the same), text_to_image/README_sdxl (full 1e-6, SDXL's only
# published full recipe there). Rank 8 is twice their 4: still a file of megabytes. Guidance: each
# pipeline's default.
_LORA = {"learning_rate": 1e-4, "rank": 8, "steps": 500, "batch_size": 1}


_FULL = {"learning_rate": 5e-6, "steps": 800, "batch_size": 1}


PRESETS = {
    ("lora", "pocket"): {
        "learning_rate": 2.8e-3,
        "rank": 16,
        "targets": "all",
        "prior_weight": 0.3,
    },
    ("dreambooth", "pocket"): {"learning_rate": 8e-4, "prior_weight": 0.3},
    ("lora", "sd1"): _LORA | {"guidance": 7.5},
    ("dreambooth", "sd1"): _FULL | {"guidance": 7.5},
    ("lora", "sd2"): _LORA | {"guidance": 7.5},
    ("dreambooth", "sd2"): _FULL | {"guidance": 7.5},
    ("lora", "sdxl"): _LORA | {"guidance": 5.0},
    ("dreambooth", "sdxl"): _FULL | {"learning_rate": 1e-6, "guidance": 5.0},
}
