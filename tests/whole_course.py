"""One run of the whole course: the tests of its notebooks and of recorded numbers read it."""

import hashlib
import io
from pathlib import Path

import nbformat

from lib.course.runner import CourseFailed, course
from lib.files.errors import BadInput
from lib.files.paths import ROOT


def digests(folder):
    """{file: SHA-256 of what it holds} of all files in a folder."""
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(Path(folder).rglob("*"))
        if p.is_file()
    }


class WholeCourse:
    """What `lib.course` makes of `settings` in the folder `output`: its summary, and, called with
    the name of a notebook, that notebook as executed.

    A course that stops is raised by what asks for the notebook it stopped in, or for a later one:
    the notebooks before are there to be read.
    """

    def __init__(self, settings, output):
        self.output, self.error, self.found = output, None, None
        self.photos = digests(ROOT / "data/subjects/character")
        try:
            self.found = course(settings, output, stream=io.StringIO())
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
        return notebook


def ended_well(notebook):
    """Whether papermill ran each of an executed notebook's cells without an error."""
    return all(
        cell.metadata.papermill.status == "completed"
        for cell in notebook.cells
        if cell.cell_type == "code"
    )
