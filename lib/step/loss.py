"""The loss of diffusion training, and the timesteps that it is taken at."""

import torch
import torch.nn.functional as F


def diffusion_loss(
    predict, scheduler, latents, noise, timesteps, conditions, snr_gamma=0.0, taught=None
):
    """Mean squared error of the model's prediction for each picture, [B]; what it predicts (noise
    or velocity) is the scheduler's word.

    `predict(noisy, timesteps, conditions)` -> [B, C, h, w]. With snr_gamma > 0 each is weighted by
    min(SNR, gamma) / SNR, or / (SNR + 1) for velocity (Hang et al. 2023, eq. 4). `taught`: what the
    last pictures' predictions shall be instead, where a teacher says it.
    """
    noisy = scheduler.add_noise(latents, noise, timesteps)
    velocity = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
    if taught is not None:
        target = torch.cat([target[: -len(taught)], taught])
    loss = F.mse_loss(predict(noisy, timesteps, conditions).float(), target, reduction="none").mean(
        (1, 2, 3)
    )
    if snr_gamma > 0:
        from diffusers.training_utils import compute_snr

        snr = compute_snr(scheduler, timesteps)
        loss = loss * snr.clamp(max=snr_gamma) / (snr + 1 if velocity else snr)
    return loss


def at_steps(when, train_steps):
    """Timesteps as whole numbers, of moments in [0, 1]: a stratum's sum may round up to 1 in fp32,
    which is the schedule's last step.
    """
    return (when * train_steps).long().clamp(max=train_steps - 1)
