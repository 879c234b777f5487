"""One training in two processes on this machine: the bytes that each sends a step, against the
arithmetic of it, and the efficiency where the machine does nothing else.

    python -m benchmarks.two_processes [--steps 8] [--rounds 3] [--data FOLDER]

Both methods' step of the pocket base at batch 4, in one process and in two (gloo, one thread each),
turn about. Arithmetic: with n processes a ring passes 2 (n - 1) / n times the gradients' bytes, in
fp32, through each. Measured: what the kernel counts as written by the first process
(/proc/self/io), per step. Efficiency is the seconds of one over twice the seconds of two; beside
other programs it says nothing, so it is left out where the machine is busy at the start. Rows go to
benchmarks/results/two_processes.json.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.sections import OWN_README, into_file
from lib.files.json_file import write_json
from lib.files.paths import ROOT
from lib.files.text import amount
from lib.models.devices import versions

RESULTS = ROOT / "benchmarks" / "results" / "two_processes.json"
BATCH, QUIET = 4, 0.5  # pictures; programs that wait or run while a machine counts as idle

TRAIN = """
import json, sys
from lib.files.json_file import read_json
from lib.models.families import preset
from lib.training.loop import train
method, data, output, steps = sys.argv[1:]
written = []
def look(state):
    lines = dict(line.split(": ") for line in open("/proc/self/io").read().splitlines())
    written.append(int(lines["wchar"]))
settings = preset(method, data=data, output=output, steps=int(steps), batch_size=4, sample_every=0)
run = train(settings.replace(prior_weight=0.0, save_every=0), watchers=[look])
if written:
    measured = read_json(run / "metrics.json")
    kept = ("seconds_per_step", "trainable_parameters", "processes")
    # the first two steps send what is agreed upon once
    found = {"bytes": (written[-1] - written[1]) / (len(written) - 2)}
    print("MEASURED", json.dumps(found | {name: measured[name] for name in kept}))
"""


def measure(method: str, data: str, steps: int, count: int) -> dict[str, float]:
    """What the first of `count` processes found."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        free.close()
        command = [sys.executable, "-c", TRAIN, method, data, f"{folder}/run", str(steps)]
        running = []
        for rank in range(count):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count}
            told = {name: str(value) for name, value in place.items()} | meeting
            environment = os.environ | told | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
            running.append(
                subprocess.Popen(
                    command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
                )
            )
        said = [one.communicate()[0] for one in running][0]
    line = next(row for row in said.splitlines() if row.startswith("MEASURED "))
    return json.loads(line.removeprefix("MEASURED "))


def figures(found: dict) -> str:
    """The measured rows as Markdown."""
    lines = [
        "| | numbers trained | arithmetic, a step | written, a step | efficiency of two |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in found["rows"]:
        sent, expected = (amount(row[name], "bytes") for name in ("bytes", "arithmetic_bytes"))
        efficiency = "-" if row["efficiency"] is None else f"{row['efficiency']:.0%}"
        lines.append(
            f"| {row['method']} | {row['trainable_parameters']:,} | {expected} | {sent} |"
            f" {efficiency} |"
        )
    note = (
        f"On {found['cores']} processors, torch {found['versions']['torch']}, batch {BATCH},"
        f" {found['steps']} steps, median of {found['rounds']}; load at the start"
        f" {found['load']:.1f}."
    )
    if found["load"] > QUIET:
        note += " The machine did other work, so seconds were not compared."
    return "\n".join([note, "", *lines, ""])


def main() -> None:
    """Measure both methods, and write rows and table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", default=str(ROOT / "runs" / "course" / "data"))
    asked = parser.parse_args()
    data, load, rows = str(Path(asked.data).resolve()), os.getloadavg()[0], []
    counts = (1, 2) if load <= QUIET else (2,)
    for method in ("lora", "dreambooth"):
        turns = [
            [measure(method, data, asked.steps, count) for count in counts]
            for _ in range(asked.rounds)
        ]
        two = [turn[-1] for turn in turns]
        ratios = [turn[0]["seconds_per_step"] / turn[-1]["seconds_per_step"] for turn in turns]
        row = {
            "method": method,
            "trainable_parameters": two[0]["trainable_parameters"],
            "arithmetic_bytes": 4 * two[0]["trainable_parameters"],
            "bytes": median(found["bytes"] for found in two),
            "efficiency": median(ratios) / 2 if load <= QUIET else None,
        }
        rows.append(row)
        print(row, flush=True)
    found = {
        "made_by": "python -m benchmarks.two_processes",
        "versions": versions(),
        "cores": len(os.sched_getaffinity(0)),
        "steps": asked.steps,
        "rounds": asked.rounds,
        "load": load,
        "rows": rows,
    }
    write_json(RESULTS, found)
    into_file(OWN_README, "two processes", figures(found))


if __name__ == "__main__":
    main()
