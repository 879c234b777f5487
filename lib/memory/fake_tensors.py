"""A device without memory, on which real modules, autograd and optimisers run and are counted: what
`lib/memory/forecasting.py` stands on.

    with fake_device("cuda") as rules:
        ...build a model...                 # tensors have shapes, types and storages of a size,
        Step(base, settings, rules)         # and no numbers

What CUDA does otherwise than the CPU is taken from PyTorch's source (`as_on_cuda`), as is what its
kernels take for themselves while they run (`cuda_scratch`). bitsandbytes' layers run as they are,
on weights made here by the documented block formats (`fake_quantized`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from math import prod
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F

from lib.models.pipeline import silence_libraries
from lib.step.training_step import DeviceRules

aten = torch.ops.aten

ATTENTION_BACKWARD = (
    aten._scaled_dot_product_flash_attention_backward.default,
    aten._scaled_dot_product_efficient_attention_backward.default,
)


@contextmanager
def fake_device(device: str) -> Iterator[DeviceRules]:
    """Inside it tensors have no memory; it gives the rules that a `Step` needs there.

    device: "cuda" or "cpu". Tensors report the device "cpu" whichever it is, because autograd of a
    PyTorch built without CUDA refuses CUDA tensors. Modules that are converted keep their
    parameters, as real ones do. Patched are functions of other libraries alone, which they call
    themselves, by name: no argument reaches them.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    silence_libraries()
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(mock.patch.object(torch.nn.Module, "_apply", _convert))
        # The table of 8-bit codes is computed number by number, which fake tensors do not have.
        with suppress(ImportError):  # where there is no bitsandbytes, no recipe asks for it
            stack.enter_context(
                mock.patch(
                    "bitsandbytes.functional.create_dynamic_map", lambda *_, **__: torch.empty(256)
                )
            )
        if device == "cuda":
            stack.enter_context(as_on_cuda())
            # A card has no attention of its own for few pixels, as the CPU has.
            yield DeviceRules(fake_quantized, small_attention=nullcontext)
        else:
            yield DeviceRules(fake_quantized)


def _convert(
    module: torch.nn.Module, function: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
) -> torch.nn.Module:
    """`torch.nn.Module._apply` for fake tensors, whose own would put new parameters in place."""
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is None:
                continue
            new = function(p.data)
            if p.device == new.device:
                p.data = new
            else:
                part._parameters[name] = torch.nn.Parameter(new, p.requires_grad)
        part._buffers.update(
            {name: function(b) for name, b in part._buffers.items() if b is not None}
        )
    return module


def fake_quantized(
    layer: torch.nn.Linear, kind: str, dtype: torch.dtype, device: torch.device | str
) -> torch.nn.Module:
    """`lib.step.quantization.quantize_layer` without memory.

    bitsandbytes cannot make its weights from fake tensors, but its layers compute with them.

    - nf4 (Dettmers et al. 2023, arXiv 2305.14314): two weights a byte, a scale in 8 bits for each
      block of 64, an fp32 one for each 256 of these
    - int8 (Dettmers et al. 2022, arXiv 2208.07339): a byte a weight, an fp32 scale a row
    """
    import bitsandbytes as bnb

    kind_of = bnb.nn.Linear4bit if kind == "nf4" else bnb.nn.Linear8bitLt
    new = kind_of.__new__(kind_of)
    torch.nn.Module.__init__(new)
    new.out_features, new.in_features = layer.weight.shape
    new.bias = layer.bias
    if kind == "nf4":
        _fill_nf4(new, layer, dtype)
    else:
        _fill_int8(new, layer)
    return new


