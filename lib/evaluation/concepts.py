"""What survives of each concept when several share one model: its likeness to its own held-out
photos, as a share.

    likeness(base, [robot, jacket, light], judge)   # {"robot": 0.71, ...}, each asked for by itself
    survives(score, floor, alone)                   # 0: as the base model, 1: as when it is alone

The share is what is left between the base model's score (the floor) and that of the concept alone,
all from the same prompts and seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lib.convert.composition import check_name
from lib.dataset import prepare
from lib.dataset.captions import MANNERS, prompts
from lib.dataset.imagefolder import Dataset
from lib.evaluation.fidelity import protocol, similarity
from lib.evaluation.judge import Judge
from lib.evaluation.results import CLEAR
from lib.files import ROOT
from lib.models import Base


@dataclass(frozen=True)
class Concept:
    """A concept to combine: its `name`, its adapter's or run's path (`source`), the photos to judge
    it by (`dataset`).
    """

    name: str
    source: str
    dataset: Dataset

    @property
    def is_manner(self) -> bool:
        """Whether it says how a picture looks, not what is in it."""
        return self.dataset.subject.kind in MANNERS

    @property
    def words(self) -> str:
        """How a prompt that asks for several concepts names this one, such as "zwx robot" or "in
        vqx light".
        """
        subject = self.dataset.subject
        if self.is_manner:
            return prompts(subject).removeprefix(f"a {subject.class_noun} ")
        return f"{subject.identifier} {subject.class_noun}"


def example(kind: str, source: str | Path, folder: str | Path, resolution: int = 64) -> Concept:
    """The `Concept` of an example subject of data/subjects, its photos prepared in `folder`."""
    check_name(kind)
    photos = ROOT / "data" / "subjects" / kind
    dataset = prepare(photos, Path(folder) / kind, resolution=resolution)
    return Concept(kind, str(source), dataset)


def together(concepts: Sequence[Concept], place: str = "") -> str:
    """One prompt that asks for all: "a zwx robot in a kwz jacket in the snow in vqx light"."""
    things = [concept.words for concept in concepts if not concept.is_manner]
    manners = [concept.words for concept in concepts if concept.is_manner]
    return " ".join(["a " + " in a ".join(things or ["picture"]), *filter(None, [place]), *manners])


def likeness(
    base: Base,
    concepts: Sequence[Concept],
    judge: Judge,
    seeds: Sequence[int] = (4000,),
    count: int = 4,
    **sampling: Any,
) -> dict[str, float]:
    """{name: mean DINO cosine of pictures that ask for this concept alone with its own photos}, for
    what `base` holds now.

    Every concept gets `count` prompts and all seeds. sampling: steps and guidance, as of
    `Base.generate`.
    """
    texts = [
        (c.name, asked, seed)
        for c in concepts
        for asked, _ in protocol(c.dataset.subject, base, "course")[:count]
        for seed in seeds
    ]
    images = base.generate([t for _, t, _ in texts], [s for *_, s in texts], **sampling)
    return {
        c.name: likeness_of([i for i, (name, *_) in zip(images, texts) if name == c.name], c, judge)
        for c in concepts
    }


def likeness_of(images: Sequence[Image.Image], concept: Concept, judge: Judge) -> float:
    """Mean DINO cosine of pictures with a concept's held-out photos, or with those trained on where
    none were held out.
    """
    photos = [item.path for item in concept.dataset.test or concept.dataset.train]
    return similarity(judge.identity(images), judge.identity(photos))


def survives(score: float, floor: float, alone: float) -> float | None:
    """The share of a concept that is left: (score - floor) / (alone - floor); None where alone it
    is hardly better than the base.

    "Hardly" is by no more than `CLEAR`: of a smaller distance a share is mostly noise, and one such
    could drown a mean.
    """
    return (score - floor) / (alone - floor) if alone - floor > CLEAR else None


def shares(
    scores: Mapping[str, float], floor: Mapping[str, float], alone: Mapping[str, float]
) -> dict[str, float | None]:
    """`survives` for each concept of a dict of scores, and their "mean" over those with a share."""
    found = {name: survives(score, floor[name], alone[name]) for name, score in scores.items()}
    known = [share for share in found.values() if share is not None]
    return found | {"mean": float(np.mean(known)) if known else None}
