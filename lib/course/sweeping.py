"""The same work over many settings, on any executor: finished jobs are skipped, failed ones tried
again, one table at the end.

    python -m lib sweep notebooks/02_lora_training.ipynb \\
        --set rank=1,4,16 --set seed=0,1,2 --output runs/sweep --workers 2

A job is a dict of settings. Its run folder is named by their hash and holds its row, so a sweep can
be stopped, continued and widened.
"""

import difflib
import hashlib
import itertools
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

from lib.course.executors import OtherWorker, Shared, Workers
from lib.course.parameters import check_parameters, found_paths
from lib.course.progress import Progress
from lib.course.runner import GUESS, NOTEBOOKS, run_notebook
from lib.course.set_up_cell import set_up_cells
from lib.files import BadInput, read_json, write_json
from lib.files.csv_table import compact, flat, spread, write_table
from lib.files.paths import check_path
from lib.files.text import clock, last_line

Job = dict[str, Any]
Row = dict[str, Any]
LOOK = 0.1  # seconds between two looks at which jobs are done
Work = Callable[[Job, Path], Row]


class Executor(Protocol):
    """What runs jobs: a pool of concurrent.futures, those of `lib.course.executors`, `RunsHere`.

    One that has a number `at_once` is not given more jobs than that before some are done.
    """

    def submit(self, function: Callable[..., Row], /, *values: Any) -> Any:
        """Begin a call; what is returned has `result()`, and where they can be had `done()` and
        `cancel()`.
        """
        ...


class RunsHere:
    """The executor that is no other process: a job runs when its result is asked for."""

    def submit(self, function: Callable[..., Row], /, *values: Any) -> Any:
        return SimpleNamespace(result=partial(function, *values))


def grid(**lists: Sequence[Any]) -> list[Job]:
    """Every combination of the values in `lists` (setting -> list), as jobs; the last setting
    changes fastest.
    """
    for setting, values in lists.items():
        if not isinstance(values, list | tuple | range) or not values:
            raise BadInput(
                f"Setting '{setting}' of the grid is {values!r}: give a list of one value or more."
            )
    return [dict(zip(lists, values)) for values in itertools.product(*lists.values())]


def run_name(job: Mapping[str, Any]) -> str:
    """The name of a job's run folder: 12 hex digits of the hash of its settings, in whatever order;
    1.0 counts as 1.
    """
    plain = {
        key: int(value) if isinstance(value, float) and value.is_integer() else value
        for key, value in job.items()
    }
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def named_jobs(jobs: Iterable[Job], work: Work) -> dict[str, Job]:
    """The jobs by the names of their run folders. Raises BadInput for one that cannot be run."""
    try:
        named = {run_name(job): job for job in map(flat, jobs)}
    except ValueError as error:
        raise BadInput(
            f"A job cannot be run ({error}): write each as settings by name, with numbers and"
            " texts."
        ) from None
    if not named:
        raise BadInput("The sweep has no jobs: give it one or more.")
    if check := getattr(work, "check", None):
        for job in named.values():
            check(job)
    return named


