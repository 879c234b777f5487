"""Gradient accumulation: a step that takes its batch part by part gives the numbers of the whole
batch, for a part's memory.
"""

import json
from functools import partial

import pytest
import torch
from short_runs import batch, losses, same, stop_at

from lib.files.errors import BadInput
from lib.memory.ladder import recipes, step_down
from lib.memory.tracker import PeakMemory
from lib.models.base import load_base
from lib.step.training_step import Step
from lib.training.checkpoints import digest
from lib.training.loop import train

# Parts of a batch round otherwise than the whole, and AdamW's first steps blow up what is tiny.
CLOSE = {"rtol": 1e-4, "atol": 1e-6}
BOTH = [
    {},
    {"prior": "anchor"},
    {"text_encoder_rate": 1e-4},
    {"checkpointing": "all"},
    {"optimizer": "adamw8bit"},
    {"snr_gamma": 5.0},
]
CASES = [("lora", {"prior": "teacher"}), ("lora", {"dora": True}), ("lora", {"quantize": "nf4"})]
CASES += [(method, changes) for method in ("lora", "dreambooth") for changes in BOTH]


@pytest.fixture
def make(make):
    """Settings in fp32 unless they say otherwise: in bf16, which "auto" takes where the processor
    is fast in it, the order of sums shows at the third digit.
    """
    return partial(make, precision="fp32")


def rows_for(base, rows, side=8):
    latents, noise, _, conditions = batch(base, size=rows, side=side)
    return latents, noise, torch.arange(rows) * 120, conditions


def taken(tiny_folder, settings, rows=8, steps=3):
    base = load_base(tiny_folder)
    step, inputs = Step(base, settings), rows_for(base, rows)
    if settings.text_encoder_rate > 0:
        inputs = (*inputs[:3], base.conditions(["a robot"] * rows, encoded=False))
    return step, [step(*inputs) for _ in range(steps)]


@pytest.mark.parametrize("method, changes", CASES)
def test_parts_of_a_batch_give_the_numbers_of_the_whole(tiny_folder, make, method, changes):
    # The gradient at the start: later ones hang on what AdamW made of rounding.
    settings = make(method, batch_size=4, learning_rate=1e-5, **changes)
    whole, numbers = taken(tiny_folder, settings)
    parts, found = taken(tiny_folder, settings.replace(accumulate=3))  # 1, 1 and 2 pictures
    for wanted, got in zip(numbers, found):
        assert len(got) == 3 + 8 and torch.allclose(got, wanted, **CLOSE), (got, wanted)
    changes = [(a - b).detach() for a, b in zip(whole.weights, parts.weights)]
    assert max(change.abs().max() for change in changes) < 2 * 3 * 1e-5, "a step is of the rate"
    assert torch.cat([change.flatten() for change in changes]).abs().mean() < 1e-6, (
        "and but for tiny gradients the same"
    )


@pytest.mark.parametrize("method", ["lora", "dreambooth"])
def test_the_gradient_is_that_of_the_whole_batch(tiny_folder, make, method):
    found = []
    for count in (1, 2, 4):
        settings = make(method, batch_size=4, accumulate=count, prior_weight=0.7)
        base = load_base(tiny_folder)
        step = Step(base, settings)
        step.optimizer.step = lambda: torch.zeros(())
        step(*rows_for(base, 8))
        found.append(torch.cat([w.grad.flatten() for w in step.weights if w.grad is not None]))
    for other in found[1:]:
        assert (found[0] - other).norm() < 5e-6 * found[0].norm()


def test_one_pass_is_the_whole_batch_bit_for_bit_and_without_class_images_too(tiny_folder, make):
    settings = make("lora", batch_size=3, accumulate=3, prior_weight=0.0)
    _, found = taken(tiny_folder, settings, rows=3)
    _, wanted = taken(tiny_folder, settings.replace(accumulate=1), rows=3)
    assert len(found[0]) == 6 and found[0][1] == 0
    assert torch.allclose(found[0], wanted[0], rtol=1e-6, atol=0)


def test_it_takes_a_parts_memory(tiny_folder, make):
    found = []
    for count in (1, 4):
        base = load_base(tiny_folder)
        step = Step(base, make("lora", batch_size=4, accumulate=count))
        inputs = rows_for(base, 8, side=16)
        step(*inputs)
        with PeakMemory(step.denoiser, step.optimizer, inputs) as peak:
            step(*inputs)
        found.append(peak.by_category["activations"])
    assert found[1] < 0.4 * found[0]


def test_a_training_goes_on_bit_for_bit_and_says_its_passes(make, tmp_path):
    settings = make("lora", accumulate=2, save_every=2)
    whole = train(settings)
    assert json.loads((whole / "metrics.json").read_text())["recipe"]["accumulate"] == 2
    cut = settings.replace(output=str(tmp_path / "cut"))
    train(cut, watchers=[stop_at(3)])
    assert same(whole, train(cut))


def test_an_older_checkpoint_had_one_pass(make, tmp_path):
    settings = make("lora", save_every=2)
    run = train(settings, watchers=[stop_at(3)])
    for path in [run / "settings.json", *run.glob("checkpoint/*/state.json")]:
        said = json.loads(path.read_text())
        for known in (said, said.get("settings", {})):
            known.pop("accumulate", None)
        if "own" in said:
            said["own"] = digest(said)
        path.write_text(json.dumps(said))
    train(settings)
    assert not list(run.parent.glob("*_before_*")), "it went on"
    assert len(losses(run)) == settings.steps


@pytest.mark.parametrize(
    "method, changes, words",
    [
        ("lora", {"accumulate": 3}, ["accumulate", "is 3", "2 pictures", "batch_size"]),
        ("lora", {"accumulate": 0}, ["accumulate"]),
        (
            "dreambooth",
            {"accumulate": 2, "fused_backward": True},
            ["accumulate", "fused_backward", "exclude"],
        ),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(make, method, changes, words):
    with pytest.raises(BadInput) as refused:
        make(method, **changes)
    assert all(word in str(refused.value) for word in words)


def test_the_foot_of_loras_ladder_takes_pictures_one_by_one(make):
    *_, (above, _), (foot, words) = recipes(make("lora", batch_size=4))
    assert (above.accumulate, foot.accumulate) == (1, 4) and "one by one" in words[-1]
    *_, (foot, words) = recipes(make("lora", batch_size=1))
    assert foot.accumulate == 1 and not any("one by one" in one for one in words)


def test_dreambooths_ladder_keeps_the_passes_that_were_asked_for(make):
    found = [recipe for recipe, _ in recipes(make("dreambooth", batch_size=4, accumulate=2))]
    assert {one.accumulate for one in found} == {2} and not found[-1].fused_backward
    assert found[-1].checkpointing == "all" and step_down(found[-1]) is None
