"""Shipping on the pocket base: concepts combined, switched and extracted.  Writes data/results/shipping.csv, a row a measurement.

    python -m benchmarks.ship [--studies compose extract switch] [--subjects 6] [--seeds 1]      # claims 7, 8 and 16
    python -m benchmarks.ship --adapters                                                         # trains data/adapters again

A subject is one of PocketBench's characters, combined with the example clothing and lighting. Stop it at any time: the same command
goes on where it was, and asking for more subjects or seeds adds what is missing.
"""

import argparse
import shutil
from functools import cache
from pathlib import Path

from benchmarks.pocketbench import bench_prompts, hashes, judge, photos
from lib.base import ROOT, load_base
from lib.compose import MIXES, add_changes, mix, switch_times, use
from lib.export import export_lora
from lib.extract import extract
from lib.fidelity import evaluate
from lib.lesson import draw_class_images
from lib.methods import load_run, weight_bytes
from lib.photos import add_class_images, load_dataset, prepare
from lib.pocket.subjects import bench_subjects
from lib.record import device_name, versions
from lib.settings import METHODS, BadInput, Settings, read_json, write_json
from lib.survival import Concept, likeness, likeness_together, shares
from lib.sweep import name, sweep, write_table
from lib.train import train

RESULTS, WORK = ROOT / "data" / "results" / "shipping.csv", ROOT / "runs" / "shipbench"
OTHERS, STEPS, RANKS = ("clothing", "lighting"), Settings.steps, (1, 2, 4, 8, 16, 32, 64)
COLUMNS = ("study", "subject", "seed", "how", "method", "concepts", "weight", "rank")
# How several concepts come into one model: by adapters together, adapters mixed, checkpoints added or averaged, one model trained on all.
WAYS = ("adapters", *(f"mix {how}" for how in MIXES if how != "cat"), "checkpoints averaged", "checkpoints added", "trained on all, LoRA",
        "trained on all, DreamBooth")


def studies(subjects, seeds):
    """{study: its jobs}, flat dicts."""
    grid = [(s, seed) for seed in range(seeds) for s in subjects]
    compose = [{"subject": s, "seed": seed, "how": how, "concepts": n, "weight": 1.0} for s, seed in grid for how in WAYS for n in (2, 3)]
    compose += [{"subject": s, "seed": seed, "how": "adapters", "concepts": n, "weight": w} for s, seed in grid for n, w in (
        (1, 1.0), (2, 0.7), (3, 0.7), (3, 0.5), (3, 1.3))]
    extracted = [{"subject": s, "seed": seed, "rank": rank} for s, seed in grid for rank in RANKS]
    trained = [{"subject": s, "seed": seed, "method": m} for s, seed in grid for m in ("base", *METHODS)]
    return {"compose": compose, "extract": extracted + trained, "switch": [{"subject": subjects[0], "seed": seed} for seed in range(seeds)]}


def data_of(concept):
    """The data set of a concept or of "all-<subject>", as a folder."""
    return WORK / "data" / concept


def make_data(subjects):
    """Draw and prepare the photos of every concept, and one set of all three for each subject."""
    base = None
    for subject in [*subjects, *OTHERS]:
        key = subject if isinstance(subject, str) else subject.name
        if not (data_of(key) / "class").is_dir():
            base, drawn = base or load_base(), WORK / "photos" / key
            shutil.rmtree(drawn, ignore_errors=True)
            if isinstance(subject, str):
                drawn = ROOT / "data" / "subjects" / subject
            else:
                photos(subject, "good", drawn)
            draw_class_images(base, prepare(drawn, data_of(key)))
    for subject in subjects:
        if not (data_of(f"all-{subject.name}") / "class").is_dir():
            parts = [load_dataset(data_of(key)) for key in (subject.name, *OTHERS)]
            folder = WORK / "photos" / f"all-{subject.name}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            captions, held_out = {}, []
            for k, part in enumerate(parts):
                for split, items in (("train", part.train), ("test", part.test)):
                    for item in items:
                        file = f"{k}_{split}_{item.path.name}"
                        shutil.copyfile(item.path, folder / file)
                        captions[file] = item.caption
                        held_out += [file] if split == "test" else []
            words = parts[0].subject
            write_json(folder / "subject.json", {"kind": "character", "class_noun": words.class_noun, "identifier": words.identifier,
                                                 "held_out": held_out, "captions": captions})
            from PIL import Image

            regular = [item for part in parts for item in part.class_images]
            add_class_images(prepare(folder, data_of(f"all-{subject.name}")), [Image.open(i.path) for i in regular],
                             [i.caption for i in regular])


