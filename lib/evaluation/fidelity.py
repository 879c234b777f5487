"""What the judge measures: does it look like the subject, and does it show what the prompt asks?

The measures follow DreamBooth (Ruiz et al., arXiv 2208.12242, section 4). Cosines are plain: never
x 100, never x 2.5. A score that is not a number is an error, never part of an average. DINO's score
agrees with people about half as well as people agree with each other: look at the pictures too.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lib.dataset.captions import SCENES, Subject, class_caption, holds_word
from lib.dataset.captions import prompts as prompt_of
from lib.dataset.class_images import PLACES
from lib.dataset.imagefolder import Dataset
from lib.dataset.photo_file import upright
from lib.evaluation.judge import Judge, Picture
from lib.files import ROOT, BadInput, read_json
from lib.models import Base

PROMPTS = ROOT / "data" / "prompts"
GREY = (127, 127, 127)  # stands in for the background of a masked photo

# The first seed of the class pictures, apart from those of samples, curves and evaluations.
CLASS_SEEDS = 2000

# (with the identifier, the same with the class noun only)
PromptPairs = Sequence[tuple[str, str]]
# A photo's name in its data set, such as "test/000.png" -> its mask
Masks = Mapping[str, Picture]
Row = dict[str, Any]


@dataclass(frozen=True)
class EvaluationPlan:
    """What every contestant is asked, and how it draws: the same for all, or they don't compare.

    prompts: pairs (with the identifier, with the class noun only); None leaves them to whoever
    evaluates.
    seeds: each prompt is drawn once with each.
    steps, guidance: of sampling; 0 is the base's own (`on`).
    class_pictures: pictures of the class in each set of words (see `class_protocol`), for PRES,
    drift and obedience; 0 leaves all three out.
    """

    prompts: PromptPairs | None = None
    seeds: Sequence[int] = (1000, 1001)
    steps: int = 0
    guidance: float = 0.0
    class_pictures: int = 8

    @property
    def sampling(self) -> dict[str, Any]:
        """How pictures are drawn, as `Base.generate` takes it."""
        return {"steps": self.steps, "guidance": self.guidance}

    def on(self, base: Base) -> "EvaluationPlan":
        """The same with the steps and the guidance of `base` where none are named: records tell
        what was done.
        """
        return replace(
            self,
            steps=self.steps or base.sample_steps,
            guidance=self.guidance or base.guidance,
        )

    def asking(self, prompts: PromptPairs) -> "EvaluationPlan":
        """The same plan with these prompts."""
        return replace(self, prompts=prompts)


def evaluation_prompts(subject: Subject, places: Sequence[str] = PLACES) -> PromptPairs:
    """One pair of prompts a place: with the identifier, and with the class noun only."""
    return [
        (prompt_of(subject, place), prompt_of(subject, place, with_identifier=False))
        for place in places
    ]


def protocol(subject: Subject, base: Base, which: str = "full") -> PromptPairs:
    """`prompt_list` as pairs, which is what an `EvaluationPlan` takes."""
    return [(p["prompt"], p["class_prompt"]) for p in prompt_list(subject, base, which)]


def prompt_list(subject: Subject, base: Base, which: str = "full") -> list[dict[str, str]]:
    """A list of data/prompts in the words of `subject`: dicts of "prompt", "class_prompt" and what
    it "asks" to be other than on the photos (place, colour, ..., or nothing).

    which: "full", 25 in the shape of DreamBooth's protocol, or "course", 8 of new places. Raises
    BadInput for any other.
    """
    listed = read_json(PROMPTS / _prompt_file(base))["kinds"][subject.kind]
    if which not in listed:
        raise BadInput(f"There is no list of prompts '{which}': choose one of {', '.join(listed)}.")
    words = {"identifier": subject.identifier, "class_noun": subject.class_noun}
    return [{key: text.format(**words) for key, text in p.items()} for p in listed[which]]


@dataclass(frozen=True)
class ClassPrompt:
    """A prompt of the class in words that no class image has: what is asked when one asks whether
    the class is still a class.

    text: without the identifier, such as "a photo of a red robot in the desert".
    others: {"class_noun", "colour" or "place": the same text with each other word in its place},
    for what `text` asks; obedience tells it from those.
    """

    text: str
    others: dict[str, list[str]]


def class_protocol(subject: Subject, base: Base) -> list[ClassPrompt]:
    """The prompts of the class of `subject` in data/prompts: wordings, colours and places that no
    class image has (`lib.dataset.class_images.class_prompts`).
    """
    listed = read_json(PROMPTS / _prompt_file(base))["class"]
    found = []
    for form in listed["prompts"]:
        asked = {"class_noun": subject.class_noun} | form
        text = asked.pop("prompt")
        others = {
            name: [
                text.format(**asked | {name: word})
                for word in listed["words"][name]
                if word != asked[name]
            ]
            for name in asked
        }
        found.append(ClassPrompt(text.format(**asked), others))
    return found


def class_words(base: Base) -> dict[str, list[str]]:
    """{"class_noun", "colour", "place": the words that a judge tells one from, for that base}."""
    return read_json(PROMPTS / _prompt_file(base))["class"]["words"]


def _prompt_file(base: Base) -> str:
    return "pocket.json" if base.family.name == "pocket" else "stable-diffusion.json"


def similarity(made: torch.Tensor, real: torch.Tensor) -> float:
    """Mean cosine over all pairs of two sets of unit rows, [N, D] and [M, D]: DINO and CLIP-I
    (arXiv 2208.12242, section 4.1).
    """
    return finite("similarity", (made @ real.T).mean())


def similarity_within(rows: torch.Tensor) -> float:
    """Mean cosine over the pairs of *different* pictures of one set [N, D], N >= 2.

    Without self-pairs: with them, DreamBooth's real photos score .76 instead of .703, which is how
    two papers disagree.
    """
    n = len(rows)
    if n < 2:
        raise BadInput(
            f"Real photos are compared with each other and there is only {n}: give at least two."
        )
    cosine = rows @ rows.T
    return finite("similarity", (cosine.sum() - cosine.diagonal().sum()) / (n * (n - 1)))


def finite(what: str, value: Any) -> float:
    """`value` as a float; raises BadInput when it is not a finite number."""
    value = float(value)
    if not np.isfinite(value):
        raise BadInput(
            f"The {what} came out as {value}: a picture or a run is damaged; make it again, for it"
            " will not be averaged away."
        )
    return value


def check_prompts(
    prompts: Sequence[str], identifier: str | None = None, class_noun: str | None = None
) -> None:
    """Raise BadInput unless every prompt asks CLIP for what CLIP can know: the class noun, and
    never the identifier.
    """
    for prompt in prompts:
        if identifier and holds_word(prompt, identifier):
            raise BadInput(
                f"The prompt {prompt!r} holds the identifier {identifier!r}, which CLIP has never"
                " read: score with the class noun only."
            )
        if class_noun and not re.search(rf"\b{re.escape(class_noun)}", prompt, re.IGNORECASE):
            raise BadInput(
                f"The prompt {prompt!r} does not name the class noun {class_noun!r}, so that its"
                " text score would not ask for the subject: write the noun into it."
            )


def score(
    judge: Judge,
    pictures: Sequence[Picture],
    prompts: Sequence[str],
    real: Sequence[Picture],
    identifier: str | None = None,
    train: Sequence[Picture] = (),
) -> Row:
    """Score N pictures, made from N prompts with the class noun only, against M real photos.

    Returns, each averaged per prompt and then over prompts (arXiv 2208.12242, section 4.1):

    - dino, clip_i: mean cosine of a picture with all M photos.
    - clip_t: plain cosine of a picture and its prompt.
    - diversity: mean of 1 - cosine of CLIP between pictures of one prompt, which stands in for
      DreamBooth's DIV; lpips: that itself, None where `judge.lpips` cannot be had.
    - consistency: standard deviation of dino (n - 1 in the denominator) between pictures of one
      prompt, so over seeds; smaller is more consistent. These three are None with one picture a
      prompt.
    - with `train`, the photos trained on: dino_train and clip_i_train, the same against these, and
      nearest_raw, a picture's largest DINO cosine to any one of them.
    - pictures: a dict for each picture with its prompt and scores; nearest_photo is the index in
      `train` of the photo it comes nearest to.

    Raises BadInput for lists that do not match, for prompts with the identifier and for scores that
    are no numbers.
    """
    if len(pictures) != len(prompts) or not pictures or not real:
        raise BadInput(
            f"{len(pictures)} pictures, {len(prompts)} prompts, {len(real)} real photos: give one"
            " prompt a picture and at least one of each."
        )
    check_prompts(prompts, identifier)
    look, clip = judge.identity(pictures), judge.clip_images(pictures)
    columns = {
        "dino": (look @ judge.identity(real).T).mean(1),
        "clip_i": (clip @ judge.clip_images(real).T).mean(1),
        "clip_t": (clip * judge.clip_texts(prompts)).sum(1),
    }
    if train:
        known = look @ judge.identity(train).T
        columns |= {
            "dino_train": known.mean(1),
            "clip_i_train": (clip @ judge.clip_images(train).T).mean(1),
            "nearest_raw": known.max(1).values,
        }
    rows: list[Row] = []
    groups = defaultdict(list)
    for i, p in enumerate(prompts):
        rows.append({"prompt": p} | {name: finite(name, of[i]) for name, of in columns.items()})
        groups[p].append(i)
        if train:
            rows[i]["nearest_photo"] = int(known[i].argmax())
    means = {
        name: float(np.mean([np.mean([rows[i][name] for i in g]) for g in groups.values()]))
        for name in columns
    }
    several = [g for g in groups.values() if len(g) > 1]
    return means | _spread(judge, pictures, clip, rows, several) | {"pictures": rows}


def _spread(
    judge: Judge,
    pictures: Sequence[Picture],
    clip: torch.Tensor,
    rows: list[Row],
    groups: list[list[int]],
) -> Row:
    """How far apart pictures of one prompt are; None without two of one.

    clip: their unit rows [N, D]. groups: the indices of the pictures of each prompt.
    """
    if not groups:
        return {"diversity": None, "lpips": None, "consistency": None}
    lpips = judge.lpips[0]
    distances = [finite("lpips", lpips([pictures[i] for i in g])) for g in groups] if lpips else []
    return {
        "diversity": float(np.mean([1 - similarity_within(clip[g]) for g in groups])),
        "lpips": float(np.mean(distances)) if lpips else None,
        "consistency": float(
            np.mean([np.std([rows[i]["dino"] for i in g], ddof=1) for g in groups])
        ),
    }


def subject_masks(
    photos: Sequence[Path], masks: Masks, root: Path
) -> list[tuple[Image.Image, Image.Image]]:
    """(RGB picture, its mask in black and white) of each of `photos`, paths in the folder `root`.

    `masks` holds a mask (PIL or path) by the photo's name in `root`, such as "test/000.png": of the
    photo's size, white on the subject, black elsewhere. Raises BadInput for a mask that is missing,
    of another size or empty.
    """
    found = []
    for photo in photos:
        name, picture = photo.relative_to(root).as_posix(), upright(photo)
        if name not in masks:
            raise BadInput(
                f"There is no mask for {name}: give one for every photo that is scored against, or"
                " no masks."
            )
        mask = upright(masks[name]).convert("L").point([0] * 128 + [255] * 128)
        if mask.size != picture.size:
            raise BadInput(
                f"The mask of {name} is {mask.width} x {mask.height} pixels and the photo"
                f" {picture.width} x {picture.height}: cut both alike."
            )
        if not mask.getbbox():
            raise BadInput(f"The mask of {name} is black all over: paint the subject white.")
        found.append((picture, mask))
    return found


def subject_alone(masked: Sequence[tuple[Image.Image, Image.Image]]) -> list[Image.Image]:
    """Each picture of `subject_masks` with everything but its subject painted a neutral grey."""
    return [
        Image.composite(picture, Image.new("RGB", picture.size, GREY), mask)
        for picture, mask in masked
    ]


def real_row(judge: Judge, dataset: Dataset, masks: Masks | None = None) -> Row:
    """The ceiling: the real photos scored as if a model had made them.

    With held-out photos: training photos against them (no photo meets itself); otherwise training
    photos among themselves, without self-pairs. clip_t is of all photos with their own captions,
    without the identifier: what the subject itself is worth to CLIP, however it is drawn. diversity
    and consistency are None. nearest is 0 by its definition. With `masks` (see `evaluate`) also
    dino_subject and clip_i_subject, and where the judge has it masc; None without held-out photos.
    """
    train, test = ([i.path for i in part] for part in (dataset.train, dataset.test))
    texts = [class_caption(dataset.subject, i.caption) for i in (*dataset.train, *dataset.test)]
    shown = judge.clip_images(train + test) * judge.clip_texts(texts)
    row = {
        "clip_t": finite("clip_t", shown.sum(1).mean()),
        "diversity": None,
        "consistency": None,
        "memorising": None,
        "nearest": 0.0 if test else None,
    }
    masked = subject_masks(test, masks, dataset.root) if masks and test else []
    alone = subject_alone(masked)
    for name, encode in (("dino", judge.identity), ("clip_i", judge.clip_images)):
        within = similarity_within(encode(train)) if len(train) > 1 else None
        row |= {
            name: (
                similarity(encode(train), encode(test))
                if test
                else similarity_within(encode(train))
            ),
            f"{name}_train": within,
        }
        if masks:
            row[f"{name}_subject"] = similarity(encode(train), encode(alone)) if alone else None
    if masked and judge.masc:
        row["masc"] = judge.masked_likeness(masked, [upright(photo) for photo in train])
    return row


def evaluate(
    base: Base,
    dataset: Dataset,
    judge: Judge,
    plan: EvaluationPlan = EvaluationPlan(),
    masks: Masks | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Row:
    """Draw every prompt of the plan with every seed, and score the pictures against held-out photos
    (training photos if none were held out).

    base: a base model, tuned or not. plan: without prompts those of `evaluation_prompts`. Returns
    `score`'s dict with also

    - memorising: dino_train - dino, what is known of the photos trained on and not of the subject.
    - nearest_real: the largest DINO cosine of a held-out photo to any one training photo, mean over
      held-out photos; nearest: nearest_raw - nearest_real, above 0 where pictures lie nearer to a
      training photo than another true picture of the subject does. These three are None without
      held-out photos.
    - reference: which photos; images: PIL, one for each of "pictures".

    With `masks` (see `subject_masks`) also dino_subject and clip_i_subject: the pictures as they
    are against the photos' subjects alone, on grey. Nobody has masks of pictures just made, and
    there is no segmenter here, so only the photos are masked: a picture gets no credit for the
    photos' background, but still pays for its own. Compare these scores between methods, never with
    dino. So it is with masc, where the judge has it (`lib.evaluation.judge.load_masc`).

    Raises BadInput before anything is made if a prompt or a mask does not fit.
    """
    subject = dataset.subject
    pairs = plan.prompts or evaluation_prompts(subject)
    # A style or a light is laid over things of every noun, so there the prompts need not hold the
    # subject's.
    check_prompts(
        [plain for _, plain in pairs],
        subject.identifier,
        None if subject.kind in SCENES else subject.class_noun,
    )
    train, test = ([i.path for i in part] for part in (dataset.train, dataset.test))
    masked = subject_masks(test or train, masks, dataset.root) if masks else []
    drawn = [(asked, plain, seed) for asked, plain in pairs for seed in plan.seeds]
    images = base.generate(
        [asked for asked, _, _ in drawn],
        [seed for _, _, seed in drawn],
        **plan.sampling,
        progress=progress,
    )
    plain_prompts = [plain for _, plain, _ in drawn]
    result = score(judge, images, plain_prompts, test or train, subject.identifier, train)
    for row, (asked, _, seed) in zip(result["pictures"], drawn):
        row |= {"asked": asked, "seed": seed}
    if masked:
        to_subject = score(judge, images, plain_prompts, subject_alone(masked))
        result |= {f"{name}_subject": to_subject[name] for name in ("dino", "clip_i")}
    if masked and judge.masc:
        result["masc"] = judge.masked_likeness(masked, images)
    real = None
    if test:
        cosines = judge.identity(test) @ judge.identity(train).T
        real = finite("nearest_real", cosines.max(1).values.mean())
    return result | {
        "memorising": result["dino_train"] - result["dino"] if test else None,
        "nearest_real": real,
        "nearest": None if real is None else result["nearest_raw"] - real,
        "images": images,
        "reference": "held-out photos" if test else "training photos",
    }


def prior_similarity(judge: Judge, dataset: Dataset, images: Sequence[Picture]) -> float:
    """PRES (arXiv 2208.12242, section 4.2): mean DINO cosine over all pairs of class pictures and
    training photos.

    High when "a robot" has become the subject. Report it minus its value for the untouched base
    model, of the same prompts and seeds.
    """
    return similarity(judge.identity(images), judge.identity([i.path for i in dataset.train]))


def obedience(judge: Judge, images: Sequence[Picture], asked: Sequence[ClassPrompt]) -> float:
    """How often pictures of the class show what their prompts ask: the class, the colour, the
    place. 1 at most; the untouched base model's own value is what there was to lose.

    images: N pictures, one for each of `asked`. Each thing that a prompt asks counts once, as right
    where the judge's CLIP finds the picture nearer to its prompt than to any prompt with another
    word in that thing's place: R-precision (Xu et al. 2018, arXiv 1711.10485, section 4.1), a word
    at a time. Raises BadInput without pictures, or where their number is not that of the prompts.
    """
    if not images or len(images) != len(asked):
        raise BadInput(
            f"{len(images)} pictures of the class came with {len(asked)} prompts: give one prompt"
            " for each, and at least one."
        )
    right = []
    for row, prompt in zip(judge.clip_images(images), asked):
        for others in prompt.others.values():
            nearness = judge.clip_texts([prompt.text, *others]) @ row
            right.append(bool(nearness[0] > nearness[1:].max()))
    return sum(right) / len(right)
