"""The pocket base's VAE: a diffusers `AutoencoderKL`, trained on pictures of every kind and judged
on foreign ones.

4 x 4 pixels a place and 12 channels: 3,072 numbers a picture. Fewer were tried and not taken: 28
channels of 8 x 8 places halve the U-Net's arithmetic, but lose eyes and lines (24 dB on the example
subjects in place of 30), and 8 of the 12 principal channels lose 6.7 dB.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

CHANNELS, LATENTS = (32, 64, 128), 12
KL_WEIGHT = 0.02
SIDES = (6, 8, 10, 12, 14)  # that latents are made smaller to
SMALL_WEIGHT = 1.0  # what the small ones count beside the whole
FINE_WEIGHT = 1.5
MOST_NOISE = 0.3


def make_vae(
    channels: tuple[int, ...] = CHANNELS,
    latents: int = LATENTS,
    size: int = 64,
    groups: int = 8,
    layers: int = 1,
) -> AutoencoderKL:
    """An `AutoencoderKL` that halves once less than it has `channels`: [B, 3, size, size] -> [B,
    latents, size/4, size/4] by default.
    """
    n = len(channels)
    kind: Any = AutoencoderKL  # its type hints know one block alone
    vae = kind(
        down_block_types=("DownEncoderBlock2D",) * n,
        up_block_types=("UpDecoderBlock2D",) * n,
        block_out_channels=channels,
        layers_per_block=layers,
        latent_channels=latents,
        norm_num_groups=groups,
        sample_size=size,
        mid_block_add_attention=False,
        scaling_factor=1.0,
        force_upcast=False,
    )
    # each residual block starts as the identity: the straight path learns first
    for name, module in vae.named_modules():
        if name.endswith("conv2"):
            torch.nn.init.zeros_(module.weight)
    torch.nn.init.zeros_(vae.quant_conv.bias)
    with torch.no_grad():
        vae.quant_conv.bias[latents:] = -5.0
    return vae


def to_tensor(pictures: np.ndarray, device: str | torch.device = "cpu") -> torch.Tensor:
    """uint8 [B, H, W, 3] -> float [B, 3, H, W] in [-1, 1]."""
    return torch.as_tensor(pictures, device=device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def to_pictures(decoded: torch.Tensor) -> np.ndarray:
    """Float [B, 3, H, W] in [-1, 1], or a little beyond -> uint8 [B, H, W, 3]."""
    pixels = (decoded.clamp(-1, 1) + 1) * 127.5
    return pixels.round().byte().permute(0, 2, 3, 1).cpu().numpy()


def psnr(vae: Any, pictures: np.ndarray, batch: int = 64) -> float:
    """Mean peak signal-to-noise ratio in dB of the VAE's reconstructions of uint8 [N, H, W, 3],
    through uint8 as saved files are.
    """
    scores = []
    for start in range(0, len(pictures), batch):
        x = to_tensor(pictures[start : start + batch])
        with torch.no_grad():
            y = vae.decode(vae.encode(x).latent_dist.mode()).sample
        error = ((y.clamp(-1, 1) - x) * 127.5).round().pow(2).mean((1, 2, 3))
        scores += (10 * torch.log10(255**2 / error.clamp(min=1e-3))).tolist()
    return float(np.mean(scores))


def augment(x: torch.Tensor) -> torch.Tensor:
    """Flips and swaps of colour channels for a batch [B, 3, H, W]: colours and facings that no
    drawing code chose.
    """
    if torch.rand(()) < 0.5:
        x = x.flip(3)
    if torch.rand(()) < 0.5:
        x = x[:, torch.randperm(3)]
    if torch.rand(()) < 0.25:
        x = -x
    return x


def loss(vae: Any, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What the VAE is trained to lower on pictures [B, 3, H, W], and numbers to print.

    - mean over pictures of log mean squared error, whose minimum is the best mean PSNR
    - the same for latents made smaller, which are to decode to the pictures made as small
      (Skorokhodov et al. 2025, arXiv 2502.14831; Kouzelis et al. 2025, arXiv 2502.09509)
    - `fineness`: without it and the second, the finest waves of the latents are as strong as the
      coarsest, and a U-Net has to get them right as exactly
    - a light pull to N(0, 1)

    Latents come with noise, for a U-Net's are never exact (Yang et al. 2025, arXiv 2507.15856): by
    their own loudness, or they would grow loud until it is nothing.
    """
    posterior = vae.encode(x).latent_dist
    z = posterior.sample()
    loudness = z.detach().square().mean().sqrt()
    noise = MOST_NOISE * torch.rand(len(z), 1, 1, 1, device=z.device) * torch.randn_like(z)
    z = z + loudness * noise
    side = SIDES[int(torch.randint(len(SIDES), ()))]
    error = _error(vae, z, x)
    small = _error(vae, resized(z, side), resized(x, side * x.shape[-1] // z.shape[-1]))
    mean, variance = posterior.mean.float(), posterior.var.float()
    kl = 0.5 * (mean**2 + variance - 1 - posterior.logvar.float()).mean()
    fine = fineness(mean)
    total = (error + 3e-5).log().mean() + SMALL_WEIGHT * (small + 3e-5).log().mean()
    return total + FINE_WEIGHT * fine + KL_WEIGHT * kl, {
        "psnr": _decibels(error),
        "small": _decibels(small),
        "fine": fine.detach(),
        "kl": kl.detach(),
    }


def fineness(z: torch.Tensor) -> torch.Tensor:
    """The share of the energy of latents [B, C, h, w] in waves that half as many places cannot
    hold.
    """
    z = z - z.mean((0, 2, 3), keepdim=True)
    coarse = F.interpolate(resized(z, z.shape[-1] // 2), size=z.shape[-2:], mode="bilinear")
    return (z - coarse).square().mean() / z.square().mean()


def _error(vae: Any, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Mean squared error of what latents decode to, [B]."""
    return (vae.decode(z).sample.float() - x).pow(2).mean((1, 2, 3))


def _decibels(error: torch.Tensor) -> torch.Tensor:
    """Mean peak signal-to-noise ratio of mean squared errors [B]; values go from -1 to 1."""
    return -10 * (error.detach() / 4).log10().mean()


def resized(x: torch.Tensor, side: int) -> torch.Tensor:
    """[B, C, h, w] -> [B, C, side, side], smaller, without aliasing."""
    return F.interpolate(x.float(), size=(side, side), mode="bilinear", antialias=True)


def whiten(vae: Any, pictures: np.ndarray, power: float = 0.5) -> None:
    """Scale the latent channels inside `quant_conv` and `post_quant_conv`; the reconstruction stays
    as it was.

    Each channel is centred on zero; its deviation s becomes s ** (1 - power), then all are scaled
    to a mean square of one. A whole levelling (power 1) would make the finest detail as loud as
    colour and shape.
    """
    with torch.no_grad():
        z = torch.cat(
            [
                vae.encode(to_tensor(pictures[i : i + 64])).latent_dist.mean
                for i in range(0, len(pictures), 64)
            ]
        )
        mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
        scale = std**-power
        scale = scale / (std * scale).square().mean().sqrt()
        n = len(mean)
        enter, leave = vae.quant_conv, vae.post_quant_conv
        enter.weight[:n] *= scale[:, None, None, None]
        enter.bias[:n] = (enter.bias[:n] - mean) * scale
        enter.bias[n:] += 2 * scale.log()
        leave.bias += (leave.weight[:, :, 0, 0] * mean).sum(1)
        leave.weight /= scale[None, :, None, None]
