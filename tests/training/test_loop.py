import hashlib
import json
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from safetensors.torch import load_file

from lib.config.settings import Settings
from lib.dataset.captions import prompts
from lib.files.errors import BadInput
from lib.models.base import Base, load_base
from lib.step.loss import diffusion_loss
from lib.step.methods import trainable
from lib.step.run_weights import load_run, weight_bytes
from lib.training import loop
from lib.training.batches import Cached, batches, gather
from lib.training.loop import train
from lib.training.samples import samples_due


def fingerprint(module):
    total = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if "lora_" not in name:
            total.update(
                name.replace("base_layer.", "").encode()
                + tensor.float().contiguous().numpy().tobytes()
            )
    return total.hexdigest()


def predict(base):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, base.denoiser.config.in_channels, 16, 16, generator=generator)
    with torch.no_grad():
        return base.denoiser(
            x.to(base.denoiser.dtype),
            torch.tensor([10, 700]),
            **base.conditions(["a cat", "a robot"]),
        ).sample.float()


def test_a_fresh_adapter_changes_nothing_and_only_it_trains(tiny_folder, make):
    base = load_base(tiny_folder)
    before, weights = predict(base), fingerprint(base.denoiser)
    chosen = trainable(base, make(precision="fp32"))
    assert torch.equal(predict(base), before) and fingerprint(base.denoiser) == weights
    names = [n for n, p in base.denoiser.named_parameters() if p.requires_grad]
    assert len(names) == len(chosen) and all("lora_" in n for n in names)


def test_dreambooth_trains_every_weight_of_the_unet_and_nothing_else(tiny_folder, make):
    base = load_base(tiny_folder)
    chosen = trainable(base, make("dreambooth"))
    assert len(chosen) == len(list(base.denoiser.parameters()))
    others = {id(p) for part in (base.pipe.vae, base.pipe.text_encoder) for p in part.parameters()}
    assert not others & {id(p) for p in chosen}


def test_the_base_stays_bit_identical_under_lora_and_moves_under_dreambooth(tiny_folder, make):
    for method, same in (("lora", True), ("dreambooth", False)):
        base = load_base(tiny_folder)
        before = fingerprint(base.denoiser)
        train(make(method, precision="fp32"), base)
        assert (fingerprint(base.denoiser) == before) is same


@pytest.mark.parametrize(
    "method, targets", [("lora", "attention"), ("lora", "all"), ("dreambooth", "attention")]
)
def test_saved_weights_draw_what_the_trained_model_draws(tiny_folder, make, method, targets):
    base = load_base(tiny_folder)
    run = train(
        make(method, targets=targets, alpha=3.0, rank=2, precision="fp32", learning_rate=1e-2), base
    )
    untouched = predict(load_base(tiny_folder))
    live, loaded = predict(base), predict(load_run(run, load_base(tiny_folder)))
    effect = (live - untouched).abs().max()
    assert effect > 1e-2, "six steps at this rate must show"
    assert (live - loaded).abs().max() < 0.05 * effect, (
        "only fp16 rounding may separate the file from the model (alpha included)"
    )
    assert weight_bytes(run) == sum(f.stat().st_size for f in run.rglob("*.safetensors"))


def test_pictures_are_encoded_before_the_denoiser_is_needed(make, monkeypatch):
    """On a card it comes there only then; `Base.denoiser` brings it."""
    asked, seen = [], []
    monkeypatch.setattr(
        Base, "denoiser", property(lambda base: (asked.append(1), base.stored_denoiser)[1])
    )
    monkeypatch.setattr(loop, "run_steps", lambda *_: seen.append(len(asked)))
    train(make())
    assert seen == [0]


def test_both_methods_see_the_same_batches(make):
    one, two = (
        batches(make(m), [[(12, 16, 16)] * 6, [(12, 16, 16)] * 4]) for m in ("lora", "dreambooth")
    )
    for _ in range(3):
        for a, b in zip(next(one), next(two)):
            assert (
                all(torch.equal(x, y) for x, y in zip(a, b))
                if isinstance(a, list)
                else torch.equal(a, b)
            )


def test_batches_show_every_picture_before_any_again_and_spread_the_timesteps(make):
    stream = batches(make(batch_size=3), [[(1, 1, 1)] * 6, [(1, 1, 1)] * 4])
    draws = [next(stream) for _ in range(2)]
    assert sorted(torch.cat([d[0][0] for d in draws]).tolist()) == list(range(6))
    when = draws[0][3]
    assert sorted((when[:3] * 3).int().tolist()) == [0, 1, 2] and when.max() < 1
    other = next(batches(make(batch_size=3, seed=1), [[(1, 1, 1)] * 6, [(1, 1, 1)] * 4]))
    assert not torch.equal(other[1], draws[0][1]), "another seed, other noise"


def test_the_largest_random_number_is_still_a_timestep(make, monkeypatch):
    """With it the last stratum's sum rounds up to 1, as one training in some thousands meets."""
    monkeypatch.setattr(torch, "rand", lambda *size, generator=None: torch.full(size, 1 - 2**-24))
    batch, base = (
        next(batches(make(batch_size=3), [[(1, 1, 1)] * 3])),
        SimpleNamespace(device=torch.device("cpu")),
    )
    cached = Cached(
        [torch.zeros(1, 1, 1, 1)] * 3,
        [torch.ones(1, 1, 1, 1)] * 3,
        {"words": torch.zeros(1, 2)},
        torch.zeros(3, dtype=torch.long),
    )
    assert batch.moments.max() == 1
    assert gather(base, [cached], batch, 1000).timesteps.max() == 999


