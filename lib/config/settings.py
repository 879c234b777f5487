"""The settings of one run: typed, frozen, checked before anything loads, saved beside what they
made.

    preset("lora", data="runs/course/data", output="runs/course/lora", steps=300)

Notebooks make `Settings` from their parameters cell, panels edit the same object, `train` reads
nothing else.
"""

import difflib
import math
import typing
from dataclasses import asdict, dataclass, fields

from lib.files.errors import BadInput
from lib.files.json_file import read_json, write_json

METHODS = ("lora", "dreambooth")


# (lowest, highest) of every number, both allowed.
LIMITS = {
    "seed": (0, 2**31 - 1),
    "steps": (1, 100_000),
    "learning_rate": (1e-8, 1.0),
    "rank": (1, 256),
    "alpha": (0.01, 1024.0),
    "dropout": (0.0, 0.9),
    "text_encoder_rate": (0.0, 1.0),
    "resolution": (0, 2048),
    "batch_size": (1, 64),
    "prior_weight": (0.0, 10.0),
    "snr_gamma": (0.0, 100.0),
    "clip": (0.01, 1000.0),
    "sample_every": (0, 100_000),
    "sample_steps": (1, 1000),
    "guidance": (0.0, 30.0),
    "warmup": (0, 10_000),
    "cooldown": (
        0.0,
        1.0,
    ),  # without one, what a high rate leaves depends on which pictures came last
    "save_every": (0, 100_000),
}


