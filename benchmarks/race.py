"""Our two trainings against diffusers' DreamBooth scripts, on the same base model, photos and
class-image count, interleaved in one run.

    python -m benchmarks.race --scripts DIR [--rounds 3] [--steps 25] [--keep FOLDER]

DIR holds train_dreambooth.py and train_dreambooth_lora.py (github.com/huggingface/diffusers,
examples/dreambooth). Each training runs in a process of its own, watched by
`benchmarks/watched.py`, contestants turn about. Results go to benchmarks/results/race.json and
docs/results.md.

Their tiers: as documented, started plainly or by `accelerate launch`; their best flags (text
embeddings computed beforehand, gradients set to none, what is fastest of some numbers of data
workers and of 8-bit Adam or not); the same compiled by inductor. Ours: "like" has the same adapter
as theirs (rank 4, attention), "preset" is the course's recipe, "lean" spares memory in one way,
"thrifty" (the foot of `lib.memory.ladder`) in all. Inductor, which compiles for minutes, and
thrifty, which is here for its bytes, run in the first round alone. Photos: brought to 64 pixels
beforehand, and as JPEGs of 2.1 megapixels.

Predictions, written before the first measurement (two CPU cores):
- steps a second of ours over theirs: 1.2 (LoRA) and 1.4 (DreamBooth) as documented, 1.1 and 1.25 at
  their best flags, for they encode the
  pictures in every step and update weight by weight; 2 with large photos, which they decode in every step;
- start to the end of step 1: 0.8 of theirs, for both import torch, diffusers and transformers, and
  ours encodes 46 pictures first;
- bytes of the step: LoRA 0.7 of theirs once VAE and text encoder are gone; DreamBooth 0.8 as the
  course trains, since weights, gradients
  and two moments in fp32 are the same 174 MB on both sides, and below 0.5 thrifty;
- seconds to the set fidelity: at their documented rates it is not reached on this base, whose best
  rates are 40 to 160 times those; at
  our rates theirs take twice as long as ours with LoRA (fewer adapted layers), and 1.5 times with DreamBooth.
Predictions before the second measurement, with plain attention, convolutions as they come, and a
start without garbage collection:
- steps a second: LoRA 1.35 as documented and 1.3 at best flags, DreamBooth 1.38 and 1.4; with large
  photos 2.5 and 1.9;
- start: LoRA 0.83, DreamBooth 0.78; bytes as before (0.96, 0.80), lean 0.5 and 0.6 at 0.95 and 1.1
  times their steps a second.
Predictions before the third, where freed memory waits for the next step: steps a second of LoRA
1.45, of DreamBooth 1.48, with large photos 2.7 and 2.1; start 0.8 and 0.84. Predictions before the
fourth, on another machine (AVX512-BF16, half the matrix rate), where lean is checkpointing of the
largest transformers alone (LoRA), and bf16 weights updated in pieces (DreamBooth): bytes 0.69 and
0.62 at 1.17 and 1.37 times their steps a second as documented, 1.03 and 1.55 at best flags; start,
without torch's compiler, 0.76 and 0.8, and 0.55 of theirs by accelerate launch. Predictions before
the fifth, with data workers tuned for each method (they were tuned for LoRA alone, and slowed
DreamBooth down): theirs at best flags as fast as documented or a tenth faster, so DreamBooth 1.45
of it with small photos and 2.0 with large ones; 8-bit Adam is slower on a CPU; inductor makes their
step a tenth faster than best flags; lean with large photos 2.2 and 1.9.
"""

import argparse
import hashlib
import os
import random
import tempfile
from itertools import product
from pathlib import Path

import torch

from lib.files.errors import BadInput
from lib.files.json_file import write_json
from lib.files.paths import ROOT
from lib.models.base import load_base
from lib.models.devices import device_name, versions

from . import contestants, racetable
from .contestants import DOCUMENTED, FULL, SCRIPTS, SDXL, lay_out, one, run, theirs
from .sections import RESULTS_PAGE, into_file, middle

RESULTS = ROOT / "benchmarks" / "results" / "race.json"
METHODS = ("lora", "dreambooth")
WORKERS = (0, 2, 4)  # processes of their data loader that are tried for their best flags
ONCE = ("thrifty", "inductor")  # who runs in the first round alone


def entries():
    """(method, photos, contestant) of every cell, rivals beside each other."""
    found = []
    for method, kind in product(METHODS, ("small", "large")):
        more = (
            ["preset"] * (method == "lora") + ["thrifty", "launched", "inductor"]
            if kind == "small"
            else []
        )
        found += [(method, kind, who) for who in ["like", "documented", "best", "lean", *more]]
    return found


def in_turn(cells, k):
    """The cells of round `k`: rivals stay beside each other, in another order each round, so that
    nobody always runs after the same one.
    """
    groups, order = (
        [[c for c in cells if c[:2] == pair] for pair in dict.fromkeys(c[:2] for c in cells)],
        random.Random(k),
    )
    for group in groups:
        order.shuffle(group)
    return [cell for group in groups for cell in group]


def tune(work, field, scripts, steps):
    """Set `field.best` to what is fastest of `WORKERS`, and with these of 8-bit Adam or not, for
    each method and kind of photos. Returns the seconds a step of each.
    """
    found = []
    for method, kind in product(METHODS, field.photos):
        tried = {}

        def attempt(*flags):
            field.best[method, kind], name = (
                flags,
                f"tune_{method}_{kind}_{'_'.join(map(str, flags))}",
            )
            command, environment = theirs(
                scripts, field, method, kind, "best", steps, Path(work) / name
            )
            tried[flags] = run(work, name, command, steps, environment)["step"]

        for workers in WORKERS:
            attempt(workers, False)
        attempt(min(tried, key=tried.get)[0], True)
        field.best[method, kind] = min(tried, key=tried.get)
        found += [
            {"method": method, "photos": kind, "workers": w, "eight_bit": bits, "step": step}
            for (w, bits), step in tried.items()
        ]
    return found


