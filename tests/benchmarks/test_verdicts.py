"""Verdicts on rows whose answer is known: every claim has its row, also where a study was not run
or a number is damaged.
"""

import math
import subprocess
import sys

import numpy as np
import pytest
from bench_rows import COSTS, base_rows, bench

from benchmarks.analysis.effects import BENCH, FULL, NOT_MEASURED, effect
from benchmarks.analysis.verdicts import (
    CLAIMS,
    SAMPLE_SECONDS,
    read_forecast,
    verdicts,
)
from lib.dataset.captions import KINDS
from lib.evaluation import results
from lib.evaluation.comparison import Comparison
from lib.files.errors import BadInput
from lib.files.json_file import read_json

BENCHMARKS = BENCH.parents[2] / "benchmarks" / "results"
HEADINGS = results.verdict_details().columns


def verdict_table(rows, own=None, forecast=None):
    """The rows of the whole table, which notebook 04 folds, for rows of the bench."""
    return results.verdict_details(own, verdicts(rows, forecast)).rows


def table(rows, own=None):
    """claim number -> its row of the table, by heading."""
    return {int(line[0]): dict(zip(HEADINGS, line)) for line in verdict_table(rows, own)}


def verdict(rows, claim):
    return table(rows)[claim]["verdict"]


def test_a_damaged_number_in_any_column_is_an_error():
    for column in ("dino", "loss_train", "learning_rate"):
        with pytest.raises(BadInput, match=column):
            verdict_table([dict(row, **{column: float("nan")}) for row in bench()])


def test_every_claim_has_its_row_even_when_nothing_was_measured(monkeypatch):
    monkeypatch.setattr("benchmarks.analysis.verdicts.claim_rows", dict)
    lines = verdict_table([])
    assert [line[0] for line in lines] == [str(k) for k in range(1, 18)]
    assert all(
        len(line) == len(HEADINGS) and all(isinstance(cell, str) and cell for cell in line)
        for line in lines
    )
    said = {int(line[0]): line[4] for line in lines}
    for claim in (1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 15, 17):
        assert said[claim] == NOT_MEASURED
    for claim in (7, 8, 16):
        assert said[claim] == "measured in notebook 05"
    assert said[9].startswith("depends on") and said[10].startswith("holds")


def test_costs_decide_their_claims():
    faster = dict.fromkeys(("train_seconds", "seconds_to_half", "seconds_to_best"), 0.75)
    rows = bench(ratios=faster | {"peak_bytes": 2.0, "file_bytes": 8.0})
    said = table(rows)
    assert (
        said[1]["verdict"] == "does not hold (the other way round)"
        and said[2]["verdict"] == said[3]["verdict"] == "holds"
    )
    assert said[5]["verdict"] == "does not hold (the other way round)"
    alike = table(bench(ratios={"train_seconds": 1.01}))[5]["verdict"]
    assert alike == "no difference (the same within 20%; more, by less than that)"
    assert "x 8.00 (x 8.00 to x 8.00), 12 subjects x 3 seeds" in said[3][HEADINGS[3]]
    assert "pocket base" in said[2]["measurement"] and "pocket base" in said[3]["measurement"]
    lora = math.exp(np.mean([math.log(r["file_bytes"]) for r in rows if r["method"] == "lora"]))
    assert f"LoRA {lora * 8 / 20e6:.3g} s" in said[4][HEADINGS[3]], "seconds at 20 Mbit/s"


def test_what_the_rows_do_not_hold_is_said():
    rows = [
        {k: v for k, v in row.items() if not k.startswith("seconds_to")}
        for row in bench(ratios={"train_seconds": 1.5})
    ]
    assert (
        verdict(rows, 1)
        == "holds for all steps; no figure in these rows for half of the way, the best step"
    )


def test_fidelity_holds_only_if_both_encoders_say_so():
    assert verdict(bench(dino=0.05, clip_i=0.05), 6) == "holds"
    assert (
        verdict(bench(dino=0.05, clip_i=-0.05), 6)
        == "depends on the measure: holds for DINO; does not hold for CLIP-I (the other way round)"
    )
    assert verdict(bench(), 6) == "no difference (the same within 0.02)"
    noisy = verdict(bench(noise=0.2), 6)
    assert (
        "no difference found" in noisy and "cannot exclude up to" in noisy and "holds" not in noisy
    )


def test_prompt_following_stands_beside_fidelity_without_judging_it():
    said = table(bench(dino=0.05, clip_i=0.05, clip_t=-0.2))[6]
    assert said["verdict"] == "holds" and "CLIP-T -0.2" in said[HEADINGS[3]]


