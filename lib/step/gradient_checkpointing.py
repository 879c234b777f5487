"""What a step keeps for the way back, and what it computes again there: gradient checkpointing
(Chen et al. 2016, arXiv 1604.06174).

"all": of every residual and transformer block it keeps the input alone, by diffusers' own flags;
nearly all of the forward pass runs twice. "largest": so for those transformers alone that keep
most, for their bytes cost the least time. Under both, convolutions whose weights are frozen do not
save their input: PyTorch saves it always, but the backward pass reads it only for the gradient of
the weights. (An adapter beside a convolution saves that input all the same.) The numbers stay the
same, bit for bit.
"""

from functools import partial

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

SHARE = 0.5  # of what the largest transformer keeps: from that on "largest" computes one again


def keep(unet, checkpointing, random=False):
    """Let `unet` keep what `checkpointing` says: "none" (as it comes: everything), "largest" or
    "all"; `random`: it has dropout.
    """
    if checkpointing == "none":
        unet.disable_gradient_checkpointing()
    else:
        # Where nothing is random, random states need not be put back, which could not be recorded
        # (`lib/step/cuda_graph.py`).
        unet.enable_gradient_checkpointing(
            partial(checkpoint, use_reentrant=False, preserve_rng_state=random)
        )
    if checkpointing == "largest":
        chosen = {id(transformer) for transformer in largest(unet)}
        for module in unet.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = id(module) in chosen
    for layer in unet.modules():
        if type(layer) is torch.nn.Conv2d:
            vars(layer).pop("forward", None)
            if checkpointing != "none" and not any(p.requires_grad for p in layer.parameters()):
                layer.forward = lambda x, layer=layer: _frozen(layer, x)


def largest(unet):
    """Its transformers that keep at least `SHARE` of what the largest does, from width, depth and
    the size of pictures in their block.
    """
    levels = [
        *enumerate(unet.down_blocks),
        *enumerate(reversed(unet.up_blocks)),
        (len(unet.down_blocks) - 1, unet.mid_block),
    ]
    some = [
        (t, t.inner_dim * len(t.transformer_blocks) / 4**level)
        for level, block in levels
        for t in getattr(block, "attentions", ())
    ]
    most = max((size for _, size in some), default=0)
    return [transformer for transformer, size in some if size >= SHARE * most]


def _frozen(layer, x):
    """What a convolution makes of `x`, of which it keeps the form: the way back reads no number of
    it.
    """
    weight, shape = layer.weight, x.shape  # not `x`: what is said here to autograd stays

    def pack(tensor):
        same = tensor.shape == shape and tensor.shape != weight.shape
        return (tensor.shape, tensor.stride(), tensor.dtype) if same else tensor

    def unpack(kept):
        return (
            kept
            if torch.is_tensor(kept)
            else torch.empty_strided(kept[0], kept[1], dtype=kept[2], device=weight.device)
        )

    with saved_tensors_hooks(pack, unpack):
        return layer._conv_forward(x, weight, layer.bias)
