"""The one switch of the comparison: which weights train. Everything else in the project is the same
for both methods.

A method also decides what is saved (`save_weights`) and how a run's weights come back (`load_run`).
"""

from contextlib import contextmanager

import torch

# The layers an adapter sits beside. Attention is the field's default (diffusers' script). "linear"
# adds the feed-forward layers and the projections, "all" the 3 x 3 convolutions too; shortcuts and
# timestep layers stay out: a twelfth of the step for few weights.
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


LINEAR = [*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]


TARGETS = {"attention": ATTENTION, "linear": LINEAR, "all": [*LINEAR, "conv1", "conv2"]}


TEXT_ATTENTION = ["q_proj", "k_proj", "v_proj", "out_proj"]


def tuned_parts(base, settings):
    """The parts of a pipeline in which a run trains weights, by name: its U-Net, wherever it is,
    and text encoders if they have a rate.
    """
    return {
        "unet": base.pipe.unet,
        **(base.text_encoders if settings.text_encoder_rate > 0 else {}),
    }


def trainable(base, settings):
    """Choose the weights that train, and return them, the U-Net's first. All others are frozen.

    LoRA (Hu et al. 2021): W stays, and W + (alpha / rank) B A runs, with A small and random and B
    zero, so that a fresh adapter changes nothing. DreamBooth: every weight of the U-Net. With a
    text_encoder_rate the same for the text encoders. Those that train are fp32, or bf16 where
    `settings.weights` says so.
    """
    parts, dtype = (
        tuned_parts(base, settings),
        {"fp32": torch.float32, "bf16": torch.bfloat16}[settings.weights],
    )
    frozen = (
        torch.bfloat16 if settings.arithmetic(base.bf16) else torch.float32
    )  # frozen weights need no fp32 copy
    if settings.method == "lora":
        torch.manual_seed(settings.seed)
    for name, part in parts.items():
        part.requires_grad_(False)
        if settings.method == "lora":
            part.to(frozen)
            if settings.quantize != "none" and name == "unet":
                from lib.step.quantization import quantize

                quantize(part, settings.quantize, frozen, base.device)
            part.to(base.device)
            part.add_adapter(
                adapter_config(
                    settings, TARGETS[settings.targets] if name == "unet" else TEXT_ATTENTION
                )
            )
            for p in part.parameters():
                if p.requires_grad:
                    p.data = p.data.to(dtype)
        else:
            part.to(base.device, dtype).requires_grad_(True)
    return [p for part in parts.values() for p in part.parameters() if p.requires_grad]


def adapter_config(settings, layers):
    """PEFT's configuration of the adapter beside `layers`."""
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        init_lora_weights="gaussian",
        target_modules=layers,
        lora_dropout=settings.dropout,
        use_dora=settings.dora,
    )


def shares(base, weights, settings):
    """For each of `weights` its learning rate over the U-Net's: 1, and what text_encoder_rate makes
    of it for text encoders.
    """
    own = {id(p) for p in base.unet.parameters()}
    return [
        1.0 if id(p) in own else settings.text_encoder_rate / settings.learning_rate
        for p in weights
    ]


@contextmanager
def adapter_off(parts):
    """Within the block every adapter of `parts` is off, and the base model is as it was."""
    for part in parts:
        part.disable_adapters()
    try:
        yield
    finally:
        for part in parts:
            part.enable_adapters()
