"""PocketBench: its plan, its data sets (careless ones too), one run of it from photos to row."""

import math

import numpy as np
import pytest

from benchmarks import learning_rates as rates
from benchmarks import pocketbench as bench
from benchmarks import studies as plans
from benchmarks.csv_rows import read_table
from lib.course.sweeping import run_name
from lib.dataset.imagefolder import load_dataset
from lib.dataset.preparation import prepare
from lib.files.errors import BadInput
from lib.files.json_file import read_json
from lib.files.paths import ROOT
from lib.models.base import Base, load_base
from lib.models.families import preset
from lib.step import quantization as recipes
from lib.training.loop import train
from pocket.subjects import bench_subjects


@pytest.fixture(scope="module")
def subjects():
    return bench_subjects(13)


def test_runs_that_two_studies_ask_for_are_made_once(subjects):
    plan = plans.studies([s.name for s in subjects], 3)
    names = {study: {run_name(j) for j in jobs} for study, jobs in plan.items()}
    assert all(len(names[study]) == len(jobs) for study, jobs in plan.items())
    assert len(plan["main"]) == 13 * (1 + 4 * 3)
    assert len(plan["prior"]) == 12 * 2 * (2 * (1 + len(plans.WAYS)) - 1), "a teacher is LoRA's"
    shared = {study: len(names["main"] & some) for study, some in names.items() if study != "main"}
    assert shared == {
        "prior": 12 * 2 * 2,
        "rank": 12 * 2,
        "rate": 0,
        "length": 0,
        "identifier": 12 * 2 * 2,
        "careless": 12 * 2 * 2,
        "kinds": 0,
        "precision": 12 * 2 * 2,
        "recipes": 12 * 2 * 2,
        "text_encoder": 12 * 2 * 2,
    }
    assert len(plan["rate"]) == 6 * 2 * (1 + 2 * 2 * 5), "subjects, captions, methods, seeds, rates"
    assert len(plan["precision"]) == 12 * (2 * 3 + 2 * 2 * 2)
    assert len(plan["recipes"]) == 12 * (2 * 3 + 2 * (6 + 5))
    assert len(plan["text_encoder"]) == 12 * 2 * 2 * 4


def test_one_seed_is_a_part_of_the_plan_with_three(subjects):
    subjects = [s.name for s in subjects]
    one, three = plans.studies(subjects, 1), plans.studies(subjects, 3)
    for study in one:
        assert {run_name(j) for j in one[study]} <= {run_name(j) for j in three[study]}


def test_no_method_is_tuned_on_what_it_is_tested_with():
    named = [s.name for s in bench_subjects(rates.TESTED + len(rates.BEHIND))]
    assert named[rates.TESTED :] == list(rates.BEHIND)
    plan = plans.studies(named[: rates.TESTED], 1)
    tuned, tested = ({j["subject"] for j in plan[study]} for study in ("rate", "main"))
    assert len(tuned) == 6 and not tuned & tested


def test_runs_that_ship_keep_their_names(monkeypatch):
    """A setting that a later study varies is no part of the runs that leave it alone: what was run
    stays run.
    """
    for row in read_table(bench.RESULTS):
        varied = {
            key: bool(row[key]) if key == "fused_backward" else row[key]
            for key in (
                "rank",
                "targets",
                "prior_weight",
                "learning_rate",
                "cooldown",
                *plans.SELDOM,
            )
            if row.get(key) is not None
        }
        monkeypatch.setattr(plans, "STEPS", row["steps"])
        variant = "good" if row["variant"] == "rare" else row["variant"]
        assert (
            run_name(plans.job(row["subject"], row["method"], row["seed"], variant, **varied))
            == row["settings_hash"]
        )
    monkeypatch.setattr(plans, "STEPS", 200)
    lora = plans.job("00-robot", "lora", learning_rate=4e-3)
    assert run_name(lora) == "a54486143db5" and lora == plans.job(
        "00-robot", "lora", learning_rate=4e-3, precision="auto", weights="fp32"
    )


def test_every_low_memory_recipe_is_a_run_of_its_own_that_names_what_it_changes():
    for method, alone in (("lora", "quantize"), ("dreambooth", "fused_backward")):
        found = [plans.job("s", method, **changes) for changes in plans.low_memory(method)]
        assert len({run_name(j) for j in found}) == len(found) and not plans.SELDOM & set(found[0])
        assert {alone, "optimizer", "checkpointing"} <= set(found[-1]), "the foot of the ladder"
        assert plans.text_rates(method) == pytest.approx(
            [s * found[0]["learning_rate"] for s in plans.TEXT_SHARES]
        )


