"""What the judge measures: does it look like the subject, and does it show what the prompt asks?

The measures follow DreamBooth (Ruiz et al., arXiv 2208.12242, section 4). Cosines are plain: never
x 100, never x 2.5. A score that is not a number is an error, never part of an average. DINO's score
explains about a tenth of the variance of people's judgement: look at the pictures too.
"""

import re
from collections import defaultdict

import numpy as np
from PIL import Image

from lib.dataset.class_images import PLACES
from lib.dataset.photo_file import upright
from lib.evaluation.judge import (
    Judge,  # noqa: F401  (the measures and their judge are imported from here)
)
from lib.files.errors import BadInput
from lib.files.json_file import read_json
from lib.files.paths import ROOT


def course_prompts(subject, base):
    """The short list of evaluation prompts for `subject` on `base`: pairs (with the identifier,
    with the class noun only).
    """

    return protocol(subject, base, "course")


GREY = (127, 127, 127)  # stands in for the background of a masked photo


def similarity(made, real):
    """Mean cosine over all pairs of two sets of unit rows, [N, D] and [M, D]: DINO and CLIP-I
    (arXiv 2208.12242, section 4.1).
    """
    return finite("similarity", (made @ real.T).mean())


def similarity_within(rows):
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


def finite(what, value):
    """`value` as a float; raises BadInput when it is not a finite number."""
    value = float(value)
    if not np.isfinite(value):
        raise BadInput(
            f"The {what} came out as {value}: a picture or a run is damaged; make it again, for it"
            " will not be averaged away."
        )
    return value


def check_prompts(prompts, identifier=None, class_noun=None):
    """Raise BadInput unless every prompt asks CLIP for what CLIP can know: the class noun, and
    never the identifier.
    """
    for prompt in prompts:
        if identifier and re.search(rf"\b{re.escape(identifier)}\b", prompt, re.IGNORECASE):
            raise BadInput(
                f"The prompt {prompt!r} holds the identifier {identifier!r}, which CLIP has never"
                " read: score with the class noun only."
            )
        if class_noun and not re.search(rf"\b{re.escape(class_noun)}", prompt, re.IGNORECASE):
            raise BadInput(
                f"The prompt {prompt!r} does not name the class noun {class_noun!r}, so that its"
                " text score would not ask for the subject: write the noun into it."
            )


