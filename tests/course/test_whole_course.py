"""Notebooks 01 to 06, run in order by papermill on the real pocket base at small step counts (once,
for all tests here), and what they leave behind.
"""

import math
import re
import shutil

import nbformat
import pytest
from conftest import LONE, ROOT
from safetensors.torch import load_file
from whole_course import AGAIN, PROMISED, check_run, digests, execute, printed, said

from lib.config.settings import Settings
from lib.course.runner import NOTEBOOKS
from lib.dataset.imagefolder import load_dataset
from lib.evaluation import results
from lib.evaluation.curve import read_curve
from lib.files.json_file import read_json

APPENDIX = "appendix_recipes"  # stands beside the course, needs no run
APPENDIX_STUDIES = {
    "rank",
    "prior",
    "prior_ways",
    "careless",
    "text_encoder",
    "precision",
    "recipes",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_runs_and_shows_what_it_found(course, name):
    notebook = course(name)
    outputs = [o for c in notebook.cells for o in c.get("outputs", ())]
    assert not [o for o in outputs if o.output_type == "error"]
    said = [o.text for o in outputs if o.get("name") == "stderr"]
    assert not [text for text in said if " elapsed, about " not in text], (
        "a warning that a reader cannot act on; how far something is, is none"
    )
    pictures = [
        (o.data, o.metadata)
        for o in outputs
        if any(kind.startswith("image/") for kind in o.get("data", ()))
    ]
    assert len(pictures) >= 5
    for data, metadata in pictures:
        kind = next(kind for kind in data if kind.startswith("image/"))
        assert len(metadata.get(kind, {}).get("alt", "")) > 20, "a figure without alternative text"
    assert not [
        o for o in outputs if "application/vnd.jupyter.widget-view+json" in o.get("data", ())
    ], "a panel where nobody can press it"
    assert "widgets" not in notebook.metadata


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_cell_can_run_twice(course, name):
    course(name)
    cells = nbformat.read(course.output / f"{name}.ipynb", as_version=4).cells
    once = [c for c in cells if c.cell_type == "code" and not c.id.endswith(AGAIN)]
    again = [c for c in cells if c.id.endswith(AGAIN)]
    tagged = [c for c in once if c.metadata.get("tags")]
    assert len(again) == len(once) - len(tagged) + 2, "and the set-up, twice at the end"
    assert all(c.metadata.papermill.status == "completed" for c in again)


@pytest.mark.slow
def test_06_sweeps_a_grid_once_and_gives_no_interval_of_one_subject(course):
    notebook = course("06_many_runs")
    many, text = course.output / "many", printed(notebook)
    rows = [read_json(path) for path in many.glob("*/row.json")]
    assert sorted(row["rank"] for row in rows) == [1, 16] and "2 rows after" in text
    assert all(row["dino_base"] == rows[0]["dino_base"] for row in rows), "the floor is one"
    small, large = sorted(rows, key=lambda row: row["rank"])
    assert small["lora.file_bytes"] < large["lora.file_bytes"] and small["steps"] == 4
    shown = "".join(
        o.data.get("text/html", "")
        for c in notebook.cells
        for o in c.get("outputs", ())
        if "data" in o
    )
    assert shown.count("none: too few subjects") == 1 and "-0." in shown


@pytest.mark.slow
def test_01_leaves_a_data_set(course):
    text, dataset = printed(course("01_dataset_prep")), load_dataset(course.output / "data")
    assert [len(part) for part in (dataset.train, dataset.test, dataset.class_images)] == [6, 2, 8]
    assert all("zwx robot" in item.caption for item in dataset.train + dataset.test)
    assert (
        not any("zwx" in item.caption for item in dataset.class_images)
        and len({i.caption for i in dataset.class_images}) > 1
    )
    assert len({i.path.read_bytes() for i in dataset.class_images}) == 8, (
        "class images are all different"
    )
    assert digests(ROOT / "data/subjects/character") == course.photos, "the photos are as they were"
    assert re.search(r"zwx +1 +zwx", text) and "your own pictures" not in text


@pytest.mark.slow
def test_02_trains_an_adapter_and_proves_that_the_base_stays(course):
    text, run = printed(course("02_lora_training")), course.output / "lora"
    assert text.count("largest difference of a pixel: 0\n") == 2, (
        "a fresh adapter and one at strength 0 change nothing"
    )
    assert (
        len(re.findall(r"^[0-9a-f]{64}$", text, re.MULTILINE)) == 2
        and len(set(re.findall(r"^[0-9a-f]{64}$", text, re.MULTILINE))) == 1
    )
    check_run(run, "lora", steps=8)
    weights = load_file(run / "adapter.safetensors")
    down, up = (
        {name: w for name, w in weights.items() if f"lora_{part}." in name} for part in "AB"
    )
    assert {w.shape[0] for w in down.values()} == {w.shape[1] for w in up.values()} == {4}
    still = [
        name.split(".lora_B")[0].removeprefix("unet.") for name, w in up.items() if not w.any()
    ]
    assert set(still) <= {
        f"{LONE}.to_q",
        f"{LONE}.to_k",
    }, "all learn, but where there is no gradient (tests/step/test_low_memory.py)"


@pytest.mark.slow
def test_03_trains_every_weight_twice(course):
    course("03_dreambooth_training")
    check_run(course.output / "dreambooth", "dreambooth", steps=8)
    check_run(course.output / "dreambooth_without_prior", "dreambooth", steps=8, samples=0)
    assert Settings.load(course.output / "dreambooth_without_prior/settings.json").prior_weight == 0
    base = load_file(ROOT / "data/pocket/unet/diffusion_pytorch_model.safetensors")
    tuned = load_file(course.output / "dreambooth/unet/diffusion_pytorch_model.safetensors")
    assert tuned.keys() == base.keys() and sum(
        not tuned[k].float().equal(base[k].float()) for k in base
    ) > 0.9 * len(base)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, method", [("02_lora_training", "lora"), ("03_dreambooth_training", "dreambooth")]
)
def test_training_is_measured_along_the_way(course, name, method):
    text, curve = printed(course(name)), read_curve(course.output / method)
    points = curve["points"]
    assert [p["step"] for p in points] == [0, 2, 4, 6, 8] and curve["dino"][
        "encoder"
    ] == "data/judge/identity"
    assert curve["steps"] == 5, "as the notebook's pictures"
    assert all(
        math.isfinite(p[key])
        for p in points
        for key in ("dino", "clip_t", "pres", "drift", "loss_train", "loss_held_out")
    )
    assert (
        points[-1]["drift"] > points[0]["drift"] == 0
        and points[-1]["loss_train"] < points[0]["loss_train"]
    )
    assert (
        f"best of the curve: step {curve['best_step']}," in text
        and "none of it counted as training" in text
    )


