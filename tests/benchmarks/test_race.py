"""The race measures both sides alike, and what the README prints of it is what was measured."""

import argparse
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from PIL import Image

from benchmarks import (
    contestants,
    cuda_memory,
    cuda_race,
    cuda_step,
    file_sizes,
    floor,
    race,
    racetable,
    random_base,
    sections,
    watched,
)
from benchmarks import torchvision_standin as standin
from benchmarks.watched import SHORT
from lib.files.errors import BadInput
from lib.files.json_file import read_json, write_json
from lib.memory import fake_tensors

TINY = """
import sys, torch
weights = torch.nn.Linear(500, 500, bias=False)
optimizer = torch.optim.AdamW(weights.parameters())
for _ in range(int(sys.argv[1])):
    weights(torch.ones(1, 500)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
"""


def test_the_readmes_print_what_was_measured():
    assert sections.section(sections.RESULTS_PAGE, "race") == racetable.figures(
        sections.read(race.RESULTS)
    ), "run `make race` again"
    measured = floor.figures(sections.read(floor.RESULTS))
    assert sections.section(sections.OWN_README, "floor") == measured, (
        "run `python -m benchmarks.floor` again"
    )
    for module, name in (
        (cuda_race, "cuda race"),
        (cuda_step, "cuda step"),
        (cuda_memory, "cuda memory"),
    ):
        measured = module.figures(sections.read(module.RESULTS))
        assert sections.section(sections.OWN_README, name) == measured, (
            f"run `python -m {module.__name__}` again, or its figures"
        )
    assert sections.section(sections.RESULTS_PAGE, "card") == cuda_race.headline(
        sections.read(cuda_race.RESULTS)
    )
    measured = file_sizes.figures(sections.read(file_sizes.RESULTS))
    assert sections.section(sections.OWN_README, "sizes") == measured, (
        "run `python -m benchmarks.file_sizes` again"
    )


def test_the_targets_on_two_cores_hold_at_the_median():
    found = sections.read(race.RESULTS)
    ratio = {(r["method"], r["photos"], r["ours"], r["theirs"]): r for r in found["ratios"]}
    wanted = {"lora": (1.2, 1.1), "dreambooth": (1.4, 1.25)}
    for method, (documented, best) in wanted.items():
        for who, least in (("documented", documented), ("best", best)):
            assert ratio[method, "small", "like", who]["steps_per_second"]["median"] >= least, (
                method,
                who,
            )
        assert ratio[method, "large", "like", "documented"]["steps_per_second"]["median"] >= 2
        assert ratio[method, "small", "like", "documented"]["first"]["median"] <= 0.8
        lean = ratio[method, "small", "lean", "documented"]
        assert lean["peak_bytes"] <= 0.7 and lean["steps_per_second"]["median"] > 1.1, (
            "less memory and still faster"
        )
        curves = {c["who"]: c for c in found["learning"]["curves"] if c["method"] == method}
        theirs = curves["theirs, as documented"]
        seconds = (
            theirs["seconds_to_level"] or theirs["points"][-1]["seconds"]
        )  # not reached in so many
        assert all(
            curves[f"ours, {who}"]["seconds_to_level"] <= 0.5 * seconds
            for who in ("course's recipe", "less memory")
        )


def test_nobody_wins_by_training_worse():
    found = sections.read(race.RESULTS)["trained"]
    for method in race.METHODS:
        mine, *rivals = (run for run in found if run["method"] == method)
        assert mine["who"] == "like" and len(rivals) == 2
        assert all(
            mine[loss] < rival[loss] + 0.01
            for rival in rivals
            for loss in ("loss_train", "loss_held_out")
        )


def test_the_forecasts_that_ship_are_within_eight_percent_of_what_a_card_took():
    found = sections.read(cuda_memory.RESULTS)
    rows = cuda_memory.against(found)
    assert {row["base"] for row, _ in rows} == {"sd15", "sdxl"} and len(rows) > 20
    wrong = {
        str(row["recipe"]): round(told / row["bytes"] - 1, 3)
        for row, told in rows
        if abs(told / row["bytes"] - 1) > 0.08
    }
    assert not wrong
    assert all(
        abs(row["recorded"] / row["bytes"] - 1) < 0.02 for row, _ in rows if row["recorded"]
    ), "a record takes no more than a step"
    assert found["workspaces"] == fake_tensors.WORKSPACE["cuda"]


