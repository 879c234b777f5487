"""The data sets and trained runs that benchmarks/shipping_bench.py reads, made when not there."""

import shutil
from functools import cache

from benchmarks.pocketbench import photos
from benchmarks.studies import STEPS
from lib.config.settings import METHODS
from lib.dataset.class_images import draw_class_images
from lib.dataset.imagefolder import add_class_images, load_dataset
from lib.dataset.preparation import prepare
from lib.files.json_file import write_json
from lib.files.paths import ROOT
from lib.models.base import load_base
from lib.models.families import preset
from lib.training.loop import train

WORK, OTHERS = ROOT / "runs" / "shipbench", ("clothing", "lighting")


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
            write_json(
                folder / "subject.json",
                {
                    "kind": "character",
                    "class_noun": words.class_noun,
                    "identifier": words.identifier,
                    "held_out": held_out,
                    "captions": captions,
                },
            )
            from PIL import Image

            regular = [item for part in parts for item in part.class_images]
            add_class_images(
                prepare(folder, data_of(f"all-{subject.name}")),
                [Image.open(i.path) for i in regular],
                [i.caption for i in regular],
            )


def settings_of(concept, method, seed):
    steps = (
        3 * STEPS if concept.startswith("all-") else STEPS
    )  # three concepts get three times the steps, as three trainings do
    folder = WORK / "models" / f"{concept}-{method}-{seed}"
    return preset(
        method,
        data=str(data_of(concept)),
        output=str(folder),
        steps=steps,
        seed=seed,
        sample_every=0,
    )


@cache
def run_of(concept, method, seed):
    """The run of a concept by a method: trained where it is not there, or was trained by other
    settings or on other data.
    """
    return train(settings_of(concept, method, seed))


def runs_needed(subjects, seeds, some):
    """(concept, method, seed) of every run that these studies read, the longest first."""
    each = [
        key
        for subject in subjects
        for key in ([f"all-{subject}"] if "compose" in some else []) + [subject]
    ] + list(OTHERS)
    return sorted(
        ((key, m, seed) for seed in range(seeds) for key in each for m in METHODS),
        key=lambda run: not run[0].startswith("all-"),
    )
