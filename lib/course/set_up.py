"""What every notebook begins with: the packages, and errors in one sentence.

Only the standard library is imported here at first, so that `start` can install the rest on a
machine (Colab) that lacks it.
"""

import os
import re
import subprocess
import sys
from getpass import getpass
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
ANY_VERSION = (
    *("pillow", "pillow-heif", "matplotlib", "ipywidgets", "psutil", "filelock"),
    "bitsandbytes",  # what smaller cards train with, such as Colab's
)

# JupyterLab breaks the lines of printed text in the middle of words.
WHOLE_WORDS = """<style>.jp-OutputArea .jp-OutputArea-output pre {
word-break: normal; overflow-wrap: anywhere}</style>"""

DRIVE = "/content/drive"  # where Colab mounts the reader's Google Drive


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
        from IPython.display import HTML, display
    except ImportError:
        return
    shell = get_ipython()
    if shell:
        shell.set_custom_exc((BadInput,), _show_one_sentence)
        from lib.course.parameters import (
            check_parameters,
            found_paths,
        )  # late: may be installed now
        from lib.widgets.showing import headless

        if not headless():
            display(HTML(WHOLE_WORDS))
        check_parameters(shell.user_ns)
        shell.user_ns.update(found_paths(shell.user_ns, folder or ROOT))
        on_colab(str(shell.user_ns.get("output", "")))
        ask_for_download(str(shell.user_ns.get("base", "pocket")))
        tell_machine(str(shell.user_ns.get("base", "pocket")))


def on_colab(output: str) -> None:
    """On Colab, mount Drive where `output` lies in it, or tell how runs are kept; else nothing."""
    try:
        from google.colab import drive  # pyright: ignore[reportMissingImports]: Colab alone has it
    except ImportError:
        return
    if output.startswith(DRIVE):
        drive.mount(DRIVE)
    elif output:
        print(
            "Colab forgets its files when the runtime ends. To keep runs, and to find them from"
            f" another notebook's runtime, set `output` to a folder of your Drive, such as"
            f" {DRIVE}/MyDrive/workbench, and run this cell again: it asks for the Drive."
        )


def ask_for_download(base: str) -> None:
    """Ask whether the hub model `base` may be downloaded, and for a token, where it is not here.

    Where nobody can answer nothing is asked, and loading says what to set.
    """
    from lib.models.base_files import locate  # late: may be installed now

    if base.count("/") != 1 or base[0] in "./~" or os.environ.get("WORKBENCH_DOWNLOAD") == "1":
        return
    try:
        locate(base)
        return
    except BadInput:
        if Path(base).parent.is_dir():  # a folder here, in which that one is not
            raise
    try:
        question = (
            f"Download '{base}' from the Hugging Face hub, which may be gigabytes? yes or no: "
        )
        if input(question).strip().lower() not in ("y", "yes"):
            return
        os.environ["WORKBENCH_DOWNLOAD"] = "1"
        if not os.environ.get("HF_TOKEN"):
            token = getpass("Your hub token, for gated models; leave it empty for others: ").strip()
            os.environ.update({"HF_TOKEN": token} if token else {})
    except (EOFError, NotImplementedError):  # a notebook run headless
        return


def tell_machine(base: str) -> None:
    """Print which GPU was found, and the recipes that fit what it has free, by forecast.

    Without a GPU, and the pocket base, which needs none, nothing.
    """
    import torch  # late: takes seconds

    if base == "pocket":
        return
    if not torch.cuda.is_available():
        print(
            f"No GPU was found: '{base}' trains on the processor, in hours. On Colab choose one"
            " under Runtime, Change runtime type."
        )
        return
    from lib.memory.cards import fitting_recipes

    device = torch.device("cuda")
    print(f"{torch.cuda.get_device_name(device)}: {fitting_recipes(base, device)}")


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
            found = version(name)  # of every one: without a version it is not there
            old = name in WITH_VERSION and _numbers(found) < _numbers(floor)
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
