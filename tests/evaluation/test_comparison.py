"""Run folders in, table and summary out; damaged, unfinished and unlike runs are refused in one
sentence.
"""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from whole_course import PROMISED

from lib.dataset.captions import KINDS, Subject
from lib.dataset.preparation import prepare
from lib.evaluation.comparison import (
    WEIGHTS,
    Comparison,
    Run,
    add_shares,
    choose_judge,
    compare,
    drawn_as_asked,
    read_run,
    same_ground,
    unlike,
)
from lib.evaluation.comparison_table import (
    COLUMNS,
    by_what_is_asked,
    certificate_rows,
    table,
    verdict,
    write_summary,
)
from lib.evaluation.fidelity import EvaluationPlan, check_prompts, protocol
from lib.evaluation.judge import PAIRS, load_judge
from lib.files.errors import BadInput
from lib.models.families import preset
from pocket.world import render, sample_scene

METRICS = {
    "seconds_per_step": 0.1,
    "train_seconds": 30.0,
    "peak_bytes": 3 * 2**20,
    "file_bytes": 2**19,
    "device": "cpu",
    "versions": {"torch": "2"},
}


def make_data(folder, seed, identifier="zwx"):
    (folder / "photos").mkdir(parents=True)
    for i in range(5):
        render(sample_scene(seed + i, kind="cat", color="red", salt="judge"), 96).save(
            folder / "photos" / f"{i}.png"
        )
    return prepare(folder / "photos", folder / "data", "cat", identifier).root


def make_run(folder, method, data, metrics=METRICS, **settings):
    """A run folder as training leaves it, with small weights."""
    weights = folder / WEIGHTS[method]
    weights.parent.mkdir(parents=True)
    save_file({"layer.weight": torch.ones(4, 4)}, weights)
    settings = {
        "method": method,
        "base": "pocket",
        "data": str(data),
        "output": str(folder),
        "steps": 300,
        "seed": 0,
    } | settings
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("subject"), 9_300_000)


def outcome(runs=()):
    """A comparison with figures of our own, to see what the table and the words make of them."""
    score = {"clip_i": 0.8, "clip_t": 0.3, "diversity": 0.1}
    rows = {
        "base_model": {"dino": 0.2, "pres": 0.25} | score,
        "real_photos": {"dino": 0.8, "clip_i": 0.9, "clip_t": None, "diversity": None},
        "lora": {"dino": 0.5, "pres": 0.30} | score | {k: METRICS[k] for k in list(METRICS)[:4]},
        "dreambooth": (
            {"dino": 0.65, "pres": 0.45} | score | {k: METRICS[k] * 2 for k in list(METRICS)[:4]}
        ),
    }
    add_shares(rows)
    part = {"encoder": "e", "resize": "r"}
    about = {
        "reference": "held-out photos",
        "prompts": ["a cat"],
        "seeds": [1, 2],
        "dino": part,
        "clip": part,
        "unlike": [],
    }
    return Comparison(rows, about, runs=list(runs))


def test_a_finished_run_is_read(tmp_path, data):
    run = read_run(make_run(tmp_path / "lora", "lora", data))
    assert (
        run.method == "lora"
        and run.metrics["train_seconds"] == 30
        and run.weights.name == "adapter.safetensors"
    )
    assert read_run(make_run(tmp_path / "full", "dreambooth", data)).weights.parent.name == "unet"


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def nan_weights(path):
    save_file({"layer.weight": torch.full((2,), float("nan"))}, path)


def metric(key, value):
    return lambda path: path.write_text(json.dumps(METRICS | {key: value}))


@pytest.mark.parametrize(
    ("file", "damage", "sentence"),
    [
        ("metrics.json", Path.unlink, "no metrics.json.*did not finish; run it again"),
        (
            "metrics.json",
            lambda path: path.rename(path.with_name("imported.json")),
            "no metrics.json: it was imported; in notebook 04",
        ),
        ("settings.json", Path.unlink, "no settings.json"),
        ("metrics.json", cut, "metrics.json cannot be read as JSON.*make it again"),
        (
            "settings.json",
            lambda p: p.write_text('{"method": "hypernetwork"}'),
            "hypernetwork.*lora and dreambooth",
        ),
        (
            "adapter.safetensors",
            Path.unlink,
            "adapter.safetensors are missing.*train again or put it back",
        ),
        ("adapter.safetensors", cut, "adapter.safetensors are damaged.*copy the run folder again"),
        (
            "adapter.safetensors",
            lambda p: p.write_bytes(b"<html>404"),
            "adapter.safetensors are damaged",
        ),
        ("adapter.safetensors", nan_weights, "not numbers.*smaller learning rate"),
        ("metrics.json", metric("peak_bytes", None), "peak_bytes = None"),
        ("metrics.json", metric("seconds_per_step", float("nan")), "seconds_per_step = nan"),
        ("metrics.json", metric("file_bytes", "3 MB"), "file_bytes = '3 MB'"),
    ],
)
def test_a_damaged_or_unfinished_run_is_refused_in_one_sentence(
    tmp_path, data, file, damage, sentence
):
    run = make_run(tmp_path / "run", "lora", data)
    damage(run / file)
    with pytest.raises(BadInput, match=sentence) as refused:
        read_run(run)
    assert str(tmp_path) in str(refused.value) and "\n" not in str(refused.value)


