"""Sweeps: real work in real folders, on this process, a process pool and executors made here; a
notebook that really runs.
"""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import nbformat
import numpy as np
import pytest
from conftest import ROOT

from benchmarks.csv_rows import read_table
from lib.__main__ import main
from lib.course.sweeping import NotebookWork, grid, run_name, sweep
from lib.files.csv_table import compact, write_table
from lib.files.errors import BadInput
from lib.files.json_file import read_json

JOBS = grid(rank=[1, 4], seed=[0, 1, 2])


def square(job, folder):
    """Leaves a mark for each call, and fails where a file beside the run folders says so: "<rank>
    <seed> <how often>".
    """
    with open(folder / "calls", "a") as calls:
        calls.write("x")
    told = folder.parent / "fail"
    rank, seed, often = told.read_text().split() if told.exists() else (None, None, 0)
    if [str(job["rank"]), str(job["seed"])] == [rank, seed] and len(
        (folder / "calls").read_text()
    ) <= int(often):
        raise RuntimeError("the first line\nthe card fell off the bus")
    return {"score": job["rank"] ** 2 + job["seed"] / 2, "device": "a test", "process": os.getpid()}


def calls(folder, job):
    path = folder / run_name(job) / "calls"
    return len(path.read_text()) if path.exists() else 0


@pytest.fixture
def said():
    return []


def test_a_grid_is_the_product_in_stable_order():
    jobs = grid(method=["lora", "dreambooth"], seed=range(2))
    assert [tuple(job.items()) for job in jobs] == [
        (("method", m), ("seed", s)) for m in ("lora", "dreambooth") for s in (0, 1)
    ]
    for bad in ("lora", [], 4):
        with pytest.raises(BadInput, match="'method' of the grid"):
            grid(method=bad)


def test_a_name_is_the_hash_of_the_settings_alone():
    job = {"rank": 4, "learning_rate": 5e-4, "targets": "all", "prior_weight": 1.0}
    assert run_name(job) == "05882c45a85e", (
        "names must not change: they are what finished runs are found by"
    )
    assert (
        run_name(dict(reversed(job.items())))
        == run_name(job)
        == run_name(job | {"prior_weight": 1})
    )
    others = [
        job | change
        for change in (
            {"rank": 5},
            {"rank": "4"},
            {"targets": None},
            {"prior_weight": True},
            {"seed": 0},
        )
    ]
    assert len({run_name(other) for other in [job, *others]}) == 6
    code = f"from lib.course.sweeping import run_name; print(run_name({job!r}))"
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert other.stdout.strip() == run_name(job)


def test_rows_come_in_order_and_lie_in_their_folders(tmp_path, said):
    rows = sweep([*JOBS, dict(JOBS[0])], square, tmp_path / "new" / "sweep", say=said.append)
    folder = tmp_path / "new" / "sweep"
    assert [(row["rank"], row["seed"], row["score"]) for row in rows] == [
        (r, s, r * r + s / 2) for r in (1, 4) for s in (0, 1, 2)
    ]
    assert all(
        read_json(folder / run_name(job) / "row.json") == row for job, row in zip(JOBS, rows)
    )
    assert read_table(folder / "table.csv") == rows and [*rows[0]] == [
        "rank",
        "seed",
        "score",
        "device",
        "process",
    ]
    assert not (folder / "failed.json").exists() and not list(folder.rglob("*.part"))
    assert calls(folder, JOBS[0]) == 1, "the same job twice runs once"
    assert said[0] == "6 jobs, 0 of them finished before" and len(said) == 7
    assert said[3].startswith(
        f"[3/6] {run_name(JOBS[2])} rank=1 seed=2: done; 0:00 elapsed, about 0:0"
    ), said[3]


def test_finished_jobs_are_skipped_and_a_sweep_can_be_widened(tmp_path, said):
    first = sweep(JOBS[:2], square, tmp_path, say=said.append)
    (tmp_path / run_name(JOBS[1]) / "row.json").write_text('{"rank": 1, "seed": 1, "sco')
    rows = sweep(JOBS, square, tmp_path, say=said.append)
    assert [calls(tmp_path, job) for job in JOBS] == [
        1,
        2,
        1,
        1,
        1,
        1,
    ], "only a damaged row is made again"
    assert rows[0] == first[0] and len(rows) == 6 and "6 jobs, 1 of them finished before" in said


