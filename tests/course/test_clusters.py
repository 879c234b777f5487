"""Sweeps on a real Dask cluster whose worker is killed, on submitit's local executor, and on a
Slurm whose commands are played here; workers that lack something; places that are not there.
"""

import os
import re
import stat
import sys
import threading
from dataclasses import replace

import pytest
from cluster_work import double
from conftest import ROOT

from benchmarks.csv_rows import read_table
from lib.__main__ import main
from lib.course import executors
from lib.course.executors import BrokenExecutor, Shared, Workers
from lib.course.sweeping import RunsHere, _run, grid, run_name, sweep
from lib.files.errors import BadInput
from lib.files.json_file import read_json

JOBS = grid(rank=[2, 13, 5])
EXTRA = "an extra, which is not installed: pip install -e '.[cluster]'"


def calls(folder, job):
    return len((folder / run_name(job) / "calls").read_text())


def outcomes(folder, executor, jobs=JOBS):
    """All that a sweep tells: its rows, table, failures and lines without their times, sorted."""
    said = []
    rows = sweep(jobs, double, folder, executor, say=said.append)
    lines = sorted(re.sub(r"^\[\d+/\d+\]|;.*", "", line) for line in said)
    failed = folder / "failed.json"
    return rows, read_table(folder / "table.csv"), failed.exists() and read_json(failed), lines


@pytest.fixture
def reachable(monkeypatch):
    """Other Pythons find the work and the course, whatever is installed."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))


@pytest.mark.parametrize(
    "package, asked",
    [("distributed", {"dask": "local:2"}), ("submitit", {"slurm_local": True, "count": "2"})],
    ids=["dask", "submitit"],
)
def test_a_cluster_tells_what_one_process_does_and_a_dead_workers_job_is_done_by_another(
    package, asked, tmp_path, reachable
):
    pytest.importorskip(package, reason=EXTRA)
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "told").write_text("kill")
    with Workers(**asked).executor(tmp_path / "there") as executor:
        there = outcomes(tmp_path / "there", executor)
    here = outcomes(tmp_path / "here", RunsHere())
    again = [line for line in there[3] if " ended without a result " in line]
    assert len(again) == (package == "submitit"), "Dask itself gives it to another"
    assert (*there[:3], [line for line in there[3] if line not in again]) == here
    assert [row["score"] for row in here[0]] == [4, 10] and len(here[3]) == 5
    assert [calls(tmp_path / "there", job) for job in JOBS] == [2, 2, 1]
    assert [calls(tmp_path / "here", job) for job in JOBS] == [1, 2, 1]


def test_a_pool_gives_its_threads_to_its_processes_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with Workers(count="2").executor(tmp_path) as executor:
        assert int(executor.submit(os.getenv, "OMP_NUM_THREADS").result()) >= 1
    assert "OMP_NUM_THREADS" not in os.environ


def test_a_job_that_two_workers_were_given_is_run_once(tmp_path):
    (tmp_path / "told").write_text("wait")
    values = (double, JOBS[0], tmp_path / run_name(JOBS[0]), 1, Shared.of(tmp_path, []))
    found = []
    workers = [threading.Thread(target=lambda: found.append(_run(*values))) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == [{"row": {"rank": 2, "score": 4}}] * 2 and calls(tmp_path, JOBS[0]) == 1


# --- workers that lack something


@pytest.mark.parametrize(
    "lacks, words",
    [
        ("folder", "does not see the sweep's folder .*: give an --output that all machines share"),
        ("file", "does not see .*read.ipynb as it was when the sweep began"),
        ("code", "has other code of the course"),
        ("version", r"has torch \d.*, and the sweep 1.0: start workers with the same Python"),
    ],
)
def test_a_worker_that_lacks_something_ends_the_sweep_before_its_job(lacks, words, tmp_path):
    (tmp_path / "read.ipynb").write_text("{}")

    class Elsewhere(RunsHere):
        """The worker of another machine, as far as one can be had here."""

        given = 0

        def submit(self, function, work, job, folder, attempt, shared):
            self.given += 1
            if lacks == "folder":
                shared = replace(shared, folder=tmp_path / "not" / "mounted")
            if lacks == "file":
                shared.files[tmp_path / "read.ipynb"] = "another hash"
            if lacks == "code":
                shared = replace(shared, code="another hash")
            if lacks == "version":
                shared.versions["torch"] = "1.0"
            return super().submit(function, work, job, folder, attempt, shared)

    def work(job, folder):
        raise AssertionError("it must not run")

    work.files = [tmp_path / "read.ipynb"]
    elsewhere = Elsewhere()
    with pytest.raises(BadInput, match=words) as refused:
        sweep(JOBS, work, tmp_path / "out", elsewhere, say=lambda line: None)
    assert str(refused.value).startswith("The worker on ") and "\n" not in str(refused.value)
    assert not [path for path in (tmp_path / "out").iterdir() if path.is_dir()]


def test_bad_input_on_a_worker_is_not_tried_again(tmp_path):
    _, _, failed, lines = outcomes(tmp_path, RunsHere(), grid(rank=[14]))
    (failure,) = failed.values()
    assert "Rank 14 is too large" in failure["error"] and calls(tmp_path, {"rank": 14}) == 1
    assert not any("again" in line for line in lines)


def test_no_more_jobs_are_given_than_an_executor_takes_at_once(tmp_path):
    class Three(RunsHere):
        at_once, given, done = 3, 0, 0

        def submit(self, function, *values):
            self.given += 1
            assert self.given - self.done <= self.at_once

            def run(*values):
                self.done += 1
                return function(*values)

            return super().submit(run, *values)

    three = Three()
    rows, *_ = outcomes(tmp_path, three, grid(rank=[*range(1, 9)]))
    assert len(rows) == three.given == 8


def test_a_cluster_that_is_lost_ends_the_sweep_and_keeps_what_is_finished(tmp_path):
    class Lost:
        def result(self):
            raise BrokenExecutor("The Dask scheduler at tcp://head:8786 was lost")

    class Losing(RunsHere):
        def submit(self, function, work, job, *values):
            return Lost() if job["rank"] == 5 else super().submit(function, work, job, *values)

    with pytest.raises(BrokenExecutor, match="was lost"):
        sweep(JOBS, double, tmp_path, Losing(), say=lambda line: None)
    assert [row["score"] for row in read_table(tmp_path / "table.csv")] == [4]


# --- Slurm, whose commands are played here

COMMANDS = {
    # The job runs when it is submitted; its number is the caller's process.
    "sbatch": """