def test_too_few_subjects_never_make_a_verdict():
    for subjects in (1, 2, 5):
        said = table(bench(subjects=subjects, dino=0.3, clip_i=0.3, ratios={"file_bytes": 8.0}))
        for claim in (1, 2, 3, 4, 5, 6, 12, 17):
            assert said[claim]["verdict"] == f"not enough subjects ({subjects}; a verdict takes 6)"
        assert "no interval" in said[6][HEADINGS[3]]


def identifier_rows(**levels):
    rows = []
    for variant in ("rare", "common", "wrong_noun", "no_noun", "without_identifier"):
        rows += [
            dict(r, variant=variant, dino=r["dino"] - levels.get(variant, 0))
            for r in bench(study="identifier", noise=0.003)
        ]
    return rows


def test_the_identifier_study():
    said = table(identifier_rows(without_identifier=0.3, wrong_noun=0.2, no_noun=0.3))[11]
    assert (
        said["verdict"]
        == "depends on the measure: holds for asking without it, a wrong noun, no noun; "
        "no difference for a common word (the same within 0.02)"
    )
    assert "beside it LoRA, asking without it +0.3" in said[HEADINGS[3]]
    part = [
        r
        for r in identifier_rows(without_identifier=0.3)
        if r["variant"] in ("rare", "without_identifier")
    ]
    assert (
        verdict(part, 11)
        == "holds for asking without it; not measured yet for a common word, a wrong noun, no noun:"
        " make pocketbench"
    )


def careless_rows(worse):
    rows = [dict(r, variant="good") for r in bench(study="careless")]
    for variant in ("duplicates", "one_background"):
        for row in bench(study="careless", loss_gap=worse):
            rows.append(dict(row, variant=variant, loss_gap=row["loss_gap"] + 0.1))
    return rows


def test_overfitting_with_good_and_with_careless_data():
    main = bench(memorising=0.05, loss_gap=0.05, drift=0.05, pres=0.05, diversity=-0.02)
    assert verdict(main, 13).startswith(
        "holds for memorising, loss gap, PRES, drift, diversity; not measured yet for memorising on"
        " care"
    )
    said = table(main + careless_rows(0.2))[13]
    assert said["verdict"].startswith(
        "depends on the measure: holds for memorising, loss gap, PRES, drift, diversity, loss gap"
        " on careless data, DreamBooth's loss gap with duplicates over good data, DreamBooth's loss"
        " gap with one background over good data"
    )
    assert "no difference for PRES on careless data, CLIP-T on careless data" in said["verdict"], (
        "their margins are the same"
    )
    careless = {"variant": ("duplicates", "one_background")}
    found = effect(
        careless_rows(0.2),
        "loss_gap",
        "careless",
        FULL | careless,
        {"method": "lora"} | careless,
        ("seed", "variant"),
    )
    assert (
        found.value == pytest.approx(0.2, abs=0.01)
        and found.seeds == 3
        and found.text() in said[HEADINGS[3]]
    )


def test_consistency_is_better_when_smaller():
    assert verdict(bench(consistency=-0.03, prompt_spread=-0.03), 12) == "holds"
    assert (
        verdict(bench(consistency=0.03, prompt_spread=0.03), 12)
        == "does not hold (the other way round)"
    )


def sweep(rates, **ratios):
    return [
        dict(row, learning_rate=rate)
        for k in range(max(rates.values()))
        for rate in [10.0**-k]
        for row in bench(subjects=8, seeds=2, study="rate", ratios=ratios)
        if k < rates[row["method"]]
    ]


def test_the_sweep_is_summed_over_its_rates_and_shown_without_judging_by_it():
    rows = bench(ratios={"train_seconds": 0.8}) + sweep(
        {"lora": 4, "dreambooth": 5}, train_seconds=0.8
    )
    assert verdict(rows, 14) == "does not hold (the other way round)", (
        "the length of a grid is nobody's property"
    )
    assert (
        "the sweep x 1.00" in table(rows)[14][HEADINGS[3]]
        and "8 subjects x 2 seeds" in table(rows)[14][HEADINGS[3]]
    )