def test_an_interrupt_stops_and_a_later_call_goes_on(tmp_path, said):
    def stopped(job, folder):
        if job == JOBS[2]:
            raise KeyboardInterrupt
        return square(job, folder)

    with pytest.raises(KeyboardInterrupt):
        sweep(JOBS, stopped, tmp_path, say=said.append)
    assert len(read_table(tmp_path / "table.csv")) == 2, "what was finished is in the table"
    assert len(sweep(JOBS, square, tmp_path, say=said.append)) == 6
    assert [calls(tmp_path, job) for job in JOBS] == [1] * 6


def test_a_failed_job_is_tried_again_after_the_others(tmp_path, said):
    (tmp_path / "fail").write_text("1 1 1")
    assert len(sweep(JOBS, square, tmp_path, say=said.append)) == 6
    assert [calls(tmp_path, job) for job in JOBS] == [1, 2, 1, 1, 1, 1]
    assert (
        "rank=1 seed=1: failed, to be tried again (the card fell off the bus)" in said[2]
        and "rank=1 seed=1: done" in said[-1]
    )
    assert not (tmp_path / "failed.json").exists()


def test_a_job_that_fails_again_is_reported_and_the_others_are_done(tmp_path, said):
    (tmp_path / "fail").write_text("1 1 2")
    rows = sweep(JOBS, square, tmp_path, say=said.append)
    assert [row["seed"] for row in rows] == [0, 2, 0, 1, 2] and read_table(
        tmp_path / "table.csv"
    ) == rows
    assert read_json(tmp_path / "failed.json") == {
        run_name(JOBS[1]): {"settings": JOBS[1], "error": "the card fell off the bus"}
    }
    assert said[-1].startswith(
        f"[6/6] {run_name(JOBS[1])} rank=1 seed=1: failed (the card fell off the bus); "
    )
    assert len(sweep(JOBS, square, tmp_path, say=said.append)) == 6, "a later call tries it again"
    assert not (tmp_path / "failed.json").exists()


@pytest.mark.parametrize(
    "found, why",
    [
        ({"dino": math.nan}, "ValueError: dino is nan, not a finite number"),
        ({"dino": np.float32("inf")}, "ValueError: dino is inf, not a finite number"),
        ({"dino": [0.5, 0.7]}, "ValueError: dino is a list, not a number or a text"),
        (None, "ValueError: None is no dict of values by name"),
    ],
)
def test_a_row_that_no_table_can_hold_is_a_failure(found, why, tmp_path, said):
    def work(job, folder):
        return found if job["seed"] else {"dino": np.float64(0.5)}

    rows = sweep(grid(seed=[0, 1]), work, tmp_path, say=said.append)
    assert rows == [{"seed": 0, "dino": 0.5}]
    assert [failure["error"] for failure in read_json(tmp_path / "failed.json").values()] == [why]


def test_a_table_is_written_even_if_all_fail_and_bad_input_is_not_tried_again(tmp_path, said):
    def refuse(job, folder):
        square(job, folder)
        raise BadInput("Photo a.png is no picture: take it away.")

    assert (
        sweep(JOBS[:2], refuse, tmp_path, say=said.append)
        == read_table(tmp_path / "table.csv")
        == []
    )
    assert (tmp_path / "table.csv").read_text() == "rank,seed\n" and calls(tmp_path, JOBS[0]) == 1
    assert "a.png is no picture" in said[1] and len(read_json(tmp_path / "failed.json")) == 2


def test_a_process_pool(tmp_path, said):
    (tmp_path / "fail").write_text("1 1 1")
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        rows = sweep(JOBS, square, tmp_path, pool, say=said.append)
    assert [row["score"] for row in rows] == [job["rank"] ** 2 + job["seed"] / 2 for job in JOBS]
    assert os.getpid() not in {row["process"] for row in rows} and calls(tmp_path, JOBS[1]) == 2