@pytest.mark.slow
def test_04_writes_the_summary(course):
    text, summary = printed(course("04_comparison")), read_json(course.output / "summary.json")
    for method in ("lora", "dreambooth"):
        for key in (*PROMISED, "pres", "memorising"):
            assert math.isfinite(summary[method][key]) and summary["units"][key], (method, key)
    assert summary["lora"]["file_bytes"] < summary["dreambooth"]["file_bytes"] / 5
    assert summary["lora"]["peak_bytes"] < summary["dreambooth"]["peak_bytes"]
    assert 0 < summary["base_model"]["dino"] < summary["real_photos"]["dino"] <= 1
    assert (
        summary["about"]["reference"] == "held-out photos"
        and len(summary["about"]["prompts"]) == 25
    )
    assert (
        summary["versions"]["torch"]
        and summary["device"]
        and "one subject and one training seed" in summary["verdict"]
    )
    assert "Like for like." in text and summary["verdict"] in text
    shown = "".join(
        str(o.get("data", {}).get("text/plain", ""))
        for c in course("04_comparison").cells
        for o in c.get("outputs", ())
    )
    assert (
        "preferred to a look-alike on the same background (NearID)  95%" in shown
        and "10 to 31 %" in shown
    )
    assert (
        all(f"\n{claim:<2} " in shown for claim in range(1, 18))
        and "Likeness against seconds of training" in shown
    )
    assert "the lines below" in shown, "the decision guide"


