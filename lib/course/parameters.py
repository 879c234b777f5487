"""The notebooks' parameters, checked before anything slow, and what relative paths in them mean.

    check_parameters({"class_images": 10.0})    # BadInput: Setting 'class_images' must be a whole
                                                # number, but it is 10.0 (float): write it as one.

Every notebook's set-up cell asks here, and so do course and sweep before they start a Python. A
parameter that is a setting of a training is checked as that, a need of the decision guide as that.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

from pydantic import Field

from lib.config import Settings, described
from lib.config.checked import checked
from lib.dataset.captions import KINDS, check_words
from lib.evaluation.advice import Needs
from lib.files import ROOT, BadInput
from lib.files.paths import check_path

Count = Annotated[int, Field(ge=1, le=10_000)]

# Words to check another by, where it is given alone.
GOOD_WORDS = {"class_noun": "-", "identifier": "_", "kind": KINDS[0]}


@checked("Setting")
class Parameters:
    """The parameters of notebooks that are neither settings of a training nor needs."""

    subject: str = "-"
    class_noun: str = ""
    identifier: str = ""
    kind: str = ""
    aspect: Literal["square", "photo"] = "square"
    held_out: Annotated[int, Field(ge=0, le=10_000)] = 2
    class_images: Count = 40
    judge: Literal["", "pocket", "real"] = ""
    prompts: Literal["full", "course"] = "full"
    pictures_per_prompt: Count = 2
    class_pictures: Count = 8
    pictures: Annotated[int, Field(ge=4, le=10_000)] = 8
    kohya_lora: str = ""
    masks: str = ""
    masc: str = ""
    photos: str = ""
    subjects: list[str] = Field(default_factory=list)
    ranks: list[int] = Field(default_factory=list)
    seeds: list[int] = Field(default_factory=list)
    job_steps: Annotated[int, Field(ge=1, le=100_000)] = 20
    workers: Count = 2

    def __post_init__(self) -> None:
        if not self.subject.strip():
            raise BadInput("Setting 'subject' is empty: name a folder.")
        for name in ("subject", "kohya_lora", "masks"):
            check_path(name, getattr(self, name))
        check_words({name: getattr(self, name) or good for name, good in GOOD_WORDS.items()})
        if self.masc and not self.masks:
            raise BadInput(
                "Setting 'masc' needs masks of the held-out photos: name their folder in 'masks',"
                " or leave 'masc' empty."
            )


# The settings of a training that are parameters, each with the value that means the preset's.
SETTINGS = {
    "base": None,
    "data": None,
    "output": None,
    "seed": None,
    "steps": 0,
    "learning_rate": 0,
    "rank": 0,
    "batch_size": 0,
    "prior_weight": -1,
    "sample_steps": 0,
    "guidance": 0,
    "keep": None,
}

PATHS = ("subject", "base", "kohya_lora", "masks")  # what is looked for on the disk
HAVE_TO_EXIST = ("kohya_lora", "masks")  # where they are not empty
ELSEWHERE = ("output", "judge", "masc")  # made where it says, or looked for by who reads it


def check_parameters(given: Mapping[str, Any]) -> None:
    """Raise BadInput for the first value in `given` that no notebook could take.

    Other names are passed over, and so are functions and modules of a parameter's name.
    """
    values = {
        name: value
        for name, value in given.items()
        if not callable(value) and not isinstance(value, ModuleType)
    }
    training: dict[str, Any] = {"method": "lora", "data": "-", "output": "-"}
    needs: dict[str, Any] = {"memory_gib": 1.0, "disk_gib": 1.0}
    for name, preset in SETTINGS.items():
        if name in values and (preset is None or values[name] != preset):
            training[name] = values[name]
    try:
        Settings(**training)
    except BadInput as error:
        left = (
            f" {value} leaves it to the preset."
            for name, value in SETTINGS.items()
            if value is not None and f"'{name}'" in str(error)
        )
        raise BadInput(str(error) + "".join(left)) from None
    Parameters(**{name: values[name] for name in described(Parameters) if name in values})
    for name, value in ((n, v) for n in ("rank", "seed") for v in values.get(f"{n}s", ())):
        Settings(**training | {name: value})
    Needs(**needs | {name: values[name] for name in described(Needs) if name in values})


def found_paths(given: Mapping[str, Any], folder: str | Path) -> dict[str, str]:
    """The paths in `given` that are not in the course's folder but in `folder` or, as ~/photos, in
    the user's own, made absolute.

    A relative path counts from the course's folder, or else from the one where a command or a
    notebook was started. Raises BadInput for one that is in both, and for a file that is nowhere.
    """
    found = {}
    for name in (*PATHS, *ELSEWHERE):
        text = given.get(name)
        if not isinstance(text, str) or not text or text == "pocket":
            continue
        if text.startswith("~"):
            found[name] = text = os.path.expanduser(text)
        if name in ELSEWHERE:
            continue
        here, ours = Path(folder, text), Path(ROOT, text)
        if os.path.exists(here) and os.path.exists(ours) and not here.samefile(ours):
            raise BadInput(
                f"Setting '{name}' is {text}, which is {here} and {ours}: write the whole path of"
                " the one that you mean."
            )
        if os.path.exists(here) and not os.path.exists(ours):
            found[name] = str(here.absolute())
        elif name in HAVE_TO_EXIST and not os.path.exists(ours):
            raise BadInput(f"Setting '{name}' is {text}, which is not there: check the path.")
    return found
