"""The judge: two encoders that took no part in training, one in DINO's role and a CLIP.

`load_judge()` loads the small pair that ships in `data/judge`; `load_judge("real")` the published
pair, from a local folder or the hub's cache, never from the network. Pictures are embedded in
batches, each distinct picture once.

Beside them LPIPS (Zhang et al. 2018, arXiv 1801.03924), the distance in DreamBooth's DIV, where it
can be had: it takes the packages lpips and torchvision (on Colab: `pip install lpips`) and
AlexNet's weights. Both networks' weights come as pickles only; torch reads them with
`weights_only`, so that no code in them runs.

And MaSC (arXiv 2605.22469), which looks at the subject alone and agrees with people better: it
takes the package masc-metric, the weights of a SigLIP2, and masks of the photos.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from lib.dataset.photo_file import upright
from lib.files import ROOT, BadInput, read_json
from lib.files.text import first_line
from lib.models.pipeline import silence_libraries

FOLDER = ROOT / "data" / "judge"
PAIRS = {
    "pocket": (FOLDER / "clip", FOLDER / "identity"),
    "real": ("openai/clip-vit-base-patch32", "facebook/dino-vits16"),
}


BATCH = 64
MEGABYTES = 233  # AlexNet, all of it; LPIPS needs its convolutions

Picture = Image.Image | str | Path
Device = str | torch.device
# The mean LPIPS of all pairs of different pictures, and "", or None and why it cannot be had
Lpips = tuple[Callable[[Sequence[Picture]], float] | None, str]
# (photo, its mask, picture) -> how much of the photo's subject is in the picture, -1 to 1
Masc = Callable[[Image.Image, Image.Image, Image.Image], float]


def _load(kind: Any, name: str | Path) -> Any:
    """`kind.from_pretrained(name)` from a folder or the hub's cache; never from the network."""
    silence_libraries()
    try:
        return kind.from_pretrained(_folder(name), local_files_only=True)
    except (OSError, ValueError) as error:
        remedy = (
            "restore it with `git checkout data/judge`"
            if str(FOLDER) in str(name)
            else (
                f"run `hf download {name}` once while online, or give the path of a folder that"
                " holds it; until then judge='pocket' scores without a download, in columns of"
                " its own"
            )
        )
        raise BadInput(
            f"The judge's encoder {name} cannot be loaded ({first_line(error)[:120]}): {remedy}."
        ) from error


def _folder(name: str | Path) -> Path:
    """The folder of an encoder. Given hub names, transformers would ask the hub for adapters and
    more, whatever it is told.
    """
    from huggingface_hub import snapshot_download

    folder = Path(name)
    return folder if folder.is_dir() else Path(snapshot_download(str(name), local_files_only=True))


