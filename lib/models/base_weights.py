"""What an adapter or a checkpoint has to fit: a base model's family and the shape of each of its
weights, read from file headers alone.

    target = read_target("pocket"); target.family; target.shapes["unet"]["conv_in.weight"]; target.read("unet", "conv_in.weight")

Nothing is loaded: gigabytes of Stable Diffusion are described in a fraction of a second, and read
tensor by tensor when asked.
"""

import hashlib
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from lib.files.errors import BadInput
from lib.files.json_file import read_json
from lib.files.safetensors_file import TYPES, open_weights, raw_header
from lib.files.text import some
from lib.models.base_files import locate, weight_files
from lib.models.families import config_folder, family_of
from lib.models.layer_names import PARTS, attended_blocks, full_name
from lib.models.single_file import check_whole, read_single, told

# Width of the text that the U-Net attends to -> family, its name in the modelspec and to Kohya's
# tools.
FAMILIES = {
    768: ("Stable Diffusion 1.x", "stable-diffusion-v1", "sd_v1"),
    1024: ("Stable Diffusion 2.x", "stable-diffusion-v2-512", "sd_v2"),
    2048: ("SDXL", "stable-diffusion-xl-v1-base", "sdxl_base_v1-0"),
}


# The VAE's attention by its older names, which Stable Diffusion's own folders still have.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


SAMPLE = 512  # numbers of a tensor that its base is known by


@dataclass(frozen=True)
class Target:
    """A base model on disk, perhaps with a run's tuned parts over it.

    `name`; `path`: its folder (diffusers form) or single file; `folder`: where its configurations
    and tokenizers are, for a single file what `config_folder` finds or None; `family`, in words;
    `config`: the U-Net's, empty without a folder; `scheduler`: what is known of its settings, with
    `prediction_type` None where only the model itself could tell; `shapes`: part -> {tensor name:
    shape}; `places`: part -> {tensor name: (file, key, how)} (`lib.models.single_file`); `tuned`:
    the parts that come from the run.
    """

    name: str
    path: Path
    folder: Path | None
    family: str
    config: dict
    scheduler: dict
    shapes: dict
    places: dict
    tuned: tuple = ()

    @property
    def sdxl(self):
        return "text_encoder_2" in self.shapes

    @property
    def layers(self):
        """Resnets of a down block."""
        return len(
            {
                name.split(".")[3]
                for name in self.shapes["unet"]
                if name.startswith("down_blocks.0.resnets.")
            }
        )

    @property
    def attended(self):
        return attended_blocks(self.shapes["unet"])

    @property
    def architecture(self):
        """(modelspec's name of the architecture, Kohya's name of the version); None of 2.x where it
        isn't known which of the two it is.
        """
        known = next(
            (names for family, *names in FAMILIES.values() if family == self.family),
            ("pocket-diffusion-v1", "pocket"),
        )
        if known[1] != "sd_v2" or self.prediction == "epsilon":
            return tuple(known)
        return ("stable-diffusion-v2-768-v", "sd_v2_v") if self.prediction else (None, None)

    @property
    def prediction(self):
        """ "epsilon", "v_prediction", or None where it isn't known."""
        return self.scheduler.get("prediction_type", "epsilon")

    @property
    def marks(self):
        """The keys by which ComfyUI knows an SDXL file of velocity, and one with zero terminal SNR;
        they hold nothing.
        """
        velocity = self.sdxl and self.prediction == "v_prediction"
        return (
            ["v_pred", *["ztsnr"] * bool(self.scheduler.get("rescale_betas_zero_snr"))]
            if velocity
            else []
        )

    def configurations(self):
        """The folder of its configurations and tokenizers. Raises BadInput, with the remedy, if
        this machine has none for a single file.
        """
        return self.folder or config_folder(self.path, family_of(self.path))

    def spare(self, part):
        """The names of a text encoder's weights that diffusers' model lacks: 2.x's single files
        hold a last layer and a projection that nothing reads. Empty where there is no configuration
        to tell.
        """
        if not self.folder or not part.startswith("text_encoder"):
            return set()
        config = read_json(self.folder / part / "config.json")
        layers, projects = (
            config["num_hidden_layers"],
            "CLIPTextModelWithProjection" in (config.get("architectures") or ()),
        )
        layer = {
            name: re.match(r"text_model\.encoder\.layers\.(\d+)\.", name)
            for name in self.shapes[part]
        }
        return {
            name
            for name, hit in layer.items()
            if (
                int(hit[1]) >= layers
                if hit
                else name.startswith("text_projection") and not projects
            )
        }

    def layer_shapes(self, part):
        """{layer name: shape of its weight} of the linear and convolution layers of a part: where
        an adapter can sit.
        """
        ends = (".weight",) if part == "unet" else ("_proj.weight", ".fc1.weight", ".fc2.weight")
        return {
            name.removesuffix(".weight"): shape
            for name, shape in self.shapes.get(part, {}).items()
            if name.endswith(ends) and len(shape) > 1
        }

    def read(self, part, name):
        """A tensor, from disk. Raises BadInput as `open_weights` does."""
        path, key, how = self.places[part][name]
        tensor = _opened(path, path.stat().st_mtime_ns).read(key)
        if how in ("0", "1", "2"):
            return tensor.chunk(3)[int(how)]
        return tensor.T if how == "transpose" else tensor.flatten(1) if how == "flat" else tensor

    def dtype(self, part, name):
        path, key, _ = self.places[part][name]
        return _opened(path, path.stat().st_mtime_ns).dtype(key)

    def fingerprint(self):
        """16 hex digits of the U-Net's names, shapes and first numbers of each tensor, in which two
        base models differ.

        The numbers count as fp16 has them, so that a model in fp32 and its copy in fp16 are the
        same, as a folder or as one file. A copy in bf16 is another: its numbers are rounded more.
        """
        digest, files = hashlib.sha256(), {}
        for name, (path, key, _) in sorted(self.places["unet"].items()):
            files[path] = files.get(path) or raw_header(path)
            file, start, header = files[path]
            kind, (begin, end) = TYPES[header[key]["dtype"]], header[key]["data_offsets"]
            file.seek(start + begin)
            first = torch.frombuffer(
                bytearray(file.read(min(end - begin, SAMPLE * kind.itemsize))), dtype=kind
            ).half()
            digest.update(f"{name}{header[key]['shape']}".encode() + first.numpy().tobytes())
        for file, *_ in files.values():
            file.close()
        return digest.hexdigest()[:16]


