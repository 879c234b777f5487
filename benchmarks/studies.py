"""PocketBench's plan: which runs each study asks for, a run being a flat dict of the settings that
the studies vary.
"""

from dataclasses import fields
from typing import Any

from benchmarks import learning_rates
from lib.config.presets import PRESETS
from lib.config.settings import METHODS, Settings
from lib.dataset.captions import KINDS
from lib.memory.ladder import recipes
from lib.models.families import preset
from pocket.objects import CLASSES

RANKS = (1, 4, 16, 64)
STEPS = PRESETS["lora", "pocket"]["steps"]  # of every training, and DreamBooth's too
# Settings that a run names only where they are not the default, so that a run which leaves them
# alone keeps its hash.
SELDOM = {
    "text_encoder_rate",
    "precision",
    "checkpointing",
    "optimizer",
    "weights",
    "fused_backward",
    "quantize",
    "prior",
}
# DreamBooth's change of the weights cut to a LoRA, at so many times the rank of LoRA's preset.
CUTS = {"extracted": 1, "extracted_twice": 2}
# What an anchor of this weight leaves of a change that nothing renews: 61, 22 and 5 %.
ANCHORS = (0.5, 1.5, 3.0)
TEXT_SHARES = (0.05, 0.2, 1.0)  # of the U-Net's learning rate: what the text encoder trains at
# Of every study but the main one: so many of its subjects, and so many training seeds at most.
SUBJECTS, SEEDS = 12, 2
PLAIN_SEEDS = 3  # of plain fp32 training, whose spread over seeds other recipes are held against
# What else than the preset's class images may hold the class: settings, or (variant) other class
# images. A teacher is the model without its adapter, so it is LoRA's alone.
WAYS: dict[str, dict[str, Any]] = {
    "nothing": {"prior_weight": 0.0},
    "weight 1": {"prior_weight": 1.0},
    "a quarter as many": {"variant": "few_class_images"},
    "one wording": {"variant": "one_wording"},
    "teacher": {"prior": "teacher"},
} | {f"anchor {weight:g}": {"prior": "anchor", "prior_weight": weight} for weight in ANCHORS}


def job(
    subject: str, method: str, seed: int = 0, variant: str = "good", **changes: Any
) -> dict[str, Any]:
    """One run as a flat dict: the settings that the studies vary, as the preset has them unless
    changed; of `SELDOM` what is changed.
    """
    if method == "base":
        return {"subject": subject, "variant": variant, "method": method}
    if method in CUTS:
        whole = job(subject, "dreambooth", seed, variant, **changes)
        rank = CUTS[method] * preset("lora", data="-", output="-").rank
        return whole | {"method": method, "rank": rank}
    changes = {"steps": STEPS} | changes
    s = preset(method, data="-", output="-", seed=seed, **changes)
    own = {"rank": s.rank, "targets": s.targets} if method == "lora" else {}
    common = {
        "prior_weight": s.prior_weight,
        "learning_rate": s.learning_rate,
        "steps": s.steps,
        "cooldown": s.cooldown,
        "seed": seed,
    }
    return {"subject": subject, "variant": variant, "method": method} | own | common | seldom(s)


def cut_from(cut: dict[str, Any]) -> dict[str, Any]:
    """The DreamBooth training that a job of `CUTS` is cut from."""
    return {key: value for key, value in cut.items() if key != "rank"} | {"method": "dreambooth"}


def seldom(settings: Settings) -> dict[str, Any]:
    """The settings of `SELDOM` that are not the default, by name."""
    values = {
        f.name: (getattr(settings, f.name), f.default) for f in fields(settings) if f.name in SELDOM
    }
    return {name: value for name, (value, default) in values.items() if value != default}