def run_of(concept, method, seed):
    """The run of a concept by a method: trained once, when it is first asked for."""
    folder = WORK / "models" / f"{concept}-{method}-{seed}"
    if not (folder / "metrics.json").is_file():
        steps = 3 * STEPS if concept.startswith("all-") else STEPS  # three concepts get three times the steps, as three trainings do
        train(Settings.preset(method, data=str(data_of(concept)), output=str(folder), steps=steps, seed=seed, sample_every=0))
    return folder


def concepts_of(job):
    keys = (job["subject"], *OTHERS)[:job.get("concepts", 3)]
    return [Concept(key, "", load_dataset(data_of(key))) for key in keys]


@cache
def alone(subject, seed, method):
    """({concept: DINO} of the base, the same of each concept's own run by itself): between these two lies what can survive."""
    some = concepts_of({"subject": subject})
    floor = likeness(load_base(), some, judge())
    return floor, {c.name: likeness(load_run(run_of(c.name, method, seed), load_base()), [c], judge())[c.name] for c in some}


def combined(job):
    """A base with the job's concepts in it, by the way that the job names."""
    how, weight, seed = job["how"], job["weight"], job["seed"]
    keys, base = (job["subject"], *OTHERS)[:job["concepts"]], load_base()
    if how.startswith("trained on all"):
        return load_run(run_of(f"all-{job['subject']}", "lora" if how.endswith("LoRA") else "dreambooth", seed), base)
    if how.startswith("checkpoints"):
        share = weight / len(keys) if how.endswith("averaged") else weight
        return add_changes(base, [run_of(key, "dreambooth", seed) for key in keys], [share] * len(keys))
    runs = {key.replace(".", "_"): run_of(key, "lora", seed) for key in keys}
    if how == "adapters":
        return use(base, runs, dict.fromkeys(runs, weight))
    return use(base, {"mixed": mix(runs, how.removeprefix("mix "), dict.fromkeys(runs, weight))})


def compose(job, folder):
    """What survives of each concept, asked for one by one (`survives`) and all in one picture (`dino_together`)."""
    method = "dreambooth" if "checkpoint" in job["how"] or job["how"].endswith("DreamBooth") else "lora"
    some, (floor, own) = concepts_of(job), alone(job["subject"], job["seed"], method)
    base = combined(job)
    scores = likeness(base, some, judge())
    left, (joint, images) = shares(scores, floor, own), likeness_together(base, some, judge())
    for k, image in enumerate(images):
        image.save(folder / f"{k}.png")
    row = {"method": method, "survives": left["mean"]}
    for kind, concept in zip(("character", *OTHERS), some):
        row |= {f"survives_{kind}": left[concept.name], f"dino_{kind}": scores[concept.name], f"floor_{kind}": floor[concept.name],
                f"alone_{kind}": own[concept.name], f"together_{kind}": joint[concept.name]}
    return row