def test_what_was_forced_into_fp16_stands_beside_its_own_forecast():
    found = sections.read(cuda_memory.RESULTS)
    row = found["rows"][0]
    forced = row | {
        "recipe": row["recipe"] | {"precision": "fp16"},
        "given_up": ["fp16 arithmetic"],
        "forecast": round(0.97 * row["bytes"]),
    }
    more = found | {"rows": [*found["rows"], forced]}
    assert cuda_memory.against(more)[-1] == (forced, forced["forecast"])
    last = cuda_memory.figures(more).splitlines()[-1]
    assert "| fp16 arithmetic |" in last and "| -3.0% |" in last


def test_a_script_is_watched_step_by_step_and_byte_by_byte(tmp_path):
    script = tmp_path / "tiny.py"
    script.write_text(TINY)
    found = contestants.run(tmp_path, "tiny", [script, 7], 7)
    # Weights, gradient, two moments, and what AdamW makes in passing; last step's gradient is gone.
    size = 4 * 500 * 500
    assert 5 * size <= found["peak_bytes"] < 6.5 * size
    assert (
        0 < found["step"] < found["first"] < found["whole"] and found["resident_bytes"] > 10 * size
    )
    launched = contestants.run(
        tmp_path, "launched", [script, 7], 7, launcher=contestants.accelerate_launch()
    )
    assert launched["peak_bytes"] == found["peak_bytes"] and launched["first"] > found["first"], (
        "accelerate's own start comes before"
    )
    script.write_text("raise SystemExit('no luck')")
    with pytest.raises(BadInput, match="no luck"):
        contestants.run(tmp_path, "broken", [script], 7)


def test_a_forecasts_step_is_none_of_the_trainings(monkeypatch):
    from lib.memory.forecasting import forecast, plan
    from lib.step.training_step import Step

    monkeypatch.setattr(Step, "__call__", Step.__call__)  # put back afterwards
    seen = []
    watched.watch_ours(lambda: seen.append(1))
    assert forecast(plan("lora", "pocket"), "cpu").bytes and not seen


def test_the_steady_state_is_the_long_run_less_the_short_one():
    ends = [10.0, 11.0, 12.0, 13.0, 14.0, 14.5, 15.0, 15.5]
    assert contestants.timings(ends, 4.0, 17.0) == {
        "first": 6.0,
        "step": 0.5,
        "whole": 13.0,
        "tail": 1.5,
    }
    with pytest.raises(BadInput, match="--steps"):
        contestants.timings(ends[:5], 4.0, 17.0)


def test_scripts_get_only_flags_that_they_know(tmp_path):
    (tmp_path / "train_dreambooth.py").write_text(
        '"--with_prior_preservation" "--set_grads_to_none" "--allow_tf32"'
    )
    field = SimpleNamespace(
        base=tmp_path,
        photos={"small": "p"},
        class_images="c",
        instance_prompt="a zwx robot",
        class_prompt="a robot",
        best={("dreambooth", "small"): (2, False), ("lora", "small"): (0, True)},
    )
    words, environment = contestants.theirs(
        tmp_path, field, "dreambooth", "small", "documented", 9, "o"
    )
    assert "--set_grads_to_none" not in words and environment == {}
    assert (
        words[words.index("--learning_rate") + 1] == "5e-06"
        and words[words.index("--max_train_steps") + 1] == "9"
    )
    words, environment = contestants.theirs(
        tmp_path, field, "dreambooth", "small", "inductor", 9, "o", rate=8e-4
    )
    assert "--set_grads_to_none" in words and "--pre_compute_text_embeddings" not in words
    assert words[words.index("--dataloader_num_workers") + 1] == "2"
    assert (
        environment == {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}
        and words[words.index("--learning_rate") + 1] == "0.0008"
    )


