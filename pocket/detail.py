"""Whether samples look like the world's own drawings, by measures that see detail: a reader of
parts, and a judge that learns to tell.

The reader is a small network that learns from drawings what captions leave out (eyes, pattern,
accessory, proportions, colours). Its features give the Frechet distance (Heusel et al. 2017, arXiv
1706.08500) and the kernel distance KID (Binkowski et al. 2018, arXiv 1801.01401); its confidence
says whether parts can still be read. The discriminator is trained afresh on drawings against
samples.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .objects import ACCESSORIES, CLASSES
from .pen import PATTERNS
from .vae import to_pictures, to_tensor
from .world import EYES, Scene

SEEING = ("robot", "cat", "bird", "fish", "mushroom")  # the classes that are drawn with eyes
PARTS: dict[str, tuple[str, ...]] = {
    "class": tuple(CLASSES),
    "eyes": EYES,
    "pattern": PATTERNS,
    "accessory": ("none", *ACCESSORIES),
    "facing": ("right", "left"),
}
NUMBERS = 12  # main, second and accessory colour, the two proportions and the stretch


def parts_of(scene: Scene) -> tuple[int, ...]:
    """A scene's parts as indices in the order of `PARTS`, -1 where there is nothing to see."""
    one = scene.identity
    return (
        PARTS["class"].index(one.kind),
        EYES.index(one.eyes) if one.kind in SEEING else -1,
        PATTERNS.index(one.pattern),
        PARTS["accessory"].index(one.accessory or "none"),
        int(scene.flip),
    )


def numbers_of(scene: Scene) -> tuple[float, ...]:
    """A scene's colours and proportions as `NUMBERS` numbers in about [-1, 1]; the accessory's
    colour is 0 without one.
    """
    one = scene.identity
    accessory = one.accessory_color if one.accessory else (127.5,) * 3
    colors = [c / 127.5 - 1 for c in (*one.main, *one.second, *accessory)]
    return (*colors, 2 * one.a - 1, 2 * one.b - 1, 8 * (one.stretch - 1))


def _block(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1), nn.GroupNorm(8, after), nn.SiLU())


