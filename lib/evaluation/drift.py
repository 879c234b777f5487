"""What training changed, read off the denoiser's predictions on fixed noise: no picture is drawn,
so it takes a fraction of a second.

The training loss hides what is learnt, because noise and timestep are drawn anew for every step; on
a set of them that stays the same the loss falls visibly (Voronov et al. 2023, arXiv 2302.04841).
The same set tells how far the class prior has moved: by how much the predictions on class pictures
differ from the untouched base model's, which are cached beforehand, so that it works for both
methods.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import ImageOps
from torch.utils._pytree import tree_map

from lib.dataset.photo_file import upright
from lib.evaluation.fidelity import finite
from lib.evaluation.judge import Picture
from lib.files import BadInput
from lib.models.base import LARGEST_BATCH, Base, evaluation_mode
from lib.step.loss import at_steps, diffusion_loss


@dataclass(frozen=True)
class FixedNoise:
    """M noised pictures: `latents` and `noise` [M, C, h, w], `timesteps` [M], `texts` (M prompts),
    in `bins` equal runs of M / bins.
    """

    latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    texts: list[str]
    bins: int


@dataclass(frozen=True)
class Predictions:
    """What the untouched base model called `name` predicts, [M, C, h, w], on `fixed`."""

    fixed: FixedNoise
    base: torch.Tensor
    name: str


def fixed_noise(
    base: Base,
    pictures: Sequence[Picture],
    texts: Sequence[str],
    bins: int = 4,
    draws: int = 2,
    seed: int = 0,
) -> FixedNoise:
    """Noise N pictures (PIL or paths, with their N prompts) once and for all: `draws` times in each
    of `bins` equal parts of the schedule.

    A picture's timesteps are stratified within each bin too. Everything random comes from `seed`.
    Of pictures that are not square the middle is taken, as the judge does. Raises BadInput without
    pictures.
    """
    if not pictures or len(pictures) != len(texts):
        raise BadInput(
            f"{len(pictures)} pictures came with {len(texts)} prompts to be noised: give one prompt"
            " for each, and at least one."
        )
    generator = torch.Generator().manual_seed(seed)
    with evaluation_mode(base):
        mean, std = base.encode_images(
            [
                ImageOps.fit(image, (min(image.size), min(image.size)))
                for image in map(upright, pictures)
            ]
        )
    n, rounds = len(pictures), bins * draws
    shape = (rounds * n, *mean.shape[1:])
    wobble, noise = (torch.randn(shape, generator=generator).to(base.device) for _ in range(2))
    strata = [
        (torch.randperm(n, generator=generator) + torch.rand(n, generator=generator)) / n
        for _ in range(rounds)
    ]
    when = torch.cat([(k // draws + part) / bins for k, part in enumerate(strata)])
    # The VAE's own noise is drawn as training draws it, once.
    latents = mean.repeat(rounds, 1, 1, 1) + std.repeat(rounds, 1, 1, 1) * wobble
    timesteps = at_steps(when, base.pipe.scheduler.config.num_train_timesteps).to(base.device)
    return FixedNoise(latents, noise, timesteps, list(texts) * rounds, bins)


def _measure(base: Base, fixed: FixedNoise, function: Callable[..., torch.Tensor]) -> torch.Tensor:
    """`function(scheduler, latents, noise, timesteps, conditions)` over `fixed` in batches, its
    results joined in order.
    """
    scheduler = base.family.training_scheduler(base.pipe.scheduler.config)
    words = sorted(set(fixed.texts))
    with evaluation_mode(base):
        conditions = base.conditions(words)  # afresh each time: a text encoder may have trained too
        found = []
        with base.autocast():  # around all batches, so that fp32 weights are cast once
            for part in torch.arange(len(fixed.texts), device=base.device).split(LARGEST_BATCH):
                chosen = [words.index(fixed.texts[k]) for k in part.tolist()]
                asked = tree_map(lambda t, chosen=chosen: t[chosen], conditions)
                latents, noise = fixed.latents[part], fixed.noise[part]
                found.append(function(scheduler, latents, noise, fixed.timesteps[part], asked))
        return torch.cat(found)


def _by_bin(what: str, values: torch.Tensor, bins: int) -> dict[str, Any]:
    """{"mean": over all, "bins": [mean of each]} of M values in `bins` equal runs; raises BadInput
    when one is no number.
    """
    parts = [finite(what, part.double().mean()) for part in values.chunk(bins)]
    return {"mean": sum(parts) / bins, "bins": parts}


def fixed_noise_loss(base: Base, fixed: FixedNoise) -> dict[str, Any]:
    """The training loss (unweighted) of a model on fixed noise: {"mean", "bins": [one a timestep
    bin, least noise first]}.

    `fixed` is made by `fixed_noise` once, for training photos or for held-out ones, and handed in
    at every step: then differences between steps and between runs are the model's alone. Raises
    BadInput when the loss is no number.
    """
    return _by_bin(
        "loss on fixed noise",
        _measure(base, fixed, lambda *inputs: diffusion_loss(base.predict, *inputs)),
        fixed.bins,
    )


def predict(base: Base, fixed: FixedNoise) -> torch.Tensor:
    """What the denoiser predicts on `fixed`, [M, C, h, w]: noise or velocity, as the model's
    scheduler says.
    """

    def function(
        scheduler: Any,
        latents: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        conditions: Any,
    ) -> torch.Tensor:
        noisy = scheduler.add_noise(latents, noise, timesteps)
        return base.predict(noisy, timesteps, conditions).float()

    return _measure(base, fixed, function)


def prediction_cache(
    base: Base,
    texts: Sequence[str],
    pictures: Sequence[Picture] | None = None,
    bins: int = 4,
    draws: int = 2,
    **sampling: Any,
) -> Predictions:
    """What the untouched `base` predicts for class pictures, to measure drift against later.

    texts: class prompts, without the identifier.
    pictures: that the base itself drew from them; without, it draws one for each now, on seeds of
    its own (3000 onwards): no run has trained on those, while the class images of a data set are
    what prior preservation trains on, and would flatter it.
    sampling: steps and guidance, as of `Base.generate`.

    Raises BadInput if `base` is being trained.
    """
    if getattr(base.denoiser, "peft_config", None) or any(
        p.requires_grad for p in base.denoiser.parameters()
    ):
        raise BadInput(
            f"The base model '{base.name}' holds an adapter or weights that train: load it afresh"
            " and keep its predictions first."
        )
    if pictures is None:
        with evaluation_mode(base):
            pictures = base.generate(texts, range(3000, 3000 + len(texts)), **sampling)
    fixed = fixed_noise(base, pictures, texts, bins, draws)
    return Predictions(fixed, predict(base, fixed), base.name)


def prediction_drift(base: Base, cache: Predictions) -> dict[str, Any]:
    """How far a tuned model has moved from the base: {"mean", "bins"}, 0 where nothing changed, for
    both methods alike.

    Mean squared difference of its predictions from the base's (`cache`) relative to the mean square
    of the base's, over all and in each timestep bin. While LoRA trains on frozen weights rounded to
    bf16, that rounding alone is 0.00006 on the pocket base; a run loaded from its folder has no
    such floor. Raises BadInput for the cache of another base model, and when the drift is no
    number.
    """
    if cache.name != base.name:
        raise BadInput(
            f"The predictions kept are those of '{cache.name}', the model is '{base.name}' tuned:"
            " keep those of its own base."
        )
    moved = (predict(base, cache.fixed) - cache.base).double().square().mean((1, 2, 3))
    size = cache.base.double().square().mean((1, 2, 3))
    change = _by_bin("drift", moved, cache.fixed.bins)
    power = _by_bin("size of the base's predictions", size, cache.fixed.bins)
    return {
        "mean": change["mean"] / power["mean"],
        "bins": [a / b for a, b in zip(change["bins"], power["bins"])],
    }