def test_their_best_flags_are_the_fastest_that_were_tried_for_each_method(tmp_path, monkeypatch):
    seconds = {
        ("lora", 4, False): 1,
        ("lora", 4, True): 2,
        ("dreambooth", 0, False): 2,
        ("dreambooth", 0, True): 1,
    }
    monkeypatch.setattr(
        race,
        "theirs",
        lambda scripts, field, method, kind, *_: ((method, *field.best[method, kind]), {}),
    )
    monkeypatch.setattr(
        race, "run", lambda work, name, command, *_: {"step": seconds.get(command, 3)}
    )
    field = SimpleNamespace(photos={"small": "p"}, best={})
    tried = race.tune(tmp_path, field, tmp_path, 9)
    assert field.best == {("lora", "small"): (4, False), ("dreambooth", "small"): (0, True)}
    assert len(tried) == 2 * (len(race.WORKERS) + 1)


def result(step, peak):
    return {
        "first": 4.0,
        "step": step,
        "whole": 9.0,
        "tail": 1.0,
        "peak_bytes": peak,
        "peak_by_category": {},
        "resident_bytes": 5e8,
    }


def test_ratios_are_of_the_same_round_and_whole_runs_hold_the_preparation():
    cells = [
        ("lora", "small", who) for who in ("like", "documented", "inductor", "lean", "launched")
    ]
    theirs, lean = [result(0.2, 100), result(0.2, 100)], [result(0.2, 50)]
    found = dict(
        zip(
            cells, ([result(0.1, 70), result(0.2, 70)], theirs, "it does not compile", lean, theirs)
        )
    )
    field = SimpleNamespace(prepare_seconds={"small": 3.0})
    mine, theirs, failed = race.summary(found, field)[:3]
    assert mine["whole"]["smallest"] == pytest.approx(4 + 499 * 0.1 + 1 + 3)
    assert theirs["whole"]["median"] == pytest.approx(4 + 499 * 0.2 + 1)
    assert failed["failed"] == "it does not compile"
    row, *others = race.ratios(found)
    assert (row["ours"], row["theirs"], row["peak_bytes"]) == ("like", "documented", 0.7)
    assert [(r["ours"], r["theirs"]) for r in others] == [
        ("lean", "documented"),
        ("like", "launched"),
    ], "launched, one of ours is enough"
    assert (row["steps_per_second"]["smallest"], row["steps_per_second"]["largest"]) == (1.0, 2.0)
    best = [{"method": "lora", "photos": "small", "workers": 2, "eight_bit": True}]
    facts = {
        "device": "d",
        "best": best,
        "in_their_favour": ["x"],
        "versions": {"torch": "t", "diffusers": "f"},
    }
    table = racetable.figures({"cells": [mine, theirs, failed], "ratios": [row]} | facts)
    assert (
        "| LoRA: theirs, as documented | 64 pixels | 5.00 (5.00 to 5.00) | 4.0 (4.0 to 4.0) | 105 |"
        " 0 | 477 |" in table
    )
    assert (
        "does not run here: it does not compile" in table
        and "LoRA, 64 pixels: 2 data workers, 8-bit Adam." in table
    )


def test_rivals_run_beside_each_other_in_a_new_order_each_round():
    cells = race.entries()
    for k in range(3):
        turn = race.in_turn(cells, k)
        assert sorted(turn) == sorted(cells) and len({c[:2] for c in turn}) == 1 + sum(
            a[:2] != b[:2] for a, b in zip(turn, turn[1:])
        )
    after = [dict(zip(turn[1:], turn)) for turn in (race.in_turn(cells, k) for k in range(5))]
    assert all(len({one[cell][2] for one in after if cell in one}) > 1 for cell in cells), (
        "nobody always runs after the same one"
    )


def test_what_cannot_race_is_told_in_a_sentence(tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="no train_dreambooth_lora.py"):
        race.check(ROOT / "tests")
    for name in contestants.SCRIPTS.values():
        (tmp_path / name).touch()
    race.check(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for more, words in (
        ([], "train_dreambooth_lora_sdxl.py"),
        ([contestants.SDXL], "No CUDA device"),
    ):
        for name in more:
            (tmp_path / name).touch()
        monkeypatch.setattr(sys, "argv", ["cuda_race", "--scripts", str(tmp_path)])
        with pytest.raises(SystemExit, match=words):
            cuda_race.main()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda_race, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="needs torchvision itself"):
        cuda_race.main()
    for wrong in ("sd15", "sd15:0", "flux:1"):
        with pytest.raises(
            argparse.ArgumentTypeError, match=f"'{wrong}' is no base and batch size"
        ):
            cuda_race.field_of(wrong)


