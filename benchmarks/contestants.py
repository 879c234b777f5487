"""Who races in `benchmarks/race.py`: the workbench's training and diffusers' DreamBooth scripts, as
command lines on the same photos.

None of the scripts' code is here: they are run from where the user has them. Every choice that
could tilt the race is made in their favour and said in `FAVOURS`.
"""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from lib.dataset.captions import prompts
from lib.dataset.class_images import CLASS_IMAGES
from lib.dataset.preparation import prepare
from lib.files.errors import BadInput
from lib.files.json_file import read_json
from lib.files.paths import ROOT
from lib.memory.ladder import RUNGS
from lib.models.base_files import POCKET
from lib.models.families import preset
from lib.step.run_weights import ADAPTER

SCRIPTS = {"lora": "train_dreambooth_lora.py", "dreambooth": "train_dreambooth.py"}
SDXL = "train_dreambooth_lora_sdxl.py"
DOCUMENTED = {
    "lora": {"rate": 1e-4, "steps": 500},
    "dreambooth": {"rate": 5e-6, "steps": 800},
}  # their README, with class images
FULL = 500  # steps of a whole training
RANK = 4  # their default, on attention alone
LARGE = 1448  # side of a multi-megapixel photo: 2.1 megapixels
SUBJECT = ROOT / "data" / "subjects" / "character"
FAVOURS = (
    (
        "their scripts are started directly, which is faster than the `accelerate launch` of their"
        " README; one row uses that, with all threads"
    ),
    (
        "torchvision, where it is missing, is a stand-in of `benchmarks/torchvision_standin.py`,"
        " which loads faster"
    ),
    (
        "nothing is logged where tensorboard is missing, no validation pictures are drawn, and no"
        " checkpoint is written before step 500"
    ),
    (
        "bf16 (`--mixed_precision bf16`) in their documented tier too, as ours trains; their README"
        " leaves it at accelerate's default"
    ),
    (
        "their class images are made beforehand, by the same base model from their class prompt, 64"
        " pixels wide"
    ),
)


@dataclass(frozen=True)
class Field:
    """What all contestants share: the base's folder, our prepared data sets and their photo folders
    by kind, their class images.

    `best`: by (method, kind), the processes of their data loader and whether Adam is 8-bit at their
    best flags, as `race.tune` found them.
    """

    base: Path
    data: dict
    photos: dict
    class_images: Path
    instance_prompt: str
    class_prompt: str
    prepare_seconds: dict
    best: dict


def lay_out(work, base, resolution=64, kinds=("small", "large")):
    """Make the `Field` in the folder `work`: photos of the size that trains ("small"), and as
    2-megapixel JPEGs ("large").

    `base` draws the class images, both sides' in one go; `base.name` may be "pocket" or a folder.
    """
    from lib.dataset.class_images import draw_class_images

    folder = Path(base.name)
    if base.name == "pocket":
        folder = work / "base"
        shutil.copytree(POCKET, folder)
    camera = work / "camera"
    camera.mkdir()
    (camera / "subject.json").write_text(
        (SUBJECT / "subject.json").read_text("utf-8").replace(".png", ".jpg"), "utf-8"
    )
    for path in sorted(SUBJECT.glob("*.png")):
        picture = Image.open(path).convert("RGB").resize((LARGE, LARGE), Image.Resampling.BICUBIC)
        picture.save(camera / f"{path.stem}.jpg", quality=92)
    data, seconds, photos = {}, {}, {}
    for kind in kinds:
        source = (
            camera if kind == "large" or resolution > 256 else SUBJECT
        )  # the subject's own photos have 256 pixels
        start = time.perf_counter()
        data[kind] = prepare(source, work / f"data_{kind}", resolution=resolution)
        seconds[kind] = time.perf_counter() - start
        photos[kind] = work / f"photos_{kind}"
        photos[kind].mkdir()
        data[kind] = draw_class_images(base, data[kind])
        taken = [
            camera / p["file"]
            for p in read_json(data[kind].root / "dataset.json")["photos"]
            if p["use"] == "train"
        ]
        for path in taken if kind == "large" else [item.path for item in data[kind].train]:
            shutil.copy(path, photos[kind])
    subject = data["small"].subject
    plain = prompts(subject, with_identifier=False)
    classes = work / "class_images"
    classes.mkdir()
    for k, picture in enumerate(
        base.generate([plain] * CLASS_IMAGES, range(20_000, 20_000 + CLASS_IMAGES))
    ):
        picture.save(classes / f"{k:03d}.png")
    return Field(folder, data, photos, classes, prompts(subject), plain, seconds, {})