def test_a_missing_folder_says_which_notebook_makes_it(tmp_path):
    with pytest.raises(BadInput, match="does not exist: train first, LoRA with notebook 02"):
        read_run(tmp_path / "nowhere")


def test_runs_of_different_data_or_base_are_refused(tmp_path, data):
    first = read_run(make_run(tmp_path / "a", "lora", data))
    other = read_run(
        make_run(tmp_path / "b", "dreambooth", make_data(tmp_path / "other", 9_400_000))
    )
    with pytest.raises(BadInput, match="different data, so their scores cannot be compared"):
        same_ground([first, other])
    with pytest.raises(BadInput, match="different base model"):
        same_ground([first, read_run(make_run(tmp_path / "c", "dreambooth", data, base="sd15"))])


def test_data_changed_after_training_is_refused(tmp_path, data):
    digest = hashlib.sha256((data / "dataset.json").read_bytes()).hexdigest()
    assert (
        same_ground(
            [read_run(make_run(tmp_path / "a", "lora", data, METRICS | {"data_sha256": digest}))]
        ).root
        == data
    )
    with pytest.raises(
        BadInput, match="was changed after .* was trained on it: train that run again"
    ):
        same_ground(
            [read_run(make_run(tmp_path / "b", "lora", data, METRICS | {"data_sha256": "0" * 64}))]
        )


def test_the_same_pictures_in_another_folder_are_the_same_data(tmp_path, data):
    copy = make_data(tmp_path / "copy", 9_300_000)
    runs = [
        read_run(make_run(tmp_path / "a", "lora", data)),
        read_run(make_run(tmp_path / "b", "dreambooth", copy)),
    ]
    assert same_ground(runs).root == data


def test_two_runs_of_one_method_are_refused(tmp_path, data):
    folders = [make_run(tmp_path / name, "lora", data) for name in "ab"]
    with pytest.raises(BadInput, match="one run folder for each method"):
        compare(folders)


def test_unequal_settings_are_named(tmp_path, data):
    runs = [
        Run(tmp_path, m, {"steps": s, "seed": 0}, {}, tmp_path)
        for m, s in (("lora", 300), ("dreambooth", 400))
    ]
    assert unlike(runs) == ["steps (300, 400)"]
    result = outcome()
    result.about["unlike"] = unlike(runs)
    assert "Not like for like: the runs differ in steps (300, 400)" in verdict(result)


def test_seconds_on_another_number_of_threads_are_told(tmp_path):
    """A training that met a busy processor takes one thread, and the next one two again."""
    recipe = {"steps": 300, "seed": 0}
    runs = [
        Run(tmp_path, method, recipe, {"device": f"CPU, {threads} threads"}, tmp_path)
        for method, threads in (("lora", 1), ("dreambooth", 2))
    ]
    assert unlike(runs) == ["device (CPU, 1 threads; CPU, 2 threads)"]


def test_shares_run_from_the_base_model_to_the_real_photos():
    rows = outcome().rows
    assert [
        round(rows[name]["dino_share"], 6)
        for name in ("base_model", "lora", "dreambooth", "real_photos")
    ] == [0, 0.5, 0.75, 1]
    assert (
        rows["base_model"]["pres"] == 0
        and rows["lora"]["pres"] == pytest.approx(0.05)
        and "pres" not in rows["real_photos"]
    )


def test_no_room_between_floor_and_ceiling_gives_no_share():
    rows = {"base_model": {"dino": 0.9, "clip_i": 0.9}, "real_photos": {"dino": 0.8, "clip_i": 0.9}}
    add_shares(rows)
    assert rows["base_model"]["dino_share"] is None and rows["real_photos"]["clip_i_share"] is None


