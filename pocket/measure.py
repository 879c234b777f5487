"""What the pocket base and its judge can do, measured: `data/pocket/measured.json`, its grid of
pictures and its README.

python -m pocket measure detail
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from lib.config.presets import PRESETS
from lib.files.json_file import write_json
from lib.models.base import load_base
from lib.models.families import Family

from . import clip as clip_
from . import detail as detail_
from .objects import CLASSES
from .pictures import pool
from .places import PHRASES
from .vae import psnr, to_pictures
from .world import COLORS, SIZE, Scene, held_out, prompt, render, sample_scene

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

    from lib.evaluation.judge import Judge
    from lib.models.base import Base

TARGETS = {"class": 0.95, "colour": 0.92, "place": 0.97}
FIRST_HELD_OUT_SEED = 10_000_000
FIRST_FRESH_SEED = 20_000_000  # scenes of any triple that nothing was trained on
READER_SCENES = 16_000
# What the course draws with.
STEPS, GUIDANCE = (PRESETS["lora", "pocket"][name] for name in ("sample_steps", "guidance"))
# Pictures that are not in the repository: where they come from.
ELSEWHERE = {
    "foreign drawings": "The foreign drawings are colour emoji of the Noto font on plain grounds.",
    "photographs": "The photographs are three subjects of the DreamBooth data set.",
}


def held_out_triples() -> list[tuple[str, str, str]]:
    """Every class-colour-place triple that training never saw."""
    every = [(k, c, p) for k in CLASSES for c in COLORS for p in PHRASES]
    return [t for t in every if held_out(sample_scene(0, *t))]


def held_out_scenes(count: int, plain: float = 0.55) -> list[Scene]:
    """Scenes of held-out triples at seeds that neither base nor judge was trained on; `plain` is
    the share of one-coloured objects.
    """
    triples = held_out_triples()
    return [
        sample_scene(FIRST_HELD_OUT_SEED + i, *triples[i % len(triples)], plain=plain)
        for i in range(count)
    ]


def open_square(path: str | Path, side: int = SIZE) -> np.ndarray:
    """The central square of a picture file as uint8 [side, side, 3]."""
    image = Image.open(path).convert("RGB")
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    return np.asarray(
        image.crop((left, top, left + edge, top + edge)).resize(
            (side, side), Image.Resampling.LANCZOS
        )
    )


def reconstruction(vae: Any, folders: Mapping[str, str | Path]) -> dict[str, list[float]]:
    """Mean PSNR in dB of the VAE on held-out scenes and on the pictures of each folder that exists:
    {name: [dB, pictures]}.
    """
    sets = {"held-out scenes": pool(render, held_out_scenes(128))}
    for name, folder in folders.items():
        files = (
            sorted(
                f for f in Path(folder).rglob("*") if f.suffix.lower() in (".png", ".jpg", ".jpeg")
            )
            if Path(folder).is_dir()
            else []
        )
        if files:
            sets[name] = np.stack([open_square(f) for f in files])
    return {name: [round(psnr(vae, pictures), 2), len(pictures)] for name, pictures in sets.items()}


def obedience(
    base: "Base", clip: Any, tokenizer: "CLIPTokenizer", count: int = 512
) -> tuple[dict[str, float], np.ndarray]:
    """Draw `count` prompts of held-out triples and let the judge read them: shares right, and the
    pictures as uint8 [count, 64, 64, 3].
    """
    triples = held_out_triples()
    chosen = [triples[i % len(triples)] for i in range(count)]
    images = base.generate(
        [prompt(*t) for t in chosen], [FIRST_HELD_OUT_SEED + i for i in range(count)]
    )
    pictures = np.stack([np.asarray(i) for i in images])
    wanted = np.array(
        [
            (list(CLASSES).index(k), list(COLORS).index(c), list(PHRASES).index(p))
            for k, c, p in chosen
        ]
    )
    right = (clip_.read(clip, tokenizer, pictures) == wanted).mean(0)
    return dict(zip(TARGETS, (round(float(r), 4) for r in right))), pictures


def read_scene(judge: "Judge", pictures: Sequence[Any]) -> list[dict[str, Any]]:
    """What the judge's CLIP sees in each picture: dicts {"class", "color", "place", "sure"},
    zero-shot over the world's prompts.

    All class x color x place prompts compete; each attribute is the one with the largest share,
    "sure" the smallest of the three.
    """
    names = list(CLASSES), list(COLORS), list(PHRASES)
    texts = judge.clip_texts(
        [
            prompt(kind, color, place)
            for kind in names[0]
            for color in names[1]
            for place in names[2]
        ]
    )
    scale = judge.clip_images.model.logit_scale.exp().item()
    share = (scale * judge.clip_images(pictures) @ texts.T).softmax(1).reshape(-1, *map(len, names))
    best = [share.sum([d for d in (1, 2, 3) if d != axis]).max(1) for axis in (1, 2, 3)]
    return [
        {
            key: names[a][int(best[a].indices[i])]
            for a, key in enumerate(("class", "color", "place"))
        }
        | {"sure": min(float(b.values[i]) for b in best)}
        for i in range(len(pictures))
    ]


def judge_accuracy(
    clip: Any, tokenizer: "CLIPTokenizer", count: int = 1024, plain: float = 1.0
) -> dict[str, float]:
    """Shares of class, colour and place that the judge reads rightly off held-out drawings of the
    world itself.

    `plain` is the share of one-coloured objects: which of two stripes is "the" colour of a
    patterned one is partly a matter of taste.
    """
    scenes = held_out_scenes(count, plain)
    said = clip_.read(clip, tokenizer, pool(render, scenes))
    right = (said == np.array([clip_.meaning(s) for s in scenes])).mean(0)
    return dict(zip(TARGETS, (round(float(r), 4) for r in right)))


def grid(pictures: np.ndarray, columns: int = 16, scale: int = 2) -> Image.Image:
    """uint8 [N, h, w, 3] as one image, `columns` a row, enlarged."""
    rows = [
        np.concatenate(list(pictures[i : i + columns]), 1) for i in range(0, len(pictures), columns)
    ]
    image = Image.fromarray(np.concatenate(rows, 0))
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.LANCZOS)


def draw_samples(
    pipe: Any,
    scenes: Sequence[Scene],
    folder: Path,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    batch: int = 64,
) -> np.ndarray:
    """One sample for each scene's full prompt, as uint8 [N, 64, 64, 3]. Its latents are kept in
    `folder` by the batch, so that drawing goes on where it was, and another decoder reads the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pipe.set_progress_bar_config(disable=True)
    done, began = [], time.time()
    for start in range(0, len(scenes), batch):
        file = folder / f"{start:06d}.npy"
        wanted = scenes[start : start + batch]
        if not file.is_file() or len(np.load(file)) != len(wanted):
            prompts = [prompt(s.identity.kind, s.color, s.place) for s in wanted]
            noise = [
                torch.Generator().manual_seed(FIRST_FRESH_SEED + start + i)
                for i in range(len(wanted))
            ]
            latents = pipe(
                prompts,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=noise,
                output_type="latent",
            ).images
            np.save(file, latents.float().cpu().numpy())
            passed = (time.time() - began) / 60
            left = passed / (start + len(wanted)) * (len(scenes) - start - len(wanted))
            print(
                f"samples: {start + len(wanted)}/{len(scenes)}  {passed:.1f} min, {left:.1f} left",
                flush=True,
            )
        done.append(decoded(pipe.vae, np.load(file)))
    return np.concatenate(done)


