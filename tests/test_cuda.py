"""Training on a card, where there is one: the tests' own process does not see it, so this runs in another."""

import json
import os
import subprocess
import sys

import pytest

from lib.ladder import RUNGS
from tests.conftest import ROOT
from tests.tiny import make_tiny

CARD = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES" or value}


def on_card(program, *arguments):
    """Run a Python program in a process that sees the card. Returns what it printed."""
    done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, env=CARD, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def card():
    if on_card("import torch; print(torch.cuda.is_available())").split() != ["True"]:
        pytest.skip("there is no CUDA device")


# Every rung of the ladder from the plain recipe down, with samples; then a training that is stopped, continued, and drawn with.
PROGRAM = """
import json, sys
import torch
from lib import cards, checkpoint
from lib.base import load_base
from lib.ladder import recipes
from lib.methods import load_run
from lib.settings import Settings
from lib.train import train

method, base, data, output = sys.argv[1:]
checkpoint.SHARE = float("inf")
plain = Settings.preset(method, base, data=data, output=f"{output}/0", steps=4, batch_size=1, sample_every=2, sample_steps=1, save_every=2)
found = []
for k, (recipe, words) in enumerate(recipes(plain, torch.device("cuda"))):
    recipe = recipe.replace(output=f"{output}/{k}")
    run = train(recipe)
    metrics = json.loads((run / "metrics.json").read_text())
    asked = {name: getattr(recipe, name) for name in metrics["recipe"]}
    found.append({"same": metrics["recipe"] == asked, "device": metrics["device"], "loss": metrics["final_loss"],
                  "peak": metrics["peak_bytes"], "samples": len(list((run / "samples").glob("*.png")))})
cut = plain.replace(output=f"{output}/cut")
train(cut, watchers=[lambda state: state.stop() if state.step == 2 else None])
run = train(cut)
base = load_base(base)
assert base.device.type == "cuda" and base.pipe.unet.device.type == "cpu"
drawn = load_run(run, base).generate(["a zwx robot"], [0], 2)
assert base.pipe.unet.device.type == "cuda"
print(json.dumps({"runs": found, "steps": json.loads((run / "metrics.json").read_text())["steps"], "drawn": drawn[0].size}))
"""


@pytest.mark.parametrize("method, rungs", [(method, len(RUNGS[method]) + 1) for method in ("lora", "dreambooth")])
def test_each_recipe_trains_draws_and_resumes_on_a_card(card, dataset, tmp_path, method, rungs):
    said = on_card(PROGRAM, method, make_tiny("sd1", tmp_path / "tiny"), str(dataset.root), str(tmp_path))
    found = json.loads(said.splitlines()[-1])
    assert len(found["runs"]) == rungs and found["steps"] == 4 and found["drawn"] == [64, 64]
    assert all(run["same"] and "CPU" not in run["device"] and run["samples"] == 8 and 0 < run["loss"] < 10 for run in found["runs"]), found
