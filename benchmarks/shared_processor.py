"""What a step takes where other programs use the processor as well: beside busy loops, on part of
the processors (`taskset`), and under a quota (a control group, where that may be made).

    python -m benchmarks.shared_processor [--steps 12] [--rounds 3]

LoRA's step of the pocket base, in a process of its own each: "fair" with the threads that
`lib.models.devices.fair_threads` gives, "torch" with torch's default, turn about. The fair share is
the time of one thread on an idle processor, times the programs that share it. Rows go to
benchmarks/results/shared_processor.json, the table into benchmarks/README.md; run it on a machine
that does nothing else.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median

from benchmarks.sections import OWN_README, into_file
from lib.files.json_file import write_json
from lib.files.paths import ROOT
from lib.models.devices import CGROUPS, available_processors, device_name, versions

RESULTS = ROOT / "benchmarks" / "results" / "shared_processor.json"
WANTED = 1.5  # times the fair share, at most

TRAIN = """
import json, sys
import torch
from lib.models import devices
if {torch_default}:
    devices.fair_threads = torch.get_num_threads
from lib.models.families import preset
from lib.training.loop import train
run = train(preset("lora", data={data!r}, output={output!r}, steps={steps}, sample_every=0))
found = json.loads((run / "metrics.json").read_text())
print("MEASURED", json.dumps([found["seconds_per_step"], found["threads"]]))
"""


def busy_loop() -> None:
    """Another program that never waits."""
    while True:
        pass


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Within the block so many other programs run."""
    loops = [multiprocessing.Process(target=busy_loop, daemon=True) for _ in range(count)]
    for loop in loops:
        loop.start()
    try:
        yield
    finally:
        for loop in loops:
            loop.terminate()
            loop.join()


@contextmanager
def quota_group(processors: float) -> Iterator[Path | None]:
    """The `cgroup.procs` of a control group with a quota; None where none may be made."""
    group = CGROUPS / f"workbench-{os.getpid()}"
    try:
        group.mkdir()
        (group / "cpu.max").write_text(f"{int(processors * 100_000)} 100000")
    except OSError:
        with suppress(OSError):
            group.rmdir()
        yield None
        return
    try:
        yield group / "cgroup.procs"
    finally:
        with suppress(OSError):
            group.rmdir()


def measure(
    data: str, steps: int, torch_default: bool, prefix: list[str], group: Path | None, threads: str
) -> tuple[float, int]:
    """(seconds of a step, threads) of a training in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    if threads:
        environment["OMP_NUM_THREADS"] = threads
    with tempfile.TemporaryDirectory() as folder:
        code = TRAIN.format(
            torch_default=torch_default, data=data, output=f"{folder}/lora", steps=steps
        )
        enter = f"open({str(group)!r}, 'w').write('0')\n" if group else ""
        said = subprocess.run(
            [*prefix, sys.executable, "-c", enter + code],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    line = next(row for row in said.splitlines() if row.startswith("MEASURED "))
    seconds, used = json.loads(line.removeprefix("MEASURED "))
    return seconds, used


def figures(found: dict) -> str:
    """The measured rows as Markdown."""
    lines = [
        "| LoRA's step | threads | seconds | with torch's default | fair share | times the share |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in found["rows"]:
        seconds = (row[name] for name in ("fair_seconds", "torch_seconds", "fair_share"))
        cells = (f"{value:.2f}" for value in (*seconds, row["over_fair_share"]))
        lines.append(f"| {row['situation']} | {row['threads']} | {' | '.join(cells)} |")
    note = (
        f"{found['device']}, {found['cores']} processors, torch {found['versions']['torch']}:"
        f" medians of {found['rounds']} trainings of {found['steps']} steps each way, turn about."
    )
    unmeasured = [f"Not measured: {text}." for text in found["unmeasured"]]
    return "\n".join([" ".join([note, *unmeasured]), "", *lines, ""])


def main() -> None:
    """Measure all situations, print a row each, and write them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", default=str(ROOT / "runs" / "course" / "data"))
    asked = parser.parse_args()
    cores = int(available_processors())
    one = ["taskset", "-c", str(min(os.sched_getaffinity(0)))]
    # name, busy loops, the command before Python, quota, programs that share the processor's time
    situations = [
        ("idle", 0, [], 0.0, 1.0),
        ("beside one busy program", 1, [], 0.0, max(1.0, 2 / cores)),
        ("beside two busy programs", 2, [], 0.0, max(1.0, 3 / cores)),
        ("on one processor (taskset)", 0, one, 0.0, 1.0),
        ("under a quota of one processor", 0, [], 1.0, 1.0),
        ("under a quota of half a processor", 0, [], 0.5, 2.0),
    ]
    alone, _ = measure(asked.data, asked.steps, False, [], None, "1")
    rows, unmeasured = [], []
    for name, loops, prefix, quota, shared in situations:
        if prefix and not shutil.which(prefix[0]):
            unmeasured.append(f"{name} (there is no {prefix[0]})")
            continue
        with quota_group(quota or 1.0) as group, busy(loops):
            if quota and group is None:
                unmeasured.append(f"{name} (no control group may be made here)")
                continue
            used: dict[bool, list[tuple[float, int]]] = {False: [], True: []}
            for _ in range(asked.rounds):
                for torch_default in (False, True):
                    entered = group if quota else None
                    used[torch_default].append(
                        measure(asked.data, asked.steps, torch_default, prefix, entered, "")
                    )
        fair, torch_own = (median(s for s, _ in used[kind]) for kind in (False, True))
        row = {
            "situation": name,
            "fair_seconds": fair,
            "torch_seconds": torch_own,
            "threads": used[False][-1][1],
            "fair_share": alone * shared,
            "over_fair_share": fair / (alone * shared),
        }
        rows.append(row)
        verdict = "holds" if row["over_fair_share"] <= WANTED else "does not hold"
        print(
            f"{name}: {fair:.3f} s a step with {row['threads']} threads, torch's own"
            f" {torch_own:.3f} s; {row['over_fair_share']:.2f} times the fair share ({verdict})",
            flush=True,
        )
    found = {
        "made_by": "python -m benchmarks.shared_processor",
        "versions": versions(),
        "device": cpu_name(),
        "cores": cores,
        "steps": asked.steps,
        "rounds": asked.rounds,
        "unmeasured": unmeasured,
        "rows": rows,
    }
    write_json(RESULTS, found)
    into_file(OWN_README, "shared processor", figures(found))


def cpu_name() -> str:
    """The processor in words."""
    import torch

    return device_name(torch.device("cpu"))


if __name__ == "__main__":
    main()
