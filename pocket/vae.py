"""The pocket base's VAE: a diffusers `AutoencoderKL`, trained on pictures of every kind and judged
on foreign ones.

The shallow VAE (4 x 4 pixels a place, 12 channels) has 3,072 numbers a picture, its spectrum is
nearly flat, and keeping 8 of its 12 principal channels costs 6.7 dB on the example subjects: there
is no cheap way to fewer. The base's VAE halves once more and keeps 28 channels of 8 x 8 places,
1,792 numbers. The pull to N(0, 1) leaves those alike (deviation 1, posterior .05) though the most
telling direction moves pixels with 130 times the energy of the least: hence `by_importance`.
"""

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

CHANNELS, LATENTS = (32, 64, 128), 12
DEEPER = {"channels": (32, 64, 128, 128), "latents": 32}  # what the base starts from: 8 x 8 latents
KEPT = 28  # of those, after `by_importance`
KL_WEIGHT, INNER_KL = 0.02, 0.03


def make_vae(channels=CHANNELS, latents=LATENTS, size=64, groups=8, layers=1):
    """An `AutoencoderKL` that halves once less than it has `channels`: [B, 3, size, size] -> [B,
    latents, size/4, size/4] by default.
    """
    n = len(channels)
    vae = AutoencoderKL(
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


def to_tensor(pictures, device="cpu"):
    """uint8 [B, H, W, 3] -> float [B, 3, H, W] in [-1, 1]."""
    return torch.as_tensor(pictures, device=device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def psnr(vae, pictures, batch=64):
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


def augment(x):
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


def graft(vae, earlier):
    """Copy into `vae` the outer blocks of an `earlier` one that halves once less; what lies between
    is left as it is.

    The shallow blocks of any VAE of these pictures do the same work, and they cost nine tenths of
    the arithmetic.
    """
    kept = {}
    for name, tensor in earlier.state_dict().items():
        part, kind, *rest = name.split(".")
        if kind == "down_blocks":
            kept[name] = tensor
        elif kind == "up_blocks":
            kept[".".join([part, kind, str(int(rest[0]) + 1), *rest[1:]])] = tensor
        elif name.startswith(("encoder.conv_in", "decoder.conv_norm_out", "decoder.conv_out")):
            kept[name] = tensor
    unexpected = vae.load_state_dict(kept, strict=False).unexpected_keys
    if unexpected:
        raise ValueError(
            f"graft: the earlier VAE is not one level shallower; it has {unexpected[0]} besides."
        )


def inner_encode(vae, h):
    """Posterior of the latents from features [B, C, size/4, size/4]: the encoder behind the place
    where `graft` ends.
    """
    e = vae.encoder
    x = e.mid_block(e.down_blocks[-1](e.down_blocks[-2].downsamplers[0](h)))
    return DiagonalGaussianDistribution(vae.quant_conv(e.conv_out(e.conv_act(e.conv_norm_out(x)))))


def inner_decode(vae, z):
    """Features [B, C, size/4, size/4] that the grafted decoder blocks go on from."""
    d = vae.decoder
    return d.up_blocks[0](d.mid_block(d.conv_in(vae.post_quant_conv(z))))


def importance(vae, pictures, step=0.3):
    """What the latents' directions do to pixels: (mean [L], covariance [L, L] and pixel energy [L,
    L]) over uint8 pictures [N, H, W, 3].

    Entry (i, j) of the energy is the mean over pixels of the product of the changes that one
    deviation along columns i and j of the covariance's root make, measured by finite differences of
    random sign at each place.
    """
    torch.manual_seed(0)
    with torch.no_grad():
        z = torch.cat(
            [
                vae.encode(to_tensor(pictures[i : i + 64])).latent_dist.mean
                for i in range(0, len(pictures), 64)
            ]
        )
        flat = z.permute(0, 2, 3, 1).flatten(0, 2).double()
        covariance = torch.cov(flat.T)
        values, vectors = torch.linalg.eigh(covariance)
        root = vectors * values.clamp(min=0).sqrt() @ vectors.T
        z = z[:: max(1, len(z) // 16)]
        base = vae.decode(z).sample
        sign = torch.randint(0, 2, (len(z), 1, *z.shape[2:])) * 2.0 - 1
        changes = [
            (
                (vae.decode(z + step * sign * c.float()[:, None, None]).sample - base) / step
            ).flatten()
            for c in root.T
        ]
        changes = torch.stack(changes).double()
        return flat.mean(0), covariance, changes @ changes.T / changes.shape[1]


def by_importance(vae, pictures, keep, power=0.75):
    """A VAE with `keep` latent channels, turned so that the first does most to pixels, the last
    least; each as loud as what it does.

    Channel k has deviation energy_k ** (power / 2), all scaled to a mean square of one: 1 would
    make an error in latents as grave as in pixels, 0 the finest detail as loud as colour and shape.
    The turn is folded into the convolutions beside the latents; the picture loses just what the
    dropped channels told. The posterior's variance becomes a constant for each channel.
    """
    mean, covariance, energy = importance(vae, pictures)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    unroot = vectors * values.clamp(min=1e-4 * values.max()).rsqrt() @ vectors.T
    energies, directions = torch.linalg.eigh(energy)
    energies, directions = energies.flip(0)[:keep], directions.flip(1)[:, :keep]
    loud = energies ** (power / 2)
    loud = loud / loud.square().mean().sqrt()
    enter = loud[:, None] * directions.T @ unroot  # [keep, L]: latents to the new ones
    leave = root @ directions / loud  # [L, keep]
    with torch.no_grad():
        spread = torch.cat(
            [
                vae.encode(to_tensor(pictures[i : i + 64])).latent_dist.var
                for i in range(0, min(256, len(pictures)), 64)
            ]
        )
        variance = enter.square() @ spread.mean((0, 2, 3)).double()
        config = vae.config
        new = make_vae(
            tuple(config.block_out_channels),
            keep,
            config.sample_size,
            config.norm_num_groups,
            config.layers_per_block,
        )
        touched = ("encoder.conv_out", "decoder.conv_in", "quant_conv", "post_quant_conv")
        new.load_state_dict(
            {k: v for k, v in vae.state_dict().items() if not k.startswith(touched)}, strict=False
        )
        n = len(mean)
        turn = enter @ vae.quant_conv.weight[:n, :, 0, 0].double()  # [keep, 2 L]
        new.encoder.conv_out.weight.zero_()
        new.encoder.conv_out.bias.zero_()
        new.encoder.conv_out.weight[:keep] = torch.einsum(
            "ko,oihw->kihw", turn, vae.encoder.conv_out.weight.double()
        ).float()
        new.encoder.conv_out.bias[:keep] = (
            turn @ vae.encoder.conv_out.bias.double() + enter @ (vae.quant_conv.bias[:n] - mean)
        ).float()
        new.quant_conv.weight[:, :, 0, 0] = torch.eye(2 * keep)
        new.quant_conv.bias.zero_()
        new.quant_conv.bias[keep:] = variance.log().float()
        turn = vae.post_quant_conv.weight[:, :, 0, 0].double() @ leave
        inside = vae.decoder.conv_in.weight.double()
        constant = vae.post_quant_conv.weight[:, :, 0, 0].double() @ mean + vae.post_quant_conv.bias
        shift = (
            torch.linalg.pinv(turn) @ constant
        )  # what of the constant the kept channels can carry
        rest = torch.einsum("oihw,i->o", inside, constant - turn @ shift)
        new.decoder.conv_in.weight.copy_(torch.einsum("oihw,ik->okhw", inside, turn))
        new.decoder.conv_in.bias.copy_(vae.decoder.conv_in.bias + rest)
        new.post_quant_conv.weight[:, :, 0, 0] = torch.eye(keep)
        new.post_quant_conv.bias.copy_(shift)
    return new.to(memory_format=torch.channels_last)


def inner_parts(vae):
    """The modules that `graft` leaves untouched: from the last halving in the encoder to the first
    doubling in the decoder.
    """
    e, d = vae.encoder, vae.decoder
    inside = [
        e.down_blocks[-2].downsamplers,
        e.down_blocks[-1],
        e.mid_block,
        e.conv_norm_out,
        e.conv_out,
        vae.quant_conv,
    ]
    return [*inside, vae.post_quant_conv, d.conv_in, d.mid_block, d.up_blocks[0]]


def train_only(vae, parts):
    """Freeze all of the VAE but `parts`."""
    vae.requires_grad_(False)
    for part in parts:
        part.requires_grad_(True)
    return vae


def splice(earlier, pictures, which, batch=50):
    """An `earlier` VAE's features for uint8 pictures [N, H, W, 3] where a deeper one is grafted on,
    float16 [N, C, H/4, W/4].

    `which`: "enter", those that its encoder hands to the middle; "leave", those that its decoder's
    middle hands on; "half", the latter for pictures of half the side.
    """
    done = []
    with torch.no_grad():
        for start in range(0, len(pictures), batch):
            x = to_tensor(np.array(pictures[start : start + batch]))
            x = F.avg_pool2d(x, 2) if which == "half" else x
            h = earlier.encoder.conv_in(x)
            for block in earlier.encoder.down_blocks:
                h = block(h)
            if which != "enter":
                z = earlier.encode(x).latent_dist.mode()
                h = earlier.decoder.mid_block(earlier.decoder.conv_in(earlier.post_quant_conv(z)))
            done.append(h.half().numpy())
    return np.concatenate(done)


def spread(features):
    """Mean and deviation by channel of features [N, C, h, w], each as [1, C, 1, 1]."""
    f = torch.as_tensor(np.array(features)).float()
    return f.mean((0, 2, 3))[None, :, None, None], f.std((0, 2, 3)).clamp(min=1e-3)[
        None, :, None, None
    ]


def inner_loss(vae, h, wanted, mean, scale, halved):
    """Mean log squared error in deviations of the features `wanted` from features `h`, and the pull
    to N(0, 1).
    """
    posterior = inner_encode(vae, h)
    z = posterior.sample()
    z = F.avg_pool2d(z, 2) if halved else z
    error = ((inner_decode(vae, z) - mean) / scale - wanted).pow(2).mean((1, 2, 3))
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    return (error + 1e-3).log().mean() + INNER_KL * kl, {
        "half" if halved else "error": error.detach().mean(),
        "kl": kl.detach(),
    }


def decoder_loss(vae, x, noise=0.1):
    """Mean log squared error of pictures [B, 3, H, W] decoded from their latents with noise of
    deviation |N(0, `noise`^2)|.
    """
    with torch.no_grad():
        z = vae.encode(x).latent_dist.mean
        z = z + noise * torch.randn_like(z[:, :1, :1, :1]).abs() * torch.randn_like(z)
    error = (vae.decode(z).sample.float() - x).pow(2).mean((1, 2, 3))
    return (error + 3e-5).log().mean(), {"psnr": -10 * (error.detach() / 4).log10().mean()}


def loss(vae, x):
    """Mean over pictures of log mean squared error, whose minimum is the best mean PSNR, and a
    light pull to N(0, 1).
    """
    posterior = vae.encode(x).latent_dist
    y = vae.decode(posterior.sample()).sample
    error = (y.float() - x).pow(2).mean((1, 2, 3))
    kl = (
        0.5
        * (
            posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()
        ).mean()
    )
    return (
        (error + 3e-5).log().mean() + KL_WEIGHT * kl,
        -10 * (error.detach() / 4).log10().mean(),
        kl.detach(),
    )


def whiten(vae, pictures, power=0.5):
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
