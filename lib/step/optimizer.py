"""AdamW for every recipe: all weights at once, or piece by piece where that saves memory.

A piece is some weights that are updated together (`lib/step/param_groups.py`): at most a 256th of
all numbers, or half a million where that is more, unless one weight alone has more. Small weights
are in pieces of their own, as their moments are never 8-bit. With `fused_backward` a piece is
updated inside the backward pass, as soon as its gradients are whole, and these are freed (Lv et al.
2023, arXiv 2306.09782, weight by weight). All gradients then never exist at once, so their common
norm is not known before the first is used. In its place each piece is clipped to clip * sqrt(its
share of the numbers): then the norm of all stays within clip, as it does otherwise.
"""

import weakref

import torch
from torch.nn.utils import get_total_norm

from lib.step.param_groups import FEW, Piece, in_fp32

PIECE, PIECES = 2**19, 256  # numbers that a piece may hold, or this part of all, where that is more


class Optimizer:
    """AdamW on `weights` as `settings` say; `rate` is the learning rate that `step` uses, times the
    weight's share in `shares`.
    """

    def __init__(self, weights, shares, settings, device):
        self.weights, self.settings, self.rate, self.squares, self.hooks = (
            weights,
            settings,
            settings.learning_rate,
            [],
            [],
        )
        self.generator = torch.Generator(device).manual_seed(settings.seed)
        plain = settings.optimizer == "adamw" and settings.weights == "fp32"
        self.numbers = sum(w.numel() for w in weights)
        most = (
            self.numbers
            if plain and not settings.fused_backward
            else max(PIECE, self.numbers // PIECES)
        )
        self.pieces = [
            Piece(which, weights, share, settings, device, flat=not plain)
            for which, share in cut(weights, shares, most)
        ]
        if settings.fused_backward:
            mine = weakref.ref(
                self
            )  # what a hook holds lives, unseen by Python's collector, as long as its weight
            for k, piece in enumerate(self.pieces):
                self.hooks += [
                    w.register_post_accumulate_grad_hook(lambda _, k=k: mine()._arrived(k))
                    for w in piece.weights
                ]

    @property
    def state(self):
        """{weight, or what stands in for a piece of them: its moments}, as torch's optimisers have
        it.
        """
        return {
            weight: state for piece in self.pieces for weight, state in piece.adamw.state.items()
        }

    def step(self):
        """Clip, update, free the gradients. Returns their norm before clipping, a tensor on the
        device.
        """
        if self.settings.fused_backward:
            for piece in self.pieces:  # most are updated; of some a weight has had no gradient
                self.update(piece)
            norm = torch.stack(self.squares).sum().sqrt()
            self.squares.clear()
            return norm
        norm = get_total_norm([w.grad for w in self.weights if w.grad is not None])
        for piece in self.pieces:
            piece.update(self.rate, self._over(norm, self.settings.clip), self.generator)
        return norm

    def forget(self):
        """Begin the step anew that broke off while it was recorded: nothing of it has run but in
        Python.
        """
        self.squares.clear()
        # Another generator, for the old one waits for the end of the record.
        self.generator = torch.Generator(self.generator.device).manual_seed(self.settings.seed + 1)
        for piece in self.pieces:
            piece.wait()
        for weight in self.weights:
            weight.grad = None

    def close(self):
        """Let the weights' gradients be: nothing is updated in a backward pass any more."""
        for hook in self.hooks:
            hook.remove()

    @staticmethod
    def _over(norm, clip):
        """What gradients of `norm` are divided by, so that it is at most `clip`."""
        return (norm / clip).clamp(min=1.0)

    def _arrived(self, k):
        piece = self.pieces[k]
        piece.waiting -= 1
        if not piece.waiting:
            self.update(piece)

    def update(self, piece):
        """Update a piece by what gradients it has, clipped by themselves, within a backward pass or
        without.
        """
        piece.wait()
        if not piece.gradients:
            return
        norm = get_total_norm(piece.gradients).float()
        self.squares.append(norm.square())
        piece.update(
            self.rate,
            self._over(norm, self.settings.clip * (piece.numbers / self.numbers) ** 0.5),
            self.generator,
        )

    def tensors(self):
        """All that a later `load` needs, as {name: tensor}: moments and counts, and the random
        state of rounding.
        """
        found = {"rounding": self.generator.get_state()}
        for piece in self.pieces:
            found |= {name: tensor.cpu().contiguous() for name, tensor in piece.tensors().items()}
        return found

    def load(self, found):
        """Go on from what `tensors` gave, of this recipe or of another: moments become 8-bit where
        they were fp32, and the other way.
        """
        self.generator.set_state(found["rounding"].cpu())
        mine = [piece.which for piece in self.pieces if piece.eight_bit]
        if any(
            which.tolist() not in mine for name, which in found.items() if name.endswith(".which")
        ):
            found = in_fp32(found)  # of other pieces, or for a recipe without 8-bit moments
        for piece in self.pieces:
            piece.load(found)


def cut(weights, shares, most):
    """[(numbers of its weights, their share)] of each piece: in order, of one share, large and
    small weights (`FEW`) apart, and of no more than `most` numbers but where one weight alone has
    more.
    """
    pieces, last, sizes = [], {}, {}
    for k, (weight, share) in enumerate(zip(weights, shares)):
        kind = share, weight.numel() < FEW
        if kind not in last or sizes[kind] + weight.numel() > most:
            last[kind], sizes[kind] = [], 0
            pieces.append((last[kind], share))
        last[kind].append(k)
        sizes[kind] += weight.numel()
    return pieces