def theirs(
    scripts, field, method, kind, tier, steps, output, rate=None, every=None, resolution=64, batch=4
):
    """Command line (after the interpreter's watcher) and environment of diffusers' script at a
    tier: "documented", "launched" (the same, which `run` starts by accelerate), "best", "inductor"
    (best, compiled), or "workers" (inductor, texts encoded in each step).

    `rate`: a learning rate in place of the documented one. `every`: steps between checkpoints, for
    the curves alone.
    """
    xl = (field.base / "text_encoder_2").is_dir()
    script = Path(scripts) / (SDXL if xl else SCRIPTS[method])
    command = {
        "pretrained_model_name_or_path": field.base,
        "instance_data_dir": field.photos[kind],
        "instance_prompt": field.instance_prompt,
        "class_data_dir": field.class_images,
        "class_prompt": field.class_prompt,
        "num_class_images": CLASS_IMAGES,
        "prior_loss_weight": 1.0,
        "output_dir": output,
        "resolution": resolution,
        "train_batch_size": batch,
        "learning_rate": rate or DOCUMENTED[method]["rate"],
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "max_train_steps": steps,
        "checkpointing_steps": every or 500,
        "mixed_precision": "bf16",
        "report_to": "tensorboard",
        "seed": 0,
    }
    flags = ["--with_prior_preservation"]
    if tier not in ("documented", "launched"):
        command["dataloader_num_workers"], eight_bit = field.best[method, kind]
        flags += (
            ["--allow_tf32"]
            + ["--use_8bit_adam"] * eight_bit
            + ["--pre_compute_text_embeddings"] * (tier != "workers")
        )
        flags += (
            ["--set_grads_to_none"] if method == "dreambooth" else []
        )  # their LoRA script always does
    known = script.read_text("utf-8")
    words = [
        str(script),
        *(flag for flag in flags if f'"{flag}"' in known),
    ]  # SDXL's computes text embeddings beforehand anyway
    for name, value in command.items():
        words += [f"--{name}", str(value)]
    return words, (
        {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}
        if tier
        in (
            "inductor",
            "workers",
        )
        else {}
    )


# How we race: with their adapter (rank 4, attention alone), as the course trains, with the one
# saving that is fastest on a CPU of those that bring memory to 0.7 of theirs, and with all that
# saves memory.
LIKE = {"rank": RANK, "targets": "attention"}
FOOT = {
    method: {name: value for rung, _ in rungs for name, value in rung.items()}
    for method, rungs in RUNGS.items()
}  # of the ladder
RECIPES = {
    "lora": {
        "like": LIKE,
        "preset": {},
        "lean": LIKE | {"checkpointing": "largest"},
        "thrifty": LIKE | FOOT["lora"],
    },
    "dreambooth": {
        "like": {},
        "preset": {},
        "lean": {"weights": "bf16"},
        "thrifty": FOOT["dreambooth"],
    },
}


def ours(field, method, kind, recipe, steps, output, **changes):
    """Settings of our training by a recipe of `RECIPES`, with checkpoints every 500 steps as theirs
    has them.
    """
    changes = {"sample_every": 0, "save_every": 500} | RECIPES[method][recipe] | changes
    return preset(
        method,
        str(field.base),
        data=str(field.data[kind].root),
        output=str(output),
        steps=steps,
        **changes,
    )


