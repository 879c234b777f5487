"""Verdicts on rows whose answer is known: an effect, none, noise, too few subjects, damaged numbers, studies that were not run."""

import math
import subprocess
import sys

import numpy as np
import pytest

from lib.compare import Comparison
from lib.settings import BadInput
from lib.verdicts import CLAIMS, COSINE, ENOUGH, FULL, HEADINGS, NOT_MEASURED, Effect, decide, effect, interval, verdict_table

COSTS = {"seconds_per_step": 0.2, "train_seconds": 40.0, "peak_bytes": 90 * 2**20, "file_bytes": 2_500_000}
SCORES = {"dino": 0.6, "dino_train": 0.63, "clip_i": 0.7, "clip_i_train": 0.72, "clip_t": 0.3, "diversity": 0.05, "memorising": 0.03,
          "nearest": 0.01, "consistency": 0.06, "pres": 0.02, "drift": 0.1}


def bench(subjects=12, seeds=3, study="main", noise=0.005, methods=("lora", "dreambooth"), seed=1, ratios=None, **gaps):
    """Rows of both methods: DreamBooth's scores are LoRA's plus `gaps`, its costs LoRA's times `ratios`; subjects differ widely."""
    draw, rows = np.random.default_rng(seed), []
    for s in range(subjects):
        level = draw.normal(0, 0.1)
        for k in range(seeds):
            for method in methods:
                full = method == "dreambooth"
                scores = {m: v + level + (gaps.get(m, 0) if full else 0) + draw.normal(0, noise) for m, v in SCORES.items()}
                costs = {m: v * math.exp(level) * ((ratios or {}).get(m, 1) if full else 1) for m, v in COSTS.items()}
                rows.append({"study": study, "subject": f"s{s:02}", "method": method, "seed": k, "rank": None if full else 16,
                             "base_hash": "b", "judge": "pocket", "device": "CPU", **costs, **scores})
    return rows


def base_rows(rows, dino=0.1):
    """The untouched base model's rows: no seed, no costs."""
    return [{"study": study, "subject": s, "method": "base", "seed": None, "dino": dino, "base_hash": None, "judge": "pocket",
             "device": "CPU", "train_seconds": None} for study, s in sorted({(r["study"], r["subject"]) for r in rows})]


def table(rows, own=None):
    """claim number -> its row of the table, by heading."""
    return {int(line[0]): dict(zip(HEADINGS, line)) for line in verdict_table(rows, own)}


def verdict(rows, claim):
    return table(rows)[claim]["verdict"]


# --- effects -------------------------------------------------------------------------------------------------------------------------


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
    rows = bench(subjects=4, seeds=1)
    for row in rows:
        if row["method"] == "dreambooth":
            row["file_bytes"] *= {"s00": 2, "s01": 8, "s02": 2, "s03": 8}[row["subject"]]
    found = effect(rows, "file_bytes")
    assert found.value == pytest.approx(4) and found.kind == "ratio", "the geometric mean: half and twice as much cancel"
    assert found.low == pytest.approx(2) and found.high == pytest.approx(8)


def test_seeds_are_averaged_within_the_subject_first():
    rows = bench(subjects=3, seeds=1, noise=0)
    for row in rows:
        row["dino"] = 0.0
    more = [dict(row, seed=k, dino=0.3 * (row["method"] == "dreambooth")) for row in rows if row["subject"] == "s00" for k in range(1, 10)]
    assert effect(rows + more, "dino").value == pytest.approx(0.27 / 3), "ten seeds of one subject weigh as one subject"
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
    assert found.subjects == 12 and found.seeds == 3 and found.value == pytest.approx(np.mean(
        [r["dino"] for r in rows if r["method"] == "dreambooth"]) - 0.1)


def test_times_are_compared_on_one_device_only():
    rows = [dict(r, device="GPU" if r["method"] == "dreambooth" and r["subject"] == "s00" else "CPU") for r in bench()]
    assert effect(rows, "seconds_per_step").subjects == 11 and effect(rows, "dino").subjects == 12


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.6", True])
def test_a_value_that_is_no_number_is_an_error_and_never_averaged(value):
    rows = bench()
    rows[7]["dino"] = value
    with pytest.raises(BadInput, match=r"main, subject s01, method dreambooth, seed 0 has dino = .*make pocketbench") as caught:
        effect(rows, "dino")
    assert "\n" not in str(caught.value)
    with pytest.raises(BadInput, match="dino"):
        verdict_table(rows)


