"""What every notebook begins with: the packages, errors in one sentence, and a data set to train
on.

Only the standard library is imported here at first, so that `start` can install the rest on a
machine (Colab) that lacks it.
"""

import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lib.files.errors import BadInput
from lib.files.paths import ROOT

# What the notebooks import beside torch and numpy. For the first, files on disk depend on the
# version; of the rest any will do.
FLOORS, ANY = (
    ("diffusers", "transformers", "peft", "accelerate", "safetensors"),
    ("pillow", "matplotlib", "ipywidgets", "psutil", "pydantic"),
)


def start():
    """Make a notebook ready: install what is missing (never torch or numpy), and from then on show
    bad input as one sentence.
    """
    absent = unmet(ROOT / "requirements.txt")
    if absent:
        print(f"[stage] installing {', '.join(absent)}", flush=True)
        keep = [
            f"{name}=={version(name)}" for name in ("torch", "numpy")
        ]  # named as they are, so that pip must leave them
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", *absent, *keep], check=True
        )
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        from IPython import get_ipython
    except ImportError:
        return
    if get_ipython():
        get_ipython().set_custom_exc((BadInput,), _one_sentence)


def unmet(requirements):
    """The lines of a requirements file (floors, such as "peft>=0.18") that the notebooks need and
    that are not met here.
    """
    absent = []
    for line in Path(requirements).read_text("utf-8").splitlines():
        name, _, floor = line.split("#")[0].strip().partition(">=")
        if name in FLOORS + ANY:
            try:
                met = name in ANY or _numbers(version(name)) >= _numbers(floor)
            except PackageNotFoundError:
                met = False
            absent += [] if met else [f"{name}>={floor}"]
    return absent


def _numbers(text):
    """A version as numbers to compare: "5.6.0.dev1" -> [5, 6, 0]."""
    return [int(part) for part in re.match(r"\d+(\.\d+)*", text)[0].split(".")]


def _one_sentence(shell, kind, error, trace, tb_offset=None):
    """Show bad input as its sentence alone: it is the reader's setting that is wrong, not a line of
    code. The cell still fails.
    """
    shell._showtraceback(kind, error, [f"\x1b[1;31m{error}\x1b[0m"])


def tell_limits(base, subject):
    """Print what a reader of their own photographs must know of the pocket base; nothing for the
    example subjects or another base.

    `subject` is the `Subject`; the examples are told by who made them.
    """
    if base.name == "pocket" and "pocket.subjects" not in subject.made_by:
        print(
            "These are your own pictures, and the pocket base is a small model of drawings at 64 x"
            " 64 pixels. It can show whether colours, rough shape and markings of your subject are"
            " learnt and carried to new places, and how the two methods differ in time, memory and"
            " file size. It cannot show a photograph: no texture, no fine detail, no true light,"
            " and every place is a drawing. For photographs set `base` to a Stable Diffusion model;"
            " nothing else changes."
        )
