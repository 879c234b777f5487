"""The files of a base model -> a diffusers pipeline, or some of its parts, on a device.

In the precision that is used there. Of a single file it also finds out what the model predicts,
which a folder's scheduler says.
"""

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy, deepcopy
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import torch

from lib.files import BadInput, read_json
from lib.files.safetensors_file import open_weights
from lib.files.text import first_line
from lib.models.base_files import NOT_NUMBERS, variant, weight_files
from lib.models.devices import DTYPES, fast_arithmetic, out_of_memory
from lib.models.families import Family, config_folder
from lib.models.layer_names import full_name
from lib.models.single_file import stated_prediction

# What a pipeline's `encode_prompt` returns, in its order; some have the first two alone.
ENCODED = (
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Within the block Python's garbage collector is off.

    It would walk over a million objects of the libraries again and again while these are made, a
    quarter of the start, and none of them is garbage.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@no_garbage_collection()
def read_pipeline(
    path: Path,
    family: type[Family],
    device: torch.device,
    only: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
) -> Any:
    """The diffusers pipeline of a folder or single file, frozen.

    Of `only` these parts, if given, the others None. Its parts are on `device` but for the
    denoiser, which waits on the CPU until it is needed (`Base.denoiser`). Weights are of `dtype`,
    or else in what a card is fast in, fp32 elsewhere. Raises BadInput if it is damaged, lacks
    weights, or does not fit the memory.
    """
    configuration = str(config_folder(path, family)) if path.is_file() else ""
    kind = getattr(import_diffusers(), family.pipeline)
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    every = (family.denoiser, "vae", *family.text_encoders)
    names = [name for name in every if only is None or name in only]
    left_out = family.left_out | {name: None for name in every if name not in names}
    if dtype is None:
        dtype = DTYPES[fast_arithmetic(device) if device.type == "cuda" else "fp32"]
    dtypes = {"default": dtype, "vae": torch.float32 if family.vae_in_fp32 else dtype}
    try:
        if path.is_file():
            pipe = kind.from_single_file(
                str(path), config=configuration, local_files_only=True, **left_out
            )
        else:
            pipe = kind.from_pretrained(
                path,
                use_safetensors=True,
                local_files_only=True,
                variant=variant(path, family.denoiser),
                dtype=dtypes,
                **left_out | _halves(path, family, names),
            )
        parts = {name: getattr(pipe, name) for name in names}
        if missing := missing_weights(path, parts):
            raise ValueError(f"it lacks {len(missing)} weights such as {missing[0]}")
        check_numbers(path, parts)
        for name, part in parts.items():
            place = "cpu" if name == family.denoiser else device
            part.requires_grad_(False).to(place, dtypes.get(name, dtype))
    except BadInput:
        raise
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
        reason = first_line(error)[:200]
        raise BadInput(
            f"Base model '{path}' cannot be loaded as {family.title} ({reason}): download or export"
            " it again."
        ) from None
    return pipe


def _halves(path: Path, family: type[Family], names: Sequence[str]) -> dict[str, Any]:
    """The parts of a folder that are there in half precision alone, where the denoiser is not.

    diffusers has one `variant` for all parts, and does not find them by it.
    """
    if variant(path, family.denoiser):
        return {}
    named, found = read_json(path / "model_index.json"), {}
    for name in names:
        if half := variant(path, name):
            library, kind = named[name]
            load = getattr(import_module(library), kind).from_pretrained
            found[name] = load(path / name, variant=half, use_safetensors=True)
    return found


def check_numbers(path: Path, parts: Mapping[str, torch.nn.Module]) -> None:
    """Raise BadInput if a weight of the loaded `parts` is no number."""
    for name, part in parts.items():
        for key, weight in part.named_parameters():
            # The sum costs no second tensor; that of numbers may still be too large for one.
            if not weight.sum().isfinite() and not weight.isfinite().all():
                raise BadInput(NOT_NUMBERS.format(path, f"{name}.{key}"))


def check_fit(pipe: Any, family: type[Family], path: Path) -> None:
    """Raise BadInput unless the parts of a loaded pipeline are of one model.

    Each text encoder knows all words of its tokenizer and hardly more, the denoiser takes the
    widths of their texts and the channels of the VAE. A tokenizer that names no length, or too long
    a one, gets its text encoder's.
    """
    encoders = [getattr(pipe, name) for name in family.text_encoders]
    for name, encoder, words_by in zip(family.text_encoders, encoders, family.tokenizers()):
        tokenizer = getattr(pipe, words_by)
        words = len(tokenizer)
        known = encoder.get_input_embeddings().num_embeddings
        # A few may have been added to a text encoder without being told to its tokenizer.
        if not 0.99 * known <= words <= known:
            _refuse_misfit(path, f"its {words_by} has {words} tokens, its {name} knows {known}")
        longest = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        tokenizer.model_max_length = longest
    denoiser, vae = getattr(pipe, family.denoiser).config, pipe.vae.config
    width = sum(encoder.config.hidden_size for encoder in encoders)
    wanted = denoiser.get("cross_attention_dim")
    if isinstance(wanted, int) and width != wanted:
        _refuse_misfit(path, f"its denoiser reads texts of width {wanted}, not of {width}")
    if denoiser.in_channels != vae.latent_channels:
        channels = f"{denoiser.in_channels} channels, its VAE makes {vae.latent_channels}"
        _refuse_misfit(path, f"its denoiser takes {channels}")


def _refuse_misfit(path: Path, why: str) -> NoReturn:
    raise BadInput(
        f"Base model {path} has parts of different models ({why}): get all its parts from one"
        " place."
    )


def missing_weights(path: Path, parts: Mapping[str, torch.nn.Module]) -> list[str]:
    """The weights of the loaded `parts` that no file gave, as "part.name".

    diffusers leaves them without memory, transformers makes up a folder's. Raises BadInput where a
    folder's files hold what is too coarse.
    """
    missing = []
    for name, part in parts.items():
        weights = part.state_dict(keep_vars=True)
        missing += [f"{name}.{key}" for key, value in weights.items() if value.is_meta]
        # Of a folder, all its files; a single file was opened before.
        files = [
            open_weights(file)
            for file in weight_files(path / name, variant(path) or variant(path, name))
        ]
        if path.is_dir() and name.startswith("text_encoder"):
            there = {full_name(name, key) for file in files for key in file.names}
            missing += [f"{name}.{key}" for key in weights if full_name(name, key) not in there]
    return missing


@cache
def import_diffusers() -> Any:
    """diffusers, with what pipelines need imported, which the garbage collector then passes over.

    Once, before any weights are there. In a thread of its own: errors that the packages catch while
    they are imported hold on to all callers and what these load later, and the collector would pass
    that over too, so that the first base model would never leave memory.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_import).result()


def _import() -> Any:
    # bitsandbytes, which diffusers imports, marks four small functions for torch.compile, and the
    # compiler that they bring in is an eighth of the start: for so long torch is asked, by its own
    # variable, to let functions be as they are.
    before = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        silence_libraries()
        import diffusers

        _ = getattr(diffusers, "StableDiffusionPipeline")  # imports what the others need as well
    finally:
        os.environ.pop("TORCHDYNAMO_DISABLE")
        if before is not None:
            os.environ["TORCHDYNAMO_DISABLE"] = before
    gc.freeze()
    return diffusers


def silence_libraries() -> None:
    """Silence warnings of the libraries that name nothing a reader could act on.

    Missing torchvision, for example, or optional kernels.
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


def set_prediction(base: Any, path: Path) -> None:
    """Set what the model of a single file's `Base` predicts, noise or velocity.

    The file may tell, by a key or by its header; else one trial prediction decides.
    """
    stated = stated_prediction(path)
    if base.family.predicts_either:
        if not stated:
            kind = "v_prediction" if predicts_velocity(base) else "epsilon"
            stated = {"prediction_type": kind}
        if stated["prediction_type"] == "epsilon":  # 2-base: the one that was made at 512 pixels
            base.denoiser.register_to_config(sample_size=64)
    # Made anew, for the noise schedule may be another.
    scheduler = base.pipe.scheduler
    base.pipe.scheduler = scheduler.from_config(scheduler.config, **stated)


def predicts_velocity(base: Any) -> bool:
    """Whether the denoiser of a `Base` predicts velocity, by trying.

    At the last timestep a picture is noise, which a model of noise must give back.
    """
    last = base.pipe.scheduler.config.num_train_timesteps - 1
    channels = base.denoiser.config.in_channels
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, channels, 16, 16, generator=generator).to(base.device)
    timesteps = torch.full((4,), last, device=base.device)
    with torch.no_grad(), base.autocast():
        predicted = base.predict(noise, timesteps, base.conditions([""] * 4)).float()
    similarity = torch.cosine_similarity(predicted.flatten(1), noise.flatten(1))
    return bool(similarity.mean() < 0.5)


def encoded(pipe: Any, prompt: list[str], guidance: float) -> dict[str, torch.Tensor]:
    """What the pipeline itself makes of prompts, by the names that it takes that by."""
    found = pipe.encode_prompt(
        prompt=prompt,
        device=pipe.device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=guidance > 1,
    )
    return {name: tensor for name, tensor in zip(ENCODED, found) if tensor is not None}


def with_own_scheduler(pipe: Any) -> Any:
    """A pipeline of the same parts, to draw at the same time: a scheduler counts its steps."""
    other = copy(pipe)
    other.scheduler = deepcopy(pipe.scheduler)
    return other