def score(judge, pictures, prompts, real, identifier=None, train=()):
    """Score N pictures, made from N prompts (class noun only, one a picture), against M real
    photos.

    Returns, each averaged per prompt and then over prompts (arXiv 2208.12242, section 4.1): dino,
    clip_i: mean cosine of a picture with all M photos. clip_t: plain cosine of a picture and its
    prompt. diversity: mean of 1 - cosine of CLIP between pictures of one prompt, which stands in
    for DreamBooth's DIV; lpips: that itself, None where `judge.lpips` cannot be had. consistency:
    standard deviation of dino (n - 1 in the denominator) between pictures of one prompt, so over
    seeds; smaller is more consistent. All three are None with one picture a prompt. Where `train`,
    the photos trained on, is given too: dino_train and clip_i_train, the same against these, and
    nearest_raw, a picture's largest DINO cosine to any one of them. pictures: a dict for each
    picture with its prompt and scores; nearest_photo is the index in `train` of the photo it comes
    nearest to. Raises BadInput for lists that do not match, for prompts with the identifier and for
    scores that are no numbers.
    """
    if len(pictures) != len(prompts) or not pictures or not real:
        raise BadInput(
            f"{len(pictures)} pictures, {len(prompts)} prompts, {len(real)} real photos: "
            "give one prompt a picture and at least one of each."
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
    rows = [
        {"prompt": p} | {name: finite(name, column[i]) for name, column in columns.items()}
        for i, p in enumerate(prompts)
    ]
    if train:
        rows = [row | {"nearest_photo": int(k)} for row, k in zip(rows, known.argmax(1))]
    groups = defaultdict(list)
    for i, p in enumerate(prompts):
        groups[p].append(i)
    means = {
        name: float(np.mean([np.mean([rows[i][name] for i in g]) for g in groups.values()]))
        for name in columns
    }
    several = [g for g in groups.values() if len(g) > 1]
    spread = [1 - similarity_within(clip[g]) for g in several]
    lpips = judge.lpips[0] if several else None
    distance = (
        [finite("lpips", lpips([pictures[i] for i in g])) for g in several] if lpips else None
    )
    wobble = [np.std([rows[i]["dino"] for i in g], ddof=1) for g in several]
    return means | {
        "diversity": float(np.mean(spread)) if several else None,
        "lpips": float(np.mean(distance)) if distance else None,
        "consistency": float(np.mean(wobble)) if several else None,
        "pictures": rows,
    }


def subject_alone(photos, masks, root):
    """Each of `photos` (paths in the folder `root`) with everything but its subject painted a
    neutral grey: RGB PIL pictures.

    `masks` holds a mask (PIL or path) by the photo's name in `root`, such as "test/000.png": of the
    photo's size, white on the subject, black elsewhere. Raises BadInput for a mask that is missing,
    of another size or empty.
    """
    alone = []
    for photo in photos:
        name, picture = photo.relative_to(root).as_posix(), upright(photo)
        if name not in masks:
            raise BadInput(
                f"There is no mask for {name}: give one for every photo that is scored against, or"
                " no masks."
            )
        mask = upright(masks[name]).convert("L").point(lambda value: 255 * (value > 127))
        if mask.size != picture.size:
            raise BadInput(
                f"The mask of {name} is {mask.width} x {mask.height} pixels and the photo"
                f" {picture.width} x {picture.height}: cut both alike."
            )
        if not mask.getbbox():
            raise BadInput(f"The mask of {name} is black all over: paint the subject white.")
        alone.append(Image.composite(picture, Image.new("RGB", picture.size, GREY), mask))
    return alone


def real_row(judge, dataset, masks=None):
    """The ceiling: the real photos scored as if a model had made them.

    With held-out photos: training photos against them (no photo meets itself); otherwise training
    photos among themselves, without self-pairs. clip_t, diversity and consistency are None: nobody
    prompted for the photos. nearest is 0 by its definition. With `masks` (see `evaluate`) also
    dino_subject and clip_i_subject; None without held-out photos.
    """
    train, test = ([i.path for i in part] for part in (dataset.train, dataset.test))
    row = {
        "clip_t": None,
        "diversity": None,
        "consistency": None,
        "memorising": None,
        "nearest": 0.0 if test else None,
    }
    alone = subject_alone(test, masks, dataset.root) if masks and test else None
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
    return row


def evaluation_prompts(subject, places=PLACES):
    """Pairs (prompt with the identifier, the same with the class noun only), one a place."""
    from lib.dataset.captions import prompts

    return [
        (prompts(subject, place), prompts(subject, place, with_identifier=False))
        for place in places
    ]


def evaluate(
    base,
    dataset,
    judge,
    prompts=None,
    seeds=(1000, 1001),
    steps=25,
    guidance=4.0,
    progress=None,
    masks=None,
):
    """Make every prompt with every seed and score the pictures against held-out photos (training
    photos if none were held out).

    `base` is a base model, tuned or not; `prompts` are pairs as of `evaluation_prompts`. Returns
    `score`'s dict with also memorising: dino_train - dino, what is known of the photos trained on
    and not of the subject; nearest_real: the largest DINO cosine of a held-out photo to any one
    training photo, mean over held-out photos; nearest: nearest_raw - nearest_real, above 0 where
    pictures lie nearer to a training photo than another true picture of the subject does. These
    three are None without held-out photos. Also "reference", and "images" (PIL, one for each of
    "pictures").

    With `masks` (see `subject_alone`) also dino_subject and clip_i_subject: the pictures as they
    are against the photos' subjects alone, on grey. Nobody has masks of pictures just made, and
    there is no segmenter here, so only the photos are masked: a picture gets no credit for the
    photos' background, but still pays for its own. Compare these scores between methods, never with
    dino. Raises BadInput before anything is made if a prompt or a mask does not fit.
    """
    subject, pairs = dataset.subject, prompts or evaluation_prompts(dataset.subject)
    # A style or a light is laid over things of every noun, so there the prompts need not hold the
    # subject's.
    check_prompts(
        [plain for _, plain in pairs],
        subject.identifier,
        None if subject.kind in ("style", "lighting") else subject.class_noun,
    )
    train, test = ([i.path for i in part] for part in (dataset.train, dataset.test))
    alone = subject_alone(test or train, masks, dataset.root) if masks else None
    pairs = [(asked, plain, seed) for asked, plain in pairs for seed in seeds]
    images = base.generate(
        [p[0] for p in pairs],
        [p[2] for p in pairs],
        steps=steps,
        guidance=guidance,
        progress=progress,
    )
    plain = [p[1] for p in pairs]
    result = score(judge, images, plain, test or train, subject.identifier, train)
    for row, (asked, _, seed) in zip(result["pictures"], pairs):
        row |= {"asked": asked, "seed": seed}
    if alone:
        masked = score(judge, images, plain, alone)
        result |= {f"{name}_subject": masked[name] for name in ("dino", "clip_i")}
    real = (
        finite(
            "nearest_real", (judge.identity(test) @ judge.identity(train).T).max(1).values.mean()
        )
        if test
        else None
    )
    return result | {
        "memorising": result["dino_train"] - result["dino"] if test else None,
        "nearest_real": real,
        "nearest": result["nearest_raw"] - real if test else None,
        "images": images,
        "reference": "held-out photos" if test else "training photos",
    }


def prior_similarity(base, dataset, judge, class_prompt, seeds, **sampling):
    """PRES (arXiv 2208.12242, section 4.2): mean DINO cosine over all pairs of class pictures made
    now and training photos.

    High when "a robot" has become the subject. Report it minus its value for the untouched base
    model.
    """
    images = base.generate([class_prompt] * len(seeds), list(seeds), **sampling)
    return similarity(judge.identity(images), judge.identity([i.path for i in dataset.train]))


PROMPTS = ROOT / "data" / "prompts"


def protocol(subject, base, which="full"):
    """The evaluation prompts for `subject` on `base` in data/prompts: pairs (with the identifier,
    with the class noun only).

    `which`: "full", 25 in the shape of DreamBooth's protocol, or "course", 8 of new places.
    """
    listed = read_json(
        PROMPTS / ("pocket.json" if base.resolution == 64 else "stable-diffusion.json")
    )["kinds"][subject.kind]
    if which not in listed:
        raise BadInput(f"There is no list of prompts '{which}': choose one of {', '.join(listed)}.")
    words = {"identifier": subject.identifier, "class_noun": subject.class_noun}
    return [(p["prompt"].format(**words), p["class_prompt"].format(**words)) for p in listed[which]]
