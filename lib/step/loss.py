"""The loss of diffusion training, the timesteps that it is taken at, and its scale in fp16."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

FIRST_SCALE, GROWS_AFTER = 2.0**16, 2000  # torch's own


def diffusion_loss(
    predict: Callable[..., torch.Tensor],
    scheduler: Any,
    latents: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    conditions: Any,
    snr_gamma: float = 0.0,
    taught: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean squared error of the model's prediction for each picture, [B].

    `predict(noisy, timesteps, conditions)` -> [B, C, h, w]; what it predicts (noise or velocity) is
    the scheduler's word. With snr_gamma > 0 each is weighted by min(SNR, gamma) / SNR, or
    / (SNR + 1) for velocity (Hang et al. 2023, arXiv 2303.09556, eq. 4). `taught`: what the last
    pictures' predictions shall be instead, where a teacher says it.
    """
    noisy = scheduler.add_noise(latents, noise, timesteps)
    velocity = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
    if taught is not None:
        target = torch.cat([target[: -len(taught)], taught])
    prediction = predict(noisy, timesteps, conditions).float()
    loss = F.mse_loss(prediction, target, reduction="none").mean((1, 2, 3))
    if snr_gamma > 0:
        from diffusers.training_utils import compute_snr

        snr = compute_snr(scheduler, timesteps)
        loss = loss * snr.clamp(max=snr_gamma) / (snr + 1 if velocity else snr)
    return loss


def at_steps(moments: torch.Tensor, train_steps: int) -> torch.Tensor:
    """Timesteps as whole numbers, of moments in [0, 1].

    A stratum's sum may round up to 1 in fp32, which is the schedule's last step.
    """
    return (moments * train_steps).long().clamp(max=train_steps - 1)


class LossScale:
    """What a loss is multiplied by, so that small gradients do not vanish in fp16.

    Micikevicius et al. 2018, arXiv 1710.03740, section 3.2. It halves after a step whose gradient
    is not finite, and doubles after `GROWS_AFTER` good ones in a row, as torch's GradScaler has it;
    that one asks the device after each step, and a CUDA graph cannot. Tensors [] on the device:

    - value: the scale now
    - good: finite steps since it changed
    """

    def __init__(self, device: torch.device) -> None:
        self.value = torch.full((), FIRST_SCALE, device=device)
        self.good = torch.zeros((), device=device)

    def update(self, skipped: torch.Tensor) -> None:
        """After a step; `skipped` is 1.0 where its gradient was not finite, else 0.0."""
        self.good.add_(1).mul_(1 - skipped)
        grows = (self.good >= GROWS_AFTER).float()
        self.value.mul_((1 + grows) * (1 - skipped / 2))
        self.good.mul_(1 - grows)
