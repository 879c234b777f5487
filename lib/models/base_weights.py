"""A base model on disk: its family and the shape of each of its weights, from file headers alone.

    base = open_base_weights("pocket")
    base.family, base.shapes["unet"]["conv_in.weight"]
    base.read("unet", "conv_in.weight")         # a tensor, from disk

That is what an adapter or a checkpoint has to fit. Nothing is loaded: gigabytes of Stable Diffusion
are described in a fraction of a second, and read tensor by tensor when asked. The fingerprint by
which a base model is known is made here and nowhere else.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch

from lib.files import BadInput, listed, read_json
from lib.files.paths import PICKLE_ENDINGS
from lib.files.safetensors_file import open_weights
from lib.models.base_files import NOT_NUMBERS, TRAINABLE_PARTS, Shapes, locate, weight_files
from lib.models.families import FAMILIES, Pocket, config_folder, family_of, known_label
from lib.models.layer_names import full_name
from lib.models.single_file import Places, read_single_file, stated_prediction

# The VAE's attention by its older names, which Stable Diffusion's own folders still have.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

FINGERPRINTED = 512  # numbers of each tensor that its base is known by


@dataclass(frozen=True)
class BaseWeights:
    """A base model on disk, perhaps with a run's tuned parts over it.

    - name: what it was asked for by; path: its folder (diffusers form) or single file
    - folder: where its configurations and tokenizers are; None where this machine has none for a
      single file
    - family: in words
    - scheduler: what is known of its settings, with `prediction_type` None where only the model
      itself could tell
    - shapes: part -> {tensor name: shape}
    - places: part -> {tensor name: (file, key, how)}, as `lib.models.single_file` has them
    - tuned: the parts that come from the run
    """

    name: str
    path: Path
    folder: Path | None
    family: str
    scheduler: dict[str, Any]
    shapes: dict[str, Shapes]
    places: dict[str, Places]
    tuned: tuple[str, ...] = ()

    @property
    def sdxl(self) -> bool:
        """Whether it has SDXL's second text encoder."""
        return "text_encoder_2" in self.shapes

    @cached_property
    def layers(self) -> int:
        """Resnets of a down block."""
        first = (name for name in self.shapes["unet"] if name.startswith("down_blocks.0.resnets."))
        return len({name.split(".")[3] for name in first})

    @cached_property
    def attended(self) -> list[int]:
        """The numbers of the up blocks that have attention."""
        hits = (re.match(r"up_blocks\.(\d+)\.attentions\.", name) for name in self.shapes["unet"])
        return sorted({int(hit[1]) for hit in hits if hit})

    @property
    def architecture(self) -> tuple[str | None, str | None]:
        """(modelspec's name of the architecture, Kohya's name of the version).

        None of 2.x where it isn't known which of the two it is.
        """
        known = next((family for family in FAMILIES if family.label == self.family), Pocket)
        if known.name != "sd2" or self.prediction == "epsilon":
            return known.modelspec, known.kohya_version
        return ("stable-diffusion-v2-768-v", "sd_v2_v") if self.prediction else (None, None)

    @property
    def prediction(self) -> str | None:
        """ "epsilon", "v_prediction", or None where it isn't known."""
        return self.scheduler.get("prediction_type", "epsilon")

    @property
    def marks(self) -> list[str]:
        """The keys, which hold nothing, by which ComfyUI knows what an SDXL file predicts.

        One for velocity, and one for zero terminal SNR beside it.
        """
        if not self.sdxl or self.prediction != "v_prediction":
            return []
        return ["v_pred", "ztsnr"] if self.scheduler.get("rescale_betas_zero_snr") else ["v_pred"]

    def configurations(self) -> Path:
        """The folder of its configurations and tokenizers.

        Raises BadInput, with the remedy, if this machine has none for a single file.
        """
        return self.folder or config_folder(self.path, family_of(self.path))

    def unread_names(self, part: str) -> set[str]:
        """The names of a text encoder's weights that diffusers' model lacks.

        2.x's single files hold a last layer and a projection that nothing reads. Empty where there
        is no configuration to tell.
        """
        if not self.folder or not part.startswith("text_encoder"):
            return set()
        config = read_json(self.folder / part / "config.json")
        layers = config["num_hidden_layers"]
        projects = "CLIPTextModelWithProjection" in (config.get("architectures") or ())
        unread = set()
        for name in self.shapes[part]:
            layer = re.match(r"text_model\.encoder\.layers\.(\d+)\.", name)
            if layer:
                if int(layer[1]) >= layers:
                    unread.add(name)
            elif name.startswith("text_projection") and not projects:
                unread.add(name)
        return unread

    def layer_shapes(self, part: str) -> Shapes:
        """The shape of each linear and convolution layer of a part: where an adapter can sit."""
        ends = (".weight",) if part == "unet" else ("_proj.weight", ".fc1.weight", ".fc2.weight")
        # The one projection that is read, SDXL's second encoder's; OneTrainer trains it.
        ends += ("text_projection.weight",) if part == "text_encoder_2" else ()
        return {
            name.removesuffix(".weight"): shape
            for name, shape in self.shapes.get(part, {}).items()
            if name.endswith(ends) and len(shape) > 1
        }

    def read(self, part: str, name: str) -> torch.Tensor:
        """A tensor, from disk. Raises BadInput as `open_weights` does."""
        path, key, how = self.places[part][name]
        try:
            tensor = _opened(path).read(key)
        except BadInput:
            if part in self.tuned:
                raise
            raise BadInput(NOT_NUMBERS.format(self.name, f"{part}.{name}")) from None
        if how in ("0", "1", "2"):
            return tensor.chunk(3)[int(how)]
        if how == "transpose":
            return tensor.T
        return tensor.flatten(1) if how == "flat" else tensor

    def dtype(self, part: str, name: str) -> str:
        """The safetensors name of a tensor's type, such as "F16"."""
        path, key, _ = self.places[part][name]
        return _opened(path).dtype(key)

    def fingerprint(self) -> str:
        """16 hex digits by which a base model is known: a hash of its U-Net.

        Of its tensors' names, shapes and first numbers, in which two base models differ. The
        numbers count as fp16 has them, so that a model in fp32 and its copy in fp16 are the same,
        as a folder or as one file. A copy in bf16 is another: its numbers are rounded more.
        """
        digest = hashlib.sha256()
        for name, (path, key, _) in sorted(self.places["unet"].items()):
            file = _opened(path)
            first = file.first(key, FINGERPRINTED).half()
            digest.update(f"{name}{list(file.shape(key))}".encode() + first.numpy().tobytes())
        return digest.hexdigest()[:16]


