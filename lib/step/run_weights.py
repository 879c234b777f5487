"""A run's weights as they ship: written by `save_weights`, brought back into a base model by
`load_run`.
"""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import torch

from lib.config.settings import Settings
from lib.files.errors import BadInput
from lib.files.json_file import read_json
from lib.models.base import load_base
from lib.models.base_files import WITH_WEIGHTS
from lib.models.families import FAMILIES
from lib.step.methods import tuned_parts

ADAPTER = "adapter.safetensors"


def save_weights(base, settings, folder):
    """Write what one ships, in fp16 safetensors, into `folder`: an adapter, or the tuned parts as
    diffusers folders. Returns its bytes.
    """
    folder = Path(folder)
    part = folder / f".weights.{os.getpid()}"
    tuned = tuned_parts(base, settings)
    for left in folder.glob(".weights.*"):  # by a process that was killed while it wrote them
        shutil.rmtree(left, ignore_errors=True)
    try:
        if settings.method == "lora":
            from diffusers.training_utils import _collate_lora_metadata
            from peft.utils import get_peft_model_state_dict

            # PEFT's own names throughout: diffusers' older ones exist for attention alone, and a
            # file that mixes both loads by half.
            layers = {}
            for name, module in tuned.items():
                state = {
                    k: v.half().contiguous() for k, v in get_peft_model_state_dict(module).items()
                }
                if (
                    name != "unet"
                ):  # the name that every tool knows; newer transformers have dropped the wrapper (diffusers #13984)
                    state = {
                        f"text_model.{k.removeprefix('text_model.')}": v for k, v in state.items()
                    }
                layers[f"{name}_lora_layers"] = state
            base.pipe.save_lora_weights(
                part, weight_name=ADAPTER, **layers, **_collate_lora_metadata(tuned)
            )
            os.replace(part / ADAPTER, folder / ADAPTER)
        else:
            for name, module in tuned.items():
                dtype = module.dtype
                module.half().save_pretrained(part / name)
                module.to(dtype)
                if (
                    folder / name
                ).is_dir():  # out of the way first: deleting it takes time in which neither would be there
                    os.replace(folder / name, part / f"before_{name}")
                os.replace(part / name, folder / name)
    finally:  # also where the disk is full
        shutil.rmtree(part, ignore_errors=True)
    return weight_bytes(folder)


@contextmanager
def as_saved(weights):
    """The weights as `save_weights` would write them now, rounded to fp16; the exact ones wait on
    the CPU and come back bit for bit.
    """
    exact = [w.detach().to("cpu", copy=True) for w in weights]
    with torch.no_grad():
        try:
            for w in weights:
                w.copy_(w.half())
            yield
        finally:
            for w, value in zip(weights, exact):
                w.copy_(value)


def weight_bytes(run):
    """Bytes of the weights in a run folder, as shipped."""
    run = Path(run)
    files = (
        [run / ADAPTER]
        if (run / ADAPTER).is_file()
        else [f for part in WITH_WEIGHTS for f in (run / part).glob("*.safetensors")]
    )
    return sum(f.stat().st_size for f in files)


def load_run(run, base=None):
    """A base model with a run's weights in it, ready to generate; `base`, if given, is changed in
    place.

    Raises BadInput if the folder is no finished run, its weights are missing or broken, or it was
    trained on another family than `base`.
    """
    run = Path(run)
    settings = Settings.load(run / "settings.json")
    base = base or load_base(settings.base)
    metrics = run / "metrics.json"
    trained_on = read_json(metrics).get("family") if metrics.is_file() else None
    if trained_on and trained_on != base.family.name:
        title = {f.name: f.title for f in FAMILIES}.get(trained_on, trained_on)
        raise BadInput(
            f"Run {run} was trained on {title}, and '{base.name}' is {base.family.title}: load it"
            " into a base of its own family."
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
        raise BadInput(
            f"The weights of run {run} cannot be loaded ({str(error).splitlines()[0]}): train the"
            " run again."
        ) from None
    return base
