"""Class images: what prior preservation holds on to.

They are asked for in words and drawn by the untouched base.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lib.dataset.captions import SCENES, WORLD, class_caption, prompts
from lib.dataset.imagefolder import Dataset, add_class_images

if TYPE_CHECKING:
    from lib.models import Base

CLASS_IMAGES = 40

# What the pocket base learnt to draw: nouns, and places such as "in the snow".
CLASSES, PLACES = tuple(WORLD["classes"]), tuple(WORLD["places"])

# Of these alone are class images: in the others the class is asked for afterwards, to see whether
# it is still a class (`lib.evaluation.fidelity.class_protocol`).
SHOWN = {name: tuple(words) for name, words in WORLD["class_images"].items()}


def class_prompts(dataset: Dataset, count: int = CLASS_IMAGES) -> list[str]:
    """`count` prompts for class images, without the identifier: in turn the plain class, the class
    in a colour, both in other words, and another thing in a place.

    The plain class keeps the class noun what it was (Ruiz et al. 2022, section 3.2), but only in
    the words that it is asked in: a full fine-tune on "a robot" alone keeps "a robot", and turns
    "a photo of a red robot" into the subject. As diverse as what people will ask, class images keep
    the class in words that none of them has. Other things keep the places the looks that the
    photos' backgrounds would take over; the class itself in a place would win over the subject
    there, where the photos' captions name none.
    What a style or a light is laid over is said by the captions, so there they are the captions
    without it.
    """
    subject = dataset.subject
    if subject.kind in SCENES:
        texts = sorted({class_caption(subject, item.caption) for item in dataset.train})
        return [texts[i % len(texts)] for i in range(count)]
    noun, (colours, places) = subject.class_noun, SHOWN.values()
    others = [other for other in CLASSES if other != noun]
    texts = []
    for k in range(-(-count // 5)):
        colour, place = colours[k % len(colours)], places[k % len(places)]
        texts += [
            prompts(subject, with_identifier=False),
            f"{colour} {noun}",
            f"a picture of a {noun}",
            f"a picture of {colour} {noun}",
            f"a {others[k % len(others)]} {place}",
        ]
    return texts[:count]


def draw_class_images(
    base: "Base",
    dataset: Dataset,
    count: int = CLASS_IMAGES,
    seed: int = 0,
    progress: Callable[[int, int], Any] | None = None,
    **sampling: Any,
) -> Dataset:
    """Let the untouched base model draw the class images of a data set: the new `Dataset`.

    They have the sizes of the photos, in proportion, since both train in one batch. `progress(done,
    total)` is called after each batch; `sampling` (steps, guidance) goes to `Base.generate`.
    """
    texts = class_prompts(dataset, count)
    seeds = [10_000 + seed * count + i for i in range(count)]
    photo_sizes = dataset.sizes
    sizes = [photo_sizes[i * len(photo_sizes) // count] for i in range(count)]
    images = []
    for size in dict.fromkeys(sizes):
        start, end = len(images), len(images) + sizes.count(size)
        tell = progress and (lambda done, _, start=start: progress(start + done, count))
        images += base.generate(
            texts[start:end], seeds[start:end], progress=tell, size=size, **sampling
        )
    return add_class_images(dataset, images, texts)