def open_base_weights(name: str = "pocket", run: str | Path | None = None) -> BaseWeights:
    """The `BaseWeights` of a base model, perhaps with what a run has tuned.

    `name`: "pocket", a diffusers folder, a single file, or a hub name that is in the local cache.
    With `run`, parts that the run has tuned (folders unet, text_encoder, text_encoder_2) stand in
    for the base's. Raises BadInput if the base is not there, its files are damaged or pickles, a
    single file is not what its configuration describes, or the run's parts are of another shape.
    """
    path = locate(name)
    base = _from_single_file(name, path) if path.is_file() else _from_folder(name, path)
    places, tuned = dict(base.places), []
    for part in TRAINABLE_PARTS if run else ():
        folder = Path(run or "") / part
        if folder.is_dir():
            places[part] = places.get(part, {}) | _tuned_places(base, run, part, folder)
            tuned.append(part)
    return replace(base, places=places, tuned=tuple(tuned))


def _tuned_places(base: BaseWeights, run: str | Path | None, part: str, folder: Path) -> Places:
    """Where a run's tuned part lies, which must be of the base's shape."""
    found, places = _read_part(folder, part)
    own = base.shapes.get(part, {})
    # Older transformers saved positions as a buffer, which published files still hold and newer
    # ones neither save nor need.
    wrong = {
        key
        for key in found.keys() | own.keys()
        if found.get(key) != own.get(key) and not key.endswith("embeddings.position_ids")
    }
    wrong -= base.unread_names(part) - found.keys() if wrong else set()
    if wrong:
        raise BadInput(
            f"The {part} of {run} does not fit '{base.name}' ({len(wrong)} weights, such as"
            f" {listed(sorted(wrong), 2)}): name the base that it was trained from."
        )
    return places


def _from_folder(name: str, folder: Path) -> BaseWeights:
    """The `BaseWeights` of a base model in diffusers form."""
    shapes, places = {}, {}
    for part in (*TRAINABLE_PARTS, "vae"):
        if (folder / part).is_dir():
            shapes[part], places[part] = _read_part(folder / part, part)
    if "unet" not in shapes:
        raise BadInput(
            f"{folder} has no U-Net (a folder unet with .safetensors): name a Stable Diffusion"
            " folder in diffusers form."
        )
    return BaseWeights(
        name=name,
        path=folder,
        folder=folder,
        family=family_in_words(shapes, name),
        scheduler=_scheduler(folder),
        shapes=shapes,
        places=places,
    )


