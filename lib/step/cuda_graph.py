"""What a training step does otherwise on a CUDA card, where starting thousands of small kernels
takes as long as running them.

`Recorded`: the whole step, from the prediction to the update, is recorded once for each shape of
its inputs, and from then on started as one CUDA graph. `norms_in_bf16`: norms leave their results
in the precision of their input, where autocast would write them in fp32.
"""

import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_flatten, tree_unflatten

from lib.files.text import say
from lib.models.devices import reclaim

# calls of a shape before it is recorded: libraries make ready in the first, memory is measured in
# one of them
EAGER = 2


def can_record(settings, device):
    """Whether a step of `settings` is the same kernels each time: text encoders make masks in
    Python, and dropout under checkpointing puts random states back.
    """
    return device.type == "cuda" and settings.text_encoder_rate == 0 and settings.dropout == 0


class Recorded:
    """`work(*inputs)`, a function of tensors that gives one tensor, which from the third call with
    the same shapes on is replayed as a CUDA graph.

    What it makes lies in memory that all graphs share. It reads weights, moments and the
    `generators` it draws from where they lay when it was recorded, so these must stay there. Where
    recording fails, or finds no room (its memory is its own, and a tenth to a fifth more than the
    step's), `forget` is called, that is said, and the work goes on as it is.
    """

    def __init__(self, work, generators, forget):
        self.work, self.generators, self.forget = work, generators, forget
        self.calls, self.graphs, self.pool, self.wanted = {}, {}, None, True

    def __call__(self, *inputs):
        tensors, form = tree_flatten(inputs)
        shape = tuple(t.shape for t in tensors)
        self.calls[shape] = self.calls.get(shape, 0) + 1
        if self.wanted and shape not in self.graphs and self.calls[shape] > EAGER:
            self._try(shape, tensors, form)
        if shape not in self.graphs:
            return self.work(*inputs)
        graph, held, result = self.graphs[shape]
        for mine, given in zip(held, tensors):
            mine.copy_(given)
        graph.replay()
        return result.clone()

    def _try(self, shape, tensors, form):
        try:
            with torch.cuda.stream(
                torch.cuda.current_stream()
            ):  # torch would stay on the record's stream after an error
                self.graphs[shape] = self._record(tensors, form)
            return
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
        self.wanted = False
        self.forget()
        reclaim(tensors[0].device)  # only here, where the error is gone, is what was recorded free
        say(
            f"a step of this recipe cannot be recorded here ({reason}): its kernels are started one"
            " by one"
        )

    def _record(self, tensors, form):
        graph, held = torch.cuda.CUDAGraph(), [t.clone() for t in tensors]
        for generator in self.generators:
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph, pool=self.pool):
            result = self.work(*tree_unflatten(held, form))
        self.pool = graph.pool()
        return graph, held, result


def norms_in_bf16(parts, on):
    """Let the norms of modules answer in their input's precision, or (`on` False) as they come.

    Under autocast CUDA would bring their inputs to fp32, and what follows reads and writes twice
    the bytes and keeps them; the CPU does not. Mean and variance are summed in fp32 by the kernels
    either way.
    """
    for layer in (module for part in parts for module in part.modules()):
        if isinstance(layer, torch.nn.GroupNorm | torch.nn.LayerNorm):
            vars(layer).pop("forward", None)
            if on:
                layer.forward = lambda x, layer=layer: _norm(layer, x)


def _norm(layer, x):
    weight, bias = (None if p is None else p.to(x.dtype) for p in (layer.weight, layer.bias))
    with torch.autocast(x.device.type, enabled=False):
        if isinstance(layer, torch.nn.GroupNorm):
            return F.group_norm(x, layer.num_groups, weight, bias, layer.eps)
        return F.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)
