"""Where a sweep's jobs run: processes of this machine, a Dask cluster, or Slurm.

    with Workers(dask="local:4").executor("runs/sweep") as executor:
        sweep(jobs, work, "runs/sweep", executor)

A worker of another machine may have other code, other versions or another disk. What it has to
share with the sweep is checked on it before its job. Dask and submitit are extras: `pip install -e
.[cluster]`.
"""

import hashlib
import importlib
import io
import math
import multiprocessing
import os
import platform
import secrets
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from lib.course.set_up import WITH_VERSION
from lib.files import ROOT, BadInput
from lib.files.text import last_line
from lib.files.whole_writes import file_hash

TOKEN = ".token"  # a file in the sweep's folder, by which a worker knows that it is the same folder
ANSWER = "10s"  # a Dask scheduler that says nothing for so long is not there
LOCAL = "local:"


class OtherWorker(BadInput):
    """A worker lacks what it has to share with the sweep. It ends the sweep: the other jobs would
    meet the same.
    """


@dataclass(frozen=True)
class Shared:
    """What all workers of a sweep have to share: its folder, the course's code, versions, files."""

    folder: Path
    token: str
    code: str
    versions: dict[str, str]
    python: str
    files: dict[Path, str]  # path -> hash of the content

    @classmethod
    def of(cls, folder: Path, files: Iterable[Path]) -> "Shared":
        """What a sweep in `folder`, which is there, has here and now; `files` are what it reads."""
        token = secrets.token_hex(8)
        (folder / TOKEN).write_text(token)
        hashes = {path: file_hash(path) for path in files}
        return cls(folder, token, code_hash(), versions(), sys.executable, hashes)

    def check(self) -> None:
        """Raise OtherWorker unless this process shares it all. To be called on the worker."""
        worker = f"The worker on {platform.node()}"
        try:
            same = (self.folder / TOKEN).read_text() == self.token
        except OSError:
            same = False
        if not same:
            raise OtherWorker(
                f"{worker} does not see the sweep's folder {self.folder}: give an --output that all"
                " machines share."
            )
        for path, content in self.files.items():
            if not path.is_file() or file_hash(path) != content:
                raise OtherWorker(
                    f"{worker} does not see {path} as it was when the sweep began: keep it where"
                    " all machines share it, and leave it until the sweep has ended."
                )
        if code_hash() != self.code:
            raise OtherWorker(
                f"{worker} has other code of the course (in {ROOT}) than the sweep began with:"
                " start workers in the same checkout, and leave it until the sweep has ended."
            )
        for name, here in versions().items():
            if here != self.versions[name]:
                raise OtherWorker(
                    f"{worker} has {name} {here}, and the sweep {self.versions[name]}: start"
                    f" workers with the same Python environment, that of {self.python}."
                )


@cache
def code_hash() -> str:
    """The hash of the course's code that this process runs."""
    found = hashlib.sha256()
    for path in sorted((ROOT / "lib").rglob("*.py")):
        found.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return found.hexdigest()


def versions() -> dict[str, str]:
    """What results depend on, by name; of torch any build will do (CPU, CUDA)."""
    names = ("torch", "numpy", *WITH_VERSION)
    return {name: version(name).partition("+")[0] for name in names} | {
        "Python": f"{sys.version_info.major}.{sys.version_info.minor}",
    }


@dataclass(frozen=True)
class Workers:
    """Who runs the jobs, as a command line says it; at most one of `dask`, `slurm`, `slurm_local`.

    - `count`: how many jobs run at once; by default 1 on this machine, and as many as there is
      room for on a cluster
    - `dask`: a scheduler's address, or "local:4" for four workers here
    - `slurm`, `slurm_local`: each job is one of Slurm's, or a process here as Slurm would start it
    - `partition`, `time` (minutes a job), `gpus` (a job): what Slurm is asked for
    """

    count: str | None = None
    dask: str | None = None
    slurm: bool = False
    slurm_local: bool = False
    partition: str | None = None
    time: int | None = None
    gpus: int | None = None

    def __post_init__(self) -> None:
        """Raise BadInput for what does not go together, or is not to be had on this machine."""
        if self.count is not None and (not self.count.isdecimal() or int(self.count) < 1):
            raise BadInput(
                f"--workers {self.count} is not a whole number from 1: give how many notebooks run"
                " at once."
            )
        asked = {"--dask": self.dask, "--slurm": self.slurm, "--slurm-local": self.slurm_local}
        named = [name for name, value in asked.items() if value]
        if len(named) > 1:
            raise BadInput(f"{' and '.join(named)} are two places for one sweep: give one of them.")
        for name in ("partition", "time", "gpus"):
            if getattr(self, name) is not None and not (self.slurm or self.slurm_local):
                raise BadInput(f"--{name} is for Slurm's jobs: give --slurm too, or leave it out.")
        if self.dask and self.dask.startswith(LOCAL):
            number = self.dask.removeprefix(LOCAL)
            if not number.isdecimal() or int(number) < 1:
                raise BadInput(
                    f"--dask {self.dask} names no number of workers: write it as --dask local:4."
                )
        if self.slurm and not shutil.which("sbatch"):
            raise BadInput(
                "This machine has no `sbatch`, so no Slurm takes jobs from here: start the sweep on"
                " a login node of the cluster, or try it here with --slurm-local."
            )
        if self.dask:
            _extra("distributed", "--dask")
        if self.slurm or self.slurm_local:
            _extra("submitit", "--slurm")

    def executor(self, folder: str | Path) -> AbstractContextManager[Any]:
        """What runs the jobs of a sweep in `folder`, while the block lasts.

        Raises BadInput where there is no such cluster.
        """
        if self.dask:
            return _dask(self.dask, int(self.count) if self.count else None)
        if self.slurm or self.slurm_local:
            return _slurm(self, Path(folder).resolve() / "slurm")
        return _processes(int(self.count or 1))


