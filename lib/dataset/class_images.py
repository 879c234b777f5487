"""Class images: what prior preservation holds on to, asked for in words and drawn by the untouched
base.
"""

# noqa: F401  (the measures and their judge are imported from here)

from lib.files.json_file import read_json
from lib.files.paths import ROOT

CLASS_IMAGES = 40


def class_prompts(dataset, count=CLASS_IMAGES):
    """`count` prompts for class images, without the identifier: four of the plain class, then one
    of another thing in one of `PLACES`.

    The plain class keeps the class noun what it was (Ruiz et al. 2022, section 3.2). Other things
    keep the looks of the places, which the photos' backgrounds would take over; with more of them a
    full fine-tune learns that in a place there is no subject. The class itself is shown in no
    place: that would teach places to hold the plain class. What a style or a light is laid over is
    told by the captions, so there they are the captions without it.
    """
    from lib.dataset.captions import class_caption, prompts

    subject = dataset.subject
    if subject.kind in ("style", "lighting"):
        texts = sorted({class_caption(subject, item.caption) for item in dataset.train})
    else:
        plain, others = (
            prompts(subject, with_identifier=False),
            [noun for noun in CLASSES if noun != subject.class_noun],
        )
        elsewhere = [
            f"a {others[i % len(others)]} {PLACES[i % len(PLACES)]}"
            for i in range(len(PLACES) * len(others))
        ]
        texts = [text for other in elsewhere for text in (plain,) * 4 + (other,)]
    return [texts[i % len(texts)] for i in range(count)]


def draw_class_images(base, dataset, count=CLASS_IMAGES, seed=0, progress=None, **sampling):
    """Let the untouched base model draw the class images of a data set, and add them to it. Returns
    the new `Dataset`.

    They have the sizes of the photos, in proportion, since both train in one batch. `progress(done,
    total)` is called after each batch; `sampling` (steps, guidance) goes to `Base.generate`.
    """
    from lib.dataset.imagefolder import add_class_images

    texts, seeds, images = (
        class_prompts(dataset, count),
        [10_000 + seed * count + i for i in range(count)],
        [],
    )
    wanted = dataset.sizes
    sizes = [wanted[i * len(wanted) // count] for i in range(count)]
    for size in dict.fromkeys(sizes):
        start, end = len(images), len(images) + sizes.count(size)
        tell = progress and (lambda done, _, start=start: progress(start + done, count))
        images += base.generate(
            texts[start:end], seeds[start:end], progress=tell, size=size, **sampling
        )
    return add_class_images(dataset, images, texts)


WORLD = read_json(ROOT / "data" / "prompts" / "world.json")  # what the pocket base learnt to draw


CLASSES, PLACES = tuple(WORLD["classes"]), tuple(WORLD["places"])
