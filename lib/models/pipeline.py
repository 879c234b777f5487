"""The files of a base model -> a diffusers pipeline, or some parts of it, on a device and in the
precision used there.

Of a single file it also finds out what the model predicts, which a folder's scheduler says.
"""

import gc
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

import torch

from lib.files.errors import BadInput
from lib.files.safetensors_file import open_weights
from lib.models.base_files import variant, weight_files
from lib.models.devices import has_fast_bf16, out_of_memory
from lib.models.families import config_folder
from lib.models.layer_names import full_name
from lib.models.single_file import told


@contextmanager
def no_collecting():
    """Within the block Python's collector rests. It would walk over a million objects of the stack
    again and again while these are made, a quarter of the start, and none of them is garbage.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@no_collecting()
def read_pipeline(path, family, device, only=None, dtype=None):
    """The diffusers pipeline of a folder or single file, frozen; of `only` these parts, if given,
    the others None.

    Its parts are on `device` but for the U-Net, which waits on the CPU until it is needed
    (`Base.unet`). Weights are of `dtype`, or else bf16 on CUDA where that is fast, fp32 elsewhere.
    Raises BadInput if it is damaged, lacks weights, or does not fit the memory.
    """
    where = config_folder(path, family) if path.is_file() else path
    kind = getattr(stack(), family.pipeline)
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    names = [name for name in ("unet", "vae", *family.towers) if only is None or name in only]
    left_out = family.without | {
        name: None for name in ("unet", "vae", *family.towers) if name not in names
    }
    dtype = dtype or (
        torch.bfloat16 if device.type == "cuda" and has_fast_bf16(device) else torch.float32
    )
    dtypes = {"default": dtype, "vae": torch.float32 if family.vae_in_fp32 else dtype}
    try:
        if path.is_file():
            pipe = kind.from_single_file(
                str(path), config=str(where), local_files_only=True, **left_out
            )
        else:
            pipe = kind.from_pretrained(
                path,
                use_safetensors=True,
                local_files_only=True,
                variant=variant(path),
                dtype=dtypes,
                **left_out,
            )
        parts = {name: getattr(pipe, name) for name in names}
        if missing := lacking(path, parts):
            raise ValueError(f"it lacks {len(missing)} weights such as {missing[0]}")
        for name, part in parts.items():
            part.requires_grad_(False).to(
                "cpu" if name == "unet" else device, dtypes.get(name, dtype)
            )
    except (
        OSError,
        ValueError,
        RuntimeError,
        KeyError,
        AttributeError,
        MemoryError,
        SingleFileComponentError,
    ) as error:
        if out_of_memory(error):
            raise BadInput(
                f"Memory ran out while base model '{path}' was loaded: free memory that other"
                " programs hold, or take a smaller base."
            ) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise BadInput(
            f"Base model '{path}' cannot be loaded as {family.title} ({reason}): download or export"
            " it again."
        ) from None
    return pipe


def lacking(path, parts):
    """The weights of the loaded `parts` that no file gave: diffusers leaves them without memory,
    transformers makes up a folder's.
    """
    missing = [
        f"{name}.{key}"
        for name, part in parts.items()
        for key, value in part.state_dict(keep_vars=True).items()
        if value.is_meta
    ]
    for name in (n for n in parts if n.startswith("text_encoder") and path.is_dir()):
        there = {
            full_name(name, key)
            for file in weight_files(path / name, variant(path))
            for key in open_weights(file).names
        }
        missing += [
            f"{name}.{key}"
            for key in parts[name].state_dict(keep_vars=True)
            if full_name(name, key) not in there
        ]
    return missing


@cache
def stack():
    """diffusers, with what pipelines stand on imported. The collector passes that over from then
    on: once, before any weights are here.

    In a thread of its own: errors that the packages catch while they are imported hold on to all
    callers and what these load later, and the collector would pass that over too, so that the first
    base model would never leave memory.
    """
    with ThreadPoolExecutor(1) as aside:
        return aside.submit(_imported).result()


def _imported():
    """bitsandbytes, which diffusers imports, marks four small functions for torch.compile, and the
    compiler that they bring in is an eighth of the start: for so long torch is told, by its own
    variable, to let functions be as they are.
    """
    compiles = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        quiet()
        import diffusers
        from diffusers import StableDiffusionPipeline  # noqa: F401 (the others stand on the same)
    finally:
        os.environ.pop("TORCHDYNAMO_DISABLE")
        if compiles is not None:
            os.environ["TORCHDYNAMO_DISABLE"] = compiles
    gc.freeze()
    return diffusers


def quiet():
    """Silence warnings of the stack that name nothing a reader could act on (missing torchvision,
    optional kernels).
    """
    import logging

    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    for name in ("bitsandbytes", "bitsandbytes.backends.cpu.ops", "transformers", "diffusers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for log in (diffusers_logging, transformers_logging):
        log.set_verbosity_error()
        log.disable_progress_bar()


def set_prediction(base, path):
    """Set what a single file's model predicts, noise or velocity, where the file tells: by a key,
    by its header, or by doing it.
    """
    said = told(path)
    if base.family.predicts_either:
        said = said or {"prediction_type": "v_prediction" if predicts_velocity(base) else "epsilon"}
        if said["prediction_type"] == "epsilon":  # 2-base: the one that was made at 512 pixels
            base.unet.register_to_config(sample_size=64)
    base.pipe.scheduler = base.pipe.scheduler.from_config(
        base.pipe.scheduler.config, **said
    )  # anew, for the noise schedule may be another


def predicts_velocity(base):
    """Whether the U-Net predicts velocity, by trying: at the last timestep a picture is noise,
    which a model of noise must give back.
    """
    when = base.pipe.scheduler.config.num_train_timesteps - 1
    channels = base.unet.config.in_channels
    noise = torch.randn(4, channels, 16, 16, generator=torch.Generator().manual_seed(0)).to(
        base.device
    )
    with torch.no_grad(), base.autocast():
        said = base.predict(
            noise, torch.full((4,), when, device=base.device), base.conditions([""] * 4)
        ).float()
    return bool(torch.cosine_similarity(said.flatten(1), noise.flatten(1)).mean() < 0.5)