def read_target(name="pocket", run=None):
    """The `Target` of a base model ("pocket", a diffusers folder, a single file, or a hub name that
    is in the local cache).

    With `run`, parts that the run has tuned (folders unet, text_encoder, text_encoder_2) stand in
    for the base's. Raises BadInput if the base is not there, its files are damaged or pickles, a
    single file is not what its configuration describes, or the run's parts are of another shape.
    """
    folder = locate(name)
    base = _single(name, folder) if folder.is_file() else _folder(name, folder)
    shapes, places, tuned = base.shapes, dict(base.places), []
    for part in PARTS if run else ():
        if (Path(run) / part).is_dir():
            found, where = _read_part(Path(run) / part, part)
            own = shapes.get(part, {})
            # Older transformers saved positions as a buffer, which published files still hold and
            # newer ones neither save nor need.
            wrong = {
                k
                for k in found.keys() | own.keys()
                if found.get(k) != own.get(k) and not k.endswith("embeddings.position_ids")
            }
            wrong -= base.spare(part) - found.keys() if wrong else set()
            if wrong:
                raise BadInput(
                    f"The {part} of {run} does not fit '{name}' ({len(wrong)} weights, such as"
                    f" {some(wrong, 2)}): name the base that it was trained from."
                )
            places[part] = places.get(part, {}) | where
            tuned.append(part)
    return replace(base, places=places, tuned=tuple(tuned))


def _folder(name, folder):
    """The `Target` of a base model in diffusers form."""
    shapes, places = {}, {}
    for part in (*PARTS, "vae"):
        if (folder / part).is_dir():
            shapes[part], places[part] = _read_part(folder / part, part)
    if "unet" not in shapes:
        raise BadInput(
            f"{folder} has no U-Net (a folder unet with .safetensors): name a Stable Diffusion"
            " folder in diffusers form."
        )
    config = read_json(folder / "unet" / "config.json")
    return Target(
        name, folder, folder, family(shapes, name), config, _scheduler(folder), shapes, places
    )


def _single(name, path):
    """The `Target` of a base model in one file, with its own configuration beside it or its
    family's, where this machine has one.
    """
    shapes, places = read_single(path)
    try:
        kind = family_of(path)
        folder = config_folder(path, kind)
    except BadInput:  # it can be described all the same, and `configurations` says what is missing
        kind = folder = None
    if folder:
        check_whole(path, shapes, folder)
    # What the configuration says of the prediction is of one model of the family; of a kind that
    # has both, this may be the other.
    known = (_scheduler(folder) if folder else {}) | (
        {"prediction_type": None} if kind is None or kind.predicts_either else {}
    )
    config = read_json(folder / "unet" / "config.json") if folder else {}
    return Target(
        name, path, folder, family(shapes, name), config, known | told(path), shapes, places
    )


def _scheduler(folder):
    path = folder / "scheduler" / "scheduler_config.json"
    return read_json(path) if path.is_file() else {}


def family(shapes, name=""):
    """A base model's family in words, from its weights' shapes."""
    width = next(
        (s[1] for key, s in shapes["unet"].items() if key.endswith("attn2.to_k.weight")), None
    )
    if "text_encoder_2" in shapes:
        return "SDXL"
    own = "the pocket base" if name == "pocket" else "a base of its own kind"
    return FAMILIES[width][0] if width in FAMILIES else f"{own} (text width {width})"


@lru_cache(maxsize=16)
def _opened(path, changed):
    return open_weights(path)


def _read_part(folder, part):
    """({name: shape}, {name: (file, key, "")}) of one part's folder, names as in files of any
    version.
    """
    files = weight_files(folder)
    if not files:
        pickles = [f.name for f in folder.iterdir() if f.suffix in (".bin", ".ckpt", ".pt")]
        raise BadInput(
            f"{folder} holds no .safetensors"
            + (f", only the pickle {pickles[0]}, which is not read" if pickles else "")
            + ": get the model's safetensors files."
        )
    shapes, places = {}, {}
    for path in files:
        with open_weights(path) as file:
            for key in file.names:
                name = _name(part, key)
                shapes[name], places[name] = file.shape(key), (path, key, "")
    return shapes, places


def _name(part, key):
    if part == "vae" and ".attentions." in key:
        piece = key.rsplit(".", 2)
        return ".".join([piece[0], OLD_ATTENTION.get(piece[1], piece[1]), piece[2]])
    return full_name(part, key)
