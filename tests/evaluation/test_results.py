"""What ships of the bench is what notebooks show, and what its rows say."""

import re

import pytest

from lib.evaluation import results
from lib.evaluation.comparison_table import Comparison
from lib.files.errors import BadInput
from lib.files.json_file import read_json, write_json


def test_each_study_has_its_picture_in_words_and_in_numbers():
    for name in read_json(results.RESULTS / "studies.json"):
        figure = results.study(name)
        assert len(figure.alt) > 40 and figure.caption and figure.table.rows
        assert figure.image.width > 200


def test_a_study_that_was_not_run_gets_one_sentence():
    with pytest.raises(BadInput, match="no study 'flux' in .*studies.json: known are scores, cost"):
        results.study("flux")


def test_what_survives_and_what_is_extracted_can_be_read():
    survival = results.survival_table()
    assert survival.columns[:2] == ["way", "mean"] and "Three concepts" in survival.caption
    extracted = results.extraction_figure()
    assert [row[0] for row in extracted.table.rows][-3:] == ["DreamBooth", "LoRA", "base"]


def test_the_verdicts_have_a_column_for_the_readers_own_run():
    table = results.verdict_table()
    assert [row[0] for row in table.rows] == [str(claim) for claim in range(1, 18)]
    assert table.columns[-1] == "your own run" and {row[-1] for row in table.rows} == {"-"}


def test_each_claim_has_one_word_and_one_number_and_the_rest_is_folded():
    table = results.verdict_table()
    word = {int(row[0]): row[2] for row in table.rows}
    assert word[2] == word[3] == "holds" and word[8] == "depends on the measure"
    number = r"(.* )?(x \d+\.\d\d|[+-]\d\.\d{3})( \(.* to .*\))?|-"
    assert all(re.fullmatch(number, row[3]) for row in table.rows)
    assert table.rest.rows == results.verdict_details().rows
    assert "<details><summary>All of it</summary><table>" in table._repr_html_()


@pytest.mark.parametrize(
    "verdict, word",
    [
        ("holds (by itself, not with all 31 at once)", "holds"),
        (
            "holds for spread over seeds; no figure in these rows for X",
            "holds for spread over seeds",
        ),
        ("does not hold (the other way round)", "does not hold"),
        ("no difference (the same within 20%; more, by less than that)", "does not hold"),
        (
            "no difference for DINO (the same within 0.02); no difference for CLIP-I",
            "does not hold",
        ),
        ("no difference found (cannot exclude up to 0.02)", "not told apart"),
        ("no difference for one; no difference found for another", "not told apart"),
        (
            "depends on the measure: holds for a step; does not hold for all",
            "depends on the measure",
        ),
        (results.NOT_MEASURED, "not measured"),
    ],
)
def test_a_verdict_in_a_word(verdict, word):
    assert results.verdict_word(verdict) == word


def test_a_missing_or_damaged_file_gets_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    with pytest.raises(BadInput, match="verdicts.json is missing.*python -m benchmarks.analysis"):
        results.verdict_table()
    write_json(tmp_path / "studies.json", {})
    (tmp_path / "studies.json").write_text("{")
    with pytest.raises(BadInput, match="studies.json cannot be read as JSON"):
        results.study("rank")


@pytest.mark.parametrize(
    "low, high, said",
    [
        (-0.01, 0.0, "+0.000 (-0.010 to +0.000)"),
        (None, None, "+0.000"),
        (0.0, 0.0, "+0.000 (+0.000 to +0.000)"),
    ],
)
def test_an_interval_that_ends_at_zero_is_one(low, high, said):
    part = {
        "value": 0.0,
        "low": low,
        "high": high,
        "unit": "cosine",
        "own": True,
        "measure": "dino",
    }
    own = Comparison({"lora": {"dino": 0.5}, "dreambooth": {"dino": 0.5}}, {})
    rows = results.answer_table(own, {"claims": [{"parts": [part]}]}).rows
    assert said in [row[-1] for row in rows]
