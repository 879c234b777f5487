"""Base models: the pocket base that ships with the course, or any Stable Diffusion folder in diffusers form.

base = load_base("pocket")
base.generate(["a red robot in the snow"], seeds=[0])     # one PIL image per (prompt, seed) pair
"""

import gc
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from .settings import BadInput

ROOT = Path(__file__).resolve().parent.parent
POCKET = ROOT / "data" / "pocket"
LARGEST_BATCH = 8  # pictures sampled at once


@dataclass
class Base:
    """A base model: its diffusers pipeline `pipe`, the `name` it was asked for by, its `device`, and whether bf16 is fast there."""

    pipe: object
    name: str
    device: torch.device
    bf16: bool

    @property
    def unet(self):
        return self.pipe.unet

    @property
    def resolution(self):
        """Side of its pictures in pixels."""
        return self.pipe.unet.config.sample_size * self.pipe.vae_scale_factor

    def pieces(self, word):
        """How the tokenizer splits `word`, as a list of strings without end marks."""
        return [piece.replace("</w>", "") for piece in self.pipe.tokenizer.tokenize(word)]

    def check_words(self, class_noun, identifier):
        """Raise BadInput if the tokenizer cannot hold the class noun or the identifier, or one hides in the other."""
        room = self.pipe.tokenizer.model_max_length - 2
        for what, word in (("class noun", class_noun), ("identifier", identifier)):
            pieces = self.pieces(word)
            if not pieces or self.pipe.tokenizer.unk_token in pieces:
                raise BadInput(f"The {what} {word!r} has no letters that the tokenizer of '{self.name}' knows: choose a plain word.")
            if len(pieces) > room // 3:
                raise BadInput(
                    f"The {what} {word!r} falls into {len(pieces)} pieces, a prompt of '{self.name}' holds {room}: choose a shorter one."
                )
        if class_noun.lower() == identifier.lower():
            raise BadInput(f"Class noun and identifier are both {class_noun!r}: choose a rare word such as 'zwx' as identifier.")

    def encode_prompts(self, prompts):
        """Hidden states [len(prompts), tokens, width] of the text encoder, on the base's device."""
        self.wake()
        ids = self.pipe.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            return self.pipe.text_encoder(ids.to(self.device))[0].float()

    def conditions(self, prompts):
        """What the U-Net is told beside picture and timestep, by its argument's name: tensors (or dicts of them) with a row a prompt."""
        return {"encoder_hidden_states": self.encode_prompts(prompts)}

    def predict(self, noisy, timesteps, conditions):
        """What the U-Net predicts, noise or velocity, [B, C, h, w], for `noisy` [B, C, h, w], `timesteps` [B], conditions with B rows."""
        return self.unet(noisy, timesteps, **conditions).sample

    def encode_images(self, images):
        """Mean and deviation of the latents of PIL images at the base's resolution, both [N, C, h, w], already scaled."""
        self.wake()
        side, vae = self.resolution, self.pipe.vae
        images = [i if i.size == (side, side) else i.resize((side, side), Image.Resampling.LANCZOS) for i in images]
        pixels = self.pipe.image_processor.preprocess(images).to(self.device, vae.dtype)
        with torch.no_grad():
            latents = [vae.encode(part).latent_dist for part in pixels.split(LARGEST_BATCH)]
        scale = vae.config.scaling_factor
        return (torch.cat([d.mean for d in latents]).float() * scale, torch.cat([d.std for d in latents]).float() * scale)

    def generate(self, prompts, seeds, steps=25, guidance=4.0, adapter_weight=None, progress=None):
        """One picture per (prompt, seed) pair, as PIL images. A pair gives the same picture whatever stands beside it in the batch.

        `adapter_weight` scales a loaded LoRA (1 as trained, 0 the base). `progress(done, total)` is called after each batch.
        """
        if len(prompts) != len(seeds):
            raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds: give one seed per prompt")
        self.wake()
        images = []
        extra = {} if adapter_weight is None else {"cross_attention_kwargs": {"scale": float(adapter_weight)}}
        self.pipe.set_progress_bar_config(disable=True)
        for start in range(0, len(prompts), LARGEST_BATCH):
            noise = [torch.Generator("cpu").manual_seed(int(s)) for s in seeds[start : start + LARGEST_BATCH]]
            with torch.inference_mode(), self.autocast():
                images += self.pipe(
                    list(prompts[start : start + LARGEST_BATCH]),
                    generator=noise,
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    height=self.resolution,
                    width=self.resolution,
                    **extra,
                ).images
            if progress:
                progress(len(images), len(prompts))
        return images

    def rest(self):
        """Free the memory of all but the U-Net (VAE and text encoder), which training does not need once their outputs are cached."""
        for name in self._helpers():
            getattr(self.pipe, name).to("meta")

    def wake(self):
        """Load again from disk what `rest` freed, if it did; whatever encodes or draws calls this first."""
        for name in self._helpers():
            part = getattr(self.pipe, name)
            if part.device.type == "meta":
                with torch.inference_mode(False):  # weights made in that mode could never be part of a graph
                    fresh = type(part).from_pretrained(find_base(self.name), subfolder=name, **loading(self.device))
                    setattr(self.pipe, name, fresh.to(self.device).requires_grad_(False))

    def renew(self):
        """Load the untouched U-Net again from disk."""
        kind, self.pipe.unet = type(self.unet), None  # so that no two are in memory
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        unet = kind.from_pretrained(find_base(self.name), subfolder="unet", **loading(self.device))
        self.pipe.unet = unet.to(self.device).requires_grad_(False)

    def _helpers(self):
        """Names of the pipeline's models beside the U-Net."""
        return [name for name, part in self.pipe.components.items() if isinstance(part, torch.nn.Module) and name != "unet"]

    def autocast(self, enabled=None):
        """bf16 arithmetic where it is fast (or as asked), fp32 elsewhere; weights keep their own precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16 if enabled is None else enabled)


def has_fast_bf16(device):
    """True where the processor multiplies bf16 natively: CUDA from Ampere on, x86 with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def find_base(name):
    """Where a base model lies: the pocket base, a diffusers folder, or a hub name `owner/model` as it is. Else raises BadInput."""
    if name == "pocket":
        folder = POCKET
    elif Path(name).expanduser().is_dir():
        folder = Path(name).expanduser()
    elif name.count("/") == 1 and not name.startswith((".", "~", "/")):
        return name
    else:
        raise BadInput(f"There is no base model '{name}': use 'pocket', a diffusers folder, or a hub name such as 'owner/model'.")
    if not (folder / "model_index.json").is_file():
        raise BadInput(f"{folder} is no diffusers folder (it has no model_index.json): name the folder that holds one.")
    return str(folder)


