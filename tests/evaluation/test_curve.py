"""Curves: what is measured along the way, and that measuring changes nothing of the training."""

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lib.evaluation.curve import (
    FILE,
    SHORT_PLAN,
    Curve,
    best,
    costs_along,
    read_curve,
    read_curves,
    seconds_to,
    short_plan,
)
from lib.evaluation.fidelity import evaluate
from lib.evaluation.judge import load_judge
from lib.files.errors import BadInput
from lib.models.base import load_base
from lib.models.families import preset
from lib.plots import charts
from lib.training.loop import train

QUICK = replace(SHORT_PLAN, steps=2, class_pictures=2)
ALONE = QUICK.asking([("a zwx robot", "a robot")])


@pytest.fixture(scope="module")
def judge():
    return load_judge()


@pytest.fixture(scope="module")
def runs(dataset, judge, tiny_folder, tmp_path_factory):
    """Three steps of LoRA on the pocket base and of DreamBooth on the tiny one: (plain run, watched
    run, its Curve) by method.
    """
    made = {}
    for method, base in (
        ("lora", load_base("pocket", "cpu")),
        ("dreambooth", load_base(tiny_folder, "cpu")),
    ):
        folder = tmp_path_factory.mktemp(method)
        common = dict(
            data=str(dataset.root),
            base=base.name,
            steps=3,
            batch_size=2,
            sample_every=0,
            warmup=0,
            learning_rate=1e-3,
        )
        plain, watched = (
            preset(method, output=str(folder / name), **common) for name in ("plain", "watched")
        )
        train(plain, copy.deepcopy(base))
        prompts = [("a zwx robot in the snow", "a robot in the snow"), ("a zwx robot", "a robot")]
        curve = Curve(base, dataset, judge, watched.output, 2, QUICK.asking(prompts))
        train(watched, base, watchers=[curve])
        made[method] = folder / "plain", folder / "watched", curve
    return made


def test_a_curve_is_drawn_in_no_more_steps_than_the_pictures_beside_it():
    pairs = [("a zwx robot", "a robot")]
    assert short_plan(pairs, 25) == SHORT_PLAN.asking(pairs) and SHORT_PLAN.steps == 15
    assert short_plan(pairs, 5) == replace(SHORT_PLAN, prompts=pairs, steps=5)


