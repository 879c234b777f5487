"""One training step: noise, predict, compare, go back, clip, update. The loop
(`lib/training/loop.py`) takes it; the forecast (`lib/memory/forecasting.py`) only counts its bytes.

    step = Step(base, settings)                      # chooses the weights that train
    step(latents, noise, timesteps, conditions)      # -> losses and gradient norm, on the device

Nothing else of a base model is touched than its denoiser, the configuration of its scheduler, and
`Base.predict`: a base without weights, VAE, text encoder or data will do, and fake tensors
(`lib/memory/fake_tensors.py`). On a card the step is captured and replayed
(`lib/step/cuda_graph.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_map

from lib.config import Settings
from lib.models import Base
from lib.models.base import SMALL_LATENT
from lib.step.cuda_graph import GraphedStep, can_capture, norms_in_bf16, norms_in_fp32
from lib.step.gradient_checkpointing import set_checkpointing
from lib.step.loss import LossScale, diffusion_loss
from lib.step.methods import adapter_off, anchors, rate_shares, trainable, tuned_parts
from lib.step.optimizer import Optimizer
from lib.step.quantization import quantize_layer


class StepInputs(NamedTuple):
    """What a step takes; instance images first, then class images, or what the teacher is asked.

    - latents, noise: [B, C, h, w] fp32
    - timesteps: [B] whole numbers
    - conditions: tensors by name, each with B rows, as `Base.predict` takes them
    """

    latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    conditions: Any


def fused_attention_layers(denoiser: torch.nn.Module) -> list[torch.nn.Module]:
    """The attention layers of a denoiser that run in torch's fused kernel."""
    from diffusers.models.attention_processor import AttnProcessor2_0

    return [
        layer
        for layer in denoiser.modules()
        if isinstance(getattr(layer, "processor", None), AttnProcessor2_0)
    ]


@dataclass(frozen=True)
class Share:
    """What a process does of each step: its rows of the batch, where it is one of several.

    rank: which of `count` it is, from 0.
    """

    rank: int = 0
    count: int = 1

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Sum tensors over all processes, in place."""

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is done within ends in all processes or in none."""
        yield

    def rows(self, size: int) -> tuple[int, int]:
        """Its first of `size` instance images, and the first that is not its own."""
        return size * self.rank // self.count, size * (self.rank + 1) // self.count


