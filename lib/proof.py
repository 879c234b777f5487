"""The last proof of an exported file: loaded by diffusers or PEFT into a fresh base, it draws what the run draws.

    same_pictures("pocket", load_any("runs/course/lora"), load_any("robot.safetensors"))        # 0: the same to the last bit
"""

from pathlib import Path

import numpy as np

from .base import load_base
from .keys import PARTS
from .methods import load_run
from .safefile import open_weights
from .settings import BadInput
from .target import read_target


def same_pictures(base, ours, theirs, prompts=("a picture", "a picture in the snow"), steps=10, measure=np.max):
    """Largest difference of a colour value (0 to 255) between the pictures of two loaders, which put weights into a fresh `Base`; with
    `measure=np.mean` the mean one."""
    drawn = []
    for load in (ours, theirs):
        drawn.append(load(load_base(base)).generate(list(prompts), list(range(len(prompts))), steps))
    return measure([np.abs(np.int16(a) - np.int16(b)) for a, b in zip(*drawn)]).item()


def is_adapter(path):
    """Whether a path holds a LoRA (a run's, a file, a PEFT folder), and not a whole model."""
    path = Path(path)
    if path.is_dir():
        return (path / "adapter.safetensors").is_file() or any(path.rglob("adapter_config.json"))
    return any("lora" in name for name in open_weights(path).names)


def load_any(path):
    """A function Base -> Base that loads `path` by the libraries' own loaders: a run, a LoRA file or PEFT folder, a whole model.

    Nothing of ours but file names is in the way, so that pictures prove the file and not our reader of it.
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
                    setattr(model.pipe, part, PeftModel.from_pretrained(getattr(model.pipe, part), path / part).eval())
        elif is_adapter(path):
            model.pipe.load_lora_weights(str(path.parent), weight_name=path.name)
        else:
            scheduler, kind = model.pipe.scheduler, type(model.pipe)
            try:
                config = str(read_target(model.name).configurations())
                model.pipe = kind.from_single_file(str(path), config=config, local_files_only=True,
                                                   torch_dtype=model.unet.dtype).to(model.device)
            except (OSError, ValueError, KeyError, RuntimeError) as error:
                said = str(error).splitlines()[0]
                raise BadInput(f"{path} cannot be loaded as a checkpoint of '{model.name}' ({said}): name its base.") from None
            model.pipe.scheduler = scheduler
        return model

    return load
