"""AdamW for every recipe: all weights at once, or group by group where that saves memory.

A group is some weights that are updated together (`lib/step/param_groups.py`): at most a 256th of
all numbers, or half a million where that is more, unless one weight alone has more. Small weights
are in groups of their own, as their moments are never 8-bit. With `fused_backward` a group is
updated inside the backward pass, as soon as its gradients are complete, and these are freed (Lv et
al. 2023, arXiv 2306.09782, weight by weight). All gradients then never exist at once, so their
common norm is not known before the first is used. In its place each group is clipped to
clip * sqrt(its share of the numbers): then the norm of all stays within clip, as it does otherwise.
"""

import weakref
from collections.abc import Sequence
from functools import partial

import torch
from torch.nn.utils import get_total_norm

from lib.config import Settings
from lib.step.loss import LossScale
from lib.step.param_groups import SMALLEST_8BIT, ParamGroup, moments_in_fp32

# Numbers that a group may hold: GROUP_SIZE, or more where there would be more than MOST_GROUPS.
GROUP_SIZE = 2**19
MOST_GROUPS = 256


class Optimizer:
    """AdamW on `weights` as `settings` say.

    rate: the learning rate that `step` uses, times each weight's own factor in `rate_shares`.
    anchors: what each weight is pulled towards, as `lib.step.methods.anchors` gives it.
    scale: what the gradients are multiplied by, in fp16. A step in which one of them is not finite
    changes nothing; with `fused_backward`, that is a group's step.
    """

    def __init__(
        self,
        weights: Sequence[torch.nn.Parameter],
        rate_shares: Sequence[float],
        settings: Settings,
        device: torch.device,
        anchors: Sequence[torch.Tensor | None] = (),
    ):
        self.scale: LossScale | None = None
        self.weights = weights
        self.anchors = anchors
        self.settings = settings
        self.rate: float | torch.Tensor = settings.learning_rate
        self.numel = sum(w.numel() for w in weights)
        self.generator = torch.Generator(device).manual_seed(settings.seed)
        self.squared_norms: list[torch.Tensor] = []
        in_place = settings.optimizer == "adamw" and settings.weights == "fp32"
        whole = in_place and not settings.fused_backward
        size = self.numel if whole else max(GROUP_SIZE, self.numel // MOST_GROUPS)
        self.groups = [
            ParamGroup(indices, weights, share, settings, device, anchors, flat=not in_place)
            for indices, share in group_weights(weights, rate_shares, size)
        ]
        self.hooks = self._update_in_backward() if settings.fused_backward else []

    def _update_in_backward(self) -> list[torch.utils.hooks.RemovableHandle]:
        # What a hook holds lives, unseen by Python's collector, as long as its weight.
        this = weakref.ref(self)

        def arrived(_: torch.Tensor, k: int) -> None:
            if optimizer := this():
                optimizer._gradient_arrived(k)

        return [
            weight.register_post_accumulate_grad_hook(partial(arrived, k=k))
            for k, group in enumerate(self.groups)
            for weight in group.weights
        ]

    @property
    def state(self) -> dict[torch.Tensor, dict[str, torch.Tensor]]:
        """{weight, or the flat copy of a group: its moments}, as torch's optimisers have it.

        Anchors stand there under themselves.
        """
        found = {
            weight: state for group in self.groups for weight, state in group.adamw.state.items()
        }
        return found | {a: {"anchor": a} for a in self.anchors if a is not None}

    def step(self) -> torch.Tensor:
        """Clip, update, free the gradients.

        Returns the gradients' norm before clipping, a tensor [] on the device.
        """
        if self.settings.fused_backward:
            # Most are updated already; those are left of which a weight has had no gradient.
            for group in self.groups:
                self.update_group(group)
            norm = torch.stack(self.squared_norms).sum().sqrt()
            self.squared_norms.clear()
            skipped = self._skips(norm)
        else:
            norm = get_total_norm([w.grad for w in self.weights if w.grad is not None])
            norm, skipped = self._unscaled(norm), self._skips(norm)
            divisor = self._divisor(norm, self.settings.clip)
            for group in self.groups:
                group.update(self.rate, divisor, self.generator, skipped)
        if self.scale and skipped is not None:
            self.scale.update(skipped)
        return norm

    def _unscaled(self, norm: torch.Tensor) -> torch.Tensor:
        return norm / self.scale.value if self.scale else norm

    def _skips(self, norm: torch.Tensor) -> torch.Tensor | None:
        """1.0 where the norm of scaled gradients is not finite, else 0.0; None without a scale."""
        return 1 - norm.isfinite().float() if self.scale else None

    def _divisor(self, norm: torch.Tensor, clip: float) -> torch.Tensor:
        """What gradients are divided by, of which `norm` is without their scale."""
        divisor = (norm / clip).clamp(min=1.0)
        return divisor * self.scale.value if self.scale else divisor

    def abandon_step(self) -> None:
        """Begin the step anew whose capture broke off: nothing of it has run but in Python."""
        self.squared_norms.clear()
        # Another generator, for the old one waits for the end of the capture.
        self.generator = torch.Generator(self.generator.device).manual_seed(self.settings.seed + 1)
        for group in self.groups:
            group.expect_gradients()
        for weight in self.weights:
            weight.grad = None

    def close(self) -> None:
        """Update nothing in a backward pass any more: it only makes gradients again."""
        for hook in self.hooks:
            hook.remove()

    def _gradient_arrived(self, k: int) -> None:
        group = self.groups[k]
        group.gradients_to_come -= 1
        if not group.gradients_to_come:
            self.update_group(group)

    def update_group(self, group: ParamGroup) -> None:
        """Update a group by what gradients it has, clipped by themselves."""
        group.expect_gradients()
        if not group.gradients:
            return
        norm = self._unscaled(get_total_norm(group.gradients).float())
        self.squared_norms.append(norm.square())
        clip = self.settings.clip * (group.numel / self.numel) ** 0.5
        group.update(self.rate, self._divisor(norm, clip), self.generator, self._skips(norm))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All that `load_state_dict` needs: moments, counts, random state, loss scale."""
        found = {"rounding": self.generator.get_state()}
        if self.scale:
            found |= {"scale": self.scale.value.cpu(), "scale_good": self.scale.good.cpu()}
        for group in self.groups:
            found |= {name: t.cpu().contiguous() for name, t in group.state_dict().items()}
        return found

    def load_state_dict(self, found: dict[str, torch.Tensor]) -> None:
        """Go on from what `state_dict` gave, of this recipe or of another.

        Moments become 8-bit where they were fp32, and the other way.
        """
        self.generator.set_state(found["rounding"].cpu())
        if self.scale and "scale" in found:
            self.scale.value.copy_(found["scale"])
            self.scale.good.copy_(found["scale_good"])
        mine = [group.indices for group in self.groups if group.eight_bit]
        theirs = [t.tolist() for name, t in found.items() if name.endswith(".which")]
        if any(indices not in mine for indices in theirs):
            found = moments_in_fp32(found)  # of other groups, or for a recipe without 8-bit moments
        for group in self.groups:
            group.load_state_dict(found)


def group_weights(
    weights: Sequence[torch.Tensor], rate_shares: Sequence[float], size: int
) -> list[tuple[list[int], float]]:
    """(indices of its weights, their rate share) of each group, in order.

    A group is of one rate share, of large or of small weights (`SMALLEST_8BIT`), and of no more
    than `size` numbers unless one weight alone has more.
    """
    groups, newest, sizes = [], {}, {}
    for k, (weight, share) in enumerate(zip(weights, rate_shares)):
        kind = share, weight.numel() < SMALLEST_8BIT
        if kind not in newest or sizes[kind] + weight.numel() > size:
            newest[kind], sizes[kind] = [], 0
            groups.append((newest[kind], share))
        newest[kind].append(k)
        sizes[kind] += weight.numel()
    return groups
