"""The pocket base's U-Net and its pipeline: real diffusers classes at a size that two CPU cores can
train.
"""

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from .clip import captions_for
from .vae import LATENTS, to_tensor

CHANNELS = (64, 128, 192)
# share of empty captions in training, which classifier-free guidance needs (Ho and Salimans 2022)
NO_CAPTION = 0.1


def make_scheduler():
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


def make_unet(text_width=128, channels=CHANNELS, size=16):
    """A `UNet2DConditionModel` on [B, LATENTS, size, size]; cross-attention at every resolution but
    the finest, where it costs most.
    """
    deeper = len(channels) - 1
    return UNet2DConditionModel(
        sample_size=size,
        in_channels=LATENTS,
        out_channels=LATENTS,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * deeper,
        up_block_types=("CrossAttnUpBlock2D",) * deeper + ("UpBlock2D",),
        cross_attention_dim=text_width,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def encode_pictures(vae, pictures, batch=128):
    """Latent means of uint8 [N, H, W, 3] as a float16 array [N, LATENTS, H/4, W/4]."""
    with torch.no_grad():
        parts = [
            vae.encode(to_tensor(pictures[i : i + batch])).latent_dist.mean.half()
            for i in range(0, len(pictures), batch)
        ]
    return torch.cat(parts).numpy()


def encode_captions(text_model, tokenizer, texts):
    """Hidden states [B, 32, width] of the frozen text tower, as the pipeline computes them."""
    ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        return text_model(ids).last_hidden_state


def make_loss(scheduler, text_model, tokenizer, scenes, latents, batch):
    """The noise-prediction loss of latent diffusion on random scenes with fresh captions, timesteps
    stratified over the batch.
    """

    def loss(model):
        chosen = torch.randint(len(scenes), (batch,)).numpy()
        rng = np.random.default_rng(int(torch.randint(1 << 31, ())))
        texts, _ = captions_for([scenes[i] for i in chosen], rng, drop=0.2)
        texts = ["" if rng.random() < NO_CAPTION else t for t in texts]
        z = torch.as_tensor(latents[chosen]).float()
        t = (
            (torch.arange(batch) + torch.rand(batch)) / batch * scheduler.config.num_train_timesteps
        ).long()
        noise = torch.randn_like(z)
        noisy, target = scheduler.add_noise(z, noise, t), scheduler.get_velocity(z, noise, t)
        out = model(
            noisy.contiguous(memory_format=torch.channels_last),
            t,
            encode_captions(text_model, tokenizer, texts),
        ).sample
        return F.mse_loss(out.float(), target), {}

    return loss


def make_pipeline(vae, text_model, tokenizer, unet):
    """The four parts as a `StableDiffusionPipeline` without a safety checker (its scenes hold
    nothing to check).
    """
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_model,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
