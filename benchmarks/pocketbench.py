"""PocketBench: DreamBooth's protocol on the pocket world, with error bars.  Writes
data/results/pocketbench.csv, a row a run.

    python -m benchmarks.pocketbench [--studies main rank] [--subjects 30] [--seeds 3] [--workers 2]

Subjects x 25 prompts x 4 pictures (Ruiz et al. 2022, section 4.1), the prompts that notebook 04
asks, subjects that neither base nor judge has met. Stop it at any time: the same command goes on
where it was, and asking for more subjects, seeds or studies adds the runs that are missing. Rows of
the same base and judge in the table count as finished, so that a fresh clone goes on from what
ships. No two runs of a subject share a process's luck: with several workers each has one thread, so
times compare within one table and device only.
"""

import argparse
import hashlib
import multiprocessing
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from statistics import mean, stdev
from typing import Any, NamedTuple

import torch

from benchmarks import learning_rates
from benchmarks.csv_rows import read_table
from benchmarks.half_convolution import quick_half_convolutions
from benchmarks.learning_rates import BEHIND, TESTED
from benchmarks.studies import CUTS, SELDOM, WORDS, cut_from, studies
from benchmarks.studies import SEEDS as MOST_SEEDS
from benchmarks.studies import job as preset_job
from lib.config.presets import PRESETS
from lib.convert.composition import load_adapters
from lib.convert.interchange import extract
from lib.course.sweeping import run_name, sweep
from lib.dataset.captions import KINDS, prompts, read_subject
from lib.dataset.class_images import CLASS_IMAGES, PLACES, draw_class_images
from lib.dataset.imagefolder import add_class_images, load_dataset
from lib.dataset.preparation import prepare
from lib.evaluation.comparison import class_scores, drawn_as_asked
from lib.evaluation.comparison_table import means_by_asked
from lib.evaluation.curve import Curve, costs_along
from lib.evaluation.drift import fixed_noise, fixed_noise_loss, prediction_cache, prediction_drift
from lib.evaluation.fidelity import (
    PROMPTS,
    EvaluationPlan,
    class_protocol,
    evaluate,
    prompt_list,
    real_row,
    score,
)
from lib.evaluation.judge import FOLDER as JUDGE
from lib.evaluation.judge import load_judge
from lib.files.csv_table import write_table
from lib.files.errors import BadInput
from lib.files.json_file import read_json, write_json
from lib.files.paths import ROOT
from lib.models.base import load_base
from lib.models.base_files import POCKET
from lib.models.devices import device_name, versions
from lib.models.families import preset
from lib.step.run_weights import load_run
from lib.training.loop import train
from pocket.places import PHRASES
from pocket.subjects import bench_subjects
from pocket.world import render

RESULTS, WORK = ROOT / "data" / "results" / "pocketbench.csv", ROOT / "runs" / "pocketbench"
SEEDS = (1000, 1001, 1002, 1003)
POINTS = 4  # measurements along a training
COLUMNS = tuple(
    "study subject class_noun variant method rank targets prior_weight learning_rate steps cooldown"
    " seed".split()
)
SCORES = (
    "dino",
    "dino_train",
    "clip_i",
    "clip_i_train",
    "clip_t",
    "diversity",
    "memorising",
    "nearest",
    "consistency",
)
# What is also averaged over some prompts alone: those whose place no training photo shows, or that
# name none (dino_new), and by what a prompt asks (dino_place, dino_colour).
BY_PROMPT = ("dino", "clip_t")
COSTS = ("seconds_per_step", "train_seconds", "peak_bytes", "file_bytes")


def photos(subject, variant, folder):
    """Draw a bench subject's photos into `folder`, with their subject.json: six to train on, two
    held out.
    """
    noun, identifier = WORDS.get(variant, lambda noun: (noun, "zwx"))(subject.class_noun)
    scenes = list(subject.train)
    if variant == "duplicates":  # two pictures, three times each, hardly moved
        scenes = [replace(s, x=s.x + 0.004 * k) for s in scenes[:2] for k in range(3)]
    elif (
        variant == "one_background"
    ):  # but for one picture: a folder whose pictures are all alike is refused
        scenes = [
            replace(s, place=scenes[0].place, seed=scenes[0].seed) for s in scenes[:-1]
        ] + scenes[-1:]
    folder.mkdir(parents=True)
    captions, held_out = {}, []
    for k, scene in enumerate([*scenes, *subject.test]):
        file = f"{k}.png"
        render(scene).save(folder / file)
        captions[file] = f"a {identifier} {noun} {PHRASES[scene.place]}"
        held_out += [file] if k >= len(scenes) else []
    words = {
        "kind": "character",
        "class_noun": noun,
        "identifier": identifier,
        "held_out": held_out,
        "captions": captions,
    }
    write_json(folder / "subject.json", words)


