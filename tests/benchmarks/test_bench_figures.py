"""PocketBench's figures: they show the rows' numbers, leave out what was not run, and the README
prints what the command makes.
"""

from functools import cache

import pytest
from bench_rows import base_rows, bench
from PIL import Image

from benchmarks import sections
from benchmarks.analysis.advice_facts import advice_facts
from benchmarks.analysis.bench_figures import level, main_table, pareto
from benchmarks.analysis.effects import BASE, BENCH, FULL, LORA, effect, swing
from benchmarks.analysis.results_page import SHOWN, file, section
from benchmarks.analysis.study_figures import careless, figures, rank_curve, recipes
from benchmarks.analysis.study_rows import common, read_bench, size
from benchmarks.analysis.tuning_figures import rates
from benchmarks.analysis.verdicts import verdicts
from lib.evaluation.results import RESULTS

RANKS = {1: 0.1, 16: 0.0, 64: -0.02}


@cache
def whole():
    """Rows of every study, as PocketBench has them."""
    main = bench(dino=0.05, ratios={"file_bytes": 8.0})
    for row in main:
        for k in range(5):
            row |= {f"{m}_{k}_of_4": k / 10 for m in ("dino", "clip_t", "pres", "drift")}
    rows = main + [dict(r, clip_t=0.5, dino_real=0.95) for r in base_rows(main)]
    ranked = bench(study="rank", methods=["lora"], seeds=1)
    rows += [
        dict(r, rank=rank, dino=r["dino"] - less) for rank, less in RANKS.items() for r in ranked
    ]
    rows += [
        dict(r, prior_weight=w, pres=r["pres"] - w / 3)
        for w in (0.0, 0.3)
        for r in bench(study="prior", seeds=1)
    ]
    rows += [
        dict(r, prior="anchor", prior_weight=w, dino=r["dino"] - w / 10, pres=r["pres"] - w / 20)
        for w in (0.5, 3.0)
        for r in bench(study="prior", seeds=1)
    ]
    rows += [
        dict(r, prior_weight=0.3, variant="one_wording", pres=r["pres"] + 0.2)
        for r in bench(study="prior", seeds=1)
    ]
    rows += [
        dict(r, prior="teacher", prior_weight=0.3)
        for r in bench(study="prior", seeds=1, methods=["lora"])
    ]
    swept = [dict(r, variant="good") for r in bench(subjects=3, seeds=1, study="rate")]
    rows += [
        dict(
            r,
            learning_rate=rate * (5 if r["method"] == "lora" else 1),
            dino=r["dino"] - abs(rate - 2e-4) * 1e3,
        )
        for rate in (1e-4, 2e-4, 4e-4)
        for r in swept
    ]
    rows += [dict(r, variant="good", dino_real=0.9, clip_t=0.5) for r in base_rows(swept)]
    longer = [dict(r, study="length") for r in swept]
    rows += [
        dict(r, steps=steps, learning_rate=rate, dino=r["dino"] - abs(rate - 1e-3) * 10 - less)
        for steps, less in ((150, 0.1), (300, 0.0))
        for rate in (1e-3, 2e-3)
        for r in longer
    ]
    rows += [dict(r, variant="good", dino_real=0.9, clip_t=0.5) for r in base_rows(longer)]
    plain = [dict(r, precision="fp32") for r in bench(subjects=6, study="recipes")]
    for changes, less in (
        ({}, 0.001),
        ({"quantize": "nf4"}, 0.2),
        ({"optimizer": "adamw8bit", "checkpointing": "all"}, 0.001),
    ):
        rows += [
            dict(r, precision=None, dino=r["dino"] - less, peak_bytes=r["peak_bytes"] / 2) | changes
            for r in plain
            if r["seed"] == 0 and (r["method"] == "lora" or "quantize" not in changes)
        ]
    rows += plain
    rows += [
        dict(r, study="precision", precision=how, dino=r["dino"] - less)
        for how, less in (("fp32", 0.0), (None, 0.001), ("fp16", 0.2))
        for r in plain
        if r["seed"] == 0 or how == "fp32"
    ]
    rows += [
        dict(r, text_encoder_rate=rate, clip_t=r["clip_t"] - (rate or 0) * 100)
        for rate in (None, 2e-4, 4e-4)
        for r in bench(subjects=6, seeds=1, study="text_encoder")
    ]
    careless = bench(subjects=6, seeds=1, study="careless")
    return rows + [
        dict(r, variant=v) for v in ("good", "duplicates", "one_background") for r in careless
    ]


@pytest.fixture(scope="module")
def made():
    return figures(whole())