def extraction(job, folder):
    """Fidelity of the LoRA of a rank taken out of a DreamBooth run, or of a method's own run, or of the base."""
    data, row = load_dataset(data_of(job["subject"])), {}
    if "rank" in job:
        adapter, kept = extract(run_of(job["subject"], "dreambooth", job["seed"]), job["rank"])
        size = sum(t.numel() * t.element_size() for _, _, layer in adapter for t in (layer.down, layer.up))
        base, row = use(load_base(), {"extracted": adapter}), {"method": "extracted", "kept_of_layers": kept.of_layers,
                                                               "kept_of_all": kept.of_all, "file_bytes": size}
    elif job["method"] == "base":
        base = load_base()
    else:
        run = run_of(job["subject"], job["method"], job["seed"])
        base, row = load_run(run, load_base()), {"file_bytes": weight_bytes(run)}
    found = evaluate(base, data, judge(), bench_prompts(data.subject)[:9], (1000, 1001))
    return row | {key: found[key] for key in ("dino", "dino_train", "clip_i", "clip_t", "memorising")}


def switching(job, folder):
    """Seconds to change concept, pictures a second with the adapter beside, fused and as a checkpoint, and concepts in a GB."""
    import time

    keys, seed = (job["subject"], *OTHERS), job["seed"]
    runs, tuned = {k.replace(".", "_"): run_of(k, "lora", seed) for k in keys}, run_of(keys[0], "dreambooth", seed)
    row = {f"{key}_seconds": s for key, s in switch_times(load_base(), runs, tuned).items()}
    for kind, make in (("base", load_base), ("adapter", lambda: load_run(runs[next(iter(runs))], load_base())),
                       ("fused", lambda: _fused(load_run(runs[next(iter(runs))], load_base()))),
                       ("checkpoint", lambda: load_run(tuned, load_base()))):
        base = make()
        base.generate(["a robot"] * 8, range(8), 5)
        start = time.perf_counter()
        base.generate(["a robot"] * 8, range(8))
        row[f"pictures_per_second_{kind}"] = 8 / (time.perf_counter() - start)
    sizes = {m: weight_bytes(run_of(keys[0], m, seed)) for m in METHODS}
    return row | {f"concepts_per_gb_{m}": 1e9 / size for m, size in sizes.items()}


def _fused(base):
    base.pipe.fuse_lora()
    return base


WORKS = {"compose": compose, "extract": extraction, "switch": switching}


class Work:
    """The sweep's work for one study: the row with what it stands on."""

    def __init__(self, study):
        self.study = study

    def __call__(self, job, folder):
        row, (base_hash, judged_by), stack = WORKS[self.study](job, Path(folder)), hashes(), versions()
        used = {key: stack[key] for key in ("torch", "diffusers", "peft")}
        return row | {"base_hash": base_hash, "judge": judged_by, "device": device_name(load_base().device)} | used


def adapters():
    """Train and write data/adapters."""
    make_data([])
    for kind in OTHERS:
        out = ROOT / "data" / "adapters" / f"{kind}.safetensors"
        print("\n".join(export_lora(run_of(kind, "lora", 0), "kohya", out, title=f"The example {kind} on the pocket base").lines()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", nargs="+", choices=list(WORKS), default=list(WORKS))
    parser.add_argument("--subjects", type=int, default=6, help="characters: an interval takes 3, a verdict 6")
    parser.add_argument("--seeds", type=int, default=1, help="training seeds")
    parser.add_argument("--adapters", action="store_true", help="train data/adapters, and nothing else")
    args = parser.parse_args()
    if args.adapters:
        return adapters()
    stamp, subjects = WORK / "base.json", bench_subjects(args.subjects)
    if stamp.is_file() and read_json(stamp)["base_hash"] != hashes()[0]:
        raise BadInput(f"The runs in {WORK} are of another base model: move that folder away, then start again.")
    write_json(stamp, {"base_hash": hashes()[0]})
    make_data(subjects)
    plan, rows = studies([s.name for s in subjects], args.seeds), []
    for study in args.studies:
        made = {name(j): row for j, row in zip(plan[study], sweep(plan[study], Work(study), WORK / study))}
        rows += [{"study": study} | row for row in made.values()]
    write_table(RESULTS, [{c: row.get(c) for c in dict.fromkeys([*COLUMNS, *row])} for row in rows], COLUMNS)
    print(f"{len(rows)} rows in {RESULTS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
