"""The decoder's second training: on latents as the U-Net leaves them.

The VAE learnt on latents of its own encoder. What the U-Net draws lies a little beside those, and
the decoder makes frayed lines and grain of the difference. So the decoder alone is trained on: the
encoder and the U-Net stay as they are, and so do latents, steps of training and their cost.

Pairs of a drawing and a worn latent: the drawing's latent, noised to a step of the sampler and
brought back by the U-Net, or a sample from noise alone for the drawing's caption. A critic, trained
beside, tells decoded pictures from drawings; it judges patches at two sizes and the whole picture
(hinge loss: Lim and Ye 2017, arXiv 1705.02894; spectral normalisation: Miyato et al. 2018, arXiv
1802.05957; patches: Isola et al. 2017, arXiv 1611.07004; all three for decoders: Esser et al. 2021,
arXiv 2012.09841).
"""

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from lib.config.presets import PRESETS
from lib.files.whole_writes import whole_file
from lib.models.devices import map_side_by_side
from lib.models.families import Family

from .clip import captions_for
from .detail import with_detail
from .pictures import picture, pool
from .stage import constant, rate
from .unet import encode_captions, encode_pictures
from .vae import to_tensor
from .world import render, sample_scene

FILE_PAIRS = 48
SAMPLER_STEPS = 12
FIRST_SCENE, FIRST_PICTURE = 5_000_000, 9_000_000
GUIDANCES = (1.5, 2.0, 4.0)
DECODER_RATE, CRITIC_RATE = 4e-4, 6e-4


class Pairs(NamedTuple):
    """Drawings and their latents, clean and worn. `back` is how many of the sampler's steps the
    worn ones went back: all of them for samples from noise alone, which show another picture.
    """

    pictures: torch.Tensor  # float [B, 3, H, W] in [-1, 1]
    clean: torch.Tensor  # float [B, channels, H/f, W/f]
    worn: torch.Tensor  # the same
    back: torch.Tensor  # float [B]