def sweep(
    jobs: Iterable[Job],
    work: Work,
    folder: str | Path,
    executor: Executor | None = None,
    retries: int = 1,
    say: Callable[[str], object] = print,
) -> list[Row]:
    """Call `work(job, run_folder)` for each of `jobs` not finished before. Returns the rows of all
    that are finished, in the jobs' order.

    `work` returns a flat dict of numbers and texts; a row is the job with that laid over it, kept
    in `folder/<run_name(job)>/row.json`. With an `executor` on other processes or machines `work`
    must be picklable, and `folder` one that all can see. None runs the jobs here, one after the
    other.

    A job that raises, or whose row has a number that is not finite, is run again after the others,
    up to `retries` times (unless it was bad input), and then noted in `folder/failed.json`. The
    rows become `folder/table.csv`, also after an interrupt.

    A worker checks before its job that it shares `folder`, the code, the versions and
    `work.files` (where `work` has them) with this process. A job that two workers were given, such
    as one that was thought dead, is run once: the second waits, and finds the row.

    Raises BadInput before anything runs if a job is no flat dict, `work.check(job)` (where `work`
    has it) refuses one, or `folder` is in use by another sweep, and OtherWorker where a worker does
    not share what it must. An executor that breaks raises BrokenExecutor; a later call goes on.
    """
    from filelock import FileLock, Timeout

    named = named_jobs(jobs, work)
    folder = Path(folder).resolve()  # workers may stand elsewhere
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout:
        raise BadInput(
            f"Another sweep is running in {folder}: wait for it, stop it, or choose another folder."
        ) from None
    except OSError as error:
        raise BadInput(
            f"The sweep cannot use the folder {folder} ({error.strerror}): choose another."
        ) from None
    with lock:
        shared = Shared.of(folder, getattr(work, "files", ()))
        return _Sweep(named, work, shared, executor or RunsHere(), retries, say).run()


@dataclass
class _Sweep:
    """A sweep under way: what is finished, what failed for good, and what the executor has."""

    jobs: dict[str, Job]
    work: Work
    shared: Shared
    executor: Executor
    retries: int
    say: Callable[[str], object]
    rows: dict[str, Row] = field(default_factory=dict)
    failed: dict[str, dict[str, Any]] = field(default_factory=dict)
    queue: deque[tuple[str, int]] = field(default_factory=deque)  # name, attempt
    waiting: list[tuple[str, int, Any]] = field(default_factory=list)  # and what it was given
    started: float = field(default_factory=time.monotonic)

    @property
    def folder(self) -> Path:
        """Where the run folders lie."""
        return self.shared.folder

    def run(self) -> list[Row]:
        """The rows of all jobs that are finished in the end."""
        for key in self.jobs:
            if row := _finished(self.folder / key):
                self.rows[key] = row
        before = len(self.rows)
        self.say(f"{len(self.jobs)} jobs, {before} of them finished before")
        self.queue.extend((key, 1) for key in self.jobs if key not in self.rows)
        try:
            while self.queue or self.waiting:
                self.submit_what_fits()
                self.say(self.next_outcome(before))
        finally:
            for *_, future in self.waiting:  # left after an interrupt, or by a broken executor
                if hasattr(future, "cancel"):
                    future.cancel()
            finished = self.write_results()
        return finished

    def submit_what_fits(self) -> None:
        """Give jobs to the executor, as many as it takes at once."""
        most = getattr(self.executor, "at_once", math.inf)
        while self.queue and len(self.waiting) < most:
            key, attempt = self.queue.popleft()
            values = (self.work, self.jobs[key], self.folder / key, attempt, self.shared)
            self.waiting.append((key, attempt, self.executor.submit(_run, *values)))

    def first_done(self) -> int:
        """The place in `waiting` of a job that is done.

        Or of the one that has waited longest, where futures cannot tell.
        """
        while True:
            for place, (*_, future) in enumerate(self.waiting):
                if not hasattr(future, "done") or future.done():
                    return place
            time.sleep(LOOK)

    def next_outcome(self, before: int) -> str:
        """Wait until a job is done; a line on it, and on the time left.

        It leaves the queue once its outcome is known: not by an interrupt, nor where the executor
        breaks. `before`: how many were finished when the sweep began.
        """
        place = self.first_done()
        key, attempt, future = self.waiting[place]
        try:
            told = future.result()
        except BrokenExecutor:
            raise
        except Exception as error:  # of the executor: a worker died, an answer cannot be read
            told = {"error": last_line(error), "again": True}
        if "other_worker" in told:
            raise OtherWorker(told["other_worker"])
        del self.waiting[place]
        again = told.get("again", False) and attempt <= self.retries
        if "row" in told:
            self.rows[key], outcome = told["row"], "done"
        else:
            outcome = f"failed{', to be tried again' if again else ''} ({told['error']})"
        if again:
            self.queue.append((key, attempt + 1))
        elif "error" in told:
            self.failed[key] = {"settings": self.jobs[key], "error": told["error"]}
        ended, spent = len(self.rows) + len(self.failed), time.monotonic() - self.started
        left = "time left unknown"
        if ended > before:
            seconds = spent / (ended - before) * (len(self.jobs) - ended)
            left = f"about {clock(seconds)} left"
        settings = " ".join(f"{setting}={value}" for setting, value in self.jobs[key].items())
        return (
            f"[{ended}/{len(self.jobs)}] {key} {settings}: {outcome}; {clock(spent)} elapsed,"
            f" {left}"
        )

    def write_results(self) -> list[Row]:
        """Write table.csv and failed.json, and return the rows in the jobs' order."""
        finished = [self.rows[key] for key in self.jobs if key in self.rows]
        settings = [setting for job in self.jobs.values() for setting in job]
        write_table(self.folder / "table.csv", finished, settings)
        (self.folder / "failed.json").unlink(missing_ok=True)
        if self.failed:
            write_json(self.folder / "failed.json", self.failed)
        return finished


