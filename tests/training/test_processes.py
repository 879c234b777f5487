"""One training in two processes, on the CPU by gloo: the numbers of one process, and one end."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT
from short_runs import losses, same, weights

from lib.config.settings import Settings
from lib.files.errors import BadInput
from lib.training import processes
from lib.training.loop import train
from lib.training.processes import Processes, check_launch

# Trains by each file of settings it is given; a word before a file says what happens meanwhile.
WORKER = """
import os, signal, sys
from lib.__main__ import main
from lib.config import Settings
from lib.step import Step
from lib.training.loop import train
from lib.training.run_log import Pace
import torch

torch.set_num_threads(1 + int(os.environ["RANK"]))  # a machine that seemed less busy to the second

def look(pace, exact):
    print("threads", torch.get_num_threads(), "fixed" if exact else "free", file=sys.stderr)

Pace.look = look
rank, take, add = int(os.environ["RANK"]), Step.__call__, Step.add_gradients

def dies(step, *inputs):
    if rank == 1 and step.taken == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return take(step, *inputs)

def runs_short(step, *inputs):
    if rank == 1 and step.taken == 3 and step.settings.checkpointing == "none":
        raise RuntimeError("CUDA out of memory")
    return add(step, *inputs)

def stop(state):
    if state.step == 3:
        state.stop()

for word in sys.argv[1:]:
    what, path = word.split(":", 1)
    Step.__call__ = dies if what == "dies" else take
    Step.add_gradients = runs_short if what == "short" else add
    if what == "dies":
        sys.exit(main(["train", path]))
    train(Settings.load(path), watchers=[stop] if what == "stop" else [])