def test_a_damaged_number_in_any_column_is_an_error():
    for column in ("loss_train", "learning_rate"):
        with pytest.raises(BadInput, match=column):
            verdict_table([dict(row, **{column: float("nan")}) for row in bench()])


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


# --- intervals -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subjects", [12, 30])
def test_intervals_cover_at_about_the_nominal_rate(subjects):
    draw, trials = np.random.default_rng(5), 300
    ends = [interval(draw.normal(1.0, 2.0, subjects)) for _ in range(trials)]
    covered = sum(low <= 1.0 <= high for low, high in ends) / trials
    assert 0.92 <= covered <= 0.98, "0.95, give or take more than two of the simulation's standard errors"


def test_chance_seldom_makes_a_verdict():
    draw, wrong = np.random.default_rng(6), 0
    for _ in range(200):
        values = draw.normal(0.0, 0.1, 12)
        low, high = interval(values)
        found = Effect(values.mean(), low, high, 12, 1, "cosine", "difference", COSINE)
        wrong += decide(found)[0] in ("holds", "does not hold")
    assert wrong / 200 <= 0.10


def test_an_interval_takes_three_values_and_is_the_same_each_time():
    assert interval([0.1, 0.2]) == (None, None) and interval([]) == (None, None)
    assert interval([0.1, 0.2, 0.3]) == interval([0.1, 0.2, 0.3])
    low, high = interval([0.1, 0.2, 0.3])
    assert low == pytest.approx(0.1) and high == pytest.approx(0.3)


def test_six_values_are_the_fewest_that_can_reach_the_nominal_rate():
    draw = np.random.default_rng(7)
    assert 1 - 2 ** (1 - ENOUGH) > 0.95 > 1 - 2 ** (2 - ENOUGH)
    ends = [interval(draw.normal(0, 1, 3)) for _ in range(200)]
    assert sum(low <= 0 <= high for low, high in ends) / 200 < 0.85, "three give an interval that is no 95 %, hence no verdict"


# --- verdicts ------------------------------------------------------------------------------------------------------------------------


def made(value, low, high, kind="difference", margin=0.02, subjects=12):
    return Effect(value, low, high, subjects, 3, "cosine", kind, margin)


@pytest.mark.parametrize("found, sign, said", [
    (made(0.05, 0.03, 0.07), 1, ("holds", "")),
    (made(0.05, 0.03, 0.07), -1, ("does not hold", "the other way round")),
    (made(-0.05, -0.07, -0.03), -1, ("holds", "")),
    (made(0.03, 0.01, 0.05), 1, ("holds", "")),
    (made(0.001, -0.01, 0.015), 1, ("no difference", "the same within 0.02")),
    (made(0.01, 0.005, 0.015), 1, ("no difference", "the same within 0.02")),
    (made(0.01, -0.03, 0.05), 1, ("no difference found", "cannot exclude up to 0.050")),
    (made(0.01, -0.06, 0.05), 1, ("no difference found", "cannot exclude up to 0.060")),
    (made(1.5, 1.3, 1.7, "ratio", 0.05), 1, ("holds", "")),
    (made(0.88, 0.87, 0.90, "ratio", 0.05), 1, ("does not hold", "the other way round")),
    (made(1.01, 0.97, 1.04, "ratio", 0.05), 1, ("no difference", "the same within 5%")),
    (made(0.98, 0.80, 1.10, "ratio", 0.05), 1, ("no difference found", "cannot exclude up to x 1.25")),
    (made(0.5, 0.4, 0.6, subjects=5), 1, ("not enough subjects", "5; a verdict takes 6")),
    (made(0.5, None, None, subjects=2), 1, ("not enough subjects", "2; a verdict takes 6")),
    (made(None, None, None, subjects=0), 1, (NOT_MEASURED, "")),
])
def test_what_an_interval_allows_to_say(found, sign, said):
    assert decide(found, sign) == said


def test_every_claim_has_its_row_even_when_nothing_was_measured():
    lines = verdict_table([])
    assert [line[0] for line in lines] == [str(k) for k in range(1, 18)]
    assert all(len(line) == len(HEADINGS) and all(isinstance(cell, str) and cell for cell in line) for line in lines)
    said = {int(line[0]): line[4] for line in lines}
    for claim in (1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 17):
        assert said[claim] == NOT_MEASURED
    for claim in (7, 8, 16):
        assert said[claim] == "measured in notebook 05"
    assert "notebook 05" in said[15] and said[9].startswith("depends on") and said[10].startswith("holds")


