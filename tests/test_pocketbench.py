"""PocketBench: its plan, its data sets (careless ones too), and one run of it from photos to row."""

import math

import pytest

from benchmarks import pocketbench as bench
from lib.photos import load_dataset, prepare
from lib.pocket.subjects import bench_subjects
from lib.sweep import name


@pytest.fixture(scope="module")
def subjects():
    return bench_subjects(13)


def test_runs_that_two_studies_ask_for_are_made_once(subjects):
    plan = bench.studies([s.name for s in subjects], 3)
    names = {study: {name(j) for j in jobs} for study, jobs in plan.items()}
    assert all(len(names[study]) == len(jobs) for study, jobs in plan.items())
    assert len(plan["main"]) == 13 * (1 + 2 * 3)
    shared = [(study, len(names["main"] & names[study])) for study in ("rank", "prior", "rate", "identifier", "careless", "kinds")]
    assert shared == [("rank", 12), ("prior", 24), ("rate", 12), ("identifier", 12), ("careless", 12), ("kinds", 0)]


@pytest.mark.parametrize("variant", ["good", "duplicates", "one_background", "common", "wrong_noun", "no_noun"])
def test_every_variant_makes_a_data_set_of_six_and_two(subjects, variant, tmp_path):
    for subject in subjects[:6]:
        bench.photos(subject, variant, tmp_path / subject.name)
        data = prepare(tmp_path / subject.name, tmp_path / f"{subject.name}-set")
        assert (len(data.train), len(data.test)) == (6, 2)
        assert all(item.caption.startswith(f"a {data.subject.identifier} {data.subject.class_noun} ") for item in data.train + data.test)
        right = data.subject.class_noun == subject.class_noun
        assert right != (variant in ("wrong_noun", "no_noun"))


def test_the_prompts_are_25_and_the_class_prompts_hold_no_identifier(dataset):
    pairs = bench.bench_prompts(dataset.subject)
    assert len(set(pairs)) == 25
    assert all("zwx" in asked.split() and "zwx" not in plain.split() for asked, plain in pairs)
    assert all(asked == plain for asked, plain in bench.bench_prompts(dataset.subject, with_identifier=False))


@pytest.mark.slow
def test_a_run_gives_a_whole_row(subjects, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "WORK", tmp_path)
    monkeypatch.setattr(bench, "STEPS", 2)
    monkeypatch.setattr(bench, "SEEDS", (1000, 1001))
    monkeypatch.setattr(bench, "PLACES", ("in the snow",))
    jobs = [bench.job(subjects[0].name, method) for method in ("base", "lora")]
    bench.make_data(jobs, subjects)
    assert len(load_dataset(bench.data_folder(jobs[1])).train) == 6
    rows = []
    for j in jobs:
        (tmp_path / j["method"]).mkdir()
        rows.append(bench.work(j, tmp_path / j["method"]))
    base, lora = rows
    assert base["pres"] == base["drift"] == 0 and lora["drift"] > 0
    assert set(lora) - set(base) == set(bench.COSTS)
    assert all(math.isfinite(v) for row in rows for v in row.values() if not isinstance(v, str))
    assert not (tmp_path / "lora" / "run").exists() and len(list((tmp_path / "lora").glob("*.png"))) >= 1
