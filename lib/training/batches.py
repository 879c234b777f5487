"""What the training steps are fed: latents and conditions, encoded once, and which pictures, noise
and timesteps each step takes.

A batch is of one size, so that it is one tensor: photos of one bucket
(`lib/config/picture_sizes.py`), and class images of the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_map

from lib.config import Settings, bucket
from lib.dataset.captions import class_caption
from lib.dataset.imagefolder import Dataset, Item
from lib.dataset.photo_file import upright
from lib.files import BadInput
from lib.models import Base
from lib.step.loss import at_steps
from lib.step.training_step import StepInputs


class Cached(NamedTuple):
    """The latents and conditions of some items, encoded once.

    - means, deviations: of each item's posterior, [1, C, h, w]
    - conditions: tensors by name, a row for each distinct text and size
    - rows: [items], each item's row in the conditions
    """

    means: list[torch.Tensor]
    deviations: list[torch.Tensor]
    conditions: Any
    rows: torch.Tensor


class Draw(NamedTuple):
    """What chance decides of one batch of B pictures.

    - indices: of each source the pictures that the batch takes of it
    - posterior_noise, noise: [B, C, h, w], for the VAE's posterior and for diffusion
    - moments: [B] in [0, 1], which become timesteps
    """

    indices: list[torch.Tensor]
    posterior_noise: torch.Tensor
    noise: torch.Tensor
    moments: torch.Tensor


def prior_items(settings: Settings, dataset: Dataset) -> list[Item]:
    """The pictures of prior preservation: class images.

    For a teacher, the photos under captions without the identifier; for an anchor, none.
    """
    if not settings.prior_pictures:
        return []
    if settings.prior == "images":
        return dataset.class_images
    return [
        replace(item, caption=class_caption(dataset.subject, item.caption))
        for item in dataset.train
    ]


def repeated(items: Sequence[Item]) -> list[Item]:
    """Each of the items as often as its `repeats` say."""
    return [item for item in items for _ in range(item.repeats)]


def cache_latents(base: Base, items: Sequence[Item], encoded: bool = True) -> Cached:
    """Latents and conditions of a list of items, encoded once, also where one comes repeatedly.

    With encoded=False the captions stay token ids, for text encoders that train (see
    `Base.conditions`). Raises BadInput for a picture of which the VAE makes no finite latent.
    """
    listed, items = items, list(dict.fromkeys(items))
    images = [upright(item.path) for item in items]
    means: list[Any] = [None] * len(items)
    deviations: list[Any] = [None] * len(items)
    for size in dict.fromkeys(image.size for image in images):
        places = [k for k, image in enumerate(images) if image.size == size]
        encoded_images = base.encode_images([images[k] for k in places])
        for found, target in zip(encoded_images, (means, deviations)):
            for k, one in zip(places, found.split(1)):
                target[k] = one
    for item, mean in zip(items, means):
        if not mean.isfinite().all():
            raise BadInput(
                f"The VAE of '{base.name}' makes no finite latent of {item.path}: take that picture"
                " out, or repair the base."
            )
    said = []
    for item, image in zip(items, images):
        width, height = bucket(image.size, base.resolution)
        # What SDXL is told: the photo's size and its crop's corner, and the size that is drawn.
        told = *(item.shown or (image.height, image.width, 0, 0)), height, width
        said.append((item.caption, told))
    distinct = sorted(set(said))
    conditions = base.conditions(
        [text for text, _ in distinct], [size for _, size in distinct], encoded
    )
    places = {item: place for place, item in enumerate(items)}
    order = [places[item] for item in listed]
    rows = torch.tensor([distinct.index(said[k]) for k in order], device=base.device)
    return Cached([means[k] for k in order], [deviations[k] for k in order], conditions, rows)


def gather(base: Base, sources: Sequence[Cached], draw: Draw, train_steps: int) -> StepInputs:
    """The batch of a `Draw` on the device, as a step takes it, instance images first."""
    pinned = base.device.type == "cuda"  # from pinned memory the copy waits for nothing

    def on_device(tensor):
        return tensor.pin_memory().to(base.device, non_blocking=True) if pinned else tensor

    indices, posterior_noise, noise, moments = tree_map(on_device, draw)
    chosen = [(source, i) for source, some in zip(sources, draw.indices) for i in some.tolist()]
    mean = torch.cat([source.means[i] for source, i in chosen])
    deviation = torch.cat([source.deviations[i] for source, i in chosen])
    conditions = [
        tree_map(lambda t, at=source.rows[row]: t[at], source.conditions)
        for source, row in zip(sources, indices)
    ]
    return StepInputs(
        latents=mean + deviation * posterior_noise,
        noise=noise,
        timesteps=at_steps(moments, train_steps),
        conditions=tree_map(lambda *parts: torch.cat(parts), *conditions),
    )


def batches(settings: Settings, shapes: Sequence[Sequence[Sequence[int]]]) -> Iterator[Draw]:
    """Endless draws, all from the seed alone.

    `shapes`: for each source the latent shape [C, h, w] of every picture. A batch takes the first
    source's next picture and the next ones of its shape, from all sources. Each source's pictures
    pass in a fresh order, none of a shape again before all of that shape have passed, and each as
    often as any other; timesteps are stratified over the batch, which lowers the variance of the
    loss (Kingma et al. 2021, arXiv 2107.00630, appendix I.1).
    """
    generator = torch.Generator().manual_seed(settings.seed)
    size = settings.batch_size
    queues = [[] for _ in shapes]
    while True:
        indices, shape = [], ()
        for queue, of in zip(queues, shapes):
            some = []
            while len(some) < size:
                match = next((i for i in queue if shape in ((), of[i])), None)
                if match is None:
                    queue += torch.randperm(len(of), generator=generator).tolist()
                else:
                    queue.remove(match)
                    some.append(match)
                    shape = of[match]
            indices.append(torch.tensor(some))
        noised = (size * len(shapes), *shape)
        strata = [
            (torch.randperm(size, generator=generator) + torch.rand(size, generator=generator))
            / size
            for _ in shapes
        ]
        yield Draw(
            indices,
            torch.randn(noised, generator=generator),
            torch.randn(noised, generator=generator),
            torch.cat(strata),
        )
