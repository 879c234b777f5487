"""What people read in place of the names in code and files: methods, contestants and measures."""

METHOD_NAMES = {"lora": "LoRA", "dreambooth": "DreamBooth"}

# The rows of a comparison, as summary.json names them.
CONTESTANT_NAMES = {
    "base_model": "base model (floor)",
    "real_photos": "real photos (ceiling)",
    **METHOD_NAMES,
    "extracted": "DreamBooth cut to a LoRA",
    "extracted_twice": "the same, at twice the rank",
    "kohya_lora": "Kohya's LoRA",
}

# What was measured, as log.jsonl, metrics.json, summary.json and the bench's rows name it.
MEASURE_NAMES = {
    "seconds_per_step": "seconds a step",
    "train_seconds": "seconds of training",
    "peak_bytes": "peak memory",
    "file_bytes": "file",
    "dino": "DINO",
    "dino_new": "DINO, new places",
    "dino_place": "DINO, asked for a place",
    "dino_colour": "DINO, asked for a colour",
    "clip_i": "CLIP-I",
    "clip_t": "CLIP-T",
    "clip_t_new": "CLIP-T, new places",
    "clip_t_place": "CLIP-T, asked for a place",
    "clip_t_colour": "CLIP-T, asked for a colour",
    "place_drawn": "place drawn",
    "colour_drawn": "colour drawn",
    "dino_train": "DINO, training photos",
    "memorising": "train - held-out",
    "nearest": "nearest photo",
    "loss_train": "loss, training photos",
    "loss_held_out": "loss, held-out photos",
    "loss_gap": "loss gap",
    "pres": "PRES - base",
    "pres_trained": "PRES, trained words",
    "obedience": "class obeyed",
    "drift": "drift",
    "diversity": "diversity",
    "consistency": "consistency over seeds",
    "prompt_spread": "spread over prompts",
}