def test_trainings_that_are_all_ready_take_turns(tmp_path, monkeypatch):
    script = tmp_path / "tiny.py"
    script.write_text(TINY)
    monkeypatch.setattr(
        cuda_race.Contestant,
        "command",
        lambda self, work, field, scripts, steps: ([script, steps], {}),
    )
    monkeypatch.setattr(cuda_race, "PATIENCE", 60)
    heat = [cuda_race.Contestant("sd15", 1, "lora", who) for who in ("like", "documented")]
    found = cuda_race.together(
        tmp_path, {"sd15": SimpleNamespace(result=lambda: None)}, None, heat, 2, 3
    )
    turns = sorted(
        (begin, found[one]["ends"][SHORT + 3 * (k + 1) - 1], one.who, k)
        for one in heat
        for k, begin in enumerate(found[one]["begins"][:2])
    )
    assert [(who, k) for *_, who, k in turns] == [
        ("like", 0),
        ("documented", 0),
        ("documented", 1),
        ("like", 1),
    ]
    assert all(before[1] <= after[0] for before, after in zip(turns, turns[1:])), (
        "two of them ran at once"
    )
    assert all(len(found[one]["steps"]) == 2 and min(found[one]["steps"]) > 0 for one in heat)
    script.write_text("raise SystemExit('no luck')")
    assert (
        "no luck"
        in cuda_race.together(
            tmp_path, {"sd15": SimpleNamespace(result=lambda: None)}, None, heat[:1], 2, 3
        )[heat[0]]
    )


def test_the_stand_in_does_what_the_scripts_call(monkeypatch):
    torch.manual_seed(0)
    picture = Image.new("RGB", (40, 20), (255, 0, 127))
    assert standin.Resize(10)(picture).size == (20, 10)
    random = standin.Compose(
        [
            standin.Resize(10),
            standin.RandomCrop(10),
            standin.ToTensor(),
            standin.Normalize([0.5], [0.5]),
        ]
    )(picture)
    assert random.shape == (3, 10, 10) and random.dtype == torch.float32
    assert random.amin((1, 2)).tolist() == pytest.approx([1, -1, 127 / 127.5 - 1])
    crop = standin.CenterCrop(10)(Image.linear_gradient("L").resize((10, 30)))
    assert crop.size == (10, 10) and abs(crop.getpixel((5, 5)) - 127) < 8
    if "torchvision" not in sys.modules:
        monkeypatch.delitem(sys.modules, "torchvision.transforms", raising=False)
        if standin.install():
            from torchvision import transforms

            assert transforms.Resize is standin.Resize
            del sys.modules["torchvision"], sys.modules["torchvision.transforms"]


def test_a_base_of_random_weights_is_a_pipeline_that_loads(tmp_path):
    from lib.models.base import load_base
    from lib.models.base_files import POCKET

    base = load_base(str(random_base.build("sd15", tmp_path / "random", POCKET)), device="cpu")
    assert base.generate(["a robot"], [0], steps=1)[0].size == (64, 64)
    assert (
        base.pipe.tokenizer.model_max_length
        == base.pipe.text_encoder.config.max_position_embeddings
    )
    shapes = shutil.copytree(POCKET, tmp_path / "shapes")
    config = read_json(shapes / "text_encoder" / "config.json") | {"vocab_size": 900}
    write_json(shapes / "text_encoder" / "config.json", config)
    larger = load_base(str(random_base.build("sd15", tmp_path / "larger", shapes)), device="cpu")
    assert len(larger.pipe.tokenizer) == 900, "as many words as the text encoder knows"
    assert larger.generate(["a robot"], [0], steps=1)
    with pytest.raises(BadInput, match="not in this checkout"):
        random_base.build("sd15", tmp_path / "none", tmp_path)


def test_traffic_counts_what_is_read_and_written():
    a, b = torch.ones(100), torch.ones(100)
    with floor.Traffic() as traffic:
        a.view(10, 10).t()
        a + b
    assert traffic.bytes == 3 * 400
    against = floor.against(
        {"bf16": 100.0, "fp32": 10.0, "bandwidth": 8.0},
        {"flop": 50, "bytes": 4, "bf16": True, "step": 1.0},
    )
    assert (against["arithmetic"], against["traffic"], against["share"]) == (0.5, 0.5, 0.5)
