"""The pocket base's U-Net and its pipeline: real diffusers classes at a size that two CPU cores can
train.
"""

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from .clip import captions_for
from .pictures import pool
from .vae import LATENTS, to_tensor
from .world import Scene, held_out, render, sample_scene

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

CHANNELS = (64, 128, 192)
# Share of empty captions in training, which classifier-free guidance needs (Ho and Salimans 2022).
NO_CAPTION = 0.1


def make_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule with v-prediction (Salimans and Ho 2022), sampled by DDIM
    from the noisiest step on.
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def make_unet(
    text_width: int = 128,
    channels: tuple[int, ...] = CHANNELS,
    size: int = 16,
    latents: int = LATENTS,
) -> UNet2DConditionModel:
    """A `UNet2DConditionModel` on [B, latents, size, size] with cross-attention below the finest
    resolution.
    """
    deeper = len(channels) - 1
    return UNet2DConditionModel(
        sample_size=size,
        in_channels=latents,
        out_channels=latents,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * deeper,
        up_block_types=("CrossAttnUpBlock2D",) * deeper + ("UpBlock2D",),
        cross_attention_dim=text_width,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def encode_pictures(vae: Any, pictures: np.ndarray, batch: int = 128) -> np.ndarray:
    """Latent means of uint8 [N, H, W, 3] as a float16 array [N, latents, H/f, W/f], f the VAE's
    factor.
    """
    with torch.no_grad():
        parts = [
            vae.encode(to_tensor(pictures[i : i + batch], vae.device)).latent_dist.mean
            for i in range(0, len(pictures), batch)
        ]
    return torch.cat(parts).half().cpu().numpy()


class Growing:
    """Scenes and their latents, more of them at every step: nothing is drawn before it is needed,
    nothing is learnt by heart.

    `file` keeps the latents, float16 [n, *shape], so that a training that goes on draws none twice.
    How many there are follows from the step alone: `first` at the start and `each` more a step, up
    to `most`. Scenes come in the order of their seeds.
    """

    def __init__(
        self,
        file: str | Path,
        vae: Any,
        shape: tuple[int, ...],
        first: int = 6000,
        each: int = 8,
        most: int = 400_000,
        ahead: int = 56,
    ) -> None:
        self.file, self.vae, self.shape = Path(file), vae, shape
        self.first, self.each, self.most, self.ahead = first, each, most, ahead
        self.scenes: list[Scene] = []
        self.seed = 0
        self._open()

    def _open(self) -> None:
        unit = 2 * math.prod(self.shape)
        count = self.file.stat().st_size // unit if self.file.is_file() else 0
        if count and self.file.stat().st_size % unit:  # killed while writing
            os.truncate(self.file, count * unit)
        self.latents = (
            np.memmap(self.file, np.float16, "r", shape=(count, *self.shape))
            if count
            else np.zeros((0, *self.shape))
        )
        while len(self.scenes) < count:
            self._next()

    def _next(self) -> Scene:
        """One more scene whose class-colour-place triple is not held out."""
        while held_out(scene := sample_scene(self.seed)):
            self.seed += 1
        self.seed += 1
        self.scenes.append(scene)
        return scene

    def at(self, step: int) -> int:
        """How many scenes there are at `step`; they are drawn and encoded if they are not there
        yet.
        """
        wanted = min(self.most, self.first + self.each * step)
        while (missing := wanted - len(self.latents)) > 0:
            new = [
                self._next()
                for _ in range(min(2048, missing if missing > self.ahead else self.ahead))
            ]
            with self.file.open("ab") as out:
                out.write(encode_pictures(self.vae, pool(render, new)).tobytes())
            self._open()
        return wanted


def encode_captions(
    text_model: Any, tokenizer: "CLIPTokenizer", texts: Sequence[str]
) -> torch.Tensor:
    """Hidden states [B, 32, width] of the frozen text tower, as the pipeline computes them."""
    ids = tokenizer(
        list(texts), padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        return text_model(ids.to(text_model.device)).last_hidden_state


def bell(count: int) -> torch.Tensor:
    """`count` times in (0, 1), stratified, from a logit-normal density: few near the ends, where
    there is least to learn.

    Esser et al. 2024 (arXiv 2403.03206, section 3.1), location 0 and scale 1.
    """
    even = (torch.arange(count) + torch.rand(count)) / count
    return torch.sigmoid(torch.special.ndtri(even.clamp(1e-4, 1 - 1e-4)))


def make_rows(
    scheduler: DDIMScheduler,
    text_model: Any,
    tokenizer: "CLIPTokenizer",
    growing: Growing,
    batch: int,
    step: Callable[[], int],
) -> Callable[[], tuple[torch.Tensor, ...]]:
    """A function that gives what `loss` takes, of `batch` random scenes with fresh captions;
    `step()` is how far the training is.
    """

    def draw() -> tuple[torch.Tensor, ...]:
        chosen = torch.randint(growing.at(step()), (batch,)).numpy()
        rng = np.random.default_rng(int(torch.randint(1 << 31, ())))
        texts, _ = captions_for([growing.scenes[i] for i in chosen], rng, drop=0.2)
        texts = ["" if rng.random() < NO_CAPTION else t for t in texts]
        z = torch.as_tensor(growing.latents[chosen]).float()
        t: Any = (bell(batch) * len(scheduler.betas)).long()
        noise = torch.randn_like(z)
        noisy, target = scheduler.add_noise(z, noise, t), scheduler.get_velocity(z, noise, t)
        return noisy, t, encode_captions(text_model, tokenizer, texts), target

    return draw


def loss(
    model: Any, noisy: torch.Tensor, t: torch.Tensor, words: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Mean squared error of the velocity that the U-Net predicts (Salimans and Ho 2022)."""
    device = model.device
    noisy = noisy.to(device, memory_format=torch.channels_last)
    out = model(noisy, t.to(device), words.to(device)).sample
    return F.mse_loss(out.float(), target.to(device)), {}


def make_pipeline(
    vae: Any, text_model: Any, tokenizer: "CLIPTokenizer", unet: Any
) -> StableDiffusionPipeline:
    """The four parts as a `StableDiffusionPipeline` without a safety checker (its scenes hold
    nothing to check).
    """
    kind: Any = StableDiffusionPipeline  # its type hints leave out what may be None
    return kind(
        vae=vae,
        text_encoder=text_model,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
