"""Concepts combined, switched and extracted on the pocket base: a row a measurement.

    python -m benchmarks.shipping_bench [--studies compose extract switch] [--subjects 6]
    python -m benchmarks.shipping_bench --adapters    # trains data/adapters again, nothing else

Writes data/results/shipping.csv, from which `python -m benchmarks.analysis` makes what is shown.

A subject is one of PocketBench's characters, combined with the example clothing and lighting. Stop
it at any time: the same command goes on where it was, and asking for more subjects or seeds adds
what is missing; rows of the same base, judge and recipe stay.
"""

import argparse
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import cache
from pathlib import Path
from statistics import median

import torch

from benchmarks.csv_rows import read_table
from benchmarks.pocketbench import hashes, judge
from benchmarks.shipping_runs import (
    OTHERS,
    WORK,
    data_of,
    make_data,
    run_of,
    runs_needed,
    settings_of,
)
from lib.config.settings import METHODS
from lib.convert.composition import MIXES, load_adapters, mix, switch_times
from lib.convert.exporting import export_lora
from lib.convert.interchange import extract
from lib.course.sweeping import run_name, sweep
from lib.dataset.imagefolder import load_dataset
from lib.evaluation.concepts import Concept, likeness, likeness_of, shares, together
from lib.evaluation.fidelity import EvaluationPlan, evaluate, protocol
from lib.files.csv_table import write_table
from lib.files.errors import BadInput
from lib.files.json_file import read_json, write_json
from lib.files.paths import ROOT
from lib.models.base import load_base
from lib.models.base_weights import open_base_weights
from lib.models.devices import device_name, versions
from lib.step.run_weights import load_run, weight_bytes
from pocket.subjects import bench_subjects

RESULTS = ROOT / "data" / "results" / "shipping.csv"
ROUNDS = 5  # of pictures that are timed
RANKS = (1, 2, 4, 8, 16, 32, 64)
COLUMNS = ("study", "subject", "seed", "how", "method", "concepts", "weight", "rank")
# How several concepts come into one model: by adapters together, adapters mixed, checkpoints added
# or averaged, one model trained on all.
WAYS = (
    "adapters",
    *(f"mix {how}" for how in MIXES if how != "cat"),
    "checkpoints averaged",
    "checkpoints added",
    "trained on all, LoRA",
    "trained on all, DreamBooth",
)


def studies(subjects, seeds):
    """{study: its jobs}, flat dicts."""
    grid = [(s, seed) for seed in range(seeds) for s in subjects]
    compose = [
        {"subject": s, "seed": seed, "how": how, "concepts": n, "weight": 1.0}
        for s, seed in grid
        for how in WAYS
        for n in (2, 3)
    ]
    compose += [
        {"subject": s, "seed": seed, "how": "adapters", "concepts": n, "weight": w}
        for s, seed in grid
        for n, w in ((1, 1.0), (2, 0.7), (3, 0.7), (3, 0.5), (3, 1.3))
    ]
    extracted = [{"subject": s, "seed": seed, "rank": rank} for s, seed in grid for rank in RANKS]
    trained = [
        {"subject": s, "seed": seed, "method": m} for s, seed in grid for m in ("base", *METHODS)
    ]
    return {
        "compose": compose,
        "extract": extracted + trained,
        "switch": [{"subject": subjects[0], "seed": seed} for seed in range(seeds)],
    }


@cache
def stands_on():
    """What makes two rows comparable: hashes of base, judge, and of both methods' settings."""
    settings = {
        f"{m}.{key}": v
        for m in METHODS
        for key, v in asdict(settings_of("-", m, 0)).items()
        if key not in ("data", "output")
    }
    return dict(zip(("base_hash", "judge"), hashes())) | {"recipe_hash": run_name(settings)}


def concepts_of(job):
    keys = (job["subject"], *OTHERS)[: job.get("concepts", 3)]
    return [Concept(key, "", load_dataset(data_of(key))) for key in keys]


@cache
def alone(subject, seed, method):
    """({concept: DINO} of the base, the same of each concept's own run by itself): between these
    two lies what can survive.
    """
    some = concepts_of({"subject": subject})
    floor = likeness(load_base(), some, judge())
    return floor, {
        c.name: likeness(load_run(run_of(c.name, method, seed), load_base()), [c], judge())[c.name]
        for c in some
    }