def test_a_subjects_sweep_is_the_mean_over_its_variants():
    rows = [
        row
        | {
            "variant": v,
            "train_seconds": (
                row["train_seconds"] * f if row["method"] == "dreambooth" else row["train_seconds"]
            ),
        }
        for v, f in (("good", 2.0), ("uncaptioned", 8.0))
        for row in sweep({"lora": 3, "dreambooth": 3})
    ]
    assert (
        "the sweep x 4.00 (x 4.00 to x 4.00), 8 subjects x 2 seeds" in table(rows)[14][HEADINGS[3]]
    )
    one = [r for r in rows if r["variant"] == "good" or r["method"] == "lora"]
    assert "the sweep x 2.00" in table(one)[14][HEADINGS[3]], (
        "a variant that one method lacks does not count"
    )


def test_an_unfinished_sweep_is_not_summed():
    rows = sweep({"lora": 4, "dreambooth": 4})
    cut = [
        r
        for r in rows
        if not (r["subject"] == "s00" and r["method"] == "dreambooth" and r["learning_rate"] < 0.01)
    ]
    assert "7 subjects" in table(cut)[14][HEADINGS[3]] and "x 1.00" in table(cut)[14][HEADINGS[3]]


def test_the_seconds_to_the_best_step_are_read_off_the_curve():
    rows = [{k: v for k, v in row.items() if k != "seconds_to_best"} for row in bench(noise=0)]
    for row in rows:
        quarters = (
            (0.1, 0.2, 0.5, 0.5, 0.4) if row["method"] == "lora" else (0.1, 0.2, 0.3, 0.4, 0.5)
        )
        row |= {f"dino_{k}_of_4": v for k, v in enumerate(quarters)}
    assert "the best step x 2.00" in table(rows)[1][HEADINGS[3]]
    worse = [row | {"dino_0_of_4": 0.9} for row in rows]
    assert "no figure in these rows for the best step" in table(worse)[1]["verdict"], (
        "the untouched base is no run"
    )


def test_likeness_at_equal_time_and_at_the_best_point_are_read_off_the_curve():
    rows = bench(noise=0, ratios={"train_seconds": 2.0})
    paths = {"lora": (0.1, 0.2, 0.4, 0.5, 0.4), "dreambooth": (0.1, 0.2, 0.6, 0.6, 0.9)}
    for row in rows:
        row |= {f"dino_{k}_of_4": v for k, v in enumerate(paths[row["method"]])}
    said = table(rows)[6][HEADINGS[3]]
    assert "DINO when the quicker one ends +0.200 (" in said, (
        "DreamBooth's at half of its time, 0.6, minus LoRA's at the end, 0.4"
    )
    assert "DINO at each one's best point +0.400 (" in said, "0.9 - 0.5"
    assert "quicker one" not in table(bench())[6][HEADINGS[3]], "without a curve there is none"


def test_runs_that_never_got_half_of_the_way_are_counted():
    rows = bench(ratios={"seconds_to_half": 2.0})
    assert (
        "half of the way x 2.00 (x 2.00 to x 2.00), 12 subjects x 3 seeds"
        in table(rows)[1][HEADINGS[3]]
    )
    rows = [
        r | {"seconds_to_half": None} if r["method"] == "lora" and r["subject"] < "s02" else r
        for r in rows
    ]
    said = table(rows)[1][HEADINGS[3]]
    assert (
        "10 subjects x 3 seeds" in said
        and "never got there: LoRA 6 of 36, DreamBooth 0 of 36" in said
    )


def test_a_verdict_that_falls_among_many_says_so():
    sure = table(bench(dino=0.05, clip_i=0.05, ratios={"file_bytes": 8.0}))
    assert sure[6]["verdict"] == sure[3]["verdict"] == "holds"
    rows = bench(noise=0.05, seeds=1, dino=0.05, seed=4)
    found = effect(rows, "dino")
    assert found.low > 0 > found.beside(18).low
    assert table(rows)[17]["verdict"] == "holds (by itself, not with all 18 at once)"


def test_kinds_of_subject_are_judged_together_by_what_reads_them_all():
    kinds = dict(zip(("s00", "s01", "s02", "s03", "s04", "s05"), KINDS))
    rows = [
        dict(r, subject=kinds[r["subject"]], clip_i=0.8, dino=0.1)
        for r in bench(subjects=6, seeds=1, study="kinds")
    ]
    base = [r | {"clip_i": 0.6} for r in base_rows(rows)]
    said = table(rows + base)[15]
    assert (
        said["verdict"] == "holds"
        and "LoRA, all kinds +0.200 (+0.200 to +0.200), 6 subjects" in said[HEADINGS[3]]
    )
    assert (
        "LoRA, pose +0.200 (no interval)" in said[HEADINGS[3]]
        and "beside it DreamBooth +0.200" in said[HEADINGS[3]]
    )
    assert (
        "not enough subjects"
        in table([r for r in rows + base if r["subject"] != "pose"])[15]["verdict"]
    )


