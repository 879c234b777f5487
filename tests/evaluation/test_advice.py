"""The decision guide: limits first, then wishes, then costs; where nothing decides it says so, and
every sentence names its measurement.
"""

import math

import numpy as np
import pytest

from benchmarks.analysis.advice_facts import advice_facts
from benchmarks.analysis.verdicts import SHAPES
from lib.config.presets import PRESETS
from lib.evaluation import advice as guide
from lib.evaluation.advice import Needs
from lib.files.errors import BadInput

AMPLE = {"memory_gib": 100, "disk_gib": 100, "minutes": 10_000}
PRESET = PRESETS["lora", "pocket"]["rank"]
GIB = 2**30


def advise(needs, rows, forecast=None):
    """The advice that rests on these rows of the bench, and on this forecast alone."""
    return guide.advise(needs, advice_facts(rows), forecast or {})


def run(study, subject, method, seed, rank, dino, draw, ratios):
    level = math.exp(draw.normal(0, 0.02))
    costs = {
        "peak_bytes": 90e6,
        "file_bytes": 2.5e6,
        "train_seconds": 60.0,
        "seconds_per_step": 0.2,
    }
    return {
        "study": study,
        "subject": subject,
        "method": method,
        "seed": seed,
        "rank": rank,
        "device": "CPU, 2 threads",
        "dino": dino + draw.normal(0, 0.004),
        **{k: v * level * ratios.get(k, 1) for k, v in costs.items()},
    }


def bench(subjects=12, seeds=2, gap=0.0, ranks=None, **ratios):
    """Rows in which DreamBooth's dino is LoRA's plus `gap`, its costs LoRA's times `ratios`;
    `ranks`: rank -> its dino.
    """
    draw, rows = np.random.default_rng(2), []
    ratios = {"peak_bytes": 2.0, "file_bytes": 8.0, "train_seconds": 0.8} | ratios
    for subject in range(subjects):
        for seed in range(seeds):
            rows.append(run("main", subject, "lora", seed, PRESET, 0.6, draw, {}))
            rows.append(run("main", subject, "dreambooth", seed, None, 0.6 + gap, draw, ratios))
            for rank, dino in (ranks or {}).items():
                rows.append(
                    run(
                        "rank",
                        subject,
                        "lora",
                        seed,
                        rank,
                        dino,
                        draw,
                        {"file_bytes": rank / PRESET},
                    )
                )
    return rows


def texts(advice):
    return " ".join(sentence.text for sentence in advice.sentences)


def needs(**changes):
    return Needs(**AMPLE | changes)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"memory_gib": "8"}, ["memory_gib", "a number", "'8'"]),
        ({"memory_gib": float("nan")}, ["memory_gib", "nan"]),
        ({"memory_gib": True}, ["memory_gib", "a number"]),
        ({"disk_gib": -1}, ["disk_gib", "-1"]),
        ({"concepts": 0}, ["concepts", "0"]),
        ({"concepts": 2.5}, ["concepts", "whole number"]),
        ({"minutes": float("inf")}, ["minutes", "inf"]),
        ({"fidelity": "best"}, ["fidelity", "'best'", "likeness first"]),
        ({"base": 15}, ["base", "a text"]),
    ],
)
def test_bad_needs_get_one_sentence(changes, words):
    with pytest.raises(BadInput) as caught:
        needs(**changes)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_needs_are_frozen():
    with pytest.raises(AttributeError):
        needs().concepts = 3


def test_likeness_first_takes_the_more_alike():
    for gap, choice in ((0.08, "dreambooth"), (-0.08, "lora")):
        advice = advise(needs(fidelity="likeness first"), bench(gap=gap))
        assert advice.choice == choice
        line = next(s for s in advice.sentences if s.text.startswith("Likeness"))
        assert (
            "more alike" in line.text
            and f"{gap:+.2f}"[:4] in line.measurement
            and "12 subjects x 2 seeds" in line.measurement
        )
    assert advise(needs(fidelity="likeness first"), bench(gap=0.08)).rank is None


def test_where_likeness_is_the_same_costs_decide_if_they_agree():
    advice = advise(needs(fidelity="likeness first"), bench(train_seconds=1.5))
    assert (
        advice.choice == "lora"
        and advice.rank == PRESET
        and "the same within 0.02" in texts(advice)
    )
    advice = advise(needs(fidelity="likeness first"), bench(train_seconds=0.8))
    assert advice.choice == "either" and "DreamBooth takes less: time of training" in texts(advice)


