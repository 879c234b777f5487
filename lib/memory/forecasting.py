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
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch

from lib.config.picture_sizes import bucket
from lib.config.presets import PRESETS
from lib.config.settings import METHODS, Settings
from lib.dataset.imagefolder import load_dataset
from lib.files.errors import BadInput
from lib.files.json_file import read_json
from lib.files.paths import ROOT
from lib.memory.fake_tensors import SCRATCH, WORKSPACE, fake_device
from lib.memory.tracker import PeakMemory
from lib.models.base import Base, at_once
from lib.models.base_files import POCKET, locate
from lib.models.families import FAMILIES, family_of

SHAPES = ROOT / "data" / "shapes"


BASES = {
    "pocket": "pocket",
    "sd15": "sd1",
    "sd21": "sd2",
    "sdxl": "sdxl",
}  # known without their weights -> family


PICTURES = (6, 40)  # instance and class images whose latents wait on the device


@dataclass(frozen=True)
class Forecast:
    """`bytes` at the worst moment of a step, split in `by_category` (see `PeakMemory`)."""

    bytes: int
    by_category: dict


def forecast(settings, device="cuda", bf16=True):
    """The `Forecast` of a training step of `settings`, whose base is one of `BASES` or a diffusers
    folder (its weights are not read).

    device: "cuda" or "cpu". bf16: whether the device multiplies bf16 fast, which decides what
    precision "auto" means, and on CUDA what weights are loaded in. Raises BadInput.
    """
    from lib.step.training_step import Step

    with fake_device(device):
        base = hollow_base(
            settings.base, loaded(device, bf16), bf16, settings.text_encoder_rate > 0
        )
        inputs, sources = hollow_inputs(base, settings)
        step = Step(base, settings)
        _fill_optimizer(step)
        with PeakMemory(
            step.parts, step.optimizer, [sources, workspace(device)], SCRATCH.get(device)
        ) as peak:
            step(*inputs)
    return Forecast(peak.bytes, dict(peak.by_category))


def plan(method, base, **changes):
    """The `Settings` of a method's preset on a base, for a forecast: neither weights nor data need
    be there.
    """
    kind = BASES[base] if base in BASES else family_of(base).name
    if (method, kind) not in PRESETS:
        raise BadInput(f"Setting 'method' is {method!r}: it must be one of {', '.join(METHODS)}.")
    values = PRESETS[method, kind] | {
        name: value for name, value in changes.items() if value is not None
    }
    return Settings.from_dict({"method": method, "base": base, "data": "-", "output": "-"} | values)


def folder_of(base):
    """The folder with the configuration of a base: one of `BASES`, or what `locate` finds. Raises
    BadInput if there is none.
    """
    if base not in BASES:
        path = locate(base)
        if path.is_dir():
            return path
        base = {kind: shape for shape, kind in BASES.items()}[family_of(base).name]
    return POCKET if base == "pocket" else SHAPES / base


@cache
def shape_of(base):
    """The one of `BASES` whose U-Net a base model's is, by what both configurations say; else the
    base itself, as a string.
    """
    mine = read_json(folder_of(base) / "unet" / "config.json")
    for name in BASES:
        known = read_json(folder_of(name) / "unet" / "config.json")
        both = [key for key in known if key in mine and key != "sample_size" and key[0] != "_"]
        if "cross_attention_dim" in both and all(known[key] == mine[key] for key in both):
            return name
    return str(base)


def largest(settings):
    """(width, height) in pixels of the largest pictures that train: those of the settings' data set
    where it is there, else a square.
    """
    pixels, record = side(settings), Path(settings.data) / "dataset.json"
    if not record.is_file():
        return pixels, pixels
    return max(
        (bucket(size, pixels) for size in _sizes(settings.data, record.stat().st_mtime_ns)),
        key=math.prod,
    )


@cache
def _sizes(data, stamp):
    """The sizes of a data set whose record was written at `stamp`: every recipe asks for them, and
    loading reads all pictures.
    """
    return load_dataset(data).sizes


def side(settings):
    """The side in pixels of the square pictures that train: the settings', or else the base's own."""
    unet, vae = (
        read_json(folder_of(settings.base) / part / "config.json") for part in ("unet", "vae")
    )
    return settings.resolution or unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)


