"""Files and folders that are written whole or not at all.

    with whole_file("table.csv") as unfinished:
        unfinished.write_text("...")

Both ways write beside the target, on the same disk, and then rename, which to a reader happens in
one moment. A process that is killed leaves a hidden folder `.NAME.*.part`, and the target as it
was.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lib.files.errors import BadInput
from lib.files.paths import fitting_name

# This file lies in folders that exports and conversions make: only such are made again.
MARK = "workbench.json"
MADE_BY = {"made_by": "lora-dreambooth-workbench"}


RANDOM = "?" * 8  # what `tempfile` puts in


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` when the block ends well, and else is deleted.

    It has the name of `path`, as some libraries choose a format by the ending. Raises OSError.
    """
    path = Path(path)
    with _folder_beside(path) as beside:
        yield beside / path.name
        os.replace(beside / path.name, path)


@contextmanager
def whole_folder(folder: Path, mark: bool = False) -> Iterator[Path]:
    """An empty folder, which becomes `folder` when the block ends well, and else is deleted.

    mark: put `MARK` into it. If `folder` is a link, it stays one, and what it points to is
    replaced. Raises OSError; then the folder that was there before is there again.
    """
    folder = folder.resolve()
    with _folder_beside(folder) as beside:
        new, old = beside / folder.name, beside / f"{folder.name[:50]}.old"
        new.mkdir()
        yield new
        if mark:
            (new / MARK).write_text(json.dumps(MADE_BY, indent=1) + "\n", "utf-8")
        if folder.exists():
            # Out of the way by a rename: deleting takes time, in which neither would be there.
            os.replace(folder, old)
        try:
            os.replace(new, folder)
        except BaseException:  # an interrupt may come between the two
            if old.exists() and not folder.exists():
                os.replace(old, folder)
            raise


@contextmanager
def _folder_beside(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = fitting_name(f".{path.name}", "." + RANDOM + ".part").partition(RANDOM)[0]
    beside = Path(tempfile.mkdtemp(prefix=prefix, suffix=".part", dir=path.parent))
    try:
        yield beside
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def unwritable_refused(path: str | Path) -> Iterator[None]:
    """Raise BadInput, which names `path`, where the block raises OSError."""
    try:
        yield
    except OSError as error:
        raise BadInput(
            f"{path} cannot be written ({error.strerror or error}): free some space or choose"
            " another place."
        ) from error


def may_be_replaced(folder: Path, names: Iterable[str]) -> bool:
    """Whether nothing in `folder` is the user's own.

    True if it is empty, or bears `MARK` and holds nothing but `names`.
    """
    if not folder.is_dir():
        return False
    found = {path.name for path in folder.iterdir()}
    return not found or MARK in found and found <= {*names, MARK}


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; a large one is never in memory as a whole."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