@pytest.mark.slow
def test_04_asks_its_conclusion_first_and_gives_it_last(course):
    course("04_comparison")
    summary = read_json(course.output / "summary.json")
    which, cost, sure = summary["answer"]
    texts = [said(cell) for cell in course("04_comparison").cells]
    first, last = [text for text in texts if which in text]
    assert first.startswith("Is it so?") and cost not in first and cost in last
    assert sure.split(" seeds ")[0] in first and "one subject and one seed" in first


@pytest.mark.slow
@pytest.mark.usefixtures("warm_kernels")
@pytest.mark.parametrize("trained", [False, True])
def test_the_appendix_needs_no_run_and_reads_those_that_are_there(course, tmp_path, trained):
    if trained:
        course("03_dreambooth_training")
    notebook = execute(APPENDIX, course.output if trained else tmp_path, tmp_path)
    outputs = [o for c in notebook.cells for o in c.get("outputs", ())]
    assert not [o for o in outputs if o.output_type == "error"]
    shown = [o for o in outputs if any(kind.startswith("image/") for kind in o.get("data", ()))]
    # Studies that were made on a former base have no figure until they are made again.
    studies = results.read_result("studies").keys() & APPENDIX_STUDIES
    assert {"rank", "prior"} <= studies
    assert len(shown) == len(studies) + (2 if trained else 0)
    assert ("was not measured along the way" in printed(notebook)) != trained


@pytest.mark.slow
@pytest.mark.usefixtures("warm_kernels")
def test_04_draws_kohyas_lora_as_a_third_row(course, tmp_path):
    from lib.convert.exporting import export_lora

    course("03_dreambooth_training")
    shutil.copytree(course.output, tmp_path / "out")
    file = export_lora(tmp_path / "out" / "lora", "kohya", tmp_path / "theirs.safetensors").path
    few = {"pictures_per_prompt": 1, "class_pictures": 2, "prompts": "course", "sample_steps": 1}
    third = few | {"kohya_lora": str(file)}
    text = printed(execute("04_comparison", tmp_path / "out", tmp_path, **third))
    rows = read_json(tmp_path / "out" / "summary.json")
    assert "trained with 'zwx robot', says its header" in text
    assert rows["kohya_lora"]["dino"] == pytest.approx(rows["lora"]["dino"], abs=1e-6)


@pytest.mark.slow
def test_05_ships_what_other_tools_read(course):
    from lib.convert.adapter import read_adapter

    text, shipped = printed(course("05_compose_and_ship")), course.output / "shipped"
    assert "keys will load in ComfyUI" in text and "largest difference: 0\n" in text, (
        "the exported file draws what the run draws"
    )
    assert (
        read_adapter(shipped / "lora.safetensors", layers=1).ranks == [4]
        and (shipped / "README.md").is_file()
    )
    assert len(load_file(shipped / "merged.safetensors")) == 514
    found = read_json(course.output / "shipping.json")
    kept = [found["extracted"][rank]["kept"] for rank in ("1", "4", "16", "64")]
    assert 0 < kept[0] < kept[1] < kept[2] < kept[3] <= 1
    assert set(found["survives"]) == {
        "all at 0.6",
        "all at 1.0",
        "svd",
        "ties_svd",
    }, "linear mixes one rank alone"
    assert all(0 < seconds < 20 for seconds in found["switch_seconds"].values())
