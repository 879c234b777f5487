"""Peak memory of a recipe before the fact: the real training step (`lib/step/training_step.py`) on
tensors that have a shape and no memory.

    forecast(plan("lora", "sdxl", resolution=1024))      # -> Forecast, in seconds, without weights

The step runs under PyTorch's FakeTensorMode, meta tensors that know a device, and `PeakMemory`
follows their storages. Autograd, autocast, PEFT, checkpointing and the optimiser are the installed
ones, so a copy that they keep is a copy that is counted.

`device="cpu"` counts what the CPU does, "cuda" what CUDA does otherwise
(`lib/memory/fake_tensors.py`). Not counted: the CUDA context, the allocator's slack, cuDNN's
workspaces; `lib/memory/cards.py` leaves room for them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from lib.config import METHODS, PRESETS, Settings, bucket
from lib.dataset.imagefolder import load_dataset
from lib.files import ROOT, BadInput, read_json
from lib.memory.fake_tensors import SCRATCH, WORKSPACE, fake_device
from lib.memory.tracker import PeakMemory
from lib.models import Base, family_of
from lib.models.base import pictures_per_pass
from lib.models.base_files import POCKET, locate
from lib.models.base_weights import skeleton
from lib.models.devices import DTYPES
from lib.models.families import family_named
from lib.step import Step
from lib.step.training_step import StepInputs

SHAPES = ROOT / "data" / "shapes"

# Bases whose configuration is here, known without their weights, and the family of each.
KNOWN_BASES = {"pocket": "pocket", "sd15": "sd1", "sd21": "sd2", "sdxl": "sdxl"}

CACHED_PICTURES = (6, 40)  # instance and class images whose latents wait on the device


@dataclass(frozen=True)
class Forecast:
    """Bytes at the worst moment of a step, and the same split by category (see `PeakMemory`)."""

    bytes: int
    by_category: dict[str, int]


def forecast(settings: Settings, device: str = "cuda", fast: str = "bf16") -> Forecast:
    """The peak memory of a training step of `settings`, whose base's weights are not read.

    - settings: their base is one of `KNOWN_BASES` or a diffusers folder
    - device: "cuda" or "cpu"
    - fast: what the device is fast in (bf16, fp16 or fp32), which precision "auto" means, and in
      which a card's weights are loaded

    Raises BadInput.
    """
    with fake_device(device) as rules:
        base = fake_base(settings.base, device, fast, settings.text_encoder_rate > 0)
        inputs, cached = fake_inputs(base, settings)
        step = Step(base, settings, rules)
        _make_optimizer_state(step)
        waiting = [cached, torch.empty(WORKSPACE[device], dtype=torch.uint8)]
        with PeakMemory(step.parts, step.optimizer, waiting, SCRATCH.get(device)) as peak:
            step(*inputs)
    return Forecast(peak.bytes, dict(peak.by_category))


def plan(method: str, base: str, **changes: Any) -> Settings:
    """The `Settings` of a method's preset on a base, for a forecast.

    Neither weights nor data need be there. Raises BadInput.
    """
    family = KNOWN_BASES[base] if base in KNOWN_BASES else family_of(base).name
    if (method, family) not in PRESETS:
        raise BadInput(f"Setting 'method' is {method!r}: it must be one of {', '.join(METHODS)}.")
    start: dict[str, Any] = {"method": method, "base": base, "data": "-", "output": "-"}
    given = {name: value for name, value in changes.items() if value is not None}
    return Settings(**start | PRESETS[method, family] | given)


def folder_with_configs(base: str) -> Path:
    """The folder with the configuration of a base: one of `KNOWN_BASES`, or what `locate` finds.

    Raises BadInput if there is none.
    """
    if base not in KNOWN_BASES:
        path = locate(base)
        if path.is_dir():
            return path
        names = {family: name for name, family in KNOWN_BASES.items()}
        base = names[family_of(base).name]
    return POCKET if base == "pocket" else SHAPES / base


@cache
def known_shape(base: str) -> str:
    """The one of `KNOWN_BASES` whose denoiser a base model's is, by what both configurations say.

    Else the base itself.
    """
    mine = read_json(folder_with_configs(base) / "unet" / "config.json")
    for name in KNOWN_BASES:
        known = read_json(folder_with_configs(name) / "unet" / "config.json")
        both = [key for key in known if key in mine and key != "sample_size" and key[0] != "_"]
        if "cross_attention_dim" in both and all(known[key] == mine[key] for key in both):
            return name
    return str(base)


def largest_size(settings: Settings) -> tuple[int, int]:
    """(width, height) in pixels of the largest pictures that train.

    Those of the settings' data set where it is there, else a square.
    """
    side = square_side(settings)
    record = Path(settings.data) / "dataset.json"
    if not record.is_file():
        return side, side
    sizes = _dataset_sizes(settings.data, record.stat().st_mtime_ns)
    return max((bucket(size, side) for size in sizes), key=math.prod)


@cache
def _dataset_sizes(data: str, written_ns: int) -> Sequence[tuple[int, int]]:
    """The sizes of a data set whose record was written at `written_ns`.

    Every recipe asks for them, and loading reads all pictures.
    """
    return load_dataset(data).sizes


def square_side(settings: Settings) -> int:
    """The side in pixels of the square pictures that train: the settings', else the base's own."""
    if settings.resolution:
        return settings.resolution
    folder = folder_with_configs(settings.base)
    return read_json(folder / "unet" / "config.json")["sample_size"] * vae_factor(folder)


def vae_factor(folder: Path) -> int:
    """Pixels a side that the VAE of the base in a folder makes of one latent pixel."""
    return 2 ** (len(read_json(folder / "vae" / "config.json")["block_out_channels"]) - 1)


def fake_base(
    name: str, device: str = "cuda", fast: str = "bf16", with_text_encoders: bool = False
) -> Base:
    """A `Base` of fake tensors as `load_base` gives it: its denoiser and scheduler.

    Its weights are in the precision in which `device` loads them (see
    `lib.models.pipeline.read_pipeline`). Call inside `fake_device`.
    """
    folder = folder_with_configs(name)
    family = family_named(KNOWN_BASES[name]) if name in KNOWN_BASES else family_of(name)
    base = Base(SimpleNamespace(), family, str(name), torch.device("cpu"), fast)
    base.stored_denoiser = skeleton(folder, "unet")
    for encoder in base.family.text_encoders if with_text_encoders else ():
        setattr(base.pipe, encoder, skeleton(folder, encoder))
    dtype = DTYPES[fast if device == "cuda" else "fp32"]
    for part, model in vars(base.pipe).items():
        setattr(base.pipe, part, model.to_empty(device="cpu").to(dtype))
    base.pipe.scheduler = SimpleNamespace(
        config=read_json(folder / "scheduler" / "scheduler_config.json")
    )
    return base


def fake_inputs(base: Base, settings: Settings) -> tuple[StepInputs, list[tuple]]:
    """The step's inputs, and the cached latents and conditions that they come from."""
    config = base.denoiser.config
    factor = vae_factor(folder_with_configs(base.name))
    width, height = largest_size(settings)
    shape = (config.in_channels, height // factor, width // factor)
    cached = [
        (torch.empty(n, *shape), torch.empty(n, *shape), _fake_conditions(base, settings, n))
        for n in CACHED_PICTURES[: 1 + settings.prior_pictures]
    ]
    rows = settings.batch_size * len(cached)
    return StepInputs(
        latents=torch.empty(rows, *shape),
        noise=torch.empty(rows, *shape),
        timesteps=torch.zeros(rows, dtype=torch.long),
        conditions=_fake_conditions(base, settings, rows),
    ), cached


def _fake_conditions(base: Base, settings: Settings, rows: int) -> dict[str, Any]:
    config = base.denoiser.config
    text = read_json(folder_with_configs(base.name) / "text_encoder" / "config.json")
    tokens = text["max_position_embeddings"]
    if settings.text_encoder_rate > 0:  # token ids, which a step encodes
        ids = [torch.zeros(rows, tokens, dtype=torch.long) for _ in base.family.text_encoders]
        return {"ids": ids, "sizes": torch.empty(rows, 6)}
    conditions: dict[str, Any] = {
        "encoder_hidden_states": torch.empty(rows, tokens, config.cross_attention_dim)
    }
    if config.addition_embed_type == "text_time":
        times = 6 * config.addition_time_embed_dim
        pooled = config.projection_class_embeddings_input_dim - times
        conditions["added_cond_kwargs"] = {
            "text_embeds": torch.empty(rows, pooled),
            "time_ids": torch.empty(rows, 6),
        }
    return conditions


def _make_optimizer_state(step: Step) -> None:
    """Let the optimiser make its state, as the first step does."""
    for group in step.optimizer.groups:
        for weight in group.weights:
            weight.grad = torch.empty_like(weight)
        if step.settings.fused_backward:
            step.optimizer.update_group(group)
    step.optimizer.step()


def caching_bytes(
    settings: Settings,
    device: str = "cuda",
    pictures_at_once: int | None = None,
    fast: str = "bf16",
) -> int:
    """Bytes at the worst moment before the first step, when pictures pass the VAE.

    As many pass as `Base.encode_images` takes at once, or `pictures_at_once`. VAE and text encoders
    are on the device then. The denoiser comes only when they have gone, in parts no larger than it
    will be in a step.
    """
    return _caching_bytes(settings.base, largest_size(settings), device, pictures_at_once, fast)


@cache
def _caching_bytes(
    name: str, size: tuple[int, int], device: str, pictures_at_once: int | None, fast: str
) -> int:
    width, height = size
    count = pictures_at_once or pictures_per_pass(width * height)
    with fake_device(device), torch.no_grad():
        base = fake_base(name, device, fast, with_text_encoders=True)
        dtype = torch.float32 if base.family.vae_in_fp32 else base.stored_denoiser.dtype
        vae = skeleton(folder_with_configs(name), "vae").to_empty(device="cpu").to(dtype)
        pictures = torch.empty(count, 3, height, width, dtype=vae.dtype)
        parts = torch.nn.ModuleList([vae, *base.text_encoders.values()])
        waiting = [pictures, torch.empty(WORKSPACE[device], dtype=torch.uint8)]
        with PeakMemory(parts, None, waiting, SCRATCH.get(device)) as peak:
            vae.encode(pictures)
    return peak.bytes