def test_an_executor_needs_no_more_than_submit_and_result(tmp_path, said):
    """One that remembers calls, as Dask does: the same function and arguments give the same outcome
    again.
    """

    class Task:
        def __init__(self, function, arguments):
            try:
                self.outcome, self.error = function(*arguments), None
            except Exception as error:
                self.error = error

        def result(self):
            if self.error:
                raise self.error
            return self.outcome

    class Executor:
        known = {}

        def submit(self, function, *arguments):
            if repr(arguments) not in self.known:
                self.known[repr(arguments)] = Task(function, arguments)
            return self.known[repr(arguments)]

    (tmp_path / "fail").write_text("4 0 1")
    assert len(sweep(JOBS, square, tmp_path, Executor(), say=said.append)) == 6


def test_an_interrupt_takes_back_what_has_not_begun(tmp_path, said):
    begun = threading.Event()

    def slow(job, folder):
        begun.set()
        time.sleep(0.3)
        return square(job, folder)

    def stop(line):
        if "done" in line:
            raise KeyboardInterrupt

    with ThreadPoolExecutor(1) as pool, pytest.raises(KeyboardInterrupt):
        sweep(JOBS, slow, tmp_path, pool, say=stop)
    assert begun.is_set() and sum(calls(tmp_path, job) for job in JOBS) <= 2


def test_a_second_sweep_in_the_same_folder_is_refused(tmp_path, said):
    def nested(job, folder):
        return {"second": len(sweep(JOBS, square, tmp_path, say=said.append))}

    assert sweep([{"seed": 0}], nested, tmp_path, say=said.append) == []
    assert (
        "Another sweep is running in"
        in read_json(tmp_path / "failed.json")[run_name({"seed": 0})]["error"]
    )
    assert len(sweep(JOBS, square, tmp_path, say=said.append)) == 6, "the lock goes with its sweep"


@pytest.mark.parametrize(
    "jobs, words",
    [
        ([], "no jobs"),
        ([{"rank": 4}, ["rank", 4]], r"\['rank', 4\] is no dict"),
        ([{"rank": 4}, {"rank": math.nan}], "rank is nan, not a finite number"),
        ([{"targets": ["attention"]}], "targets is a list"),
    ],
)
def test_bad_jobs_are_refused_before_anything_runs(jobs, words, tmp_path):
    with pytest.raises(BadInput, match=words) as refused:
        sweep(jobs, square, tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists() and "\n" not in str(refused.value)


def test_a_folder_that_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in ("file", "file/below"):
        with pytest.raises(BadInput, match="choose another"):
            sweep(JOBS, square, tmp_path / folder)
    assert (tmp_path / "file").read_text() == "mine"


# --- tables


def test_a_table_comes_back_as_it_was(tmp_path):
    rows = [
        {
            "subject": 'a "big", odd\nrobot',
            "rank": 4,
            "rate": 5e-4,
            "bytes": 2**60,
            "hash": "01234567",
            "pres": -0.25,
        },
        {
            "subject": "é",
            "rank": None,
            "rate": 1 / 3,
            "bytes": 0,
            "hash": "12e4567",
            "judge": "pocket",
            "pres": -3,
        },
        {"subject": "inf", "rank": 16, "rate": 1e-300, "bytes": -1, "hash": "a0", "stopped": True},
    ]
    write_table(tmp_path / "t.csv", rows, ["hash", "missing"])
    found = read_table(tmp_path / "t.csv")
    columns = ["hash", "missing", "subject", "rank", "rate", "bytes", "pres", "judge", "stopped"]
    assert found == [{column: row.get(column) for column in columns} for row in rows]
    assert (
        [*found[0]] == columns and type(found[0]["rank"]) is int and type(found[0]["rate"]) is float
    )
    write_table(tmp_path / "again.csv", found)
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "t.csv").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"t.csv", "again.csv"}


