"""What happens to a run folder that is there already: returned if it is this very run finished, continued if cut short, else set aside."""

import hashlib
import os
import shutil
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

from .captions import class_caption
from .methods import weight_bytes
from .record import say
from .settings import BadInput, read_json

# These change where a run lies or how safe it is, not what it learns. The data set is compared by its content.
ELSEWHERE = ("output", "data", "save_every")


@contextmanager
def alone(output):
    """Hold the run folder `output` against other processes that would train there. Raises BadInput while one does."""
    from filelock import FileLock, Timeout

    run = Path(output).resolve()
    lock = FileLock(run.with_name(f".{run.name}.lock"))  # beside the folder, which may be set aside or made anew
    with suppress(OSError):  # where nothing can be written, `open_run` returns a finished run or says so
        run.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise BadInput(f"Another training is writing to {output}: wait for it, stop it, or choose another output.") from None
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):
                os.unlink(lock.lock_file)
        lock.release()


def open_run(settings, dataset):
    """(run folder, whether the same settings and data have been trained there to the end). Makes the folder, or keeps what is to go on.

    A folder that holds a run of other settings or data is renamed to <name>_before_1 (2, ...), which is said, and a new one made; one in
    which nothing was learnt yet is cleared. Raises BadInput, before anything slow, if class images are missing or the folder is no run's.
    """
    if settings.prior_weight > 0 and not prior_items(settings, dataset):
        raise BadInput(
            f"Data set {dataset.root} has no class images, which prior_weight {settings.prior_weight} needs: "
            "make them in notebook 01, set prior_weight to 0, or, for LoRA, prior to 'teacher'."
        )
    if settings.prior_weight > 0 and settings.prior == "images":
        have, wanted = ({item.size for item in items} for items in (dataset.class_images, dataset.train))
        if missing := sorted(wanted - have):
            raise BadInput(
                f"Data set {dataset.root} has photos of {missing[0][0]} x {missing[0][1]} pixels and no class image of that size, which "
                "train in one batch: draw them again in notebook 01, as many as photos or more."
            )
    run = Path(settings.output)
    if run.exists() and not run.is_dir() or run.is_dir() and any(run.iterdir()) and not (run / "settings.json").is_file():
        raise BadInput(f"Output {run} exists and is no run folder: choose another folder.")
    if run.is_dir() and any(run.iterdir()):
        same, finished, worth = _look(run, settings, data_hash(dataset))
        if same and finished:
            say(f"{run} has been trained already, by the same settings on the same data: it is returned as it is")
            return run, True
        if same and any((run / "checkpoint").glob("step_*")):
            return run, False
        if worth:
            _set_aside(run)
    shutil.rmtree(run, ignore_errors=True)
    try:
        (run / "samples").mkdir(parents=True)
        settings.save(run / "settings.json")
    except OSError as error:
        raise BadInput(f"Output {run} cannot be written ({error.strerror}): choose another folder, or free some space.") from None
    return run, False


def prior_items(settings, dataset):
    """What prior preservation holds on to: the class images; for a teacher, the photos under captions without the identifier."""
    if settings.prior_weight == 0:
        return []
    if settings.prior == "images":
        return dataset.class_images
    return [replace(item, caption=class_caption(dataset.subject, item.caption)) for item in dataset.train]


def data_hash(dataset):
    """SHA-256 of a data set: of its dataset.json, which holds that of every file in it."""
    return hashlib.sha256((dataset.root / "dataset.json").read_bytes()).hexdigest()


def _look(run, settings, data):
    """(trained by the same settings, finished on the same data, holding something that someone may want)."""
    old, found = (_read(run / name) for name in ("settings.json", "metrics.json"))
    # A setting that an older version of this project did not know may have had another value than today's default.
    same = all(name in old and old[name] == value for name, value in asdict(settings).items() if name not in ELSEWHERE)
    weights = weight_bytes(run)
    finished = bool(weights) and found.get("data_sha256") == data and not found.get("stopped_early")
    return same, finished, bool(weights or found) or any((run / "checkpoint").glob("step_*"))


def _read(path):
    try:
        return read_json(path)
    except BadInput:  # none, or a broken one
        return {}


def _set_aside(run):
    number = 1
    while (aside := run.with_name(f"{run.name}_before_{number}")).exists():
        number += 1
    os.replace(run, aside)
    say(f"{run} holds a run of other settings or data: it is kept as {aside}; delete that if you do not need it")
