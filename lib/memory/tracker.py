"""Peak memory of a training step, by category, counted tensor by tensor.

    with PeakMemory(model, optimizer) as peak:
        ...one training step...
    peak.bytes, peak.by_category

    python -m lib forecast --base sdxl --method dreambooth --resolution 1024      # before the fact: see `lib/memory/cards.py`

Every storage that an operation makes is counted until it is freed, so the figure is exact and the
same on every machine; it holds neither the allocator's slack nor scratch space inside kernels. On
CUDA the figure to hold against it is `torch.cuda.max_memory_allocated`.
"""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CATEGORIES = ("weights", "gradients", "optimiser", "activations", "rest")


class PeakMemory(TorchDispatchMode):
    """Follows the storages of a training step: the bytes alive at the worst moment, in `bytes`,
    split in `by_category`.

    weights: the model's parameters and buffers, frozen ones too. gradients: `.grad` of parameters.
    optimiser: its state. activations: what operations make, from what is kept for the way back to
    passing results. rest: `inputs` given by the caller, and what `scratch(function, args, out)`
    says that a kernel takes for itself while it runs, in bytes.
    """

    def __init__(self, model, optimizer=None, inputs=(), scratch=None):
        super().__init__()
        self.model, self.optimizer, self.inputs, self.scratch = model, optimizer, inputs, scratch
        self.alive, self.kind = {}, {}
        self.now = dict.fromkeys(CATEGORIES, 0)
        self.bytes, self.by_category = 0, dict(self.now)

    def _follow(self, tensor, category):
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.alive:
            if (
                category != "activations" and self.kind[key] != category
            ):  # a result that became a gradient or a moment
                self.now[self.kind[key]] -= self.alive[key]
                self.now[category] += self.alive[key]
                self.kind[key] = category
            return
        self.alive[key], self.kind[key] = storage.nbytes(), category
        self.now[category] += storage.nbytes()
        weakref.finalize(storage, self._freed, key)

    def _freed(self, key):
        self.now[self.kind.pop(key)] -= self.alive.pop(key)

    def _gradient(self, p):
        if p.grad is not None:  # an optimiser fused into the backward pass may have freed it
            self._follow(p.grad, "gradients")

    def _sort(self):
        for p in self.model.parameters():
            if p.grad is not None:
                self._follow(p.grad, "gradients")
        if self.optimizer is not None:
            for tensor in tree_leaves([list(s.values()) for s in self.optimizer.state.values()]):
                if torch.is_tensor(tensor):
                    self._follow(tensor, "optimiser")

    def __enter__(self):
        for tensor in [*self.model.parameters(), *self.model.buffers()]:
            for part in (tensor, *_scales(getattr(tensor, "quant_state", None))):
                self._follow(part, "weights")
        for tensor in tree_leaves(self.inputs):
            if torch.is_tensor(tensor):
                self._follow(tensor, "rest")
        self._sort()
        self._hooks = [
            p.register_post_accumulate_grad_hook(self._gradient)
            for p in self.model.parameters()
            if p.requires_grad
        ]
        self._peak()
        return super().__enter__()

    def __exit__(self, *error):
        for hook in self._hooks:
            hook.remove()
        # What lives on keeps this object until it is freed, so this must not keep it in turn.
        self.model, self.optimizer, self.inputs = None, None, ()
        return super().__exit__(*error)

    def _peak(self, scratch=0):
        total = sum(self.now.values()) + scratch
        if total > self.bytes:
            self.bytes, self.by_category = total, self.now | {"rest": self.now["rest"] + scratch}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if torch.is_tensor(tensor):
                self._follow(tensor, "activations")
        self._peak(self.scratch(function, args, out) if self.scratch else 0)
        return out


def _scales(state):
    """The tensors that a quantised weight of bitsandbytes keeps beside it, outside of the module's
    parameters and buffers.
    """
    for value in vars(state).values() if state is not None else ():
        if torch.is_tensor(value):
            yield value
        elif type(value) is type(state):
            yield from _scales(value)