def _fill_nf4(new: Any, layer: torch.nn.Linear, dtype: torch.dtype) -> None:
    from bitsandbytes.functional import QuantState

    numbers = layer.weight.numel()
    blocks = -(-numbers // 64)
    scale_of_scales = QuantState(
        torch.empty(-(-blocks // 256)), code=torch.empty(256), blocksize=256, dtype=torch.float32
    )
    packed = torch.empty(-(-numbers // 2), 1, dtype=torch.uint8)
    weight: Any = torch.nn.Parameter(packed, requires_grad=False)
    weight.quant_state = QuantState(
        absmax=torch.empty(blocks, dtype=torch.uint8),
        shape=layer.weight.shape,
        code=torch.empty(16),
        blocksize=64,
        quant_type="nf4",
        dtype=dtype,
        offset=torch.empty(()),
        state2=scale_of_scales,
    )
    weight.compress_statistics = True
    weight.quant_type = "nf4"
    new.weight = weight
    new.compute_dtype = dtype
    new.compute_type_is_set = True
    new.support_avx512bf16_for_cpu = False
    new.quant_state = None


def _fill_int8(new: Any, layer: torch.nn.Linear) -> None:
    import bitsandbytes as bnb

    rows, columns = layer.weight.shape
    weight: Any = torch.nn.Parameter(
        torch.empty(rows, columns, dtype=torch.int8), requires_grad=False
    )
    weight.CB = None
    weight.SCB = None
    new.weight = weight
    new.index = None
    new.state = bnb.MatmulLtState()
    new.state.CB = new.weight.data
    new.state.SCB = torch.empty(rows)
    new.state.has_fp16_weights = False


@contextmanager
def as_on_cuda() -> Iterator[None]:
    """Inside it, torch's functions do what CUDA does otherwise than the CPU, by PyTorch's source.

    Attention takes the flash kernel (fp32 or wide heads: the memory-efficient one); neither makes
    the n x n matrix. `group_norm` first makes its input contiguous (group_norm.cpp). Norms are in
    their input's precision on both (`lib.step.cuda_graph.norms_in_bf16`), or in fp32 under fp16.

    Patched, because diffusers and transformers call these functions by name, and no
    TorchFunctionMode: checkpointing computes again inside autograd, where such a mode is off.
    """
    attention, group_norm = F.scaled_dot_product_attention, F.group_norm

    def fused(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **others):
        if attn_mask is not None or others:
            return attention(query, key, value, attn_mask, dropout_p, is_causal, **others)
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        if query.dtype == torch.float32 or query.shape[-1] > 256:
            needs_gradient = query.requires_grad or key.requires_grad or value.requires_grad
            return aten._scaled_dot_product_efficient_attention(
                query, key, value, None, needs_gradient, dropout_p, is_causal
            )[0]
        return aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal)[0]

    def contiguous(input, groups, weight=None, bias=None, eps=1e-5):
        return group_norm(input.contiguous(), groups, weight, bias, eps)

    with mock.patch.multiple(F, scaled_dot_product_attention=fused, group_norm=contiguous):
        yield


def cuda_scratch(function: Callable, args: tuple, out: Any) -> int:
    """Bytes that a kernel takes for itself on CUDA while it runs.

    - attention: the flash kernel's backward adds up the queries' gradient in fp32, rows rounded up
      to 128 and heads to 32 (flash_api.cpp, mha_bwd); the memory-efficient one's likewise
    - convolution: cuDNN copies a contiguous input to channels_last where the weights are
      (Conv_v8.cpp)
    - NF4: weights are written out for each product of more than a few rows (bitsandbytes)
    """
    if function in ATTENTION_BACKWARD:
        batch, heads, rows, width = args[1].shape
        rows, width = -(-rows // 128) * 128, -(-width // 32) * 32
        return 4 * batch * heads * rows * (width + 1)
    if function is aten.convolution.default:
        return _channels_last_copies(args[:1], args[1])
    if function is aten.convolution_backward.default:
        weight_trains = args[-1][1]
        return _channels_last_copies(args[: 2 if weight_trains else 1], args[2])
    if str(function) == "bitsandbytes.gemm_4bit.default":
        return prod(args[2]) * args[0].itemsize
    return 0


def _channels_last_copies(inputs: Sequence[torch.Tensor], weight: torch.Tensor) -> int:
    """Bytes of the copies that cuDNN makes of a convolution's inputs; frozen weights read none."""
    if weight.is_contiguous() or not weight.is_contiguous(memory_format=torch.channels_last):
        return 0
    return sum(t.nbytes for t in inputs if not t.is_contiguous(memory_format=torch.channels_last))


# What a device's kernels take for themselves; nothing is counted on others.
SCRATCH = {"cuda": cuda_scratch}

# Bytes that cuBLAS takes at the first product and keeps, of PyTorch's allocator: measured on an
# H200. By PyTorch's notes on CUDA semantics it is 32 MiB from Hopper on, and 8 before.
WORKSPACE = {"cuda": 33 * 2**20, "cpu": 0}
