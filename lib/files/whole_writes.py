"""Files and folders that are written whole or not at all, and what was made here and so may be made
again.
"""

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

from lib.files.errors import BadInput
from lib.files.json_file import write_json

MARK, MADE = (
    "workbench.json",
    {"made_by": "lora-dreambooth-workbench"},
)  # in folders that are made here: only such are made again


@contextmanager
def takes_place(out):
    """A path beside `out`, for a file or folder that takes its place when the block ends well, and
    vanishes when it does not.

    A folder gets the file `MARK`, by which we know later that it was made here and may be made
    again.
    """
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield work / out.name
        if (work / out.name).is_dir():
            write_json(work / out.name / MARK, MADE)
        if out.is_dir():
            shutil.rmtree(out)
        os.replace(work / out.name, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def made_here(folder, names):
    """Whether `folder` may be made again: it is empty, or bears `MARK` and holds nothing but
    `names`, so nothing of the user's.
    """
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else None
    return found is not None and (not found or MARK in found and found <= {*names, MARK})


def size_of(path):
    """Bytes of a file, or of all files in a folder."""
    return (
        sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
        if path.is_dir()
        else path.stat().st_size
    )


@contextmanager
def written_whole(target):
    """A temporary folder beside `target` that takes its place when the block ends well, and
    vanishes when it does not.
    """
    target = (
        target.resolve()
    )  # a link to a folder stays the link, and the folder behind it is what is replaced
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise BadInput(
            f"output {target} cannot be written ({error.strerror}); choose another output"
        ) from error
    new, old = temporary / "new", temporary / "old"
    try:
        new.mkdir()
        yield new
        if target.exists():
            os.replace(target, old)
        try:
            os.replace(new, target)
        except OSError:
            if old.exists():
                os.replace(old, target)
            raise
    except OSError as error:
        raise BadInput(
            f"output {target} cannot be written ({error.strerror or error}); free some space or"
            " choose another"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