def _finished(folder: Path) -> Row | None:
    """The row in a run folder; None where there is none yet, or a damaged one."""
    try:
        return flat(read_json(folder / "row.json"))
    except ValueError:
        return None


def _run(work: Work, job: Job, folder: Path, attempt: int, shared: Shared) -> dict[str, Any]:
    """One job, where the executor runs it, and what came of it: a "row", or an "error" and whether
    it may be tried "again", or what an "other_worker" lacks.

    As plain values, which every executor brings back unchanged, and not as an exception. `attempt`
    makes a second call another one to executors that remember calls.
    """
    from filelock import FileLock

    try:
        shared.check()
        folder.mkdir(exist_ok=True)
        with FileLock(folder / ".lock"):  # another worker may have been given the same
            row = _finished(folder)
            if row is None:
                row = job | flat(work(dict(job), folder))
                write_json(folder / "row.json", row)
        return {"row": row}
    except OtherWorker as error:
        return {"other_worker": str(error)}
    except Exception as error:
        return {"error": last_line(error), "again": not isinstance(error, BadInput)}


class NotebookWork:
    """Work for `sweep`: runs a notebook by papermill, with a job's settings and `output` = its run
    folder as parameters.

    The executed copy and a progress.log stay in the run folder. The row is what the notebook left
    there in summary.json, metrics.json and <name>/metrics.json, flat: "train_seconds",
    "lora.train_seconds". Raises BadInput for a notebook that cannot be swept.
    """

    def __init__(self, notebook: str | Path):
        import papermill

        self.path = Path(notebook).resolve()
        self.files = [self.path]  # what all workers have to see
        try:
            known = papermill.inspect_notebook(str(self.path))
        except Exception as error:  # whatever nbformat and papermill make of a broken file
            raise BadInput(
                f"The notebook {self.path} cannot be read ({type(error).__name__}): check the path."
            ) from None
        if "output" not in known:
            raise BadInput(
                f"Notebook {self.path.name} has no parameter 'output', which tells a run its"
                " folder: add it to the notebook's parameters cell."
            )
        self.parameters = [setting for setting in known if setting != "output"]
        self.ours = bool(set_up_cells(read_json(self.path)))  # whose parameters are known

    def check(self, job: Job) -> None:
        """Raise BadInput for a setting that is no parameter of the notebook, naming the nearest
        that is, and for a value that it cannot take.
        """
        for setting in job:
            if setting not in self.parameters:
                near = difflib.get_close_matches(setting, self.parameters, 1, 0) or ["nothing"]
                raise BadInput(
                    f"Notebook {self.path.name} has no parameter '{setting}' that a sweep may set:"
                    f" did you mean '{near[0]}'?"
                )
        if self.ours:
            check_parameters(job)

    def __call__(self, job: Job, folder: Path) -> Row:
        expected = {self.path.stem: NOTEBOOKS.get(self.path.stem, GUESS)}
        parameters = job | {"output": str(folder)}
        with (
            open(folder / "progress.log", "w", encoding="utf-8") as log,
            Progress(expected, log) as progress,
        ):
            run_notebook(self.path, folder / self.path.name, parameters, progress)
        row: Row = {}
        for path in [
            *sorted(folder.glob("*/metrics.json")),
            *folder.glob("metrics.json"),
            *folder.glob("summary.json"),
        ]:
            row |= spread(read_json(path), "" if path.parent == folder else f"{path.parent.name}.")
        if not row:
            raise BadInput(
                f"Notebook {self.path.name} wrote no summary.json or metrics.json to {folder}: let"
                " it write one."
            )
        return row