def log(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", ["lora", "dreambooth"])
def test_a_watched_run_is_the_unwatched_one_bit_for_bit(runs, method):
    plain, watched, _ = runs[method]
    for key in ("loss", "instance_loss", "prior_loss"):
        assert [r[key] for r in log(plain)] == [r[key] for r in log(watched)]
    one, two = (load_file(next(run.rglob("*.safetensors"))) for run in (plain, watched))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    peaks = [
        json.loads((run / "metrics.json").read_text())["peak_bytes"] for run in (plain, watched)
    ]
    assert peaks[0] == peaks[1]


@pytest.mark.parametrize("method", ["lora", "dreambooth"])
def test_points_lie_at_the_start_every_so_many_steps_and_at_the_end(runs, method):
    _, watched, curve = runs[method]
    assert [p["step"] for p in curve.points] == [0, 2, 3] == list(curve.images)
    assert (
        read_curve(watched) == json.loads(json.dumps(curve.record()))
        and read_curve(watched)["points"] == curve.points
    )
    assert not list(watched.glob("*.part"))
    for point in curve.points:
        numbers = [
            point[k]
            for k in (
                "dino",
                "dino_train",
                "memorising",
                "clip_i",
                "clip_t",
                "nearest",
                "pres",
                "drift",
            )
        ]
        assert np.isfinite(
            [*numbers, point["loss_train"], point["loss_held_out"], *point["loss_train_bins"]]
        ).all()
        assert (
            len(point["loss_train_bins"]) == len(point["loss_held_out_bins"]) == 4
            and point["consistency"] is None
        )
        assert len(curve.images[point["step"]]) == 2
    start, *_, end = curve.points
    assert start["seconds"] == start["pres"] == start["drift"] == 0 < end["drift"]
    assert (
        end["loss_train"] != start["loss_train"] and end["loss_held_out"] != start["loss_held_out"]
    )


@pytest.mark.parametrize("method", ["lora", "dreambooth"])
def test_seconds_are_those_of_training_alone(runs, method):
    _, watched, curve = runs[method]
    seconds = {row["step"]: row["seconds"] for row in log(watched)}
    assert all(
        point["seconds"] == pytest.approx(seconds[point["step"]]) and point["measuring"] > 0
        for point in curve.points[1:]
    )


def test_the_last_point_is_of_the_live_weights(runs, judge, dataset):
    curve = runs["lora"][2]
    again = evaluate(curve.base, dataset, judge, curve.plan)
    assert again["dino"] == pytest.approx(curve.points[-1]["dino"], abs=1e-5)
    assert again["dino"] != pytest.approx(curve.points[0]["dino"], abs=1e-5)


def test_the_best_step_has_the_highest_held_out_dino_and_the_earliest_wins(runs):
    points = [
        {"step": k, "dino": d, "reference": "held-out photos"}
        for k, d in ((0, 0.2), (50, 0.6), (100, 0.7), (150, 0.7), (200, 0.5))
    ]
    assert best(points)["step"] == best(points[::-1])["step"] == 100
    assert best([p | {"reference": "training photos"} for p in points]) is None
    curve = runs["lora"][2]
    assert (
        curve.record()["best_step"] == max(curve.points, key=lambda p: p["dino"])["step"]
        and "held-out" in curve.record()["best_by"]
    )


def test_seconds_to_a_set_fidelity():
    points = [
        {"step": k, "seconds": s, "dino": d}
        for k, s, d in ((0, 0.0, 0.2), (50, 10.0, 0.6), (100, 20.0, 0.5), (150, 30.0, 0.8))
    ]
    assert seconds_to(points, 0.4) == pytest.approx(5.0) and seconds_to(
        points, 0.6
    ) == pytest.approx(10.0)
    assert seconds_to(points, 0.65) == pytest.approx(25.0) and seconds_to(
        points[::-1], 0.65
    ) == pytest.approx(25.0)
    assert (
        seconds_to(points, 0.1) == 0.0
        and seconds_to(points, 0.9) is None
        and seconds_to([], 0.1) is None
    )


def test_a_training_that_goes_on_keeps_its_earlier_points(dataset, judge, tiny_folder, tmp_path):
    (tmp_path / "settings.json").write_text("{}")
    make = dict(every=2, plan=replace(ALONE, class_pictures=0))
    base = load_base(tiny_folder, "cpu")
    first = Curve(base, dataset, judge, tmp_path, **make)
    for step in (1, 2, 3, 4):
        first(state(step))
    second = Curve(
        base, dataset, judge, tmp_path, **make
    )  # after a kill, from the checkpoint of step 3
    for step in (4, 5, 6):
        second(state(step, steps=6))
    assert [p["step"] for p in read_curve(tmp_path)["points"]] == [0, 2, 4, 6]
    assert read_curve(tmp_path)["points"][1] == first.points[1]


def test_what_learning_took():
    measured = ((0, 0.0, 0.2), (50, 10.0, 0.6), (99, 20.0, 0.5))
    points = [
        {"step": k, "seconds": s, "dino": d, "reference": "held-out photos"} for k, s, d in measured
    ]
    assert costs_along(points, ceiling=0.8) == {
        "seconds_to_best": 10.0,
        "seconds_to_half": pytest.approx(7.5),
    }
    assert costs_along(points, ceiling=1.2) == {"seconds_to_best": 10.0, "seconds_to_half": None}, (
        "never reached"
    )
    assert (
        costs_along(points)["seconds_to_half"] is None
        and costs_along(points[:1], 0.8)["seconds_to_best"] is None
    ), "the base is no run"
    assert costs_along([p | {"reference": "training photos"} for p in points], 0.8) == {
        "seconds_to_best": None,
        "seconds_to_half": None,
    }


def test_curves_are_read_together_if_they_were_measured_alike(runs, tmp_path, capsys):
    folders = {method: found[1] for method, found in runs.items()}
    found = read_curves(folders)
    assert (
        list(found) == ["lora", "dreambooth"] and found["lora"]["points"] == runs["lora"][2].points
    )
    assert list(read_curves(folders | {"none": tmp_path})) == ["lora", "dreambooth"]
    assert "was not measured along the way" in capsys.readouterr().out
    other = json.loads((folders["lora"] / FILE).read_text())
    other["dino"]["encoder"] = "facebook/dino-vits16"
    (tmp_path / FILE).write_text(json.dumps(other))
    with pytest.raises(
        BadInput,
        match="differ in dino, so they don't compare: train both again with the same judge",
    ):
        read_curves(folders | {"other": tmp_path})


def test_curves_are_drawn_from_what_was_measured(runs):
    tracks = read_curves({"LoRA": runs["lora"][1], "DreamBooth": runs["dreambooth"][1]})
    figure = charts.along(tracks, "dino", "seconds")
    axes = figure.chart.axes[0]
    assert list(axes.lines[0].get_ydata()) == [p["dino"] for p in tracks["LoRA"]["points"]]
    assert axes.get_xlabel() == "seconds of training"
    ringed = [line for line in axes.lines if line.get_markersize() > 10]
    assert {float(line.get_ydata()[0]) for line in ringed} == {
        best(t["points"])["dino"] for t in tracks.values()
    }
    pareto = charts.trade(tracks, "clip_t", "dino")
    assert [row[0] for row in pareto.table.rows] == [
        f"{name}, {step}" for name in tracks for step in (0, 2, 3)
    ]
    tracks["LoRA"]["points"] = [p | {"drift": None} for p in tracks["LoRA"]["points"]]
    assert [row[0] for row in charts.trade(tracks, "dino", "drift").table.rows] == [
        f"DreamBooth, {step}" for step in (0, 2, 3)
    ]
    assert charts.along({}) is None and charts.trade({}, "dino", "drift") is None


def state(step, steps=10, stopping=False):
    return SimpleNamespace(step=step, steps=steps, seconds=float(step), stopping=stopping)


def test_without_held_out_photos_nothing_is_called_the_best(dataset, judge, tiny_folder, tmp_path):
    (tmp_path / "settings.json").write_text("{}")
    bare = replace(dataset, test=[], class_images=[])
    curve = Curve(
        load_base(tiny_folder, "cpu"),
        bare,
        judge,
        tmp_path,
        every=4,
        plan=replace(ALONE, class_pictures=0),
    )
    for step in (1, 3, 5, 6):
        curve(state(step, stopping=step == 6))
    assert [p["step"] for p in curve.points] == [0, 6], (
        "between the points nothing is measured; a stopped run gets its last"
    )
    assert all(
        p[k] is None
        for p in curve.points
        for k in ("loss_held_out", "memorising", "nearest", "pres", "drift")
    )
    record = read_curve(tmp_path)
    assert record["best_step"] is None and "no photo was held out" in record["best_by"]


def test_bad_input_is_refused_in_one_sentence(dataset, judge, tiny_folder, tmp_path, runs):
    base = load_base(tiny_folder, "cpu")
    with pytest.raises(BadInput, match="every 0 steps"):
        Curve(base, dataset, judge, tmp_path, every=0)
    curve = copy.copy(runs["dreambooth"][2])
    curve.run = tmp_path
    with pytest.raises(BadInput, match="not the run being trained"):
        curve(state(10))
    with pytest.raises(BadInput, match="has no curve.json.*among the watchers"):
        read_curve(tmp_path)
    point = {"step": 0, "seconds": 0.0, "dino": 0.5, "reference": "held-out photos"}
    for damaged in (
        {},
        {"points": []},
        {"points": 3},
        {"points": [3]},
        {"points": ["reference"]},
        {"points": [point | {"dino": None}]},
        {"points": [point, point | {"dino": float("nan")}]},
        {"points": [{k: point[k] for k in ("step", "seconds", "dino")}]},
    ):
        (tmp_path / FILE).write_text(json.dumps(damaged))
        with pytest.raises(BadInput, match="curve.json is damaged"):
            read_curve(tmp_path)
    (tmp_path / FILE).write_text(json.dumps({"points": [point]})[:-3])
    with pytest.raises(BadInput, match="cannot be read as JSON"):
        read_curve(tmp_path)


def test_a_curve_goes_on_with_a_training_that_was_interrupted(
    dataset, judge, tiny_folder, tmp_path
):
    settings = preset(
        "lora",
        base=tiny_folder,
        data=str(dataset.root),
        output=str(tmp_path / "run"),
        steps=4,
        sample_every=0,
    )
    for stop in (3, None):
        base = load_base(tiny_folder, "cpu")
        curve = Curve(
            base,
            dataset,
            judge,
            settings.output,
            every=2,
            plan=ALONE,
        )
        train(
            settings,
            base,
            [curve, lambda state, stop=stop: state.stop() if state.step == stop else None],
        )
    assert [p["step"] for p in read_curve(settings.output)["points"]] == [0, 2, 4]
