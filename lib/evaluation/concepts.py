"""What survives of each concept when several share one model: its likeness to its own held-out
photos, as a share.

    likeness(base, [robot, jacket, light], judge)        # {"robot": 0.71, ...}, every concept asked for by itself
    survives(score, floor, alone)                        # 0: as the base model, 1: as with the concept alone

The share is what is left between the base model's score (the floor) and that of the concept alone,
all from the same prompts and seeds.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.analysis.effects import CLEAR
from lib.convert.composition import check_name
from lib.dataset.captions import prompts
from lib.dataset.imagefolder import Dataset
from lib.dataset.preparation import prepare
from lib.evaluation.fidelity import course_prompts, similarity
from lib.files.paths import ROOT


@dataclass(frozen=True)
class Concept:
    """A concept to combine: its `name`, its adapter's or run's path (`source`), the photos to judge
    it by (`dataset`).
    """

    name: str
    source: str
    dataset: Dataset

    @property
    def words(self):
        """How a prompt that asks for several concepts names this one, such as "zwx robot" or "in
        vqx light".
        """
        subject = self.dataset.subject
        return (
            prompts(subject).removeprefix(f"a {subject.class_noun} ")
            if subject.kind in ("style", "lighting", "pose")
            else (f"{subject.identifier} {subject.class_noun}")
        )


def example(kind, source, folder, resolution=64):
    """The `Concept` of an example subject of data/subjects, its photos prepared in `folder`."""

    check_name(kind)
    return Concept(
        kind,
        str(source),
        prepare(ROOT / "data" / "subjects" / kind, Path(folder) / kind, resolution=resolution),
    )


def together(concepts, place=""):
    """One prompt that asks for all of them: "a zwx robot in a kwz jacket in the snow in vqx light"."""
    things = [
        c.words for c in concepts if c.dataset.subject.kind not in ("style", "lighting", "pose")
    ]
    manners = [c.words for c in concepts if c.dataset.subject.kind in ("style", "lighting", "pose")]
    return " ".join(["a " + " in a ".join(things or ["picture"]), *filter(None, [place]), *manners])


def asked(concept, base, count=4):
    """`count` prompts that ask for one concept, with its identifier."""
    return [
        with_identifier
        for with_identifier, _ in course_prompts(concept.dataset.subject, base)[:count]
    ]


def likeness(base, concepts, judge, seeds=(4000,), count=4, **sampling):
    """{name: mean DINO cosine of pictures that ask for this concept alone with its held-out
    photos}, for what `base` holds now.

    Every concept gets `count` prompts and all seeds. A concept's photos are its held-out ones, or
    where there are none those trained on.
    """
    texts = [
        (c.name, text, seed) for c in concepts for text in asked(c, base, count) for seed in seeds
    ]
    images = base.generate([t for _, t, _ in texts], [s for *_, s in texts], **sampling)
    return {
        c.name: _against(judge, [i for i, (name, *_) in zip(images, texts) if name == c.name], c)
        for c in concepts
    }


def likeness_together(
    base, concepts, judge, seeds=(4000, 4001), places=("", "in the snow"), **sampling
):
    """The same for pictures that ask for all concepts at once: ({name: DINO}, the pictures)."""
    texts = [(together(concepts, place), seed) for place in places for seed in seeds]
    images = base.generate([t for t, _ in texts], [s for _, s in texts], **sampling)
    return {c.name: _against(judge, images, c) for c in concepts}, images


def survives(score, floor, alone):
    """The share of a concept that is left: (score - floor) / (alone - floor); None where alone it
    is hardly better than the base.

    "Hardly" is by no more than `CLEAR`: of a smaller distance a share is mostly noise, and one such
    could drown a mean.
    """
    return (score - floor) / (alone - floor) if alone - floor > CLEAR else None


def shares(scores, floor, alone):
    """`survives` for each concept of a dict of scores, and their "mean" over those that have one."""
    found = {name: survives(score, floor[name], alone[name]) for name, score in scores.items()}
    known = [share for share in found.values() if share is not None]
    return found | {"mean": float(np.mean(known)) if known else None}


def _against(judge, images, concept):
    photos = [item.path for item in concept.dataset.test or concept.dataset.train]
    return similarity(judge.identity(images), judge.identity(photos))