class Trunk(nn.Module):
    """Convolutions from pictures [B, inputs, H, W] to features at four scales.

    The first is not normalised: how much grain there is must stay to be seen.
    """

    def __init__(self, width: int = 24, inputs: int = 3) -> None:
        super().__init__()
        w = width
        self.first = nn.Sequential(nn.Conv2d(inputs, w, 3, 1, 1), nn.SiLU())
        self.fine = nn.Sequential(_block(w, 2 * w, 2), _block(2 * w, 2 * w))
        self.middle = nn.Sequential(_block(2 * w, 3 * w, 2), _block(3 * w, 3 * w))
        self.coarse = nn.Sequential(_block(3 * w, 6 * w, 2), _block(6 * w, 6 * w))
        self.features = 2 * (1 + 2 + 3 + 6) * w

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mean and maximum over places of all four scales: [B, features]."""
        maps = [x]
        for part in (self.first, self.fine, self.middle, self.coarse):
            maps.append(part(maps[-1]))
        pooled = [(m.mean((2, 3)), m.amax((2, 3))) for m in maps[1:]]
        return torch.cat([p for pair in pooled for p in pair], 1)


class Reader(nn.Module):
    """Reads `PARTS` and `NUMBERS` off pictures."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.trunk = Trunk(width)
        self.mix = nn.Sequential(nn.Linear(self.trunk.features, 256), nn.SiLU())
        self.heads = nn.ModuleList(nn.Linear(256, len(names)) for names in PARTS.values())
        self.numbers = nn.Linear(256, NUMBERS)

    def forward(self, x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Logits of each part, then the numbers [B, NUMBERS]."""
        mixed = self.mix(self.trunk(x))
        return [head(mixed) for head in self.heads], self.numbers(mixed)


def train_reader(
    pictures: np.ndarray,
    scenes: Sequence[Scene],
    steps: int = 2500,
    batch: int = 64,
    width: int = 24,
    seed: int = 5,
    peak: float = 2e-3,
) -> Reader:
    """A `Reader` trained on drawings, uint8 [N, H, W, 3], and their scenes; it ends on the CPU."""
    torch.manual_seed(seed)
    device = best_device()
    reader = Reader(width).to(device)
    parts = torch.tensor([parts_of(s) for s in scenes], device=device)
    numbers = torch.tensor([numbers_of(s) for s in scenes], device=device)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=peak, weight_decay=1e-2)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1, (step + 1) / 50, (steps - step) / (0.5 * steps))
        chosen = torch.randint(len(pictures), (batch,))
        said, guessed = reader(_shaken(to_tensor(pictures[chosen.numpy()], device)))
        wanted = parts[chosen.to(device)]
        loss = F.smooth_l1_loss(guessed, numbers[chosen.to(device)], beta=0.1)
        for logits, column in zip(said, wanted.T):
            if (column >= 0).any():
                loss = loss + F.cross_entropy(logits, column, ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 250 == 0:
            print(f"reader: step {step + 1}/{steps}  loss {loss.item():.3f}", flush=True)
    return reader.cpu().eval()


def _shaken(x: torch.Tensor) -> torch.Tensor:
    """Pictures [B, 3, H, W] with a little noise on half of them: what a VAE does to a drawing must
    not matter to the reader.
    """
    strength = 0.06 * torch.rand(len(x), 1, 1, 1) * (torch.rand(len(x), 1, 1, 1) < 0.5)
    strength = strength.to(x.device)
    return x + strength * torch.randn_like(x)


def best_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _batches(pictures: np.ndarray, model: Any, batch: int = 128) -> Iterator[torch.Tensor]:
    """uint8 [N, H, W, 3] by the batch, as the model takes them, on its device."""
    device = next(model.parameters()).device
    for start in range(0, len(pictures), batch):
        yield to_tensor(np.ascontiguousarray(pictures[start : start + batch]), device)


def features(reader: Reader, pictures: np.ndarray) -> np.ndarray:
    """What the reader's trunk sees in uint8 [N, H, W, 3]: float64 [N, features]."""
    with torch.no_grad():
        return (
            torch.cat([reader.trunk(x) for x in _batches(pictures, reader)]).double().cpu().numpy()
        )


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance between Gaussians fitted to two sets of features [N, D], each feature scaled
    by `a`'s deviation.

    |mean difference|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2), A and B the covariances (Heusel et al.
    2017, equation 6). A set of a few hundred pictures makes it too large: compare at equal numbers
    only.
    """
    a, b = _scaled(a, b)
    difference = a.mean(0) - b.mean(0)
    first, second = np.cov(a.T), np.cov(b.T)
    values, vectors = np.linalg.eigh(first)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0)).sum()
    return float(difference @ difference + np.trace(first) + np.trace(second) - 2 * cross)


def kid(a: np.ndarray, b: np.ndarray) -> float:
    """Squared maximum mean discrepancy, unbiased, of two sets of features [N, D] under (x . y / D +
    1)^3 (Binkowski et al. 2018).
    """
    a, b = _scaled(a, b)

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: np.ndarray) -> float:
        k = kernel(x, x)
        return (k.sum() - np.trace(k)) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2 * kernel(a, b).mean())


def _scaled(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, deviation = a.mean(0), a.std(0) + 1e-6
    return (a - mean) / deviation, (b - mean) / deviation


def _logits(reader: Reader, pictures: np.ndarray) -> list[torch.Tensor]:
    """The reader's logits for uint8 [N, H, W, 3], one [N, choices] for each of `PARTS`."""
    with torch.no_grad():
        said = [reader(x)[0] for x in _batches(pictures, reader)]
    return [torch.cat(part).cpu() for part in zip(*said)]


def read_parts(
    reader: Reader, pictures: np.ndarray, scenes: Sequence[Scene]
) -> dict[str, dict[str, float]]:
    """How surely parts can be read: {part: {"right", "sure"}} over uint8 [N, H, W, 3] and the
    scenes that they (ought to) show.

    "sure" is the mean of the largest probability, over pictures whose scene has that part; "right"
    the share read as drawn, which means something for drawings only: a prompt says nothing of eyes.
    """
    logits = _logits(reader, pictures)
    drawn = torch.tensor([parts_of(s) for s in scenes]).T
    found = {}
    for name, one, truth in zip(PARTS, logits, drawn):
        seen = truth >= 0
        best = one[seen].softmax(1).max(1)
        right = (best.indices == truth[seen]).float().mean()
        found[name] = {"right": round(float(right), 4), "sure": round(float(best.values.mean()), 4)}
    return found


