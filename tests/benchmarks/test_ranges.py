"""Where one more subject is expected, and whether a reader's own run lies there."""

import pytest
from bench_rows import bench

from benchmarks.analysis.effects import BENCH
from benchmarks.analysis.ranges import NUMBERS, predicted, ranges
from benchmarks.analysis.study_rows import read_bench
from lib.evaluation import results
from lib.evaluation.comparison_table import Comparison
from lib.files.json_file import read_json
from lib.files.paths import ROOT

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
    # mean .92, s = .01789, t(1 - .025 / 24, 5) = 5.840, sqrt(1 + 1/6) = 1.0801
    assert NUMBERS == 24
    assert (low, high) == pytest.approx((0.92 - 0.11284, 0.92 + 0.11284), abs=1e-4)
    low, high = predicted(rows("place_drawn", [1.0] * 6), "place_drawn")
    assert low < 0.98 and high > 1, "no narrower than what counts as the same"
    assert predicted(rows(values=VALUES[:5]), "dino") is None, "too few subjects to say"
    twice = rows() + [row | {"dino": row["dino"] + 0.2} for row in rows()]
    low, high = predicted(twice, "dino")
    assert (low + high) / 2 == pytest.approx(1.02), "means over seeds are the values"


def test_a_run_is_held_against_each_method_and_column():
    found = ranges(rows("drift") + rows("obedience", [-0.02] * 3 + [0.0] * 3) + rows("clip_i"))
    assert found["subjects"] == 6 and set(found["lora"]) == {"drift", "obedience"}, (
        "only what subjects of any hand have in common"
    )
    (line,) = results.range_lines(own(drift=0.93, obedience=0.94), found)
    assert line.startswith("On all 2 numbers your run lies where")
    first, outside = results.range_lines(own(drift=0.5, obedience=0.94), found)
    assert first.startswith("On 1 of 2 numbers") and outside.startswith("LoRA's drift is 0.500 (th")
    _, lost = results.range_lines(own(drift=0.93, obedience=0.5), found)
    assert lost.startswith("LoRA's class obeyed is -0.450")


def test_clip_t_is_held_as_a_share_of_the_photos():
    found = ranges([row | {"clip_t_real": 1.84} for row in rows("clip_t")])
    low, high = found["lora"]["clip_t_share"]
    assert (low, high) == pytest.approx((0.4387, 0.5613), abs=1e-3)
    (line,) = results.range_lines(own(clip_t=0.2, clip_t_share=0.5), found)
    assert line.startswith("On all 1 numbers")


def test_a_run_of_another_judge_or_base_is_held_against_nothing():
    found = ranges(rows("drift"))
    for other in (own("real", drift=0.1), own(base="sd15", drift=0.1)):
        (line,) = results.range_lines(other, found)
        assert "held against none" in line


def test_the_default_course_lies_where_the_benchs_subjects_do():
    """What `make bench` read of the course's own run: the example character, seed 0. Three numbers
    are known to lie outside (of 24 ranges of 95 % one or two are expected to), and notebook 04
    tells them. CLIP hardly takes that robot for one: its photos score .377 with their own captions,
    where the base's robots score .540, so that a small difference is a large share. And it is of
    another hand than the bench's: trained whole, the model draws it in its photos' places in 16 of
    100 pictures, where it draws the bench's in the places asked for.
    """
    scores = read_json(ROOT / "benchmarks" / "results" / "pocket.json")["scores"]
    own = Comparison(scores, {"judge": "pocket", "base": "pocket"})
    first, *outside = results.range_lines(own)
    share, place = "CLIP-T, of photos'", "place drawn"
    known = [f"LoRA's {share}", f"DreamBooth's {share}", f"DreamBooth's {place}"]
    assert [line.split(" is ")[0] for line in outside] == known, first
    assert first.startswith("On 21 of 24 numbers"), "likeness and what is drawn among them"


def test_what_ships_is_of_the_rows_that_ship():
    assert results.read_result("ranges") == ranges(read_bench(BENCH)), (
        "run `python -m benchmarks.analysis` again"
    )
    assert ranges(bench())["lora"], "PocketBench's rows have these columns"
