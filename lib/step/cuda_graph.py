"""What a training step does otherwise on a CUDA card, where starting thousands of small kernels
takes as long as running them.

`GraphedStep`: the complete step, from the prediction to the update, is captured once for each shape
of its inputs, and from then on started as one CUDA graph. `norms_in_bf16`: norms leave their
results in the precision of their input, where autocast would write them in fp32.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from lib.config import Settings
from lib.files import say
from lib.files.text import first_line
from lib.models import reclaim

# Calls of a shape before it is captured: libraries make ready in the first, memory is measured in
# one of them.
EAGER_CALLS = 2


def can_capture(settings: Settings, device: torch.device) -> bool:
    """Whether a step of `settings` is the same kernels each time, on a card.

    Text encoders make masks in Python, and dropout under checkpointing puts random states back.
    """
    return device.type == "cuda" and settings.text_encoder_rate == 0 and settings.dropout == 0


class GraphedStep:
    """`work(*inputs)`, a function of tensors that gives one tensor, replayed as a CUDA graph.

    The first two calls of a shape run it as it is, the third captures it. What it makes lies in
    memory that all graphs share. It reads weights, moments and the `generators` it draws from where
    they lay when it was captured, so these must stay there. Where capturing fails, or finds too
    little memory (its own is a tenth to a fifth more than the step's), `on_failure` is called, that
    is said, and the work goes on as it is.
    """

    def __init__(
        self,
        work: Callable[..., torch.Tensor],
        generators: Sequence[torch.Generator],
        on_failure: Callable[[], None],
    ):
        self.work = work
        self.generators = generators
        self.on_failure = on_failure
        self.calls = {}  # by shape, as `graphs`
        self.graphs = {}  # (graph, its input tensors, its result)
        self.pool = None
        self.capturing = True

    def __call__(self, *inputs: Any) -> torch.Tensor:
        tensors, structure = tree_flatten(inputs)
        shape = tuple(t.shape for t in tensors)
        self.calls[shape] = self.calls.get(shape, 0) + 1
        if self.capturing and shape not in self.graphs and self.calls[shape] > EAGER_CALLS:
            self._try_capture(shape, tensors, structure)
        if shape not in self.graphs:
            return self.work(*inputs)
        graph, graph_inputs, result = self.graphs[shape]
        for target, given in zip(graph_inputs, tensors):
            target.copy_(given)
        graph.replay()
        return result.clone()

    def _try_capture(
        self, shape: tuple, tensors: Sequence[torch.Tensor], structure: TreeSpec
    ) -> None:
        try:
            # torch would stay on the capture's stream after an error
            with torch.cuda.stream(torch.cuda.current_stream()):
                self.graphs[shape] = self._capture(tensors, structure)
            return
        except RuntimeError as error:
            reason = first_line(error)
        self.capturing = False
        self.on_failure()
        reclaim(tensors[0].device)  # only here, where the error is gone, is what it held free
        say(
            f"a step of this recipe cannot be recorded here ({reason}): its kernels are started one"
            " by one"
        )

    def _capture(
        self, tensors: Sequence[torch.Tensor], structure: TreeSpec
    ) -> tuple[torch.cuda.CUDAGraph, list[torch.Tensor], torch.Tensor]:
        graph = torch.cuda.CUDAGraph()
        graph_inputs = [t.clone() for t in tensors]
        for generator in self.generators:
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph, pool=self.pool):
            result = self.work(*tree_unflatten(graph_inputs, structure))
        self.pool = graph.pool()
        return graph, graph_inputs, result


def norms_in_bf16(parts: Iterable[torch.nn.Module], on: bool) -> None:
    """Let the norms of modules answer in their input's precision, or (`on` False) as they come.

    Under autocast CUDA would bring their inputs to fp32, and what follows reads and writes twice
    the bytes and keeps them; the CPU does not. Mean and variance are summed in fp32 by the kernels
    either way.
    """
    for layer in _norms(parts):
        vars(layer).pop("forward", None)
        if on:
            vars(layer)["forward"] = partial(_norm, layer, None)


def norms_in_fp32(parts: Iterable[torch.nn.Module]) -> None:
    """Let the norms of modules run and answer in fp32, as under fp16, whose range is narrow.

    So does CUDA by itself; the CPU would not, nor take weights in bf16 there.
    """
    for layer in _norms(parts):
        vars(layer)["forward"] = partial(_norm, layer, torch.float32)


def _norms(parts: Iterable[torch.nn.Module]) -> list[Any]:
    kinds = torch.nn.GroupNorm | torch.nn.LayerNorm
    return [layer for layer in torch.nn.ModuleList(parts).modules() if isinstance(layer, kinds)]


def _norm(
    layer: torch.nn.GroupNorm | torch.nn.LayerNorm, dtype: torch.dtype | None, x: torch.Tensor
) -> torch.Tensor:
    x = x if dtype is None else x.to(dtype)
    weight, bias = (None if p is None else p.to(x.dtype) for p in (layer.weight, layer.bias))
    with torch.autocast(x.device.type, enabled=False):
        if isinstance(layer, torch.nn.GroupNorm):
            return F.group_norm(x, layer.num_groups, weight, bias, layer.eps)
        return F.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)
