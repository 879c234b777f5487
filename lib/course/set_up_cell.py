"""The set-up cell, which stands in every notebook: its one text, and what writes it into them.

A notebook that is opened alone, as on Colab, has nothing but this cell to find or fetch the rest,
so the cell cannot be imported. After a change here, `make notebooks` writes it into all of them.
"""

import json
from pathlib import Path

from lib.files import ROOT

CELL = """\
import os
import subprocess
import sys
from pathlib import Path

# Where the course is fetched from if only this file is here, as on Colab.
REPOSITORY = os.environ.get("WORKBENCH_REPOSITORY", "")
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


def set_up_cells(notebook: dict) -> list[dict]:
    """The cells of a notebook (its JSON) that are set-up cells, of whatever version."""
    return [
        cell
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
        and "".join(cell["source"]).split("\n")[-1].startswith(LAST_LINE)
    ]


def write_set_up_cell(folder: str | Path = ROOT / "notebooks") -> list[Path]:
    """Write `CELL` into every notebook in `folder`. Returns those that were changed."""
    changed = []
    for path in sorted(Path(folder).glob("*.ipynb")):
        notebook = json.loads(path.read_text("utf-8"))
        for cell in set_up_cells(notebook):
            cell["source"] = CELL.splitlines(keepends=True)
        text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        if text != path.read_text("utf-8"):
            path.write_text(text, "utf-8")
            changed.append(path)
    return changed