def test_every_figure_is_made_and_says_what_it_rests_on(made):
    assert list(made) == [
        "scores",
        "costs",
        "pareto",
        "path",
        "forgetting",
        "rank",
        "prior",
        "prior_ways",
        "careless",
        "precision",
        "recipes",
        "text_encoder",
        "rates",
        "length",
    ]
    assert (
        "12 subjects x 3 seeds" in made["scores"].caption
        and "3 subjects x 1 seed" in made["rates"].caption
    )
    for figure in made.values():
        assert len(figure.alt) > 40 and figure.table.rows


def test_what_was_not_run_has_no_figure():
    rows = whole()
    assert figures([]) == {} and list(figures(bench(subjects=1, seeds=1))) == ["scores", "costs"]
    assert rank_curve([r for r in rows if r["study"] != "rank"]) is None
    without = pareto([r for r in rows if r["study"] != "rank"])
    assert [row[0] for row in without.table.rows] == ["base model", "LoRA", "DreamBooth"]


def test_the_main_table_has_levels_effects_and_what_they_allow_to_say():
    lines = {line[0]: line for line in main_table(whole()).rows}
    assert (
        lines["DINO"][1:3] == ["0.100", "0.950"]
        and lines["DINO"][5].startswith("+0.0")
        and lines["DINO"][7] == "more"
    )
    assert (
        lines["CLIP-I"][2] == "-" and lines["CLIP-I"][7] == "no difference (the same within 0.02)"
    )
    assert {line[6] for line in lines.values()} == {"12 subjects x 3 seeds"}
    assert lines["file"][5].startswith("x 8.00") and lines["file"][1] == "-"
    assert main_table([]).rows == []
    cut = [dict(r, method="extracted", dino=0.5) for r in bench(seeds=1, methods=["dreambooth"])]
    table = main_table(whole() + cut)
    assert table.columns[5] == "DreamBooth cut to a LoRA" and len(table.rows[0]) == 9
    assert {line[0]: line[5] for line in table.rows}["DINO"] == "0.500"


def test_the_pareto_chart_compares_the_same_subjects_and_seeds():
    rows = [r for r in whole() if not (r["study"] == "rank" and r["subject"] == "s00")]
    figure = pareto(rows)
    assert "11 subjects x 1 seed" in figure.caption
    assert [row[0] for row in figure.table.rows] == [
        "base model",
        "LoRA by rank, 1",
        "LoRA by rank, 16",
        "LoRA by rank, 64",
        "DreamBooth",
    ]
    kept = [r for r in rows if r["subject"] != "s00" and r["seed"] in (None, 0)]
    assert (
        figure.table.rows[-1][3]
        == level(kept, "dino", of=FULL)[0]
        != level(rows, "dino", of=FULL)[0]
    )
    assert {r["subject"] for r in common(rows, [("rank", LORA), ("main", BASE)])} == {
        f"s{k:02}" for k in range(1, 12)
    }


def test_each_length_is_shown_at_the_best_rate_that_was_tried_at_it(made):
    figure = made["length"]
    assert "3 photo sets: each length at the best of the rates" in figure.caption
    table = figure.table.rows
    assert [row[:3] for row in table[:4]] == [
        ["DreamBooth", steps, rate] for steps in (150, 300) for rate in (1e-3, 2e-3)
    ]
    drawn = {
        line.get_label(): [float(y) for y in line.get_ydata()]
        for line in figure.chart.axes[0].lines
        if line.get_label() in ("LoRA", "DreamBooth")
    }
    for name, ys in drawn.items():
        best = [r[5] for r in table if r[0] == name and r[2] == 1e-3]
        assert ys == pytest.approx(best) and ys[0] < ys[1]
    assert set(drawn) == {"LoRA", "DreamBooth"}


def test_the_best_rate_is_ringed_and_the_ranks_are_named(made):
    figure = made["rates"]
    assert (
        "3 photo sets; chosen: LoRA 0.001, DreamBooth 0.0002, the lowest within" in figure.caption
    )
    assert [row[1] for row in figure.table.rows] == [5e-4, 1e-3, 2e-3, 1e-4, 2e-4, 4e-4]
    assert sum(line.get_markersize() > 10 for line in figure.chart.axes[0].lines) == 2
    cut = rates([r for r in whole() if r.get("learning_rate") != 4e-4])
    assert "LoRA 0.001, DreamBooth 0.0002 (at the end of what was tried)" in cut.caption, (
        "a best rate may lie beyond the grid"
    )
    ranks = made["rank"].table.rows
    one, same, most = (row[3] for row in ranks)
    assert [row[0] for row in ranks] == ["1", "16", "64"] and same == "-", (
        "each rank is held against the preset's, subject by subject"
    )
    assert one == "-0.100 (-0.100 to -0.100): less" and most == "+0.020 (+0.020 to +0.020): more"
    assert ranks[0][1].startswith(
        f"{effect(whole(), 'dino', 'rank', LORA | {'rank': 1}, None, ()).value:.3f} ("
    )