def test_a_table_saved_by_a_spreadsheet_is_read(tmp_path):
    (tmp_path / "t.csv").write_bytes("\ufeffmethod,dino\r\nlora,0.5\r\n\r\nbase,\r\n".encode())
    assert read_table(tmp_path / "t.csv") == [
        {"method": "lora", "dino": 0.5},
        {"method": "base", "dino": None},
    ]


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "no list of different column names"),
        (b"a,a\n1,2\n", "no list of different column names"),
        (b"a,,b\n1,2,3\n", "no list of different column names"),
        (b"a,b\n1,2\n3\n", "line 3 has 1 cells, not 2"),
        (b"a,b\n1,2,3\n", "line 2 has 3 cells, not 2"),
        (b'a,b\n1,"2', "damaged"),
        (b"a,b\n1,\xff\n", "damaged"),
        (b"a,dino\n1,0.5\n2,nan\n", "column dino has a number that is not finite"),
        (b"a,dino\n1,1e999\n", "column dino has a number that is not finite"),
    ],
)
def test_a_damaged_table_is_refused(content, words, tmp_path):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(BadInput, match=words) as refused:
        read_table(tmp_path / "t.csv")
    assert str(tmp_path / "t.csv") in str(refused.value) and "\n" not in str(refused.value)


def test_a_table_that_is_not_there_is_refused(tmp_path):
    for path in (tmp_path / "absent.csv", tmp_path):
        with pytest.raises(BadInput, match="check the path"):
            read_table(path)


def test_a_compact_table_shows_what_differs():
    rows = [
        {"rank": 4, "dino": 0.123456, "steps": 200, "device": "x"},
        {"rank": None, "dino": 0.5, "steps": 200, "device": "y"},
    ]
    assert compact(rows, ["rank"]).splitlines() == ["rank    dino", "   4  0.1235", "   -     0.5"]
    wide = compact(
        [row | {f"a_column_of_number_{k}": k + n for k in range(20)} for n, row in enumerate(rows)],
        ["rank"],
    )
    assert max(map(len, wide.splitlines())) <= 140 and "number_4" in wide


