"""Effects and intervals on rows whose answer is known: an effect, none, noise, too few subjects,
damaged numbers.
"""

from dataclasses import replace

import numpy as np
import pytest
from bench_rows import base_rows, bench

from benchmarks.analysis.effects import (
    COSINE,
    ENOUGH,
    NOT_MEASURED,
    Effect,
    decide,
    effect,
    interval,
    student,
    swing,
)
from benchmarks.analysis.study_rows import busy, read_bench
from lib.files.csv_table import write_table
from lib.files.errors import BadInput

# --- effects


def test_an_effect_is_found_with_its_size():
    found = effect(bench(dino=0.05), "dino")
    assert found.low < 0.05 < found.high and found.value == pytest.approx(0.05, abs=0.005)
    assert (found.subjects, found.seeds, found.kind, found.unit) == (12, 3, "difference", "cosine")
    assert found.of - found.against == pytest.approx(found.value)


def test_subjects_are_paired_so_that_their_own_levels_do_not_count():
    levels = [row["dino"] for row in bench(dino=0.05) if row["method"] == "lora"]
    found = effect(bench(dino=0.05), "dino")
    assert np.std(levels) > 0.05 and found.high - found.low < 0.01


def test_costs_are_ratios_averaged_as_logarithms():
    rows = bench(subjects=6, seeds=1)
    for row in rows:
        if row["method"] == "dreambooth":
            row["file_bytes"] *= {"s00": 2, "s01": 8, "s02": 2, "s03": 8, "s04": 2, "s05": 8}[
                row["subject"]
            ]
    found = effect(rows, "file_bytes")
    assert found.value == pytest.approx(4) and found.kind == "ratio", (
        "the geometric mean: half and twice as much cancel"
    )
    assert 2 <= found.low < 2.5 and found.low * found.high == pytest.approx(16, rel=0.02), (
        "the same factor down as up"
    )
    assert found.error == pytest.approx(np.std(np.log([2, 8, 2, 8, 2, 8]), ddof=1) / 6**0.5), (
        "of the logarithms"
    )


def test_seeds_are_averaged_within_the_subject_first():
    rows = bench(subjects=3, seeds=1, noise=0)
    for row in rows:
        row["dino"] = 0.0
    more = [
        dict(row, seed=k, dino=0.3 * (row["method"] == "dreambooth"))
        for row in rows
        if row["subject"] == "s00"
        for k in range(1, 10)
    ]
    assert effect(rows + more, "dino").value == pytest.approx(0.27 / 3), (
        "ten seeds of one subject weigh as one subject"
    )
    assert effect(rows + more, "dino").seeds == 1, "the fewest that any subject has"


def test_a_run_without_its_partner_does_not_count():
    rows = bench(dino=0.05)
    gone = [r for r in rows if not (r["method"] == "lora" and r["seed"] == 2)]
    wild = [dict(r, dino=9.0) if r["seed"] == 2 else r for r in gone]
    assert effect(wild, "dino") == effect(gone, "dino") and effect(gone, "dino").seeds == 2
    one = [r for r in rows if not (r["method"] == "lora" and r["subject"] == "s03")]
    assert effect(one, "dino").subjects == 11


def test_an_empty_cell_is_left_out():
    rows = bench(memorising=0.1)
    rows = [dict(r, memorising=None) if r["subject"] in ("s00", "s01") else r for r in rows]
    assert effect(rows, "memorising").subjects == 10


def test_the_order_of_the_rows_does_not_matter():
    rows = bench(dino=0.03)
    assert effect(rows[::-1], "dino") == effect(rows, "dino")


def test_against_the_base_model_which_has_no_seed():
    rows = bench()
    found = effect(rows + base_rows(rows), "dino", against={"method": "base"}, pair=())
    assert (
        found.subjects == 12
        and found.seeds == 3
        and found.value
        == pytest.approx(np.mean([r["dino"] for r in rows if r["method"] == "dreambooth"]) - 0.1)
    )


def test_a_side_alone_is_its_level():
    rows = bench(subjects=6, noise=0)
    found = effect(rows, "dino", of={"method": "lora"}, against=None, pair=())
    levels = [
        np.mean([r["dino"] for r in rows if r["method"] == "lora" and r["subject"] == f"s{k:02}"])
        for k in range(6)
    ]
    assert (
        found.value == found.of == pytest.approx(np.mean(levels))
        and found.against is None
        and found.subjects == 6
    )
    assert (found.low, found.high) == pytest.approx(interval(levels))
    size = effect(rows, "file_bytes", of={"method": "lora"}, against=None, pair=())
    logs = [np.log(r["file_bytes"]) for r in rows if r["method"] == "lora"]
    assert size.value == pytest.approx(np.exp(np.mean(logs))) and size.seeds == 3