@dataclass(frozen=True)
class Settings:
    """One run's recipe. Both methods share every field; `rank` to `dora` are read by LoRA alone.

    method: "lora" (an adapter) or "dreambooth" (every weight of the U-Net). base: "pocket", a
    folder, a .safetensors file, or a hub name. data: folder of a prepared data set (see
    `lib/dataset/preparation.py`); output: the run folder to make. learning_rate: peak of AdamW's
    rate. rank, alpha: the adapter's size, and its scale alpha / rank. targets: the layers it sits
    beside, "attention", "linear" (feed-forward layers and projections as well) or "all"
    (convolutions too). dropout: share of the adapter's inputs left out while it trains. dora: give
    the adapter a magnitude of its own (arXiv 2402.09353). text_encoder_rate: peak rate of the text
    encoders, which train by the same method; 0 leaves them frozen. diffusers' README trains SD
    1.x's at 2e-6 with all weights; its LoRA scripts default to 5e-6. resolution: side in pixels of
    the pictures trained on (of those that keep their aspect: about as many) and sampled; 0 is the
    base's own. batch_size: instance images a step; the same number of class images joins them when
    prior_weight > 0. prior_weight: lambda of the prior-preservation loss (Ruiz et al. 2022, eq. 2);
    0 leaves it out. prior: what it holds on to, "images" (class images) or "teacher" (what the
    model predicts without its adapter, on the photos noised and with class prompts; LoRA alone).
    snr_gamma: gamma of min-SNR loss weights (Hang et al. 2023); 0 leaves the loss unweighted. clip:
    largest gradient norm. warmup: steps over which the rate rises. cooldown: share of the steps,
    the last, over which it falls to 0. sample_every: steps between fixed-seed samples; 0 for none.
    sample_steps, guidance: how they are drawn. precision: "auto" (bf16 where the processor has it),
    "fp32" or "bf16": what the arithmetic runs in.

    Recipes that fit a smaller card (`lib/step/quantization.py`; what each saves is in the course):
    checkpointing: what is computed again on the way back instead of kept: "none", "largest"
    (transformers) or "all"; see `lib/step/gradient_checkpointing.py`. optimizer: "adamw", or
    "adamw8bit": its two moments in 8 bits (Dettmers et al. 2022), a quarter of their memory.
    weights: those that train, in "fp32" or "bf16" (rounded stochastically); never in fp16, which
    has no room for small gradients. fused_backward: update weights, some at a time, as soon as
    their gradients are there, and free those; for DreamBooth. quantize: frozen linear layers under
    LoRA in "nf4" or "int8"; "none" leaves them. save_every: steps between checkpoints, from which
    an interrupted training goes on; fewer where writing takes long; 0 for none.
    """

    method: str
    data: str
    output: str
    base: str = "pocket"
    seed: int = 0
    steps: int = 300
    learning_rate: float = 1e-4
    rank: int = 16
    alpha: float = 16.0
    targets: str = "attention"
    dropout: float = 0.0
    dora: bool = False
    text_encoder_rate: float = 0.0
    resolution: int = 0
    batch_size: int = 4
    prior_weight: float = 1.0
    prior: str = "images"
    snr_gamma: float = 0.0
    clip: float = 1.0
    warmup: int = 10
    cooldown: float = 0.5
    sample_every: int = 50
    sample_steps: int = 25
    guidance: float = 4.0
    precision: str = "auto"
    checkpointing: str = "none"
    optimizer: str = "adamw"
    weights: str = "fp32"
    fused_backward: bool = False
    quantize: str = "none"
    save_every: int = 50

    def __post_init__(self):
        self.check()

    @classmethod
    def from_dict(cls, values):
        """Settings from a mapping. Raises BadInput on an unknown name, naming the nearest known
        one.
        """
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = (
                    f"did you mean '{near[0]}'?"
                    if near
                    else f"known settings are {', '.join(known)}."
                )
                raise BadInput(f"There is no setting '{name}': {hint}")
        for name in ("method", "data", "output"):
            if name not in values:
                raise BadInput(f"Setting '{name}' is missing: give it a value.")
        return cls(**values)

    def check(self):
        """Raise BadInput with one sentence if a value has the wrong type or lies out of range."""
        check_values(self, LIMITS, "Setting")
        _choice("method", self.method, METHODS)
        _choice("targets", self.targets, ("attention", "linear", "all"))
        _choice("prior", self.prior, ("images", "teacher"))
        if self.prior == "teacher" and self.method != "lora":
            raise BadInput(
                "Setting 'prior' is 'teacher', which is the model without its adapter, and"
                " DreamBooth has none: use 'images'."
            )
        if self.resolution % 8 or 0 < self.resolution < 32:
            raise BadInput(
                f"Setting 'resolution' is {self.resolution}: it must be 0 (the base's own) or a"
                " multiple of 8 from 32 on."
            )
        _choice("precision", self.precision, ("auto", "fp32", "bf16"))
        _choice("checkpointing", self.checkpointing, ("none", "largest", "all"))
        _choice("optimizer", self.optimizer, ("adamw", "adamw8bit"))
        _choice("weights", self.weights, ("fp32", "bf16"))
        _choice("quantize", self.quantize, ("none", "nf4", "int8"))
        if self.quantize != "none" and self.method != "lora":
            raise BadInput(
                f"Setting 'quantize' is '{self.quantize}', but {self.method} trains every weight,"
                " and one of 4 or 8 bits cannot take small steps: set quantize to 'none', or train"
                " a LoRA."
            )
        if self.fused_backward and self.method == "lora":
            raise BadInput(
                "Setting 'fused_backward' frees gradients early, but a LoRA's are a few megabytes,"
                " and the clipping of their norm would be lost: set fused_backward to False."
            )
        if self.weights == "bf16" and self.precision == "fp32":
            raise BadInput(
                "Settings 'weights' bf16 and 'precision' fp32 exclude each other, as each layer's"
                " weights would be copied to fp32 for its arithmetic: set precision to 'auto', or"
                " weights to 'fp32'."
            )
        for name in ("base", "data", "output"):
            if not getattr(self, name).strip():
                raise BadInput(
                    f"Setting '{name}' is empty: name a"
                    f" folder{' or a model' if name == 'base' else ''}."
                )

    def rate(self, step):
        """The learning rate of step `step`, counted from 0: it rises, stays, and falls (see
        `warmup` and `cooldown`).
        """
        rise, fall = (
            (step + 1) / max(1, self.warmup),
            (self.steps - step) / max(1.0, self.cooldown * self.steps),
        )
        return self.learning_rate * min(1, rise, fall)

    def arithmetic(self, bf16):
        """What the arithmetic runs in on a processor with fast `bf16`, or without: True for bf16,
        False for fp32.
        """
        return self.weights == "bf16" or {"fp32": False, "bf16": True, "auto": bf16}[self.precision]

    def replace(self, **changes):
        """The same settings with changes, checked."""
        return type(self).from_dict(asdict(self) | changes)

    def save(self, path):
        """Write as JSON, whole or not at all."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path):
        """Settings from a JSON file. Raises BadInput if the file is absent, broken or holds unknown
        names.
        """
        return cls.from_dict(read_json(path))


def check_values(record, limits, what):
    """Raise BadInput, calling the field a `what`, if a field of a frozen dataclass has the wrong
    type or a number is out of its `limits`.

    `limits`: field -> (lowest, highest), both allowed. A whole number given for a float becomes
    one.
    """
    types = typing.get_type_hints(type(record))
    for f in fields(record):
        value, kind = getattr(record, f.name), types[f.name]
        if kind is float and type(value) is int:
            object.__setattr__(record, f.name, float(value))
        elif type(value) is not kind:
            word = {int: "a whole number", float: "a number", str: "a text", bool: "True or False"}[
                kind
            ]
            raise BadInput(
                f"{what} '{f.name}' must be {word}, but it is {value!r} ({type(value).__name__}):"
                " write it as one."
            )
    for name, (low, high) in limits.items():
        value = getattr(record, name)
        if not (math.isfinite(value) and low <= value <= high):
            raise BadInput(
                f"{what} '{name}' is {value}, outside {low} to {high}: choose a value in that"
                " range."
            )


def _choice(name, value, choices):
    if value not in choices:
        raise BadInput(f"Setting '{name}' is {value!r}: it must be one of {', '.join(choices)}.")
