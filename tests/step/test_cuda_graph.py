"""What a step does otherwise on a card, as far as that shows without one: tests/step/test_cuda.py has
the rest.
"""

from contextlib import nullcontext

import pytest
import torch
from short_runs import batch

from lib.models.base import load_base
from lib.step.cuda_graph import Recorded, can_record, norms_in_bf16
from lib.step.training_step import Step


class Tape:
    """A CUDA graph's stand-in: replaying does the work again with what lies in the held tensors."""

    def __init__(self, work, held, result):
        self.work, self.held, self.result = work, held, result

    def replay(self):
        self.result.copy_(self.work(*self.held))


@pytest.fixture
def recorder(monkeypatch):
    """`Recorded` for the CPU; its list of the shapes that were recorded."""
    shapes = []

    def record(self, tensors, form):
        shapes.append(tuple(tensors[0].shape))
        held = [t.clone() for t in tensors]
        result = self.work(*held)
        return Tape(self.work, held, result), held, result

    monkeypatch.setattr(Recorded, "_record", record)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    return shapes


def test_each_shape_is_recorded_once_at_its_third_call_and_every_result_is_its_own(recorder):
    work = Recorded(lambda x, y: (x * y).sum(0), [], None)
    results = [
        work(torch.full((n, 2), float(k)), torch.ones(n, 2))
        for k, n in enumerate((3, 3, 5, 3, 3, 5, 5, 3))
    ]
    assert recorder == [(3, 2), (5, 2)]
    assert [r.tolist() for r in results] == [
        [k * n] * 2 for k, n in enumerate((3, 3, 5, 3, 3, 5, 5, 3))
    ], "none was overwritten by a later"


@pytest.mark.parametrize(
    "error, words",
    [
        (
            RuntimeError("operation not permitted\nwhen stream is capturing"),
            "operation not permitted",
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "CUDA out of memory. Tried"),
    ],
)
def test_what_cannot_be_recorded_is_said_once_and_goes_on(
    recorder, monkeypatch, capsys, error, words
):
    def fails(self, tensors, form):
        raise error

    monkeypatch.setattr(Recorded, "_record", fails)
    forgotten = []
    work = Recorded(lambda x: x * 2, [], lambda: forgotten.append(1))
    assert [work(torch.tensor(float(k))).item() for k in range(6)] == [
        0,
        2,
        4,
        6,
        8,
        10,
    ] and forgotten == [1]
    assert capsys.readouterr().out.count(f"cannot be recorded here ({words}): its kernels") == 1


@pytest.mark.parametrize("changes", [{}, {"fused_backward": True, "weights": "bf16"}])
def test_a_step_that_broke_off_can_be_taken_anew(tiny_folder, make, changes):
    steps = [Step(load_base(tiny_folder), make("dreambooth", **changes)) for _ in range(2)]
    broken = steps[0]
    arrive = broken.optimizer._arrived
    broken.optimizer._arrived = lambda k: (
        arrive(k) if k else None
    )  # the first piece is never updated
    broken.loss(*batch(broken.base)).mean().backward()
    broken.optimizer._arrived = arrive
    broken.optimizer.forget()
    assert all(w.grad is None for w in broken.weights)
    found = [step(*batch(step.base)) for step in steps]
    assert torch.isfinite(found[0]).all() and (changes or torch.equal(*found))


def test_only_steps_that_are_the_same_kernels_each_time_are_recorded(make):
    card = torch.device("cuda")
    assert can_record(
        make("lora", quantize="nf4", optimizer="adamw8bit", checkpointing="all"), card
    )
    assert not can_record(make("lora", dropout=0.1), card) and not can_record(
        make("lora", text_encoder_rate=1e-5), card
    )
    assert not can_record(make("lora"), torch.device("cpu"))


def test_norms_answer_in_the_precision_of_what_they_get():
    torch.manual_seed(0)
    part = torch.nn.Sequential(
        torch.nn.GroupNorm(2, 8),
        torch.nn.Flatten(2),
        torch.nn.LayerNorm(16),
        torch.nn.LayerNorm(16, bias=False),
    )
    x = torch.randn(2, 8, 4, 4, requires_grad=True)
    wanted = part(x)
    norms_in_bf16([part], True)
    assert torch.allclose(part(x), wanted)
    low = part(x.bfloat16())
    assert low.dtype == torch.bfloat16 and torch.allclose(low.float(), wanted, atol=0.1)
    low.sum().backward()
    assert all(
        p.grad is not None and p.grad.dtype == torch.float32 for p in (*part.parameters(), x)
    )
    norms_in_bf16([part], False)
    assert not any("forward" in vars(m) for m in part.modules())