def _from_single_file(name: str, path: Path) -> BaseWeights:
    """The `BaseWeights` of a base model in one file.

    With its own configuration beside it or its family's, where this machine has one.
    """
    shapes, places = read_single_file(path)
    try:
        kind = family_of(path)
        folder = config_folder(path, kind)
    except BadInput:  # it can be described all the same, and `configurations` says what is missing
        kind = folder = None
    if folder:
        _check_complete(path, shapes, folder)
    scheduler = _scheduler(folder) if folder else {}
    # What the configuration says of the prediction is of one model of the family; of a kind that
    # has both, this may be the other.
    if kind is None or kind.predicts_either:
        scheduler = scheduler | {"prediction_type": None}
    return BaseWeights(
        name=name,
        path=path,
        folder=folder,
        family=family_in_words(shapes, name),
        scheduler=scheduler | stated_prediction(path),
        shapes=shapes,
        places=places,
    )


def _check_complete(path: Path, shapes: Mapping[str, Shapes], folder: Path) -> None:
    """Raise BadInput unless U-Net and VAE of the file are what the folder's configurations say."""
    for part in ("unet", "vae"):
        wanted = class_shapes(folder, part)
        missing = sorted(wanted.keys() - shapes[part].keys())
        other = sorted(name for name, shape in shapes[part].items() if wanted.get(name) != shape)
        if missing or other:
            raise BadInput(
                f"{path} is not what {folder} describes: of its {part} {len(missing)} weights are"
                f" missing and {len(other)} of another shape or unknown"
                f" ({listed(sorted(missing or other), 2)}); get the whole file, or put the"
                f" configurations that it was made with into {path.with_suffix('')}/."
            )


def class_shapes(folder: Path, part: str) -> Shapes:
    """{name: shape} of the weights that the class of a part has, by its configuration."""
    return _described(folder, part, (folder / part / "config.json").stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _described(folder: Path, part: str, changed: int) -> Shapes:
    weights = skeleton(folder, part).state_dict()
    return {full_name(part, name): tuple(weight.shape) for name, weight in weights.items()}


def skeleton(folder: Path, part: str) -> Any:
    """The U-Net, the VAE or a text encoder of a folder's configurations, on the meta device."""
    # Late: these take seconds.
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kinds: dict[str, Any] = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
    with torch.device("meta"):
        if part in kinds:
            return kinds[part].from_config(read_json(folder / part / "config.json"))
        config = CLIPTextConfig.from_pretrained(folder / part)
        projects = "CLIPTextModelWithProjection" in (config.architectures or ())
        return (CLIPTextModelWithProjection if projects else CLIPTextModel)(config)


def _scheduler(folder: Path) -> dict[str, Any]:
    path = folder / "scheduler" / "scheduler_config.json"
    return read_json(path) if path.is_file() else {}


def family_in_words(shapes: Mapping[str, Shapes], name: str = "") -> str:
    """A base model's family as sentences name it, from its weights' shapes."""
    widths = (s[1] for key, s in shapes["unet"].items() if key.endswith("attn2.to_k.weight"))
    width = next(widths, None)
    own = "the pocket base" if name == "pocket" else "a base of its own kind"
    return known_label(shapes, width) or f"{own} (text width {width})"


def _opened(path: Path) -> open_weights:
    return _opened_at(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _opened_at(path: Path, changed: int) -> open_weights:
    return open_weights(path)


def _read_part(folder: Path, part: str) -> tuple[Shapes, Places]:
    """(shapes, places) of one part's folder, names as in files of any version."""
    files = weight_files(folder)
    if not files:
        pickles = [f.name for f in folder.iterdir() if f.suffix in PICKLE_ENDINGS]
        raise BadInput(
            f"{folder} holds no .safetensors"
            + (f", only the pickle {pickles[0]}, which is not read" if pickles else "")
            + ": get the model's safetensors files."
        )
    shapes: Shapes = {}
    places: Places = {}
    for path in files:
        with open_weights(path) as file:
            for key in file.names:
                name = _current_name(part, key)
                shapes[name], places[name] = file.shape(key), (path, key, "")
    return shapes, places


def _current_name(part: str, key: str) -> str:
    if part == "vae" and ".attentions." in key:
        block, layer, kind = key.rsplit(".", 2)
        return f"{block}.{OLD_ATTENTION.get(layer, layer)}.{kind}"
    return full_name(part, key)
