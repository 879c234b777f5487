"""Stable Diffusion 1.5's or XL's shape with random weights, as a diffusers folder or as a training
step alone, so that speed and memory can be measured without a download.

Built from `data/shapes/`. Nothing can be learnt with such weights, so no fidelity is measured.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._pytree import tree_map

from lib.files.errors import BadInput
from lib.files.json_file import read_json, write_json
from lib.memory.fake_tensors import fake_device
from lib.memory.forecasting import KNOWN_BASES, SHAPES, fake_inputs, folder_with_configs
from lib.models.base import Base
from lib.models.base_files import POCKET
from lib.models.families import family_named, family_of
from lib.step.training_step import Step

PIPELINES = {"sd15": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}


def build(name, folder, shapes=None, dtype=torch.float32):
    """Write the pipeline folder of shape `name` into `folder`, in `dtype` (diffusers' scripts
    demand fp32 of weights that train).

    `shapes`: a folder of configurations instead of data/shapes/<name>.
    """
    import diffusers
    import transformers

    shapes, folder = Path(shapes or SHAPES / name), Path(folder)
    if not (shapes / "unet" / "config.json").is_file():
        raise BadInput(
            f"There is no {shapes}/unet/config.json: the shape '{name}' is not in this checkout."
        )
    index: dict[str, Any] = {
        "_class_name": PIPELINES[name],
        "_diffusers_version": diffusers.__version__,
    }
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for part, kind in (("unet", "UNet2DConditionModel"), ("vae", "AutoencoderKL")):
        config = read_json(shapes / part / "config.json")
        with torch.device(device):
            model = getattr(diffusers, kind).from_config(config)
        model.to(dtype).save_pretrained(folder / part)
        index[part] = ["diffusers", kind]
    for part in sorted(path.name for path in shapes.glob("text_encoder*")):
        config = read_json(shapes / part / "config.json")
        kind = config["architectures"][0]
        settings = transformers.CLIPTextConfig(
            **{k: v for k, v in config.items() if k not in ("architectures", "model_type")}
        )
        with torch.device(device):
            model = getattr(transformers, kind)(settings)
        model.to(dtype).save_pretrained(folder / part)
        index[part] = ["transformers", kind]
        words = part.replace("text_encoder", "tokenizer")
        # The pocket base's tokenizer: its ids are a part of theirs, and every prompt is padded to
        # the same length.
        tokenizer = transformers.CLIPTokenizer.from_pretrained(
            POCKET / "tokenizer", model_max_length=settings.max_position_embeddings
        )
        tokenizer.save_pretrained(folder / words)
        _fill_up(folder / words / "tokenizer.json", settings.vocab_size)
        index[words] = ["transformers", "CLIPTokenizer"]
    scheduler = read_json(shapes / "scheduler" / "scheduler_config.json")
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    index["scheduler"] = ["diffusers", scheduler.get("_class_name", "DDIMScheduler")]
    if name == "sd15":
        index |= {
            "safety_checker": [None, None],
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
        }
    write_json(folder / "model_index.json", index)
    return folder


def _fill_up(file: Path, size: int) -> None:
    """Give a tokenizer's vocabulary as many words as its text encoder knows; no text has the new
    ones.
    """
    found = read_json(file)
    words = found["model"]["vocab"]
    words |= {f"unused {number}": number for number in range(len(words), size)}
    write_json(file, found)


def step_of(settings, device):
    """(a `Step` of `settings` on random weights in bf16, as they are loaded on a card; its inputs)
    on a CUDA device, without a folder.
    """
    from diffusers import UNet2DConditionModel

    folder = folder_with_configs(settings.base)
    with torch.device(device):
        unet: Any = UNet2DConditionModel.from_config(read_json(folder / "unet" / "config.json"))
        unet = unet.to(torch.bfloat16)
    scheduler = SimpleNamespace(config=read_json(folder / "scheduler" / "scheduler_config.json"))
    name = settings.base
    family = family_named(KNOWN_BASES[name]) if name in KNOWN_BASES else family_of(name)
    base = Base(SimpleNamespace(unet=unet, scheduler=scheduler), family, name, device, "bf16")
    with fake_device("cuda"):
        inputs, _ = fake_inputs(base, settings)

    def real(t):
        return (
            torch.randn(t.shape, device=device)
            if t.is_floating_point()
            else torch.zeros(t.shape, dtype=t.dtype, device=device)
        )

    return Step(base, settings), tree_map(real, inputs)
