"""What the judge measures: does it look like the subject, and does it show what the prompt asks?

The measures follow DreamBooth (Ruiz et al., arXiv 2208.12242, section 4). Cosines are plain: never x 100, never x 2.5. A score that
is not a number is an error, never part of an average. DINO's score explains about a tenth of the variance of people's judgement:
look at the pictures too.
"""

from collections import defaultdict

import numpy as np

from .judge import Judge, load_identity, load_judge  # noqa: F401  (the measures and their judge are imported from here)
from .pocket.places import PHRASES
from .settings import BadInput

PLACES = tuple(PHRASES.values())


def similarity(made, real):
    """Mean cosine over all pairs of two sets of unit rows, [N, D] and [M, D]: DINO and CLIP-I (arXiv 2208.12242, section 4.1)."""
    return finite("similarity", (made @ real.T).mean())


def similarity_within(rows):
    """Mean cosine over the pairs of *different* pictures of one set [N, D], N >= 2.

    Without self-pairs: with them, DreamBooth's real photos score .76 instead of .703, which is how two papers disagree.
    """
    n = len(rows)
    if n < 2:
        raise BadInput(f"Real photos are compared with each other and there is only {n}: give at least two.")
    cosine = rows @ rows.T
    return finite("similarity", (cosine.sum() - cosine.diagonal().sum()) / (n * (n - 1)))


def finite(what, value):
    """`value` as a float; raises BadInput when it is not a finite number."""
    value = float(value)
    if not np.isfinite(value):
        raise BadInput(f"The {what} came out as {value}: a picture or a run is damaged; make it again, for it will not be averaged away.")
    return value


def score(judge, pictures, prompts, real, identifier=None):
    """Score N pictures, made from N prompts (class noun only, one a picture), against M real photos.

    Returns {"dino", "clip_i", "clip_t", "diversity", "pictures": N rows}. dino and clip_i: mean cosine with all M photos; clip_t:
    cosine of picture and its prompt; each averaged per prompt, then over prompts. diversity: mean of 1 - cosine of CLIP between
    pictures of one prompt, a stand-in for DreamBooth's DIV, whose LPIPS needs weights of its own; None for one picture a prompt.
    Raises BadInput for lists that do not match, for prompts with the identifier (noise to CLIP) and for scores that are no numbers.
    """
    if len(pictures) != len(prompts) or not pictures or not real:
        raise BadInput(f"{len(pictures)} pictures, {len(prompts)} prompts, {len(real)} real photos: "
                       "give one prompt a picture and at least one of each.")
    told = next((p for p in prompts if identifier and identifier in p.split()), None)
    if told:
        raise BadInput(f"The prompt {told!r} holds the identifier {identifier!r}, which CLIP has never read: "
                       "score with the class noun only.")
    clip = judge.clip_images(pictures)
    columns = {"dino": (judge.identity(pictures) @ judge.identity(real).T).mean(1), "clip_i": (clip @ judge.clip_images(real).T).mean(1),
               "clip_t": (clip * judge.clip_texts(prompts)).sum(1)}
    rows = [{"prompt": p} | {name: finite(name, column[i]) for name, column in columns.items()} for i, p in enumerate(prompts)]
    groups = defaultdict(list)
    for i, p in enumerate(prompts):
        groups[p].append(i)
    means = {name: float(np.mean([np.mean([rows[i][name] for i in g]) for g in groups.values()])) for name in columns}
    spread = [1 - similarity_within(clip[g]) for g in groups.values() if len(g) > 1]
    return means | {"diversity": float(np.mean(spread)) if spread else None, "pictures": rows}


def real_row(judge, dataset):
    """The ceiling: the real photos scored as if a model had made them.

    With held-out photos: training photos against them (no photo meets itself); otherwise training photos among themselves,
    without self-pairs. clip_t and diversity are None: nobody prompted for the photos.
    """
    train, test = ([i.path for i in part] for part in (dataset.train, dataset.test))
    row = {"clip_t": None, "diversity": None, "memorising": None}
    for name, encode in (("dino", judge.identity), ("clip_i", judge.clip_images)):
        within = similarity_within(encode(train)) if len(train) > 1 else None
        row |= {name: similarity(encode(train), encode(test)) if test else similarity_within(encode(train)), f"{name}_train": within}
    return row


def evaluation_prompts(subject, places=PLACES):
    """Pairs (prompt with the identifier, the same with the class noun only), one a place."""
    from .photos import prompts

    return [(prompts(subject, place), prompts(subject, place, with_identifier=False)) for place in places]


def evaluate(base, dataset, judge, prompts=None, seeds=(1000, 1001), steps=25, guidance=4.0, progress=None):
    """Make every prompt with every seed and score the pictures against held-out photos (training photos if none were held out).

    `base` is a base model, tuned or not; `prompts` are pairs as of `evaluation_prompts`. Returns `score`'s dict with also
    "dino_train" and "clip_i_train" (against training photos), "memorising" (dino_train - dino: what is known of the photos trained on
    and not of the subject; None without held-out photos), "reference", "images" (PIL, one for each of "pictures").
    """
    pairs = [(asked, plain, seed) for asked, plain in (prompts or evaluation_prompts(dataset.subject)) for seed in seeds]
    images = base.generate([p[0] for p in pairs], [p[2] for p in pairs], steps=steps, guidance=guidance, progress=progress)
    train, test = ([i.path for i in part] for part in (dataset.train, dataset.test))
    result = score(judge, images, [p[1] for p in pairs], test or train, dataset.subject.identifier)
    for row, (asked, _, seed) in zip(result["pictures"], pairs):
        row |= {"asked": asked, "seed": seed}
    result["dino_train"] = similarity(judge.identity(images), judge.identity(train))
    result["clip_i_train"] = similarity(judge.clip_images(images), judge.clip_images(train))
    return result | {"memorising": result["dino_train"] - result["dino"] if test else None, "images": images,
                     "reference": "held-out photos" if test else "training photos"}


def prior_similarity(base, dataset, judge, class_prompt, seeds, **sampling):
    """PRES (arXiv 2208.12242, section 4.2): mean DINO cosine of class pictures made now with the training photos.

    High when "a robot" has become the subject. Report it minus its value for the untouched base model.
    """
    images = base.generate([class_prompt] * len(seeds), list(seeds), **sampling)
    return similarity(judge.identity(images), judge.identity([i.path for i in dataset.train]))


def read_scene(judge, pictures):
    """What the judge's CLIP sees in each picture: dicts {"class", "color", "place", "sure"}, zero-shot over the world's prompts.

    All class x color x place prompts compete; each attribute is the one with the largest share, "sure" the smallest of the three.
    """
    from .pocket.objects import CLASSES
    from .pocket.world import COLORS, PHRASES, prompt

    names = list(CLASSES), list(COLORS), list(PHRASES)
    texts = judge.clip_texts([prompt(kind, color, place) for kind in names[0] for color in names[1] for place in names[2]])
    scale = judge.clip_images.model.logit_scale.exp().item()
    share = (scale * judge.clip_images(pictures) @ texts.T).softmax(1).reshape(-1, *map(len, names))
    best = [share.sum([d for d in (1, 2, 3) if d != axis]).max(1) for axis in (1, 2, 3)]
    return [{key: names[a][int(best[a].indices[i])] for a, key in enumerate(("class", "color", "place"))} |
            {"sure": min(float(b.values[i]) for b in best)} for i in range(len(pictures))]
