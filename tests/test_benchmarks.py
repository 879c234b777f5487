"""What the README prints of speed and memory is what was measured, and the presets are what the sweep found."""

import pytest
from conftest import ROOT

from benchmarks.__main__ import README, RESULTS, SECTION, figures, middle
from benchmarks.learning_rates import RESULTS as SWEEP
from benchmarks.learning_rates import curves
from lib.settings import PRESETS, read_json


def test_the_readme_prints_what_was_measured():
    section = SECTION.search(README.read_text("utf-8"))
    assert section, "README.md has lost the marks between which `make bench` writes"
    assert section[0].removeprefix(section[1]).removesuffix(section[2]) == figures(read_json(RESULTS)), "run `make bench` again"


def test_the_readme_shows_the_picture_that_bench_makes():
    assert "(data/results/side_by_side.png)" in README.read_text("utf-8") and (ROOT / "data" / "results" / "side_by_side.png").is_file()


def test_the_middle_keeps_the_spread():
    assert middle([3.0, 1.0, 2.0]) == {"median": 2.0, "smallest": 1.0, "largest": 3.0, "rounds": 3}


@pytest.mark.parametrize("method", ["lora", "dreambooth"])
def test_the_preset_is_the_best_rate_of_the_sweep(method):
    found = read_json(SWEEP)
    assert found["pocket"] == curves(found["runs"]), "the curve is the mean of the runs beside it"
    best = max(found["pocket"][method], key=lambda row: row["dino"])
    assert PRESETS[method, "pocket"]["learning_rate"] == best["learning_rate"]