def hollow_base(name, dtype=torch.bfloat16, bf16=True, reads=False):
    """A `Base` of fake tensors as `load_base` gives it, of `dtype`: its U-Net and scheduler, and if
    it `reads` its text encoders.

    Call inside `fake_device`.
    """
    import diffusers
    import transformers

    folder, kind = folder_of(name), BASES[name] if name in BASES else family_of(name).name
    base = Base(SimpleNamespace(), str(name), torch.device("cpu"), bf16)
    base.family = next(f for f in FAMILIES if f.name == kind)
    with torch.device("meta"):
        base.pipe.unet = diffusers.UNet2DConditionModel.from_config(
            read_json(folder / "unet" / "config.json")
        )
        for tower in base.family.towers if reads else ():
            config = read_json(folder / tower / "config.json")
            setattr(
                base.pipe,
                tower,
                getattr(transformers, config["architectures"][0])(
                    transformers.CLIPTextConfig(**config)
                ),
            )
    for part, model in vars(base.pipe).items():
        setattr(base.pipe, part, model.to_empty(device="cpu").to(dtype))
    base.pipe.scheduler = SimpleNamespace(
        config=read_json(folder / "scheduler" / "scheduler_config.json")
    )
    return base


def workspace(device):
    """What a device's libraries hold for themselves in the memory that is weighed, as one tensor."""
    return torch.empty(WORKSPACE[device], dtype=torch.uint8)


def hollow_inputs(base, settings):
    """(the step's inputs: latents, noise, timesteps, conditions; the cached latents and embeddings
    they come from).
    """
    config, folder = base.unet.config, folder_of(base.name)
    vae, text = (read_json(folder / part / "config.json") for part in ("vae", "text_encoder"))
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    width, height = largest(settings)

    def conditions(rows):
        if settings.text_encoder_rate > 0:  # token ids, which a step encodes
            words = [
                torch.zeros(rows, text["max_position_embeddings"], dtype=torch.long)
                for _ in base.family.towers
            ]
            return {"ids": words, "sizes": torch.empty(rows, 6)}
        told = {
            "encoder_hidden_states": torch.empty(
                rows, text["max_position_embeddings"], config.cross_attention_dim
            )
        }
        if config.addition_embed_type == "text_time":
            pooled = (
                config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            )
            told["added_cond_kwargs"] = {
                "text_embeds": torch.empty(rows, pooled),
                "time_ids": torch.empty(rows, 6),
            }
        return told

    shape = (config.in_channels, height // factor, width // factor)
    sources = [
        (torch.empty(n, *shape), torch.empty(n, *shape), conditions(n))
        for n in PICTURES[: 1 + (settings.prior_weight > 0)]
    ]
    rows = settings.batch_size * len(sources)
    return (
        torch.empty(rows, *shape),
        torch.empty(rows, *shape),
        torch.zeros(rows, dtype=torch.long),
        conditions(rows),
    ), sources


def _fill_optimizer(step):
    """Let the optimiser make its state, as the first step does."""
    for piece in step.optimizer.pieces:
        for weight in piece.weights:
            weight.grad = torch.empty_like(weight)
        if step.settings.fused_backward:
            step.optimizer.update(piece)
    step.optimizer.step()


def loaded(device, bf16):
    """The precision in which weights are loaded (see `lib.models.pipeline.read_pipeline`)."""
    return torch.bfloat16 if device == "cuda" and bf16 else torch.float32


def caching(settings, device="cuda", some=None, bf16=True):
    """Bytes at the worst moment before the first step: pictures, as many as `Base.encode_images`
    takes at once (or `some`), pass the VAE.

    VAE and text encoders are on the device then. The U-Net comes only when they have gone, in
    pieces no larger than it will be in a step.
    """
    return _caching(settings.base, largest(settings), device, some, bf16)


@cache
def _caching(name, size, device, some, bf16):
    from diffusers import AutoencoderKL

    low, (width, height) = loaded(device, bf16), size
    with fake_device(device), torch.no_grad():
        base = hollow_base(name, low, reads=True)
        with torch.device("meta"):
            vae = AutoencoderKL.from_config(read_json(folder_of(name) / "vae" / "config.json"))
        vae = vae.to_empty(device="cpu").to(torch.float32 if base.family.vae_in_fp32 else low)
        pictures = torch.empty(some or at_once(width * height), 3, height, width, dtype=vae.dtype)
        parts, held = (
            torch.nn.ModuleList([vae, *base.text_encoders.values()]),
            [pictures, workspace(device)],
        )
        with PeakMemory(parts, None, held, SCRATCH.get(device)) as peak:
            vae.encode(pictures)
    return peak.bytes