def test_prompt_following_is_a_share_of_what_the_photos_themselves_score():
    rows = {
        name: {"dino": 0.5, "clip_i": 0.5, "clip_t": followed}
        for name, followed in (("base_model", 0.6), ("lora", 0.36), ("real_photos", 0.4))
    }
    add_shares(rows)
    assert {name: row["clip_t_share"] for name, row in rows.items()} == pytest.approx(
        {"base_model": 1.5, "lora": 0.9, "real_photos": 1.0}
    )


def test_the_place_and_the_colour_that_a_prompt_names_are_looked_for_in_its_picture():
    prompts = ["a photo of a robot", "a photo of a robot at night", "a red robot in the desert"]
    drawn = [("green", "room"), ("green", "snow"), ("red", "desert")]
    pictures = [
        render(sample_scene(9_300_000 + k, "robot", *scene, plain=1.0, salt="judge"))
        for k, scene in enumerate(drawn)
    ]
    base = SimpleNamespace(family=SimpleNamespace(name="pocket"))
    assert drawn_as_asked(load_judge(), pictures, prompts, base) == {
        "place_drawn": 0.5,
        "colour_drawn": 1.0,
    }
    blue = render(sample_scene(9_300_002, "robot", "blue", "desert", plain=1.0, salt="judge"))
    found = drawn_as_asked(load_judge(), [*pictures[:2], blue], prompts, base)
    assert found["colour_drawn"] == 0
    assert drawn_as_asked(load_judge(), pictures[:1], prompts[:1], base) == {}, "nothing is named"


def test_scores_are_told_apart_by_what_prompts_ask():
    asks = {"a": "nothing", "b": "place", "c": "place", "d": "colour"}
    scores = [
        {"prompt": text, "dino": dino, "clip_t": 0.5}
        for text, dino in (("a", 0.9), ("b", 0.8), ("c", 0.6), ("d", 0.4), ("d", 0.2))
    ]
    found = by_what_is_asked(Comparison({}, {}, scores={"lora": scores}, asks=asks))
    assert found.columns[1:4] == ["DINO: nothing", "DINO: place", "DINO: colour"]
    assert found.rows == [["LoRA", "0.900", "0.700", "0.300", "0.500", "0.500", "0.500"]]


def test_the_table_shows_the_same_in_every_form():
    result = outcome()
    found = table(result)
    head, rows = found.columns, found.rows
    text, markdown, page = found.text(), found.markdown(), found._repr_html_()
    caption, *lines = text.splitlines()
    assert caption.startswith("Fidelity against held-out photos; 1 prompts x 2 seeds; DINO by e")
    assert len(lines) == len(rows) + 1 and len(markdown.splitlines()) == len(rows) + 2
    for form in (text, markdown, page):
        assert all(cell in form for line in [head, *rows] for cell in line)
    assert (
        "nan" not in text.lower()
        and rows[1][head.index("CLIP-T")] == "-"
        and rows[2][head.index("peak MiB")] == "3"
    )
    assert "held-out" not in "".join(lines)  # nothing was held out here: no empty column


def test_the_verdict_says_what_was_measured_and_claims_no_more():
    text = verdict(outcome())
    assert (
        "0.500 against 0.650" in text
        and "no interval" in text
        and "one subject and one training seed" in text
    )
    assert not any(word in text for word in ("better than", "wins", "superior", "exceptional"))
    weak = outcome()
    weak.rows["lora"]["dino"] = 0.1
    assert "LoRA did not come closer" in verdict(weak)


def test_the_summary_has_what_the_course_promises(tmp_path, data):
    runs = [read_run(make_run(tmp_path / m, m, data)) for m in WEIGHTS]
    written = write_summary(tmp_path / "out" / "summary.json", outcome(runs))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary == json.loads(json.dumps(written))
    for method in ("lora", "dreambooth"):
        for key in PROMISED:
            assert isinstance(summary[method][key], float | int) and summary["units"][key]
    assert {"base_model", "real_photos", "versions", "device", "verdict"} <= set(
        summary
    ) and summary["device"] == "cpu"
    assert set(summary["units"]) == set(COLUMNS) and list((tmp_path / "out").iterdir()) == [
        tmp_path / "out" / "summary.json"
    ]


def test_a_score_that_is_no_number_never_reaches_the_summary(tmp_path):
    result = outcome()
    result.rows["lora"]["dino"] = float("nan")
    with pytest.raises(ValueError):
        write_summary(tmp_path / "summary.json", result)
    assert not (tmp_path / "summary.json").exists()


