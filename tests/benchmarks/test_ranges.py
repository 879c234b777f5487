"""Where one more subject is expected, and whether a reader's own run lies there."""

import pytest
from bench_rows import bench

from benchmarks.analysis.effects import BENCH
from benchmarks.analysis.ranges import predicted, ranges, with_share
from benchmarks.analysis.study_rows import read_bench
from lib.evaluation import results
from lib.evaluation.comparison_table import Comparison

VALUES = (0.90, 0.92, 0.94, 0.90, 0.92, 0.94)


def rows(column="dino", values=VALUES, method="lora"):
    return [
        {"study": "main", "subject": f"s{k}", "method": method, column: value, "judge": "pocket x"}
        for k, value in enumerate(values)
    ]


def own(judge="pocket", base="pocket", **lora):
    return Comparison(
        {"base_model": {"obedience": 0.95}, "lora": lora}, {"judge": judge, "base": base}
    )


def test_the_interval_is_that_of_one_more_subject():
    low, high = predicted(rows(), "dino")
    # mean .92, s = .0179, t(.975, 5) = 2.571, sqrt(1 + 1/6) = 1.0801
    assert (low, high) == pytest.approx((0.92 - 0.04968, 0.92 + 0.04968), abs=1e-4)
    assert predicted(rows(values=VALUES[:5]), "dino") is None, "too few subjects to say"
    twice = rows() + [row | {"dino": row["dino"] + 0.2} for row in rows()]
    low, high = predicted(twice, "dino")
    assert (low + high) / 2 == pytest.approx(1.02), "means over seeds are the values"


def test_a_run_is_held_against_each_method_and_column():
    found = ranges(rows() + rows("obedience", [-0.02] * 3 + [0.0] * 3))
    assert found["subjects"] == 6 and set(found["lora"]) == {"dino", "obedience"}
    (line,) = results.range_lines(own(dino=0.93, obedience=0.94), found)
    assert line == (
        "On all 2 numbers your run lies where one more subject is expected by PocketBench's 6."
    )
    first, outside = results.range_lines(own(dino=0.5, obedience=0.94), found)
    assert first.startswith("On 1 of 2 numbers") and outside.startswith("LoRA's DINO is 0.500 (the")
    _, lost = results.range_lines(own(dino=0.93, obedience=0.5), found)
    assert lost.startswith("LoRA's class obeyed is -0.450")


def test_a_run_of_another_judge_or_base_is_held_against_nothing():
    found = ranges(rows())
    for other in (own("real", dino=0.1), own(base="sd15", dino=0.1)):
        (line,) = results.range_lines(other, found)
        assert "held against none" in line


def test_prompt_following_is_held_against_what_the_photos_score():
    assert with_share({"clip_t": 0.36, "clip_t_real": 0.4})["clip_t_share"] == pytest.approx(0.9)
    assert with_share({"clip_t": 0.36})["clip_t_share"] is None


def test_what_ships_is_of_the_rows_that_ship():
    assert results.read_result("ranges") == ranges(read_bench(BENCH)), (
        "run `python -m benchmarks.analysis` again"
    )
    assert ranges(bench())["lora"], "PocketBench's rows have these columns"
