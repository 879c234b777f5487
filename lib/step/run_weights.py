"""A run's weights as they ship: written by `save_weights`, brought back into a base model by
`load_run`.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lib.config import Settings
from lib.files import BadInput, read_json, whole_folder
from lib.files.text import first_line
from lib.files.whole_writes import whole_file
from lib.models import Base, load_base, open_base_weights
from lib.models.base_files import WEIGHT_PARTS
from lib.models.compatibility import check_unchanged
from lib.models.families import FAMILIES
from lib.step.methods import tuned_parts

ADAPTER = "adapter.safetensors"


def save_weights(base: Base, settings: Settings, folder: Path | str) -> int:
    """Write what one ships, in fp16 safetensors, into `folder`. Returns its bytes.

    LoRA: an adapter. DreamBooth: the tuned parts as diffusers folders. Each is written beside its
    place first, so that a run always holds one that is complete.
    """
    folder = Path(folder)
    for left in folder.glob(".*.part"):  # by a process that was killed while it wrote them
        shutil.rmtree(left, ignore_errors=True)
    if settings.method == "lora":
        with whole_file(folder / ADAPTER) as unfinished:
            _save_adapter(base, settings, unfinished)
    else:
        for name, module in tuned_parts(base, settings).items():
            with whole_folder(folder / name) as unfinished:
                _copy_in_half(module).save_pretrained(unfinished)
    return weight_bytes(folder)


def _copy_in_half(module: Any) -> Any:
    """A part's copy in fp16 on the CPU. The part itself stays untouched, in its place in memory: a
    training may go on with it, and a CUDA graph reads it there.
    """
    kind = type(module)
    with torch.device("meta"):  # diffusers' classes are made by the first, transformers' by calling
        copy = getattr(kind, "from_config", kind)(module.config)
    weights = {name: w.detach().to("cpu", torch.half) for name, w in module.state_dict().items()}
    copy.load_state_dict(weights, assign=True)
    return copy


def _save_adapter(base: Base, settings: Settings, path: Path) -> None:
    from diffusers.training_utils import _collate_lora_metadata
    from peft.utils import get_peft_model_state_dict

    # PEFT's own names throughout: diffusers' older ones exist for attention alone, and a file that
    # mixes both loads by half.
    tuned = tuned_parts(base, settings)
    layers = {}
    for name, module in tuned.items():
        state = get_peft_model_state_dict(module)
        state = {key: value.half().contiguous() for key, value in state.items()}
        if name != base.family.denoiser:
            # The name that every tool knows; newer transformers have dropped the wrapper
            # (diffusers #13984).
            state = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in state.items()}
        layers[f"{name}_lora_layers"] = state
    base.pipe.save_lora_weights(
        path.parent, weight_name=path.name, **layers, **_collate_lora_metadata(tuned)
    )


@contextmanager
def as_saved(weights: Sequence[torch.Tensor]) -> Iterator[None]:
    """Within the block the weights are as `save_weights` would write them now, rounded to fp16.

    The exact ones wait on the CPU and come back bit for bit.
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


def weight_bytes(run: Path | str) -> int:
    """Bytes of the weights in a run folder, as shipped."""
    run = Path(run)
    files = [run / ADAPTER]
    if not files[0].is_file():
        files = [f for part in WEIGHT_PARTS for f in (run / part).glob("*.safetensors")]
    return sum(f.stat().st_size for f in files)


def load_run(run: Path | str, base: Base | None = None) -> Base:
    """A base model with a run's weights in it, ready to generate; `base` is changed in place.

    Without `base` the run's own is loaded. Raises BadInput if the folder is no finished run, its
    weights are missing or broken, it was trained on another family than `base`, or on weights that
    its own base has no more.
    """
    run = Path(run)
    settings = Settings.load(run / "settings.json")
    if base is None:
        check_unchanged(run, open_base_weights(settings.base))
        base = load_base(settings.base)
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
            _load_tuned_parts(base, settings, run)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise BadInput(
            f"The weights of run {run} cannot be loaded ({first_line(error)}): train the run again."
        ) from None
    return base


def _load_tuned_parts(base: Base, settings: Settings, run: Path) -> None:
    for name, old in tuned_parts(base, settings).items():
        new = type(old).from_pretrained(run / name, use_safetensors=True, dtype=old.dtype)
        if [p.shape for p in new.parameters()] != [p.shape for p in old.parameters()]:
            raise ValueError(f"its {name} has layers of other sizes than '{base.name}'")
        setattr(base.pipe, name, new.to(base.device).requires_grad_(False))
