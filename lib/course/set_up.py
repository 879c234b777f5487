"""What every notebook begins with: the packages, and errors in one sentence.

Only the standard library is imported here at first, so that `start` can install the rest on a
machine (Colab) that lacks it.
"""

import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.files import ROOT, BadInput

if TYPE_CHECKING:
    from lib.dataset.captions import Subject
    from lib.models import Base

# What the notebooks import beside torch and numpy. Files on disk and settings depend on the version
# of the first; of the others any version will do.
WITH_VERSION = ("diffusers", "transformers", "peft", "accelerate", "safetensors", "pydantic")
ANY_VERSION = ("pillow", "pillow-heif", "matplotlib", "ipywidgets", "psutil", "filelock")


def start(folder: Path | None = None) -> None:
    """Make a notebook ready: install what is missing (never torch or numpy), from then on show bad
    input as one sentence, and check the notebook's parameters.

    `folder`: where the notebook was started, from which relative paths in them may count too.
    """
    absent = unmet(ROOT / "requirements.txt")
    if absent:
        print(f"[stage] installing {', '.join(absent)}", flush=True)
        # Named in the version that they have, so that pip leaves them alone.
        present = [f"{name}=={version(name)}" for name in ("torch", "numpy")]
        command = [sys.executable, "-m", "pip", "install", "--quiet", *absent, *present]
        subprocess.run(command, check=True)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        from IPython import get_ipython  # pyright: ignore[reportPrivateImportUsage]
    except ImportError:
        return
    shell = get_ipython()
    if shell:
        shell.set_custom_exc((BadInput,), _show_one_sentence)
        from lib.course.parameters import (
            check_parameters,
            found_paths,
        )  # late: may be installed now

        check_parameters(shell.user_ns)
        shell.user_ns.update(found_paths(shell.user_ns, folder or ROOT))


def unmet(requirements: str | Path) -> list[str]:
    """The lines of a requirements file (floors, such as "peft>=0.18") that the notebooks need and
    that are not met here.
    """
    absent = []
    for line in Path(requirements).read_text("utf-8").splitlines():
        name, _, floor = line.split("#")[0].strip().partition(">=")
        if name not in WITH_VERSION + ANY_VERSION:
            continue
        try:
            old = name in WITH_VERSION and _numbers(version(name)) < _numbers(floor)
        except PackageNotFoundError:
            old = True
        if old:
            absent.append(f"{name}>={floor}")
    return absent


def _numbers(text: str) -> list[int]:
    """A version as numbers to compare: "5.6.0.dev1" -> [5, 6, 0]."""
    found = re.match(r"\d+(\.\d+)*", text)
    return [int(part) for part in found[0].split(".")] if found else []


def _show_one_sentence(
    shell: Any, kind: type[Exception], error: Exception, trace: Any, tb_offset: int | None = None
) -> None:
    """Show bad input as its sentence alone: it is the reader's setting that is wrong, not a line of
    code. The cell still fails.
    """
    shell._showtraceback(kind, error, [f"\x1b[1;31m{error}\x1b[0m"])


def tell_limits(base: "Base", subject: "Subject") -> None:
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