def data_folder(job):
    """Where the data set of a job lies; jobs that differ in how they train alone share it."""
    return (
        WORK
        / "data"
        / f"{job['subject']}-{'good' if job['variant'] == 'without_identifier' else job['variant']}"
    )


def make_data(jobs, subjects):
    """Make the data sets that `jobs` need and that are not there yet, in this process: workers then
    only read them.
    """
    by_name, base = {s.name: s for s in subjects}, None
    for folder, some in {data_folder(j): j for j in jobs}.items():
        if not (folder / "class").is_dir():
            base, drawn = base or load_base(), WORK / "photos" / folder.name
            print(f"data set {folder.name}", flush=True)
            if some["subject"] in by_name:
                shutil.rmtree(drawn, ignore_errors=True)
                photos(by_name[some["subject"]], some["variant"], drawn)
            else:
                drawn = ROOT / "data" / "subjects" / some["subject"]
            plain = [
                {"file": entry.name, "caption": prompts(read_subject(drawn))}
                for entry in sorted(drawn.glob("*.png"))
            ]
            edits = plain if some["variant"] == "uncaptioned" else None
            class_images(base, prepare(drawn, folder, edits=edits), some["variant"])


def class_images(base, data, variant):
    """Draw the class images of a data set: as the course does, but for two variants of the study
    of prior preservation, of which one has a quarter as many and one asks for all in the same
    words.
    """
    if variant == "one_wording":
        texts = [prompts(data.subject, with_identifier=False)] * CLASS_IMAGES
        seeds = [10_000 + i for i in range(CLASS_IMAGES)]
        return add_class_images(data, base.generate(texts, seeds), texts)
    count = CLASS_IMAGES // 4 if variant == "few_class_images" else CLASS_IMAGES
    return draw_class_images(base, data, count)


@cache
def judge():
    return load_judge()


@cache
def hashes():
    """(of the base model's weights, of the judge's): rows of different ones never share a table."""
    base = hashlib.sha256(b"".join(f.read_bytes() for f in sorted(POCKET.rglob("*.safetensors"))))
    # What is asked, and how pictures are drawn, is part of the judge: rows asked otherwise are
    # another judge's.
    files = [*sorted(JUDGE.rglob("*.safetensors")), PROMPTS / "pocket.json"]
    seen = hashlib.sha256(b"".join(f.read_bytes() for f in files))
    drawn = PRESETS["lora", "pocket"]
    seen.update(f"{drawn['sample_steps']} {drawn['guidance']} full".encode())
    return base.hexdigest()[:12], f"pocket {seen.hexdigest()[:8]}"


def work(job, folder):
    """Train one job (or take the base as it is), draw, score: a flat row."""
    start = time.perf_counter()
    data, base = load_dataset(data_folder(job)), load_base()
    before = before_training(base, data)
    with quick_half_convolutions() if job.get("precision") == "fp16" else nullcontext():
        tuned, row = contestant(job, folder, base, data)
    row |= fidelity(job, folder, tuned, data)
    row |= forgetting(before, tuned, data)
    if not (job["method"] == "dreambooth" and is_plain(job)):  # of these LoRAs are cut
        shutil.rmtree(folder / "run", ignore_errors=True)
    row |= identity(job, data, device_name(tuned.device))
    return row | {"cell_seconds": time.perf_counter() - start}


class Before(NamedTuple):
    """What the untouched base says, for what training changes of it.

    - asked: what the class is asked; floor: how the base scores in it
    - predictions: the base's, of those prompts
    - losses: {column: photos with the noise that their loss is measured at}
    """

    asked: list
    floor: dict
    predictions: Any
    losses: dict