def decoded(vae: Any, latents: np.ndarray) -> np.ndarray:
    """Latents [N, channels, h, w] as pictures, uint8 [N, H, W, 3]."""
    z = torch.as_tensor(latents, device=vae.device) / vae.config.scaling_factor
    with torch.no_grad():
        return to_pictures(vae.decode(z).sample)


def the_reader(work: Path, steps: int = 2500) -> detail_.Reader:
    """The reader of parts, trained on drawings of the judge's identities and kept in `work`."""
    file = work / f"reader_{steps}.safetensors"
    reader = detail_.Reader()
    if not file.is_file():
        scenes = [sample_scene(i, salt="judge") for i in range(READER_SCENES)]
        reader = detail_.train_reader(pool(render, scenes), scenes, steps)
        work.mkdir(parents=True, exist_ok=True)
        save_file(reader.state_dict(), file)
    reader.load_state_dict(load_file(file))
    return reader.eval()


def detail(
    folder: str | Path,
    work: Path,
    count: int = 4000,
    guidance: float = GUIDANCE,
    reader: detail_.Reader | None = None,
    steps: int = STEPS,
) -> dict[str, Any]:
    """Whether samples of the base in `folder` pass for drawings: distances, a fresh discriminator,
    parts, a shuffled grid.

    `count` samples for the prompts of as many fresh scenes, in `steps` steps at `guidance`.
    Writes shuffled.png and its key into `work`, for a person to look at (what is told goes into
    measured.json by hand, as "told"), and returns what was measured. "floor" is what
    drawings sent through the VAE score in the same place.
    """
    pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.scheduler = Family.sampling_scheduler(pipe.scheduler.config)
    pipe.to(detail_.best_device())
    reader = (reader or the_reader(work)).to(detail_.best_device())
    scenes = [sample_scene(FIRST_FRESH_SEED + i) for i in range(2 * count)]
    drawings = pool(render, scenes)
    passed, others = detail_.through(pipe.vae, drawings[:count]), drawings[count:]
    kept = work / f"samples_{weights_hash(pipe.unet)}_{guidance:g}_{steps}"
    samples = draw_samples(pipe, scenes[:count], kept, steps, guidance)
    seen = {
        n: detail_.features(reader, p)
        for n, p in (("others", others), ("floor", passed), ("samples", samples))
    }
    parts = {
        n: detail_.read_parts(reader, p, scenes[:count])
        for n, p in (("drawings", passed), ("samples", samples))
    }
    mixed, key = detail_.shuffled(passed[:64], samples[:64])
    grid(mixed).save(work / "shuffled.png")
    write_json(work / "shuffled_key.json", {"drawing": key, "columns": 16})
    return {
        "pictures": count,
        "guidance": guidance,
        "steps": steps,
        "frechet": {
            n: round(detail_.frechet(seen["others"], seen[n]), 2) for n in ("floor", "samples")
        },
        "kid": {n: round(detail_.kid(seen["others"], seen[n]), 4) for n in ("floor", "samples")},
        "parts": parts,
        "shares": {
            n: detail_.shares(reader, p) for n, p in (("drawings", passed), ("samples", samples))
        },
        "discriminator": detail_.discriminate(passed, samples),
    }


