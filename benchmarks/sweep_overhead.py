"""What a sweep's executor takes for itself: seconds a job that does nothing, in processes, on a
Dask cluster of this machine, and as submitit's stand-in for Slurm starts jobs.

    python -m benchmarks.sweep_overhead [--jobs 10] [--rounds 3]

Each with one worker: a sweep of one job takes what it costs to begin, and each further job adds its
own share. (Slurm's own queue is not in it.) Rows go to benchmarks/results/sweep_overhead.json, the
table into benchmarks/README.md.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.sections import OWN_README, into_file, middle, spread
from lib.course.executors import Workers
from lib.course.sweeping import sweep
from lib.files.json_file import write_json
from lib.files.paths import ROOT
from lib.models.devices import device_name, versions

RESULTS = ROOT / "benchmarks" / "results" / "sweep_overhead.json"
WANTED = 2.0  # seconds a job at most
EXECUTORS = {
    "processes": {},
    "Dask, `local:1`": {"dask": "local:1"},
    "submitit, `--slurm-local`": {"slurm_local": True},
}


def nothing(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A job whose time is all the executor's."""
    return {}


def seconds(count: int, where: dict[str, Any]) -> float:
    """What a sweep of `count` jobs takes in all."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, Workers(**where).executor(folder) as executor:
        jobs = [{"number": number} for number in range(count)]
        rows = sweep(jobs, nothing, folder, executor, say=lambda line: None)
    assert len(rows) == count
    return time.perf_counter() - began


def measure(count: int, where: dict[str, Any]) -> tuple[float, float]:
    """Seconds of a sweep of one job, and what each of `count` jobs adds to them."""
    one, many = seconds(1, where), seconds(1 + count, where)
    return one, (many - one) / count


def figures(found: dict[str, Any]) -> str:
    """The measured rows as Markdown."""
    lines = ["| jobs run in | to begin, s | each job, s |", "| --- | ---: | ---: |"]
    lines += [
        f"| {row['executor']} | {spread(row['begin'], 1)} | {spread(row['job'])} |"
        for row in found["rows"]
    ]
    note = (
        f"{found['device']}: medians of {found['rounds']} sweeps of {found['jobs']} jobs that do"
        f" nothing, one worker. Wanted: {found['wanted']:g} s a job at most."
    )
    return "\n".join([note, "", *lines, ""])


def main() -> None:
    """Measure all executors, turn about, and write rows and table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in EXECUTORS}
    for _ in range(asked.rounds):
        for name, where in EXECUTORS.items():
            turns[name].append(measure(asked.jobs, where))
            print(name, turns[name][-1], flush=True)
    rows = [
        {
            "executor": name,
            "begin": middle([b for b, _ in each]),
            "job": middle([j for _, j in each]),
        }
        for name, each in turns.items()
    ]
    found = {
        "made_by": "python -m benchmarks.sweep_overhead",
        "device": device_name(torch.device("cpu")),
        "versions": versions(),
        "jobs": asked.jobs,
        "rounds": asked.rounds,
        "wanted": WANTED,
        "rows": rows,
    }
    write_json(RESULTS, found)
    into_file(OWN_README, "sweep overhead", figures(found))


if __name__ == "__main__":
    main()