def test_other_ways_are_compared_with_class_images(made):
    assert "class images (weight 0.3)" in made["prior_ways"].caption
    lines = {tuple(row[:2]): row[2:] for row in made["prior_ways"].table.rows}
    there = ["nothing", "one wording", "teacher", "anchor 0.5", "anchor 3"]
    assert list(lines)[:5] == [("LoRA", way) for way in there]
    assert ("DreamBooth", "teacher") not in lines and len(lines) == 9
    assert lines["DreamBooth", "anchor 3"][0].startswith("-0.300")
    assert lines["LoRA", "nothing"][0].startswith("+0.000")
    assert lines["LoRA", "nothing"][2].startswith("+0.100")
    assert lines["DreamBooth", "one wording"][2] == "+0.300 (+0.300 to +0.300): more"
    assert lines["LoRA", "teacher"][-1] == "12 subjects x 1 seed"


def test_prior_preservation_is_compared_with_none(made):
    assert "(weight 0.3)" in made["prior"].caption
    lines = {row[0]: row[1:] for row in made["prior"].table.rows}
    assert (
        lines["PRES - base, LoRA"]
        == lines["PRES - base, DreamBooth"]
        == ["-0.100 (-0.100 to -0.100)", "12 subjects x 1 seed", "less"]
    )
    assert (
        lines["DINO, LoRA"][0].startswith("+0.000")
        and lines["drift, LoRA"][2] == "no difference (the same within 0.01)"
    )


def test_a_study_of_a_former_base_says_so_and_is_held_against_itself_alone():
    today = {"base_hash": "new", "judge": "j"}
    rows = [dict(r, **today) if r["study"] == "main" else dict(r) for r in whole()]
    made = figures(rows)
    former = {name for name, figure in made.items() if "former base model" in figure.caption}
    assert former == {
        *("rank", "prior", "prior_ways", "careless", "precision", "recipes", "text_encoder"),
        *("rates", "length"),
    }
    assert not any("former base" in figure.caption for figure in figures(whole()).values())
    points = [line[0] for line in made["pareto"].table.rows]
    assert "LoRA" in points and "LoRA by rank" not in points
    claims = {claim["claim"]: claim["effect"] for claim in verdicts(rows)["claims"]}
    assert "former base model" in claims[13] and "former base model" not in claims[6]
    assert (
        advice_facts(rows)["ranks"]
        == advice_facts([r for r in rows if r["study"] == "rank"])["ranks"]
    )


def test_a_study_that_was_asked_other_prompts_says_that():
    rows = [dict(r, judge="new" if r["study"] == "main" else "old") for r in whole()]
    caption = figures(rows)["rank"].caption
    assert caption.endswith(
        ". Run with former prompts or by a former judge: its numbers are for this study alone."
    )
    assert "base model" not in caption.rsplit(". ", 1)[1]


def test_careless_data_are_held_against_good_data(made):
    lines = {row[0]: row[1:] for row in made["careless"].table.rows}
    assert (
        list(lines)[::2] == ["good, LoRA", "duplicates, LoRA", "one background, LoRA"]
        and lines["good, LoRA"][1:] == ["-"] * 5
    )
    worse = [
        r | {"loss_gap": r["loss_gap"] + 0.1}
        if (r["variant"], r["method"]) == ("duplicates", "dreambooth")
        else r
        for r in whole()
    ]
    lines = {row[0]: row[1:] for row in careless(worse).table.rows}
    assert lines["duplicates, DreamBooth"][1] == "+0.100 (+0.100 to +0.100): more" and lines[
        "duplicates, LoRA"
    ][1].startswith("+0.000")
    assert lines["one background, DreamBooth"][1].endswith("no difference (the same within 0.01)")


def test_what_a_study_rests_on_is_what_both_methods_have_run():
    rows = bench(subjects=4)
    assert size(rows) == "4 subjects x 3 seeds" and size([]) == "0 subjects x 0 seeds"
    cut = [r for r in rows if not (r["subject"] == "s00" and r["seed"] and r["method"] == "lora")]
    assert size(cut) == "4 subjects x 1 to 3 seeds"
    assert (
        size([r for r in cut if r["subject"] != "s01" or r["method"] == "lora"])
        == "3 subjects x 1 to 3 seeds"
    )


