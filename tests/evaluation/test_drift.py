"""Fixed noise and drift: known answers on models whose prediction is known, and the real pocket
base tuned by hand.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image

from lib.evaluation.drift import (
    FixedNoise,
    Predictions,
    fixed_noise,
    fixed_noise_loss,
    predict,
    prediction_cache,
    prediction_drift,
)
from lib.files.errors import BadInput
from lib.models.base import LARGEST_BATCH, evaluation_mode, load_base
from lib.models.families import preset
from lib.step.methods import trainable
from pocket.world import render, sample_scene


@pytest.fixture(scope="module")
def pocket():
    return load_base("pocket", "cpu")


@pytest.fixture(scope="module")
def pictures():
    return [render(sample_scene(9_400_000 + i, salt="judge")) for i in range(3)]


@pytest.fixture(scope="module")
def cache(pocket):
    return prediction_cache(pocket, ["a robot", "a robot at night"], bins=4, draws=1, steps=4)


def tuned(pocket, method, precision="fp32"):
    """A copy of the base made ready to train by `method`; the module's own stays untouched."""
    base = copy.deepcopy(pocket)
    weights = trainable(base, preset(method, data="x", output="y", precision=precision))
    return base, weights


class Fake(torch.nn.Module):
    """A U-Net whose prediction is `rule(noisy, timesteps)`; it remembers the size of each batch."""

    def __init__(self, rule):
        super().__init__()
        self.rule, self.sizes = rule, []

    def forward(self, noisy, timesteps, encoder_hidden_states):
        assert len(noisy) == len(timesteps) == len(encoder_hidden_states)
        self.sizes.append(len(noisy))
        return SimpleNamespace(sample=self.rule(noisy, timesteps))


def test_fixed_noise_stays_within_the_schedule_at_the_largest_random_number(
    pocket, pictures, monkeypatch
):
    monkeypatch.setattr(torch, "rand", lambda *size, generator=None: torch.full(size, 1 - 2**-24))
    assert fixed_noise(pocket, pictures[:1], ["a robot"], bins=1, draws=1).timesteps.tolist() == [
        999
    ]
    assert fixed_noise(pocket, pictures, ["a robot"] * 3).timesteps.max() == 999


def fake(pocket, rule, kind="epsilon"):
    """The pocket base with another U-Net and scheduler."""
    base = copy.copy(pocket)
    base.side, base.family = pocket.resolution, pocket.family
    base.pipe = SimpleNamespace(
        unet=Fake(rule),
        vae=pocket.pipe.vae,
        text_encoder=pocket.pipe.text_encoder,
        tokenizer=pocket.pipe.tokenizer,
        scheduler=DDPMScheduler(prediction_type=kind),
    )
    return base