def accelerate_launch():
    """What goes before "-m module" for `accelerate launch`: one process with all the threads that a
    plain start has (it would take one).
    """
    return (
        "-m",
        "accelerate.commands.launch",
        "--num_processes",
        "1",
        "--num_cpu_threads_per_process",
        str(torch.get_num_threads()),
    )


def load_result(folder, base):
    """The U-Net of a finished run of either side, or of a checkpoint of theirs, loaded into the
    fresh `base`.
    """
    from diffusers import UNet2DConditionModel

    folder = Path(folder)
    adapters = [n for n in (ADAPTER, "pytorch_lora_weights.safetensors") if (folder / n).is_file()]
    if adapters:
        base.pipe.load_lora_weights(str(folder), weight_name=adapters[0])
    else:
        unet = UNet2DConditionModel.from_pretrained(
            folder / "unet", use_safetensors=True, dtype=base.denoiser.dtype
        )
        base.pipe.unet = unet.to(base.device).requires_grad_(False)
    return base


def run(work, name, program, steps, environment=None, launcher=(), python=sys.executable):
    """Run a training, watched, in a process of its own, of another `python` if one is named, and
    started by a `launcher` likewise.
    Returns seconds: "first" (start to the end of step 1), "step" (steady state), "whole" (start to
    exit) and "tail" (last step to exit), and "peak_bytes", "resident_bytes", "standin".
    """
    start = time.time()
    process = begin(work, name, program, steps, environment, launcher, python)
    found = end(work, name, process)
    return found | timings(found.pop("ends"), start, time.time())


def one(work, name, field, scripts, method, kind, who, steps, **changes):
    """One training of one contestant, watched; `changes` are of our settings."""
    if who in RECIPES[method]:
        settings = Path(work) / f"{name}_settings.json"
        ours(field, method, kind, who, steps, Path(work) / name, **changes).save(settings)
        return run(work, name, ["lib", "train", settings], steps)
    command, environment = theirs(scripts, field, method, kind, who, steps, Path(work) / name)
    return run(
        work, name, command, steps, environment, accelerate_launch() if who == "launched" else ()
    )


def begin(work, name, program, steps, environment=None, launcher=(), python=sys.executable):
    """Start what `run` runs, and do not wait for it. Returns the process."""
    offline = {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    command = [
        python,
        *launcher,
        "-m",
        "benchmarks.watched",
        f"{Path(work) / name}.json",
        str(steps),
        *map(str, program),
    ]
    with open(Path(work) / f"{name}.log", "w", encoding="utf-8") as log:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | offline | (environment or {}),
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def end(work, name, process):
    """Wait for what `begin` started. Returns what `benchmarks/watched.py` wrote; raises BadInput
    where it failed.
    """
    log, result = (Path(work) / f"{name}.{kind}" for kind in ("log", "json"))
    if process.wait() or not result.is_file():
        lines = [line for line in log.read_text("utf-8").splitlines() if line.strip()]
        last = [line for line in lines if "Error: " in line][-1:] or lines[-1:]
        raise BadInput(
            f"{name} ended with {process.returncode} ({' '.join(last)[:200]}): read {log}."
        )
    return read_json(result)


def timings(ends, start, stop):
    """Seconds "first", "step", "whole" and "tail" from the ends of the steps, the start and the
    stop of a process.

    "step", the steady state, is the long run less the short one that it begins with: what both
    share, the start, falls out.
    """
    from .watched import SHORT

    if len(ends) <= SHORT:
        raise BadInput(
            f"A run took {len(ends)} steps, and a steady state takes more than {SHORT}: set --steps"
            " higher."
        )
    return {
        "first": ends[0] - start,
        "step": (ends[-1] - ends[SHORT - 1]) / (len(ends) - SHORT),
        "whole": stop - start,
        "tail": stop - ends[-1],
    }