def test_a_bench_that_was_not_run_is_said_and_one_that_was_is_read(tmp_path, capsys):
    assert (
        read_bench(tmp_path / "none.csv") == []
        and "`make pocketbench` makes" in capsys.readouterr().out
    )
    write_table(tmp_path / "some.csv", [{"study": "main", "dino": 0.5}])
    assert (
        read_bench(tmp_path / "some.csv") == [{"study": "main", "dino": 0.5}]
        and not capsys.readouterr().out
    )
    write_table(
        tmp_path / "some.csv",
        [{"study": "main", "loss_train": 0.1, "loss_held_out": 0.3}, {"study": "main"}],
    )
    assert [r.get("loss_gap") for r in read_bench(tmp_path / "some.csv")] == [
        pytest.approx(0.2),
        None,
    ]
    (tmp_path / "some.csv").write_text("study,dino\nmain,nan\n")
    with pytest.raises(BadInput, match="not finite"):
        read_bench(tmp_path / "some.csv")


def test_runs_that_shared_the_machine_lose_their_times_and_nothing_else(tmp_path):
    rows = [
        r | {"seconds_per_step": 0.2, "train_seconds": 40.0}
        for r in bench(ratios={"seconds_per_step": 1.0})
    ]
    slow = [
        (
            r | {"seconds_per_step": 0.4, "train_seconds": 80.0}
            if r["subject"] == "s00" and r["seed"] == 0
            else r
        )
        for r in rows
    ]
    other = [
        r | {"study": "rank", "rank": 64, "seconds_per_step": 0.5}
        for r in rows
        if r["method"] == "lora"
    ]  # slower by its recipe
    assert len(busy(slow + other)) == 2 and not busy(rows)
    write_table(tmp_path / "some.csv", slow + other)
    read = read_bench(tmp_path / "some.csv")
    assert (
        [r["seconds_per_step"] for r in read].count(None)
        == [r["train_seconds"] for r in read].count(None)
        == 2
    )
    assert (
        effect(read, "dino").value == effect(slow, "dino").value
        and effect(read, "seconds_per_step").value == 1
    )


def test_times_are_compared_on_one_device_only():
    rows = [
        dict(r, device="GPU" if r["method"] == "dreambooth" and r["subject"] == "s00" else "CPU")
        for r in bench()
    ]
    assert effect(rows, "seconds_per_step").subjects == 11 and effect(rows, "dino").subjects == 12


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.6", True])
def test_a_value_that_is_no_number_is_an_error_and_never_averaged(value):
    rows = bench()
    rows[7]["dino"] = value
    with pytest.raises(
        BadInput,
        match=r"main, subject s01, method dreambooth, seed 0 has dino = .*make pocketbench",
    ) as caught:
        effect(rows, "dino")
    assert "\n" not in str(caught.value)


def test_a_cost_of_nothing_is_an_error():
    rows = bench()
    rows[0]["file_bytes"] = 0
    with pytest.raises(BadInput, match="file_bytes = 0 where a number above 0"):
        effect(rows, "file_bytes")


def test_runs_that_cannot_be_compared_are_refused():
    rows = bench()
    with pytest.raises(BadInput, match="mixes judge"):
        effect([dict(r, judge="real") if r["seed"] == 1 else r for r in rows], "dino")
    with pytest.raises(BadInput, match="mixes base_hash"):
        effect([dict(r, base_hash="other") if r["seed"] == 1 else r for r in rows], "file_bytes")
    with pytest.raises(BadInput, match="two runs of s00"):
        effect([*rows, dict(rows[0], dino=0.9)], "dino")
    with pytest.raises(BadInput, match="no measure 'dyno'"):
        effect(rows, "dyno")


# --- intervals


@pytest.mark.parametrize("subjects", [6, 12, 30])
def test_intervals_cover_at_about_the_nominal_rate(subjects):
    draw, trials = np.random.default_rng(5), 300
    ends = [interval(draw.normal(1.0, 2.0, subjects)) for _ in range(trials)]
    covered = sum(low <= 1.0 <= high for low, high in ends) / trials
    assert 0.92 <= covered <= 0.98, (
        "0.95, give or take more than two of the simulation's standard errors; plain percentiles of"
        " 6: 0.87"
    )


@pytest.mark.parametrize(
    "tail, v, t",
    [
        (0.025, 5, 2.5706),
        (0.025, 11, 2.2010),
        (0.025, 29, 2.0452),
        (5e-4, 5, 6.8688),
        (0.005, 1, 63.66),
    ],
)
def test_students_t_is_that_of_the_tables(tail, v, t):
    assert student(tail, v) == pytest.approx(t, rel=1e-4)


