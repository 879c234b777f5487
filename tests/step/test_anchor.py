"""The anchor, prior preservation without pictures: a step pulls weights back towards the base."""

import pytest
import torch
from short_runs import batch, losses, same, stop_at

from lib.files.errors import BadInput
from lib.memory.cards import forecast_recipe
from lib.memory.forecasting import forecast, plan
from lib.models.base import load_base
from lib.step.training_step import Step
from lib.training.loop import train

STRENGTH = 3.0


def after_a_step(tiny_folder, settings):
    base = load_base(tiny_folder)
    step = Step(base, settings)
    before = [w.detach().clone() for w in step.weights]
    step(*batch(base))
    return step, before


@pytest.mark.parametrize(
    "recipe", [{}, {"optimizer": "adamw8bit"}, {"fused_backward": True}, {"clip": 0.01}]
)
def test_every_weight_of_dreambooth_loses_a_share_of_its_change(tiny_folder, make, recipe):
    settings = make("dreambooth", prior="anchor", prior_weight=STRENGTH, warmup=0, **recipe)
    plain, base = after_a_step(tiny_folder, settings.replace(prior_weight=0.0))
    pulled, _ = after_a_step(tiny_folder, settings)
    share = STRENGTH / settings.steps
    for weight, without, start in zip(pulled.weights, plain.weights, base):
        wanted = without + share * (start.half().float() - without)
        assert torch.allclose(weight, wanted, rtol=1e-6, atol=2e-7)
    assert any(not torch.equal(w, b) for w, b in zip(pulled.weights, base))


def test_a_loras_change_of_the_model_loses_the_same_share(tiny_folder, make):
    settings = make("lora", prior="anchor", prior_weight=STRENGTH, warmup=0)
    plain, _ = after_a_step(tiny_folder, settings.replace(prior_weight=0.0))
    pulled, _ = after_a_step(tiny_folder, settings)
    share = STRENGTH / settings.steps
    for (name, weight), without in zip(pulled.named_weights(), plain.weights):
        wanted = without * (1 - share) if "lora_B" in name else without
        assert torch.allclose(weight, wanted, rtol=1e-6, atol=1e-9), name


def test_the_dial_is_the_same_at_every_rate_and_length(make):
    for changes in ({}, {"steps": 60}, {"learning_rate": 1e-5}):
        plateau = {"prior_weight": 0.5, "cooldown": 0.0, "warmup": 0}
        settings = make("dreambooth", prior="anchor", **plateau, **changes)
        left = 1.0
        for step in range(settings.steps):
            left *= 1 - settings.rate(step) * settings.pull
        shrunk = -torch.tensor(left).log()
        assert shrunk == pytest.approx(settings.prior_weight, rel=0.1), "exp(-prior_weight)"


def test_more_of_it_leaves_the_weights_nearer_to_the_base(tiny_folder, make):
    distances = []
    for strength in (0.0, 1.0, 5.0):
        base = load_base(tiny_folder)
        step = Step(base, make("dreambooth", prior="anchor", prior_weight=strength))
        start = [w.detach().clone() for w in step.weights]
        for _ in range(6):
            step(*batch(base))
        distances.append(sum((w - s).square().sum() for w, s in zip(step.weights, start)).item())
    assert distances[0] > distances[1] > distances[2] > 0


@pytest.mark.parametrize("method", ["lora", "dreambooth"])
def test_a_training_with_an_anchor_needs_no_class_images_and_goes_on_bit_for_bit(
    make, tmp_path, method
):
    settings = make(method, prior="anchor", prior_weight=1.0, save_every=2)
    whole = train(settings)
    assert all(prior == 0 for _, _, prior in losses(whole))
    again = settings.replace(output=str(tmp_path / "again"))
    train(again, watchers=[stop_at(3)])
    assert same(whole, train(again))


def test_the_forecast_counts_two_bytes_a_weight():
    changes = {"prior_weight": 1.0, "batch_size": 1}
    plain = forecast_recipe(plan("dreambooth", "sd15", prior_weight=0.0, batch_size=1))
    held = forecast(plan("dreambooth", "sd15", prior="anchor", **changes))
    more = held.by_category["optimiser"] - plain["by_category"]["optimiser"]
    assert more == 2 * 859_520_964, "one fp16 copy of SD 1.5's U-Net"
    lora = forecast(plan("lora", "sd15", prior="anchor", **changes))
    beside = forecast_recipe(plan("lora", "sd15", prior_weight=0.0, batch_size=1))
    assert lora.bytes - beside["bytes"] < 2**20


def test_an_anchor_and_a_trained_magnitude_are_refused(make):
    with pytest.raises(BadInput, match="'prior' anchor and 'dora' exclude each other"):
        make("lora", prior="anchor", dora=True)