def test_a_lora_is_cut_from_the_training_that_the_job_names(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "WORK", tmp_path)
    whole, *cuts = (plans.job("00-robot", m, seed=1) for m in ("dreambooth", *plans.CUTS))
    assert [plans.cut_from(c) for c in cuts] == [whole, whole]
    assert len({run_name(j) for j in (whole, *cuts)}) == 3
    train(
        preset(
            "dreambooth",
            data=str(dataset.root),
            output=str(bench.run_folder(whole)),
            steps=2,
            prior_weight=0.0,
            sample_every=0,
        )
    )
    once, twice = (bench.cut(c) for c in cuts)
    assert set(once[1]) == set(bench.COSTS)
    assert once[1]["seconds_per_step"] == twice[1]["seconds_per_step"], "that of the training"
    assert 1.5 < twice[1]["file_bytes"] / once[1]["file_bytes"] < 2.1
    plain, drawn = (
        np.asarray(model.generate(["a zwx robot"], [0], steps=2)[0], float)
        for model in (load_base(), once[0])
    )
    assert np.abs(plain - drawn).max() > 0, "the adapter is at work"


@pytest.mark.parametrize(
    "variant", ["good", "duplicates", "one_background", "common", "wrong_noun", "no_noun"]
)
def test_every_variant_makes_a_data_set_of_six_and_two(subjects, variant, tmp_path):
    for subject in subjects[:6]:
        bench.photos(subject, variant, tmp_path / subject.name)
        data = prepare(tmp_path / subject.name, tmp_path / f"{subject.name}-set")
        assert (len(data.train), len(data.test)) == (6, 2)
        assert all(
            item.caption.startswith(f"a {data.subject.identifier} {data.subject.class_noun} ")
            for item in data.train + data.test
        )
        right = data.subject.class_noun == subject.class_noun
        assert right != (variant in ("wrong_noun", "no_noun"))


def test_scores_are_told_apart_by_what_is_asked():
    listed = [{"class_prompt": asks, "asks": asks} for asks in ("nothing", "place", "colour")]
    pictures = [
        {"prompt": asks, "dino": dino, "clip_t": dino / 2}
        for asks, dino in (("nothing", 9.0), ("place", 0.8), ("place", 0.6), ("colour", 0.4))
    ]
    assert bench.by_what_is_asked(pictures, listed) == pytest.approx(
        {"dino_place": 0.7, "dino_colour": 0.4, "clip_t_place": 0.35, "clip_t_colour": 0.2}
    )


@pytest.mark.slow
def test_a_run_gives_a_whole_row(subjects, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "WORK", tmp_path)
    monkeypatch.setattr(plans, "STEPS", 4)
    monkeypatch.setattr(bench, "SEEDS", (1000, 1001))
    whole = bench.prompt_list
    a_place_and_a_colour = slice(8, 20, 5)
    monkeypatch.setattr(bench, "prompt_list", lambda *a: whole(*a)[a_place_and_a_colour])
    generate = Base.generate  # which pictures they are is of no account here
    monkeypatch.setattr(Base, "generate", lambda *a, **k: generate(*a, **k | {"steps": 1}))
    jobs = [plans.job(subjects[0].name, method) for method in ("base", "lora")]
    bench.make_data(jobs, subjects)
    assert len(load_dataset(bench.data_folder(jobs[1])).train) == 6
    rows = []
    for j in jobs:
        (tmp_path / j["method"]).mkdir()
        rows.append(bench.work(j, tmp_path / j["method"]))
    base, lora = rows
    assert base["pres"] == base["drift"] == 0 and lora["drift"] > 0
    assert base["pres_trained"] == base["obedience"] == 0
    measures = ("dino", "clip_t", "pres", "drift", "obedience")
    curve = {f"{key}_{k}_of_4" for key in measures for k in range(5)}
    assert set(lora) - set(base) == {*bench.COSTS, *curve, "seconds_to_half", "seconds_to_best"}
    assert all(
        math.isfinite(v) for row in rows for v in row.values() if not isinstance(v, str | None)
    )
    assert (
        lora["dino_0_of_4"] != lora["dino_4_of_4"]
        and lora["drift_0_of_4"] == 0 < lora["drift_4_of_4"]
    )
    assert (
        not (tmp_path / "lora" / "run").exists()
        and len(list((tmp_path / "lora").glob("*.png"))) >= 1
    )
    foot = plans.job(
        subjects[0].name, "lora", text_encoder_rate=1e-3, **plans.low_memory("lora")[-1]
    )
    row = bench.work(foot, tmp_path / "lora")
    assert set(lora) - set(row) == curve | {
        "seconds_to_half",
        "seconds_to_best",
    }, "only of the preset's runs the way is measured"
    assert row["peak_bytes"] < lora["peak_bytes"] and row["file_bytes"] > lora["file_bytes"]
    monkeypatch.setattr(recipes, "device_supports", lambda what, device: what != "nf4")
    with pytest.raises(BadInput, match="quantize 'none' instead of 'nf4'"):
        bench.work(foot, tmp_path / "lora")


