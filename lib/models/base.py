"""Base models: the pocket base that ships with the course, or Stable Diffusion 1.x, 2.x and XL.

From a folder, a file or the hub:

    base = load_base("pocket")
    base.generate(["a red robot in the snow"], seeds=[0])     # one PIL image a (prompt, seed) pair

To add a family, write one subclass of `Family` in lib/models/families.py and name it in FAMILIES
there. It says

- which diffusers pipeline loads it, and how its files are told from others': `configured` (what the
  denoiser's configuration has) and `key` (one of a single file's);
- which part of the pipeline predicts (`denoiser`), how that is called (`predict`), and which noise
  schedules it trains and draws with (`training_scheduler`, `sampling_scheduler`); what the loss
  compares with, noise or velocity, is the schedule's `prediction_type` (lib/step/loss.py);
- its `text_encoders`, and what the denoiser is given of their words (`encode`: tensors by the names
  of the denoiser's arguments);
- what other tools know it by: `label`, `text_width`, `modelspec` and `kohya_version`.

Give it presets in lib/config/presets.py. It must have an AutoencoderKL as `vae`. tests/tiny.py
makes a tiny one of each family, and tests/models/test_families.py takes it through loading,
training by both methods, saving and drawing: add yours there. Loop, notebooks and measures need no
line.

Files for other tools know no pipeline, only names and shapes:

- `lib.models.layer_names.to_original` and `lib.models.layer_names.from_original`: the names of its
  denoiser's layers in the original layout, if they are not there yet;
- `lib.models.base_files.TRAINABLE_PARTS` and `lib.models.layer_names.PREFIXES`: its denoiser and
  text encoders, and what Kohya's tools call them;
- `lib.models.single_file.PREFIXES` and `lib.models.single_file.TEXTS`: where its text encoders
  stand in a single file.

tests/scheme.py makes a tiny one for tests/convert/test_interchange.py and
tests/convert/test_whole_models.py, which take it through every form.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lib.config import PRESETS, Settings, bucket
from lib.files import BadInput
from lib.models.base_files import check_parts, locate
from lib.models.base_weights import open_base_weights
from lib.models.devices import (
    DTYPES,
    fast_arithmetic,
    keep_freed_memory,
    map_side_by_side,
    reclaim,
    use_fair_threads,
)
from lib.models.families import Family, config_folder, family_of
from lib.models.pipeline import (
    check_fit,
    encoded,
    read_pipeline,
    set_prediction,
    with_own_scheduler,
)
from lib.models.single_file import read_single_file

LARGEST_BATCH = 8  # pictures sampled at once
SMALL_LATENT = 16 * 16  # latent pixels of a small base model's pictures: the pocket base's

# Pixels that pass at once: the VAE's activations, a KiB a pixel in bf16, must stay below what a
# training step takes; the denoiser's are few.
VAE_PIXELS, DENOISER_PIXELS = 2 * 512**2, 8 * 512**2


def pictures_per_pass(pixels: int, most: int | None = None) -> int:
    """How many pictures of so many `pixels` pass at once: at least one and at most eight.

    As many as have `most` pixels together (by default the VAE's).
    """
    return max(1, min(LARGEST_BATCH, (most or VAE_PIXELS) // pixels))


def token_ids(tokenizer: Any, prompts: list[str]) -> Tensor:
    """What a text encoder is given of the prompts: [N, tokens], cut and filled to its length."""
    return tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids


def _holds(tokenizer: Any, caption: str, word: str, truncation: bool = True) -> bool:
    """Whether the tokens of `word` are in those of `caption`, one behind the other."""
    wanted = tokenizer(word, add_special_tokens=False).input_ids
    # As in `token_ids`, without the filling, which may be of a token that words have too.
    found = tokenizer(caption, truncation=truncation).input_ids
    starts = range(len(found) - len(wanted) + 1)
    return any(found[at : at + len(wanted)] == wanted for at in starts)


@dataclass
class Base:
    """A base model, ready to encode, to predict and to draw.

    - pipe: its diffusers pipeline; family: what differs between kinds of base models
    - name: what it was asked for by; device; fast: what that is fast in
    - side: pixels of the pictures it draws and encodes, if not its own `resolution`
    """

    pipe: Any
    family: type[Family]
    name: str
    device: torch.device
    fast: str
    side: int = 0

    @property
    def stored_denoiser(self) -> Any:
        """The module that predicts, wherever it is now: on the CPU until it is needed."""
        return getattr(self.pipe, self.family.denoiser)

    @stored_denoiser.setter
    def stored_denoiser(self, module: Any) -> None:
        setattr(self.pipe, self.family.denoiser, module)

    @property
    def denoiser(self) -> Any:
        """The module that predicts, on the device.

        It goes there when it is first needed, so that pictures are encoded before without it.
        """
        module = self.stored_denoiser
        first = next(module.parameters(), None)
        if first is not None and first.device.type != self.device.type:
            # Weights made in inference mode could never be part of a graph.
            with torch.inference_mode(False):
                module.to(self.device)
        return module

    @cached_property
    def fingerprint(self) -> str:
        """What its weights are known by (`BaseWeights.fingerprint`), read from its files.

        With that a run says later what it was trained on.
        """
        return open_base_weights(self.name).fingerprint()

    @property
    def text_encoders(self) -> dict[str, Any]:
        """Its text encoders by their names in the pipeline."""
        return {name: getattr(self.pipe, name) for name in self.family.text_encoders}

    @property
    def resolution(self) -> int:
        """Side of its pictures in pixels."""
        return self.side or self.stored_denoiser.config.sample_size * self.pipe.vae_scale_factor

    @property
    def sample_steps(self) -> int:
        """Denoising steps in which it draws unless told otherwise: its family's preset."""
        return PRESETS["lora", self.family.name].get("sample_steps", Settings.sample_steps)

    @property
    def guidance(self) -> float:
        """Guidance scale at which it draws unless told otherwise: its family's preset."""
        return PRESETS["lora", self.family.name].get("guidance", Settings.guidance)

    @property
    def tokenizers(self) -> list[Any]:
        """The tokenizer of each text encoder, the first one's first."""
        return [getattr(self.pipe, name) for name in self.family.tokenizers()]

    def tokens(self, word: str) -> list[str]:
        """How the first tokenizer splits `word`, without end marks."""
        return [token.replace("</w>", "") for token in self.tokenizers[0].tokenize(word)]

    def check_words(self, class_noun: str, identifier: str) -> None:
        """Raise BadInput if a tokenizer cannot hold the class noun or the identifier.

        Or if both are the same word.
        """
        words = (("class noun", class_noun), ("identifier", identifier))
        for tokenizer, (what, word) in product(self.tokenizers, words):
            longest = tokenizer.model_max_length - 2
            tokens = tokenizer.tokenize(word)
            if not tokens or tokenizer.unk_token in tokens:
                raise BadInput(
                    f"The {what} {word!r} has no letters that the tokenizer of '{self.name}' knows:"
                    " choose a plain word."
                )
            if len(tokens) > longest // 3:
                raise BadInput(
                    f"The {what} {word!r} falls into {len(tokens)} pieces, a prompt of"
                    f" '{self.name}' holds {longest}: choose a shorter one."
                )
        if class_noun.lower() == identifier.lower():
            raise BadInput(
                f"Class noun and identifier are both {class_noun!r}: choose a rare word such as"
                " 'zwx' as identifier."
            )

    def check_captions(self, captions: Mapping[str, str], identifier: str) -> None:
        """Raise BadInput unless every text encoder is given the identifier in every caption.

        `captions`: by the name of their picture. What is behind a text encoder's last token is cut
        off, and what is written as a part of another word makes other tokens. A tokenizer's mark
        for the end is no word either: an encoder that looks for it finds it there.
        """
        for tokenizer, (name, caption) in product(self.tokenizers, captions.items()):
            for mark in (tokenizer.bos_token, tokenizer.eos_token):
                if mark and mark in caption:
                    raise BadInput(
                        f"The caption of {name} holds {mark!r}, by which '{self.name}' marks where"
                        " a text begins or ends: take it out, and prepare the data set again."
                    )
            if _holds(tokenizer, caption, identifier):
                continue
            if _holds(tokenizer, caption, identifier, truncation=False):
                raise BadInput(
                    f"The caption of {name} is longer than the {tokenizer.model_max_length - 2}"
                    f" pieces that '{self.name}' reads, and the identifier {identifier!r} stands"
                    " behind them: shorten it, or write the identifier nearer to its beginning,"
                    " and prepare the data set again."
                )
            raise BadInput(
                f"The caption of {name} ({caption[:60]!r}) lacks the identifier {identifier!r} as"
                f" the tokenizer of '{self.name}' reads it, so that nothing would be learnt for"
                " that word: write it there, with spaces around it, and prepare the data set"
                " again."
            )

    def sees(self, identifier: str, caption: str) -> bool:
        """Whether any of its text encoders is given the identifier in `caption`."""
        return any(_holds(tokenizer, caption, identifier) for tokenizer in self.tokenizers)

    def conditions(
        self,
        prompts: list[str],
        sizes: Sequence[Sequence[int]] | None = None,
        encoded: bool = True,
    ) -> dict[str, Any]:
        """What the denoiser is given beside picture and timestep: tensors with a row a prompt.

        By the names of its arguments (dicts of tensors where an argument is one). `sizes`: six
        numbers a prompt, as `Family.encode` has them, for families that read them; else those of a
        square picture that was not cropped. With encoded=False the prompts stay token ids, which
        `predict` encodes each time: for text encoders that train.
        """
        self.reload()
        side = self.resolution
        square = [side, side, 0, 0, side, side]
        words = {
            "ids": [token_ids(each, prompts).to(self.device) for each in self.tokenizers],
            "sizes": torch.tensor(
                sizes or [square] * len(prompts), dtype=torch.float32, device=self.device
            ),
        }
        if not encoded:
            return words
        with torch.no_grad():
            return self.family.encode(list(self.text_encoders.values()), **words)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditions: dict[str, Any]) -> Tensor:
        """What the denoiser predicts, noise or velocity, [B, C, h, w].

        For `noisy` [B, C, h, w], `timesteps` [B], and conditions with B rows.
        """
        if "ids" in conditions:
            conditions = self.family.encode(list(self.text_encoders.values()), **conditions)
        return self.family.predict(self.denoiser, noisy, timesteps, conditions)

    def encode_images(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the latents of pictures, both [N, C, h, w], already scaled.

        The pictures are of one aspect and brought to the base's resolution.
        """
        self.reload()
        width, height = bucket(images[0].size, self.resolution)
        size, vae = (width, height), self.pipe.vae
        images = [i if i.size == size else i.resize(size, Image.Resampling.LANCZOS) for i in images]
        count, latents = pictures_per_pass(width * height), []
        with torch.no_grad():
            for start in range(0, len(images), count):
                pixels = self.pipe.image_processor.preprocess(images[start : start + count])
                latents.append(vae.encode(pixels.to(self.device, vae.dtype)).latent_dist)
        scale = vae.config.scaling_factor
        mean = torch.cat([latent.mean for latent in latents]).float() * scale
        return mean, torch.cat([latent.std for latent in latents]).float() * scale

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Iterable[int],
        steps: int = 0,
        guidance: float = 0.0,
        adapter_weight: float | None = None,
        progress: Callable[[int, int], Any] | None = None,
        size: tuple[int, int] | None = None,
    ) -> list[Image.Image]:
        """One picture per (prompt, seed) pair, the same whatever stands beside it in the batch.

        `steps` are denoising steps, `guidance` is the scale of guidance; 0 is the base's own of
        either (`sample_steps`, `Base.guidance`), and guidance 1 is none.
        `adapter_weight` scales a loaded LoRA (1 as trained, 0 the base). `progress(done, total)` is
        called after each batch. `size` is (width, height) in pixels, if not the base's square.
        """
        seeds = [int(seed) for seed in seeds]
        if len(prompts) != len(seeds):
            raise ValueError(
                f"{len(prompts)} prompts and {len(seeds)} seeds: give one seed per prompt"
            )
        self.reload()
        _ = self.denoiser  # brings it to the device, where the pipeline looks for it
        images, (width, height) = [], size or (self.resolution, self.resolution)
        count = pictures_per_pass(width * height, DENOISER_PIXELS)
        options: dict[str, Any] = {
            "num_inference_steps": steps or self.sample_steps,
            "guidance_scale": guidance or self.guidance,
            "height": height,
            "width": width,
        }
        if adapter_weight is not None:
            options["cross_attention_kwargs"] = {"scale": float(adapter_weight)}
        self.pipe.set_progress_bar_config(disable=True)
        small = self.stored_denoiser.config.sample_size**2 <= SMALL_LATENT
        # An adapter's weight is set in its layers, which all passes share.
        apart = small and self.device.type == "cpu" and adapter_weight is None
        batches = [slice(start, start + count) for start in range(0, len(prompts), count)]
        words: list[dict[str, Any]] = [{"prompt": list(prompts[batch])} for batch in batches]
        if apart:  # a tokenizer is told how to fill up before each text: threads cannot share it
            with torch.inference_mode(), self.autocast():
                words = [encoded(self.pipe, **w, guidance=options["guidance_scale"]) for w in words]
        passes = list(zip(words, (seeds[batch] for batch in batches)))
        at_once = torch.get_num_threads() if apart else 1
        for drawn in map_side_by_side(
            lambda each: self._draw(*each, options=options), passes, at_once
        ):
            images += drawn
            if progress:
                progress(len(images), len(prompts))
        return images

    def _draw(
        self, words: dict[str, Any], seeds: list[int], options: dict[str, Any]
    ) -> list[Image.Image]:
        """One batch of pictures of prompts, as texts or encoded, by the pipeline's `options`."""
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        decoded = pictures_per_pass(options["width"] * options["height"])
        # The pipeline would decode all at once, in the denoiser's precision.
        apart = self.family.vae_in_fp32 or len(seeds) > decoded
        with torch.inference_mode(), self.autocast():
            drawn = with_own_scheduler(self.pipe)(
                **words, generator=generators, output_type="latent" if apart else "pil", **options
            ).images
        if not apart:
            return drawn
        return [image for latents in drawn.split(decoded) for image in self._decode(latents)]

    def _decode(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of scaled latents [N, C, h, w].

        In the VAE's own precision where its family asks for that.
        """
        vae = self.pipe.vae
        with torch.inference_mode(), self.autocast("fp32" if self.family.vae_in_fp32 else None):
            pixels = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor).sample
        return self.pipe.image_processor.postprocess(pixels)

    def offload(self, keep: Iterable[str] = ()) -> None:
        """Free the memory of VAE and text encoders, but of those named in `keep`.

        Training does without what is cached.
        """
        for name in {"vae", *self.family.text_encoders}.difference(keep, self._offloaded()):
            getattr(self.pipe, name).to("meta")

    def _offloaded(self) -> list[str]:
        parts = {"vae": self.pipe.vae} | self.text_encoders
        # None where memory ran out while it was loaded.
        return [n for n, part in parts.items() if part is None or next(part.parameters()).is_meta]

    def reload(self) -> None:
        """Load again from disk what `offload` freed, if it did.

        Whatever encodes or draws calls this first.
        """
        if offloaded := self._offloaded():
            self.read_again(offloaded)

    def read_again(self, names: Sequence[str], dtype: torch.dtype | None = None) -> None:
        """Load parts of the pipeline, untouched ones, again from disk.

        In `dtype`, if not in the device's own.
        """
        size = self.stored_denoiser.config.sample_size
        for name in names:
            setattr(self.pipe, name, None)  # so that no two are in memory
        reclaim(self.device)
        # Weights made in inference mode could never be part of a graph.
        with torch.inference_mode(False):
            fresh = read_pipeline(locate(self.name), self.family, self.device, names, dtype)
        for name in names:
            setattr(self.pipe, name, getattr(fresh, name))
        # A single file's may differ from its configuration's.
        self.stored_denoiser.register_to_config(sample_size=size)

    def cast_for_sampling(self) -> "Base":
        """Cast the denoiser's layers to bf16 or fp16 once where autocast would at every step.

        The same pictures, sooner. Not for a model to train.
        """
        for layer in self.denoiser.modules() if self.fast != "fp32" else ():
            if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
                layer.to(DTYPES[self.fast])
        return self

    def autocast(self, arithmetic: str | None = None) -> torch.autocast:
        """Arithmetic in what is asked for, by its name in `DTYPES`.

        Else in what is fast, or, where that is fp32, in bf16 or fp16 if the denoiser is. Weights
        keep their own precision. A recipe may want bf16 weights where the processor is not fast in
        it, and fp32 latents do not fit them without this.
        """
        dtype = DTYPES[arithmetic or self.fast]
        weight = next(self.stored_denoiser.parameters(), None)
        if arithmetic is None and dtype == torch.float32 and weight is not None:
            if weight.dtype in DTYPES.values():
                dtype = weight.dtype
        enabled = dtype != torch.float32
        return torch.autocast(self.device.type, dtype if enabled else torch.bfloat16, enabled)


def load_base(name: str = "pocket", device: str | torch.device | None = None) -> Base:
    """Load a base model for `device`, or for the best one there is.

    Its weights are in fp32 (on CUDA in what is fast there). A hub name is looked up in the local
    cache only, unless WORKBENCH_DOWNLOAD=1 allows the download. Raises BadInput when there is no
    such model, when it is damaged or of no known family, or when it comes only as pickles.
    """
    path = locate(name)
    family = family_of(path)
    folder = config_folder(path, family) if path.is_file() else path
    weighted = (family.denoiser, "vae", *family.text_encoders)
    check_parts(folder, weighted, (*family.tokenizers(), "scheduler"))
    if path.is_file():
        read_single_file(path)  # refuses what lacks a part, and lists what will be left out
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cpu":
        keep_freed_memory()
        use_fair_threads()
    pipe = read_pipeline(path, family, device)
    check_fit(pipe, family, path)
    pipe.scheduler = family.sampling_scheduler(pipe.scheduler.config)
    base = Base(pipe, family, name, device, fast_arithmetic(device))
    if path.is_file():
        set_prediction(base, path)
    return base


@contextmanager
def evaluation_mode(base: Base) -> Iterator[None]:
    """Look at a model between two training steps: all in eval mode, and no gradients.

    Random state and every module's mode are put back. What is offloaded is loaded again first,
    which raises where memory does not suffice.
    """
    base.reload()
    parts = (base.stored_denoiser, base.pipe.vae, *base.text_encoders.values())
    modes = [(module, module.training) for part in parts for module in part.modules()]
    devices = [base.device] if base.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.inference_mode():
        try:
            for part in parts:
                part.eval()
            yield
        finally:
            for module, training in modes:
                module.training = training
