"""The one switch of the comparison: which weights train. Everything else in the project is the same for both methods.

A method also decides what is saved (`save_weights`) and how a run's weights come back (`load_run`).
"""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import torch

from .base import load_base
from .settings import BadInput, Settings

ADAPTER = "adapter.safetensors"
# The layers an adapter sits beside. Attention is the field's default (diffusers' script). "all" adds the feed-forward layers, the
# projections and the 3 x 3 convolutions; shortcuts and timestep layers stay out: a twelfth of the step for few weights.
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
TARGETS = {"attention": ATTENTION, "all": [*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1", "conv2"]}


def trainable(base, settings):
    """Choose the weights that train, and return them. All others are frozen.

    LoRA (Hu et al. 2021): W stays, and W + (alpha / rank) B A runs, with A small and random and B zero, so that a fresh adapter
    changes nothing. DreamBooth: every weight of the U-Net. Those that train are fp32, or bf16 where `settings.weights` says so.
    """
    unet, dtype = base.unet, {"fp32": torch.float32, "bf16": torch.bfloat16}[settings.weights]
    unet.requires_grad_(False)
    if settings.method == "lora":
        from peft import LoraConfig

        low = settings.arithmetic(base.bf16)
        if low:
            unet.to(torch.bfloat16)  # frozen weights need no fp32 copy
        if settings.quantize != "none":
            from .recipes import quantize

            quantize(unet, settings.quantize, torch.bfloat16 if low else torch.float32)
        torch.manual_seed(settings.seed)
        unet.add_adapter(
            LoraConfig(r=settings.rank, lora_alpha=settings.alpha, init_lora_weights="gaussian", target_modules=TARGETS[settings.targets])
        )
        for p in unet.parameters():
            if p.requires_grad:
                p.data = p.data.to(dtype)
    else:
        unet.to(dtype).requires_grad_(True)
    return [p for p in unet.parameters() if p.requires_grad]


def save_weights(base, settings, folder):
    """Write what one ships, in fp16 safetensors, into `folder`: an adapter, or the tuned U-Net as a diffusers folder. Returns its bytes."""
    folder = Path(folder)
    part = folder / f".weights.{os.getpid()}"
    try:
        if settings.method == "lora":
            from diffusers import StableDiffusionPipeline
            from diffusers.training_utils import _collate_lora_metadata
            from peft.utils import get_peft_model_state_dict

            # PEFT's own names throughout: diffusers' older ones exist for attention alone, and a file that mixes both loads by half.
            layers = {k: v.half().contiguous() for k, v in get_peft_model_state_dict(base.unet).items()}
            StableDiffusionPipeline.save_lora_weights(
                part, unet_lora_layers=layers, weight_name=ADAPTER, **_collate_lora_metadata({"unet": base.unet})
            )
            target = folder / ADAPTER
            os.replace(part / ADAPTER, target)
        else:
            dtype = base.unet.dtype
            base.unet.half().save_pretrained(part)
            base.unet.to(dtype)
            target = folder / "unet"
            shutil.rmtree(target, ignore_errors=True)
            os.replace(part, target)
    finally:  # also where the disk is full
        shutil.rmtree(part, ignore_errors=True)
    return weight_bytes(folder)


@contextmanager
def as_saved(weights):
    """The weights as `save_weights` would write them now, rounded to fp16; the exact ones wait on the CPU and come back bit for bit."""
    exact = [w.detach().to("cpu", copy=True) for w in weights]
    with torch.no_grad():
        for w in weights:
            w.copy_(w.half())
        try:
            yield
        finally:
            for w, value in zip(weights, exact):
                w.copy_(value)


def weight_bytes(run):
    """Bytes of the weights in a run folder, as shipped."""
    run = Path(run)
    files = [run / ADAPTER] if (run / ADAPTER).is_file() else list((run / "unet").glob("*.safetensors"))
    return sum(f.stat().st_size for f in files)


def load_run(run, base=None):
    """A base model with a run's weights in it, ready to generate; `base`, if given, is changed in place.

    Raises BadInput if the folder is no finished run or its weights are missing or broken.
    """
    run = Path(run)
    settings = Settings.load(run / "settings.json")
    base = base or load_base(settings.base)
    try:
        if settings.method == "lora":
            if not (run / ADAPTER).is_file():
                raise FileNotFoundError(f"there is no {ADAPTER}")
            base.pipe.load_lora_weights(str(run), weight_name=ADAPTER, adapter_name=settings.method)
        else:
            from diffusers import UNet2DConditionModel

            unet = UNet2DConditionModel.from_pretrained(run / "unet", use_safetensors=True, dtype=base.unet.dtype)
            base.pipe.unet = unet.to(base.device).requires_grad_(False)
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise BadInput(f"The weights of run {run} cannot be loaded ({str(error).splitlines()[0]}): train the run again.") from None
    return base
