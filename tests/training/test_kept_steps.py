"""Weights of steps along a training, kept to be chosen from."""

import json

import pytest
import torch
from safetensors.torch import load_file
from short_runs import stop_at

from lib.dataset.imagefolder import load_dataset
from lib.evaluation.curve import Curve
from lib.evaluation.fidelity import EvaluationPlan
from lib.evaluation.judge import load_judge
from lib.files.errors import BadInput
from lib.models.base import load_base
from lib.step.run_weights import load_run, save_weights
from lib.training.kept_steps import at_step, kept_steps
from lib.training.loop import train

PLAN = EvaluationPlan([("a zwx robot", "a robot")], (7,), steps=1, class_pictures=0)


def measured(settings, every=2, watchers=()):
    """The run of `settings`, measured along the way, and its points."""
    base = load_base(settings.base)
    curve = Curve(base, load_dataset(settings.data), load_judge(), settings.output, every, PLAN)
    return train(settings, base, watchers=[curve, *watchers]), curve.points


def test_every_measured_step_of_a_lora_is_a_run_of_its_own(make):
    run, _ = measured(make("lora", keep="all"))
    assert list(kept_steps(run)) == [2, 4] and at_step(run, 6) == run
    early = train(make("lora", output=f"{run}_early", cooldown=0.0))
    two = load_file(at_step(run, 2) / "adapter.safetensors")
    assert all(t.isfinite().all() for t in two.values())
    assert any(
        not torch.equal(tensor, other)
        for tensor, other in zip(two.values(), load_file(run / "adapter.safetensors").values())
    )
    metrics = json.loads((at_step(run, 2) / "metrics.json").read_text("utf-8"))
    assert metrics["steps"] == 2 and metrics["base_fingerprint"]
    assert load_run(at_step(run, 4)).generate(["a zwx robot"], [0], steps=1)
    assert not kept_steps(early)


def test_the_kept_weights_are_those_of_a_training_stopped_there(make, tmp_path):
    kept, _ = measured(make("lora", keep="all"))
    stopped, _ = measured(
        make("lora", keep="all", output=str(tmp_path / "stopped")), watchers=[stop_at(2)]
    )
    one, other = (
        load_file(folder / "adapter.safetensors") for folder in (at_step(kept, 2), stopped)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_best_step_of_dreambooth_alone_is_kept(make):
    run, points = measured(make("dreambooth", keep="best"))
    top = max(points, key=lambda p: p["dino"])
    assert list(kept_steps(run)) == ([top["step"]] if top["step"] else [])
    assert all((folder / "unet").is_dir() for folder in kept_steps(run).values())


def test_keeping_steps_changes_nothing_of_what_is_trained(make, tmp_path):
    settings = make("dreambooth", keep="best")
    base = load_base(settings.base)
    before = {name: (w.data_ptr(), w.clone()) for name, w in base.denoiser.named_parameters()}
    save_weights(base, settings, tmp_path / "saved")
    for name, w in base.denoiser.named_parameters():
        at, exact = before[name]
        assert w.data_ptr() == at and torch.equal(w, exact), name
    saved = load_file(tmp_path / "saved" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(tensor, before[name][1].half()) for name, tensor in saved.items())
    kept, _ = measured(settings)
    last, _ = measured(make("dreambooth", output=str(tmp_path / "last")))
    one, other = (
        load_file(run / "unet" / "diffusion_pytorch_model.safetensors") for run in (kept, last)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_finished_run_that_kept_less_is_no_run_of_these_settings(make, capsys):
    run, _ = measured(make("lora"))
    assert not kept_steps(run)
    again, _ = measured(make("lora", keep="all"))
    assert list(kept_steps(again)) == [2, 4] and "is kept as" in capsys.readouterr().out


def test_what_cannot_be_kept_or_was_not_is_said(make, tmp_path):
    with pytest.raises(BadInput, match="'keep' is 'all', but each step of dreambooth is a whole"):
        make("dreambooth", keep="all")
    run, _ = measured(make("lora", keep="all"))
    with pytest.raises(BadInput, match=r"keeps no weights of step 5, only of 2, 4, 6: choose one"):
        at_step(run, 5)