def low_memory(method: str) -> tuple[dict[str, Any], ...]:
    """What each recipe of the study "recipes" changes: nothing ("auto" arithmetic: bf16 where it is
    fast), one thing, and all at once.

    Checkpointing alone is not run: it gives the very numbers of the run without it, bit for bit
    (tests/step/test_low_memory.py). The last, the foot of `lib.memory.ladder`, has it too.
    """
    alone = {
        "lora": ({"quantize": "int8"}, {"quantize": "nf4"}),
        "dreambooth": ({"fused_backward": True},),
    }[method]
    *_, (foot, _) = recipes(preset(method, data="-", output="-"))
    one = ({"optimizer": "adamw8bit"}, {"weights": "bf16"}, *alone)
    return {}, *one, seldom(foot)


def text_rates(method: str) -> list[float]:
    """The text encoder's learning rates in the study "text_encoder"."""
    whole = preset(method, data="-", output="-").learning_rate
    return [float(f"{share * whole:g}") for share in TEXT_SHARES]


def studies(subjects: list[str], seeds: int) -> dict[str, list[dict[str, Any]]]:
    """{study: its jobs}: which question each run belongs to. A run may belong to several; it is
    made once.
    """
    some = [(s, seed) for seed in range(min(seeds, SEEDS)) for s in subjects[:SUBJECTS]]
    tuning = learning_rates.sets_of((*learning_rates.EXAMPLES, *learning_rates.BEHIND))
    examples = learning_rates.sets_of(learning_rates.EXAMPLES)
    auto_and_fp16: tuple[dict[str, Any], ...] = ({}, {"precision": "fp16"})
    plain = [
        job(s, m, seed, precision="fp32")
        for seed in range(min(seeds, PLAIN_SEEDS))
        for s in subjects[:SUBJECTS]
        for m in METHODS
    ]
    return {
        "main": [job(s, "base") for s in subjects]
        + [job(s, m, seed) for seed in range(seeds) for s in subjects for m in (*METHODS, *CUTS)],
        "prior": [
            job(s, m, seed, **changes)
            for changes in ({}, *WAYS.values())
            for s, seed in some
            for m in METHODS
            if m == "lora" or changes.get("prior") != "teacher"
        ],
        "rank": [job(s, "lora", seed, rank=rank) for rank in RANKS for s, seed in some],
        "rate": [job(s, "base", variant=v) for s, v in tuning]
        + [
            job(s, m, seed, variant=v, learning_rate=rate)
            for seed in range(learning_rates.SEEDS)
            for s, v in tuning
            for m in METHODS
            for rate in learning_rates.RATES[m]
        ],
        "length": [job(s, "base", variant=v) for s, v in examples]
        + [
            job(s, m, variant=v, steps=steps, learning_rate=rate)
            for steps, rates in learning_rates.LENGTHS.items()
            for m in METHODS
            for rate in rates[m]
            for s, v in examples
        ],
        "identifier": [
            job(s, m, seed, v) for v in ("good", *WORDS) for s, seed in some for m in METHODS
        ],
        "careless": [
            job(s, m, seed, v)
            for v in ("good", "duplicates", "one_background")
            for s, seed in some
            for m in METHODS
        ],
        "kinds": [job(k, "base") for k in KINDS]
        + [job(k, m, seed) for seed in range(min(seeds, SEEDS)) for k in KINDS for m in METHODS],
        # bf16, and fp16, which cards without bf16 train in.
        "precision": plain
        + [job(s, m, seed, **how) for how in auto_and_fp16 for m in METHODS for s, seed in some],
        "recipes": plain
        + [job(s, m, seed, **how) for m in METHODS for how in low_memory(m) for s, seed in some],
        "text_encoder": [
            job(s, m, seed, text_encoder_rate=rate)
            for m in METHODS
            for rate in (0.0, *text_rates(m))
            for s, seed in some
        ],
    }


# What stands for the subject in the study "identifier", beside a rare word and the right noun
# (variant "good", there called "rare").
WORDS = {
    "common": lambda noun: (noun, "toy"),
    "wrong_noun": lambda noun: (
        list(CLASSES)[(list(CLASSES).index(noun) + 5) % len(CLASSES)],
        "zwx",
    ),
    "no_noun": lambda noun: ("thing", "zwx"),  # the world's word for anything
    "without_identifier": lambda noun: (noun, "zwx"),  # trained with it, asked without it
}
