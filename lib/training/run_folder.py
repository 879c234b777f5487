"""The run folder: held against other processes, looked into before a training, and made ready.

A run that is finished is returned as it is, an interrupted one goes on, and another run that lies
there is set aside under another name: nothing is ever trained twice, and nothing is lost.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from fnmatch import fnmatch
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.config import Settings
from lib.dataset.imagefolder import Dataset
from lib.files import BadInput, read_json, say
from lib.files.paths import fitting_name
from lib.files.whole_writes import file_hash
from lib.models import open_base_weights
from lib.models.base_files import WEIGHT_PARTS
from lib.models.compatibility import of_other_weights, trained_on
from lib.step.run_weights import ADAPTER, weight_bytes
from lib.training.batches import prior_items
from lib.training.kept_steps import KEPT

if TYPE_CHECKING:
    from filelock import BaseFileLock

# These change where a run lies or how safe it is, not what it learns. The data set is compared by
# its content.
NO_EFFECT_ON_WEIGHTS = ("output", "data", "save_every")

# What runs did before there was a setting for it.
OLDER_SETTINGS = {"keep": "last", "accumulate": 1}

# All that a training writes into its folder: nothing else is ever cleared.
RUN_FILES = (
    "settings.json",
    ".*.part",  # by a process that was killed; older versions left the other three, and `.weights.`
    "settings.json.*.part",
    "log.jsonl",
    "metrics.json",
    "metrics.json.*.part",
    "curve.json",
    "curve.json.*.part",
    "samples",
    "checkpoint",
    KEPT,
    ADAPTER,
    *WEIGHT_PARTS,
    ".weights.*",
)


@contextmanager
def lock_run_folder(output: str | Path) -> Iterator[None]:
    """Hold the run folder `output` against other processes that would train there.

    Raises BadInput while one does.
    """
    lock = _take_lock(Path(output).expanduser().resolve(), output)
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):
                os.unlink(lock.lock_file)
        lock.release()


def _take_lock(run: Path, output: str | Path) -> "BaseFileLock":
    """The lock of a run folder, beside it, for it may be set aside or made anew.

    Where nothing can be written there, it lies in the temporary folder.
    """
    from filelock import FileLock, Timeout  # late: needed by trainings alone

    name = f"workbench-{hashlib.sha256(str(run).encode()).hexdigest()[:16]}.lock"
    beside = FileLock(run.with_name(f".{run.name}.lock"))
    elsewhere = FileLock(Path(tempfile.gettempdir()) / name)
    for lock in (beside, elsewhere):
        try:
            lock.acquire(timeout=0)
            return lock
        except Timeout:
            raise BadInput(
                f"Another training is writing to {output}: wait for it, stop it, or choose another"
                " output."
            ) from None
        except OSError:
            continue
    return elsewhere


def inspect_run_folder(settings: Settings, dataset: Dataset) -> tuple[Path, str]:
    """The run folder of `settings`, and what they and the data set would find there.

    "finished": the same settings and data have been trained there to the end. "interrupted": they
    have left a checkpoint. "new": anything else. Nothing is changed here. Raises BadInput, before
    anything slow, if class images are missing or the folder is no run's.
    """
    check_class_images(settings, dataset)
    if settings.keep == "best" and not dataset.test:
        raise BadInput(
            f"Setting 'keep' is 'best', but data set {dataset.root} holds no photo out by which a"
            " step could be called that: hold one out in notebook 01, or use 'last'."
        )
    run = Path(settings.output).expanduser()
    if run.name in ("", ".."):  # "." and the like: another is set aside beside it, by its name
        run = run.resolve()
    _check_is_run_folder(run)
    trained = OLDER_SETTINGS | _read(run / "settings.json")
    measured = _read(run / "metrics.json")
    # Any other setting that an older version of this project did not know may have had another
    # value than today's default.
    if any(
        name not in trained or trained[name] != value
        for name, value in asdict(settings).items()
        if name not in NO_EFFECT_ON_WEIGHTS
    ):
        return run, "new"
    complete = measured.get("file_bytes") == weight_bytes(run) > 0
    same_data = measured.get("data_sha256") == data_hash(dataset)
    if complete and same_data and not measured.get("stopped_early"):
        return run, "finished" if _is_of_this_base(run, settings.base) else "new"
    return run, "interrupted" if _has_checkpoint(run) else "new"


def _is_of_this_base(run: Path, base: str) -> bool:
    """Whether a finished run was trained on the weights that its base has now, as far as both say:
    a base that is not here is not needed to return what was made of it.
    """
    with suppress(BadInput):
        return not of_other_weights(trained_on(run), open_base_weights(base))
    return True


def check_class_images(settings: Settings, dataset: Dataset) -> None:
    """Raise BadInput if prior preservation lacks class images, or some of a photo's size."""
    if not settings.prior_pictures:
        return
    if not prior_items(settings, dataset):
        raise BadInput(
            f"Data set {dataset.root} has no class images, which prior_weight"
            f" {settings.prior_weight} needs: make them in notebook 01, set prior_weight to 0, or,"
            " for LoRA, prior to 'teacher'."
        )
    if settings.prior != "images":
        return
    sizes = {item.size for item in dataset.class_images}
    if missing := sorted({item.size for item in dataset.train} - sizes):
        width, height = missing[0]
        raise BadInput(
            f"Data set {dataset.root} has photos of {width} x {height} pixels and no class image of"
            " that size, which train in one batch: draw them again in notebook 01, as many as"
            " photos or more."
        )