def test_the_seconds_of_a_sample_are_about_those_that_were_measured():
    measured = read_json(BENCHMARKS / "pocket.json")["seconds"]["picture"]["median"]
    assert measured / 2 < SAMPLE_SECONDS < measured * 2, (
        "beside the 45 s of a training another machine's picture changes nothing"
    )


def test_claim_17_shows_the_cost_beside_the_gap():
    said = table(bench(dino=0.05, ratios={"peak_bytes": 2.0}))[17]
    assert (
        said["verdict"] == "holds"
        and "memory x 2.00" in said[HEADINGS[3]]
        and "file x 1.00" in said[HEADINGS[3]]
    )


def test_the_readers_own_run_stands_beside_and_changes_nothing():
    row = {"dino": 0.5, "clip_i": 0.6, "clip_t": 0.3, "memorising": None} | COSTS
    own = Comparison(
        {
            "base_model": {"dino": 0.1},
            "real_photos": {"dino": 0.8},
            "lora": row,
            "dreambooth": row | {"dino": 0.9},
        },
        {"dino": {"encoder": "facebook/dino-vits16"}},
    )
    rows = bench()
    with_own, without = table(rows, own), table(rows)
    assert with_own[6]["your own run"].startswith(
        "DINO LoRA 0.500, DreamBooth 0.900 (by facebook/dino-vits16)"
    )
    assert with_own[3]["your own run"] == "LoRA 2.38 MiB, DreamBooth 2.38 MiB"
    assert with_own[12]["your own run"] == "-" and "memorising" not in with_own[13]["your own run"]
    assert (
        with_own[14]["your own run"] == "LoRA 40 s, DreamBooth 40 s"
        and with_own[15]["your own run"] == "-"
    )
    for claim in without:
        assert with_own[claim] | {"your own run": ""} == without[claim] | {"your own run": ""}
    assert own.rows["lora"] == row, "the comparison itself is not touched"
    own.rows["lora"]["dino"] = float("nan")
    with pytest.raises(BadInput, match="your own, method lora has dino"):
        table(rows, own)


def test_memory_and_files_of_stable_diffusion_stand_beside_the_pocket_bases():
    without = table(bench())
    assert without[2][HEADINGS[3]].endswith("Stable Diffusion: no forecast here yet")
    assert (
        "sd15 LoRA 3.04 MiB, DreamBooth 1.6 GiB" in without[3][HEADINGS[3]]
        and "sdxl" in without[3][HEADINGS[3]]
    )
    forecast = {
        ("sd15", "lora"): 3.3 * 2**30,
        ("sd15", "dreambooth"): 9.9 * 2**30,
        ("sdxl", "lora"): 8 * 2**30,
    }
    said = {
        int(line[0]): dict(zip(HEADINGS, line)) for line in verdict_table(bench(), None, forecast)
    }[2]
    said_of_memory = (
        "smallest recipe: sd15 LoRA 3.3 GiB, DreamBooth 9.9 GiB (x 3, cards of 6 GB and 12 GB)"
    )
    assert said[HEADINGS[3]].endswith(said_of_memory), "a base with one figure alone is left out"
    assert said["verdict"] == without[2]["verdict"], "the verdict is the measurement's"


def test_a_forecast_that_was_not_made_is_said_and_the_one_that_ships_is_read(tmp_path, capsys):
    assert (
        read_forecast(tmp_path / "none.json") == {}
        and "no forecast of memory" in capsys.readouterr().out
    )
    found = read_forecast()
    assert all(2**30 < found[base, "lora"] < found[base, "dreambooth"] for base in ("sd15", "sdxl"))


def test_the_rows_are_not_touched():
    rows = bench()
    before = [dict(row) for row in rows]
    verdict_table(rows)
    assert rows == before


def test_it_needs_no_torch():
    code = (
        "import sys, benchmarks.analysis.verdicts, lib.evaluation.advice; sys.exit('torch' in"
        " sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_part_names_a_measure_that_exists():
    for _, _, _, parts in CLAIMS:
        for part in () if isinstance(parts, str) else parts:
            assert effect([], part.measure, *part[3:]).subjects == 0 and part.sign in (-1, 0, 1)
    assert effect(bench(dino=0.1), "dino", of=FULL, against=FULL).value == 0
