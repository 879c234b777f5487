"""The last proof of an exported file: loaded by diffusers or PEFT into a fresh base, it draws what
the run draws.

picture_difference("pocket", library_loader("runs/course/lora"), library_loader("robot.safetensors"))        # 0: the
same to the last bit
"""

from pathlib import Path

import numpy as np

from lib.convert.adapter import read_adapter
from lib.convert.composition import load_adapters
from lib.files.errors import BadInput
from lib.files.safetensors_file import open_weights
from lib.models.base import load_base
from lib.models.base_weights import read_target
from lib.models.families import Pocket, family_of
from lib.models.layer_names import PARTS
from lib.step.run_weights import load_run

# of 255: how far a colour value may move where merged weights were rounded to fp16 (an edge that
# shifts by a hair)
ROUNDING = 40


# Of 255, the mean over all colour values: what is allowed on CUDA, where runs may differ in the
# last bit and weights are bf16, so that the largest says nothing. Measured on the pocket base, on a
# CPU: 1.0 for a merge in bf16, 1.3 for bf16 against fp32, and 6.6 for an adapter at nine tenths of
# its strength, 31 at half of it.
ON_CUDA = 4


def check_pictures(source, out, base, cuda=None):
    """Draw the same prompts and seeds with `source` and with the written `out` on `base`; say how
    far apart the pictures are.

    Adapters must draw the same to the last bit, merged models but for rounding, and both on average
    where `cuda` (by default: where there is a GPU). On a processor only the pocket base is drawn:
    larger ones take minutes, and were read back tensor by tensor. Raises BadInput if the pictures
    differ by more.
    """
    import numpy as np
    import torch

    cuda = torch.cuda.is_available() if cuda is None else cuda
    if family_of(base) is not Pocket and not cuda:
        return (
            "pictures: not drawn, for on a processor this base takes minutes (every tensor was read"
            " back)"
        )
    ours, allowed = library_loader(source), 0
    if is_adapter(source):
        adapter = read_adapter(source, read_target(base).layers)
        uneven = (
            len({layer.alpha for _, _, layer in adapter}) > 1
        )  # then `with_one_alpha` rounds once more
        ours, allowed = (
            (lambda model: load_adapters(model, {"source": adapter}, other_base=True)),
            ROUNDING if uneven or not is_adapter(out) else 0,
        )
    kind, measure, allowed = ("mean", np.mean, ON_CUDA) if cuda else ("largest", np.max, allowed)
    apart = picture_difference(base, ours, library_loader(out), measure=measure)
    said = f"{kind} difference {round(apart, 2)} of 255"
    if apart > allowed:
        raise BadInput(
            f"{out} does not draw what {source} draws ({said}, {allowed} allowed): an error of the"
            " export, please report it."
        )
    return f"pictures: the same for the same seeds{', but for rounding' if apart else ''} ({said})"


def picture_difference(
    base, ours, theirs, prompts=("a picture", "a picture in the snow"), steps=10, measure=np.max
):
    """Largest difference of a colour value (0 to 255) between the pictures of two loaders, which
    put weights into a fresh `Base`; with `measure=np.mean` the mean one.
    """
    drawn = []
    for load in (ours, theirs):
        drawn.append(
            load(load_base(base)).generate(list(prompts), list(range(len(prompts))), steps)
        )
    return measure([np.abs(np.int16(a) - np.int16(b)) for a, b in zip(*drawn)]).item()


def is_adapter(path):
    """Whether a path holds a LoRA (a run's, a file, a PEFT folder), and not a whole model."""
    path = Path(path)
    if path.is_dir():
        return (path / "adapter.safetensors").is_file() or any(path.rglob("adapter_config.json"))
    return any("lora" in name for name in open_weights(path).names)


def library_loader(path):
    """A function Base -> Base that loads `path` by the libraries' own loaders: a run, a LoRA file
    or PEFT folder, a whole model.

    Nothing of ours but file names is in the way, so that pictures prove the file and not our reader
    of it.
    """
    path = Path(path)

    def load(model):
        if (path / "settings.json").is_file():
            return load_run(path, model)
        if (path / "model_index.json").is_file():
            return load_base(str(path))
        if path.is_dir():
            from peft import PeftModel

            for part in PARTS:
                if (path / part).is_dir():
                    setattr(
                        model.pipe,
                        part,
                        PeftModel.from_pretrained(getattr(model.pipe, part), path / part).eval(),
                    )
        elif is_adapter(path):
            model.pipe.load_lora_weights(str(path.parent), weight_name=path.name)
        else:
            scheduler, kind = model.pipe.scheduler, type(model.pipe)
            try:
                config = str(read_target(model.name).configurations())
                model.pipe = kind.from_single_file(
                    str(path), config=config, local_files_only=True, torch_dtype=model.unet.dtype
                ).to(model.device)
            except (OSError, ValueError, KeyError, RuntimeError) as error:
                said = str(error).splitlines()[0]
                raise BadInput(
                    f"{path} cannot be loaded as a checkpoint of '{model.name}' ({said}): name its"
                    " base."
                ) from None
            model.pipe.scheduler = scheduler
        return model

    return load
