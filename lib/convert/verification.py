"""The last proof of an exported file: loaded by diffusers or PEFT, it draws what the run draws.

ours, theirs = library_loader("runs/course/lora"), library_loader("robot.safetensors")
picture_difference("pocket", ours, theirs)        # 0: the same to the last bit
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib.convert.adapter import read_adapter
from lib.convert.composition import load_adapters
from lib.files import BadInput
from lib.files.safetensors_file import open_weights
from lib.models import Base, family_of, load_base, open_base_weights
from lib.models.base_files import TRAINABLE_PARTS
from lib.models.families import Pocket
from lib.step import load_run

Loader = Callable[[Base], Base]

# Of 255: how far a colour value may move where merged weights were rounded to fp16 (an edge that
# shifts by a hair).
ROUNDING = 40

# Of 255, the mean over all colour values: what is allowed on CUDA, where runs may differ in the
# last bit and weights are bf16, so that the largest says nothing. Measured on the pocket base, on a
# CPU: 1.0 for a merge in bf16, 1.3 for bf16 against fp32, and 6.6 for an adapter at nine tenths of
# its strength, 31 at half of it.
ON_CUDA = 4


def check_pictures(source: str | Path, out: str | Path, base: str, cuda: bool | None = None) -> str:
    """Draw the same prompts and seeds with `source` and the written `out` on the base.

    Returns a sentence on how far apart the pictures are. Adapters must draw the same to the last
    bit, merged models but for rounding, and both on average where `cuda` (by default: where there
    is a GPU). On a processor only the pocket base is drawn: larger ones take minutes, and were read
    back tensor by tensor. Raises BadInput if the pictures differ by more.
    """
    cuda = torch.cuda.is_available() if cuda is None else cuda
    if family_of(base) is not Pocket and not cuda:
        return (
            "pictures: not drawn, for on a processor this base takes minutes (every tensor was read"
            " back)"
        )
    ours, allowed = _source_loader(source, out, base)
    kind, measure = ("mean", np.mean) if cuda else ("largest", np.max)
    allowed = ON_CUDA if cuda else allowed
    apart = picture_difference(base, ours, library_loader(out), measure=measure)
    difference = f"{kind} difference {round(apart, 2)} of 255"
    if apart > allowed:
        raise BadInput(
            f"{out} does not draw what {source} draws ({difference}, {allowed} allowed): an error"
            " of the export, please report it."
        )
    rounding = ", but for rounding" if apart else ""
    return f"pictures: the same for the same seeds{rounding} ({difference})"


def _source_loader(source: str | Path, out: str | Path, base: str) -> tuple[Loader, int]:
    """What loads `source`, and how far a colour value of `out` may be from its."""
    if not is_adapter(source):
        return library_loader(source), 0
    adapter = read_adapter(source, open_base_weights(base).layers)

    def load(model: Base) -> Base:
        return load_adapters(model, {"source": adapter}, other_base=True)

    uneven = len({layer.alpha for _, _, layer in adapter}) > 1  # `with_one_alpha` rounds once more
    return load, ROUNDING if uneven or not is_adapter(out) else 0


def picture_difference(
    base: str,
    ours: Loader,
    theirs: Loader,
    steps: int = 10,
    measure: Callable[[Any], Any] = np.max,
) -> float:
    """The largest difference of a colour value (0 to 255) between the pictures of two loaders.

    Loaders put weights into a fresh `Base`. With `measure=np.mean` it is the mean difference.
    """
    prompts = ["a picture", "a picture in the snow"]
    one, two = (load(load_base(base)).generate(prompts, [0, 1], steps) for load in (ours, theirs))
    pairs = [[np.asarray(image, np.int16) for image in pair] for pair in zip(one, two)]
    return measure([np.abs(a - b) for a, b in pairs]).item()


def is_adapter(path: str | Path) -> bool:
    """Whether a path holds a LoRA (a run's, a file, a PEFT folder), and not a whole model."""
    path = Path(path)
    if path.is_dir():
        return (path / "adapter.safetensors").is_file() or any(path.rglob("adapter_config.json"))
    return any("lora" in name for name in open_weights(path).names)


def library_loader(path: str | Path) -> Loader:
    """A function Base -> Base that loads `path` by the libraries' own loaders.

    `path`: a run, a LoRA file or PEFT folder, a whole model. Nothing of ours but file names is in
    the way, so that pictures prove the file and not our reader of it.
    """
    path = Path(path)

    def load(model: Base) -> Base:
        if (path / "settings.json").is_file():
            return load_run(path, model)
        if (path / "model_index.json").is_file():
            return load_base(str(path))
        if path.is_dir():
            _load_peft_folder(path, model)
        elif is_adapter(path):
            model.pipe.load_lora_weights(str(path.parent), weight_name=path.name)
        else:
            _load_checkpoint(path, model)
        return model

    return load


def _load_peft_folder(path: Path, model: Base) -> None:
    from peft import PeftModel  # late: takes seconds

    for part in TRAINABLE_PARTS:
        if (path / part).is_dir():
            plain = getattr(model.pipe, part)
            setattr(model.pipe, part, PeftModel.from_pretrained(plain, path / part).eval())


def _load_checkpoint(path: Path, model: Base) -> None:
    scheduler, kind = model.pipe.scheduler, type(model.pipe)
    try:
        config = str(open_base_weights(model.name).configurations())
        model.pipe = kind.from_single_file(
            str(path), config=config, local_files_only=True, torch_dtype=model.denoiser.dtype
        ).to(model.device)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(
            f"{path} cannot be loaded as a checkpoint of '{model.name}' ({reason}): name its base."
        ) from None
    model.pipe.scheduler = scheduler
