"""The set-up cell, which stands in every notebook: its one text, and what writes it into them.

A notebook that is opened alone, as on Colab, has nothing but this cell to find or fetch the rest,
so the cell cannot be imported. After a change here, `make notebooks` writes it into all of them,
with the repository's address, which stands in pyproject.toml alone, and the badges that open a
notebook of it on Colab and Binder.
"""

import json
import re
import tomllib
from pathlib import Path

from lib.files import ROOT

TEMPLATE = """\
import os
import subprocess
import sys
from pathlib import Path

# Where the course is fetched from if only this file is here, as on Colab.
REPOSITORY = os.environ.get("WORKBENCH_REPOSITORY", "{repository}")
FOLDER = Path.cwd()
ROOT = next(
    (p for p in [FOLDER, *FOLDER.parents] if (p / "lib" / "course" / "set_up.py").is_file()),
    FOLDER / "lora-vs-dreambooth-workbench",
)
if not ROOT.exists():
    if not REPOSITORY:
        raise RuntimeError(
            "The course is not in this folder or above it: give papermill the course's folder with"
            " --cwd, or name its repository in REPOSITORY above."
        )
    subprocess.run(["git", "clone", "--depth", "1", REPOSITORY, str(ROOT)], check=True)
sys.path.insert(0, str(ROOT))
os.chdir(ROOT)  # folders in the parameters are counted from the course's own folder

from lib import start

start(FOLDER)"""

LAST_LINE = "start("

# Colab has no more of the repository than the one notebook; Binder has all of it, and sets it up by
# environment.yml.
BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{repository}/blob/main/notebooks/{notebook})"
    " [![Open in Binder](https://mybinder.org/badge_logo.svg)]"
    "(https://mybinder.org/v2/gh/{repository}/main?urlpath=lab/tree/notebooks/{notebook})"
)
BADGES = re.compile(r"\[!\[Open in Colab\].*\n\n")  # where a notebook begins with one


def repository() -> str:
    """The repository's address by pyproject.toml, or "" before there is one."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    return tomllib.loads(text)["tool"]["workbench"]["repository"]


def set_up_cell(address: str) -> str:
    """The set-up cell's text, for a repository at an address ("": the reader has to name it)."""
    return TEMPLATE.replace("{repository}", address)


def badge(address: str, notebook: str) -> str:
    """What opens a notebook of a repository on Colab and Binder, as Markdown; "" where they cannot.

    Both open what is public on GitHub.
    """
    found = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(\.git)?/?", address)
    return BADGE.format(repository=found[1], notebook=notebook) + "\n\n" if found else ""


def set_up_cells(notebook: dict) -> list[dict]:
    """The cells of a notebook (its JSON) that are set-up cells, of whatever version."""
    return [
        cell
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
        and "".join(cell["source"]).split("\n")[-1].startswith(LAST_LINE)
    ]


def write_set_up_cell(
    folder: str | Path = ROOT / "notebooks", address: str | None = None
) -> list[Path]:
    """Write set-up cell and badge into every notebook in `folder` and its solutions. Returns those
    that were changed.

    `address`: the repository's, by default that in pyproject.toml.
    """
    changed, address = [], repository() if address is None else address
    folder = Path(folder)
    for path in sorted([*folder.glob("*.ipynb"), *folder.glob("solutions/*.ipynb")]):
        notebook = json.loads(path.read_text("utf-8"))
        for cell in set_up_cells(notebook):
            cell["source"] = set_up_cell(address).splitlines(keepends=True)
        opening = notebook["cells"][0]
        if opening["cell_type"] == "markdown":
            words = BADGES.sub("", "".join(opening["source"]), count=1)
            opening["source"] = (
                badge(address, path.relative_to(folder).as_posix()) + words
            ).splitlines(keepends=True)
        text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        if text != path.read_text("utf-8"):
            path.write_text(text, "utf-8")
            changed.append(path)
    return changed