class Oracle(torch.nn.Module):
    """A model whose prediction misses the target by 1 everywhere."""

    def __init__(self, target):
        super().__init__()
        self.target = target

    def forward(self, noisy, timesteps, conditions):
        return self.target + 1


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_loss_predicts_what_the_scheduler_says_and_weighs_by_min_snr(kind):
    scheduler = DDPMScheduler(prediction_type=kind)
    x, noise, t = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.tensor([5, 400, 950])
    target = noise if kind == "epsilon" else scheduler.get_velocity(x, noise, t)
    plain = diffusion_loss(Oracle(target), scheduler, x, noise, t, None)
    assert torch.allclose(plain, torch.ones(3), atol=1e-5)
    alpha = scheduler.alphas_cumprod[t]
    snr = alpha / (1 - alpha)
    wanted = torch.minimum(snr, torch.tensor(5.0)) / (snr if kind == "epsilon" else snr + 1)
    assert torch.allclose(
        diffusion_loss(Oracle(target), scheduler, x, noise, t, None, 5.0), wanted, rtol=1e-4
    )


def test_a_run_leaves_what_the_rest_of_the_project_reads(make):
    run = train(make(sample_every=3, sample_steps=2))
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == list(range(1, 7))
    assert all(np.isfinite([r["loss"], r["instance_loss"], r["prior_loss"]]).all() for r in rows)
    assert rows[0]["loss"] == pytest.approx(
        rows[0]["instance_loss"] + 0.3 * rows[0]["prior_loss"]
    )  # the preset's prior_weight
    found = json.loads((run / "metrics.json").read_text())
    assert found["steps"] == 6 and found["file_bytes"] == weight_bytes(run)
    assert found["peak_bytes"] == sum(found["peak_by_category"].values()) > found["file_bytes"]
    assert found["seconds_per_step"] > 0 and found["train_seconds"] >= found["seconds_per_step"]
    assert set(found["units"]) >= {"seconds_per_step", "peak_bytes", "file_bytes"} and found[
        "versions"
    ]["torch"] == version("torch")
    assert len(list((run / "samples").glob("*.png"))) == 8
    assert not list(run.rglob("*.part")) and not list(run.glob(".weights*"))


def test_the_same_settings_train_the_same_weights(make, tmp_path):
    one, two, other = (
        load_file(train(make(output=str(tmp_path / name), seed=seed)) / "adapter.safetensors")
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert all(torch.equal(one[k], two[k]) for k in one) and one.keys() == two.keys()
    assert any(not torch.equal(one[k], other[k]) for k in one)


def test_a_watcher_can_stop_with_a_usable_result(make, tiny_folder):
    seen = []

    def watch(state):
        seen.append(state.step)
        if state.step == 2:
            state.stop()

    run = train(make(steps=50, sample_every=50, sample_steps=2), watchers=[watch])
    assert seen == [1, 2] and json.loads((run / "metrics.json").read_text())["stopped_early"]
    assert sorted(p.name for p in (run / "samples").iterdir()) == [
        f"step_0002_{k}.png" for k in range(4)
    ], "something to look at"
    load_run(run, load_base(tiny_folder))


def test_the_first_samples_come_early():
    def due(every):
        return [step for step in range(1, 201) if samples_due(step, every, 200)]

    assert due(75) == [10, 25, 50, 75, 150, 200]
    assert due(50) == [10, 25, 50, 100, 150, 200]
    assert due(20) == [10, *range(20, 201, 20)], "later than the first fixed one, none is extra"
    assert due(0) == []


def test_training_on_two_pictures_lowers_the_loss(make):
    run = train(make("dreambooth", steps=60, learning_rate=3e-3, precision="fp32"))
    losses = [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


def test_a_loss_that_is_not_finite_stops_the_run_and_names_a_cause(make, monkeypatch):
    # A rate that fp32 cannot hold the next loss at: one that diverges by itself, as 1.0 may, needs
    # a number of steps that differs from base to base and from processor to processor.
    monkeypatch.setattr(Settings, "rate", lambda *_: 1e30)
    with pytest.raises(RuntimeError, match=r"at step 2, .*learning_rate \(0\.001\).* lower it"):
        train(make("dreambooth", learning_rate=1e-3, steps=4, precision="fp32"))


def test_class_images_are_asked_for_before_anything_slow(make, dataset, tmp_path):
    from conftest import ROOT

    from lib.dataset.preparation import prepare

    bare = prepare(ROOT / "data" / "subjects" / "character", tmp_path / "bare")
    with pytest.raises(BadInput, match="class images"):
        train(make(data=str(bare.root)))
    assert train(make(data=str(bare.root), prior_weight=0.0, steps=2)).is_dir()


def test_a_folder_that_is_no_run_is_never_overwritten(make, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(BadInput, match="no run folder"):
        train(make(output=str(tmp_path / "mine")))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_a_run_with_missing_or_broken_weights_is_refused_in_one_sentence(make, tiny_folder):
    run = train(make(steps=2))
    (run / "adapter.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(BadInput, match="cannot be loaded"):
        load_run(run, load_base(tiny_folder))
    (run / "adapter.safetensors").unlink()
    with pytest.raises(BadInput, match="adapter.safetensors"):
        load_run(run, load_base(tiny_folder))


def test_prompts_of_the_subject_hold_its_identifier(dataset):
    assert dataset.subject.identifier in prompts(
        dataset.subject
    ) and dataset.subject.identifier not in prompts(dataset.subject, with_identifier=False)
