"""The one switch of the comparison: which weights train. Everything else in the project is the same
for both methods.

`trainable` is the switch. A method also decides what is saved (`save_weights`) and how a run's
weights come back (`load_run`), in `lib/step/run_weights.py`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch

from lib.config import Settings
from lib.models import Base
from lib.models.devices import DTYPES
from lib.step.param_groups import in_memory_order
from lib.step.quantization import quantize_layer, quantize_linear_layers

if TYPE_CHECKING:
    from peft import LoraConfig

# The layers an adapter sits beside. Attention is the field's default (diffusers' script). "linear"
# adds the feed-forward layers and the projections, "all" the 3 x 3 convolutions too; shortcuts and
# timestep layers stay out: a twelfth of the step for few weights.
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
LINEAR = [*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]
TARGETS = {"attention": ATTENTION, "linear": LINEAR, "all": [*LINEAR, "conv1", "conv2"]}
TEXT_ATTENTION = ["q_proj", "k_proj", "v_proj", "out_proj"]


def trainable(
    base: Base, settings: Settings, quantize: Callable[..., torch.nn.Module] = quantize_layer
) -> list[torch.nn.Parameter]:
    """Choose the weights that train, and return them, the denoiser's first. All others are frozen.

    - LoRA (Hu et al. 2021, arXiv 2106.09685): W stays, and W + (alpha / rank) B A runs, with A
      small and random and B zero, so that a fresh adapter changes nothing.
    - DreamBooth (Ruiz et al. 2023, arXiv 2208.12242): every weight of the denoiser.

    With a text_encoder_rate the same for the text encoders. Those that train are fp32, or bf16
    where `settings.weights` says so. `quantize` brings a frozen layer to 4 or 8 bits, as
    `quantize_layer` does.
    """
    parts = tuned_parts(base, settings)
    dtype = DTYPES[settings.weights]
    # The switch: adapters beside weights that are frozen, or every weight.
    if settings.method == "lora":
        torch.manual_seed(settings.seed)  # of the adapters' first weights
        for name, part in parts.items():
            predicts = name == base.family.denoiser
            freeze(part, base, settings, quantize if predicts else None)
            layers = TARGETS[settings.targets] if predicts else TEXT_ATTENTION
            part.add_adapter(adapter_config(settings, layers))
            for p in part.parameters():
                if p.requires_grad:
                    p.data = p.data.to(dtype)
    else:
        for part in parts.values():
            part.to(base.device, dtype).requires_grad_(True)
    return [p for part in parts.values() for p in part.parameters() if p.requires_grad]


def tuned_parts(base: Base, settings: Settings) -> dict[str, Any]:
    """The parts of a pipeline in which a run trains weights, by name.

    Its denoiser, wherever it is, and text encoders if they have a rate.
    """
    parts = {base.family.denoiser: base.stored_denoiser}
    if settings.text_encoder_rate > 0:
        parts |= base.text_encoders
    return parts


def freeze(
    part: torch.nn.Module,
    base: Base,
    settings: Settings,
    quantize: Callable[..., torch.nn.Module] | None = None,
) -> None:
    """Bring a part to the device, frozen, in the precision of the arithmetic.

    Frozen weights need no fp32 copy. With `quantize` the linear layers come in 4 or 8 bits if
    `settings.quantize` says so.
    """
    dtype = DTYPES[settings.arithmetic(base.fast)]
    part.requires_grad_(False)
    part.to(dtype)
    if quantize and settings.quantize != "none":
        quantize_linear_layers(part, settings.quantize, dtype, base.device, quantize)
    part.to(base.device)


def adapter_config(settings: Settings, layers: Sequence[str]) -> "LoraConfig":
    """PEFT's configuration of the adapter beside `layers`."""
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=cast(int, settings.alpha),  # PEFT takes any number
        init_lora_weights="gaussian",
        target_modules=list(layers),
        lora_dropout=settings.dropout,
        use_dora=settings.dora,
    )


def rate_shares(
    base: Base, weights: Sequence[torch.nn.Parameter], settings: Settings
) -> list[float]:
    """For each of `weights` its learning rate over the denoiser's.

    1, and for text encoders what text_encoder_rate makes of it.
    """
    denoiser = {id(p) for p in base.denoiser.parameters()}
    text = settings.text_encoder_rate / settings.learning_rate
    return [1.0 if id(p) in denoiser else text for p in weights]


def anchors(
    named_weights: Sequence[tuple[str, torch.nn.Parameter]], settings: Settings
) -> list[torch.Tensor | None]:
    """What the anchor pulls each of the weights towards, before anything is trained: one row each.

    - DreamBooth: the base's weight, in the order of its memory; in fp16, as bases are shipped
    - LoRA: zero for each B, since with B its change (alpha / rank) B A shrinks by the same share;
      nothing for A

    Empty without an anchor.
    """
    if not settings.pull:
        return []
    if settings.method == "lora":
        return [w.new_zeros(1) if "lora_B" in name else None for name, w in named_weights]
    return [in_memory_order(w).reshape(-1).half() for _, w in named_weights]


@contextmanager
def adapter_off(parts: Iterable[Any]) -> Iterator[None]:
    """Within the block every adapter of `parts` is off, and the base model is as it was."""
    for part in parts:
        part.disable_adapters()
    try:
        yield
    finally:
        for part in parts:
            part.enable_adapters()