def test_where_likeness_is_not_known_nothing_decides():
    few = advise(needs(fidelity="likeness first"), bench(subjects=4, gap=0.1))
    assert few.choice == "either" and "not enough subjects (4; a verdict takes 6)" in texts(few)
    draw = np.random.default_rng(3)
    noisy = advise(
        needs(fidelity="likeness first"),
        [dict(r, dino=r["dino"] + draw.normal(0, 0.2)) for r in bench(train_seconds=1.5)],
    )
    assert noisy.choice == "either" and "no difference found (cannot exclude up to" in texts(noisy)
    assert "nothing below decides" in noisy.sentences[0].text


def test_small_files_first():
    advice = advise(needs(fidelity="small files first"), bench(gap=0.2))
    assert advice.choice == "lora" and any(
        "x 8" in s.measurement and "file_bytes" in s.measurement for s in advice.sentences
    )
    assert advise(needs(fidelity="small files first"), bench(file_bytes=1.01)).choice == "either"


def test_without_a_wish_costs_decide_only_if_they_agree():
    assert advise(needs(), bench(train_seconds=1.5)).choice == "lora"
    assert advise(needs(), bench(train_seconds=1.0)).choice == "lora", (
        "a cost that is the same speaks for neither"
    )
    assert advise(needs(), bench(train_seconds=0.8)).choice == "either"
    assert (
        advise(needs(), bench(train_seconds=0.8, peak_bytes=0.5, file_bytes=0.5)).choice
        == "dreambooth"
    )


def test_disk_is_counted_for_all_concepts():
    rows = bench(gap=0.1, train_seconds=0.8)
    assert (
        advise(needs(fidelity="likeness first", disk_gib=0.5, concepts=10), rows).choice
        == "dreambooth"
    )
    advice = advise(needs(fidelity="likeness first", disk_gib=0.5, concepts=100), rows)
    assert advice.choice == "lora"
    line = next(s for s in advice.sentences if s.text.startswith("Disk"))
    assert (
        "for 100 concepts" in line.text
        and "DreamBooth takes 1.9" in line.text
        and "does not fit" in line.text
    )
    assert "file_bytes, largest of 24 runs" in line.measurement
    assert "Several concepts in one picture" in texts(advice)


def test_memory_and_time_are_limits_too():
    rows = bench(gap=0.1, train_seconds=4.0)
    assert advise(needs(fidelity="likeness first", memory_gib=0.1), rows).choice == "lora"
    advice = advise(needs(fidelity="likeness first", minutes=2), rows)
    assert advice.choice == "lora" and "of your 2.0 minutes" in texts(advice)
    assert any(
        "train_seconds, mean of 24 runs on CPU, 2 threads" in s.measurement
        for s in advice.sentences
    )


def test_when_neither_fits_it_says_so():
    advice = advise(needs(memory_gib=0.01), bench())
    assert (
        advice.choice == "neither"
        and advice.rank is None
        and advice.sentences[0].text.startswith("Neither is known to be within")
    )


def test_without_any_measurement_it_decides_nothing():
    for fidelity in ("either", "likeness first", "small files first"):
        advice = advise(needs(fidelity=fidelity), [])
        assert advice.choice == "either" and advice.rank == PRESET
        assert (
            sum(s.measurement == "not measured yet: make pocketbench" for s in advice.sentences)
            == 3
        )
        assert "nothing below decides" in advice.sentences[0].text


def test_the_rank_is_the_smallest_that_is_as_good_as_the_best():
    advice = advise(needs(fidelity="small files first"), bench(ranks={1: 0.4, 4: 0.595, 64: 0.605}))
    assert advice.rank == 4 and advice.sentences[0].text == "Take LoRA, rank 4."
    line = next(s for s in advice.sentences if s.text.startswith("Rank"))
    assert (
        "of 1, 4, 16, 64" in line.text
        and "minus rank 4: +0.0" in line.measurement
        and "12 subjects" in line.measurement
    )
    assert (
        advise(needs(fidelity="small files first"), bench(ranks={1: 0.4, 4: 0.5, 64: 0.7})).rank
        == 64
    )
    only = advise(needs(fidelity="small files first"), bench(ranks={1: 0.4, 4: 0.5, 64: 0.7}))
    told = next(s.measurement for s in only.sentences if s.text.startswith("Rank 64"))
    assert "minus rank 16: +0." in told, "a reader who has trained that sees how far apart they are"
    cost = next(s for s in advise(needs(), bench()).sentences if "less: the file" in s.text)
    assert f"DreamBooth / LoRA, rank {PRESET}: x" in cost.measurement
    assert (
        advise(needs(fidelity="small files first"), bench(subjects=5, ranks={1: 0.6, 4: 0.6})).rank
        == PRESET
    ), "too few subjects"


