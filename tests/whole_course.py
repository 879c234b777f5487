"""One run of the whole course, each of whose cells runs twice: the tests of its notebooks and of
recorded numbers read it.
"""

import hashlib
import io
import json
import math
import tempfile
from contextlib import contextmanager, nullcontext
from pathlib import Path

import nbformat

from lib.config.settings import Settings
from lib.course.progress import Progress
from lib.course.report import report
from lib.course.runner import NOTEBOOKS, CourseFailed, closing, course, run_notebook
from lib.course.set_up_cell import repository, set_up_cell
from lib.files.errors import BadInput
from lib.files.json_file import read_json
from lib.files.paths import ROOT

# What a comparison's summary holds of each method, in any course.
PROMISED = (
    *("seconds_per_step", "train_seconds", "peak_bytes", "file_bytes"),
    *("dino", "clip_i", "clip_t"),
)


def digests(folder):
    """{file: SHA-256 of what it holds} of all files in a folder."""
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(Path(folder).rglob("*"))
        if p.is_file()
    }


AGAIN = "-again"


def each_cell_twice(notebook):
    """A notebook in which each code cell runs twice in a row, but for those with parameters and
    other tags.
    """
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        if cell.cell_type == "code" and not cell.metadata.get("tags"):
            cells.append(nbformat.from_dict(cell | {"id": f"{cell.id}{AGAIN}"}))
    notebook.cells = cells
    return notebook


def set_up_again(notebook):
    """A notebook whose set-up cell runs once more at the end, as it does where somebody runs all of
    it again: what cells have called something may not be taken for a parameter.
    """
    (cell,) = [c for c in notebook.cells if c.source == set_up_cell(repository())]
    notebook.cells.append(nbformat.from_dict(cell | {"id": f"{cell.id}-at-the-end{AGAIN}"}))
    return notebook


def without_repetitions(notebook):
    """An executed notebook as one finds it where each cell ran once."""
    notebook.cells = [cell for cell in notebook.cells if not cell.id.endswith(AGAIN)]
    return notebook


@contextmanager
def written_twice(names):
    """The paths of notebooks whose cells run twice, in a folder of the course's own."""
    (ROOT / "runs").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "runs", prefix="twice-") as folder:
        for name in names:
            notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
            nbformat.write(each_cell_twice(set_up_again(notebook)), Path(folder, f"{name}.ipynb"))
        yield [Path(folder, f"{name}.ipynb") for name in names]


class WholeCourse:
    """What `lib.course` makes of `settings` in the folder `output`: its summary, and, called with
    the name of a notebook, that notebook as executed. Each cell runs twice; what is there to be
    read is what the first time showed.

    A course that stops is raised by what asks for the notebook it stopped in, or for a later one:
    the notebooks before are there to be read.
    """

    def __init__(self, settings, output):
        self.output, self.error, self.found = output, None, None
        self.photos = digests(ROOT / "data/subjects/character")
        try:
            with written_twice(NOTEBOOKS) as notebooks:
                self.found = course(settings, output, notebooks, io.StringIO())
            read = [self(name) for name in NOTEBOOKS]
            page = report(read, self.found, "the course", closing(self.found))
            (output / "report.html").write_text(page, encoding="utf-8")
        except (BadInput, CourseFailed) as error:
            self.error = error

    @property
    def summary(self):
        if self.error:
            raise self.error
        return self.found

    def __call__(self, name):
        executed = self.output / f"{name}.ipynb"
        notebook = nbformat.read(executed, as_version=4) if executed.is_file() else None
        if self.error and not (notebook and ended_well(notebook)):
            raise self.error
        return without_repetitions(notebook)


def ended_well(notebook):
    """Whether papermill ran each of an executed notebook's cells without an error."""
    return all(
        cell.metadata.papermill.status == "completed"
        for cell in notebook.cells
        if cell.cell_type == "code"
    )


def execute(name, output, folder, twice=False, **parameters):
    """Run a notebook as the course does, each cell twice if asked to, and return the executed copy,
    without the repetitions.
    """
    executed, parameters = folder / f"{name}.ipynb", {"output": str(output), **parameters}
    with (
        written_twice([name]) if twice else nullcontext([ROOT / "notebooks" / f"{name}.ipynb"]) as (
            source,
        )
    ):
        run_notebook(source, executed, parameters, Progress({}, io.StringIO()))
    return without_repetitions(nbformat.read(executed, as_version=4))


def said(cell):
    """What a cell says in words: what it printed, and what it shows that is text."""
    outputs = [o for o in cell.get("outputs", ()) if o.output_type != "error"]
    return "".join(
        str(o.get("data", {}).get("text/plain", "")) if "data" in o else o.text
        for o in outputs
        if o.output_type != "stream" or o.name == "stdout"
    )


def printed(notebook):
    return "\n".join(said(cell) for cell in notebook.cells)


def check_run(run, method, steps, samples=16):
    """A finished run folder, whose figures are figures."""
    settings, metrics = Settings.load(run / "settings.json"), read_json(run / "metrics.json")
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert settings.method == method and settings.steps == len(log) == metrics["steps"] == steps
    assert all(math.isfinite(row["loss"]) and 0 < row["loss"] < 10 for row in log)
    assert len(list((run / "samples").glob("*.png"))) == samples
    weights = run / (
        "adapter.safetensors" if method == "lora" else "unet/diffusion_pytorch_model.safetensors"
    )
    assert metrics["file_bytes"] == weights.stat().st_size > 1000
    assert 0 < metrics["seconds_per_step"] < metrics["train_seconds"] and metrics[
        "peak_bytes"
    ] == sum(metrics["peak_by_category"].values())
