"""The files of a base model -> a diffusers pipeline, or some parts of it, on a device and in the precision used there."""

import os

import torch

from .families import config_folder
from .locate import variant
from .settings import BadInput


def read_pipeline(path, family, device, only=None):
    """The diffusers pipeline of a folder or single file, frozen, on `device`; of `only` these parts, if given, the others None.

    Weights are bf16 on CUDA and fp32 elsewhere. Raises BadInput if it is damaged or lacks weights.
    """
    where = config_folder(path, family) if path.is_file() else path
    quiet()
    import diffusers
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    names = [name for name in ("unet", "vae", *family.towers) if only is None or name in only]
    left_out = family.without | {name: None for name in ("unet", "vae", *family.towers) if name not in names}
    kind, dtype = getattr(diffusers, family.pipeline), torch.bfloat16 if device.type == "cuda" else torch.float32
    dtypes = {"default": dtype, "vae": torch.float32 if family.vae_in_fp32 else dtype}
    try:
        if path.is_file():
            pipe = kind.from_single_file(str(path), config=str(where), local_files_only=True, **left_out)
        else:
            pipe = kind.from_pretrained(
                path, use_safetensors=True, local_files_only=True, variant=variant(path), dtype=dtypes, **left_out
            )
        parts = {name: getattr(pipe, name) for name in names}
        if missing := [key for part in parts.values() for key, value in part.state_dict().items() if value.is_meta]:
            raise ValueError(f"it lacks {len(missing)} weights such as {missing[0]}")
        for name, part in parts.items():
            part.requires_grad_(False).to(device, dtypes.get(name, dtype))
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, SingleFileComponentError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise BadInput(f"Base model '{path}' cannot be loaded as {family.title} ({reason}): download or export it again.") from None
    return pipe


def quiet():
    """Silence warnings of the stack that name nothing a reader could act on (missing torchvision, optional kernels)."""
    import logging

    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    for name in ("bitsandbytes", "bitsandbytes.backends.cpu.ops", "transformers", "diffusers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for log in (diffusers_logging, transformers_logging):
        log.set_verbosity_error()
        log.disable_progress_bar()