def test_the_training_is_drawn_quarter_by_quarter(made):
    assert [row[0] for row in made["path"].table.rows] == [
        f"{name}, {k}/4" for name in ("LoRA", "DreamBooth") for k in range(5)
    ]
    assert made["forgetting"].table.rows[2][1::2] == [0.2, 0.2]


def test_low_memory_recipes_stand_beside_what_another_seed_does(made):
    lines = {line[0]: line[1:] for line in made["recipes"].table.rows}
    assert list(lines)[:5] == [
        "LoRA, plain fp32",
        "LoRA, another seed",
        "LoRA, nf4 base",
        "LoRA, precision auto",
        "LoRA, 8-bit moments + checkpointing",
    ]
    assert lines["LoRA, nf4 base"][0].startswith("-0.200") and lines["LoRA, nf4 base"][3:] == [
        "x 0.50",
        "no: DINO",
    ]
    assert (
        lines["LoRA, precision auto"][4]
        == lines["DreamBooth, 8-bit moments + checkpointing"][4]
        == "yes"
    )
    drawn = swing(whole(), "dino", "recipes", LORA | {"precision": "fp32"}, 6)
    assert lines["LoRA, another seed"][0] == f"up to {drawn:.3f}"
    part = [r for r in whole() if not (r.get("study") == "recipes" and r["seed"])]
    assert {line[-1] for line in recipes(part).table.rows} == {"-"}, "one seed has no spread"
    assert recipes([r for r in whole() if r["study"] != "recipes"]) is None


def test_each_precision_stands_beside_what_another_seed_does(made):
    lines = {line[0]: line[1:] for line in made["precision"].table.rows}
    assert list(lines)[:4] == [
        *("LoRA, plain fp32", "LoRA, another seed", "LoRA, precision auto", "LoRA, precision fp16")
    ]
    assert lines["DreamBooth, precision auto"][-1] == "yes"
    assert lines["DreamBooth, precision fp16"][-1] == "no: DINO"
    assert "bf16 and in fp16 minus plain fp32 training, 6 subjects" in made["precision"].caption


def test_the_text_encoders_rates_are_compared_with_a_frozen_one(made):
    lines = {line[0]: line[1:] for line in made["text_encoder"].table.rows}
    assert list(lines)[:3] == [
        "LoRA, frozen (level)",
        "LoRA, trained at 0.0002 (change)",
        "LoRA, trained at 0.0004 (change)",
    ]
    assert (
        len(lines) == 6
        and lines["DreamBooth, trained at 0.0004 (change)"][1] == "-0.040 (-0.040 to -0.040): less"
    )
    assert [cell.split(":")[0] for cell in lines["LoRA, trained at 0.0002 (change)"][4:]] == [
        "x 1.00",
        "x 1.00",
    ]


def test_the_section_links_every_figure_and_shows_some(made):
    text = section(whole(), made)
    for name in made:
        assert f"]({file(name)})" in text and (
            "![" in text.split(f"]({file(name)})")[0].splitlines()[-1]
        ) == (name in SHOWN)
    assert "nan" not in text and "12 subjects x 3 seeds in the main comparison" in text


def test_a_bench_that_has_only_begun_has_a_section_too():
    rows = [row for row in whole() if row["study"] == "rate"]
    assert "Not run yet: main, prior, rank, length, identifier" in section(rows, figures(rows))
    text = section(rows, figures(rows))
    assert (
        text.startswith("The main comparison has not been run yet")
        and "0 subjects" not in text
        and "bench_rates.png" in text
    )


def test_the_readme_has_the_marks_between_which_the_section_is_written():
    assert sections.section(sections.RESULTS_PAGE, "pocketbench") is not None


@pytest.mark.skipif(not BENCH.is_file(), reason="PocketBench has not been run: make pocketbench")
def test_the_readme_prints_what_the_command_makes():
    found, rows = sections.section(sections.RESULTS_PAGE, "pocketbench"), read_bench()
    made = figures(rows)
    assert found == section(rows, made), "run `python -m benchmarks.analysis` again"
    for name, figure in made.items():
        assert f"({file(name)})" in found
        with Image.open(
            RESULTS / f"bench_{name}.png"
        ) as picture:  # the numbers that it was drawn from are written in it
            assert picture.text["Description"] == figure.alt, (
                f"{file(name)} is old: run `python -m benchmarks.analysis` again"
            )
