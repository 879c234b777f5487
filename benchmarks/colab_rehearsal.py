"""The Colab notebook as Colab runs it: alone in an empty folder, on a Python that has torch, numpy
and ipykernel and nothing else. Ends in a comparison, or says in which cell it stopped.

    make rehearse                          # minutes: it fetches all packages anew
    python -m benchmarks.colab_rehearsal --keep FOLDER    # what it made stays there

The course is cloned from this checkout's last commit, by a file:// address. Steps are few: that it
runs is asked, not what comes of it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from lib.files.json_file import read_json
from lib.files.paths import ROOT

NOTEBOOK = ROOT / "notebooks" / "colab_whole_course.ipynb"

SHORT = {"steps": 8, "class_images": 8, "sample_steps": 4, "class_pictures": 2}

KERNEL = "rehearsal"


def bare_python(folder: Path) -> Path:
    """A Python with torch, numpy and ipykernel alone, in an environment in `folder`."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    torch = f"torch=={version('torch').partition('+')[0]}"
    command = [python, "-m", "pip", "install", "--quiet", torch, "numpy", "ipykernel"]
    subprocess.run(command, check=True)
    return python


def add_kernel(python: Path, folder: Path) -> None:
    """Let Jupyter find a Python as a kernel, by a folder that JUPYTER_PATH names."""
    place = folder / "kernels" / KERNEL
    place.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": KERNEL, "language": "python"}
    (place / "kernel.json").write_text(json.dumps(spec))
    os.environ["JUPYTER_PATH"] = str(folder)


def rehearse(work: Path) -> dict:
    """Run the notebook alone in an empty folder of `work`. Returns the comparison's summary."""
    import papermill

    alone = work / "content"
    alone.mkdir()
    shutil.copyfile(NOTEBOOK, alone / NOTEBOOK.name)
    add_kernel(bare_python(work / "python"), work / "jupyter")
    os.environ["WORKBENCH_REPOSITORY"] = ROOT.as_uri()
    os.environ.pop("PYTHONPATH", None)  # else this checkout's own code would be found
    papermill.execute_notebook(
        str(alone / NOTEBOOK.name),
        str(work / "executed.ipynb"),
        SHORT,
        kernel_name=KERNEL,
        cwd=str(alone),
        progress_bar=False,
        log_output=True,
    )
    course = alone / "lora-vs-dreambooth-workbench"
    assert Path(course, "lib").is_dir(), "the course was not fetched into the empty folder"
    return read_json(course / "runs" / "colab" / "summary.json")


def main() -> None:
    """Rehearse, and print what was compared."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", type=Path, help="a new folder for what it makes")
    args = parser.parse_args()
    started = time.time()
    if args.keep:
        args.keep.mkdir(parents=True)
        summary = rehearse(args.keep.resolve())
    else:
        with tempfile.TemporaryDirectory() as work:
            summary = rehearse(Path(work))
    compared = [name for name, row in summary.items() if isinstance(row, dict) and "dino" in row]
    assert {"base_model", "lora", "dreambooth"} <= set(compared), f"compared were only {compared}"
    print(f"compared: {', '.join(compared)}, after {time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
