"""Class images: what prior preservation holds on to.

They are asked for in words and drawn by the untouched base.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lib.dataset.captions import class_caption, prompts
from lib.dataset.imagefolder import Dataset, add_class_images
from lib.files import ROOT, read_json

if TYPE_CHECKING:
    from lib.models import Base

CLASS_IMAGES = 40

# What the pocket base learnt to draw: nouns, and places such as "in the snow".
WORLD = read_json(ROOT / "data" / "prompts" / "world.json")
CLASSES, PLACES = tuple(WORLD["classes"]), tuple(WORLD["places"])


def class_prompts(dataset: Dataset, count: int = CLASS_IMAGES) -> list[str]:
    """`count` prompts for class images, without the identifier.

    Four of the plain class, then one of another thing in one of `PLACES`, and again. The plain
    class keeps the class noun what it was (Ruiz et al. 2022, section 3.2). Other things keep the
    looks of the places, which the photos' backgrounds would take over; with more of them a full
    fine-tune learns that in a place there is no subject. The class itself is shown in no place:
    that would teach places to hold the plain class. What a style or a light is laid over is said by
    the captions, so there they are the captions without it.
    """
    subject = dataset.subject
    if subject.kind in ("style", "lighting"):
        texts = sorted({class_caption(subject, item.caption) for item in dataset.train})
    else:
        plain = prompts(subject, with_identifier=False)
        others = [noun for noun in CLASSES if noun != subject.class_noun]
        texts = []
        for i in range(len(PLACES) * len(others)):
            texts += [plain] * 4 + [f"a {others[i % len(others)]} {PLACES[i % len(PLACES)]}"]
    return [texts[i % len(texts)] for i in range(count)]


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