@torch.no_grad()
def wear(
    pipe: Any,
    latents: torch.Tensor,
    back: int,
    captions: Sequence[str],
    guidance: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Latents [B, channels, h, w] noised to `back` steps before the end of DDIM's `SAMPLER_STEPS`
    and brought back by the U-Net; with all the steps they are drawn from noise, as the course draws
    them.
    """
    x = noise = torch.randn(latents.shape, generator=generator)
    if back < SAMPLER_STEPS:
        scheduler = pipe.scheduler
        scheduler.set_timesteps(SAMPLER_STEPS)
        steps = scheduler.timesteps[SAMPLER_STEPS - back :]
        x = scheduler.add_noise(latents, noise, steps[:1].expand(len(latents)))
    else:
        scheduler = Family.sampling_scheduler(pipe.scheduler.config)
        scheduler.set_timesteps(PRESETS["lora", "pocket"]["sample_steps"])
        steps = scheduler.timesteps
    words = encode_captions(pipe.text_encoder, pipe.tokenizer, captions)
    empty = encode_captions(pipe.text_encoder, pipe.tokenizer, [""] * len(captions))

    def brought_back(rows: Sequence[torch.Tensor]) -> torch.Tensor:
        x, words, empty = rows
        solver = copy.deepcopy(scheduler)  # which may remember its last steps
        for t in steps:
            said = pipe.unet(x, t, words).sample
            if guidance != 1:
                unsaid = pipe.unet(x, t, empty).sample
                said = unsaid + guidance * (said - unsaid)
            x = solver.step(said, t, x).prev_sample
        return x

    # Rows do not know of each other: each thread takes a part of them.
    at_once = torch.get_num_threads()
    parts = list(zip(*(t.chunk(at_once) for t in (x, words, empty))))
    return torch.cat(list(map_side_by_side(torch.no_grad()(brought_back), parts, at_once)))


def make_pairs(pipe: Any, index: int, count: int = FILE_PAIRS) -> dict[str, np.ndarray]:
    """The `index`-th file of `count` pairs: in turn whole samples, scenes worn a little, whole
    samples, scenes worn more, and pictures of any kind worn very little.
    """
    rng, generator = np.random.default_rng(777 + index), torch.Generator().manual_seed(777 + index)
    kind, numbers = index % 5, range(index * count, (index + 1) * count)
    scenes = [sample_scene(FIRST_SCENE + i) for i in numbers]
    captions, _ = captions_for(scenes, rng, drop=0.2)
    if kind == 4:
        pictures = pool(picture, [FIRST_PICTURE + i for i in numbers])
        back, guidance, captions = 1 + (index // 5) % 3, 1.0, [""] * count
    else:
        pictures = pool(render, scenes)
        guidance = GUIDANCES[int(rng.integers(len(GUIDANCES)))]
        worn = int(rng.integers(1, 6)), int(rng.integers(4, 9))
        back = (SAMPLER_STEPS, worn[0], SAMPLER_STEPS, worn[1])[kind]
    clean = encode_pictures(pipe.vae, pictures)
    worn = wear(pipe, torch.as_tensor(clean).float(), back, captions, guidance, generator)
    return {
        "pictures": pictures,
        "clean": clean,
        "worn": worn.half().numpy(),
        "back": np.full(count, back, np.float32),
        "foreign": np.array(kind == 4),
    }


def pairs(pipe: Any, folder: Path, files: int) -> dict[str, Pairs]:
    """The pairs of `folder`, which are made where they are not there yet, by kind: "samples",
    "scenes" (worn ones) and "foreign" (pictures of any kind).
    """
    folder.mkdir(parents=True, exist_ok=True)
    kinds: dict[str, list[dict[str, np.ndarray]]] = {"samples": [], "scenes": [], "foreign": []}
    for index in range(files):
        file = folder / f"{index:05d}.npz"
        if not file.is_file():
            with whole_file(file) as unfinished, unfinished.open("wb") as out:
                made: dict[str, Any] = make_pairs(pipe, index)
                np.savez(out, **made)
            print(f"pairs: file {index + 1} of {files}", flush=True)
        with np.load(file) as found:
            one = dict(found)
        whole = int(one["back"][0]) == SAMPLER_STEPS
        kinds["foreign" if one["foreign"] else "samples" if whole else "scenes"].append(one)
    return {kind: _joined(found) for kind, found in kinds.items()}


def _joined(files: Sequence[dict[str, np.ndarray]]) -> Pairs:
    clean, worn, back = (
        torch.as_tensor(np.concatenate([one[name] for one in files])).float()
        for name in ("clean", "worn", "back")
    )
    return Pairs(to_tensor(np.concatenate([o["pictures"] for o in files])), clean, worn, back)


class Critic(nn.Module):
    """Logits of a picture [B, 3, 64, 64]: by place at two sizes of patches, and one of the whole.

    Beside the picture it sees what a 3 x 3 blur would take from it: there lie smear and grain.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        w = width
        self.fine = nn.Sequential(
            *_layer(6, w), *_layer(w, 2 * w, 2), *_layer(2 * w, 2 * w),
            *_layer(2 * w, 4 * w, 2), *_layer(4 * w, 4 * w),
        )  # fmt: skip
        self.coarse = nn.Sequential(*_layer(4 * w, 4 * w, 2), *_layer(4 * w, 4 * w))
        self.whole = nn.Sequential(*_layer(4 * w, 4 * w, 2), nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.heads = nn.ModuleList(
            [
                spectral_norm(nn.Conv2d(4 * w, 1, 3, 1, 1)),
                spectral_norm(nn.Conv2d(4 * w, 1, 3, 1, 1)),
                nn.Sequential(
                    spectral_norm(nn.Linear(64 * w, 64)),
                    nn.LeakyReLU(0.2),
                    spectral_norm(nn.Linear(64, 1)),
                ),
            ]
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Three tensors of logits; above 0 says "a drawing"."""
        fine = self.fine(with_detail(x))
        coarse = self.coarse(fine)
        seen = fine, coarse, self.whole(coarse)
        return [head(features) for head, features in zip(self.heads, seen)]


def _layer(before: int, after: int, stride: int = 1) -> list[nn.Module]:
    return [spectral_norm(nn.Conv2d(before, after, 3, stride, 1)), nn.LeakyReLU(0.2)]


def edges(x: torch.Tensor) -> torch.Tensor:
    """Differences of neighbours of [B, 3, H, W], down and across: [B, numbers]."""
    down, across = x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]
    return torch.cat([down.flatten(1), across.flatten(1)], 1)


def trust(back: torch.Tensor) -> torch.Tensor:
    """How much a worn latent still tells of its drawing, by the steps that it went back: .94 for
    one, .5 for four, .2 for eight. What it no longer tells, the decoder is not asked for.
    """
    return 4 / (4 + back**2 / 4)


class Batch(NamedTuple):
    """Rows of each kind for one step."""

    samples: Pairs
    worn: Pairs  # scenes and a few foreign pictures
    clean: Pairs  # one foreign picture and one scene, from their clean latents


def draw(of: dict[str, Pairs], step: int) -> Batch:
    """The batch of a step, from the step alone: 6 samples, 6 worn scenes and 2 worn foreign
    pictures, 2 clean ones.
    """
    rng = np.random.default_rng(step)

    def rows(kind: str, count: int) -> Pairs:
        chosen = torch.as_tensor(rng.integers(len(of[kind].back), size=count))
        return Pairs(*(t[chosen] for t in of[kind]))

    def both(a: Pairs, b: Pairs) -> Pairs:
        return Pairs(*(torch.cat(two) for two in zip(a, b)))

    return Batch(
        rows("samples", 6),
        both(rows("scenes", 6), rows("foreign", 2)),
        both(rows("foreign", 1), rows("scenes", 1)),
    )


class DecoderTraining:
    """Trains a VAE's decoder in place, and a critic beside it, for `steps` steps; safe to kill.

    `vae` keeps its encoder. The averaged weights are in it when `run` returns. The checkpoint is
    `file`; it holds the decoder as it was first too, whose colours in the large the new one keeps.
    """

    def __init__(self, vae: Any, of: dict[str, Pairs], steps: int, file: Path) -> None:
        self.vae, self.of, self.steps, self.file = vae, of, steps, file
        torch.manual_seed(0)
        critic: Any = Critic()  # torch's type hints know no memory format without a device
        self.critic = critic.to(memory_format=torch.channels_last)
        self.first = copy.deepcopy(vae).requires_grad_(False)
        self.weights = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
        self.means = [w.detach().clone() for w in self.weights]
        adam: Callable[..., Any] = torch.optim.Adam
        self.optimizers = [
            adam(self.weights, lr=DECODER_RATE, betas=(0.5, 0.95)),
            adam(self.critic.parameters(), lr=CRITIC_RATE, betas=(0.5, 0.95)),
        ]
        self.step, self.seconds = 0, 0.0
        if file.is_file():
            self._load()

    def _load(self) -> None:
        state = torch.load(self.file, weights_only=True)
        self.first.load_state_dict(state["first"])
        self.vae.load_state_dict(state["vae"])
        self.critic.load_state_dict(state["critic"])
        for optimizer, one in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(one)
        self.means, self.step, self.seconds = state["means"], state["step"], state["seconds"]

    def _save(self) -> None:
        state = dict(
            first=self.first.state_dict(),
            vae=self.vae.state_dict(),
            critic=self.critic.state_dict(),
            optimizers=[o.state_dict() for o in self.optimizers],
            means=self.means,
            step=self.step,
            seconds=self.seconds,
        )
        with whole_file(self.file) as unfinished:
            torch.save(state, unfinished)

    def _take_step(self) -> dict[str, float]:
        batch = draw(self.of, self.step)
        latents = torch.cat([batch.samples.worn, batch.worn.worn, batch.clean.clean])
        decoded = self.vae.decode(latents).sample
        n = len(batch.samples.back)
        of_samples, of_worn, of_clean = decoded[:n], decoded[n:-2], decoded[-2:]
        scenes = slice(0, -2)  # the critic knows the world's drawings, not foreign pictures
        made = torch.cat([of_samples, of_worn[scenes], of_clean[1:]])
        real = torch.cat(
            [batch.samples.pictures, batch.worn.pictures[scenes], batch.clean.pictures[1:]]
        )
        if self.step % 2:
            made, real = made.flip(3), real.flip(3)
        error = (of_clean - batch.clean.pictures).square().mean((1, 2, 3))
        losses = {
            "critic": hinge(self.critic(real), self.critic(made.detach())),
            "worn": worn_loss(of_worn, batch.worn),
            "clean": (error + 1e-4).log().mean(),
            "colour": self._change_in_the_large(of_samples, batch.samples),
        }
        update(self.optimizers[1], losses["critic"])
        self.critic.requires_grad_(False)
        losses["fooled"] = -torch.stack([logits.mean() for logits in self.critic(made)]).mean()
        self.critic.requires_grad_(True)
        adversarial = 0.06 * min(1, self.step / 100)
        loss = (
            3 * losses["worn"]
            + 0.03 * losses["clean"]
            + losses["colour"]
            + adversarial * losses["fooled"]
        )
        update(self.optimizers[0], loss, self.weights)
        return {name: float(value.detach()) for name, value in losses.items()}

    def _change_in_the_large(self, decoded: torch.Tensor, samples: Pairs) -> torch.Tensor:
        """How far means over 8 x 8 pixels moved from what the first decoder made of them."""
        with torch.no_grad():
            before = self.first.decode(samples.worn).sample
        return (F.avg_pool2d(decoded, 8) - F.avg_pool2d(before, 8)).abs().mean()

    def run(self) -> dict[str, float]:
        """Train to the last step; returns steps, seconds and the smoothed losses."""
        began = time.time() - self.seconds
        shown: dict[str, float] = {}
        average = constant(0.99)
        self.vae.train()
        while self.step < self.steps:
            for optimizer, peak in zip(self.optimizers, (DECODER_RATE, CRITIC_RATE)):
                for group in optimizer.param_groups:
                    group["lr"] = rate(self.step, self.steps, peak, warmup=50)
            for name, value in self._take_step().items():
                shown[name] = 0.95 * shown.get(name, value) + 0.05 * value
            self.step += 1
            for mean, now in zip(self.means, self.weights):
                mean.lerp_(now.detach(), 1 - average(self.step))
            if self.step % 20 == 0 or self.step == self.steps:
                self.seconds = time.time() - began
                words = "  ".join(f"{name} {value:.3f}" for name, value in shown.items())
                print(f"decoder: step {self.step}/{self.steps}  {words}", flush=True)
            if self.step % 50 == 0 or self.step == self.steps:
                self._save()
        with torch.no_grad():
            for mean, now in zip(self.means, self.weights):
                now.copy_(mean)
        self.vae.eval()
        return {"steps": self.step, "seconds": round(self.seconds, 1)} | {
            name: round(value, 4) for name, value in shown.items()
        }


def hinge(real: Sequence[torch.Tensor], made: Sequence[torch.Tensor]) -> torch.Tensor:
    """The critic's hinge loss of its logits on drawings and on decoded pictures, mean over its
    heads.
    """
    return torch.stack(
        [F.relu(1 - r).mean() + F.relu(1 + m).mean() for r, m in zip(real, made)]
    ).mean()


def worn_loss(decoded: torch.Tensor, worn: Pairs) -> torch.Tensor:
    """Mean absolute error in pixels and half of that in their differences, by `trust`."""
    pixels = (decoded - worn.pictures).abs().mean((1, 2, 3))
    lines = (edges(decoded) - edges(worn.pictures)).abs().mean(1)
    return (trust(worn.back) * (pixels + 0.5 * lines)).mean()


def update(optimizer: Any, loss: torch.Tensor, clipped: Sequence[torch.Tensor] = ()) -> None:
    """One step of an optimiser, its gradients clipped to a norm of one where named."""
    optimizer.zero_grad()
    loss.backward()
    if clipped:
        nn.utils.clip_grad_norm_(list(clipped), 1.0)
    optimizer.step()
