"""A device without memory, on which real modules, autograd and optimisers run to be weighed: what
`lib/memory/forecasting.py` stands on.

    with fake_device("cuda"):
        ...build a model, take a step...        # tensors have shapes, types and storages of a size, and no numbers

What CUDA does otherwise than the CPU is taken from PyTorch's source (`as_on_cuda`), as is what its
kernels take for themselves while they run (`cuda_scratch`). bitsandbytes' layers run as they are,
on weights made here by the documented block formats (`hollow_quantized`).
"""

from contextlib import ExitStack, contextmanager, nullcontext, suppress
from math import prod
from unittest import mock

import torch
import torch.nn.functional as F

from lib.models.pipeline import quiet

aten = torch.ops.aten


ATTENTION_BACKWARD = (
    aten._scaled_dot_product_flash_attention_backward.default,
    aten._scaled_dot_product_efficient_attention_backward.default,
)


@contextmanager
def fake_device(device):
    """Inside it, tensors have no memory, and modules that are converted keep their parameters, as
    real ones do.

    They report the device "cpu" whatever `device` is, because autograd of a PyTorch built without
    CUDA refuses CUDA tensors.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    def convert(module, function, recurse=True):
        for part in module.modules():
            for name, p in part._parameters.items():
                new = None if p is None else function(p.data)
                if p is not None and p.device == new.device:
                    p.data = new
                elif p is not None:
                    part._parameters[name] = torch.nn.Parameter(new, p.requires_grad)
            part._buffers.update(
                {name: function(b) for name, b in part._buffers.items() if b is not None}
            )
        return module

    quiet()
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(mock.patch.object(torch.nn.Module, "_apply", convert))
        stack.enter_context(mock.patch("lib.step.quantization.quantized", hollow_quantized))
        # The table of 8-bit codes is computed number by number, which fake tensors do not have.
        with suppress(ImportError):  # where there is no bitsandbytes, no recipe asks for it
            stack.enter_context(
                mock.patch(
                    "bitsandbytes.functional.create_dynamic_map", lambda *_, **__: torch.empty(256)
                )
            )
        if device == "cuda":
            stack.enter_context(as_on_cuda())
            stack.enter_context(mock.patch("lib.step.training_step.plain_attention", nullcontext))
        yield


def hollow_quantized(layer, kind, dtype, device):
    """`lib.step.quantization.quantized` without memory: bitsandbytes cannot make its weights from
    fake tensors, but its layers compute with them.

    nf4 (Dettmers et al. 2023): two weights a byte, a scale in 8 bits for each block of 64, an fp32
    one for each 256 of these. int8 (Dettmers et al. 2022): a byte a weight, an fp32 scale a row.
    """
    import bitsandbytes as bnb
    from bitsandbytes.functional import QuantState

    rows, columns = layer.weight.shape
    kind_of = bnb.nn.Linear4bit if kind == "nf4" else bnb.nn.Linear8bitLt
    new = kind_of.__new__(kind_of)
    torch.nn.Module.__init__(new)
    new.in_features, new.out_features, new.bias = columns, rows, layer.bias
    if kind == "nf4":
        blocks = -(-rows * columns // 64)
        scale = QuantState(
            torch.empty(-(-blocks // 256)),
            code=torch.empty(256),
            blocksize=256,
            dtype=torch.float32,
        )
        size, eight_bit = layer.weight.shape, torch.empty(blocks, dtype=torch.uint8)
        new.weight = torch.nn.Parameter(
            torch.empty(-(-rows * columns // 2), 1, dtype=torch.uint8), requires_grad=False
        )
        new.weight.quant_state = QuantState(
            eight_bit, size, torch.empty(16), 64, "nf4", dtype, torch.empty(()), scale
        )
        new.weight.compress_statistics, new.weight.quant_type = True, "nf4"
        (
            new.compute_dtype,
            new.compute_type_is_set,
            new.support_avx512bf16_for_cpu,
            new.quant_state,
        ) = (
            dtype,
            True,
            False,
            None,
        )
    else:
        new.weight = torch.nn.Parameter(
            torch.empty(rows, columns, dtype=torch.int8), requires_grad=False
        )
        new.weight.CB, new.weight.SCB, new.index, new.state = None, None, None, bnb.MatmulLtState()
        new.state.CB, new.state.SCB, new.state.has_fp16_weights = (
            new.weight.data,
            torch.empty(rows),
            False,
        )
    return new


@contextmanager
def as_on_cuda():
    """Inside it, functions do what CUDA does otherwise than the CPU, by PyTorch's source.

    Attention takes the flash kernel (fp32 or wide heads: the memory-efficient one); neither makes
    the n x n matrix. `group_norm` first makes its input contiguous (group_norm.cpp). Norms are in
    their input's precision on both (`lib.step.cuda_graph.norms_in_bf16`).
    """
    attention, group_norm = F.scaled_dot_product_attention, F.group_norm

    def fused(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **others):
        if attn_mask is not None or others:
            return attention(query, key, value, attn_mask, dropout_p, is_causal, **others)
        if torch.is_autocast_enabled("cpu"):
            query, key, value = query.bfloat16(), key.bfloat16(), value.bfloat16()
        if query.dtype == torch.float32 or query.shape[-1] > 256:
            kept = query.requires_grad or key.requires_grad or value.requires_grad
            return aten._scaled_dot_product_efficient_attention(
                query, key, value, None, kept, dropout_p, is_causal
            )[0]
        return aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal)[0]

    def group(input, groups, weight=None, bias=None, eps=1e-5):
        return group_norm(input.contiguous(), groups, weight, bias, eps)

    # Patched, and no TorchFunctionMode: checkpointing computes again inside autograd, where such a
    # mode is off.
    with mock.patch.multiple(F, scaled_dot_product_attention=fused, group_norm=group):
        yield


def cuda_scratch(function, args, out):
    """Bytes that a kernel takes for itself on CUDA while it runs.

    The flash kernel's way back adds up the queries' gradient in fp32, rows rounded up to 128 and
    heads to 32 (flash_api.cpp, mha_bwd); the memory-efficient one's likewise. cuDNN copies a
    contiguous input to channels_last where the weights are (Conv_v8.cpp). NF4 weights are written
    out for each product of more than a few rows (bitsandbytes).
    """
    if function in ATTENTION_BACKWARD:
        batch, heads, rows, width = args[1].shape
        rows, width = -(-rows // 128) * 128, -(-width // 32) * 32
        return 4 * batch * heads * rows * (width + 1)
    if function in (aten.convolution.default, aten.convolution_backward.default):
        *given, weight = args[: 2 if function is aten.convolution.default else 3]
        if function is aten.convolution_backward.default and not args[-1][1]:
            given = given[:1]  # frozen weights: of its input nothing is read
        if weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous():
            return sum(
                t.nbytes for t in given if not t.is_contiguous(memory_format=torch.channels_last)
            )
    if str(function) == "bitsandbytes.gemm_4bit.default":
        return prod(args[2]) * args[0].itemsize
    return 0


SCRATCH = {
    "cuda": cuda_scratch
}  # device -> what its kernels take for themselves; nothing is counted on others


# Bytes that cuBLAS takes at the first product and keeps, of PyTorch's allocator: measured on an
# H200. By PyTorch's notes on CUDA semantics it is 32 MiB from Hopper on, and 8 before.
WORKSPACE = {"cuda": 33 * 2**20, "cpu": 0}
