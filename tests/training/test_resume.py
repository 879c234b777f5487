"""A training may be cut short at any point: it goes on bit for bit, is never lost, and never done
twice.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from PIL import Image
from short_runs import losses, same, stop_at, weights

from lib.dataset.imagefolder import load_dataset
from lib.files.errors import BadInput
from lib.files.json_file import write_json
from lib.memory import cards
from lib.models.base import Base, evaluation_mode, load_base
from lib.models.devices import free_memory
from lib.step.run_weights import as_saved, load_run
from lib.step.training_step import Step
from lib.training import checkpoints, loop, recipe_choice
from lib.training.run_folder import lock_run_folder
from lib.training.run_log import NotFinite

LOW = {"optimizer": "adamw8bit", "weights": "bf16", "checkpointing": "all"}


@pytest.fixture(autouse=True)
def every_checkpoint(monkeypatch):
    """Steps of milliseconds leave little time for checkpoints; here each that `save_every` asks for
    is written.
    """
    monkeypatch.setattr(checkpoints, "WRITING_SHARE", float("inf"))


def in_child(function):
    """Run in a process of its own, a copy of this one. Returns its exit code, or minus the signal
    that ended it.
    """
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # the threads of this process have no copies
            function()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    "method, changes",
    [
        ("lora", {}),
        ("lora", LOW | {"dropout": 0.2}),
        ("lora", {"text_encoder_rate": 1e-4, "prior": "teacher"}),
        ("lora", {"quantize": "nf4", "optimizer": "adamw8bit"}),
        ("lora", {"quantize": "int8"}),
        ("lora", {"dora": True, "targets": "all"}),
        ("dreambooth", {}),
        ("dreambooth", {"optimizer": "adamw8bit"}),
        ("dreambooth", {"weights": "bf16"}),
        ("dreambooth", LOW | {"fused_backward": True}),
        ("dreambooth", {"fused_backward": True, "checkpointing": "all"}),
    ],
)
def test_three_steps_and_three_are_six_bit_for_bit(make, tmp_path, method, changes):
    whole = loop.train(make(method, output=str(tmp_path / "whole"), **changes))
    settings = make(method, output=str(tmp_path / "cut"), **changes)
    cut = loop.train(settings, watchers=[stop_at(3)])
    assert json.loads((cut / "metrics.json").read_text())["stopped_early"] and len(losses(cut)) == 3
    assert loop.train(settings) == cut and same(whole, cut)
    assert not (cut / "checkpoint").exists(), "a finished run needs none"
    done = json.loads((cut / "metrics.json").read_text())
    assert not done["stopped_early"] and done["peak_bytes"] == sum(
        done["peak_by_category"].values()
    )


@pytest.mark.parametrize(
    "method, moment, recipe",
    [
        ("lora", "writing", {}),
        ("dreambooth", "between steps", {}),
        ("lora", "between steps", LOW),
        ("dreambooth", "writing", LOW),
    ],
)
def test_a_killed_process_loses_nothing(make, tmp_path, method, moment, recipe):
    whole = make(method, output=str(tmp_path / "whole"), **recipe)
    settings = make(method, save_every=2, sample_every=2, sample_steps=1, **recipe)
    assert in_child(lambda: loop.train(whole)) == 0

    def cut_short():
        if (
            moment == "writing"
        ):  # of the second checkpoint, when all of it is there under its temporary name
            replace = os.replace
            os.replace = lambda a, b: kill() if str(b).endswith("step_000004") else replace(a, b)
        loop.train(settings, watchers=[lambda state: kill() if state.step == 5 else None])

    assert in_child(cut_short) == -signal.SIGKILL
    run = tmp_path / method
    assert {p.name for p in (run / "checkpoint").glob("step_*")} == (
        {"step_000002"} if moment == "writing" else {"step_000002", "step_000004"}
    )
    assert in_child(lambda: loop.train(settings)) == 0 and same(tmp_path / "whole", run)
    assert len(list((run / "samples").glob("*.png"))) == 12 and not (run / "checkpoint").exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "dreambooth"])
def test_the_command_line_goes_on_after_being_killed_and_interrupted(make, tmp_path, method):
    settings = make(method, steps=60, save_every=5, output=str(tmp_path / "run"))
    settings.save(tmp_path / "settings.json")
    command = [
        sys.executable,
        "-c",
        (
            "import runpy, sys; from lib.training import checkpoints;"
            " checkpoints.WRITING_SHARE = float('inf');"
            f" sys.argv = ['lib', 'train', {str(tmp_path / 'settings.json')!r}];"
            " runpy.run_module('lib', run_name='__main__')"
        ),
    ]
    ended = []
    for send in (signal.SIGKILL, signal.SIGINT, None):
        process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE)
        seen = len(list((tmp_path / "run" / "checkpoint").glob("step_*")))
        newest = max((p.name for p in (tmp_path / "run" / "checkpoint").glob("step_*")), default="")
        while send and process.poll() is None:
            now = max(
                (p.name for p in (tmp_path / "run" / "checkpoint").glob("step_*")), default=""
            )
            if now > newest:
                process.send_signal(send)
                break
            time.sleep(0.01)  # the processor is the training's
        process.communicate()
        ended.append((process.returncode, seen))
    assert [code for code, _ in ended] == [-signal.SIGKILL, 0, 0] and ended[1][1] > 0
    assert same(loop.train(settings.replace(output=str(tmp_path / "whole"))), tmp_path / "run")


def test_ctrl_c_ends_after_the_step_with_a_usable_result(make, tiny_folder):
    before, settings = signal.getsignal(signal.SIGINT), make(steps=20)
    run = loop.train(
        settings, watchers=[lambda state: state.step == 2 and signal.raise_signal(signal.SIGINT)]
    )
    assert signal.getsignal(signal.SIGINT) is before
    assert len(losses(run)) == 2 and json.loads((run / "metrics.json").read_text())["stopped_early"]
    load_run(run, load_base(tiny_folder))

    def twice(state):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        loop.train(settings, watchers=[twice])
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_before_the_first_step_ends_at_once_and_nothing_is_lost(make, monkeypatch):
    run_steps = loop.run_steps
    monkeypatch.setattr(
        loop, "run_steps", lambda *inputs: (signal.raise_signal(signal.SIGINT), run_steps(*inputs))
    )
    with pytest.raises(KeyboardInterrupt):
        loop.train(make(steps=3))
    monkeypatch.setattr(loop, "run_steps", run_steps)
    cut = loop.train(make(steps=3), watchers=[stop_at(2)])
    monkeypatch.setattr(
        loop, "run_steps", lambda *inputs: (signal.raise_signal(signal.SIGINT), run_steps(*inputs))
    )
    with pytest.raises(KeyboardInterrupt):
        loop.train(make(steps=3))
    monkeypatch.setattr(loop, "run_steps", run_steps)
    assert len(losses(loop.train(make(steps=3)))) == 3 and weights(cut)


def test_a_finished_run_is_returned_and_changed_settings_or_data_keep_the_old_one(
    make, dataset, tmp_path, capsys
):
    run = loop.train(make())
    stamp, seen = (run / "adapter.safetensors").stat().st_mtime_ns, []
    (run / "checkpoint").mkdir()  # as if killed between the result and the tidying up
    assert loop.train(make(), watchers=[seen.append]) == run and not seen
    assert (
        run / "adapter.safetensors"
    ).stat().st_mtime_ns == stamp and "trained already" in capsys.readouterr().out
    shutil.copytree(dataset.root, tmp_path / "moved")
    assert loop.train(make(data=str(tmp_path / "moved"), save_every=3)) == run, (
        "the same pictures elsewhere are the same data"
    )
    assert (run / "adapter.safetensors").stat().st_mtime_ns == stamp
    first = weights(run)
    assert loop.train(make(seed=3)) == run and not torch.equal(
        *(next(iter(w.values())) for w in (first, weights(run)))
    )
    kept = tmp_path / "lora_before_1"
    assert str(kept) in capsys.readouterr().out and all(
        torch.equal(v, first[k]) for k, v in weights(kept).items()
    )
    record = json.loads((tmp_path / "moved" / "dataset.json").read_text())
    write_json(tmp_path / "moved" / "dataset.json", record | {"notes": ["another data set"]})
    loop.train(make(seed=3, data=str(tmp_path / "moved")))
    assert (tmp_path / "lora_before_2" / "adapter.safetensors").is_file()


def test_a_folder_of_the_users_own_is_never_cleared(make, tmp_path):
    folder = tmp_path / "mine"
    (folder / "holiday").mkdir(parents=True)
    for said, words in (
        ({"editor.fontSize": 12}, "exists and is no run folder"),
        (None, "holds holiday, which no training makes"),
    ):
        settings = make(output=str(folder))
        (
            write_json(folder / "settings.json", said)
            if said
            else settings.save(folder / "settings.json")
        )
        before = (folder / "settings.json").read_text()
        with pytest.raises(BadInput, match=words):
            loop.train(settings)
        assert (folder / "holiday").is_dir() and (folder / "settings.json").read_text() == before


@pytest.mark.parametrize("left", ["settings.json.123.part", "samples", ".ipynb_checkpoints"])
def test_what_a_killed_process_or_a_notebook_left_in_a_new_folder_is_no_hindrance(
    make, tmp_path, left
):
    run = tmp_path / "lora"
    run.mkdir()
    if left.endswith(".part"):
        (run / left).touch()
    else:
        make(steps=2).save(run / "settings.json")
        (run / left).mkdir()
    loop.train(make(steps=2))
    assert weights(run) and (run / left).exists() == (not left.endswith(".part"))


def test_settings_that_are_refused_leave_a_finished_run_where_it_is(make, tmp_path):
    run = loop.train(make())
    stamp = (run / "adapter.safetensors").stat().st_mtime_ns
    with pytest.raises(BadInput, match="There is no base model"):
        loop.train(make().replace(base=str(tmp_path / "pockett")))
    assert loop.train(make()) == run and (run / "adapter.safetensors").stat().st_mtime_ns == stamp
    (run / "adapter.safetensors").write_bytes(b"cut off")
    loop.train(make())
    assert weights(run), "weights that are not as long as they were are trained again"


def test_a_link_is_a_run_folder_too(make, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    settings = make(output=str(tmp_path / "link"), steps=2)
    assert in_child(lambda: loop.train(settings, watchers=[kill])) == -signal.SIGKILL
    loop.train(settings)
    assert weights(tmp_path / "disk")


def test_two_trainings_do_not_share_a_run_folder(make, tmp_path):
    refused = []

    def another(state):
        with pytest.raises(
            BadInput, match="Another training is writing to .*lora: wait for it"
        ) as error:
            loop.train(make(seed=state.step))
        refused.append(error)

    run = loop.train(make(steps=2), watchers=[another])
    assert (
        len(refused) == 2
        and len(losses(run)) == 2
        and [p.name for p in tmp_path.iterdir() if "lora" in p.name] == ["lora"]
    )
    killed = in_child(lambda: loop.train(make(seed=1, steps=2), watchers=[kill]))
    assert killed == -signal.SIGKILL and len(losses(loop.train(make(seed=1, steps=2)))) == 2, (
        "a dead process holds nothing"
    )


def test_a_lock_that_cannot_stand_beside_the_folder_holds_all_the_same(tmp_path, monkeypatch):
    import filelock

    acquire = filelock.FileLock.acquire

    def beside(lock, *more, **options):
        if str(tmp_path) in lock.lock_file:
            raise PermissionError("read-only")
        return acquire(lock, *more, **options)

    monkeypatch.setattr(filelock.FileLock, "acquire", beside)
    with lock_run_folder(tmp_path / "run"):
        with pytest.raises(BadInput, match="Another training"), lock_run_folder(tmp_path / "run"):
            pass
    with lock_run_folder(tmp_path / "run"):
        pass


def test_a_run_of_a_version_that_did_not_know_a_setting_is_not_taken_for_todays(make, tmp_path):
    run = loop.train(make(steps=2))
    old = json.loads((run / "settings.json").read_text())
    assert old.pop("cooldown") == make().cooldown, (
        "today's default, but without that setting the rate never fell"
    )
    write_json(run / "settings.json", old)
    loop.train(make(steps=2))
    assert (tmp_path / "lora_before_1" / "metrics.json").is_file() and len(losses(run)) == 2


def test_changed_pictures_are_refused_when_a_training_goes_on(make, dataset, tmp_path):
    root = tmp_path / "photos"
    shutil.copytree(dataset.root, root)
    settings = make(data=str(root))
    run = loop.train(settings, watchers=[stop_at(3)])
    record = json.loads((root / "dataset.json").read_text())
    (root / "train" / "001.png").write_bytes((root / "train" / "000.png").read_bytes())
    record["files"]["train/001.png"] = record["files"]["train/000.png"]
    write_json(root / "dataset.json", record)
    load_dataset(root)
    with pytest.raises(BadInput, match=r"step 3.*train/001.png is another\)"):
        loop.train(settings)
    shutil.rmtree(run / "checkpoint")
    assert len(losses(loop.train(settings))) == 6, "begun anew, as the sentence says"


def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_none_whole_is_refused(
    make, tmp_path, capsys
):
    whole = loop.train(make(output=str(tmp_path / "whole")))
    settings = make(save_every=2)
    run = loop.train(settings, watchers=[stop_at(5)])
    newest, before = sorted((run / "checkpoint").iterdir(), reverse=True)
    assert (newest.name, before.name) == ("step_000005", "step_000004")
    broken = bytearray((newest / "weights.safetensors").read_bytes())
    broken[-3] ^= 1
    (newest / "weights.safetensors").write_bytes(broken)
    keep = tmp_path / "keep"
    shutil.copytree(run, keep)
    capsys.readouterr()
    assert same(loop.train(settings), whole)
    said = capsys.readouterr().out
    assert "step_000005 is damaged" in said and "after step 4" in said
    shutil.rmtree(run)
    shutil.copytree(keep, run)
    write_json(run / "checkpoint" / "step_000004" / "state.json", {"format": "someone else's"})
    with pytest.raises(BadInput, match="delete that folder"):
        loop.train(settings)


@pytest.mark.parametrize(
    "changes, said",
    [
        (
            {"device": "cuda in bfloat16"},
            "at step 3 on cuda in bfloat16, and cpu in float32 draws other random numbers:"
            " go on there, or",
        ),
        ({"settings": {"seed": 7}}, "of another training, by .*: delete that folder"),
        ({"subject": {}}, "of another training, by the subject's words: delete that folder"),
    ],
)
def test_a_foreign_checkpoint_is_refused_in_a_sentence(make, changes, said):
    run = loop.train(make(), watchers=[stop_at(3)])
    path = run / "checkpoint" / "step_000003" / "state.json"
    state = json.loads(path.read_text()) | changes
    write_json(path, state | {"own": checkpoints.digest(state)})
    with pytest.raises(BadInput, match=said):
        loop.train(make())


@pytest.mark.parametrize(
    "changes", [{"step": 5}, {"rows": []}, {"sha256": {}}, {"base": "another"}]
)
def test_a_state_that_is_not_as_it_was_written_counts_as_damaged(make, tmp_path, capsys, changes):
    whole = loop.train(make(output=str(tmp_path / "whole")))
    run = loop.train(make(save_every=2), watchers=[stop_at(3)])
    path = run / "checkpoint" / "step_000003" / "state.json"
    write_json(path, json.loads(path.read_text()) | changes)
    assert (
        same(loop.train(make(save_every=2)), whole)
        and "step_000003 is damaged (state.json is not" in capsys.readouterr().out
    )


def test_a_damaged_checkpoint_makes_way_for_a_whole_one_of_the_same_step(make):
    settings = make(save_every=2)
    run = loop.train(settings, watchers=[stop_at(4)])
    (run / "checkpoint" / "step_000004" / "weights.safetensors").write_bytes(b"cut off")
    loop.train(settings, watchers=[stop_at(5)])
    assert [p.name for p in sorted((run / "checkpoint").iterdir())] == [
        "step_000004",
        "step_000005",
    ], "and both are whole:"
    assert all(
        (p / "weights.safetensors").stat().st_size > 100 for p in (run / "checkpoint").iterdir()
    )


def test_a_checkpoint_that_is_there_is_not_written_again(make, monkeypatch):
    made, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (made.append(str(b)), replace(a, b)))
    loop.train(make(save_every=3), watchers=[stop_at(3)])
    assert sum(name.endswith("step_000003") for name in made) == 1


@pytest.mark.parametrize("moment", ["before the samples", "within one"])
def test_a_process_killed_at_its_samples_draws_them_when_it_goes_on(make, tmp_path, moment):
    settings = make(save_every=2, sample_every=2, sample_steps=1)

    def cut_short():
        save, saved = Image.Image.save, []

        def dies(image, path, *more):
            if len(saved) == 5:  # the second of step 4
                if moment == "within one":
                    path.write_bytes(b"\x89PNG")
                kill()
            saved.append(path)
            save(image, path, *more)

        Image.Image.save = dies
        loop.train(settings)

    assert in_child(cut_short) == -signal.SIGKILL
    run = loop.train(settings)
    assert sorted(p.name for p in (run / "samples").iterdir()) == [
        f"step_{at:04d}_{k}.png" for at in (2, 4, 6) for k in range(4)
    ]
    for path in (run / "samples").iterdir():
        with Image.open(path) as image:
            image.load()


@pytest.mark.parametrize("part, layer", [("unet", "conv_in"), ("vae", "quant_conv")])
def test_a_changed_base_model_is_refused_when_a_training_goes_on(
    make, tiny_folder, tmp_path, part, layer
):
    mine = tmp_path / "base"
    shutil.copytree(tiny_folder, mine)
    settings = make(base=str(mine))
    loop.train(settings, watchers=[stop_at(3)])
    changed = getattr(load_base(str(mine)).pipe, part)
    with torch.no_grad():
        getattr(changed, layer).weight.mul_(1.5)
    changed.save_pretrained(mine / part)
    with pytest.raises(BadInput, match="base model has changed"):
        loop.train(settings)


@pytest.mark.parametrize("method", ["lora", "dreambooth"])
def test_a_picture_that_breaks_the_loss_is_named_and_the_last_good_state_saved(
    make, tiny_folder, tmp_path, monkeypatch, method
):
    good = loop.train(make(method, steps=4, output=str(tmp_path / "good")))
    gather, met = loop.gather, []

    def broken(base, sources, batch, train_steps):
        latents, *rest = gather(base, sources, batch, train_steps)
        met.append(batch[0][0][1])
        if len(met) == 6:
            latents[1] = float("inf")
        return latents, *rest

    monkeypatch.setattr(loop, "gather", broken)
    with pytest.raises(
        NotFinite, match=r"step 6, because of 00\d.png alone: take it out.*until step 4 is saved"
    ) as caught:
        loop.train(make(method, steps=20, save_every=2))
    assert f"{met[5]:03d}.png" in str(caught.value)
    assert all(torch.equal(v, weights(good)[k]) for k, v in weights(tmp_path / method).items())
    load_run(tmp_path / method, load_base(tiny_folder))


def test_a_loss_that_breaks_just_before_a_stop_goes_back_too(make, tmp_path, monkeypatch):
    loss = Step.loss
    monkeypatch.setattr(
        Step,
        "loss",
        lambda self, *inputs: loss(self, *inputs) * (float("nan") if self.taken == 4 else 1),
    )
    with pytest.raises(NotFinite, match=r"step 5, for every picture.*until step 4 is saved"):
        loop.train(make(save_every=2, steps=20), watchers=[stop_at(5)])
    assert weights(tmp_path / "lora")


@pytest.mark.parametrize("precision, remedy", [("auto", "set precision to 'fp32'"), ("fp32", "")])
def test_a_loss_that_is_no_number_before_anything_was_learnt_blames_no_learning_rate(
    make, monkeypatch, precision, remedy
):
    loss = Step.loss
    monkeypatch.setattr(Step, "loss", lambda *inputs: loss(*inputs) * float("nan"))
    with pytest.raises(NotFinite, match=r"step 1, for every picture, where the learn") as caught:
        loop.train(make(steps=2, precision=precision))
    said = str(caught.value)
    assert "too high" not in said and "take another base" in said and remedy in said


def test_memory_that_runs_out_before_the_first_step_is_told_in_one_sentence(make, monkeypatch):
    def none_left(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop, "cache_latents", none_left)
    with pytest.raises(BadInput, match="pictures of 64 pixels were encoded.*resolution"):
        loop.train(make())


def test_out_of_memory_steps_down_the_ladder_from_the_last_checkpoint(
    make, tmp_path, monkeypatch, capsys
):
    whole = loop.train(make(output=str(tmp_path / "whole")))
    loss, renew, steps = Step.loss, Base.read_again, []

    def short(self, *inputs):
        steps.append(weakref.ref(self))
        if self.taken == 4 and self.settings.checkpointing != "largest":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss(self, *inputs)

    def renewed(self, names, dtype=None):
        renew(self, names, dtype)
        assert steps[0]() is None, "the failed step's memory must be free before the next is built"

    monkeypatch.setattr(Step, "loss", short)
    monkeypatch.setattr(Base, "read_again", renewed)
    run = loop.train(make(save_every=3))
    said = capsys.readouterr().out
    assert (
        "memory ran out at step 5" in said
        and "gradient checkpointing" in said
        and "after step 3" in said
    )
    assert (
        same(whole, run)
        and json.loads((run / "metrics.json").read_text())["recipe"]["checkpointing"] == "largest"
    )


def test_ctrl_c_in_a_step_for_which_memory_does_not_suffice_ends_at_the_last_checkpoint(
    make, tmp_path, monkeypatch, capsys
):
    loss = Step.loss

    def short(self, *inputs):
        if self.taken == at:
            signal.raise_signal(signal.SIGINT)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss(self, *inputs)

    monkeypatch.setattr(Step, "loss", short)
    at = 2
    with pytest.raises(KeyboardInterrupt):  # nothing to go on from
        loop.train(make(save_every=3, output=str(tmp_path / "none")))
    assert "memory ran out at step 3: beginning anew with" in capsys.readouterr().out
    at = 4
    run = loop.train(make(save_every=3))
    assert (
        len(losses(run)) == 3
        and weights(run)
        and "going on from the last checkpoint with" in capsys.readouterr().out
    )


def test_memory_that_runs_out_while_the_base_is_read_again_is_told_in_a_sentence(make, monkeypatch):
    def short(*_):
        raise MemoryError

    monkeypatch.setattr(Step, "loss", short)
    monkeypatch.setattr(Base, "read_again", short)
    with pytest.raises(BadInput, match="Memory ran out while the base model was loaded again"):
        loop.train(make())


def test_on_a_cpu_too_a_recipe_is_chosen_that_fits(make, monkeypatch, capsys):
    monkeypatch.setattr(recipe_choice, "free_memory", lambda: 0)
    monkeypatch.setattr(cards, "free_memory", lambda: 9 * 2**20)
    monkeypatch.setattr(
        cards,
        "forecast_recipe",
        lambda s, *_: {
            "bytes": (20 if s.checkpointing == "none" else 5) * 2**20,
            "caching_bytes": 0,
        },
    )
    run = loop.train(make(steps=2))
    assert (
        "Chosen: gradient checkpointing of the largest transformers: it takes 5 MiB"
        in capsys.readouterr().out
    )
    assert json.loads((run / "metrics.json").read_text())["recipe"]["checkpointing"] == "largest"
    monkeypatch.setattr(cards, "forecast_recipe", lambda *_: {"bytes": 2**40, "caching_bytes": 0})
    with pytest.raises(
        BadInput, match="No recipe for lora on .* fits this machine: the smallest takes 1024.0 GiB"
    ):
        loop.train(make(steps=3))


def test_free_memory_is_what_the_control_group_leaves(monkeypatch):
    files = {
        "/proc/self/cgroup": "0::/job",
        "/sys/fs/cgroup/job/memory.max": "3000",
        "/sys/fs/cgroup/job/memory.current": "2000",
        "/sys/fs/cgroup/job/memory.stat": "anon 5\ninactive_file 500\n",
    }
    monkeypatch.setattr(Path, "read_text", lambda path, *_: files[str(path)])
    assert free_memory() == 1500
    files["/sys/fs/cgroup/job/memory.max"] = "max\n"
    assert free_memory() > 2**28, "no limit: the machine's own"


def test_what_the_step_down_tries_out_finds_the_failed_steps_memory_free(make, monkeypatch):
    step_down, steps, tried = loop.step_down, [], []

    def short(self, *inputs):
        steps.append(weakref.ref(self))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Step, "loss", short)
    monkeypatch.setattr(
        loop, "step_down", lambda *inputs: (tried.append(steps[-1]()), step_down(*inputs))[1]
    )
    with pytest.raises(BadInput, match="no smaller recipe is left"):
        loop.train(make(optimizer="adamw8bit"))
    assert tried == [None] * 5 and len(steps) == 5


def test_memory_that_does_not_suffice_for_samples_costs_the_samples_alone(
    make, tmp_path, monkeypatch, capsys
):
    whole, tries = loop.train(make("dreambooth", output=str(tmp_path / "whole"))), []

    def none_left(self, *inputs, **others):
        tries.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Base, "generate", none_left)
    run = loop.train(make("dreambooth", sample_every=2))
    said = capsys.readouterr().out
    assert (
        len(tries) == said.count("does not suffice for samples at step 2") == 1
        and "going on from the last checkpoint" not in said
    )
    assert same(whole, run) and not list((run / "samples").iterdir())
    assert json.loads((run / "metrics.json").read_text())["recipe"]["optimizer"] == "adamw"


def test_memory_that_does_not_suffice_for_a_watcher_costs_that_watcher_alone(make, capsys):
    seen = {"greedy": [], "modest": []}

    def greedy(state):
        seen["greedy"].append(state.step)
        raise torch.OutOfMemoryError("CUDA out of memory")

    settings = make(steps=4)
    loop.train(settings, watchers=[greedy, lambda state: seen["modest"].append(state.step)])
    said = capsys.readouterr()
    assert (
        seen == {"greedy": [1], "modest": [1, 2, 3, 4]}
        and "going on from the last checkpoint" not in said.out + said.err
    )
    assert (said.out + said.err).count(
        "does not suffice for what is measured along the way at step 1"
    ) == 1


def test_a_watcher_for_whom_a_part_cannot_be_loaded_again_is_left_out_too(
    make, monkeypatch, capsys
):
    """Memory runs out within `Base.read_again`, which leaves the part None: what looks at the
    model then asks for it again, and is told so.
    """
    base, seen = load_base(make().base), []

    def look(state):
        seen.append(state.step)
        with evaluation_mode(base):
            pass

    def short(*inputs, **others):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("lib.models.base.read_pipeline", short)
    loop.train(make(steps=3), base, watchers=[look, look])
    assert (
        seen == [1, 1]
        and capsys.readouterr().out.count(
            "does not suffice for what is measured along the way at step 1"
        )
        == 2
    )


def test_weights_are_exact_again_where_memory_runs_out_while_they_are_rounded(monkeypatch):
    weights, half = [torch.full((3,), 0.1), torch.full((3,), 0.7)], torch.Tensor.half

    def short(tensor):
        if tensor is weights[1]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return half(tensor)

    monkeypatch.setattr(torch.Tensor, "half", short)
    with pytest.raises(torch.OutOfMemoryError), as_saved(weights):
        pass
    assert torch.equal(weights[0], torch.full((3,), 0.1))


def test_at_the_foot_of_the_ladder_the_error_stands(make, monkeypatch):
    def none_left(self, *inputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Step, "loss", none_left)
    with pytest.raises(BadInput, match="batch_size"):
        loop.train(make("dreambooth"))


def test_a_disk_too_small_is_told_before_the_first_step(make, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    monkeypatch.setattr(Step, "loss", None)
    with pytest.raises(
        BadInput,
        match=(
            "has 0 MiB left, and .* up to .* MiB with its checkpoints, which save_every 0 leaves"
            " out: free"
        ),
    ):
        loop.train(make())
    with pytest.raises(
        BadInput, match="takes up to [0-9]+ MiB: free some space or choose another output"
    ):
        loop.train(make(save_every=0))


def test_a_disk_that_fills_up_costs_the_checkpoint_but_not_the_training(make, tmp_path, capfd):
    whole = loop.train(make(output=str(tmp_path / "whole")))

    def small_disk():
        size = int(
            1.5 * (whole / "adapter.safetensors").stat().st_size
        )  # the adapter fits, in fp32 and with its moments it does not
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        run = loop.train(make(save_every=2))
        assert len(losses(run)) == 6 and weights(run)

    assert in_child(small_disk) == 0
    assert "no checkpoint could be written at step 2" in capfd.readouterr().out
    assert not list((tmp_path / "lora").glob("checkpoint/.step*"))


def test_a_training_goes_on_bit_for_bit_once_the_disk_has_room_again(make, tmp_path, capfd):
    whole, settings = loop.train(make(output=str(tmp_path / "whole"))), make(save_every=2)

    def fills_up():
        def fill(state):
            if state.step == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

        loop.train(settings, watchers=[fill])

    assert in_child(fills_up) == 1 and "free some space" in capfd.readouterr().err
    assert same(loop.train(settings), whole) and "going on after step 2" in capfd.readouterr().out


def test_what_a_watcher_raises_is_not_told_as_a_full_disk(make):
    with pytest.raises(FileNotFoundError, match="none"):
        loop.train(make(), watchers=[lambda state: open("/none")])


def test_without_checkpoints_a_stop_leaves_none_and_says_so(make, capsys):
    run = loop.train(make(save_every=0), watchers=[stop_at(3)])
    assert (
        weights(run)
        and not (run / "checkpoint").exists()
        and "the same settings would begin anew" in capsys.readouterr().out
    )


def test_a_disk_that_cannot_even_take_the_result_is_told_in_one_sentence(make, tmp_path, capfd):
    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        loop.train(make())

    assert in_child(full) == 1
    assert "BadInput" in (said := capfd.readouterr().err) and "free some space" in said