def test_the_judge_fits_the_base_and_a_missing_one_has_a_stand_in_that_is_named(
    monkeypatch, capsys
):
    monkeypatch.setattr("socket.getaddrinfo", lambda *a: pytest.fail("the judge went online"))
    monkeypatch.setattr(
        "lib.evaluation.judge.PAIRS",
        {"pocket": PAIRS["pocket"], "real": ("nobody/such-clip", "nobody/such-dino")},
    )
    assert choose_judge("", "pocket").name == "pocket" and not capsys.readouterr().out
    stand_in = choose_judge("", "sd15")
    said = capsys.readouterr().out
    assert (
        stand_in.name == "pocket"
        and stand_in.describe()["dino"]["encoder"] == "data/judge/identity"
    )
    assert (
        "nobody/such-clip cannot be loaded" in said
        and "hf download nobody/such-clip" in said
        and "Meanwhile the pocket judge" in said
    )
    with pytest.raises(BadInput, match="nobody/such-clip cannot be loaded"):
        choose_judge("real", "sd15")
    with pytest.raises(BadInput, match="unknown: choose one of pocket, real"):
        choose_judge("mine", "pocket")


@pytest.mark.parametrize("family", ["pocket", "sd1"])
def test_the_protocol_has_25_prompts_for_every_kind(family):
    base = SimpleNamespace(family=SimpleNamespace(name=family))
    for kind in KINDS:
        subject = Subject(kind, "robot", "zwx")
        pairs = protocol(subject, base)
        check_prompts(
            [plain for _, plain in pairs], "zwx", None if kind in ("style", "lighting") else "robot"
        )
        assert (
            len(set(pairs)) == 25
            and all("zwx" in asked for asked, _ in pairs)
            and len(protocol(subject, base, "course")) == 8
        )
    with pytest.raises(BadInput, match="no list of prompts 'all': choose one of course, full"):
        protocol(subject, base, "all")


def test_a_comparison_has_costs_scores_drift_and_the_curve_of_each_run(tmp_path, data, tiny_folder):
    """Both methods on a tiny base with random weights, from training to the table."""
    from lib.training.loop import train

    make, folders = (
        {"rank": 2, "steps": 2, "batch_size": 2, "sample_every": 0, "prior_weight": 0.0},
        [],
    )
    for method in WEIGHTS:
        folders.append(
            train(
                preset(
                    method,
                    data=str(data),
                    output=str(tmp_path / method),
                    **make | {"base": tiny_folder},
                )
            )
        )
    point = {"seconds": 0.0, "dino": -1.0, "reference": "held-out photos"}
    track = [point | {"step": 0}, point | {"step": 2, "seconds": 4.0, "dino": 2.0}]
    encoder = {"encoder": "data/judge/identity", "resize": "short side 64 bicubic, centre crop 64"}
    (folders[0] / "curve.json").write_text(json.dumps({"points": track, "dino": encoder}))
    (folders[1] / "curve.json").write_text(
        json.dumps({"points": track, "dino": encoder | {"encoder": "facebook/dino-vits16"}})
    )
    said = []
    with pytest.raises(BadInput, match="folder of masks holds no .png"):
        compare(folders, "pocket", masks=tmp_path / "none")
    for photo in (data / "test").glob("*.png"):
        (tmp_path / "masks" / "test").mkdir(parents=True, exist_ok=True)
        Image.new("L", Image.open(photo).size, 255).save(
            tmp_path / "masks" / "test" / photo.name
        )  # all of it is subject
    plan = EvaluationPlan([("a zwx cat", "a cat")], (7, 8), steps=2, class_pictures=2)
    result = compare(folders, "pocket", plan, tmp_path / "masks", progress=said.append)
    lora, full, base = (result.rows[key] for key in ("lora", "dreambooth", "base_model"))
    assert (
        all(row["dino_subject"] == pytest.approx(row["dino"]) for row in result.rows.values())
        and "DINO, subject" in table(result).columns
    )
    assert base["drift"] == base["pres"] == 0 and lora["drift"] > 0 and full["drift"] > 0
    assert lora["seconds_to_best"] == 4.0 and 0 < lora["seconds_to_half"] < 4.0
    assert "seconds_to_best" not in full and "seconds_to_half" not in full, (
        "two encoders' cosines never share a column"
    )
    assert [line for line in said if "another encoder" in line] == [
        "DreamBooth: another encoder measured its curve, so neither its best step nor half of the"
        " way is read off it"
    ]
    assert (
        lora["file_bytes"] < full["file_bytes"]
        and lora["consistency"] is not None
        and result.about["judge"] == "pocket"
    )
    assert "drift" in table(result).columns
    cut, twice = result.rows["extracted"], result.rows["extracted_twice"]
    for row in (cut, twice):
        assert all(row[key] == full[key] for key in ("seconds_per_step", "peak_bytes"))
        assert 0 < row["drift"] != full["drift"] and row["dino"] is not None
    assert cut["file_bytes"] < twice["file_bytes"] < full["file_bytes"]
    assert abs(twice["drift"] - full["drift"]) < abs(cut["drift"] - full["drift"])
    assert [row[0] for row in table(result).rows[-2:]] == [
        "DreamBooth cut to a LoRA",
        "the same, at twice the rank",
    ]