def shares(reader: Reader, pictures: np.ndarray) -> dict[str, list[float]]:
    """The share of each pattern and accessory that the reader finds among pictures: whether samples
    are as varied as drawings.
    """
    said = dict(zip(PARTS, (one.argmax(1) for one in _logits(reader, pictures))))
    return {
        p: [round(float((said[p] == i).float().mean()), 4) for i in range(len(PARTS[p]))]
        for p in ("pattern", "accessory")
    }


def auc(scores: Any, labels: Any) -> float:
    """The area under the ROC curve: the chance that a picture of label 1 scores above one of label
    0, ties counting half.
    """
    scores, labels = np.asarray(scores, float), np.asarray(labels, bool)
    values, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n, m = labels.sum(), (~labels).sum()
    return float((ranks[labels].sum() - n * (n + 1) / 2) / (n * m))


def with_detail(x: torch.Tensor) -> torch.Tensor:
    """Pictures [B, 3, H, W] with what a 3 x 3 blur would take from them behind: [B, 6, H, W]."""
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return torch.cat([x, 4 * (x - blurred)], 1)


class Discriminator(nn.Module):
    """One logit from a picture. Beside the picture it sees what a 3 x 3 blur would take from it:
    there lie smear and grain.
    """

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.trunk = Trunk(width, inputs=6)
        self.head = nn.Sequential(
            nn.Dropout(0.2), nn.Linear(self.trunk.features, 64), nn.SiLU(), nn.Linear(64, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.trunk(with_detail(x)))[:, 0]


def discriminate(
    drawings: np.ndarray,
    samples: np.ndarray,
    seed: int = 0,
    width: int = 24,
    batch: int = 64,
    peak: float = 1.5e-3,
    epochs: int = 40,
    patience: int = 4,
) -> dict[str, Any]:
    """Train a discriminator on uint8 drawings [N, H, W, 3] against samples; the AUC on a held-out
    fifth after each epoch.

    It stops when the held-out AUC of its averaged weights has not risen for `patience` epochs.
    Returns {"auc": the best, "pictures": N of each, "epochs": [AUC by epoch]}.
    """
    torch.manual_seed(seed)
    count = min(len(drawings), len(samples))
    order = torch.randperm(count).numpy()
    held, learnt = order[: count // 5], order[count // 5 :]
    pictures = np.concatenate([drawings[learnt], samples[learnt]])
    device = best_device()
    labels = torch.cat([torch.ones(len(learnt)), torch.zeros(len(learnt))]).to(device)
    judged = np.concatenate([drawings[held], samples[held]])
    truth = np.concatenate([np.ones(len(held)), np.zeros(len(held))])
    model = Discriminator(width).to(device)
    mean = copy.deepcopy(model).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=5e-2)
    history, step = [], 0
    for epoch in range(epochs):
        model.train()
        for chosen in torch.randperm(len(pictures)).split(batch):
            x = to_tensor(pictures[chosen.numpy()], device)
            if torch.rand(()) < 0.5:
                x = x.flip(3)
            loss = F.binary_cross_entropy_with_logits(model(x), labels[chosen.to(device)])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            with torch.no_grad():
                for kept, now in zip(mean.parameters(), model.parameters()):
                    kept.lerp_(now, 1 - min(0.98, (1 + step) / (10 + step)))
        with torch.no_grad():
            scores = torch.cat([mean(x) for x in _batches(judged, mean)]).cpu().numpy()
        history.append(round(auc(scores, truth), 4))
        print(
            f"discriminator: epoch {epoch + 1}  loss {loss.item():.3f}  AUC {history[-1]:.3f}",
            flush=True,
        )
        if len(history) - 1 - int(np.argmax(history)) >= patience:
            break
    return {"auc": max(history), "pictures": count, "epochs": history}


def through(vae: Any, pictures: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, 3] encoded and decoded by the VAE, as uint8: what a perfect sampler of its
    latents would draw.
    """
    done = []
    with torch.no_grad():
        for x in _batches(pictures, vae, 64):
            done.append(to_pictures(vae.decode(vae.encode(x).latent_dist.mode()).sample))
    return np.concatenate(done)


def shuffled(
    drawings: np.ndarray, samples: np.ndarray, seed: int = 0
) -> tuple[np.ndarray, list[bool]]:
    """Drawings and samples mixed: uint8 [2 N, H, W, 3] and the key, True for a drawing."""
    order = np.random.default_rng(seed).permutation(len(drawings) + len(samples))
    key = np.concatenate([np.ones(len(drawings), bool), np.zeros(len(samples), bool)])[order]
    return np.concatenate([drawings, samples])[order], key.tolist()
