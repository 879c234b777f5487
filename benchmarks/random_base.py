"""A diffusers folder of Stable Diffusion 1.5's or XL's shape with random weights, so that speed and memory can be raced without a download.

Built from `data/shapes/` and written in fp32, as diffusers' scripts demand of weights that train. Nothing can be learnt with such
weights, so no fidelity is measured.
"""

from pathlib import Path

import torch

from lib.base import POCKET, ROOT, load_base
from lib.settings import BadInput, read_json, write_json

SHAPES = ROOT / "data" / "shapes"
RESOLUTION = {"sd15": 512, "sdxl": 1024}
PIPELINES = {"sd15": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}


def build(name, folder, shapes=None):
    """Write the pipeline folder of shape `name` into `folder`. `shapes`: a folder of configurations instead of data/shapes/<name>."""
    import diffusers
    import transformers

    shapes, folder = Path(shapes or SHAPES / name), Path(folder)
    if not (shapes / "unet" / "config.json").is_file():
        raise BadInput(f"There is no {shapes}/unet/config.json: the shape '{name}' is not in this checkout.")
    index = {"_class_name": PIPELINES[name], "_diffusers_version": diffusers.__version__}
    torch.manual_seed(0)
    for part, kind in (("unet", "UNet2DConditionModel"), ("vae", "AutoencoderKL")):
        config = read_json(shapes / part / "config.json")
        getattr(diffusers, kind).from_config(config).save_pretrained(folder / part)
        index[part] = ["diffusers", kind]
    for part in sorted(path.name for path in shapes.glob("text_encoder*")):
        config = read_json(shapes / part / "config.json")
        kind = config["architectures"][0]
        settings = transformers.CLIPTextConfig(**{k: v for k, v in config.items() if k not in ("architectures", "model_type")})
        getattr(transformers, kind)(settings).save_pretrained(folder / part)
        index[part] = ["transformers", kind]
        words = part.replace("text_encoder", "tokenizer")
        # The pocket base's tokenizer: its ids are a part of theirs, and every prompt is padded to the same length.
        tokenizer = transformers.CLIPTokenizer.from_pretrained(POCKET / "tokenizer", model_max_length=settings.max_position_embeddings)
        tokenizer.save_pretrained(folder / words)
        index[words] = ["transformers", "CLIPTokenizer"]
    scheduler = read_json(shapes / "scheduler" / "scheduler_config.json")
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    index["scheduler"] = ["diffusers", scheduler.get("_class_name", "DDIMScheduler")]
    if name == "sd15":
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "image_encoder": [None, None],
                  "requires_safety_checker": False}
    write_json(folder / "model_index.json", index)
    return folder


def race(work, args):
    """Speed and memory on the shape `args.base`, batch 1 + 1 (and 4 + 4 for sd15): what race_<base>.json holds."""
    from . import race as run
    from .contestants import lay_out

    folder = build(args.base, Path(work) / "random")
    base = load_base(str(folder), device=args.device)
    field = lay_out(Path(work), base, RESOLUTION[args.base], steps=2)
    del base
    torch.cuda.empty_cache()
    # diffusers has no script that trains all of SDXL: there ours runs alone.
    cells = run.entries(kinds=("small",), inductor=args.inductor, learn=False)
    if args.base == "sdxl":
        cells = [c for c in cells if c[0] == "lora" or c[2] in ("like", "thrifty")]
    size = {"resolution": RESOLUTION[args.base], "batch": 1}
    run.tune(work, field, args.scripts, "lora", ("small",), args.steps, **size)
    found = run.measure(work, field, args.scripts, args.rounds, args.steps, cells, args.full, **size)
    result = run.facts(args, run.summary(found, field, args.full), run.ratios(found)) | {"base": args.base, "size": size}
    if args.base == "sd15":
        size = size | {"batch": 4}
        more = Path(work) / "batch_4"
        more.mkdir()
        found = run.measure(more, field, args.scripts, args.rounds, args.steps, cells, args.full, **size)
        result["batch_4"] = {"cells": run.summary(found, field, args.full), "ratios": run.ratios(found)}
    return result
