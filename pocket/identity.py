"""The judge's identity encoder, in DINO's role: is this the same subject? A small transformers
`ResNetModel`, trained from scratch.

It learns by supervised contrast (Khosla et al. 2020, arXiv 2004.11362) on look-alikes that share
backgrounds (`lookalikes.py`), with seeds and identities of the judge alone. Load it like any
encoder: `AutoModel.from_pretrained("data/judge/identity")`; the embedding is `pooler_output`, and
its cosine is the score.

    python -m pocket.identity pool pool.npy     # draws the pictures once (4 minutes of one core)
    python -m pocket.identity train pool.npy    # trains, resumable (12 minutes of one core)
    python -m pocket.identity certify           # measures it on identities it never saw
"""

import json
import math
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import ResNetConfig, ResNetModel

from lib.files.json_file import read_json, write_json
from lib.files.whole_writes import whole_file

from .lookalikes import MEMBERS, SCENES, group
from .world import SIZE

if TYPE_CHECKING:
    from PIL import Image

FOLDER = Path(__file__).parents[1] / "data" / "judge" / "identity"
TRAIN_GROUPS, TEST_GROUPS = range(3500), range(10**6, 10**6 + 120)
MEAN = STD = 0.5
TEMPERATURE = 0.1


def make_encoder() -> ResNetModel:
    """A `ResNetModel` of 2.8 M parameters: [B, 3, 64, 64] in [-1, 1] -> `pooler_output` [B, 256, 1,
    1].
    """
    return ResNetModel(
        ResNetConfig(
            embedding_size=64, hidden_sizes=[64, 128, 256], depths=[2, 2, 2], layer_type="basic"
        )
    )


def draw_pool(path: str | Path, groups: Sequence[int] = TRAIN_GROUPS) -> None:
    """Draw `groups` into a .npy file, uint8 [groups, MEMBERS, SCENES, SIZE, SIZE, 3], with a
    progress line.
    """
    shape = (len(groups), MEMBERS, SCENES, SIZE, SIZE, 3)
    start = time.time()
    with whole_file(path) as unfinished:
        pool = np.lib.format.open_memmap(unfinished, "w+", np.uint8, shape)
        for i, number in enumerate(groups):
            pool[i] = group(number)
            if (i + 1) % 250 == 0:
                print(
                    f"{i + 1} of {len(groups)} groups,"
                    f" {(time.time() - start) / (i + 1) * (len(groups) - i - 1):.0f} s to go",
                    flush=True,
                )
        pool.flush()


