"""The README's five rows, the verdicts of notebook 04, the guide, and the report's sentences and
table name the same side: what ships of one is held to what ships of the others, whatever the
figures are.
"""

import json
import re

import pytest

from lib.evaluation.advice import LESS, Needs, advise, answer
from lib.evaluation.comparison_table import Comparison
from lib.evaluation.results import SHORT, answer_table
from lib.files.paths import ROOT

RESULTS = ROOT / "data" / "results"
# The README's row -> the guide's measure, and the verdict's claim and part of it
SAME_QUESTION = {
    "seconds a training step": ("train_seconds", 1, "all steps"),
    "memory of training": ("peak_bytes", 2, ""),
    "file to share": ("file_bytes", 3, ""),
    "likeness to held-out photos": ("dino", 6, "DINO"),
}
NONE, LORA, FULL = "no difference", "LoRA", "DreamBooth"


def of_readme(row):
    """Whom the README's row names."""
    answer = re.search(
        rf"^\| {re.escape(row)}.*\| ([^|]*) \|$", (ROOT / "README.md").read_text("utf-8"), re.M
    )[1]
    if "no difference" in answer or answer.startswith("hardly a difference"):
        return NONE
    return answer.split(":")[0]


def of_guide(measure):
    """Whom the guide's facts name: more is better of likeness, less of costs."""
    found = json.loads((RESULTS / "advice.json").read_text("utf-8"))["effects"][measure]
    if found["verdict"].startswith("no difference"):
        return NONE
    more = found["value"] > (0 if measure == "dino" else 1)
    return FULL if more == (measure == "dino") else LORA


def of_verdict(claim, part):
    """Whom the verdict names: the words that stand beside its part."""
    claims = json.loads((RESULTS / "verdicts.json").read_text("utf-8"))["claims"]
    found = next(each for each in claims if each["claim"] == claim)
    said = [one for one in found["verdict"].split("; ") if not part or part in one]
    said = said or [found["verdict"]]  # one verdict on all parts names none
    assert len(said) == 1, found["verdict"]
    if "no difference" in said[0]:
        return NONE
    measured = next(each for each in found["parts"] if each["label"] == part)
    more = measured["value"] > (0 if measured["measure"] == "dino" else 1)
    return FULL if more == (measured["measure"] == "dino") else LORA


@pytest.mark.parametrize("row", SAME_QUESTION)
def test_readme_verdict_and_guide_name_the_same_side(row):
    measure, claim, part = SAME_QUESTION[row]
    assert of_readme(row) == of_guide(measure) == of_verdict(claim, part)


def test_the_guide_takes_no_side_for_what_the_readme_calls_no_reason():
    said = advise(Needs(memory_gib=64, disk_gib=100, minutes=1000)).sentences
    decided = [line.text for line in said if line.text.endswith("takes less: time of training.")]
    left_open = [line.text for line in said if line.text.startswith("Not decided by time of train")]
    is_none = of_readme("seconds a training step") == NONE
    assert (len(decided), len(left_open)) == ((0, 1) if is_none else (1, 0))


# --- the report's


def own(lora, dreambooth):
    """A run of one's own with these figures for all that is measured."""
    rows = {"lora": lora, "dreambooth": dreambooth, "base_model": 0.2, "real_photos": 0.9}
    keys = ("seconds_per_step", "peak_bytes", "file_bytes", "dino", "clip_t", "pres")
    about = {"base": "pocket", "identifier": "zwx", "class_noun": "robot"}
    return Comparison({name: dict.fromkeys(keys, value) for name, value in rows.items()}, about)


AMPLE = Needs(memory_gib=64, disk_gib=100, minutes=1000)
OWN = {"as the bench": own(0.5, 0.6), "the other way round": own(0.6, 0.5)}


def of_sentences(measure, run, measured=None):
    """Whom the report's sentences name; None where they say nothing of that measure."""
    which, _, sure = answer(run, AMPLE, measured)
    if measure == "dino":
        said = re.search(r"; likeness: (.*?), DINO", sure)[1]
        return NONE if said.startswith("no difference") else said.split(" ")[0]
    what = {"train_seconds": "time", "peak_bytes": "memory", "file_bytes": "disk"}[measure]
    return re.search(r", take (LoRA|DreamBooth)", which)[1] if LESS[what] in which else None


def of_short_table(measure, run):
    """Whom the report's table names in its last column, margins left out: more, or less."""
    row = "seconds_per_step" if measure == "train_seconds" else measure
    cell = next(line[-1] for line in answer_table(run).rows if line[0] == SHORT[row][0])
    value = float(re.match(r"(?:x )?([+-]?[\d.]+)", cell)[1])
    more = value > (1 if cell.startswith("x") else 0)
    return FULL if more == (measure == "dino") else LORA


@pytest.mark.parametrize("run", OWN.values(), ids=OWN)
@pytest.mark.parametrize("row", SAME_QUESTION)
def test_the_report_names_no_other_side_whatever_the_own_run_says(row, run):
    measure, _, _ = SAME_QUESTION[row]
    side = of_guide(measure)
    said = of_sentences(measure, run)
    assert said == side or (said is None and measure != "dino")
    if side != NONE:
        assert of_short_table(measure, run) == side


def test_the_reports_first_sentence_is_the_guides_and_gives_its_reasons():
    which, cost, sure = answer(OWN["as the bench"], AMPLE)
    advice = advise(AMPLE)
    first = advice.sentences[0].text.split(", rank")[0].removesuffix(".")
    assert which.startswith(f"For 'zwx robot', {first[0].lower()}{first[1:]}")
    assert "rank" not in which, "the run has a rank of its own, and so has the bench's difference"
    assert advice.reasons and all(reason in which for reason in advice.reasons)
    assert "0.5 s a step" in cost and "0.6 s a step" in cost
    facts = json.loads((RESULTS / "advice.json").read_text("utf-8"))["effects"]
    assert facts["dino"]["text"].split(", ")[0] in sure and "decides nothing" in sure


def test_the_reports_sentences_turn_round_with_the_bench():
    measured = json.loads((RESULTS / "advice.json").read_text("utf-8"))
    for measure in ("peak_bytes", "file_bytes", "dino"):
        measured["effects"][measure]["verdict"] = "does not hold"
    run = OWN["as the bench"]
    assert of_sentences("peak_bytes", run, measured) == FULL
    assert of_sentences("dino", run, measured) == LORA


@pytest.mark.parametrize("seeds, said", [(1, "x 1 seed of"), (2, "x 2 seeds of")])
def test_one_seed_is_no_seeds(seeds, said):
    measured = json.loads((RESULTS / "advice.json").read_text("utf-8"))
    measured["effects"]["dino"]["seeds"] = seeds
    assert said in answer(OWN["as the bench"], AMPLE, measured)[2]


def test_a_base_that_nothing_was_measured_on_gets_no_side(monkeypatch):
    monkeypatch.setattr("lib.memory.forecasting.known_shape", lambda base: base)
    run = own(0.5, 0.1)
    run.about["base"] = "my/model"
    which, _, sure = answer(run, AMPLE)
    assert "there is no figure that decides between LoRA and DreamBooth" in which
    assert "likeness was not measured on its base model; train longer: DreamBooth did not" in sure


def test_runs_that_are_not_alike_are_told_in_the_last_sentence():
    run = own(0.5, 0.6)
    run.about["unlike"] = ["steps (300, 400)"]
    assert "not like for like, the runs differ in steps (300, 400)" in answer(run, AMPLE)[2]