def add_changes(base, runs, weights):
    """Add what DreamBooth runs changed to the weights of a fresh `Base`, each times its weight: how
    checkpoints are merged.

    Weights of 1 / n give the average of n checkpoints, weights of 1 the "add difference" of WebUI's
    merger. Returns the base.
    """
    plain = open_base_weights(base.name)
    state = {name: p.detach().float() for name, p in base.denoiser.named_parameters()}
    for run, weight in zip(runs, weights):
        tuned = open_base_weights(base.name, run)
        if "unet" not in tuned.tuned:
            raise BadInput(f"{run} has no tuned U-Net: name a DreamBooth run.")
        for key, value in state.items():
            change = tuned.read("unet", key).float() - plain.read("unet", key).float()
            state[key] = value + weight * change.to(value.device)
    base.denoiser.load_state_dict(
        {name: value.to(base.denoiser.dtype) for name, value in state.items()}, strict=False
    )
    return base


def combined(job):
    """A base with the job's concepts in it, by the way that the job names."""
    how, weight, seed = job["how"], job["weight"], job["seed"]
    keys, base = (job["subject"], *OTHERS)[: job["concepts"]], load_base()
    if how.startswith("trained on all"):
        return load_run(
            run_of(f"all-{job['subject']}", "lora" if how.endswith("LoRA") else "dreambooth", seed),
            base,
        )
    if how.startswith("checkpoints"):
        share = weight / len(keys) if how.endswith("averaged") else weight
        return add_changes(
            base, [run_of(key, "dreambooth", seed) for key in keys], [share] * len(keys)
        )
    runs = {key.replace(".", "_"): run_of(key, "lora", seed) for key in keys}
    if how == "adapters":
        return load_adapters(base, runs, dict.fromkeys(runs, weight))
    return load_adapters(
        base, {"mixed": mix(runs, how.removeprefix("mix "), dict.fromkeys(runs, weight))}
    )


def likeness_together(base, concepts):
    """({name: DINO} of pictures that ask for all concepts at once, the pictures)."""
    places, seeds = ("", "in the snow"), (4000, 4001)
    texts = [(together(concepts, place), seed) for place in places for seed in seeds]
    images = base.generate([t for t, _ in texts], [s for _, s in texts])
    return {c.name: likeness_of(images, c, judge()) for c in concepts}, images


def compose(job, folder):
    """What survives of each concept, asked for one by one (`survives`) and all in one picture
    (`dino_together`).
    """
    method = (
        "dreambooth" if "checkpoint" in job["how"] or job["how"].endswith("DreamBooth") else "lora"
    )
    some, (floor, own) = concepts_of(job), alone(job["subject"], job["seed"], method)
    base = combined(job)
    scores = likeness(base, some, judge())
    left = shares(scores, floor, own)
    joint, images = likeness_together(base, some)
    for k, image in enumerate(images):
        image.save(folder / f"{k}.png")
    row = {"method": method, "survives": left["mean"]}
    for kind, concept in zip(("character", *OTHERS), some):
        row |= {
            f"survives_{kind}": left[concept.name],
            f"dino_{kind}": scores[concept.name],
            f"floor_{kind}": floor[concept.name],
            f"alone_{kind}": own[concept.name],
            f"together_{kind}": joint[concept.name],
        }
    return row


def extraction(job, folder):
    """Fidelity of the LoRA of a rank taken out of a DreamBooth run, or of a method's own run, or of
    the base.
    """
    data, row = load_dataset(data_of(job["subject"])), {}
    if "rank" in job:
        adapter, kept = extract(run_of(job["subject"], "dreambooth", job["seed"]), job["rank"])
        size = sum(
            t.numel() * t.element_size() for _, _, layer in adapter for t in (layer.down, layer.up)
        )
        base, row = (
            load_adapters(load_base(), {"extracted": adapter}),
            {
                "method": "extracted",
                "kept_of_layers": kept.of_layers,
                "kept_of_all": kept.of_all,
                "file_bytes": size,
            },
        )
    elif job["method"] == "base":
        base = load_base()
    else:
        run = run_of(job["subject"], job["method"], job["seed"])
        base, row = load_run(run, load_base()), {"file_bytes": weight_bytes(run)}
    found = evaluate(base, data, judge(), EvaluationPlan(protocol(data.subject, base)[:9]))
    return row | {
        key: found[key] for key in ("dino", "dino_train", "clip_i", "clip_t", "memorising")
    }