def _extra(name: str, option: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BadInput(
            f"{option} needs the package {name}, which cannot be imported ({error}): install it in"
            f" {ROOT} with `{sys.executable} -m pip install -e '.[cluster]' -c constraints.txt`."
        ) from None


def share_processors(count: int) -> str:
    """Threads for each of `count` processes on this machine, as `OMP_NUM_THREADS` has them."""
    from lib.models.devices import available_processors  # late: brings in torch

    return os.environ.get("OMP_NUM_THREADS", str(max(1, int(available_processors() / count))))


@contextmanager
def _processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes. One that dies breaks it (BrokenProcessPool)."""
    # Together they get the processor's cores, not each all of them.
    threads = {"OMP_NUM_THREADS": share_processors(count)} if count > 1 else {}
    spawn = multiprocessing.get_context("spawn")
    with mock.patch.dict(os.environ, threads), ProcessPoolExecutor(count, spawn) as pool:
        try:
            yield pool
        except KeyboardInterrupt:
            # Each worker has one more job at hand, which cannot be cancelled.
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise


@dataclass
class Submitting:
    """An executor of another library: at most `at_once` of its jobs are begun or wait there."""

    submit: Callable[..., Any]
    at_once: float = math.inf


@contextmanager
def _dask(address: str, count: int | None) -> Iterator[Submitting]:
    """A Dask cluster, there already or made of processes here. It gives the jobs of a worker that
    dies to another one.
    """
    from distributed import Client, LocalCluster  # pyright: ignore[reportMissingImports]

    here: Any = LocalCluster  # its type hints know no cluster without a dashboard
    if address.startswith(LOCAL):
        number = int(address.removeprefix(LOCAL))
        with (
            here(
                n_workers=number,
                threads_per_worker=1,  # a notebook is a process of its own
                memory_limit=0,  # of the worker alone, not of its notebook
                dashboard_address=None,
                env={"OMP_NUM_THREADS": share_processors(number)},
            ) as cluster,
            Client(cluster) as client,
        ):
            yield _of_client(client, address, count)
        return
    try:
        client = Client(address, timeout=ANSWER)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"No Dask scheduler answers at {address} ({last_line(error)}): start one with `dask"
            " scheduler` and workers with `dask worker ADDRESS --nthreads 1`, or give --dask"
            " local:4."
        ) from None
    with client:
        yield _of_client(client, address, count)


def _of_client(client: Any, address: str, count: int | None) -> Submitting:
    from distributed import CancelledError  # pyright: ignore[reportMissingImports]

    class Waiting:
        """A future that tells a lost scheduler from a job that failed."""

        def __init__(self, future: Any):
            self.done, self.cancel, self.future = future.done, future.cancel, future

        def result(self) -> Any:
            try:
                return self.future.result()
            except (CancelledError, OSError):
                raise BrokenExecutor(
                    f"The Dask scheduler at {address} was lost: the same command goes on from what"
                    " is finished."
                ) from None

    def submit(function: Callable[..., Any], /, *values: Any) -> Waiting:
        return Waiting(client.submit(function, *values, pure=False))

    return Submitting(submit, count or math.inf)


@contextmanager
def _slurm(asked: Workers, folder: Path) -> Iterator[Submitting]:
    """Slurm by way of submitit, or its stand-in on this machine; files of its jobs go to `folder`,
    which all machines see.
    """
    import submitit  # pyright: ignore[reportMissingImports]
    from submitit.core.utils import (  # pyright: ignore[reportMissingImports]
        FailedJobError,
        UncompletedJobError,
    )

    place = "slurm" if asked.slurm else "local"
    executor = submitit.AutoExecutor(folder, cluster=place)
    wanted = {"slurm_partition": asked.partition, "gpus_per_node": asked.gpus}
    executor.update_parameters(
        name="sweep",
        timeout_min=asked.time or 60,
        **{name: value for name, value in wanted.items() if value is not None},
    )

    class Waiting:
        """A job whose error is one line of what it said."""

        def __init__(self, job: Any):
            self.done, self.cancel, self.job = job.done, job.cancel, job

        def result(self) -> Any:
            try:
                return self.job.result()
            except UncompletedJobError:
                said = (self.job.stderr() or "").strip().splitlines() or [self.job.state]
                raise RuntimeError(
                    f"job {self.job.job_id} of {place} ended without a result ({said[-1]}): see"
                    f" {self.job.paths.stderr}"
                ) from None

    def submit(function: Callable[..., Any], /, *values: Any) -> Waiting:
        try:
            with redirect_stderr(io.StringIO()):  # it is in the error too
                return Waiting(executor.submit(function, *values))
        except FailedJobError as error:
            raise BadInput(
                f"Slurm did not take a job ({last_line(error)}): check --partition, --time and"
                " --gpus; what else it wants, such as an account, it reads from SBATCH_ variables."
            ) from None

    # The stand-in would begin all jobs at once.
    yield Submitting(submit, float(asked.count or (math.inf if asked.slurm else 1)))