def test_costs_decide_their_claims():
    rows = bench(ratios={"seconds_per_step": 0.88, "peak_bytes": 2.0, "file_bytes": 8.0, "train_seconds": 1.01})
    said = table(rows)
    assert said[1]["verdict"] == "does not hold (the other way round)" and said[2]["verdict"] == said[3]["verdict"] == "holds"
    assert said[5]["verdict"] == "no difference (the same within 5%)"
    assert "x 8.00 (x 8.00 to x 8.00), 12 subjects x 3 seeds" in said[3][HEADINGS[3]]
    assert "pocket base" in said[2]["measurement"] and "pocket base" in said[3]["measurement"]
    lora = math.exp(np.mean([math.log(r["file_bytes"]) for r in rows if r["method"] == "lora"]))
    assert f"LoRA {lora * 8 / 20e6:.3g} s" in said[4][HEADINGS[3]], "seconds at 20 Mbit/s"


def test_fidelity_holds_only_if_both_encoders_say_so():
    assert verdict(bench(dino=0.05, clip_i=0.05), 6) == "holds"
    assert verdict(bench(dino=0.05, clip_i=-0.05), 6) == (
        "depends on the measure: holds for DINO; does not hold for CLIP-I (the other way round)")
    assert verdict(bench(), 6) == "no difference (the same within 0.02)"
    noisy = verdict(bench(noise=0.2), 6)
    assert "no difference found" in noisy and "cannot exclude up to" in noisy and "holds" not in noisy


def test_prompt_following_stands_beside_fidelity_without_judging_it():
    said = table(bench(dino=0.05, clip_i=0.05, clip_t=-0.2))[6]
    assert said["verdict"] == "holds" and "CLIP-T -0.2" in said[HEADINGS[3]]


def test_too_few_subjects_never_make_a_verdict():
    for subjects in (1, 2, 5):
        said = table(bench(subjects=subjects, dino=0.3, clip_i=0.3, ratios={"file_bytes": 8.0}))
        for claim in (1, 2, 3, 4, 5, 6, 12, 17):
            assert said[claim]["verdict"] == f"not enough subjects ({subjects}; a verdict takes 6)"
        assert ("no interval" in said[6][HEADINGS[3]]) == (subjects < 3)


def identifier_rows(**levels):
    rows = []
    for variant in ("rare", "common", "wrong_noun", "no_noun", "without_identifier"):
        rows += [dict(r, variant=variant, dino=r["dino"] - levels.get(variant, 0)) for r in bench(study="identifier", noise=0.003)]
    return rows


def test_the_identifier_study():
    said = table(identifier_rows(without_identifier=0.3, wrong_noun=0.2, no_noun=0.3))[11]
    assert said["verdict"] == ("depends on the measure: holds for without identifier, wrong noun, no noun; "
                               "no difference for common (the same within 0.02)")
    assert "beside it LoRA, without identifier +0.3" in said[HEADINGS[3]]
    part = [r for r in identifier_rows(without_identifier=0.3) if r["variant"] in ("rare", "without_identifier")]
    assert verdict(part, 11) == "holds for without identifier; not measured yet for common, wrong noun, no noun: make pocketbench"


def careless_rows(worse):
    rows = [dict(r, variant="good") for r in bench(study="careless")]
    for variant in ("duplicates", "one_background"):
        for row in bench(study="careless", memorising=worse):
            rows.append(dict(row, variant=variant, memorising=row["memorising"] + 0.1))
    return rows


def test_overfitting_with_good_and_with_careless_data():
    main = bench(memorising=0.05, pres=0.05, diversity=-0.02)
    assert verdict(main, 13).startswith("holds for memorising, PRES, diversity; not measured yet for memorising on careless data")
    said = table(main + careless_rows(0.2))[13]
    assert said["verdict"].startswith("depends on the measure: holds for memorising, PRES, diversity, memorising on careless data")
    assert "PRES on careless data, diversity on careless data" not in said["verdict"], "their margins differ"
    assert "no difference for PRES on careless data (the same within 0.02)" in said["verdict"]
    assert "DreamBooth's memorising with duplicates over good data" in said["verdict"]
    careless = {"variant": ("duplicates", "one_background")}
    found = effect(careless_rows(0.2), "memorising", "careless", FULL | careless, {"method": "lora"} | careless, ("seed", "variant"))
    assert found.value == pytest.approx(0.2, abs=0.01) and found.seeds == 3 and found.text() in said[HEADINGS[3]]


