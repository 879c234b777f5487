"""What the pocket base and its judge can do, measured: `data/pocket/measured.json`, its grid of pictures and its README.

    python -m lib.pocket measure [--foreign FOLDER]     # drawings and photographs that no code of the project made
"""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..base import load_base
from ..settings import write_json
from . import clip as clip_
from .objects import CLASSES
from .pictures import pool
from .places import PHRASES
from .vae import psnr
from .world import COLORS, SIZE, held_out, prompt, render, sample_scene

TARGETS = {"class": 0.95, "colour": 0.92, "place": 0.97}
FIRST_HELD_OUT_SEED = 10_000_000


def held_out_triples():
    """Every class-colour-place triple that training never saw."""
    every = [(k, c, p) for k in CLASSES for c in COLORS for p in PHRASES]
    return [t for t in every if held_out(sample_scene(0, *t))]


def held_out_scenes(count):
    """Scenes of held-out triples at seeds that neither base nor judge was trained on."""
    triples = held_out_triples()
    return [sample_scene(FIRST_HELD_OUT_SEED + i, *triples[i % len(triples)]) for i in range(count)]


def open_square(path, side=SIZE):
    """The central square of a picture file as uint8 [side, side, 3]."""
    image = Image.open(path).convert("RGB")
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    return np.asarray(image.crop((left, top, left + edge, top + edge)).resize((side, side), Image.Resampling.LANCZOS))


def reconstruction(vae, folders):
    """Mean PSNR in dB of the VAE on held-out scenes and on the pictures of each folder that exists: {name: [dB, pictures]}."""
    sets = {"held-out scenes": pool(render, held_out_scenes(128))}
    for name, folder in folders.items():
        files = sorted(f for f in Path(folder).rglob("*") if f.suffix.lower() in (".png", ".jpg", ".jpeg")) if Path(folder).is_dir() else []
        if files:
            sets[name] = np.stack([open_square(f) for f in files])
    return {name: [round(psnr(vae, pictures), 2), len(pictures)] for name, pictures in sets.items()}


def obedience(base, clip, tokenizer, count=512):
    """Draw `count` prompts of held-out triples and let the judge read them: shares right, and the pictures as uint8 [count, 64, 64, 3]."""
    triples = held_out_triples()
    chosen = [triples[i % len(triples)] for i in range(count)]
    images = base.generate([prompt(*t) for t in chosen], [FIRST_HELD_OUT_SEED + i for i in range(count)])
    pictures = np.stack([np.asarray(i) for i in images])
    wanted = np.array([(list(CLASSES).index(k), list(COLORS).index(c), list(PHRASES).index(p)) for k, c, p in chosen])
    right = (clip_.read(clip, tokenizer, pictures) == wanted).mean(0)
    return dict(zip(TARGETS, (round(float(r), 4) for r in right))), pictures


def judge_accuracy(clip, tokenizer, count=1024):
    """Shares of class, colour and place that the judge reads rightly off held-out drawings of the world itself."""
    scenes = held_out_scenes(count)
    said = clip_.read(clip, tokenizer, pool(render, scenes))
    right = (said == np.array([clip_.meaning(s) for s in scenes])).mean(0)
    return dict(zip(TARGETS, (round(float(r), 4) for r in right)))


def grid(pictures, columns=16, scale=2):
    """uint8 [N, h, w, 3] as one image, `columns` a row, enlarged."""
    rows = [np.concatenate(list(pictures[i:i + columns]), 1) for i in range(0, len(pictures), columns)]
    image = Image.fromarray(np.concatenate(rows, 0))
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.LANCZOS)


def measure(out, count=512, foreign=None, photos=None):
    """Measure base and judge, write measured.json and grid.png into `out/pocket`, and return what was measured."""
    torch.manual_seed(0)
    base = load_base(str(out / "pocket"), device="cpu")
    clip, tokenizer = clip_.load(out / "judge" / "clip")
    folders = {"example subjects": out / "subjects", "foreign drawings": foreign or "", "photographs": photos or ""}
    shares, pictures = obedience(base, clip, tokenizer, count)
    file = out / "pocket" / "measured.json"
    earlier = json.loads(file.read_text()) if file.is_file() else {}
    found = {"prompts": count, "right": shares, "judge reads held-out drawings": judge_accuracy(clip, tokenizer),
             "psnr_db": earlier.get("psnr_db", {}) | reconstruction(base.pipe.vae, folders),
             "bytes": sum(f.stat().st_size for f in (out / "pocket").rglob("*.safetensors")), "training": earlier.get("training", {})}
    write_json(file, found)
    grid(pictures[np.linspace(0, count - 1, 64).astype(int)]).save(out / "pocket" / "grid.png")
    return found