def create_run_folder(run: Path, settings: Settings) -> None:
    """Make the folder of a new run.

    What a run of other settings or data has left there is renamed to <name>_before_1 (2, ...),
    which is said; where nothing was learnt yet, what is there is cleared. Raises BadInput where
    nothing can be written.
    """
    try:
        if _holds_results(run):
            if Path.cwd().is_relative_to(run.resolve()):
                raise BadInput(
                    f"Output {run} holds a run of other settings or data, and is the folder that"
                    " you stand in, which cannot be set aside: go out of it, or choose another."
                )
            names = (fitting_name(run.name, f"_before_{number}") for number in count(1))
            aside = next(path for path in map(run.with_name, names) if not path.exists())
            os.replace(run, aside)
            say(
                f"{run} holds a run of other settings or data, or one without a checkpoint to go on"
                f" from: it is kept as {aside}; delete that if you do not need it"
            )
        for path in list(run.iterdir()) if run.is_dir() else ():
            # The settings are replaced in one move: without them the folder would be no run's.
            if path.name == "settings.json" or not _is_run_file(path.name):
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        run.mkdir(parents=True, exist_ok=True)
        settings.save(run / "settings.json")
        (run / "samples").mkdir(exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"Output {run} cannot be written ({error.strerror}): choose another folder, or free"
            " some space."
        ) from None


def data_hash(dataset: Dataset) -> str:
    """SHA-256 of a data set: of its dataset.json, which holds that of every file in it."""
    return file_hash(dataset.root / "dataset.json")


def _check_is_run_folder(run: Path) -> None:
    """Raise BadInput if `run` is a file, or a folder of something else than a training."""
    names = sorted(os.listdir(run)) if run.is_dir() else []
    # A process that was killed as it wrote settings left the second.
    names = [name for name in names if not fnmatch(name, "*settings.json.*.part")]
    recorded = _read(run / "settings.json").keys()
    if run.exists() and not run.is_dir() or names and not {"method", "data", "output"} <= recorded:
        raise BadInput(f"Output {run} exists and is no run folder: choose another folder.")
    others = [name for name in names if not _is_run_file(name) and name[0] != "."]
    if others and not _holds_results(run):
        raise BadInput(
            f"Output {run} holds {others[0]}, which no training makes: choose another folder."
        )


def _is_run_file(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in RUN_FILES)


def _has_checkpoint(run: Path) -> bool:
    return any((run / "checkpoint").glob("step_*"))


def _holds_results(run: Path) -> bool:
    """Whether a folder holds something that someone may want."""
    return bool(weight_bytes(run) or _read(run / "metrics.json")) or _has_checkpoint(run)


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except BadInput:  # none, or a broken one
        return {}