def made(m, bins, texts=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, noise = (torch.randn(m, 2, 4, 4, generator=generator) for _ in range(2))
    return FixedNoise(x, noise, torch.linspace(0, 999, m).long(), texts or ["a cat"] * m, bins)


def test_timesteps_fill_every_bin_evenly_and_come_from_the_seed_alone(pocket, pictures):
    one, two, other = (
        fixed_noise(pocket, pictures, ["a", "b", "c"], bins=4, draws=2, seed=s) for s in (0, 0, 1)
    )
    assert all(
        torch.equal(getattr(one, k), getattr(two, k)) for k in ("latents", "noise", "timesteps")
    )
    assert not torch.equal(one.noise, other.noise) and not torch.equal(
        one.timesteps, other.timesteps
    )
    assert one.texts == ["a", "b", "c"] * 8 and len(one.timesteps) == 24
    thirds = (
        one.timesteps.double() / 1000 * 12
    ).long()  # four bins of three pictures: each draw has one in each third of its bin
    for k in range(8):
        assert sorted(thirds[3 * k : 3 * k + 3].tolist()) == [3 * (k // 2) + j for j in range(3)]
    mean, std = pocket.encode_images(pictures)
    assert ((one.latents - mean.repeat(8, 1, 1, 1)).abs() <= 6 * std.repeat(8, 1, 1, 1)).all()


def test_pictures_of_other_sizes_are_noised_at_the_size_of_the_base_and_none_is_refused(pocket):
    odd = fixed_noise(
        pocket,
        [Image.new("RGB", (200, 90), "red"), Image.new("L", (64, 64))],
        ["a", "b"],
        bins=1,
        draws=1,
    )
    assert odd.latents.shape[1:] == pocket.encode_images([Image.new("RGB", (64, 64))])[0].shape[1:]
    for wrong in ([], [Image.new("RGB", (64, 64))]):
        with pytest.raises(BadInput, match="one prompt for each, and at least one"):
            fixed_noise(pocket, wrong, ["a", "b"])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_loss_of_a_known_prediction_is_known_in_every_bin(pocket, kind):
    fixed = made(20, 4)
    base = fake(pocket, None, kind)
    scheduler = base.pipe.scheduler
    target = (
        fixed.noise
        if kind == "epsilon"
        else scheduler.get_velocity(fixed.latents, fixed.noise, fixed.timesteps)
    )
    where = {
        float(x.sum()): i
        for i, x in enumerate(scheduler.add_noise(fixed.latents, fixed.noise, fixed.timesteps))
    }

    def miss_by_the_bin(noisy, timesteps):
        rows = [where[float(x.sum())] for x in noisy]
        return torch.stack([target[i] + i // 5 for i in rows])

    base.pipe.unet = Fake(miss_by_the_bin)
    found = fixed_noise_loss(base, fixed)
    assert found["bins"] == pytest.approx([0, 1, 4, 9], abs=1e-4) and found[
        "mean"
    ] == pytest.approx(3.5, abs=1e-4)
    assert base.denoiser.sizes == [8, 8, 4] and max(base.denoiser.sizes) <= LARGEST_BATCH


def test_drift_of_a_known_change_is_known_in_every_bin(pocket):
    base = fake(pocket, lambda x, t: 2 * x)
    fixed = made(8, 2)
    cache = Predictions(fixed, predict(base, fixed), base.name)
    assert prediction_drift(base, cache) == {"mean": 0, "bins": [0, 0]}
    base.pipe.unet = Fake(lambda x, t: 2 * x * torch.where(t < 500, 1.0, 1.1)[:, None, None, None])
    noisy = base.pipe.scheduler.add_noise(fixed.latents, fixed.noise, fixed.timesteps).double()
    found = prediction_drift(base, cache)
    assert found["bins"] == pytest.approx([0, 0.01], rel=1e-3)
    assert found["mean"] == pytest.approx(
        float(0.01 * noisy[4:].square().sum() / noisy.square().sum()), rel=1e-3
    )


def test_each_picture_meets_its_own_prompt(pocket):
    seen = []
    base = fake(pocket, lambda x, t: x)
    forward = base.denoiser.forward
    base.denoiser.forward = lambda x, t, encoder_hidden_states: (
        seen.append(encoder_hidden_states) or forward(x, t, encoder_hidden_states)
    )
    texts = ["a cat", "a robot", "a fish"] * 4
    predict(base, made(12, 4, texts))
    assert torch.allclose(
        torch.cat(seen), pocket.conditions(texts)["encoder_hidden_states"], atol=1e-6
    )


def test_a_prediction_that_is_no_number_is_an_error(pocket):
    base, fixed = fake(pocket, lambda x, t: x / 0), made(4, 2)
    with pytest.raises(BadInput, match="loss on fixed noise came out as"):
        fixed_noise_loss(base, fixed)
    with pytest.raises(BadInput, match="drift came out as"):
        prediction_drift(base, Predictions(fixed, fixed.latents, base.name))


@pytest.mark.parametrize("method", ["lora", "dreambooth"])
def test_drift_is_nothing_before_training_and_a_growing_number_after_for_both_methods(
    pocket, cache, method
):
    """The published drift of full fine-tuning is NaN, because it toggles an adapter that is not
    there.
    """
    base, weights = tuned(pocket, method)
    assert prediction_drift(base, cache)["mean"] < 1e-9
    found = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for w in weights:
                w += (
                    0.02
                    * w.std().nan_to_num().clamp(min=0.01)
                    * torch.randn(w.shape, generator=generator)
                )
        found.append(prediction_drift(base, cache))
    assert 1e-7 < found[0]["mean"] < found[1]["mean"] < 10 and all(
        0 < b < 10 for b in found[1]["bins"]
    )
    assert prediction_drift(pocket, cache)["mean"] == 0, "the untouched base stays where it is"


def test_rounding_frozen_weights_to_bf16_hardly_moves_the_predictions(pocket, pictures):
    base = copy.copy(pocket)
    base.fast = "bf16"  # as on a processor where it is fast
    cache = prediction_cache(base, ["a robot"] * 3, pictures, draws=1)
    rounded, _ = tuned(base, "lora", "auto")
    assert (
        rounded.denoiser.dtype == torch.bfloat16 and prediction_drift(rounded, cache)["mean"] < 1e-3
    )


def test_pictures_of_its_world_cost_the_base_less_than_noise_does(pocket, pictures):
    fixed, senseless = (
        fixed_noise(pocket, p, ["a robot"] * len(p))
        for p in (pictures, [Image.effect_noise((64, 64), 90)] * 3)
    )
    loss = fixed_noise_loss(pocket, fixed)
    assert (
        loss["mean"] == pytest.approx(sum(loss["bins"]) / 4)
        and fixed_noise_loss(pocket, fixed) == loss
    )
    assert 0 < loss["mean"] < fixed_noise_loss(pocket, senseless)["mean"]


def test_a_cache_is_of_the_untouched_base_and_of_no_other(pocket, cache):
    for method in ("lora", "dreambooth"):
        with pytest.raises(BadInput, match="load it afresh"):
            prediction_cache(tuned(pocket, method)[0], ["a robot"], steps=2)
    stranger = copy.copy(pocket)
    stranger.name = "another"
    with pytest.raises(BadInput, match="'pocket'.*'another'"):
        prediction_drift(stranger, cache)


def test_measuring_leaves_modes_gradients_and_chance_as_they_were(pocket):
    base, weights = tuned(pocket, "lora")
    base.denoiser.train()
    base.denoiser.mid_block.eval()
    modes, state = [m.training for m in base.denoiser.modules()], torch.get_rng_state()
    with pytest.raises(KeyError), evaluation_mode(base):
        assert (
            not any(m.training for m in base.denoiser.modules())
            and torch.is_inference_mode_enabled()
        )
        torch.rand(5)
        raise KeyError
    assert modes == [m.training for m in base.denoiser.modules()] and torch.equal(
        state, torch.get_rng_state()
    )
    assert all(p.requires_grad and p.grad is None for p in weights) and torch.is_grad_enabled()