def before_training(base, data):
    """The `Before` of a base and a data set."""
    asked = class_protocol(data.subject, base)
    parts = (("loss_train", data.train), ("loss_held_out", data.test))
    return Before(
        asked=asked,
        floor=class_floor(base, data, asked),
        predictions=prediction_cache(base, [prompt.text for prompt in asked]),
        losses={
            column: fixed_noise(base, [i.path for i in part], [i.caption for i in part])
            for column, part in parts
        },
    )


def contestant(job, folder, base, data):
    """(the model that the job's method makes of `base`, its costs and the way of its training)."""
    if job["method"] == "base":
        return base, {}
    if job["method"] in CUTS:
        return cut(job)
    run, curve = train_job(job, folder, base, data)
    found = read_json(run / "metrics.json")
    row = {key: found[key] for key in COSTS}
    if curve:
        row |= along(curve.points, real_row(judge(), data)["dino"])
    return load_run(run, load_base()).cast_for_sampling(), row


def fidelity(job, folder, tuned, data):
    """What pictures of the subject score, beside what real photos and plain copies do; some of
    them are left in `folder`.
    """
    listed = prompt_list(data.subject, tuned)
    plain = "class_prompt" if job["variant"] == "without_identifier" else "prompt"
    asked = [(p[plain], p["class_prompt"]) for p in listed]
    found = evaluate(tuned, data, judge(), EvaluationPlan(asked, SEEDS))
    shown = [picture["prompt"] for picture in found["pictures"]]
    for k, image in enumerate(found["images"][: 8 * len(SEEDS) : len(SEEDS)]):
        image.save(folder / f"{k}.png")
    real = real_row(judge(), data)
    return (
        {key: found[key] for key in SCORES}
        | by_prompt(found["pictures"], data.train, listed)
        | by_what_is_asked(found["pictures"], listed)
        | drawn_as_asked(judge(), found["images"], shown, tuned)
        | {f"{key}_real": real[key] for key in ("dino", "clip_i", "clip_t")}
        | copies(judge(), data)
    )


def forgetting(before, tuned, data):
    """What became of the class, and the losses on both parts of the photos."""
    scores = class_scores(tuned, data, judge(), before.asked, EvaluationPlan())
    return (
        {key: value - before.floor[key] for key, value in scores.items()}
        | {"drift": prediction_drift(tuned, before.predictions)["mean"]}
        | {key: fixed_noise_loss(tuned, fixed)["mean"] for key, fixed in before.losses.items()}
    )


def identity(job, data, device):
    """What a row is of: its settings, base, judge, device and libraries."""
    base_hash, judged_by = hashes()
    stack = versions()
    return {
        "class_noun": data.subject.class_noun,
        "settings_hash": run_name(job),
        "base_hash": base_hash,
        "judge": judged_by,
        "device": device,
    } | {key: stack[key] for key in ("torch", "diffusers", "peft")}


def class_floor(base, data, asked):
    """What the base itself makes of the class, by `class_scores`: kept beside the data set, which
    all jobs of a subject share.
    """
    file = data.root / "class_floor.json"
    if not file.is_file():
        write_json(file, class_scores(base, data, judge(), asked, EvaluationPlan()))
    return read_json(file)


def is_plain(job):
    """Whether a job changes nothing of its method's preset but the subject and the seed."""
    return job == preset_job(job["subject"], job["method"], job["seed"])


def train_job(job, folder, base, data):
    """(run folder, the curve along it or None) of a job's training; figures show the way of plain
    ones alone. Raises BadInput where the device trains by another recipe than was asked for.
    """
    own = (
        "rank",
        "targets",
        "prior_weight",
        "learning_rate",
        "steps",
        "cooldown",
        "seed",
        *SELDOM,
    )
    chosen = {key: job[key] for key in own if key in job}
    settings = preset(
        job["method"], data=str(data.root), output=str(folder / "run"), sample_every=0, **chosen
    )
    # Of an attempt that failed: its curve would lack what is not trained again.
    shutil.rmtree(folder / "run", ignore_errors=True)
    curve = (
        Curve(base, data, judge(), settings.output, every=max(1, round(job["steps"] / POINTS)))
        if is_plain(job)
        else None
    )
    run = train(settings, base, [curve] if curve else [])
    for key, used in read_json(run / "metrics.json")["recipe"].items():
        # Where bitsandbytes cannot run, training goes without and says so.
        if used != getattr(settings, key):
            raise BadInput(
                f"This device trained with {key} {used!r} instead of"
                f" {getattr(settings, key)!r}: run that study elsewhere."
            )
    return run, curve