def test_intervals_that_hold_at_once():
    draw, wrong, alone, count = np.random.default_rng(8), 0, 0, 20
    for _ in range(100):
        sets = draw.normal(0.0, 0.1, (count, 12))
        found = [replace(made(v.mean(), 0, 0), error=v.std(ddof=1) / 12**0.5) for v in sets]
        wrong += any(not e.beside(count).low <= 0 <= e.beside(count).high for e in found)
        alone += any(not e.beside(1).low <= 0 <= e.beside(1).high for e in found)
    assert wrong <= 12 and alone >= 45, (
        "of 20 true nulls one is found in 5 % of the trials, where 64 % find one at 95 % each"
    )
    ratio = effect(bench(seeds=1, ratios={"file_bytes": 8.0}), "file_bytes").beside(40)
    assert ratio.low <= 8 <= ratio.high and effect(bench(subjects=3), "dino").beside(40).low is None


def test_chance_seldom_makes_a_verdict():
    draw, wrong = np.random.default_rng(6), 0
    for _ in range(200):
        values = draw.normal(0.0, 0.1, 12)
        low, high = interval(values)
        found = Effect(values.mean(), low, high, 12, 1, "cosine", "difference", COSINE)
        wrong += decide(found)[0] in ("holds", "does not hold")
    assert wrong / 200 <= 0.10


def test_an_interval_takes_six_values_and_is_the_same_each_time():
    assert interval([0.1] * 5) == (None, None) and interval([]) == (None, None)
    values = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    low, high = interval(values)
    assert interval(values) == (low, high) and 0.1 < low < 0.25 and 0.45 < high < 0.6
    assert 1 - 2 ** (1 - ENOUGH) > 0.95 > 1 - 2 ** (2 - ENOUGH), (
        "an interval within its values covers no more: of five no 95 %"
    )


# --- what an interval allows


def made(value, low, high, kind="difference", margin=0.02, subjects=12):
    return Effect(value, low, high, subjects, 3, "cosine", kind, margin)


@pytest.mark.parametrize(
    "found, sign, said",
    [
        (made(0.05, 0.03, 0.07), 1, ("holds", "")),
        (made(0.05, 0.03, 0.07), -1, ("does not hold", "the other way round")),
        (made(-0.05, -0.07, -0.03), -1, ("holds", "")),
        (made(0.03, 0.01, 0.05), 1, ("holds", "")),
        (made(0.001, -0.01, 0.015), 1, ("no difference", "the same within 0.02")),
        (
            made(0.01, 0.005, 0.015),
            1,
            ("no difference", "the same within 0.02; more, by less than that"),
        ),
        (
            made(-0.01, -0.015, -0.005),
            1,
            ("no difference", "the same within 0.02; less, by less than that"),
        ),
        (made(0.01, -0.03, 0.05), 1, ("no difference found", "cannot exclude up to 0.050")),
        (made(0.01, -0.06, 0.05), 1, ("no difference found", "cannot exclude up to 0.060")),
        (made(1.5, 1.3, 1.7, "ratio", 0.05), 1, ("holds", "")),
        (made(0.88, 0.87, 0.90, "ratio", 0.05), 1, ("does not hold", "the other way round")),
        (made(1.01, 0.97, 1.04, "ratio", 0.05), 1, ("no difference", "the same within 5%")),
        (
            made(0.98, 0.80, 1.10, "ratio", 0.05),
            1,
            ("no difference found", "cannot exclude up to x 1.25"),
        ),
        (made(0.5, 0.4, 0.6, subjects=5), 1, ("not enough subjects", "5; a verdict takes 6")),
        (made(0.5, None, None, subjects=2), 1, ("not enough subjects", "2; a verdict takes 6")),
        (made(None, None, None, subjects=0), 1, (NOT_MEASURED, "")),
    ],
)
def test_what_an_interval_allows_to_say(found, sign, said):
    assert decide(found, sign) == said


def test_another_seed_moves_a_mean_beyond_its_swing_in_a_twentieth_of_the_cases():
    draw, beyond = np.random.default_rng(0), 0
    for _ in range(2000):
        scores = draw.normal(0, 1, (6, 1)) + draw.normal(
            0, 0.01, (6, 4)
        )  # subjects differ widely; three seeds, and one more
        rows = [
            {"study": "s", "method": "lora", "subject": k, "seed": s, "dino": float(scores[k, s])}
            for k in range(6)
            for s in range(3)
        ]
        beyond += abs((scores[:, 3] - scores[:, 0]).mean()) > swing(
            rows, "dino", "s", {"method": "lora"}, 6
        )
    assert 0.03 < beyond / 2000 < 0.08
    assert swing(rows[::3], "dino", "s", {"method": "lora"}, 6) is None, (
        "one seed a subject has no spread"
    )