def test_the_files_of_the_rank_that_is_advised_are_counted():
    rows = bench(ranks={4: 0.6, 64: 0.6})
    line = next(
        s
        for s in advise(needs(fidelity="small files first"), rows).sentences
        if s.text.startswith("Disk")
    )
    assert (
        f"LoRA takes {max(r['file_bytes'] for r in rows if r['rank'] == 4) / 2**20:.3g} MiB"
        in line.text
    )


FORECAST = {("sd15", "lora"): 3.0 * GIB, ("sd15", "dreambooth"): 7.5 * GIB}


def test_another_base_takes_memory_from_the_forecast_and_disk_from_its_shape():
    advice = advise(
        needs(base="sd15", memory_gib=6, fidelity="likeness first"), bench(gap=0.2), FORECAST
    )
    assert advice.choice == "lora" and advice.rank == PRESETS["lora", "sd1"]["rank"]
    assert "DreamBooth takes 7.5 GiB, which does not fit" in texts(
        advice
    ) and "Time decides nothing" in texts(advice)
    assert any("forecast for sd15" in s.measurement for s in advice.sentences)
    whole, each = SHAPES["sd15"]
    assert f"LoRA takes {2 * each * advice.rank / 2**20:.3g} MiB" in texts(
        advice
    ) and f"{2 * whole / GIB:.3g} GiB" in texts(advice)
    assert advise(needs(base="sd15"), [], FORECAST).choice == "lora", (
        "less memory, a smaller file, time not known"
    )


def test_likeness_of_the_pocket_base_is_not_passed_on_to_another():
    advice = advise(needs(base="sd15", fidelity="likeness first"), bench(gap=0.2), FORECAST)
    line = next(s for s in advice.sentences if s.text.startswith("Likeness"))
    assert advice.choice == "either" and "not measured on sd15" in line.text
    assert "on the pocket base: DINO" in line.measurement and "2306.07280" in line.measurement


def test_what_fits_a_card_is_what_the_table_of_cards_says():
    forecast = {("sd15", "lora"): 2.5 * GIB, ("sd15", "dreambooth"): 3.78 * GIB}
    said = texts(advise(needs(base="sd15", memory_gib=4), [], forecast))
    assert "Memory, of the 2.96 GiB to be had on a card of 4 GB: LoRA takes 2.5 GiB, which" in said
    assert "DreamBooth takes 3.78 GiB, which does not fit" in said
    said = texts(advise(needs(base="sd15", memory_gib=0.5), [], forecast))
    assert "of the 0 MiB to be had on a card of 0.5 GB" in said or "of the 0 bytes" in said


def test_a_method_without_a_figure_is_no_way_out():
    advice = advise(needs(base="sd15", memory_gib=2), [], {("sd15", "lora"): 3 * GIB})
    assert advice.choice == "neither" and "DreamBooth is not known" in texts(advice)


def test_bad_bases_forecasts_and_rows_are_refused():
    with pytest.raises(BadInput, match="'flux'.*known are pocket, sd15, sdxl"):
        advise(needs(base="flux"), [])
    assert advise(needs(base="flux"), [], {("flux", "lora"): GIB}).choice == "either"
    for value in (float("nan"), -1, "3 GiB"):
        with pytest.raises(BadInput, match="forecast for lora on sd15"):
            advise(needs(base="sd15"), [], {("sd15", "lora"): value})
    rows = bench()
    rows[3]["train_seconds"] = float("nan")
    with pytest.raises(BadInput, match="train_seconds = nan"):
        advise(needs(), rows)


def test_the_advice_is_a_table_in_which_every_sentence_has_its_measurement():
    advice = advise(needs(concepts=3), bench(ranks={4: 0.6}))
    table = advice.table()
    assert [tuple(row) for row in table.rows] == list(advice.sentences) and table.columns == [
        "advice",
        "measurement",
    ]
    assert all(s.text.endswith(".") and s.measurement for s in advice.sentences)
    assert "<th" in table._repr_html_() and "DreamBooth" in str(table)


def test_the_advice_that_ships_rests_on_the_files_of_results():
    advice = guide.advise(needs(memory_gib=6, base="sdxl"))
    assert advice.choice in ("lora", "neither") and any(
        "forecast for sdxl" in s.measurement for s in advice.sentences
    )
    assert "subjects x" in guide.advise(needs(fidelity="likeness first")).table().text()