def weights_hash(*parts: torch.nn.Module) -> str:
    """Eight digits that change with any weight of `parts`: what other weights made is never taken
    for theirs.
    """
    total = hashlib.sha256()
    for part in parts:
        for tensor in part.state_dict().values():
            same = tensor.float().cpu().contiguous() + 0.0  # -0 is 0: an average turns one into it
            total.update(same.numpy().tobytes())
    return total.hexdigest()[:8]


def judge_folder(out: Path) -> Path:
    """Where the judge's CLIP is: beside the base, or the one that the project ships."""
    beside = out / "judge" / "clip"
    return (
        beside
        if beside.is_dir()
        else Path(__file__).resolve().parent.parent / "data" / "judge" / "clip"
    )


def measure(
    out: Path,
    count: int = 512,
    foreign: str | Path | None = None,
    photos: str | Path | None = None,
) -> dict[str, Any]:
    """Measure base and judge, write measured.json and grid.png into `out/pocket`, and return what
    was measured.
    """
    torch.manual_seed(0)
    base = load_base(str(out / "pocket"), device="cpu")
    clip, tokenizer = clip_.load(judge_folder(out))
    folders = {
        "example subjects": out / "subjects",
        "foreign drawings": foreign or "",
        "photographs": photos or "",
    }
    shares, pictures = obedience(base, clip, tokenizer, count)
    file = out / "pocket" / "measured.json"
    earlier = json.loads(file.read_text()) if file.is_file() else {}
    found = {
        "prompts": count,
        "steps": base.sample_steps,
        "guidance": base.guidance,
        "right": shares,
        "judge reads held-out drawings": judge_accuracy(clip, tokenizer),
        "judge reads the usual mix": judge_accuracy(clip, tokenizer, plain=0.55),
        "psnr_db": reconstruction(base.pipe.vae, folders),
        "bytes": sum(f.stat().st_size for f in (out / "pocket").rglob("*.safetensors")),
        "training": earlier.get("training", {}),
    } | {name: earlier[name] for name in ("detail", "told") if name in earlier}
    write_json(file, found)
    (out / "pocket" / "README.md").write_text(readme(found), "utf-8")
    grid(pictures[np.linspace(0, count - 1, 64).astype(int)]).save(out / "pocket" / "grid.png")
    return found