def _jobs(path: str | Path | None, sets: Iterable[str]) -> list[Job]:
    """The jobs in a JSON file, or one without settings if there is none, each varied by the grid of
    texts such as "rank=1,4".
    """
    try:
        jobs = [dict(job) for job in json.loads(Path(path).read_text("utf-8"))] if path else [{}]
    except (OSError, TypeError, ValueError) as error:
        raise BadInput(
            f'{path} cannot be read as a list of jobs ({error}): write JSON such as [{{"rank": 4}},'
            ' {"rank": 16}].'
        ) from None
    lists: dict[str, list[Any]] = {}
    for text in sets:
        setting, equals, values = text.partition("=")
        if not (setting and equals):
            raise BadInput(
                f"--set {text} does not name a setting and its values: write it as --set"
                " rank=1,4,16."
            )
        lists.setdefault(setting, []).extend(map(_value, values.split(",")))
    return [job | values for job in jobs for values in grid(**lists)]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


class JobsFailed(RuntimeError):
    """A sweep ran through, but jobs failed. Its text says how many, and which file says why."""


def sweep_notebook(
    notebook: str | Path,
    jobs: Iterable[Job],
    folder: str | Path,
    workers: Workers | int = 1,
    say: Callable[[str], object] = partial(print, flush=True),
) -> list[Row]:
    """`sweep` over a notebook with `NotebookWork`; `workers` is who runs it, or how many at once.

    Raises BadInput as `sweep` and `Workers` do, and BrokenExecutor.
    """
    if isinstance(workers, int):
        workers = Workers(count=str(workers))
    work, jobs = NotebookWork(notebook), list(jobs)
    if work.ours:  # before they name their run folders: in another folder a path is another
        jobs = [job | found_paths(job, Path.cwd()) for job in jobs]
    named_jobs(jobs, work)  # before a cluster is asked for
    with workers.executor(folder) as executor:
        return sweep(jobs, work, folder, executor, say=say)


def run_sweep(
    notebook: str | Path,
    lists: Sequence[str],
    jobs_file: str | Path | None = None,
    output: str | Path = "runs/sweep",
    workers: Workers | int = 1,
) -> None:
    """`sweep_notebook` with the texts that a command line gives; prints the table.

    `lists` are texts such as "rank=1,4". Raises as `sweep_notebook` does, and JobsFailed.
    """
    check_path("output", str(output))
    jobs, output = _jobs(jobs_file, lists), Path(output).expanduser()
    rows = sweep_notebook(notebook, jobs, output, workers)
    print("\n" + compact(rows, list(dict.fromkeys(setting for job in jobs for setting in job))))
    print(f"\nAll columns: {Path(output) / 'table.csv'}")
    failed = Path(output) / "failed.json"
    if failed.exists():
        raise JobsFailed(
            f"{len(read_json(failed))} jobs failed, {failed} says why: the same command tries them"
            " again."
        )
