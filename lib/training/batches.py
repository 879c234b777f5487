"""What the training steps are fed: latents and conditions, encoded once, and which pictures, noise
and timesteps each step takes.

A batch is of one size, so that it is one tensor: photos of one bucket
(`lib/config/picture_sizes.py`), and class images of the same.
"""

import torch
from torch.utils._pytree import tree_map

from lib.config.picture_sizes import bucket
from lib.dataset.photo_file import upright
from lib.files.errors import BadInput
from lib.step.loss import at_steps


def cache_latents(base, items, encoded=True):
    """Latents and conditions of a list of items, encoded once: (means, deviations, conditions,
    index of each item's row in them).

    Means and deviations are lists of [1, C, h, w], one an item. With encoded=False the captions
    stay token ids, for text encoders that train (see `Base.conditions`).
    """
    images = [upright(item.path) for item in items]
    mean, std, said = [None] * len(items), [None] * len(items), []
    for size in dict.fromkeys(image.size for image in images):
        where = [k for k, image in enumerate(images) if image.size == size]
        for found, into in zip(base.encode_images([images[k] for k in where]), (mean, std)):
            for k, one in zip(where, found.split(1)):
                into[k] = one
    for item, image, latent in zip(items, images, mean):
        if not latent.isfinite().all():
            raise BadInput(
                f"The VAE of '{base.name}' makes no finite latent of {item.path}: take that picture"
                " out, or repair the base."
            )
        width, height = bucket(image.size, base.resolution)
        said.append(
            (item.caption, (*(item.shown or (image.height, image.width, 0, 0)), height, width))
        )
    rows = sorted(set(said))
    conditions = base.conditions([text for text, _ in rows], [size for _, size in rows], encoded)
    return (
        mean,
        std,
        conditions,
        torch.tensor([rows.index(one) for one in said], device=base.device),
    )


def gather(base, sources, batch, train_steps):
    """A batch of `batches` on the device, as a step takes it: (latents, noise, timesteps,
    conditions), instance images first.
    """
    pinned = base.device.type == "cuda"  # from pinned memory the copy waits for nothing
    *rows, wobble, noise, when = (
        t.pin_memory().to(base.device, non_blocking=True) if pinned else t
        for t in (*batch[0], *batch[1:])
    )
    mean, std = (
        torch.cat([s[k][i] for s, some in zip(sources, batch[0]) for i in some.tolist()])
        for k in (0, 1)
    )
    told = [tree_map(lambda t, at=s[3][c]: t[at], s[2]) for s, c in zip(sources, rows)]
    return (
        mean + std * wobble,
        noise,
        at_steps(when, train_steps),
        tree_map(lambda *parts: torch.cat(parts), *told),
    )


def batches(settings, shapes):
    """Endless (indices per source, posterior noise, diffusion noise, timesteps in [0, 1]), all from
    the seed alone.

    `shapes`: for each source the latent shape of every picture. A batch takes the first source's
    next picture and the next ones of its shape, from all sources. Each source's pictures pass in a
    fresh order, none of a shape again before all of that shape have passed, and each as often as
    any other; timesteps are stratified over the batch, which lowers the variance of the loss
    (Kingma et al. 2021, appendix I.1).
    """
    generator, size = torch.Generator().manual_seed(settings.seed), settings.batch_size
    waiting = [[] for _ in shapes]
    while True:
        chosen, shape = [], None
        for queue, of in zip(waiting, shapes):
            some = []
            while len(some) < size:
                fits = next((i for i in queue if shape in (None, of[i])), None)
                if fits is None:
                    queue += torch.randperm(len(of), generator=generator).tolist()
                else:
                    queue.remove(fits)
                    some.append(fits)
                    shape = of[fits]
            chosen.append(torch.tensor(some))
        noised = (size * len(shapes), *shape)
        strata = [
            (torch.randperm(size, generator=generator) + torch.rand(size, generator=generator))
            / size
            for _ in shapes
        ]
        yield (
            chosen,
            torch.randn(noised, generator=generator),
            torch.randn(noised, generator=generator),
            torch.cat(strata),
        )
