"""What happens to a run folder that is there already: returned if it is this very run finished,
continued if cut short, else set aside.
"""

import hashlib
import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from fnmatch import fnmatch
from pathlib import Path

from lib.dataset.captions import class_caption
from lib.files.errors import BadInput
from lib.files.json_file import read_json
from lib.files.text import say
from lib.models.base_files import WITH_WEIGHTS
from lib.step.run_weights import ADAPTER, weight_bytes

# These change where a run lies or how safe it is, not what it learns. The data set is compared by
# its content.
NO_EFFECT_ON_WEIGHTS = ("output", "data", "save_every")


# All that a training writes into its folder: nothing else is ever cleared.
RUN_FILES = (
    "settings.json",
    "settings.json.*.part",
    "log.jsonl",
    "metrics.json",
    "metrics.json.*.part",
    "curve.json",
    "curve.json.*.part",
    "samples",
    "checkpoint",
    ADAPTER,
    *WITH_WEIGHTS,
    ".weights.*",
)


@contextmanager
def lock_run_folder(output):
    """Hold the run folder `output` against other processes that would train there. Raises BadInput
    while one does.
    """
    from filelock import FileLock, Timeout

    run = Path(output).expanduser().resolve()
    # Beside the folder, which may be set aside or made anew; where nothing can be written there, in
    # the temporary folder.
    elsewhere = f"workbench-{hashlib.sha256(str(run).encode()).hexdigest()[:16]}.lock"
    locks = (
        FileLock(run.with_name(f".{run.name}.lock")),
        FileLock(Path(tempfile.gettempdir()) / elsewhere),
    )
    for lock in locks:
        try:
            lock.acquire(timeout=0)
            break
        except Timeout:
            raise BadInput(
                f"Another training is writing to {output}: wait for it, stop it, or choose another"
                " output."
            ) from None
        except OSError:
            continue
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):
                os.unlink(lock.lock_file)
        lock.release()


def inspect_run_folder(settings, dataset):
    """(run folder, "finished" if the same settings and data have been trained there to the end,
    "cut short", or "new").

    Nothing is changed here. Raises BadInput, before anything slow, if class images are missing or
    the folder is no run's.
    """
    if settings.prior_weight > 0 and not prior_items(settings, dataset):
        raise BadInput(
            f"Data set {dataset.root} has no class images, which prior_weight"
            f" {settings.prior_weight} needs: make them in notebook 01, set prior_weight to 0, or,"
            " for LoRA, prior to 'teacher'."
        )
    if settings.prior_weight > 0 and settings.prior == "images":
        have, wanted = (
            {item.size for item in items} for items in (dataset.class_images, dataset.train)
        )
        if missing := sorted(wanted - have):
            raise BadInput(
                f"Data set {dataset.root} has photos of {missing[0][0]} x {missing[0][1]} pixels"
                " and no class image of that size, which train in one batch: draw them again in"
                " notebook 01, as many as photos or more."
            )
    run = Path(settings.output).expanduser()
    if (
        run.exists()
        and not run.is_dir()
        or _names(run)
        and not {"method", "data", "output"} <= _read(run / "settings.json").keys()
    ):
        raise BadInput(f"Output {run} exists and is no run folder: choose another folder.")
    if not _worth(run) and (
        others := [name for name in _names(run) if not _made(name) and name[0] != "."]
    ):
        raise BadInput(
            f"Output {run} holds {others[0]}, which no training makes: choose another folder."
        )
    old, found = (_read(run / name) for name in ("settings.json", "metrics.json"))
    # A setting that an older version of this project did not know may have had another value than
    # today's default.
    if any(
        name not in old or old[name] != value
        for name, value in asdict(settings).items()
        if name not in NO_EFFECT_ON_WEIGHTS
    ):
        return run, "new"
    whole = found.get("file_bytes") == weight_bytes(run) > 0 and found.get(
        "data_sha256"
    ) == data_hash(dataset)
    if whole and not found.get("stopped_early"):
        return run, "finished"
    return run, "cut short" if _checkpoints(run) else "new"


def make_ready(run, settings):
    """Make the folder of a new run. What a run of other settings or data has left there is renamed
    to <name>_before_1 (2, ...), which is said; where nothing was learnt yet, what is there is
    cleared. Raises BadInput where nothing can be written.
    """
    try:
        if _worth(run):
            _set_aside(run)
        for name in filter(_made, os.listdir(run) if run.is_dir() else ()):
            if (
                name != "settings.json"
            ):  # which is replaced in one move: without it the folder would be no run's
                (shutil.rmtree if (run / name).is_dir() else os.unlink)(run / name)
        run.mkdir(parents=True, exist_ok=True)
        settings.save(run / "settings.json")
        (run / "samples").mkdir(exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"Output {run} cannot be written ({error.strerror}): choose another folder, or free"
            " some space."
        ) from None


def prior_items(settings, dataset):
    """What prior preservation holds on to: the class images; for a teacher, the photos under
    captions without the identifier.
    """
    if settings.prior_weight == 0:
        return []
    if settings.prior == "images":
        return dataset.class_images
    return [
        replace(item, caption=class_caption(dataset.subject, item.caption))
        for item in dataset.train
    ]


def data_hash(dataset):
    """SHA-256 of a data set: of its dataset.json, which holds that of every file in it."""
    return hashlib.sha256((dataset.root / "dataset.json").read_bytes()).hexdigest()


def _names(run):
    """What lies in a folder, but for what a process has left that was killed while it wrote its
    settings.
    """
    return (
        [name for name in sorted(os.listdir(run)) if not fnmatch(name, "settings.json.*.part")]
        if run.is_dir()
        else []
    )


def _made(name):
    return any(fnmatch(name, one) for one in RUN_FILES)


def _checkpoints(run):
    return any((run / "checkpoint").glob("step_*"))


def _worth(run):
    """Whether a folder holds something that someone may want."""
    return bool(weight_bytes(run) or _read(run / "metrics.json")) or _checkpoints(run)


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
    say(
        f"{run} holds a run of other settings or data, or one without a checkpoint to go on from:"
        f" it is kept as {aside}; delete that if you do not need it"
    )
