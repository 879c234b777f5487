"""The settings of one run: typed, frozen, checked before anything loads, saved beside what they
made.

    preset("lora", data="runs/course/data", output="runs/course/lora", steps=300)

Notebooks make `Settings` from their parameters cell, panels edit the same object, `train` reads
nothing else. What each setting means, and what it may be, stands at the setting: `described` gives
it to panels, command lines and the docs.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field

from lib.config.checked import checked
from lib.files import BadInput, read_json, write_json
from lib.files.paths import check_path

Method = Literal["lora", "dreambooth"]

METHODS: tuple[str, ...] = get_args(Method)


@checked("Setting")
class Settings:
    """One run's recipe. Raises BadInput, in one sentence, for a value that cannot be.

    Both methods share every setting; `rank` to `dora` are read by LoRA alone.
    """

    method: Annotated[
        Method,
        Field(description="lora (an adapter) or dreambooth (every weight of the denoiser)."),
    ]
    data: Annotated[str, Field(description="Folder of a prepared data set.")]
    output: Annotated[str, Field(description="The run folder to make.")]
    base: Annotated[
        str,
        Field(
            description="Base model: pocket, a folder, a .safetensors file, or a name on the hub."
        ),
    ] = "pocket"
    seed: Annotated[
        int,
        Field(ge=0, le=2**31 - 1, description="What all random numbers of the run follow from."),
    ] = 0
    steps: Annotated[int, Field(ge=1, le=100_000, description="Steps of the optimizer.")] = 300
    learning_rate: Annotated[
        float, Field(ge=1e-8, le=1.0, description="Peak of the optimizer's learning rate.")
    ] = 1e-4
    rank: Annotated[
        int, Field(ge=1, le=256, description="The adapter's size: the rank of its matrices.")
    ] = 16
    alpha: Annotated[
        float,
        Field(ge=0.01, le=1024.0, description="The adapter's strength: it counts alpha / rank."),
    ] = 16.0
    targets: Annotated[
        Literal["attention", "linear", "all"],
        Field(
            description="Layers that the adapter sits beside: attention, linear (feed-forward"
            " layers and projections as well) or all (convolutions too)."
        ),
    ] = "attention"
    dropout: Annotated[
        float,
        Field(
            ge=0.0,
            le=0.9,
            description="Share of the adapter's inputs that is left out while it trains.",
        ),
    ] = 0.0
    dora: Annotated[
        bool,
        Field(description="Give the adapter a magnitude of its own (DoRA, arXiv 2402.09353)."),
    ] = False
    # diffusers' README trains SD 1.x's text encoder at 2e-6 with all weights; its LoRA scripts
    # default to 5e-6.
    text_encoder_rate: Annotated[
        float,
        Field(
            ge=0.0,
            le=1.0,
            description="Peak learning rate of the text encoders, which train by the same method;"
            " 0 leaves them frozen.",
        ),
    ] = 0.0
    resolution: Annotated[
        int,
        Field(
            ge=0,
            le=2048,
            description="Side in pixels of the pictures trained on (of those that keep their"
            " aspect: about as many pixels) and sampled; 0 is the base model's own.",
        ),
    ] = 0
    batch_size: Annotated[
        int,
        Field(
            ge=1,
            le=64,
            description="Instance images a step; the same number of class images joins them when"
            " prior_weight is above 0.",
        ),
    ] = 4
    accumulate: Annotated[
        int,
        Field(
            ge=1,
            le=64,
            description="Passes in which a step takes its batch, part by part, before its update"
            " (gradient accumulation): the numbers of the whole batch, for a part's memory.",
        ),
    ] = 1
    prior_weight: Annotated[
        float,
        Field(
            ge=0.0,
            le=10.0,
            description="Lambda of the prior-preservation loss (Ruiz et al. 2022, eq. 2), or the"
            " strength of the anchor; 0 leaves it out.",
        ),
    ] = 1.0
    prior: Annotated[
        Literal["images", "teacher", "anchor"],
        Field(
            description="What prior preservation holds on to: images (class images), teacher (what"
            " the model predicts without its adapter, on the photos noised and with class prompts;"
            " LoRA alone) or anchor (the base's weights, towards which a step pulls back what it"
            " changed, arXiv 2505.19519)."
        ),
    ] = "images"
    snr_gamma: Annotated[
        float,
        Field(
            ge=0.0,
            le=100.0,
            description="Gamma of min-SNR loss weights (Hang et al. 2023, arXiv 2303.09556); 0"
            " leaves the loss unweighted.",
        ),
    ] = 0.0
    clip: Annotated[
        float,
        Field(ge=0.01, le=1000.0, description="Largest norm of the gradient; above it is scaled."),
    ] = 1.0
    warmup: Annotated[
        int, Field(ge=0, le=10_000, description="Steps over which the learning rate rises.")
    ] = 10
    # Without a cooldown, what a high rate leaves depends on which pictures came last.
    cooldown: Annotated[
        float,
        Field(
            ge=0.0,
            le=1.0,
            description="Share of the steps, the last ones, over which the learning rate falls to"
            " 0.",
        ),
    ] = 0.5
    sample_every: Annotated[
        int,
        Field(
            ge=0,
            le=100_000,
            description="Steps between fixed-seed samples, the first ones earlier (after steps 10,"
            " 25 and 50), and some after the last step; 0 for none.",
        ),
    ] = 50
    sample_steps: Annotated[
        int, Field(ge=1, le=1000, description="Denoising steps of a sample.")
    ] = 25
    guidance: Annotated[
        float,
        Field(
            ge=0.0,
            le=30.0,
            description="Classifier-free guidance scale of samples; 0 is the base's own, 1 none.",
        ),
    ] = 4.0
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        Field(
            description="What the arithmetic runs in: fp32, bf16, fp16 (with a scale of the loss"
            " that follows its gradients), or auto (what the processor is fast in)."
        ),
    ] = "auto"
    checkpointing: Annotated[
        Literal["none", "largest", "all"],
        Field(
            description="Gradient checkpointing, which computes activations again in the backward"
            " pass to save memory: none, largest (the transformers whose activations are largest)"
            " or all."
        ),
    ] = "none"
    optimizer: Annotated[
        Literal["adamw", "adamw8bit"],
        Field(
            description="adamw, or adamw8bit, whose two moments are in 8 bits (Dettmers et al."
            " 2022), a quarter of their memory."
        ),
    ] = "adamw"
    # Never fp16, which is too coarse for small gradients.
    weights: Annotated[
        Literal["fp32", "bf16"],
        Field(description="Type of the weights that train: fp32, or bf16, rounded stochastically."),
    ] = "fp32"
    fused_backward: Annotated[
        bool,
        Field(
            description="Update weights, some at a time, as soon as their gradients are there, and"
            " free those; for DreamBooth."
        ),
    ] = False
    quantize: Annotated[
        Literal["none", "nf4", "int8"],
        Field(description="Type of the frozen linear layers under a LoRA; none leaves them."),
    ] = "none"
    save_every: Annotated[
        int,
        Field(
            ge=0,
            le=100_000,
            description="Steps between checkpoints, from which an interrupted training goes on;"
            " fewer where writing takes long; 0 for none.",
        ),
    ] = 50
    keep: Annotated[
        Literal["last", "best", "all"],
        Field(
            description="Which weights of the steps measured along the way a run keeps: last (its"
            " own alone), best (also those of the step most like the held-out photos) or all"
            " (LoRA)."
        ),
    ] = "last"

    def __post_init__(self):
        """Check the rules that no single setting can hold by itself. Raises BadInput."""
        for name in ("base", "data", "output"):
            if not getattr(self, name).strip():
                what = "folder or a model" if name == "base" else "folder"
                raise BadInput(f"Setting '{name}' is empty: name a {what}.")
            check_path(name, getattr(self, name))
        lora = self.method == "lora"
        rules = (
            (
                self.prior == "teacher" and not lora,
                "Setting 'prior' is 'teacher', which is the model without its adapter, and"
                " DreamBooth has none: use 'images'.",
            ),
            (
                self.prior == "anchor" and self.dora,
                "Settings 'prior' anchor and 'dora' exclude each other, as a magnitude that trains"
                " changes the weights beside what the anchor pulls back: use 'images', or set dora"
                " to False.",
            ),
            (
                self.keep == "all" and not lora,
                f"Setting 'keep' is 'all', but each step of {self.method} is a whole model: use"
                " 'best', or train a LoRA.",
            ),
            (
                self.quantize != "none" and not lora,
                f"Setting 'quantize' is '{self.quantize}', but {self.method} trains every weight,"
                " and one of 4 or 8 bits cannot take small steps: set quantize to 'none', or train"
                " a LoRA.",
            ),
            (
                self.quantize == "int8" and self.dora,
                "Settings 'quantize' int8 and 'dora' exclude each other, as bitsandbytes keeps no"
                " scale of an int8 weight that a magnitude could be taken from: set quantize to"
                " 'nf4' or 'none', or dora to False.",
            ),
            (
                self.fused_backward and lora,
                "Setting 'fused_backward' frees gradients early, but a LoRA's are a few megabytes,"
                " and the clipping of their norm would be lost: set fused_backward to False.",
            ),
            (
                self.accumulate > self.batch_size,
                f"Setting 'accumulate' is {self.accumulate}, and a batch has {self.batch_size}"
                " pictures, of which each pass takes one or more: lower accumulate, or raise"
                " batch_size.",
            ),
            (
                self.accumulate > 1 and self.fused_backward,
                "Settings 'accumulate' and 'fused_backward' exclude each other, as an update within"
                " the first backward pass would come before the gradients of the others: set"
                " accumulate to 1, or fused_backward to False.",
            ),
            (
                self.resolution % 8 or 0 < self.resolution < 32,
                f"Setting 'resolution' is {self.resolution}: it must be 0 (the base's own) or a"
                " multiple of 8 from 32 on.",
            ),
            (
                self.weights == "bf16" and self.precision == "fp32",
                "Settings 'weights' bf16 and 'precision' fp32 exclude each other, as each layer's"
                " weights would be copied to fp32 for its arithmetic: set precision to 'auto', or"
                " weights to 'fp32'.",
            ),
        )
        for broken, sentence in rules:
            if broken:
                raise BadInput(sentence)

    @property
    def prior_pictures(self) -> bool:
        """Whether each batch holds pictures of prior preservation behind the instance images."""
        return self.prior_weight > 0 and self.prior != "anchor"

    @property
    def pull(self) -> float:
        """Share of its change that a weight loses at a step, over the learning rate; 0: no anchor.

        Over a whole training at the peak rate a change that nothing renews shrinks by
        exp(-prior_weight), whatever the rate and the number of steps.
        """
        if self.prior != "anchor":
            return 0.0
        return min(self.prior_weight / self.steps, 1.0) / self.learning_rate

    def rate(self, step: int) -> float:
        """The learning rate of `step`, counted from 0: it rises, stays, and falls.

        See `warmup` and `cooldown`.
        """
        rise = (step + 1) / max(1, self.warmup)
        fall = (self.steps - step) / max(1.0, self.cooldown * self.steps)
        return self.learning_rate * min(1, rise, fall)

    def arithmetic(self, fast: str) -> str:
        """What the arithmetic runs in: fp32, bf16 or fp16; `fast` is what the processor is fast in.

        Weights in bf16 are not multiplied in fp32, which would copy them.
        """
        if self.precision != "auto":
            return self.precision
        return "bf16" if self.weights == "bf16" and fast == "fp32" else fast

    def replace(self, **changes: Any) -> Self:
        """The same settings with changes, checked."""
        return type(self)(**asdict(self) | changes)

    def save(self, path: str | Path) -> None:
        """Write as JSON, whole or not at all."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Settings from a JSON file.

        Raises BadInput if the file is absent, broken or holds unknown names.
        """
        return cls(**read_json(path))
