"""One training step: noise, predict, compare, go back, clip, update. The loop (`lib/train.py`) takes it; the forecast only weighs it.

    step = Step(base, settings)                      # chooses the weights that train
    step(latents, noise, timesteps, conditions)      # -> tensor [2] on the device: instance loss, prior loss

Nothing else of a base model is touched than its U-Net, the configuration of its scheduler, and `Base.predict`: a base without weights, VAE,
text encoder or data will do, on torch.device("meta") too.
"""

import torch
import torch.nn.functional as F

from .methods import trainable


def diffusion_loss(predict, scheduler, latents, noise, timesteps, conditions, snr_gamma=0.0):
    """Mean squared error of the model's prediction for each picture, [B]; what it predicts (noise or velocity) is the scheduler's word.

    `predict(noisy, timesteps, conditions)` -> [B, C, h, w]. With snr_gamma > 0 each is weighted by min(SNR, gamma) / SNR, or / (SNR + 1)
    for velocity (Hang et al. 2023, eq. 4).
    """
    noisy = scheduler.add_noise(latents, noise, timesteps)
    velocity = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
    loss = F.mse_loss(predict(noisy, timesteps, conditions).float(), target, reduction="none").mean((1, 2, 3))
    if snr_gamma > 0:
        from diffusers.training_utils import compute_snr

        snr = compute_snr(scheduler, timesteps)
        loss = loss * snr.clamp(max=snr_gamma) / (snr + 1 if velocity else snr)
    return loss


class Step:
    """A training step of `settings` on `base`: `weights` (those that train), `unet`, `scheduler`, `optimizer`, `taken` (steps so far)."""

    def __init__(self, base, settings):
        from diffusers import DDPMScheduler

        self.base, self.settings, self.taken = base, settings, 0
        self.scheduler = DDPMScheduler.from_config(base.pipe.scheduler.config)
        self.weights = trainable(base, settings)  # the switch
        self.unet = base.unet.to(memory_format=torch.channels_last).train()
        # PEFT would copy each layer's input to fp32, and autocast at once back to bf16: a fifteenth of the step for the same numbers.
        for module in self.unet.modules():
            if hasattr(module, "_cast_input_dtype"):
                module.cast_input_dtype_enabled = False
        fused = base.device.type != "meta"
        self.optimizer = torch.optim.AdamW(self.weights, lr=settings.learning_rate, weight_decay=1e-2, fused=fused)

    @property
    def rate(self):
        """Learning rate of the next step."""
        return self.settings.learning_rate * min(1, (self.taken + 1) / max(1, self.settings.warmup))

    def loss(self, latents, noise, timesteps, conditions):
        """Loss of each picture, [B], with gradients."""
        with self.base.autocast({"fp32": False, "bf16": True, "auto": None}[self.settings.precision]):
            return diffusion_loss(self.base.predict, self.scheduler, latents, noise, timesteps, conditions, self.settings.snr_gamma)

    def __call__(self, latents, noise, timesteps, conditions):
        """Take the step. Returns the losses as a tensor [2] on the device: instance (mean), prior (mean, 0 without class images).

        latents, noise: [B, C, h, w] fp32; timesteps: [B] whole numbers; conditions: tensors by name, each with B rows, as `Base.predict`
        takes them. The first batch_size rows are instance images, the others class images.
        """
        settings = self.settings
        loss = self.loss(latents, noise, timesteps, conditions)
        instance, prior = loss[: settings.batch_size].mean(), loss[settings.batch_size :].sum() / settings.batch_size
        (instance + settings.prior_weight * prior).backward()
        torch.nn.utils.clip_grad_norm_(self.weights, settings.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.taken += 1
        return torch.stack([instance.detach(), prior.detach()])