# --- notebooks


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A notebook that writes what it was given, the way training and the comparison do."""
    cells = [
        "rank = 1\nword = 'none'\nwait = 0\noutput = '.'",
        (
            "import json, os, pathlib, time\nfolder = pathlib.Path(output)\n(folder /"
            " 'lora').mkdir(exist_ok=True)\nmetrics = {'bytes': rank * 100, 'units': {'bytes':"
            " 'B'}, 'parts': {'a': rank}}\n(folder / 'lora' /"
            " 'metrics.json').write_text(json.dumps(metrics))"
        ),
        "if wait:\n    (folder / 'kernel').write_text(str(os.getpid()))\n    time.sleep(wait)",
        (
            "assert rank != 13\nsummary = {'lora': {'dino': 1 / rank}, 'prompts': ['x'], 'verdict':"
            " word, 'pres': None}\n(folder / 'summary.json').write_text(json.dumps(summary))"
        ),
    ]
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    made.cells[0].metadata["tags"] = ["parameters"]
    made.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    path = tmp_path_factory.mktemp("notebooks") / "tiny.ipynb"
    nbformat.write(made, path)
    return path


def test_the_command_sweeps_a_notebook(tiny, tmp_path, capfd):
    arguments = [
        "sweep",
        str(tiny),
        "--set",
        "rank=2,13",
        "--set",
        "word=zwx",
        "--output",
        str(tmp_path / "out"),
        "--workers",
        "2",
    ]
    assert main(arguments) == 1
    shown, said = capfd.readouterr()
    assert said.strip().endswith(
        f"1 jobs failed, {tmp_path / 'out' / 'failed.json'} says why: the same command tries"
        " them again."
    )
    job, failing = {"rank": 2, "word": "zwx"}, {"rank": 13, "word": "zwx"}
    row = job | {
        "lora.bytes": 200,
        "lora.parts.a": 2,
        "lora.dino": 0.5,
        "verdict": "zwx",
        "pres": None,
    }
    assert read_table(tmp_path / "out" / "table.csv") == [row]
    lines = shown.splitlines()
    assert any(line.startswith("[1/2]") and "rank=2 word=zwx: done" in line for line in lines), (
        shown
    )
    assert (
        "rank  word  lora.bytes  lora.parts.a  lora.dino" in shown
        and f"All columns: {tmp_path / 'out' / 'table.csv'}" in lines
    )
    [failure] = read_json(tmp_path / "out" / "failed.json").values()
    assert (
        failure["settings"] == failing
        and "tiny.ipynb stopped in cell [5]" in failure["error"]
        and "AssertionError" in failure["error"]
    )
    run = tmp_path / "out" / run_name(job)
    assert (
        f'output = "{run}"' in nbformat.read(run / "tiny.ipynb", 4).cells[1].source
        and "done in" in (run / "progress.log").read_text()
    )

    (tmp_path / "jobs.json").write_text(json.dumps([job]))
    assert (
        main(
            [
                "sweep",
                str(tiny),
                "--jobs",
                str(tmp_path / "jobs.json"),
                "--output",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )
    assert "1 jobs, 1 of them finished before" in capfd.readouterr().out


def test_an_unknown_parameter_is_refused_before_anything_runs(tiny, tmp_path):
    work = NotebookWork(tiny)
    for setting, near in (("rang", "rank"), ("output", "wait|word|rank")):
        with pytest.raises(
            BadInput,
            match=(
                rf"tiny.ipynb has no parameter '{setting}' that a sweep may set: did you mean"
                rf" '({near})'\?"
            ),
        ):
            sweep([{"rank": 1}, {setting: 1}], work, tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_a_notebook_that_cannot_be_swept_is_refused(tmp_path):
    (tmp_path / "broken.ipynb").write_text("{")
    for path in ("absent.ipynb", "broken.ipynb"):
        with pytest.raises(BadInput, match=rf"{path} cannot be read \(\w+\): check the path"):
            NotebookWork(tmp_path / path)
    made = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("rank = 1", metadata={"tags": ["parameters"]})]
    )
    made.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    nbformat.write(made, tmp_path / "without.ipynb")
    with pytest.raises(BadInput, match="no parameter 'output'"):
        NotebookWork(tmp_path / "without.ipynb")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--set", "rank"], "--set rank does not name a setting and its values"),
        (["--set", "=1"], "--set =1 does not name"),
        (["--set", "rank=1,NaN"], "rank is nan"),
        (["--jobs", "absent.json"], "absent.json cannot be read as a list of jobs"),
        (["--jobs", "jobs.json"], "jobs.json cannot be read as a list of jobs"),
        (["--workers", "many"], "--workers many is not a whole number"),
        (["--workers", "0"], "--workers 0 is not a whole number"),
        (["--set", "ranc=1"], "did you mean 'rank'"),
    ],
)
def test_the_command_refuses_bad_input_with_one_sentence(
    arguments, words, tiny, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    Path("jobs.json").write_text('{"rank": 4}')
    assert main(["sweep", str(tiny), "--output", "out", *arguments]) == 1
    said = capfd.readouterr().err.removesuffix("\n")
    assert words in said and "\n" not in said and not Path("out").exists()


def test_the_command_ends_with_code_1_on_bad_input(tmp_path):
    command = [sys.executable, "-m", "lib", "sweep", str(tmp_path / "no.ipynb")]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (
        ended.returncode == 1
        and "no.ipynb cannot be read" in ended.stderr
        and len(ended.stderr.strip().splitlines()) == 1
    )


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_the_command_stops_cleanly_at_an_interrupt(tiny, tmp_path):
    command = [
        sys.executable,
        "-m",
        "lib",
        "sweep",
        str(tiny),
        "--set",
        "rank=1,2,3",
        "--set",
        "wait=300",
        f"--output={tmp_path / 'out'}",
    ]
    hear = partial(
        signal.signal, signal.SIGINT, signal.SIG_DFL
    )  # what a shell starts in the background ignores it, and so would this
    running = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear,
    )
    try:
        deadline = time.monotonic() + 180  # a busy machine takes long to start two Pythons
        while not (kernels := list(tmp_path.glob("out/*/kernel"))) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert kernels, "the notebook never began"
        os.killpg(running.pid, signal.SIGINT)  # what a terminal does at Ctrl-C
        _, err = running.communicate(timeout=90)
        ours = err.partition("[IPKernelApp]")[0]  # what it met between two messages is its own
        assert (
            running.returncode == 130
            and "Stopped; what is finished is in" in ours
            and "Traceback" not in ours
            and str(ROOT / "lib") not in err  # no traceback of ours below it either
        ), err
        kernel, deadline = int(kernels[0].read_text() or 0), time.monotonic() + 60
        while Path(f"/proc/{kernel}").exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not Path(f"/proc/{kernel}").exists(), "the notebook's Python must end as well"
    finally:
        if running.poll() is None:
            running.kill()
