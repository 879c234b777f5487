"""A base whose weights were changed after a run was trained on them: the run is named, and never
drawn, compared or returned as if it were of today's.
"""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lib.evaluation.comparison import compare
from lib.files.errors import BadInput
from lib.step.run_weights import load_run
from lib.training.loop import train


@pytest.fixture
def changed(make, tiny_folder, tmp_path):
    """A run, its settings, and a function that changes its base's weights."""
    base = tmp_path / "base"
    shutil.copytree(tiny_folder, base)
    settings = make("lora", base=str(base), steps=2)
    run = train(settings)
    weights = next((base / "unet").glob("*.safetensors"))

    def change():
        tensors = load_file(weights)
        save_file({name: t * 1.01 for name, t in tensors.items()}, weights, {"format": "pt"})

    return Path(run), settings, change


def test_a_run_is_not_drawn_or_compared_on_other_weights_than_it_was_trained_on(changed):
    run, _, change = changed
    assert load_run(run)
    change()
    for use in (load_run, lambda run: compare([run], "pocket")):
        with pytest.raises(BadInput, match="trained on other weights of .* train the run again"):
            use(run)
    # An older run, which does not say what it was trained on, can't be told.
    metrics = json.loads((run / "metrics.json").read_text("utf-8"))
    del metrics["base_fingerprint"]
    (run / "metrics.json").write_text(json.dumps(metrics), "utf-8")
    assert load_run(run)


def test_a_finished_run_of_other_weights_is_set_aside_and_trained_again(changed, capsys):
    run, settings, change = changed
    before = (run / "adapter.safetensors").read_bytes()
    train(settings)
    assert "has been trained already" in capsys.readouterr().out
    change()
    assert train(settings) == run and (run / "adapter.safetensors").read_bytes() != before
    [aside] = [p for p in run.parent.glob(f"{run.name}*") if p != run and p.is_dir()]
    assert (aside / "adapter.safetensors").read_bytes() == before
