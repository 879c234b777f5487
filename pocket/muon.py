"""Muon for training the pocket base, in single precision and with most of its arithmetic in small
square matrices.

Muon (Jordan et al. 2024) makes each weight matrix's update orthogonal. Here each convolution [out,
in, 3, 3] is the matrix [out, in * 9] that it is; everything else (biases, norms, embeddings, first
and last convolution) goes to AdamW. `torch.optim.Muon` does the same in bf16, which a processor
without bf16 units has to emulate, ten times slower.
"""

from collections.abc import Mapping
from typing import Any

import torch

from lib.models.devices import map_side_by_side

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan et al.'s quintic: steepest at zero
MOMENTUM = 0.95


def orthogonal(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The matrix [m, n] with its singular values brought near one (.7 to 1.2), by Newton-Schulz
    iteration.

    All powers of one Gram matrix commute, so the iteration runs on [m, m] for m <= n and touches
    the long side twice only: two fifths of the arithmetic at n = 9 m.
    """
    x = matrix.float()
    if x.shape[0] > x.shape[1]:
        return orthogonal(x.T, steps).T
    a, b, c = COEFFICIENTS
    x = x / x.norm().clamp(min=1e-7)
    gram = x @ x.T
    product: Any = None  # the identity, before the first round
    for step in range(steps):
        q = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        q.diagonal().add_(a)
        product = q if product is None else q @ product
        if step + 1 < steps:
            gram = q @ gram @ q
    return product @ x


@torch.no_grad()
def _direction(pair: tuple[Any, torch.Tensor]) -> tuple[Any, torch.Tensor]:
    """A matrix's parameter and its update; its momentum goes on, its gradient is used up."""
    p, momentum = pair
    momentum.lerp_(p.grad, 1 - MOMENTUM)
    update = p.grad.lerp_(momentum, MOMENTUM).flatten(1)  # Nesterov's
    return p, orthogonal(update).view(p.shape)


class MuonAdamW:
    """Muon on matrices and convolutions, AdamW on the rest; an update's size is matched to AdamW's
    (Liu et al. 2025: 0.2 sqrt(max(m, n))).
    """

    def __init__(
        self, model: torch.nn.Module, lr: float, betas: tuple[float, float] = (0.9, 0.99)
    ) -> None:
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self.matrices = [
            p
            for n, p in named
            if p.ndim in (2, 4)
            and "embedding" not in n
            and "conv_out" not in n
            and "conv_in" not in n
        ]
        chosen = {id(p) for p in self.matrices}
        self.momenta = [torch.zeros_like(p) for p in self.matrices]
        self.adamw = torch.optim.AdamW(
            [p for _, p in named if id(p) not in chosen],
            lr=lr,
            betas=betas,
            weight_decay=0.0,
            fused=True,
        )

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One update at learning rate `lr`; gradients are cleared."""
        on_cpu = all(p.device.type == "cpu" for p in self.matrices)
        at_once = torch.get_num_threads() if on_cpu else 1
        pairs = list(zip(self.matrices, self.momenta))
        for p, update in map_side_by_side(_direction, pairs, at_once):
            p.add_(update, alpha=-lr * 0.2 * max(update.flatten(1).shape) ** 0.5)
            p.grad = None
        for group in self.adamw.param_groups:
            group["lr"] = lr
        self.adamw.step()
        self.adamw.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        return {"momenta": self.momenta, "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for mine, saved in zip(self.momenta, state["momenta"], strict=True):
            mine.copy_(saved)
        self.adamw.load_state_dict(state["adamw"])
