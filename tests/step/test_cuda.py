"""Training on a card, where there is one: the tests' own process does not see it, so this runs in
another.
"""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from tiny import make_tiny

from lib.memory.ladder import RUNGS

CARD = {
    name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES" or value
}


def on_card(program, *arguments):
    """Run a Python program in a process that sees the card. Returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        env=CARD,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def card():
    if on_card("import torch; print(torch.cuda.is_available())").split() != ["True"]:
        pytest.skip("there is no CUDA device")


# Every rung of the ladder from the plain recipe down, with samples; then a training that is
# stopped, continued, and drawn with.
PROGRAM = """
import json, sys
import torch
from lib import cards, checkpoint
from lib.models.base import load_base
from lib.ladder import recipes
from lib.methods import load_run
from lib.settings import Settings
from lib.train import train

method, base, data, output = sys.argv[1:]
checkpoint.SHARE = float("inf")
plain = preset(method, base, data=data, output=f"{output}/0", steps=4, batch_size=1, sample_every=2, sample_steps=1, save_every=2)
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


@pytest.mark.parametrize(
    "method, rungs", [(method, len(RUNGS[method]) + 1) for method in ("lora", "dreambooth")]
)
def test_each_recipe_trains_draws_and_resumes_on_a_card(card, dataset, tmp_path, method, rungs):
    said = on_card(
        PROGRAM, method, make_tiny("sd1", tmp_path / "tiny"), str(dataset.root), str(tmp_path)
    )
    found = json.loads(said.splitlines()[-1])
    assert len(found["runs"]) == rungs and found["steps"] == 4 and found["drawn"] == [64, 64]
    assert all(
        run["same"] and "CPU" not in run["device"] and run["samples"] == 8 and 0 < run["loss"] < 10
        for run in found["runs"]
    ), found


# The same training recorded and not, by each kind of recipe.
RECORDED = """
import json, sys
from lib import on_card
from lib.models.base import load_base
from lib.on_card import Recorded
from lib.settings import Settings
from lib.train import train

base, data, output = sys.argv[1:]
made, record, found = [], Recorded._record, {}
Recorded._record = lambda self, *given: made.append(record(self, *given)) or made[-1]
recipes = {"plain": {}, "checkpointed": {"checkpointing": "all"}, "largest": {"checkpointing": "largest"}, "alone": {"prior_weight": 0.0},
           "8bit": {"optimizer": "adamw8bit"}}
own = {"lora": {"teacher": {"prior": "teacher"}, "dora": {"dora": True}, "nf4": {"quantize": "nf4"}, "int8": {"quantize": "int8"}},
       "dreambooth": {"bf16": {"weights": "bf16"}, "fused": {"fused_backward": True},
                      "foot": {"weights": "bf16", "fused_backward": True, "optimizer": "adamw8bit", "checkpointing": "all"}}}
for method in own:
    for name, changes in (recipes | own[method]).items():
        losses = []
        for eager in (2, 1000):
            on_card.EAGER = eager
            before = len(made)
            settings = preset(method, base, data=data, output=f"{output}/{method}_{name}_{eager}", steps=12, batch_size=2,
                                       sample_every=0, learning_rate=1e-3, warmup=4, **changes)
            rows = [json.loads(line) for line in open(train(settings) / "log.jsonl")]
            losses.append({"recorded": len(made) - before, "rows": [[row["loss"], row["gradient_norm"]] for row in rows]})
        found[f"{method} {name}"] = losses
print(json.dumps(found))
"""


def test_a_recorded_step_learns_what_an_eager_one_does(card, dataset, tmp_path):
    said = on_card(RECORDED, make_tiny("sd1", tmp_path / "tiny"), str(dataset.root), str(tmp_path))
    found = json.loads(said.splitlines()[-1])
    assert len(found) == 17
    assert [name for name, (one, _) in found.items() if one["recorded"] != 1] == [], said
    for name, (recorded, eager) in found.items():
        assert not eager["recorded"] and len({loss for loss, _ in recorded["rows"]}) == 12, (
            f"{name}: one step was replayed as it was"
        )
        for (loss, norm), (other, another) in zip(recorded["rows"], eager["rows"]):
            assert (
                abs(loss - other) < 0.05 * other and abs(norm - another) < 0.2 * another + 1e-3
            ), (name, recorded, eager)


FAILS = """
import json, torch
from lib.on_card import Recorded

capturing, forgotten, device = torch.cuda.is_current_stream_capturing, [], torch.device("cuda")

def waits(x):
    y = x * 2
    return y + y.sum().item() * 0 if capturing() else y

def is_short(x):
    y = x * 2
    if capturing():
        raise torch.OutOfMemoryError("CUDA out of memory")
    return y

work = Recorded(waits, [], lambda: forgotten.append(True))
seen = [work(torch.full((8,), float(k), device=device)).sum().item() for k in range(6)]
work = Recorded(is_short, [], lambda: forgotten.append(False))
seen += [work(torch.full((8,), float(k), device=device)).sum().item() for k in range(4)]
work = Recorded(lambda x: x * 3, [], None)
after = [work(torch.full((8,), float(k), device=device)).sum().item() for k in range(6)]
on_default = torch.cuda.current_stream() == torch.cuda.default_stream()
print(json.dumps([seen, forgotten, len(work.graphs), after, on_default]))
"""


def test_what_cannot_be_recorded_goes_on_kernel_by_kernel(card):
    seen, forgotten, recorded, after, on_default = json.loads(on_card(FAILS).splitlines()[-1])
    assert seen == [0.0, 16.0, 32.0, 48.0, 64.0, 80.0, 0.0, 16.0, 32.0, 48.0] and forgotten == [
        True,
        False,
    ]
    assert recorded == 1 and after == [0.0, 24.0, 48.0, 72.0, 96.0, 120.0] and on_default, (
        "the next one is recorded as if nothing had been"
    )
