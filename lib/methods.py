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
from .families import FAMILIES
from .locate import WITH_WEIGHTS
from .settings import BadInput, Settings, read_json

ADAPTER = "adapter.safetensors"
# The layers an adapter sits beside. Attention is the field's default (diffusers' script). "linear" adds the feed-forward layers and the
# projections, "all" the 3 x 3 convolutions too; shortcuts and timestep layers stay out: a twelfth of the step for few weights.
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
LINEAR = [*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]
TARGETS = {"attention": ATTENTION, "linear": LINEAR, "all": [*LINEAR, "conv1", "conv2"]}
TEXT_ATTENTION = ["q_proj", "k_proj", "v_proj", "out_proj"]


def tuned_parts(base, settings):
    """The parts of a pipeline in which a run trains weights, by name: its U-Net, wherever it is, and text encoders if they have a rate."""
    return {"unet": base.pipe.unet, **(base.text_encoders if settings.text_encoder_rate > 0 else {})}


def trainable(base, settings):
    """Choose the weights that train, and return them, the U-Net's first. All others are frozen.

    LoRA (Hu et al. 2021): W stays, and W + (alpha / rank) B A runs, with A small and random and B zero, so that a fresh adapter
    changes nothing. DreamBooth: every weight of the U-Net. With a text_encoder_rate the same for the text encoders. Those that train are
    fp32, or bf16 where `settings.weights` says so.
    """
    parts, dtype = tuned_parts(base, settings), {"fp32": torch.float32, "bf16": torch.bfloat16}[settings.weights]
    frozen = torch.bfloat16 if settings.arithmetic(base.bf16) else torch.float32  # frozen weights need no fp32 copy
    if settings.method == "lora":
        torch.manual_seed(settings.seed)
    for name, part in parts.items():
        part.requires_grad_(False)
        if settings.method == "lora":
            part.to(frozen)
            if settings.quantize != "none" and name == "unet":
                from .recipes import quantize

                quantize(part, settings.quantize, frozen, base.device)
            part.to(base.device)
            part.add_adapter(adapter_config(settings, TARGETS[settings.targets] if name == "unet" else TEXT_ATTENTION))
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
        r=settings.rank, lora_alpha=settings.alpha, init_lora_weights="gaussian", target_modules=layers, lora_dropout=settings.dropout,
        use_dora=settings.dora,
    )


def shares(base, weights, settings):
    """For each of `weights` its learning rate over the U-Net's: 1, and what text_encoder_rate makes of it for text encoders."""
    own = {id(p) for p in base.unet.parameters()}
    return [1.0 if id(p) in own else settings.text_encoder_rate / settings.learning_rate for p in weights]


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


def save_weights(base, settings, folder):
    """Write what one ships, in fp16 safetensors, into `folder`: an adapter, or the tuned parts as diffusers folders. Returns its bytes."""
    folder = Path(folder)
    part = folder / f".weights.{os.getpid()}"
    tuned = tuned_parts(base, settings)
    for left in folder.glob(".weights.*"):  # by a process that was killed while it wrote them
        shutil.rmtree(left, ignore_errors=True)
    try:
        if settings.method == "lora":
            from diffusers.training_utils import _collate_lora_metadata
            from peft.utils import get_peft_model_state_dict

            # PEFT's own names throughout: diffusers' older ones exist for attention alone, and a file that mixes both loads by half.
            layers = {}
            for name, module in tuned.items():
                state = {k: v.half().contiguous() for k, v in get_peft_model_state_dict(module).items()}
                if name != "unet":  # the name that every tool knows; newer transformers have dropped the wrapper (diffusers #13984)
                    state = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in state.items()}
                layers[f"{name}_lora_layers"] = state
            base.pipe.save_lora_weights(part, weight_name=ADAPTER, **layers, **_collate_lora_metadata(tuned))
            os.replace(part / ADAPTER, folder / ADAPTER)
        else:
            for name, module in tuned.items():
                dtype = module.dtype
                module.half().save_pretrained(part / name)
                module.to(dtype)
                if (folder / name).is_dir():  # out of the way first: deleting it takes time in which neither would be there
                    os.replace(folder / name, part / f"before_{name}")
                os.replace(part / name, folder / name)
    finally:  # also where the disk is full
        shutil.rmtree(part, ignore_errors=True)
    return weight_bytes(folder)


@contextmanager
def as_saved(weights):
    """The weights as `save_weights` would write them now, rounded to fp16; the exact ones wait on the CPU and come back bit for bit."""
    exact = [w.detach().to("cpu", copy=True) for w in weights]
    with torch.no_grad():
        try:
            for w in weights:
                w.copy_(w.half())
            yield
        finally:
            for w, value in zip(weights, exact):
                w.copy_(value)


@contextmanager
def at_rest(base):
    """Look at a model between two training steps: all in eval mode, no gradients; random state and every module's mode are put back.

    What rests in memory's favour is loaded again first, which raises where memory does not suffice.
    """
    base.wake()
    parts = (base.pipe.unet, base.pipe.vae, *base.text_encoders.values())
    modes = [(m, m.training) for part in parts for m in part.modules()]
    devices = [base.device] if base.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.inference_mode():
        try:
            for part in parts:
                part.eval()
            yield
        finally:
            for module, training in modes:
                module.training = training


def weight_bytes(run):
    """Bytes of the weights in a run folder, as shipped."""
    run = Path(run)
    files = [run / ADAPTER] if (run / ADAPTER).is_file() else [f for part in WITH_WEIGHTS for f in (run / part).glob("*.safetensors")]
    return sum(f.stat().st_size for f in files)


def load_run(run, base=None):
    """A base model with a run's weights in it, ready to generate; `base`, if given, is changed in place.

    Raises BadInput if the folder is no finished run, its weights are missing or broken, or it was trained on another family than `base`.
    """
    run = Path(run)
    settings = Settings.load(run / "settings.json")
    base = base or load_base(settings.base)
    metrics = run / "metrics.json"
    trained_on = read_json(metrics).get("family") if metrics.is_file() else None
    if trained_on and trained_on != base.family.name:
        title = {f.name: f.title for f in FAMILIES}.get(trained_on, trained_on)
        raise BadInput(
            f"Run {run} was trained on {title}, and '{base.name}' is {base.family.title}: load it into a base of its own family."
        )
    base.side = settings.resolution
    try:
        if settings.method == "lora":
            if not (run / ADAPTER).is_file():
                raise FileNotFoundError(f"there is no {ADAPTER}")
            base.pipe.load_lora_weights(str(run), weight_name=ADAPTER, adapter_name=settings.method)
        else:
            for name, old in tuned_parts(base, settings).items():
                new = type(old).from_pretrained(run / name, use_safetensors=True, dtype=old.dtype)
                if [p.shape for p in new.parameters()] != [p.shape for p in old.parameters()]:
                    raise ValueError(f"its {name} has layers of other sizes than '{base.name}'")
                setattr(base.pipe, name, new.to(base.device).requires_grad_(False))
    except (OSError, ValueError, KeyError, RuntimeError, json.JSONDecodeError) as error:
        raise BadInput(f"The weights of run {run} cannot be loaded ({str(error).splitlines()[0]}): train the run again.") from None
    return base