def passes(
    inputs: StepInputs, settings: Settings, share: Share = Share()
) -> list[tuple[StepInputs, int]]:
    """The parts of its share of a batch that a process takes one after the other (`accumulate`).

    Each with how many instance images it has; as many rows of what stands behind these follow.
    """
    size = settings.batch_size
    start, stop = share.rows(size)
    own = stop - start
    count = min(settings.accumulate, own)
    if count == share.count == 1:
        return [(inputs, size)]
    bounds = [start + own * k // count for k in range(count + 1)]
    return [
        (rows_of(inputs, first, last, size), last - first)
        for first, last in zip(bounds, bounds[1:])
    ]


def rows_of(inputs: StepInputs, start: int, stop: int, size: int) -> StepInputs:
    """The instance images `start` to `stop` of `size`, and the same rows of what is behind."""
    return tree_map(lambda t: torch.cat([t[start:stop], t[size + start : size + stop]]), inputs)


@contextmanager
def plain_attention(layers: Sequence[Any]) -> Iterator[None]:
    """Within the block these attention layers are two products and a softmax, in backward too.

    For few pixels the CPU's fused kernel takes several times as long, a sixth of the pocket base's
    step. And where every place attends to one word alone, queries and keys have next to no
    gradient; the fused kernel gives rounding noise, 16 orders of magnitude larger.
    """
    from diffusers.models.attention_processor import AttnProcessor

    fused = [layer.processor for layer in layers]
    plain = AttnProcessor()
    for layer in layers:
        layer.processor = plain
    try:
        yield
    finally:
        for layer, processor in zip(layers, fused):
            layer.processor = processor


@dataclass(frozen=True)
class DeviceRules:
    """What a step does by the rules of its device; fake devices have their own.

    - quantize_layer(layer, kind, dtype, device): a frozen linear layer in 4 or 8 bits
    - small_attention(layers): within this context attention layers run on few pixels
    """

    quantize_layer: Callable[..., torch.nn.Module] = quantize_layer
    small_attention: Callable[..., AbstractContextManager] = plain_attention


class Step:
    """A training step of `settings` on `base`.

    - weights: those that train; `parts`: the modules they are in; `denoiser`: the first of these
    - scheduler, optimizer
    - arithmetic: fp32, bf16 or fp16; the last with a `scale` of the loss, else None
    - taken: steps so far
    """

    def __init__(
        self,
        base: Base,
        settings: Settings,
        rules: DeviceRules = DeviceRules(),
        share: Share = Share(),
    ):
        self.share = share
        self.base = base
        self.settings = settings
        self.rules = rules
        self.taken = 0
        self.scheduler: Any = base.family.training_scheduler(base.pipe.scheduler.config)
        self.weights = trainable(base, settings, rules.quantize_layer)  # the switch
        self.denoiser = base.denoiser
        small = self.denoiser.config.sample_size**2 <= SMALL_LATENT
        # Convolutions that train are faster as they come where pictures are small, all others with
        # channels last, which PEFT's DoRA of convolutions cannot read.
        as_they_come = small and settings.method == "dreambooth" or settings.dora
        self.denoiser.to(
            memory_format=torch.contiguous_format if as_they_come else torch.channels_last
        )
        on_small = small and base.device.type == "cpu"
        self.small_attention = fused_attention_layers(self.denoiser) if on_small else []
        self.parts = torch.nn.ModuleDict(tuned_parts(base, settings)).train()
        self.arithmetic = settings.arithmetic(base.fast)
        self.scale = LossScale(base.device) if self.arithmetic == "fp16" else None
        self._prepare_modules(training=True)
        shares = rate_shares(base, self.weights, settings)
        pulled = anchors(self.named_weights(), settings)
        self.optimizer = Optimizer(self.weights, shares, settings, base.device, pulled)
        self.optimizer.scale = self.scale
        self.graphed = share.count == 1 and can_capture(settings, base.device)
        self.run: Callable[..., torch.Tensor] = self.take_step
        if self.graphed:
            self.run = GraphedStep(
                self.take_step, [self.optimizer.generator], self.optimizer.abandon_step
            )

    def _prepare_modules(self, training: bool) -> None:
        set_checkpointing(
            self.denoiser,
            self.settings.checkpointing if training else "none",
            self.settings.dropout > 0,
        )
        if self.base.device.type == "cuda" or self.scale:
            norms_in_bf16(self.parts.values(), training and not self.scale)
        if training and self.scale:
            norms_in_fp32(self.parts.values())
        # PEFT would copy each layer's input to fp32, and autocast at once back to bf16: a fifteenth
        # of the step for the same numbers.
        for module in self.denoiser.modules():
            if hasattr(module, "_cast_input_dtype"):
                module.cast_input_dtype_enabled = not training

    def named_weights(self) -> list[tuple[str, torch.nn.Parameter]]:
        """(name, weight) of those that train, the denoiser's by its own names."""
        denoiser = f"{self.base.family.denoiser}."
        return [
            (name.removeprefix(denoiser), p)
            for name, p in self.parts.named_parameters()
            if p.requires_grad
        ]

    def close(self) -> None:
        """Leave the model as one to draw with: no step can be taken after that."""
        self.optimizer.close()
        self.run = self.take_step  # the memory of CUDA graphs goes
        self._prepare_modules(training=False)
        self.parts.eval()

    def loss(
        self,
        latents: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        conditions: Any,
        instances: int | None = None,
    ) -> torch.Tensor:
        """Loss of each picture, [B], with gradients; `StepInputs` says what it takes.

        `instances`: how many of them are instance images, if not `batch_size`.
        """
        inputs = StepInputs(latents, noise, timesteps, conditions)
        instances = instances or self.settings.batch_size
        with self.base.autocast(self.arithmetic):
            asks = self.settings.prior == "teacher"
            taught = self.teacher_prediction(inputs, instances) if asks else None
            return diffusion_loss(
                self.base.predict,
                self.scheduler,
                *inputs,
                snr_gamma=self.settings.snr_gamma,
                taught=taught,
            )

    def teacher_prediction(self, inputs: StepInputs, instances: int) -> torch.Tensor | None:
        """What the base model, its adapter off, predicts for the rows behind the instance images.

        [B - instances, C, h, w] fp32, or None without any such rows.
        """
        latents, noise, timesteps, conditions = tree_map(lambda t: t[instances:], inputs)
        if not len(latents):
            return None
        with torch.no_grad(), adapter_off(self.parts.values()):
            noisy = self.scheduler.add_noise(latents, noise, timesteps)
            return self.base.predict(noisy, timesteps, conditions).float()

    def __call__(
        self,
        latents: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        conditions: Any,
    ) -> torch.Tensor:
        """Take the step, of what `StepInputs` says.

        Returns a tensor [3 + B] on the device: instance loss (mean), prior loss (mean, 0 without
        class images), norm of the gradient before clipping, and the loss of each picture. In fp16
        one more number, the scale of the loss; where the norm is not finite the step was skipped.
        """
        rate: float | torch.Tensor = self.settings.rate(self.taken)
        if self.graphed:  # a replayed step reads its rate, as all that changes, from a tensor
            rate = torch.full((), rate, device=self.base.device)
        numbers = self.run(rate, latents, noise, timesteps, conditions)
        self.taken += 1
        return numbers

    def take_step(self, rate: float | torch.Tensor, *inputs: Any) -> torch.Tensor:
        """A step at learning rate `rate`, kernel by kernel: what `__call__` runs or captures."""
        self.optimizer.rate = rate
        scale = [self.scale.value.clone().reshape(1)] if self.scale else []
        with self.share.together(), self.rules.small_attention(self.small_attention):
            parts = passes(StepInputs(*inputs), self.settings, self.share)
            means, *each = zip(*(self.add_gradients(*part) for part in parts))
        losses = [loss for kind in each for loss in kind]
        numbers = torch.cat([torch.stack(means).sum(0), *losses])
        if self.share.count > 1:
            numbers = self.of_all(numbers, len(inputs[0]))
        norm = self.optimizer.step()
        return torch.cat([numbers[:2], norm.reshape(1), numbers[2:], *scale])

    def of_all(self, numbers: torch.Tensor, rows: int) -> torch.Tensor:
        """Add up the gradients of all processes, and their `numbers`: two means, and losses.

        Returns the numbers of the whole batch, [2 + rows].
        """
        size = self.settings.batch_size
        start, stop = self.share.rows(size)
        own = 2 + stop - start
        found = numbers.new_zeros(2 + rows)
        found[:2] = numbers[:2]
        found[2 + start : 2 + stop] = numbers[2:own]
        if rows > size:
            found[2 + size + start : 2 + size + stop] = numbers[own:]
        self.share.add_up([found, *(w.grad for w in self.weights if w.grad is not None)])
        return found

    def add_gradients(
        self, inputs: StepInputs, instances: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A backward pass of a part of the batch, whose first rows are `instances`.

        Returns its shares of instance and prior loss, [2], and the losses of its pictures: of the
        instance images, and of those behind. Without gradients.
        """
        size = self.settings.batch_size
        loss = self.loss(*inputs, instances)
        ours, others = loss[:instances], loss[instances:]
        # of a whole batch the mean, bit for bit
        instance = ours.mean() * (instances / size)
        prior = others.sum() / size
        loss = instance + self.settings.prior_weight * prior
        (loss * self.scale.value if self.scale else loss).backward()
        return torch.stack([instance, prior]).detach(), ours.detach(), others.detach()
