"""Base models: the pocket base that ships with the course, or Stable Diffusion 1.x, 2.x and XL,
from a folder, a file or the hub.

base = load_base("pocket")
base.generate(["a red robot in the snow"], seeds=[0])     # one PIL image per (prompt, seed) pair

To add a family, write one subclass of `Family` in lib/models/families.py and name it in FAMILIES
there; it says
- which diffusers pipeline loads it, and how its files are told from others' (`is_pipeline`: class
  name and U-Net configuration;
  `is_file`: keys and shapes of a single file);
- its text encoders (`towers`), and what the U-Net is told of their words (`encode`: tensors by the
  names of the U-Net's arguments);
and give it presets in lib/config/presets.py. It must have a `unet` called as diffusers calls
UNet2DConditionModel, an AutoencoderKL as `vae`, and a scheduler that DDIM can stand in for.
tests/tiny.py makes a tiny one of each family, and tests/models/test_families.py takes it through loading,
training by both methods, saving and drawing: add yours there. Loop, notebooks and measures need no
line.

Files for other tools know no pipeline but names and shapes, so shipping is told apart from that:
- `lib.models.base_weights.FAMILIES`: its name in refusals and in the headers of exports, by the
  width of the text that its U-Net attends to;
- `lib.models.layer_names.to_original` and `lib.models.layer_names.from_original`: the names of its
  U-Net's layers in the original layout, if they are not there yet;
  `lib.models.layer_names.PARTS` and `lib.models.layer_names.PREFIXES`: its text encoders, and what Kohya's tools call them;
- `lib.models.single_file.layout`: where its text encoders stand in a single file;
  `lib.models.single_file.CLIP` and `lib.models.single_file.OPEN`: the same, read back.
tests/scheme.py makes a tiny one for tests/convert/test_interchange.py and tests/convert/test_whole_models.py, which take it
through every form.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from PIL import Image

from lib.config.picture_sizes import bucket
from lib.files.errors import BadInput
from lib.models.base_files import locate
from lib.models.devices import has_fast_bf16, keep_freed_memory, reclaim
from lib.models.families import family_of, family_of_pipeline
from lib.models.pipeline import read_pipeline, set_prediction
from lib.models.single_file import read_single

LARGEST_BATCH = 8  # pictures sampled at once


# What passes at once in pixels: the VAE's activations, a KiB a pixel in bf16, must stay below what
# a step takes; the U-Net's are few.
VAE_PIXELS, UNET_PIXELS = 2 * 512**2, 8 * 512**2


def at_once(pixels, most=None):
    """How many pictures of so many `pixels` pass at once: as many as have `most` (the VAE's), at
    least one and at most eight.
    """
    return max(1, min(LARGEST_BATCH, (most or VAE_PIXELS) // pixels))


@dataclass
class Base:
    """A base model: its diffusers pipeline `pipe`, the `name` it was asked for by, its `device`,
    and whether bf16 is fast there.

    `side`: pixels of the pictures it draws and encodes, if not its own `resolution`.
    """

    pipe: object
    name: str
    device: torch.device
    bf16: bool
    side: int = 0

    @property
    def unet(self):
        """The U-Net, on the device: it goes there when it is first needed, so that pictures are
        encoded before without it.
        """
        first = next(self.pipe.unet.parameters(), None)
        if first is not None and first.device.type != self.device.type:
            with torch.inference_mode(
                False
            ):  # weights made in that mode could never be part of a graph
                self.pipe.unet.to(self.device)
        return self.pipe.unet

    @cached_property
    def family(self):
        """Its kind (`lib/models/families.py`), read from the pipeline's class and the U-Net's
        configuration.
        """
        return family_of_pipeline(type(self.pipe).__name__, self.pipe.unet.config, self.name)

    @cached_property
    def fingerprint(self):
        """What its weights are known by (`Target.fingerprint`), read from its files: with that a
        run says later what it was trained on.
        """
        from lib.models.base_weights import read_target

        return read_target(self.name).fingerprint()

    @property
    def text_encoders(self):
        """Its text encoders by their names in the pipeline."""
        return {name: getattr(self.pipe, name) for name in self.family.towers}

    @property
    def resolution(self):
        """Side of its pictures in pixels."""
        return self.side or self.pipe.unet.config.sample_size * self.pipe.vae_scale_factor

    def pieces(self, word):
        """How the tokenizer splits `word`, as a list of strings without end marks."""
        return [piece.replace("</w>", "") for piece in self.pipe.tokenizer.tokenize(word)]

    def check_words(self, class_noun, identifier):
        """Raise BadInput if the tokenizer cannot hold the class noun or the identifier, or one
        hides in the other.
        """
        room = self.pipe.tokenizer.model_max_length - 2
        for what, word in (("class noun", class_noun), ("identifier", identifier)):
            pieces = self.pieces(word)
            if not pieces or self.pipe.tokenizer.unk_token in pieces:
                raise BadInput(
                    f"The {what} {word!r} has no letters that the tokenizer of '{self.name}' knows:"
                    " choose a plain word."
                )
            if len(pieces) > room // 3:
                raise BadInput(
                    f"The {what} {word!r} falls into {len(pieces)} pieces, a prompt of"
                    f" '{self.name}' holds {room}: choose a shorter one."
                )
        if class_noun.lower() == identifier.lower():
            raise BadInput(
                f"Class noun and identifier are both {class_noun!r}: choose a rare word such as"
                " 'zwx' as identifier."
            )

    def conditions(self, prompts, sizes=None, encoded=True):
        """What the U-Net is told beside picture and timestep, by its argument's name: tensors (or
        dicts of them) with a row a prompt.

        `sizes`: six numbers a prompt for families that are told, as `Family.encode` has them; else
        those of a whole square picture. With encoded=False the prompts stay token ids, which
        `predict` encodes each time: for text encoders that train.
        """
        self.wake()
        ids = []
        for name in self.family.towers:
            tokenizer = getattr(self.pipe, name.replace("text_encoder", "tokenizer"))
            ids.append(
                tokenizer(
                    prompts, padding="max_length", truncation=True, return_tensors="pt"
                ).input_ids.to(self.device)
            )
        whole = [self.resolution * part for part in (1, 1, 0, 0, 1, 1)]
        told = {
            "ids": ids,
            "sizes": torch.tensor(
                sizes or [whole] * len(prompts), dtype=torch.float32, device=self.device
            ),
        }
        if not encoded:
            return told
        with torch.no_grad():
            return self.family.encode(list(self.text_encoders.values()), **told)

    def predict(self, noisy, timesteps, conditions):
        """What the U-Net predicts, noise or velocity, [B, C, h, w], for `noisy` [B, C, h, w],
        `timesteps` [B], conditions with B rows.
        """
        if "ids" in conditions:
            conditions = self.family.encode(list(self.text_encoders.values()), **conditions)
        return self.unet(noisy, timesteps, **conditions).sample

    def encode_images(self, images):
        """Mean and deviation of the latents of PIL images of one aspect, at the base's resolution,
        both [N, C, h, w], already scaled.
        """
        self.wake()
        size, vae = bucket(images[0].size, self.resolution), self.pipe.vae
        images = [i if i.size == size else i.resize(size, Image.Resampling.LANCZOS) for i in images]
        some, latents = at_once(size[0] * size[1]), []
        with torch.no_grad():
            for start in range(0, len(images), some):
                pixels = self.pipe.image_processor.preprocess(images[start : start + some]).to(
                    self.device, vae.dtype
                )
                latents.append(vae.encode(pixels).latent_dist)
        scale = vae.config.scaling_factor
        return (
            torch.cat([d.mean for d in latents]).float() * scale,
            torch.cat([d.std for d in latents]).float() * scale,
        )

    def generate(
        self, prompts, seeds, steps=25, guidance=4.0, adapter_weight=None, progress=None, size=None
    ):
        """One picture per (prompt, seed) pair, as PIL images. A pair gives the same picture
        whatever stands beside it in the batch.

        `adapter_weight` scales a loaded LoRA (1 as trained, 0 the base). `progress(done, total)` is
        called after each batch. `size` is (width, height) in pixels, if not the base's square.
        """
        if len(prompts) != len(seeds):
            raise ValueError(
                f"{len(prompts)} prompts and {len(seeds)} seeds: give one seed per prompt"
            )
        self.wake()
        _ = self.unet  # the pipeline finds it on the device
        images, (width, height) = [], size or (self.resolution, self.resolution)
        some, decoded = at_once(width * height, UNET_PIXELS), at_once(width * height)
        extra = (
            {}
            if adapter_weight is None
            else {"cross_attention_kwargs": {"scale": float(adapter_weight)}}
        )
        self.pipe.set_progress_bar_config(disable=True)
        for start in range(0, len(prompts), some):
            noise = [
                torch.Generator("cpu").manual_seed(int(s)) for s in seeds[start : start + some]
            ]
            ours = (
                self.family.vae_in_fp32 or len(noise) > decoded
            )  # the pipeline would decode all at once, in the U-Net's precision
            with torch.inference_mode(), self.autocast():
                drawn = self.pipe(
                    list(prompts[start : start + some]),
                    generator=noise,
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    height=height,
                    width=width,
                    output_type="latent" if ours else "pil",
                    **extra,
                ).images
            images += (
                [image for part in drawn.split(decoded) for image in self._decode(part)]
                if ours
                else drawn
            )
            if progress:
                progress(len(images), len(prompts))
        return images

    def _decode(self, latents):
        """PIL images of scaled latents [N, C, h, w]; in the VAE's own precision where its family
        asks for that.
        """
        with torch.inference_mode(), self.autocast(False if self.family.vae_in_fp32 else None):
            pixels = self.pipe.vae.decode(
                latents.to(self.pipe.vae.dtype) / self.pipe.vae.config.scaling_factor
            ).sample
        return self.pipe.image_processor.postprocess(pixels)

    def rest(self, keep=("unet",)):
        """Free the memory of VAE and text encoders but those named in `keep`: training does without
        what is cached.
        """
        for name in {"vae", *self.family.towers} - set(keep):
            if not self._rests(name):
                getattr(self.pipe, name).to("meta")

    def _rests(self, name):
        part = getattr(self.pipe, name)
        return (
            part is None or next(part.parameters()).is_meta
        )  # None: memory ran out while it was loaded

    def wake(self):
        """Load again from disk what `rest` freed, if it did; whatever encodes or draws calls this
        first.
        """
        resting = [name for name in ("vae", *self.family.towers) if self._rests(name)]
        if resting:
            self.renew(resting)

    def renew(self, names, dtype=None):
        """Load parts of the pipeline, untouched ones, again from disk; in `dtype`, if not in the
        device's own.
        """
        size = self.pipe.unet.config.sample_size
        for name in names:
            setattr(self.pipe, name, None)  # so that no two are in memory
        reclaim(self.device)
        with torch.inference_mode(
            False
        ):  # weights made in that mode could never be part of a graph
            fresh = read_pipeline(locate(self.name), self.family, self.device, names, dtype)
        for name in names:
            setattr(self.pipe, name, getattr(fresh, name))
        self.pipe.unet.register_to_config(
            sample_size=size
        )  # a single file's may differ from its configuration's

    def only_draw(self):
        """Cast the U-Net's layers to bf16 once where autocast would at every step: the same
        pictures, sooner. Not for a model to train.
        """
        for layer in self.unet.modules() if self.bf16 else ():
            if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
                layer.to(torch.bfloat16)
        return self

    def autocast(self, enabled=None):
        """bf16 arithmetic where it is fast (or as asked), fp32 elsewhere; weights keep their own
        precision.
        """
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.bf16 if enabled is None else enabled
        )


def load_base(name="pocket", device=None):
    """Load a base model, weights in fp32 (bf16 on CUDA where that is fast), for `device` or the
    best one there is.

    A hub name is looked up in the local cache only, unless WORKBENCH_DOWNLOAD=1 allows the
    download. Raises BadInput when there is no such model, when it is damaged or of no known family,
    or when it comes only as pickles.
    """
    path = locate(name)
    family = family_of(path)
    if path.is_file():
        read_single(path)  # refuses what lacks a part, and lists what will be left out
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cpu":
        keep_freed_memory()
    pipe = read_pipeline(path, family, device)
    from diffusers import DDIMScheduler

    # Latents are not bounded as pixels are: where a model's own scheduler has no such option, DDIM
    # must not clip by default.
    bounds = (
        {}
        if "clip_sample" in pipe.scheduler.config
        else {"clip_sample": False, "set_alpha_to_one": False}
    )
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **bounds)
    base = Base(pipe, name, device, has_fast_bf16(device))
    if path.is_file():
        set_prediction(base, path)
    return base


@contextmanager
def at_rest(base):
    """Look at a model between two training steps: all in eval mode, no gradients; random state and
    every module's mode are put back.

    What rests in memory's favour is loaded again first, which raises where memory does not suffice.
    """
    base.wake()
    parts = (base.pipe.unet, base.pipe.vae, *base.text_encoders.values())
    modes = [(m, m.training) for part in parts for m in part.modules()]
    devices = [base.device] if base.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.inference_mode():
        try:
            for part in parts:
                part.eval()
            yield
        finally:
            for module, training in modes:
                module.training = training
