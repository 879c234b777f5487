"""What the README prints of speed and memory is what was measured, and the presets are what the
sweep found.
"""

import subprocess

import pytest
from conftest import ROOT

from benchmarks import file_sizes
from benchmarks import learning_rates as rates
from benchmarks.__main__ import RESULTS, RESULTS_PAGE, figures, middle
from benchmarks.csv_rows import read_table
from benchmarks.pocketbench import RESULTS as BENCH
from benchmarks.sections import OWN_README, section
from lib.config.presets import PRESETS
from lib.files.json_file import read_json


def test_the_readme_prints_what_was_measured():
    assert section(RESULTS_PAGE, "bench") == figures(read_json(RESULTS)), "run `make bench` again"


def test_the_readme_shows_the_picture_that_bench_makes():
    assert (
        "(data/results/side_by_side.png)" in (ROOT / "README.md").read_text("utf-8")
        and (ROOT / "data" / "results" / "side_by_side.png").is_file()
    )


def test_the_middle_keeps_the_spread():
    assert middle([3.0, 1.0, 2.0]) == {"median": 2.0, "smallest": 1.0, "largest": 3.0, "rounds": 3}


@pytest.mark.parametrize("method", ["lora", "dreambooth"])
def test_the_preset_is_the_best_rate_of_the_sweep(method):
    found = read_json(rates.RESULTS)
    assert found["pocket"] == rates.curves(read_table(BENCH)), (
        "the curve is the mean of PocketBench's rows: run its study rate again"
    )
    assert (
        PRESETS[method, "pocket"]["learning_rate"]
        == rates.best(found["pocket"][method])
        == found["best"][method]
    )
    tried = [point["learning_rate"] for point in found["pocket"][method]]
    assert tried[0] < found["best"][method] < tried[-1], (
        "the best rate lies inside the sweep, not at its end"
    )


def test_a_rate_is_best_where_the_subject_is_learned_and_the_prompt_followed():
    def row(method, subject, dino, clip_t, **more):
        who = {"study": "rate", "subject": subject, "variant": "good", "method": method}
        return who | {"dino": dino, "clip_t": clip_t, "dino_real": 0.9} | more

    rows = [row("base", s, 0.1, 0.5) for s in "ab"]
    rows += [
        row("lora", s, dino, clip_t, learning_rate=rate)
        for s in "ab"
        for rate, dino, clip_t in ((1e-3, 0.2, 0.5), (2e-3, 0.5, 0.4), (4e-3, 0.8, 0.1))
    ]
    found = rates.curves(
        [*rows, row("lora", "a", 0.9, 0.5, learning_rate=8e-3) | {"study": "main"}]
    )
    assert [point["likeness"] for point in found["lora"]] == pytest.approx([0.125, 0.5, 0.875])
    assert [point["obedience"] for point in found["lora"]] == pytest.approx([1.0, 0.8, 0.2])
    assert rates.best(found["lora"]) == 2e-3 and found["dreambooth"] == []
    assert [point["error"] for point in found["lora"]] == [0, 0, 0], "two subjects that are alike"
    assert rates.both(-0.1, 0.9) == 0 and rates.both(0.5, 0.5) == 0.5


def test_of_rates_within_a_standard_error_of_the_highest_the_lowest_is_taken():
    def point(rate, both, error):
        return {"learning_rate": rate, "both": both, "error": error}

    curve = [point(1e-3, 0.6, 0.2), point(2e-3, 0.71, 0.2), point(4e-3, 0.8, 0.1)]
    assert rates.best(curve) == 2e-3
    assert rates.best([*curve, point(8e-3, 0.9, 0.05)]) == 8e-3


def test_files_of_stable_diffusions_size_take_what_was_promised_at_most():
    found = read_json(file_sizes.RESULTS)
    assert section(OWN_README, "sizes") == file_sizes.figures(found), (
        "run `python -m benchmarks.file_sizes` again"
    )
    assert set(found["cases"]) == set(file_sizes.CASES)
    for case, (what, wanted, _) in file_sizes.CASES.items():
        assert found["cases"][case]["seconds"] <= wanted, what
    assert all(
        found["cases"][case]["memory"] < 2 * found["checkpoint_bytes"]
        for case in file_sizes.STREAMED
    )


def test_a_case_that_fails_takes_nothing_from_the_others():
    def measure(case):
        if case == "b":
            raise subprocess.CalledProcessError(1, case)
        if case == "d":
            raise KeyboardInterrupt
        return case.upper()

    saved = {}
    assert file_sizes.collect("abc", measure, saved.__setitem__) == ["b"] and saved == {
        "a": "A",
        "c": "C",
    }
    with pytest.raises(KeyboardInterrupt):
        file_sizes.collect("ade", measure, saved.__setitem__)
    assert saved == {"a": "A", "c": "C"}, "saved as it was measured, not at the end"


def test_what_was_measured_of_some_cases_is_shown_without_the_rest():
    found = {
        "cases": {"pocket": {"seconds": 0.111, "rounds": 9, "memory": 2**29, "before": 0}},
        "rank": 32,
        "device": "CPU",
        "versions": {"torch": "2"},
    }
    text = file_sizes.figures(found)
    assert (
        "| 0.3 | 0.11 | 0.50 | - |" in text
        and text.count("| not measured | - | - |") == len(file_sizes.CASES) - 1
    )