@dataclass
class Encoder:
    """Pictures -> unit rows [N, D], batched, each distinct picture once.

    embed: the function of model and pixels [N, 3, crop, crop] that gives rows [N, D].
    short, crop: pixels of the shorter side after resizing, and of the square that is cut out of it.
    mean, std: of each colour, as the encoder expects them.
    seen: rows by the SHA-256 of a picture's size and pixels. Each encoder has its own, so two never
    share an entry.
    """

    name: str
    model: Any
    embed: Callable[[Any, torch.Tensor], torch.Tensor]
    short: int
    crop: int
    mean: list[float]
    std: list[float]
    seen: dict[bytes, torch.Tensor] = field(default_factory=dict)

    @property
    def rule(self) -> str:
        """How pictures are resized."""
        return f"short side {self.short} bicubic, centre crop {self.crop}"

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """An upright RGB image as a normalised float tensor [3, crop, crop]."""
        scale = self.short / min(image.size)
        width, height = (max(self.crop, round(side * scale)) for side in image.size)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self.crop) // 2, (height - self.crop) // 2
        array = (
            np.asarray(image.crop((left, top, left + self.crop, top + self.crop)), np.float32) / 255
        )
        return torch.from_numpy(
            (array - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        ).permute(2, 0, 1)

    def __call__(self, pictures: Sequence[Picture]) -> torch.Tensor:
        """Unit rows [N, D] on the CPU for N pictures (PIL or paths), in their order; raises
        BadInput if a row is not finite.
        """
        images = [upright(p) for p in pictures]
        if not images:
            raise BadInput("There are no pictures to embed: give at least one.")
        keys = [hashlib.sha256(repr(i.size).encode() + i.tobytes()).digest() for i in images]
        new = [(k, i) for k, i in dict(zip(keys, images)).items() if k not in self.seen]
        for start in range(0, len(new), BATCH):
            batch = torch.stack([self.pixels(i) for _, i in new[start : start + BATCH]]).to(
                self.model.device
            )
            with torch.no_grad():
                rows = F.normalize(self.embed(self.model, batch).float(), dim=1).cpu()
            if not rows.isfinite().all():
                raise BadInput(
                    f"The encoder {self.name} gave a row that is not a number: its weights are"
                    " damaged; restore or download them again."
                )
            self.seen.update(zip((k for k, _ in new[start : start + BATCH]), rows))
        return torch.stack([self.seen[k] for k in keys])


def _encoder(name: str | Path, model: Any, embed: Callable, crop: int | None = None) -> Encoder:
    """The encoder of a model, which resizes as the file beside its weights says."""
    path = _folder(name) / "preprocessor_config.json"
    if not path.is_file() and str(FOLDER) not in str(name):
        raise BadInput(
            f"The encoder {name} has no preprocessor_config.json, so its colours cannot be scaled"
            " as it expects: add the file it was published with."
        )
    config = read_json(path) if path.is_file() else {}
    size = config.get("crop_size") or config.get("size") or 64
    if crop is None:
        crop = int(size if isinstance(size, int) else size.get("height") or size["shortest_edge"])
    vit = getattr(model.config, "model_type", "") in ("vit", "dinov2") and crop == 224
    mean, std = config.get("image_mean", [0.5] * 3), config.get("image_std", [0.5] * 3)
    # DINO's own evaluation resizes to 256 and crops 224 (facebookresearch/dino), which the hub's
    # config does not say.
    return Encoder(str(name), model.float().eval(), embed, 256 if vit else crop, crop, mean, std)


def load_identity(name: str | Path = PAIRS["pocket"][1], device: Device = "cpu") -> Encoder:
    """The identity encoder of a folder or hub name: an `Encoder` (pictures -> unit rows [N, D])."""
    from transformers import AutoModel

    def embed(model: Any, x: torch.Tensor) -> torch.Tensor:
        out = model(x)
        # A ViT's class token as DINO uses it: the hub's DINO has no trained pooler, so
        # `pooler_output` would be random.
        return (
            out.last_hidden_state[:, 0]
            if out.last_hidden_state.ndim == 3
            else out.pooler_output.flatten(1)
        )

    return _encoder(name, _load(AutoModel, name).to(device), embed)


@dataclass
class Judge:
    """Both encoders: `identity(pictures)` and `clip_images(pictures)` give unit rows [N, D].

    So does `clip_texts(texts)` for texts, which remembers the rows in `texts`. masc: of
    `load_masc`, where it was asked for; the model's name or folder is `masc_name`.
    """

    name: str
    identity: Encoder
    clip_images: Encoder
    tokenizer: Any
    masc: Masc | None = None
    masc_name: str = ""
    texts: dict[str, torch.Tensor] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """What a result must name: both encoders, image size and resize rule. Scores of two judges
        never share a column.
        """
        parts = {"dino": self.identity, "clip": self.clip_images}
        found: dict[str, dict[str, Any]] = {
            # The encoders that ship by their path in the project, which is the same everywhere.
            part: {"encoder": encoder.name.removeprefix(f"{ROOT}{os.sep}"), "resize": encoder.rule}
            for part, encoder in parts.items()
        }
        patch = getattr(self.identity.model.config, "patch_size", None)
        if patch:  # ViT-S/8 and S/16 lie in folders of any name
            found["dino"]["patch"] = patch
        return {
            "judge": self.name,
            **found,
            "diversity": "1 - cosine of CLIP between pictures of one prompt",
            "masc": self.masc_name or "not asked for",
            "lpips": (
                "LPIPS 0.1 with AlexNet"
                if self.lpips[0]
                else f"not measured, diversity stands in: {self.lpips[1]}"
            ),
        }

    def masked_likeness(
        self, masked: Sequence[tuple[Image.Image, Image.Image]], pictures: Sequence[Image.Image]
    ) -> float | None:
        """MaSC of pictures against photos with their masks, the mean over all pairs; None where
        this judge has no MaSC. Raises BadInput if a score is not a number.
        """
        if not self.masc:
            return None
        found = [self.masc(photo, mask, made) for made in pictures for photo, mask in masked]
        if not np.isfinite(found).all():
            raise BadInput(
                f"MaSC by {self.masc_name} gave a score that is not a number: a mask may be so"
                " small that it fills no patch; paint the whole subject white."
            )
        return float(np.mean(found))

    @cached_property
    def lpips(self) -> Lpips:
        """(function of pictures, "") or (None, why not), as `lib.evaluation.judge.load_lpips`
        gives; loaded when first asked for.
        """
        return load_lpips(self.identity.model.device)

    def clip_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit rows [N, D] for N texts."""
        new = [t for t in dict.fromkeys(texts) if t not in self.texts]
        for start in range(0, len(new), 256):
            tokens = self.tokenizer(
                new[start : start + 256], padding=True, truncation=True, return_tensors="pt"
            )
            tokens = tokens.to(self.clip_images.model.device)
            with torch.no_grad():
                out = self.clip_images.model.get_text_features(**tokens)
            rows = F.normalize(
                getattr(out, "pooler_output", out).float(), dim=1
            ).cpu()  # transformers 4 returns the tensor itself
            self.texts.update(zip(new[start : start + 256], rows))
        return torch.stack([self.texts[t] for t in texts])


def load_judge(
    name: str = "pocket",
    clip: str | Path | None = None,
    identity: str | Path | None = None,
    device: Device = "cpu",
) -> Judge:
    """The judge "pocket", "real" (CLIP ViT-B/32 and DINO ViT-S/16), or a pair by names or paths of
    your own. Never goes online.
    """
    if name not in PAIRS and not (clip and identity):
        raise BadInput(
            f"The judge {name!r} is unknown: choose one of {', '.join(PAIRS)}, or give both clip="
            " and identity= as hub names or folders."
        )
    from transformers import AutoModel, CLIPTokenizer

    clip, identity = clip or PAIRS[name][0], identity or PAIRS[name][1]
    model = _load(AutoModel, clip).to(device)

    def embed(model: Any, x: torch.Tensor) -> torch.Tensor:
        out = model.get_image_features(pixel_values=x)
        return getattr(out, "pooler_output", out)

    images = _encoder(clip, model, embed, model.config.vision_config.image_size)
    return Judge(name, load_identity(identity, device), images, _load(CLIPTokenizer, clip))


def load_masc(name: str | Path, device: Device = "cpu") -> Masc:
    """MaSC's concept preservation by the SigLIP2 of a folder or hub name: the mean, over those
    patches of a photo that show its subject, of the largest cosine to any patch of a picture.

    Never goes online. Raises BadInput where the package or the weights are missing, and for
    weights that are not safetensors.
    """
    try:
        # Optional: its torchvision is not needed for this.
        from masc import MaSC  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise BadInput(
            f"MaSC needs a package that cannot be imported ({error}): `pip install --no-deps"
            " masc-metric`, or leave 'masc' empty."
        ) from error
    silence_libraries()
    try:
        folder = _folder(name)
        if not any(folder.glob("*.safetensors")):
            raise OSError(f"there is no .safetensors file in {folder}")
        scorer = MaSC(str(folder), str(device))
    except (OSError, ValueError) as error:
        raise BadInput(
            f"MaSC's encoder {name} cannot be loaded ({first_line(error)[:120]}): run"
            f" `hf download {name}` once while online, or give the path of a folder that holds a"
            " SigLIP2."
        ) from error
    # The package tells by the folder's name whether pictures keep their shape, which is a family
    # of its own in transformers.
    scorer.is_naflex = scorer.model.config.model_type == "siglip2"

    def preserved(photo: Image.Image, mask: Image.Image, picture: Image.Image) -> float:
        # Its other score, of the prompt, would need a mask of the picture; with one that hides
        # all of it the package leaves that out.
        whole = np.ones((picture.height, picture.width), np.float32)
        return scorer.score(photo, np.asarray(mask), picture, whole, prompt="").cp

    return preserved


def load_lpips(device: Device = "cpu") -> Lpips:
    """(function, "") or (None, why not): the function gives the mean LPIPS of all pairs of
    different pictures, N >= 2 of one size.

    AlexNet's weights are taken from torch's own cache; only WORKBENCH_DOWNLOAD=1 lets them be
    downloaded into it, and says so first.
    """
    try:
        # Both are optional.
        import lpips  # pyright: ignore[reportMissingImports]
        from torchvision.models import AlexNet_Weights  # pyright: ignore[reportMissingImports]
    except (
        ImportError,
        RuntimeError,
    ) as error:  # not installed; or a torchvision for another torch
        return (
            None,
            f"the packages lpips and torchvision cannot be imported ({first_line(error)})",
        )
    url = AlexNet_Weights.DEFAULT.url
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not file.is_file():
        if os.environ.get("WORKBENCH_DOWNLOAD") != "1":
            return (
                None,
                f"{file} is missing: WORKBENCH_DOWNLOAD=1 fetches it, or copy it there from {url}",
            )
        print(f"Downloading AlexNet for LPIPS, {MEGABYTES} MB, licence BSD-3-Clause, from {url}")
    try:
        model = lpips.LPIPS(net="alex", verbose=False).to(device).eval()
    except (OSError, RuntimeError) as error:  # no network, no room, a file cut short
        return (
            None,
            (
                f"AlexNet cannot be loaded from {file} ({first_line(error)[:120]}): remove"
                " it and try again"
            ),
        )

    def mean_distance(pictures: Sequence[Picture]) -> float:
        x = torch.stack(
            [
                torch.from_numpy(np.array(upright(p), np.float32)).permute(2, 0, 1) / 127.5 - 1
                for p in pictures
            ]
        ).to(device)
        one, other = torch.triu_indices(len(x), len(x), 1)
        with torch.no_grad():
            return float(model(x[one], x[other]).mean())

    return mean_distance, ""