def switching(job, folder):
    """Seconds to change concept; pictures a second with the adapter beside, fused and as a
    checkpoint, turn about; concepts in a GB of files and of memory.
    """
    keys, seed = (job["subject"], *OTHERS), job["seed"]
    runs, tuned = (
        {k.replace(".", "_"): run_of(k, "lora", seed) for k in keys},
        run_of(keys[0], "dreambooth", seed),
    )
    row = {f"{key}_seconds": s for key, s in switch_times(load_base(), runs, tuned).items()}
    first = next(iter(runs.values()))
    bases = {
        "base": load_base(),
        "adapter": load_run(first, load_base()),
        "fused": _fused(load_run(first, load_base())),
        "checkpoint": load_run(tuned, load_base()),
    }
    seconds = {kind: [] for kind in bases}
    for k in range(-1, ROUNDS):  # the first is to warm up
        for kind, base in bases.items():
            start = time.perf_counter()
            base.generate(["a robot"] * 8, range(8), 25)
            seconds[kind] += [time.perf_counter() - start] * (k >= 0)
    row |= {f"pictures_per_second_{kind}": 8 / median(found) for kind, found in seconds.items()}
    weights = {
        "lora": [w for n, w in bases["adapter"].denoiser.named_parameters() if "lora_" in n],
        "dreambooth": list(bases["checkpoint"].denoiser.parameters()),
    }
    for method, some in weights.items():
        row[f"concepts_per_gb_{method}"] = 1e9 / weight_bytes(run_of(keys[0], method, seed))
        row[f"concepts_per_gb_memory_{method}"] = 1e9 / sum(
            w.numel() * w.element_size() for w in some
        )
    return row


def _fused(base):
    base.pipe.fuse_lora()
    return base


WORKS = {"compose": compose, "extract": extraction, "switch": switching}


class Work:
    """The sweep's work for one study: the row with what it stands on."""

    def __init__(self, study):
        self.study = study

    def __call__(self, job, folder):
        row, stack = WORKS[self.study](job, Path(folder)), versions()
        used = {key: stack[key] for key in ("torch", "diffusers", "peft")}
        return row | stands_on() | {"device": device_name(load_base().device)} | used


def write_results(rows):
    """Write the table: `rows`, and those that were there before, of the same base, judge and
    recipe, which `rows` do not replace.
    """
    known = {tuple(row.get(c) for c in COLUMNS) for row in rows}
    before = read_table(RESULTS) if RESULTS.is_file() else []
    rows = [
        r
        for r in before
        if stands_on().items() <= r.items() and tuple(r.get(c) for c in COLUMNS) not in known
    ] + rows
    rows.sort(key=lambda row: (list(WORKS).index(row["study"]), row["subject"], row["seed"]))
    write_table(
        RESULTS, [{c: row.get(c) for c in dict.fromkeys([*COLUMNS, *row])} for row in rows], COLUMNS
    )


def same_ground():
    """Raise BadInput if the work folder's runs are of another base, judge or recipe."""
    stamp = WORK / "base.json"
    if stamp.is_file() and read_json(stamp) != stands_on():
        raise BadInput(
            f"The runs in {WORK} are of another base model, judge or recipe: move that folder away,"
            " then start again."
        )
    write_json(stamp, stands_on())


def adapters():
    """Train and write data/adapters."""
    same_ground()
    make_data([])
    for kind in OTHERS:
        out = ROOT / "data" / "adapters" / f"{kind}.safetensors"
        print(
            "\n".join(
                export_lora(
                    run_of(kind, "lora", 0),
                    "kohya",
                    out,
                    title=f"The example {kind} on the pocket base",
                ).lines()
            )
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", nargs="+", choices=list(WORKS), default=list(WORKS))
    parser.add_argument(
        "--subjects", type=int, default=6, help="characters: an interval and a verdict take 6"
    )
    parser.add_argument("--seeds", type=int, default=1, help="training seeds")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes of one thread"
    )
    parser.add_argument(
        "--adapters", action="store_true", help="train data/adapters, and nothing else"
    )
    args = parser.parse_args()
    if args.adapters:
        return adapters()
    same_ground()
    subjects, rows = bench_subjects(args.subjects), []
    make_data(subjects)
    plan = studies([s.name for s in subjects], args.seeds)
    # Threads of several processes would wait for each other; forked ones may hang in the parent's
    # locks.
    with ProcessPoolExecutor(
        args.workers, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)
    ) as pool:
        list(
            pool.map(
                run_of, *zip(*runs_needed([s.name for s in subjects], args.seeds, args.studies))
            )
        )
        for study in args.studies:  # switching is timed, so it has the machine to itself
            made = sweep(
                plan[study], Work(study), WORK / study, None if study == "switch" else pool
            )
            rows += [{"study": study} | row for row in made]
            write_results(rows)
    print(f"{len(rows)} rows of these studies in {RESULTS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
