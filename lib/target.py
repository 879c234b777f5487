"""What an adapter or a checkpoint has to fit: a base model's family and the shape of each of its weights, read from file headers alone.

    target = read_target("pocket"); target.family; target.shapes["unet"]["conv_in.weight"]; target.read("unet", "conv_in.weight")

Nothing is loaded: gigabytes of Stable Diffusion are described in a fraction of a second, and read tensor by tensor when asked.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from .keys import PARTS, attended_blocks, full_name, short_name
from .locate import locate
from .safefile import open_weights, raw_header, some
from .settings import BadInput, read_json
from .single import read_single

# Width of the text that the U-Net attends to -> family, its name in the modelspec and to Kohya's tools.
FAMILIES = {768: ("Stable Diffusion 1.x", "stable-diffusion-v1", "sd_v1"),
            1024: ("Stable Diffusion 2.x", "stable-diffusion-v2-512", "sd_v2"),
            2048: ("SDXL", "stable-diffusion-xl-v1-base", "sdxl_base_v1-0")}
# The VAE's attention by its older names, which Stable Diffusion's own folders still have.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True)
class Target:
    """A base model on disk, perhaps with a run's tuned parts over it.

    `name`; `folder` (diffusers form), None for a single file; `family`, in words; `config`: the U-Net's, empty for a single file;
    `prediction`: "epsilon" or "v_prediction"; `shapes`: part -> {tensor name: shape}; `places`: part -> {tensor name: (file, key, how)}
    (`lib.single`); `tuned`: the parts that come from the run.
    """

    name: str
    folder: Path | None
    family: str
    config: dict
    prediction: str
    shapes: dict
    places: dict
    tuned: tuple = ()

    @property
    def sdxl(self):
        return "text_encoder_2" in self.shapes

    @property
    def layers(self):
        """Resnets of a down block."""
        return self.config.get("layers_per_block", 2)

    @property
    def attended(self):
        return attended_blocks(self.shapes["unet"])

    @property
    def architecture(self):
        """(modelspec's name of the architecture, Kohya's name of the version)."""
        known = next((names for family, *names in FAMILIES.values() if family == self.family), ("pocket-diffusion-v1", "pocket"))
        return ("stable-diffusion-v2-768-v", "sd_v2_v") if known[1] == "sd_v2" and self.prediction == "v_prediction" else tuple(known)

    def layer_shapes(self, part):
        """{layer name: shape of its weight} of the linear and convolution layers of a part: where an adapter can sit."""
        ends = (".weight",) if part == "unet" else ("_proj.weight", ".fc1.weight", ".fc2.weight")
        return {name.removesuffix(".weight"): shape for name, shape in self.shapes.get(part, {}).items()
                if name.endswith(ends) and len(shape) > 1}

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
        """16 hex digits of the U-Net's names, shapes and a sample of each tensor, in which two base models differ."""
        digest, files = hashlib.sha256(), {}
        for name, (path, key, _) in sorted(self.places["unet"].items()):
            files[path] = files.get(path) or raw_header(path)
            file, start, header = files[path]
            begin, end = header[key]["data_offsets"]
            file.seek(start + begin)
            digest.update(f"{name}{header[key]['shape']}".encode() + file.read(min(end - begin, 2048)))
        for file, *_ in files.values():
            file.close()
        return digest.hexdigest()[:16]


def read_target(name="pocket", run=None):
    """The `Target` of a base model ("pocket", a diffusers folder, a single file, or a hub name that is in the local cache).

    With `run`, parts that the run has tuned (folders unet, text_encoder, text_encoder_2) stand in for the base's. Raises BadInput if the
    base is not there, its files are damaged or pickles, or the run's parts are of another shape.
    """
    folder, shapes, places = locate(name), {}, {}
    if folder.is_file():
        shapes, places = read_single(folder)
    for part in (*PARTS, "vae"):
        if (folder / part).is_dir():
            shapes[part], places[part] = _read_part(folder / part, part)
    if "unet" not in shapes:
        raise BadInput(f"{folder} has no U-Net (a folder unet with .safetensors): name a Stable Diffusion folder in diffusers form.")
    tuned = []
    for part in PARTS if run else ():
        if (Path(run) / part).is_dir():
            found, where = _read_part(Path(run) / part, part)
            base = shapes.get(part, {})
            # Older transformers saved positions as a buffer, which published files still hold and newer ones neither save nor need.
            wrong = {k for k in found.keys() | base.keys() if found.get(k) != base.get(k) and not k.endswith("embeddings.position_ids")}
            if wrong:
                raise BadInput(f"The {part} of {run} does not fit '{name}' ({len(wrong)} weights, such as {some(wrong, 2)}): "
                               "name the base that it was trained from.")
            places[part] = places.get(part, {}) | where
            tuned.append(part)
    if folder.is_file():
        return Target(name, None, family(shapes, name), {}, "epsilon", shapes, places, tuple(tuned))
    config = read_json(folder / "unet" / "config.json")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    prediction = read_json(scheduler).get("prediction_type", "epsilon") if scheduler.is_file() else "epsilon"
    return Target(name, folder, family(shapes, name), config, prediction, shapes, places, tuple(tuned))