def load_base(name="pocket", device=None):
    """Load a base model, weights in fp32 on the CPU (bf16 on CUDA), on `device` or the best one there is.

    A hub name is looked up in the local cache only, unless WORKBENCH_DOWNLOAD=1 allows the download. Raises BadInput when there is no
    such model, or when it comes only as pickles.
    """
    where = find_base(name)
    quiet()
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        pipe = StableDiffusionPipeline.from_pretrained(where, safety_checker=None, requires_safety_checker=False, **loading(device))
    except (OSError, ValueError, EnvironmentError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BadInput(
            f"Base model '{name}' cannot be loaded ({reason}): check the folder, or set WORKBENCH_DOWNLOAD=1 to download a hub model."
        ) from None
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.unet.requires_grad_(False)
    return Base(pipe.to(device), name, device, has_fast_bf16(device))


def loading(device):
    """How weights are loaded for `device`: never from pickles, from the local cache unless a download is allowed, in bf16 on CUDA."""
    download = os.environ.get("WORKBENCH_DOWNLOAD") == "1"
    return {
        "use_safetensors": True,
        "local_files_only": not download,
        "dtype": torch.bfloat16 if device.type == "cuda" else torch.float32,
    }


def quiet():
    """Silence warnings of the stack that name nothing a reader could act on (missing torchvision, optional kernels)."""
    import logging

    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    for name in ("bitsandbytes", "bitsandbytes.backends.cpu.ops", "transformers", "diffusers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for log in (diffusers_logging, transformers_logging):
        log.set_verbosity_error()
        log.disable_progress_bar()