def run_folder(job):
    """Where the training of a job lies."""
    return WORK / "runs" / run_name(job) / "run"


def cut(job):
    """(a base model with the LoRA in it that is cut from the job's DreamBooth training, its costs:
    that training's, and the adapter's bytes).
    """
    run = run_folder(cut_from(job))
    adapter, _ = extract(run, job["rank"], progress=lambda done, total: None)
    tensors = [t for *_, layer in adapter for t in (layer.down, layer.up)]
    found = read_json(run / "metrics.json")
    costs = {key: found[key] for key in COSTS}
    costs["file_bytes"] = sum(t.numel() * t.element_size() for t in tensors)
    return load_adapters(load_base(), {job["method"]: adapter}), costs


def by_prompt(pictures, photos, listed):
    """What the mean over all pictures hides: means over prompts whose place no caption of `photos`
    names, so beyond what was shown, and how dino differs between prompts (standard deviation of
    their means); both of those prompts of `listed` alone that leave the subject's colour as it is.
    """
    alike = [p["class_prompt"] for p in listed if p["asks"] != "colour"]
    seen = [place for place in PLACES if any(place in photo.caption for photo in photos)]
    new = [
        p
        for p in pictures
        if p["prompt"] in alike and not any(place in p["prompt"] for place in seen)
    ]
    each = [[p["dino"] for p in pictures if p["prompt"] == prompt] for prompt in alike]
    return {f"{key}_new": mean(p[key] for p in new) for key in BY_PROMPT} | {
        "prompt_spread": stdev(map(mean, each))
    }


def by_what_is_asked(pictures, listed):
    """Means over the pictures whose prompt asks for a place, and over those whose prompt asks for a
    colour: a subject drawn in the colour asked for is less like its photos, and is right.

    listed: the prompts, as `prompt_list` gives them.
    """
    asks = {p["class_prompt"]: p["asks"] for p in listed}
    found = {key: means_by_asked(pictures, asks, key) for key in BY_PROMPT}
    return {f"{key}_{what}": by[what] for key, by in found.items() for what in ("place", "colour")}


def copies(judge, data):
    """What plain copies of the training photos score: the most that memorising can show with this
    judge on this subject.
    """
    train, test = ([i.path for i in part] for part in (data.train, data.test))
    found = score(
        judge, train, [prompts(data.subject, with_identifier=False)] * len(train), test, train=train
    )
    real = float((judge.identity(test) @ judge.identity(train).T).max(1).values.mean())
    return {
        "memorising_copies": found["dino_train"] - found["dino"],
        "nearest_copies": found["nearest_raw"] - real,
    }


def along(points, ceiling):
    """A curve as flat columns: dino, clip_t, pres, drift and obedience at each of `POINTS` parts of
    the training, and what `costs_along` says.
    """
    row = {
        f"{key}_{k}_of_{POINTS}": p[key]
        for k, p in enumerate(points)
        for key in ("dino", "clip_t", "pres", "drift", "obedience")
    }
    return row | costs_along(points, ceiling)


def shipped():
    """The rows in the table; none where the file is absent."""
    return read_table(RESULTS) if RESULTS.is_file() else []


def is_of_today(row):
    """Whether a row is of the base and the judge that are here now."""
    return (row["base_hash"], row["judge"]) == hashes()


def hand_in(jobs):
    """Put rows that ship, and that this folder has not made itself, where `sweep` looks for
    finished ones.
    """
    wanted = {run_name(j): j for j in jobs}
    for row in filter(is_of_today, shipped()):
        key = row["settings_hash"]
        if key in wanted and not (WORK / "runs" / key / "row.json").is_file():
            found = {k: v for k, v in row.items() if v is not None and k != "study"}
            write_json(WORK / "runs" / key / "row.json", found | wanted[key])


