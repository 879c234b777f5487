"""PocketBench's seconds, taken by themselves: both methods of a subject train at once, each on a
core of its own, with nothing beside them. Writes them into data/results/pocketbench.csv.

    python -m benchmarks.bench_times [--subjects 6]

A bench that shares its machine with other work times whatever ran beside it, and not the methods.
Rows of the main comparison that are not timed so lose their seconds.
"""

import argparse
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.analysis.study_rows import TIMES
from benchmarks.pocketbench import data_folder, is_of_today, make_data, shipped, write_rows
from benchmarks.studies import job
from lib.config.settings import METHODS
from lib.files.json_file import read_json
from lib.models.base import load_base
from lib.models.families import preset
from lib.training.loop import train
from pocket.subjects import bench_subjects

MEASURED = ("seconds_per_step", "train_seconds")
ALONG = tuple(name for name in TIMES if name not in MEASURED)  # go with the seconds of all steps


def timed(subject: str, method: str) -> dict[str, float]:
    """The seconds of one training of the preset's, without anything measured along it."""
    with tempfile.TemporaryDirectory() as folder:
        data = str(data_folder(job(subject, method)))
        settings = preset(method, data=data, output=str(Path(folder, "run")), sample_every=0)
        found = read_json(train(settings, load_base()) / "metrics.json")
    return {name: found[name] for name in MEASURED}


def with_times(row: dict[str, Any], found: dict[tuple[str, str], dict[str, float]]) -> dict:
    """A row of the main comparison with its subject's own times, or without any."""
    trained = row["method"] if row["method"] in METHODS else "dreambooth"  # of what a cut is cut
    times = found.get((row["subject"], trained))
    if times is None:
        return row | dict.fromkeys(TIMES)
    before = row.get("train_seconds")
    along = {
        name: row[name] * times["train_seconds"] / before
        for name in ALONG
        if before and row.get(name) is not None
    }
    return row | times | along


def main() -> None:
    """Time the first subjects, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--subjects", type=int, default=6)
    subjects = bench_subjects(parser.parse_args().subjects)
    make_data([job(subject.name, "lora") for subject in subjects], subjects)
    found = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(METHODS), context, torch.set_num_threads, (1,)) as pool:
        for subject in subjects:
            started = [pool.submit(timed, subject.name, method) for method in METHODS]
            for method, run in zip(METHODS, started):
                found[subject.name, method] = run.result()
            print(subject.name, *(found[subject.name, m]["train_seconds"] for m in METHODS))
    write_rows(
        [
            with_times(row, found)
            if row["study"] == "main" and row["method"] != "base" and is_of_today(row)
            else row
            for row in shipped()
        ]
    )


if __name__ == "__main__":
    main()
