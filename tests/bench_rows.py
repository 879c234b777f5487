"""Rows as PocketBench writes them, with a known effect, for the tests of what reads them."""

import math

import numpy as np

COSTS = {
    "seconds_per_step": 0.2,
    "train_seconds": 40.0,
    "seconds_to_half": 10.0,
    "seconds_to_best": 30.0,
    "peak_bytes": 90 * 2**20,
    "file_bytes": 2_500_000,
}
SCORES = {
    "dino": 0.6,
    "dino_train": 0.63,
    "clip_i": 0.7,
    "clip_i_train": 0.72,
    "clip_t": 0.3,
    "diversity": 0.05,
    "memorising": 0.03,
    "nearest": 0.01,
    "consistency": 0.06,
    "pres": 0.02,
    "drift": 0.1,
}
LATER = {
    "dino_new": 0.5,
    "dino_place": 0.65,
    "place_drawn": 0.9,
    "colour_drawn": 0.7,
    "dino_colour": 0.45,
    "clip_t_new": 0.3,
    "clip_t_place": 0.31,
    "clip_t_colour": 0.28,
    "loss_train": 0.2,
    "loss_held_out": 0.3,
    "loss_gap": 0.1,
    "prompt_spread": 0.05,
    "pres_trained": 0.01,
    "obedience": -0.1,
}


def bench(
    subjects=12,
    seeds=3,
    study="main",
    noise=0.005,
    methods=("lora", "dreambooth"),
    seed=1,
    ratios=None,
    **gaps,
):
    """Rows of both methods: DreamBooth's scores are LoRA's plus `gaps`, its costs LoRA's times
    `ratios`; subjects differ widely.
    """
    draw, other, rows = np.random.default_rng(seed), np.random.default_rng(seed + 1000), []
    for s in range(subjects):
        level = draw.normal(0, 0.1)
        for k in range(seeds):
            for method in methods:
                full = method == "dreambooth"
                scores = {
                    m: v + level + (gaps.get(m, 0) if full else 0) + draw.normal(0, noise)
                    for m, v in SCORES.items()
                }
                scores |= {
                    m: v + level + (gaps.get(m, 0) if full else 0) + other.normal(0, noise)
                    for m, v in LATER.items()
                }
                costs = {
                    m: v * math.exp(level) * ((ratios or {}).get(m, 1) if full else 1)
                    for m, v in COSTS.items()
                }
                rows.append(
                    {
                        "study": study,
                        "subject": f"s{s:02}",
                        "variant": "good",
                        "method": method,
                        "seed": k,
                        "rank": None if full else 16,
                        "base_hash": "b",
                        "judge": "pocket",
                        "device": "CPU",
                        **costs,
                        **scores,
                    }
                )
    return rows


def base_rows(rows, dino=0.1):
    """The untouched base model's rows: no seed, no costs."""
    return [
        {
            "study": study,
            "subject": s,
            "variant": "good",
            "method": "base",
            "seed": None,
            "dino": dino,
            "base_hash": None,
            "judge": "pocket",
            "device": "CPU",
            "train_seconds": None,
        }
        for study, s in sorted({(r["study"], r["subject"]) for r in rows})
    ]