def test_a_lora_in_kohyas_form_becomes_a_row_that_equals_the_run_it_came_from(
    tmp_path, data, tiny_folder
):
    from lib.convert.exporting import export_lora
    from lib.training.loop import train

    make = {
        "base": tiny_folder,
        "data": str(data),
        "steps": 3,
        "batch_size": 2,
        "sample_every": 0,
        "prior_weight": 0.0,
        "rank": 4,
    }
    run = train(
        preset("lora", output=str(tmp_path / "lora"), alpha=2.0, learning_rate=1e-2, **make)
    )
    file, lines = export_lora(run, "kohya", tmp_path / "robot.safetensors").path, []
    plan = EvaluationPlan([("a zwx cat", "a cat")], (7, 8), steps=2, class_pictures=2)
    result = compare([run], "pocket", plan, other=file, progress=lines.append)
    ours, theirs, base = (result.rows[key] for key in ("lora", "kohya_lora", "base_model"))
    for key in (
        "dino",
        "clip_i",
        "clip_t",
        "pres",
        "drift",
        "memorising",
        "nearest",
        "consistency",
        "dino_share",
    ):
        assert theirs[key] == pytest.approx(ours[key], abs=1e-6), key
    assert (
        ours["dino"] != base["dino"]
        and theirs["file_bytes"] == file.stat().st_size
        and "seconds_per_step" not in theirs
    )
    assert [
        np.array_equal(a, b) for a, b in zip(result.images["lora"], result.images["kohya_lora"])
    ] == [True, True]
    last = table(result).rows[-1]
    assert last[0] == "Kohya's LoRA" and last[1:4] == [
        "-",
        "-",
        "-",
    ], "no costs of a training that was not seen"
    assert any(
        "trained with 'zwx cat', says its header; it is asked for 'zwx cat'" in line
        for line in lines
    )
    kinds = {"a": "a", "data/adapters/lighting.safetensors": "do not fit"}
    for name, said in kinds.items():
        lines.clear()
        with pytest.raises(BadInput, match="There is no file a" if name == "a" else said):
            compare([run], "pocket", plan, other=name, progress=lines.append)
        assert not lines, "refused before anything is drawn"


def test_the_certificate_is_a_table_beside_what_published_encoders_manage():
    rows = {row[0]: row[1:] for row in certificate_rows()}
    nearid = next(row for name, row in rows.items() if "NearID" in name)
    assert nearid == ["95%", "90 % or more", "10 to 31 %"] and all(
        len(row) == 3 for row in rows.values()
    )


def test_the_base_model_is_evaluated_against_held_out_photos(data):
    """The floor of every table, on the real pocket base and judge."""
    from lib.dataset.imagefolder import load_dataset
    from lib.evaluation.fidelity import evaluate, real_row
    from lib.evaluation.judge import load_judge
    from lib.models.base import load_base

    dataset, judge = load_dataset(data), load_judge()
    asked = [("a zwx cat in the snow", "a cat in the snow"), ("a zwx cat", "a cat")]
    result = evaluate(load_base("pocket"), dataset, judge, EvaluationPlan(asked, (7, 8), 4))
    assert len(result["images"]) == len(result["pictures"]) == 4 and all(
        isinstance(i, Image.Image) for i in result["images"]
    )
    assert [(r["asked"], r["seed"]) for r in result["pictures"]][1:3] == [
        ("a zwx cat in the snow", 8),
        ("a zwx cat", 7),
    ]
    assert (
        result["reference"] == "held-out photos"
        and result["dino"] < real_row(judge, dataset)["dino"]
    )
    assert np.isclose(result["memorising"], result["dino_train"] - result["dino"])