def write_results(plan, rows):
    """Write the table: `rows` in every study of `plan` that asked for them, and the rows of other
    studies that were there before.

    A study keeps the rows of a former base, judge or preset until it is run anew: then all of them
    go.
    """
    done = [
        {"study": study} | rows[run_name(j)]
        for study, some in plan.items()
        for j in some
        if run_name(j) in rows
    ]
    for row in done:
        if row["study"] == "identifier" and row["variant"] == "good":
            row["variant"] = "rare"
    new = {(row["study"], row["settings_hash"]) for row in done}
    anew = {row["study"] for row in done}
    order = list(studies(["-"], 1))
    before = [row for row in shipped() if row["study"] in order]
    asked = still_asked(before)
    done += [
        row
        for row in before
        if (row["study"], row["settings_hash"]) not in new
        and (row["study"] not in anew or (is_of_today(row) and asked(row)))
    ]
    done.sort(
        key=lambda row: (
            order.index(row["study"]),
            row["subject"],
            row["method"],
            row.get("seed") or 0,
        )
    )
    write_rows(done)
    found = learning_rates.curves(done)
    if all(found.values()):
        write_json(
            learning_rates.RESULTS,
            {
                "pocket": found,
                "best": {m: learning_rates.best(points) for m, points in found.items()},
            },
        )
    return done


def write_rows(rows):
    """Write the table, what a row is of before what it scored."""
    write_table(
        RESULTS, [{c: row.get(c) for c in dict.fromkeys([*COLUMNS, *row])} for row in rows], COLUMNS
    )


def still_asked(rows):
    """Whether today's plan asks for a row, for any number of subjects and seeds that `rows` have: a
    function of a row.
    """
    subjects = sorted({row["subject"] for row in rows} - set(KINDS))
    seeds = 1 + max((r.get("seed") or 0 for r in rows if r["study"] == "main"), default=0)
    names = {(study, run_name(j)) for study, some in studies(subjects, seeds).items() for j in some}
    return lambda row: (row["study"], row["settings_hash"]) in names


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", nargs="+", help="all, unless named")
    parser.add_argument("--subjects", type=int, default=TESTED, help=f"at most {TESTED}")
    parser.add_argument(
        "--seeds",
        type=int,
        default=3,
        help=f"training seeds of the main study; others have {MOST_SEEDS} at most",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        help="processes of one thread; 1 trains here, with all cores",
    )
    args = parser.parse_args()
    if args.subjects > TESTED:
        parser.error(
            f"learning rates are tuned on subjects behind the first {TESTED}: ask for those"
        )
    subjects = bench_subjects(args.subjects)
    plan = studies([s.name for s in subjects], args.seeds)
    unknown = sorted(set(args.studies or ()) - set(plan))
    if unknown:
        parser.error(f"there is no study '{unknown[0]}': choose from {', '.join(plan)}")
    plan = {study: plan[study] for study in args.studies or plan}
    jobs = [j for some in plan.values() for j in some]
    stamp = WORK / "base.json"
    if stamp.is_file() and read_json(stamp)["hashes"] != list(hashes()):
        raise BadInput(
            f"The runs in {WORK} are of another base model or judge: move that folder away, then"
            " start again."
        )
    write_json(stamp, {"hashes": hashes()})
    hand_in(jobs)
    cuts = [j for j in jobs if j["method"] in CUTS]
    for j in cuts:
        whole, done = run_folder(cut_from(j)), WORK / "runs" / run_name(j) / "row.json"
        if not done.is_file() and not (whole / "metrics.json").is_file():
            (whole.parent / "row.json").unlink(missing_ok=True)  # its weights are needed: once more
    make_data(
        [j for j in jobs if not (WORK / "runs" / run_name(j) / "row.json").is_file()],
        bench_subjects(TESTED + len(BEHIND)),
    )
    # Threads of several processes would wait for each other; forked ones may hang in the parent's
    # locks.
    pool = ProcessPoolExecutor(
        args.workers, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)
    )
    with nullcontext() if args.workers == 1 else pool as executor:
        found = sweep([j for j in jobs if j not in cuts], work, WORK / "runs", executor)
        if cuts:  # now their trainings are there
            found += sweep(cuts, work, WORK / "runs", executor)
    rows = {row["settings_hash"]: row for row in found}
    for j in cuts:
        shutil.rmtree(run_folder(cut_from(j)), ignore_errors=True)  # 21 MB each
    print(
        f"{len(write_results(plan, rows))} rows in {RESULTS.relative_to(ROOT)}, {len(rows)} of them"
        " of these studies"
    )


if __name__ == "__main__":
    main()