def augment(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """What a generated picture may do to a subject without changing it, for [B, 3, H, W] in [-1,
    1].

    Mirror, crop and shift, blur, light, noise: fine-tuned models blur and shift their subjects, and
    the judge must not care.
    """
    b, h = len(x), x.shape[-1]
    scale, shift = rng.uniform(0.8, 1.1, b), rng.uniform(-0.1, 0.1, (2, b))
    theta = np.zeros((b, 2, 3), np.float32)
    theta[:, 0, 0], theta[:, 1, 1] = scale * np.where(rng.random(b) < 0.5, 1, -1), scale
    theta[:, 0, 2], theta[:, 1, 2] = shift
    x = F.grid_sample(
        x,
        F.affine_grid(torch.from_numpy(theta), list(x.shape), False),
        padding_mode="reflection",
        align_corners=False,
    )
    soft = F.interpolate(
        F.interpolate(x, size=int(rng.integers(h * 3 // 8, h)), mode="area"),
        size=h,
        mode="bilinear",
    )
    x = torch.where(torch.from_numpy(rng.random(b) < 0.35)[:, None, None, None], soft, x)

    def draw(low: float, high: float, channels: int = 1) -> torch.Tensor:
        return torch.from_numpy(rng.uniform(low, high, (b, channels, 1, 1)).astype(np.float32))

    x = x * draw(0.85, 1.12) + draw(-0.08, 0.08) + draw(-0.04, 0.04, 3)
    noise = torch.from_numpy(rng.standard_normal(x.shape, np.float32))
    return x + noise * draw(0, 0.06)


def contrast(
    embeddings: torch.Tensor, labels: torch.Tensor, temperature: float = TEMPERATURE
) -> torch.Tensor:
    """Supervised contrastive loss (arXiv 2004.11362, L_out) of embeddings [B, D] with integer
    labels [B].
    """
    z = F.normalize(embeddings, dim=1)
    logits = z @ z.T / temperature
    itself = torch.eye(len(z), dtype=torch.bool)
    same = (labels[:, None] == labels[None]) & ~itself
    log_share = logits - logits.masked_fill(itself, -torch.inf).logsumexp(1, keepdim=True)
    return -(log_share * same).sum(1).div(same.sum(1)).mean()


def train(
    path: str | Path,
    steps: int = 4000,
    groups_a_step: int = 8,
    scenes: int = 4,
    lr: float = 2e-3,
    limit_s: float = 700,
    seed: int = 0,
) -> None:
    """Train on the pool at `path` and write `FOLDER`; goes on from `<path>.checkpoint.pt` if there
    is one. One thread, bf16.

    `limit_s` is processor time, so that a busy machine trains as long as an idle one; the schedule
    ends with it or with `steps`.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    pool = np.load(path, mmap_mode="r")
    encoder: Any = make_encoder()
    encoder.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=lr, weight_decay=0.02, fused=True)
    average = {k: v.clone() for k, v in encoder.state_dict().items()}
    checkpoint, first, spent = Path(f"{path}.checkpoint.pt"), 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        encoder.load_state_dict(state["encoder"])
        optimizer.load_state_dict(state["optimizer"])
        average, first, spent = state["average"], state["step"], state["seconds"]
    start, losses = time.process_time() - spent, []
    encoder.train()
    for step in range(first, steps):
        rng = np.random.default_rng([seed, step])
        done = max(step / steps, (time.process_time() - start) / limit_s)
        if done >= 1:
            break
        for settings in optimizer.param_groups:
            settings["lr"] = (
                lr * min(1, (step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * done)) + 1e-6
            )
        chosen = np.sort(rng.choice(len(pool), groups_a_step, replace=False))
        pictures = pool[chosen][:, :, rng.permutation(SCENES)[:scenes]].reshape(-1, SIZE, SIZE, 3)
        x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(255 * STD).sub(MEAN / STD)
        x = augment(x, rng).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            embeddings = encoder(x).pooler_output.flatten(1)
        loss = contrast(
            embeddings.float(), torch.arange(groups_a_step * MEMBERS).repeat_interleave(scenes)
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        keep = min(0.998, (step + 1) / (step + 10))
        with torch.no_grad():
            for k, v in encoder.state_dict().items():
                average[k].copy_(average[k] * keep + v * (1 - keep) if v.is_floating_point() else v)
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            spent = time.process_time() - start
            print(
                f"step {step + 1} of {steps}, loss {np.mean(losses[-100:]):.3f}, {spent:.0f} of"
                f" {limit_s} s",
                flush=True,
            )
            state = {
                "encoder": encoder.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average,
                "step": step + 1,
                "seconds": spent,
            }
            with whole_file(checkpoint) as unfinished:
                torch.save(state, unfinished)
    encoder.load_state_dict(average)
    save(encoder)
    record = {
        "groups": [TRAIN_GROUPS.start, TRAIN_GROUPS.stop],
        "steps": first + len(losses),
        "seed": seed,
        "processor_seconds": round(time.process_time() - start),
        "loss": float(np.mean(losses[-200:])),
    }
    write_json(FOLDER / "training.json", record)


def save(encoder: ResNetModel) -> None:
    """Write config, fp16 safetensors and the preprocessing that goes with them to `FOLDER`."""
    encoder.half().save_pretrained(FOLDER)
    preprocessing = {
        "do_resize": True,
        "size": {"height": SIZE, "width": SIZE},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [MEAN] * 3,
        "image_std": [STD] * 3,
        "image_processor_type": "ViTImageProcessor",
    }
    write_json(FOLDER / "preprocessor_config.json", preprocessing)


def area_under_curve(same: np.ndarray, different: np.ndarray) -> float:
    """Probability that a pair of the same subject scores above a pair of different ones (ties count
    half); two 1-D arrays.
    """
    scores = np.concatenate([same, different])
    _, rank, count = np.unique(scores, return_inverse=True, return_counts=True)
    midrank = (np.cumsum(count) - (count - 1) / 2)[rank]
    return float(
        (midrank[: len(same)].sum() - len(same) * (len(same) + 1) / 2)
        / (len(same) * len(different))
    )


def certificate(
    embed: "Callable[[list[Image.Image]], Any]", groups: Sequence[int] = TEST_GROUPS
) -> dict[str, float]:
    """What `embed` (list of PIL pictures -> unit rows [N, D]) is worth on held-out identities; a
    dict of figures.

    auc: pairs of one identity in two scenes against pairs of any two identities of other groups.
    auc_lookalikes: against look-alikes only. nearid: how often a picture finds the same subject on
    another background nearer than a look-alike on the *same* background (NearID, arXiv 2604.01973);
    nearid_stranger: than a stranger on the same background.
    """
    from PIL import Image

    pictures = np.stack([group(number) for number in groups])
    flat = [Image.fromarray(p) for p in pictures.reshape(-1, SIZE, SIZE, 3)]
    e = np.asarray(embed(flat), np.float64).reshape(len(groups), MEMBERS, SCENES, -1)
    e /= np.linalg.norm(e, axis=-1, keepdims=True)
    cosine = np.einsum("gmsd,gntd->gmnst", e, e)
    upper = np.triu_indices(SCENES, 1)
    other = ~np.eye(SCENES, dtype=bool)
    same = np.concatenate([cosine[:, m, m][:, *upper].ravel() for m in range(MEMBERS)])
    alike = np.concatenate([cosine[:, 0, m][:, other].ravel() for m in (1, 2)])
    strangers = np.concatenate(
        [
            (e[g, 0] @ e[(g + k) % len(groups), 0].T).ravel()
            for g in range(len(groups))
            for k in (1, 2, 3)
        ]
    )
    # Anchor = subject 0 in scene s; it must prefer itself in scene t to look-alike m in scene s.
    two = [(s, t) for s in range(SCENES) for t in range(SCENES) if s != t]
    wins = {
        name: np.mean(
            [cosine[:, 0, 0, s, t] > cosine[:, 0, m, s, s] for m in members for s, t in two]
        )
        for name, members in (("nearid", (1, 2)), ("nearid_stranger", (3,)))
    }
    return {
        "auc": area_under_curve(same, strangers),
        "auc_lookalikes": area_under_curve(same, alike),
        **{k: float(v) for k, v in wins.items()},
        "cosine_same": float(same.mean()),
        "cosine_lookalike": float(alike.mean()),
        "cosine_stranger": float(strangers.mean()),
        "identities": len(groups) * MEMBERS,
        "pictures": len(flat),
    }


def certify() -> None:
    """Measure the shipped encoder as the course uses it, and write `certificate.json` beside it."""
    import transformers

    from lib.evaluation.judge import load_identity

    figures = {k: round(v, 4) for k, v in certificate(load_identity(FOLDER)).items()}
    versions = {m.__name__: m.__version__ for m in (torch, transformers, np)} | {
        "python": platform.python_version()
    }
    training = read_json(FOLDER / "training.json")
    record = {
        "held_out": figures,
        "test_groups": [TEST_GROUPS.start, TEST_GROUPS.stop],
        "training": training,
        "versions": versions,
        "definitions": " ".join((certificate.__doc__ or "").split()),
    }
    write_json(FOLDER / "certificate.json", record)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    {"pool": draw_pool, "train": train, "certify": certify}[command](*arguments)