def family(shapes, name=""):
    """A base model's family in words, from its weights' shapes."""
    width = next((s[1] for key, s in shapes["unet"].items() if key.endswith("attn2.to_k.weight")), None)
    if "text_encoder_2" in shapes:
        return "SDXL"
    own = "the pocket base" if name == "pocket" else "a base of its own kind"
    return FAMILIES[width][0] if width in FAMILIES else f"{own} (text width {width})"


def adapter_family(adapter):
    """The family that an adapter was made for, in words, from its parts and the text width of its cross-attention; None if it has none."""
    if "text_encoder_2" in adapter.layers:
        return "SDXL"
    width = next((y.down.shape[1] for part, name, y in adapter if part == "unet" and name.endswith(("attn2.to_k", "attn2.to_v"))), None)
    return None if width is None else FAMILIES[width][0] if width in FAMILIES else f"a base of text width {width}"


def check_fit(adapter, target, other_base=False):
    """Raise BadInput unless every layer of `adapter` has its place in `target`, naming both families; and, unless `other_base`, if the
    adapter's header says that it was trained on another base of the same shape."""
    wrong = []
    for part, name, layer in adapter:
        shape = target.layer_shapes(part).get(name)
        down, up = tuple(layer.down.shape[1:]), layer.up.shape[0]
        if shape is None:
            wrong.append(f"{part}.{name}, which it lacks")
        elif (up, *_bare(down)) != (shape[0], *_bare(shape[1:])):
            wrong.append(f"{part}.{name}, {list((up, *down))} against {list(shape)}")
    if wrong:
        made_for = adapter_family(adapter) or adapter.metadata.get("ss_base_model_version") or "another model"
        raise BadInput(f"{adapter.source or 'The adapter'} is a LoRA for {made_for} and '{target.name}' is {target.family}: {len(wrong)} "
                       f"of {sum(1 for _ in adapter)} layers do not fit ({'; '.join(wrong[:2])}); take the base that it was trained on.")
    trained_on = adapter.metadata.get("workbench.base_fingerprint")
    if not other_base and trained_on and trained_on != target.fingerprint():
        raise BadInput(f"{adapter.source or 'The adapter'} was trained on '{adapter.metadata.get('workbench.base')}' ({trained_on}) and "
                       f"'{target.name}' has other weights ({target.fingerprint()}): take that base, or say that you want it on another of "
                       "its family with --other-base.")


@lru_cache(maxsize=16)
def _opened(path, changed):
    return open_weights(path)


def _bare(shape):
    """(in, kernel...) without a kernel of 1 x 1: a linear layer and a 1 x 1 convolution are the same."""
    return tuple(shape[:1]) if all(side == 1 for side in shape[1:]) else tuple(shape)


def _read_part(folder, part):
    """({name: shape}, {name: (file, key, "")}) of one part's folder, names as in files of any version."""
    files = sorted(folder.glob("*.safetensors"))
    plain = [f for f in files if "." not in f.stem] or files  # not the variants .fp16, .non_ema
    if not plain:
        pickles = [f.name for f in folder.iterdir() if f.suffix in (".bin", ".ckpt", ".pt")]
        raise BadInput(f"{folder} holds no .safetensors" + (f", only the pickle {pickles[0]}, which is not read" if pickles else "") +
                       ": get the model's safetensors files.")
    shapes, places = {}, {}
    for path in plain:
        with open_weights(path) as file:
            for key in file.names:
                name = _name(part, key)
                shapes[name], places[name] = file.shape(key), (path, key, "")
    return shapes, places


def _name(part, key):
    if part == "vae" and ".attentions." in key:
        piece = key.rsplit(".", 2)
        return ".".join([piece[0], OLD_ATTENTION.get(piece[1], piece[1]), piece[2]])
    return full_name(part, short_name(part, key)) if part.startswith("text") and not key.startswith("text_projection") else key