def test_consistency_is_better_when_smaller():
    assert verdict(bench(consistency=-0.03), 12) == "holds"
    assert verdict(bench(consistency=0.03), 12) == "does not hold (the other way round)"


def sweep(rates, **ratios):
    return [dict(row, learning_rate=rate) for k in range(max(rates.values())) for rate in [10.0 ** -k]
            for row in bench(subjects=8, seeds=2, study="rate", ratios=ratios) if k < rates[row["method"]]]


def test_the_sweep_is_summed_over_its_rates():
    rows = sweep({"lora": 4, "dreambooth": 4}, train_seconds=1.5)
    assert verdict(rows, 14) == "holds" and "the whole sweep x 1.50" in table(rows)[14][HEADINGS[3]]
    assert "8 subjects x 2 seeds" in table(rows)[14][HEADINGS[3]]
    rows = sweep({"lora": 2, "dreambooth": 4}, train_seconds=0.8)
    assert verdict(rows, 14) == (
        "depends on the measure: holds for the whole sweep; does not hold for one run of it (the other way round)")


def test_an_unfinished_sweep_is_not_summed():
    rows = sweep({"lora": 4, "dreambooth": 4})
    cut = [r for r in rows if not (r["subject"] == "s00" and r["method"] == "dreambooth" and r["learning_rate"] < 0.01)]
    assert "7 subjects" in table(cut)[14][HEADINGS[3]] and "x 1.00" in table(cut)[14][HEADINGS[3]]


def test_kinds_of_subject_have_no_interval():
    rows = [dict(r, subject={"s00": "character", "s01": "style"}[r["subject"]]) for r in bench(subjects=2, study="kinds")]
    said = table(rows + base_rows(rows))[15]
    assert "character +" in said[HEADINGS[3]] and "no interval" in said[HEADINGS[3]] and "character, style (1;" in said["verdict"]
    assert said["verdict"].endswith("the rest is measured in notebook 05")


def test_claim_17_shows_the_cost_beside_the_gap():
    said = table(bench(dino=0.05, ratios={"peak_bytes": 2.0}))[17]
    assert said["verdict"] == "holds" and "memory x 2.00" in said[HEADINGS[3]] and "file x 1.00" in said[HEADINGS[3]]


def test_the_readers_own_run_stands_beside_and_changes_nothing():
    row = {"dino": 0.5, "clip_i": 0.6, "clip_t": 0.3, "memorising": None} | COSTS
    own = Comparison({"base_model": {"dino": 0.1}, "real_photos": {"dino": 0.8}, "lora": row, "dreambooth": row | {"dino": 0.9}}, {})
    rows = bench()
    with_own, without = table(rows, own), table(rows)
    assert with_own[6]["your own run"].startswith("DINO LoRA 0.500, DreamBooth 0.900")
    assert with_own[3]["your own run"] == "LoRA 2.38 MiB, DreamBooth 2.38 MiB"
    assert with_own[12]["your own run"] == "-" and "memorising" not in with_own[13]["your own run"] and with_own[14]["your own run"] == "-"
    for claim in without:
        assert with_own[claim] | {"your own run": ""} == without[claim] | {"your own run": ""}
    assert own.rows["lora"] == row, "the comparison itself is not touched"
    own.rows["lora"]["dino"] = float("nan")
    with pytest.raises(BadInput, match="your own, method lora has dino"):
        table(rows, own)


def test_the_rows_are_not_touched():
    rows = bench()
    before = [dict(row) for row in rows]
    verdict_table(rows)
    assert rows == before


def test_it_needs_no_torch():
    code = "import sys, lib.verdicts, lib.guide; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_part_names_a_measure_that_exists():
    for _, _, _, parts in CLAIMS:
        for part in () if isinstance(parts, str) else parts:
            assert effect([], part.measure, *part[3:]).subjects == 0 and part.sign in (-1, 0, 1)
    assert effect(bench(dino=0.1), "dino", of=FULL, against=FULL).value == 0
