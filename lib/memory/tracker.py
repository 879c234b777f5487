"""Peak memory of a training step, by category, counted tensor by tensor.

    with PeakMemory(model, optimizer) as peak:
        ...one training step...
    peak.bytes, peak.by_category

Every storage that an operation makes is counted until it is freed, so the figure is exact and the
same on every machine; it holds neither the allocator's slack nor scratch space inside kernels. On
CUDA the figure to hold against it is `torch.cuda.max_memory_allocated`.

Kept by hand beside torch.distributed._tools.mem_tracker.MemTracker, which is private to PyTorch,
counts blocks of CUDA's allocator instead of bytes, takes torch's own optimisers alone, and counts
no quantised weight's scales and no kernel's scratch space. tests/memory/test_tracker.py holds the
two to each other.
"""

import weakref
from collections.abc import Callable, Iterator
from typing import Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CATEGORIES: tuple[str, ...] = ("weights", "gradients", "optimiser", "activations", "rest")


class PeakMemory(TorchDispatchMode):
    """Follows the storages of a training step; after it `bytes` and `by_category` are its peak.

    `bytes` are alive at the worst moment, and `by_category` are the same, split:

    - weights: the model's parameters and buffers, frozen ones too
    - gradients: `.grad` of parameters
    - optimiser: the state of `optimizer`
    - activations: what operations make, from what is saved for the backward pass to passing results
    - rest: `inputs` given by the caller, and what `scratch(function, args, out)` says that a kernel
      takes for itself while it runs, in bytes
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: Any = None,
        inputs: Any = (),
        scratch: Callable[..., int] | None = None,
    ):
        super().__init__()
        self.model: Any = model
        self.optimizer = optimizer
        self.inputs = inputs
        self.scratch = scratch
        self.sizes: dict[int, int] = {}  # of storages that are alive, by their address
        self.categories: dict[int, str] = {}
        self.now = dict.fromkeys(CATEGORIES, 0)
        self.bytes = 0
        self.by_category = dict(self.now)

    def _follow(self, tensor: torch.Tensor, category: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.categories[key] = category
            self.now[category] += storage.nbytes()
            weakref.finalize(storage, self._freed, key)
        elif category not in ("activations", self.categories[key]):
            # a result that became a gradient or a moment
            self.now[self.categories[key]] -= self.sizes[key]
            self.now[category] += self.sizes[key]
            self.categories[key] = category

    def _freed(self, key: int) -> None:
        self.now[self.categories.pop(key)] -= self.sizes.pop(key)

    def _follow_all(self, tree: Any, category: str) -> None:
        for leaf in tree_leaves(tree):
            if torch.is_tensor(leaf):
                self._follow(leaf, category)

    def _follow_gradient(self, p: torch.Tensor) -> None:
        if p.grad is not None:  # an optimiser fused into the backward pass may have freed it
            self._follow(p.grad, "gradients")

    def __enter__(self) -> Self:
        for tensor in [*self.model.parameters(), *self.model.buffers()]:
            for part in (tensor, *_scales(getattr(tensor, "quant_state", None))):
                self._follow(part, "weights")
        self._follow_all(self.inputs, "rest")
        for p in self.model.parameters():
            self._follow_gradient(p)
        if self.optimizer is not None:
            self._follow_all([list(s.values()) for s in self.optimizer.state.values()], "optimiser")
        self._hooks = [
            p.register_post_accumulate_grad_hook(self._follow_gradient)
            for p in self.model.parameters()
            if p.requires_grad
        ]
        self._note_peak()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        # What lives on keeps this object until it is freed, so this must not keep it in turn.
        self.model, self.optimizer, self.inputs = None, None, ()
        super().__exit__(*error)

    def _note_peak(self, scratch: int = 0) -> None:
        total = sum(self.now.values()) + scratch
        if total > self.bytes:
            self.bytes = total
            self.by_category = self.now | {"rest": self.now["rest"] + scratch}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        self._follow_all(out, "activations")
        self._note_peak(self.scratch(function, args, out) if self.scratch else 0)
        return out


def _scales(state: Any) -> Iterator[torch.Tensor]:
    """The tensors that a quantised weight of bitsandbytes keeps beside it.

    They are outside of the module's parameters and buffers.
    """
    if state is None:
        return
    for value in vars(state).values():
        if torch.is_tensor(value):
            yield value
        elif type(value) is type(state):
            yield from _scales(value)
