"""The README's five rows, the verdicts of notebook 04 and the guide name the same side: what ships
of one is held to what ships of the others, whatever the figures are.
"""

import json
import re

import pytest

from lib.evaluation.advice import Needs, advise
from lib.files.paths import ROOT

RESULTS = ROOT / "data" / "results"
# The README's row -> the guide's measure, and the verdict's claim and part of it
SAME_QUESTION = {
    "seconds a training step": ("train_seconds", 1, "a step"),
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
