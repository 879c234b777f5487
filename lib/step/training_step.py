"""One training step: noise, predict, compare, go back, clip, update. The loop
(`lib/training/loop.py`) takes it; the forecast only weighs it.

    step = Step(base, settings)                      # chooses the weights that train
    step(latents, noise, timesteps, conditions)      # -> losses and gradient norm, on the device

Nothing else of a base model is touched than its U-Net, the configuration of its scheduler, and
`Base.predict`: a base without weights, VAE, text encoder or data will do, and fake tensors
(`lib/memory/fake_tensors.py`). On a card the step is recorded and replayed
(`lib/step/cuda_graph.py`).
"""

from contextlib import contextmanager

import torch
from torch.utils._pytree import tree_map

from lib.step.cuda_graph import Recorded, can_record, norms_in_bf16
from lib.step.gradient_checkpointing import keep
from lib.step.loss import diffusion_loss
from lib.step.methods import adapter_off, shares, trainable, tuned_parts
from lib.step.optimizer import Optimizer

SMALL = 16 * 16  # latent pixels of a small base model's pictures: the pocket base's


def fused_layers(unet):
    """The attention layers of a U-Net that run in torch's fused kernel."""
    from diffusers.models.attention_processor import AttnProcessor2_0

    return [
        layer
        for layer in unet.modules()
        if isinstance(getattr(layer, "processor", None), AttnProcessor2_0)
    ]


@contextmanager
def plain_attention(layers):
    """Within the block these attention layers are two products and a softmax, the way back too.

    For few pixels the CPU's fused kernel takes several times as long, a sixth of the pocket base's
    step. And where every place attends to one word alone, queries and keys have next to no
    gradient; the fused kernel gives rounding noise, 16 orders of magnitude larger.
    """
    from diffusers.models.attention_processor import AttnProcessor

    fused, plain = [layer.processor for layer in layers], AttnProcessor()
    for layer in layers:
        layer.processor = plain
    try:
        yield
    finally:
        for layer, processor in zip(layers, fused):
            layer.processor = processor


class Step:
    """A training step of `settings` on `base`: `weights` (those that train), the `parts` they are
    in, `unet` (the first of these), `scheduler`, `optimizer`, `taken` (steps so far).
    """

    def __init__(self, base, settings):
        from diffusers import DDPMScheduler

        self.base, self.settings, self.taken = base, settings, 0
        self.scheduler = DDPMScheduler.from_config(base.pipe.scheduler.config)
        self.weights = trainable(base, settings)  # the switch
        small = base.unet.config.sample_size**2 <= SMALL
        # Convolutions that train are faster as they come where pictures are small, all others with
        # channels last, which PEFT's DoRA of convolutions cannot read.
        as_they_come = small and settings.method == "dreambooth" or settings.dora
        self.unet = base.unet.to(
            memory_format=torch.contiguous_format if as_they_come else torch.channels_last
        )
        self.plain = fused_layers(self.unet) if small and base.device.type == "cpu" else []
        self.parts = torch.nn.ModuleDict(tuned_parts(base, settings)).train()
        self._ready(True)
        self.optimizer = Optimizer(
            self.weights, shares(base, self.weights, settings), settings, base.device
        )
        self.recorded = can_record(settings, base.device)
        self.work = (
            Recorded(self._work, [self.optimizer.generator], self.optimizer.forget)
            if self.recorded
            else self._work
        )

    def _ready(self, training):
        keep(
            self.unet,
            self.settings.checkpointing if training else "none",
            self.settings.dropout > 0,
        )
        if self.base.device.type == "cuda":
            norms_in_bf16(self.parts.values(), training)
        # PEFT would copy each layer's input to fp32, and autocast at once back to bf16: a fifteenth
        # of the step for the same numbers.
        for module in self.unet.modules():
            if hasattr(module, "_cast_input_dtype"):
                module.cast_input_dtype_enabled = not training

    def named_weights(self):
        """(name, weight) of those that train, the U-Net's by its own names."""
        return [
            (name.removeprefix("unet."), p)
            for name, p in self.parts.named_parameters()
            if p.requires_grad
        ]

    def close(self):
        """Leave the model as one to draw with: no step can be taken after that."""
        self.optimizer.close()
        self.work = None  # with it the memory of what was recorded goes
        self._ready(False)
        self.parts.eval()

    @property
    def rate(self):
        """Learning rate of the next step."""
        return self.settings.rate(self.taken)

    def loss(self, latents, noise, timesteps, conditions):
        """Loss of each picture, [B], with gradients."""
        with self.base.autocast(self.settings.arithmetic(self.base.bf16)):
            taught = (
                self.teach(latents, noise, timesteps, conditions)
                if self.settings.prior == "teacher"
                else None
            )
            return diffusion_loss(
                self.base.predict,
                self.scheduler,
                latents,
                noise,
                timesteps,
                conditions,
                self.settings.snr_gamma,
                taught,
            )

    def teach(self, *inputs):
        """What the base model, its adapter off, predicts for the rows behind the instance images;
        None without any.
        """
        latents, noise, timesteps, conditions = tree_map(
            lambda t: t[self.settings.batch_size :], inputs
        )
        if not len(latents):
            return None
        with torch.no_grad(), adapter_off(self.parts.values()):
            return self.base.predict(
                self.scheduler.add_noise(latents, noise, timesteps), timesteps, conditions
            ).float()

    def __call__(self, latents, noise, timesteps, conditions):
        """Take the step. Returns a tensor [3 + B] on the device: instance loss (mean), prior loss
        (mean, 0 without class images), norm of the gradient before clipping, and the loss of each
        picture.

        latents, noise: [B, C, h, w] fp32; timesteps: [B] whole numbers; conditions: tensors by
        name, each with B rows, as `Base.predict` takes them. The first batch_size rows are instance
        images, the others class images, or what the teacher is asked.
        """
        # A recorded step reads its rate, as all that changes, from a tensor.
        rate = torch.full((), self.rate, device=self.base.device) if self.recorded else self.rate
        numbers = self.work(rate, latents, noise, timesteps, conditions)
        self.taken += 1
        return numbers

    def _work(self, rate, *inputs):
        settings, self.optimizer.rate = self.settings, rate
        with plain_attention(self.plain):
            loss = self.loss(*inputs)
            instance, prior = (
                loss[: settings.batch_size].mean(),
                loss[settings.batch_size :].sum() / settings.batch_size,
            )
            (instance + settings.prior_weight * prior).backward()
        norm = self.optimizer.step()
        return torch.cat([torch.stack([instance, prior, norm]), loss]).detach()