def measure(work, field, scripts, rounds, steps, cells):
    """{cell: [what `contestants.run` found, one a round]}; a contestant that cannot run here has a
    sentence in place of the list.
    """
    found = {cell: [] for cell in cells}
    for k in range(rounds):
        for method, kind, who in in_turn(cells, k):
            if isinstance(found[method, kind, who], str) or k and who in ONCE:
                continue
            name = f"{method}_{kind}_{who}_{k}"
            try:
                found[method, kind, who].append(
                    one(work, name, field, scripts, method, kind, who, steps)
                )
            except BadInput as error:
                if who != "inductor":
                    raise
                found[method, kind, who] = str(error)
            print(name, found[method, kind, who][-1:], flush=True)
    return found


def summary(found, field):
    """The cells of race.json: medians with spread over rounds; "whole" estimates the seconds of
    `FULL` steps from the start, the steady state and the end, with preparing the photos for ours.
    """
    cells = []
    for (method, kind, who), runs in found.items():
        cell = {"method": method, "photos": kind, "who": who}
        if isinstance(runs, str):
            cells.append(cell | {"failed": runs})
            continue
        prepare = field.prepare_seconds[kind] if who in contestants.RECIPES[method] else 0.0
        whole = [prepare + r["first"] + (FULL - 1) * r["step"] + r["tail"] for r in runs]
        cells.append(
            cell
            | {
                "steps_per_second": middle([1 / r["step"] for r in runs]),
                "step": middle([r["step"] for r in runs]),
                "first": middle([r["first"] for r in runs]),
                "whole": middle(whole),
                "prepare": prepare,
                "resident_bytes": max(r["resident_bytes"] for r in runs),
                "peak_bytes": runs[0]["peak_bytes"],
                "peak_by_category": runs[0]["peak_by_category"],
            }
        )
    return cells


def ratios(found):
    """Ours over theirs in the same round, medians with spread: steps a second, seconds to the end
    of step 1, bytes of the step.
    """
    rows = []
    for (method, kind, who), runs in found.items():
        if who in contestants.RECIPES[method] or isinstance(runs, str):
            continue
        rivals = [
            w for m, p, w in found if (m, p) == (method, kind) and w in contestants.RECIPES[method]
        ]
        for mine in rivals[:1] if who in ("launched", "inductor") else rivals:
            pairs = list(zip(found[method, kind, mine], runs))
            row = {"method": method, "photos": kind, "ours": mine, "theirs": who}
            row |= {"steps_per_second": middle([b["step"] / a["step"] for a, b in pairs])}
            row |= {"first": middle([a["first"] / b["first"] for a, b in pairs])}
            known = pairs[0][0]["peak_bytes"] and pairs[0][1]["peak_bytes"]
            rows.append(
                row
                | {
                    "peak_bytes": (
                        pairs[0][0]["peak_bytes"] / pairs[0][1]["peak_bytes"] if known else None
                    )
                }
            )
    return rows


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scripts", required=True, type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--no-learning", action="store_true", help="speed and memory alone")
    parser.add_argument(
        "--keep", type=Path, help="folder for runs and logs instead of a temporary one"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="where the JSON goes, instead of benchmarks/results/ and the README",
    )
    args = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for all contestants: this race is on the CPU
    try:
        check(args.scripts)
        with tempfile.TemporaryDirectory() as work:
            work = args.keep or Path(work)
            work.mkdir(parents=True, exist_ok=True)
            found = race(work, args)
    except BadInput as error:
        raise SystemExit(str(error)) from None
    write_json(args.output or RESULTS, found)
    if not args.output:
        into_file(RESULTS_PAGE, "race", racetable.figures(found))
    print(racetable.figures(found))


def check(scripts, names=tuple(SCRIPTS.values())):
    """Raise BadInput before anything slow where `scripts` is not the folder of diffusers' scripts."""
    for name in names:
        if not (scripts / name).is_file():
            raise BadInput(
                f"There is no {name} in {scripts}: give the folder examples/dreambooth of"
                " huggingface/diffusers."
            )


def race(work, args):
    """The whole race on the pocket base: what race.json holds."""
    base = load_base(device="cpu")
    field = lay_out(work, base)
    del base
    tried = tune(work, field, args.scripts, args.steps)
    best = [
        {"method": m, "photos": k, "workers": workers, "eight_bit": bits}
        for (m, k), (workers, bits) in field.best.items()
    ]
    found = measure(work, field, args.scripts, args.rounds, args.steps, entries())
    cells = summary(found, field)
    result = facts(args.scripts, "cpu") | {
        "cells": cells,
        "ratios": ratios(found),
        "best": best,
        "tried": tried,
    }
    result["steps"] = args.steps
    if not args.no_learning:
        from .learning import learn, whole

        result["trained"] = whole(work, field, args.scripts, cells)
        result["learning"] = learn(work, field, args.scripts, cells)
    return result


def facts(scripts, device):
    """What every race's result names."""
    paths = [scripts / name for name in (*SCRIPTS.values(), SDXL)]
    return {
        "documented": DOCUMENTED,
        "in_their_favour": list(contestants.FAVOURS),
        "scripts_sha256": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in paths
            if path.is_file()
        },
        "device": device_name(torch.device(device)),
        "versions": versions(),
    }


if __name__ == "__main__":
    main()