[ "$SBATCH_ACCOUNT" = closed ] && { echo "sbatch: error: Invalid account" >&2; exit 1; }
cat "$1" >> "$PLAYED/scripts"
export SLURM_JOB_ID=$$ SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0
export SLURM_JOB_NODELIST=here SLURM_PROCID=0 SLURM_LOCALID=0
script=$(sed "s/%j/$$/g; s/%t/0/g" "$1")
(sleep 1; exec bash -c "$script") >"$PLAYED/log" 2>&1 </dev/null &
echo "Submitted batch job $$"
""",
    "srun": """
while [ "${1#--}" != "$1" ]; do
  case "$1" in --output|--error) shift;; esac
  shift
done
exec "$@"
""",
    "sacct": "echo 'JobID|State|NodeList'",
    "scancel": "",
}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A Slurm whose scripts are kept in the file that is returned."""
    pytest.importorskip("submitit", reason=EXTRA)
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, script in COMMANDS.items():
        (commands / name).write_text(f"#!/bin/bash\n{script}\n")
        (commands / name).chmod(0o755 | stat.S_IXUSR)
    monkeypatch.setenv("PLAYED", str(tmp_path))
    monkeypatch.setenv("PATH", str(commands), prepend=os.pathsep)
    return tmp_path / "scripts"


def test_slurm_is_asked_for_what_the_command_line_says(slurm, tmp_path, reachable):
    asked = Workers(slurm=True, partition="gpu", time=30, gpus=1)
    with asked.executor(tmp_path / "out") as executor:
        rows, *_ = outcomes(tmp_path / "out", executor, JOBS[:1])
    assert rows == [{"rank": 2, "score": 4}]
    script = slurm.read_text()
    for line in ("--partition=gpu", "--time=30", "--gpus-per-node=1", "--job-name=sweep"):
        assert f"#SBATCH {line}\n" in script


def test_what_slurm_refuses_is_one_sentence(slurm, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("SBATCH_ACCOUNT", "closed")
    with Workers(slurm=True).executor(tmp_path / "out") as executor:
        with pytest.raises(BadInput, match="Slurm did not take a job .*Invalid account") as refused:
            sweep(JOBS, double, tmp_path / "out", executor, say=lambda line: None)
    assert "\n" not in str(refused.value) and not capfd.readouterr().err


# --- places that are not there


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--dask", "tcp://127.0.0.1:9"], "No Dask scheduler answers at tcp://127.0.0.1:9"),
        (["--dask", "nowhere"], "No Dask scheduler answers at nowhere"),
        (["--dask", "local:none"], "--dask local:none names no number of workers"),
        (["--dask", "local:2", "--slurm-local"], "--dask and --slurm-local are two places"),
        (["--partition", "gpu"], "--partition is for Slurm's jobs"),
        (["--dask", "local:2", "--gpus", "1"], "--gpus is for Slurm's jobs"),
        (["--slurm", "--time", "0"], "--time"),
        (["--slurm"], "This machine has no `sbatch`"),
    ],
)
def test_a_place_that_is_not_there_is_one_sentence(arguments, words, tmp_path, monkeypatch, capfd):
    if arguments[:2] in (["--dask", "tcp://127.0.0.1:9"], ["--dask", "nowhere"]):
        pytest.importorskip("distributed", reason=EXTRA)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(executors, "ANSWER", "1s")
    notebook = ROOT / "notebooks" / "02_lora_training.ipynb"
    assert main(["sweep", str(notebook), "--output", str(tmp_path / "out"), *arguments]) == 1
    said = capfd.readouterr().err.removesuffix("\n")
    assert words in said and "\n" not in said and not (tmp_path / "out").exists()


@pytest.mark.parametrize("asked", [{"dask": "local:2"}, {"slurm_local": True}])
def test_what_is_not_installed_is_named(asked, monkeypatch):
    for package in ("distributed", "submitit"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BadInput, match=r"needs the package \w+, .* -e '.\[cluster\]'") as refused:
        Workers(**asked)
    assert "\n" not in str(refused.value)
