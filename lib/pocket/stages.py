"""The stages of training the pocket base, in order: VAE, text tower, U-Net; then the judge's CLIP, and what was measured."""

import numpy as np
import torch

from . import vae as vae_
from .pictures import picture, pool
from .world import render, training_scenes
from .stage import Stage

SCENES = 30_000


def cached(file, make):
    """An array from `file`, or made and kept there."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        print(f"drawing {file.name} ...", flush=True)
        np.save(file, make())
    return np.load(file, mmap_mode="r")


def vae(work, out, steps, batch=16):
    """Train the VAE on pictures of every kind, then scale its latents per channel, inside its own quantisation layers."""
    pictures = cached(work / "pictures.npy", lambda: pool(picture, range(24_000)))
    torch.manual_seed(0)
    model = vae_.make_vae().to(memory_format=torch.channels_last)

    def loss(model):
        chosen = torch.randint(len(pictures), (batch,)).sort().values.numpy()
        x = vae_.augment(vae_.to_tensor(pictures[chosen])).contiguous(memory_format=torch.channels_last)
        value, psnr, kl = vae_.loss(model, x)
        return value, {"psnr": psnr, "kl": kl}

    stage = Stage("vae", model, loss, steps, 4e-3, work, average=0.99)
    stage.run()
    vae_.whiten(model, pictures[:1536:3])
    model.half().save_pretrained(out / "pocket" / "vae")
    model.float()


def scenes_for(work, salt, hold_out=True):
    """The scenes that base or judge learn from, and their pictures as uint8 [N, 64, 64, 3], drawn once."""
    scenes = training_scenes(SCENES, salt, hold_out)
    return scenes, cached(work / f"scenes_{salt}.npy", lambda: pool(render, scenes))
