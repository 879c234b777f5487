"""What a step saves for the backward pass, and what it computes again there: gradient checkpointing
(Chen et al. 2016, arXiv 1604.06174).

- "all": of every residual and transformer block only the input is saved, by diffusers' own flags;
  nearly all of the forward pass runs twice.
- "largest": so for those transformers alone that save most, for their bytes cost the least time.

Under both, convolutions whose weights are frozen do not save their input: PyTorch saves it always,
but the backward pass reads it only for the gradient of the weights. (An adapter beside a
convolution saves that input all the same.) The numbers stay the same, bit for bit.
"""

from functools import partial
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

# "largest" computes again what saves at least this share of what the largest transformer saves
LARGEST_SHARE = 0.5


def set_checkpointing(denoiser: Any, checkpointing: str, has_dropout: bool = False) -> None:
    """Let `denoiser` save what `checkpointing` says: "none" (everything), "largest" or "all"."""
    if checkpointing == "none":
        denoiser.disable_gradient_checkpointing()
    else:
        # Where nothing is random, random states need not be put back, which a CUDA graph could not
        # capture (`lib/step/cuda_graph.py`).
        denoiser.enable_gradient_checkpointing(
            partial(checkpoint, use_reentrant=False, preserve_rng_state=has_dropout)
        )
    if checkpointing == "largest":
        chosen = {id(transformer) for transformer in largest_transformers(denoiser)}
        for module in denoiser.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = id(module) in chosen
    for layer in denoiser.modules():
        if type(layer) is torch.nn.Conv2d:
            vars(layer).pop("forward", None)
            if checkpointing != "none" and not any(p.requires_grad for p in layer.parameters()):
                vars(layer)["forward"] = partial(_frozen_convolution, layer)


def largest_transformers(unet: Any) -> list[torch.nn.Module]:
    """Those of a U-Net that save at least `LARGEST_SHARE` of what the largest saves.

    Reckoned from width, depth and the size of pictures in their block.
    """
    levels = [
        *enumerate(unet.down_blocks),
        *enumerate(reversed(unet.up_blocks)),
        (len(unet.down_blocks) - 1, unet.mid_block),
    ]
    sized = [
        (transformer, transformer.inner_dim * len(transformer.transformer_blocks) / 4**level)
        for level, block in levels
        for transformer in getattr(block, "attentions", ())
    ]
    most = max((size for _, size in sized), default=0)
    return [transformer for transformer, size in sized if size >= LARGEST_SHARE * most]


def _frozen_convolution(layer: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """Convolve `x`, saving its shape alone: the backward pass reads no number of it."""
    weight = layer.weight
    shape = x.shape  # `pack` must not name `x`: autograd holds what it names

    def pack(tensor):
        if tensor.shape == shape and tensor.shape != weight.shape:
            return tensor.shape, tensor.stride(), tensor.dtype
        return tensor

    def unpack(packed):
        if torch.is_tensor(packed):
            return packed
        size, stride, dtype = packed
        return torch.empty_strided(size, stride, dtype=dtype, device=weight.device)

    with saved_tensors_hooks(pack, unpack):
        return layer._conv_forward(x, weight, layer.bias)