def test_a_study_that_cuts_no_lora_ends_in_its_table(tmp_path, monkeypatch, capsys):
    job = plans.job("00-robot", "lora")
    row = {"settings_hash": run_name(job), "base_hash": "b", "judge": "j"}

    def sweep(jobs, *rest):  # as the real one, which has nothing to do without jobs
        assert jobs, "asked for nothing"
        return [row | job for job in jobs]

    monkeypatch.setattr(bench, "RESULTS", ROOT / "data" / "results" / "none.csv")
    monkeypatch.setattr(bench, "WORK", tmp_path / "work")
    monkeypatch.setattr(bench, "hashes", lambda: ("b", "j"))
    monkeypatch.setattr(bench, "bench_subjects", lambda count: [])
    monkeypatch.setattr(bench, "studies", lambda names, seeds: {"rate": [job]})
    monkeypatch.setattr(bench, "make_data", lambda jobs, subjects: None)
    monkeypatch.setattr(bench, "sweep", sweep)
    monkeypatch.setattr(bench, "write_results", lambda plan, rows: list(rows.values()))
    monkeypatch.setattr("sys.argv", ["pocketbench", "--workers", "1"])
    bench.main()
    assert capsys.readouterr().out.startswith("1 rows in data/results/none.csv, 1 of them")


def test_rows_that_ship_count_as_finished_and_stay_in_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "bench.csv")
    monkeypatch.setattr(bench, "WORK", tmp_path / "work")
    monkeypatch.setattr(bench, "hashes", lambda: ("b", "j"))
    monkeypatch.setattr(bench.learning_rates, "RESULTS", tmp_path / "rates.json")
    kept = {"base_hash": "b", "judge": "j"}
    one, two, three = (plans.job("00-robot", m) for m in ("base", "lora", "dreambooth"))
    rows = {
        run_name(j): j | kept | {"dino": 0.5, "settings_hash": run_name(j)}
        for j in (one, two, three)
    }
    bench.write_results({"main": [one, two], "identifier": [two]}, rows)
    assert [(r["study"], r["method"], r["variant"]) for r in bench.shipped()] == [
        ("main", "base", "good"),
        ("main", "lora", "good"),
        ("identifier", "lora", "rare"),
    ]
    bench.hand_in([one, two, three])
    there = {p.parent.name: read_json(p) for p in (tmp_path / "work" / "runs").glob("*/row.json")}
    assert (
        set(there) == {run_name(one), run_name(two)}
        and there[run_name(two)]["variant"] == "good"
        and there[run_name(two)]["dino"] == 0.5
    )
    bench.write_results({"main": [three]}, rows)
    assert len(bench.shipped()) == 4
    # Of another base, no row counts as finished; a study's rows stay until it is run anew.
    monkeypatch.setattr(bench, "hashes", lambda: ("another", "j"))
    monkeypatch.setattr(bench, "WORK", tmp_path / "of_another")
    bench.hand_in([one, two, three])
    assert not (tmp_path / "of_another").exists()
    anew = {run_name(one): rows[run_name(one)] | {"base_hash": "another"}}
    bench.write_results({"main": [one, two, three]}, anew)
    assert [(r["study"], r["method"], r["base_hash"]) for r in bench.shipped()] == [
        ("main", "base", "another"),
        ("identifier", "lora", "b"),
    ]