def readme(found: Mapping[str, Any]) -> str:
    """The README of the pocket base, as Markdown, from what was measured."""
    right, read = found["right"], found["judge reads held-out drawings"]
    lines = [
        "# The pocket base",
        "",
        (
            "A `StableDiffusionPipeline` of 64 x 64 pixels, trained from scratch by `make pocket`"
            " on a world that the project draws itself"
        ),
        "(`pocket/`): 12 classes of objects, 8 colours, 8 places.",
        "Licence Apache-2.0; no photograph and nobody else's weights went into it.",
        "",
        f"![64 of the {found['prompts']} test prompts](grid.png)",
        "",
        (
            f"{found['prompts']} prompts whose class-colour-place triple training never saw, one"
            f" picture each ({found['steps']} steps of sampling, guidance {found['guidance']:g}),"
        ),
        "read by the judge's CLIP:",
        "",
        "| | prompts right | wanted | the judge itself, on held-out drawings of one colour |",
        "| --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {name} | {right[name]:.1%} | {wanted:.0%} | {read[name]:.1%} |"
        for name, wanted in TARGETS.items()
    ]
    lines += [
        "",
        "The VAE's reconstruction (mean PSNR at 64 x 64 pixels):",
        "",
        "| pictures | dB | number |",
        "| --- | ---: | ---: |",
    ]
    lines += [
        f"| {name} | {value:.1f} | {count} |" for name, (value, count) in found["psnr_db"].items()
    ]
    if "detail" in found:
        lines += ["", *_detail_lines(found["detail"])]
    if "told" in found:
        told = found["told"]
        lines += [
            "",
            f"Of {told['of']} pictures, drawings and samples shuffled, one of us told"
            f" {told['right']} right by eye.",
        ]
    lines += [
        "",
        " ".join(
            [
                f"Weights: {found['bytes'] / 1e6:.1f} MB of fp16 safetensors.",
                *(words for name, words in ELSEWHERE.items() if name in found["psnr_db"]),
                "Measured by `python -m pocket measure`.",
            ]
        ),
    ]
    return "\n".join(lines) + "\n"


def _detail_lines(d: Mapping[str, Any]) -> list[str]:
    """The README's part on detail, from what `detail` returned."""
    far, near, judged = d["frechet"], d["kid"], d["discriminator"]
    drawn, sampled = d["parts"]["drawings"], d["parts"]["samples"]
    rows = {
        "Frechet distance to other drawings, features of the reader of parts": [
            f"{far[who]:.1f}" for who in ("samples", "floor")
        ],
        "KID, same features": [f"{near[who]:.4f}" for who in ("samples", "floor")],
    }
    for name in drawn:
        rows[f"the reader's confidence: {name}"] = [
            f"{by[name]['sure']:.1%}" for by in (sampled, drawn)
        ]
    return [
        f"Whether samples pass for drawings ({d['pictures']} of each, guidance"
        f" {d['guidance']:g}; `pocket/detail.py`):",
        "",
        "| | samples | drawings through the VAE |",
        "| --- | ---: | ---: |",
        *(f"| {name} | {' | '.join(values)} |" for name, values in rows.items()),
        "",
        f"A discriminator trained afresh on {judged['pictures']} drawings through the VAE against",
        "as many samples tells held-out ones apart with an AUC of"
        f" {judged['auc']:.3f} (.5 is guessing), after {len(judged['epochs'])} epochs,",
        "when it rose no more.",
    ]
