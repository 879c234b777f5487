"""fp16 arithmetic with a dynamic scale of the loss, for cards that are fast in nothing else."""

import json
import math

import pytest
import torch
from short_runs import batch, same, stop_at

from lib.config.settings import Settings
from lib.models.base import load_base
from lib.step import loss
from lib.step.loss import LossScale
from lib.step.training_step import Step
from lib.training import loop
from lib.training.loop import train
from lib.training.run_log import NotFinite

LOW = {"optimizer": "adamw8bit", "weights": "bf16", "checkpointing": "all"}
RECIPES = [
    ("lora", {}),
    ("lora", {"prior": "teacher"}),
    ("lora", {"quantize": "nf4"}),
    ("dreambooth", {}),
    ("dreambooth", {"optimizer": "adamw8bit"}),
    ("dreambooth", {"prior": "anchor"}),
    ("dreambooth", LOW | {"fused_backward": True}),
    ("dreambooth", {"accumulate": 2}),
]


def stepped(tiny_folder, settings, steps=2, scale=None):
    base = load_base(tiny_folder)
    step = Step(base, settings)
    if scale is not None:
        step.scale = step.optimizer.scale = LossScale(base.device)
        step.scale.value.fill_(scale)
    return step, [step(*batch(base)) for _ in range(steps)]


def copied(step):
    return [t.clone() for t in step.optimizer.state_dict().values()][1:] + [
        w.detach().clone() for w in step.weights
    ]


@pytest.mark.parametrize("method, changes", RECIPES)
def test_losses_and_gradients_are_near_those_of_fp32(tiny_folder, make, method, changes):
    settings = make(method, precision="fp16", **changes)
    step, numbers = stepped(tiny_folder, settings)
    exact = settings.replace(precision="auto")
    _, wanted = stepped(tiny_folder, exact)
    assert step.arithmetic == "fp16" and all(len(n) == 3 + 2 + 1 for n in numbers)
    assert numbers[0][-1] == 2**16 and {w.dtype for w in step.weights} <= {
        torch.float32,
        torch.bfloat16,
    }
    for got, want in zip(numbers, wanted):
        assert torch.allclose(got[:3], want, rtol=0.03) if len(want) == 3 else True
        assert torch.allclose(got[: len(want)], want, rtol=0.05, atol=1e-4), (got, want)
    if changes.get("weights") != "bf16":
        assert all(w.dtype == torch.float32 for w in step.weights), "what trains stays fp32"


@pytest.mark.parametrize("method, changes", RECIPES)
def test_a_step_whose_gradient_is_not_finite_changes_nothing(tiny_folder, make, method, changes):
    settings = make(method, precision="fp16", **changes)
    step, _ = stepped(tiny_folder, settings)
    before = copied(step)
    step.scale.value.fill_(2.0**60)
    numbers = step(*batch(step.base))
    assert not math.isfinite(numbers[2]) and numbers[-1] == 2.0**60
    assert all(numbers[:2].isfinite()) and step.scale.value == 2.0**59
    assert step.scale.good == 0 and all(w.grad is None for w in step.weights)
    names = [*step.optimizer.state_dict()]
    for name, old, new in zip(names[1:], before, copied(step)):
        if not name.startswith("scale"):
            assert torch.equal(old, new), name
    for old, new in zip(before[len(names) - 1 :], step.weights, strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize(
    "changes", [{}, {"optimizer": "adamw8bit"}, {"fused_backward": True}, {"clip": 0.01}]
)
def test_a_scaled_step_is_the_same_update(tiny_folder, make, changes):
    plain, numbers = stepped(tiny_folder, make("dreambooth", **changes), 3)
    scaled, found = stepped(tiny_folder, make("dreambooth", **changes), 3, scale=2.0**10)
    for a, b in zip(numbers, found):
        assert torch.equal(a, b[:-1]), "a power of two rounds nothing"
    assert all(torch.equal(a, b) for a, b in zip(plain.weights, scaled.weights))


def test_the_scale_moves_as_torchs(monkeypatch):
    monkeypatch.setattr(loss, "GROWS_AFTER", 3)
    theirs = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=3)
    theirs.scale(torch.ones(()))
    ours = LossScale(torch.device("cpu"))
    for skipped in (1, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 1, 0):
        weight = torch.nn.Parameter(torch.ones(1))
        weight.grad = torch.full((1,), float("inf") if skipped else 1.0)
        optimizer = torch.optim.SGD([weight], lr=0.1)
        theirs.step(optimizer)
        theirs.update()
        ours.update(torch.tensor(float(skipped)))
        assert ours.value == theirs.get_scale()


def overflowing(monkeypatch, at, scale=2.0**50):
    """Steps whose loss is scaled far too much, at some step."""

    class Overflowing(Step):
        def __call__(self, *inputs):
            if self.taken == at:
                self.scale.value.fill_(scale)
            return super().__call__(*inputs)

    monkeypatch.setattr(loop, "Step", Overflowing)


@pytest.mark.parametrize("method", ["lora", "dreambooth"])
def test_a_training_skips_counts_and_goes_on_bit_for_bit(make, tmp_path, monkeypatch, method):
    overflowing(monkeypatch, at=2)
    settings = make(method, precision="fp16", save_every=2)
    whole = train(settings)
    rows = [json.loads(line) for line in open(whole / "log.jsonl")]
    skipped = [row["skipped"] for row in rows]
    assert skipped[2] and not any(skipped[:2]) and rows[2]["gradient_norm"] is None
    assert rows[3]["loss_scale"] == 2.0**49
    measured = json.loads((whole / "metrics.json").read_text())
    assert measured["skipped_steps"] == sum(skipped)
    cut = settings.replace(output=str(tmp_path / "cut"))
    train(cut, watchers=[stop_at(4)])
    assert same(whole, train(cut))
    again = [json.loads(line) for line in open(tmp_path / "cut" / "log.jsonl")]
    assert [row["loss_scale"] for row in again] == [row["loss_scale"] for row in rows]
    measured = json.loads((tmp_path / "cut" / "metrics.json").read_text())
    assert measured["skipped_steps"] == sum(skipped)


def test_a_gradient_that_no_scale_helps_is_told(make, monkeypatch):
    take = Step.take_step

    def broken(self, rate, *inputs):
        numbers = take(self, rate, *inputs)
        numbers[2], numbers[-1] = float("inf"), 1.0
        return numbers

    monkeypatch.setattr(Step, "take_step", broken)
    with pytest.raises(NotFinite, match="gradient's norm is inf at step 1"):
        train(make("lora", precision="fp16"))


def test_auto_is_what_the_device_is_fast_in(make):
    settings: Settings = make("dreambooth")
    assert [settings.arithmetic(fast) for fast in ("bf16", "fp16", "fp32")] == [
        "bf16",
        "fp16",
        "fp32",
    ]
    low = settings.replace(weights="bf16")
    assert [low.arithmetic(fast) for fast in ("bf16", "fp16", "fp32")] == ["bf16", "fp16", "bf16"]
    assert settings.replace(precision="fp32").arithmetic("fp16") == "fp32"