"""


def launched(*words):
    """What two processes ended with: exit code, standard output and standard error of each."""
    words = [f"{what}:{path}" for what, path in words]
    # The processes meet at their launcher's, which remembers what they left there before.
    launcher = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = os.environ | {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(launcher.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    running = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, *words],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for rank in range(2)
    ]
    try:
        told = [one.communicate(timeout=600) for one in running]
    finally:
        for one in running:
            one.kill()
    return [(one.returncode, *said) for one, said in zip(running, told)]


def test_two_processes_give_the_numbers_of_one(make, tmp_path):
    cases = {
        "lora": ("lora", {"prior": "teacher"}),
        "dreambooth": ("dreambooth", {"batch_size": 3, "accumulate": 2}),
        "fp16": ("lora", {"precision": "fp16", "save_every": 0}),
        "cut": ("lora", {}),
        "whole": ("lora", {}),
        "short": ("lora", {}),
    }
    made, words = {}, []
    for name, (method, changes) in cases.items():
        few = {"sample_every": 3, "sample_steps": 1} if name == "whole" else {}
        # fp32: in bf16, which "auto" takes where it is fast, the order of sums shows.
        common = {"batch_size": 4, "save_every": 2, "precision": "fp32"}
        settings = make(method, **common | few | changes)
        made[name] = settings.replace(output=str(tmp_path / f"two_{name}"))
        made[name].save(tmp_path / f"{name}.json")
        words.append(("stop" if name == "cut" else name, tmp_path / f"{name}.json"))
    words.append(("cut", tmp_path / "cut.json"))
    for code, _, error in launched(*words):
        assert code == 0, error[-3000:]
        looks = {line for line in error.splitlines() if line.startswith("threads")}
        assert looks == {"threads 1 fixed"}, "threads are the same in all, and no one changes them"
    run = {name: tmp_path / f"two_{name}" for name in cases}
    for name, settings in made.items():
        measured = json.loads((run[name] / "metrics.json").read_text())
        assert measured["processes"] == 2 and measured["steps"] == settings.steps
        if name in ("cut", "short"):
            continue
        one = train(settings.replace(output=str(tmp_path / f"one_{name}")))
        close = 2e-2 if name == "fp16" else 1e-5
        for (_, *ours), (_, *theirs) in zip(losses(run[name]), losses(one), strict=True):
            assert ours == pytest.approx(theirs, rel=close, abs=1e-8), name
        if name == "fp16":
            continue
        # Together: where a gradient is rounding alone, AdamW makes a step of whole size of it.
        ours, theirs = (
            torch.cat([t.flatten().float() for t in found.values()])
            for found in (weights(run[name]), weights(one))
        )
        assert (ours - theirs).norm() < 2e-3 * theirs.norm(), name
    assert same(run["cut"], run["whole"]), "stopped in both, it goes on in both, bit for bit"
    assert len(list((run["whole"] / "samples").glob("*.png"))) == 8, "one process draws"
    measured = json.loads((run["short"] / "metrics.json").read_text())
    assert measured["recipe"]["checkpointing"] == "largest", "both went a rung down"


def test_after_an_error_the_next_training_of_the_same_processes_is_refused(make, monkeypatch):
    for name, value in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 2), ("MASTER_PORT", 1)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr(processes.Connection, "parted", True)
    with pytest.raises(BadInput, match="are not connected any more: launch them again"):
        with processes.joined(make("lora", batch_size=4)):
            pass


def test_a_process_that_dies_ends_all_with_one_sentence_and_no_other_number_goes_on(make, tmp_path):
    settings = make("lora", batch_size=4, save_every=2)
    settings.save(tmp_path / "dies.json")
    (code, _, error), (killed, *_) = launched(("dies", tmp_path / "dies.json"))
    assert killed == -signal.SIGKILL and code == 1
    (sentence,) = [line for line in error.splitlines() if line.startswith("Another process")]
    assert sentence == processes.ENDED and "Traceback" not in error
    with pytest.raises(BadInput, match="at step 2 in 2 processes, and 1 add up in another order"):
        train(settings)


@pytest.mark.parametrize(
    "method, changes, told, words",
    [
        ("lora", {"batch_size": 1}, {}, ["2 processes", "batch of 1 pictures", "raise batch_size"]),
        ("dreambooth", {"fused_backward": True}, {}, ["fused_backward", "several processes"]),
        ("lora", {"dropout": 0.1}, {}, ["dropout", "0.1"]),
        ("lora", {}, {"ACCELERATE_USE_DEEPSPEED": "true"}, ["DeepSpeed", "--multi_gpu"]),
        ("lora", {}, {"ACCELERATE_USE_FSDP": "true"}, ["FSDP", "--multi_gpu"]),
        (
            "lora",
            {},
            {"ACCELERATE_MIXED_PRECISION": "bf16"},
            ["says bf16", "'precision' says auto"],
        ),
        (
            "lora",
            {},
            {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
            ["says 4", "'accumulate' says 1"],
        ),
    ],
)
def test_what_several_processes_cannot_do_is_refused_at_once(make, method, changes, told, words):
    with pytest.raises(BadInput) as refused:
        check_launch(make(method, **changes), 2, told)
    text = str(refused.value)
    assert all(word in text for word in words) and "\n" not in text
    check_launch(make(method), 2, {"ACCELERATE_MIXED_PRECISION": "no"})


def test_more_processes_than_cards_are_refused(make, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(BadInput, match="2 processes .* with 1 cards"):
        check_launch(make(), 2, {"LOCAL_WORLD_SIZE": "2"})
    check_launch(make(), 2, {"LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"})


@pytest.mark.parametrize("size, count", [(4, 2), (3, 2), (5, 3), (1, 1)])
def test_each_picture_is_one_processs_and_the_forecast_is_of_the_largest_part(make, size, count):
    rows = [Processes(rank, count).rows(size) for rank in range(count)]
    assert [k for start, stop in rows for k in range(start, stop)] == list(range(size))
    settings: Settings = make(batch_size=size)
    assert Processes(0, count).portion(settings).batch_size == max(b - a for a, b in rows)
