"""The quick backward pass of convolutions in fp16 gives the same, but for rounding."""

import pytest
import torch

from benchmarks.half_convolution import quick_half_convolutions


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_those_of_torch(bias):
    torch.manual_seed(0)
    layer, x = torch.nn.Conv2d(3, 5, 3, 2, 1, bias=bias), torch.randn(2, 3, 8, 8)

    def gradients():
        inputs = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.half):
            out = layer(inputs)
        out.float().square().mean().backward()
        found = [inputs.grad, *(weight.grad for weight in layer.parameters())]
        layer.zero_grad()
        return out, found

    slow_out, slow = gradients()
    with quick_half_convolutions():
        out, quick = gradients()
    assert out.dtype == torch.half and torch.equal(out, slow_out)
    for one, other in zip(quick, slow):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-5)


def test_other_precisions_are_left_alone():
    layer, x = torch.nn.Conv2d(3, 5, 3), torch.randn(2, 3, 8, 8)
    with quick_half_convolutions():
        assert "_Convolution" not in type(layer(x).grad_fn).__name__
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
