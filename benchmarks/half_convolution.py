"""Convolutions whose backward pass in fp16 is quick on a processor, for the study "precision".

Of that pass oneDNN has its reference code alone (torch 2.13): 24 of the 25 seconds of DreamBooth's
step. Here the same fp16 numbers are multiplied and added up in fp32, and what comes out is rounded
to fp16, as a card's tensor cores do it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F


class _Convolution(torch.autograd.Function):
    """`F.conv2d` of fp16 tensors [B, C, H, W]."""

    @staticmethod
    def forward(ctx: Any, x, weight, bias, stride, padding, dilation, groups):
        ctx.save_for_backward(x, weight)
        ctx.options = stride, padding, dilation, groups
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, *gradients):
        x, weight = (tensor.float() for tensor in ctx.saved_tensors)
        stride, padding, dilation, groups = ctx.options
        found = torch.ops.aten.convolution_backward(
            gradients[0].float(),
            x,
            weight,
            [len(weight)],
            stride,
            padding,
            dilation,
            False,
            [0, 0],
            groups,
            list(ctx.needs_input_grad[:3]),
        )
        return *(None if each is None else each.half() for each in found), *([None] * 4)


@contextmanager
def quick_half_convolutions() -> Iterator[None]:
    """Within the block convolutions under autocast to fp16 have that backward pass."""
    plain = torch.nn.Conv2d._conv_forward

    def forward(self, input, weight, bias):
        half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.half
        if not half or self.padding_mode != "zeros":
            return plain(self, input, weight, bias)
        tensors = (None if each is None else each.half() for each in (input, weight, bias))
        options = self.stride, self.padding, self.dilation, self.groups
        return _Convolution.apply(*tensors, *options)

    with mock.patch.object(torch.nn.Conv2d, "_conv_forward", forward):
        yield
