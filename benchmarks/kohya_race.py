"""Our two trainings against kohya's sd-scripts, at the sizes of Stable Diffusion 1.5 and XL with
random weights.

    python -m benchmarks.kohya_race --sd-scripts DIR [--bases sd15 sdxl] [--resolution 512]

DIR is a checkout of kohya-ss/sd-scripts; it runs in an environment of its own, which
`benchmarks/interop/environments.py` makes where there is none. Both sides train the same pictures,
as many class images as photos in a step, turn about, each in a process of its own; a step's time is
that of the steady state (`benchmarks/contestants.py`). Results go to
benchmarks/results/kohya_race.json and the README beside this file.

Theirs has its savings on: latents cached, bf16, torch's attention; XL's texts cached, and for all
of its weights Adafactor within the backward pass, which is the only optimiser that can do that
there. Ours has their adapter (rank 4, the linear layers of all transformers), as the course trains;
for all of XL's weights the update within the backward pass too.

Predictions, written before the first measurement: on a card 1.3 times theirs for both methods of
Stable Diffusion 1.5 at batch 1, whose steps are bound by launches, for ours are recorded as graphs;
the same speed for all of XL's weights, which are arithmetic. On a processor, at 64 pixels, 1.2
times for LoRA: theirs casts its weights in each step, and there is little else to do.
"""

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.contestants import Field, lay_out, ours, run
from benchmarks.cuda_race import Painter
from benchmarks.interop.checks import older_tokenizer, run_ours
from benchmarks.interop.environments import Tool, set_up
from benchmarks.random_base import PIPELINES, build
from benchmarks.sections import OWN_README, into_file, middle, rows_before, spread
from benchmarks.watched import SHORT
from lib.config.settings import METHODS
from lib.dataset.kohya_folders import to_kohya
from lib.files.errors import BadInput
from lib.files.json_file import write_json
from lib.files.paths import ROOT
from lib.memory.forecasting import plan, square_side
from lib.models.devices import device_name, versions

RESULTS = ROOT / "benchmarks" / "results" / "kohya_race.json"
RANK = 4
SCRIPTS = {
    ("sd15", "lora"): "train_network.py",
    ("sd15", "dreambooth"): "train_db.py",
    ("sdxl", "lora"): "sdxl_train_network.py",
    ("sdxl", "dreambooth"): "sdxl_train.py",
}
TOKENIZERS = {
    "tokenizer": "openai_clip-vit-large-patch14",
    "tokenizer_2": "laion_CLIP-ViT-bigG-14-laion2B-39B-b160k",
}
# What each training of theirs has beside the flags of all.
OWN = {
    "lora": "--network_module networks.lora --network_train_unet_only",
    "dreambooth": "",
    "sd15": "",
    "sdxl": "--no_half_vae --cache_text_encoder_outputs",
}
FUSED = (
    "--optimizer_type adafactor --optimizer_args scale_parameter=False relative_step=False"
    " warmup_init=False --fused_backward_pass --full_bf16"
)


class Ground:
    """A base's random weights in both forms, and the pictures as either side reads them."""

    def __init__(self, work: Path, base: str, resolution: int):
        dtype = torch.float32 if base == "sd15" else torch.bfloat16
        folder = build(base, work / "base", dtype=dtype)
        self.base, self.resolution = base, resolution
        self.field: Field = lay_out(work, Painter(folder), resolution, kinds=("small",))
        self.checkpoint, self.kohya = work / "base.safetensors", work / "kohya"
        run_ours(
            "merge", "--base", str(folder), "--to", "checkpoint", "--out", str(self.checkpoint)
        )
        to_kohya(self.field.data["small"].root, self.kohya)
        self.tokenizers = work / "tokenizers"
        for part, name in TOKENIZERS.items():
            if (folder / part).is_dir():
                shutil.copytree(folder / part, self.tokenizers / name)
                older_tokenizer(self.tokenizers / name)

    def theirs(self, tool: Tool, method: str, batch: int, steps: int, output: Path) -> list[str]:
        """The command line of sd-scripts, after the interpreter's watcher.

        Its batch holds photos and class images in turn: twice ours, which has both in each step.
        """
        values: dict[str, Any] = {
            "pretrained_model_name_or_path": self.checkpoint,
            "train_data_dir": self.kohya / "train",
            "reg_data_dir": self.kohya / "reg",
            "tokenizer_cache_dir": self.tokenizers,
            "output_dir": output,
            "output_name": "trained",
            "resolution": self.resolution,
            "train_batch_size": 2 * batch,
            "max_train_steps": steps,
            "learning_rate": 1e-6,
            "caption_extension": ".txt",
            "mixed_precision": "bf16",
            "save_precision": "fp16",
            "save_model_as": "safetensors",
            "max_data_loader_n_workers": 0,
            "seed": 0,
        }
        if method == "lora":
            values |= {"network_dim": RANK, "network_alpha": RANK}
        elif self.base == "sd15":
            values["stop_text_encoder_training"] = -1
        words = [str(tool.source / SCRIPTS[self.base, method]), "--cache_latents", "--sdpa"]
        words += f"{OWN[method]} {OWN[self.base]}".split()
        words += FUSED.split() if (self.base, method) == ("sdxl", "dreambooth") else []
        for name, value in values.items():
            words += [f"--{name}", str(value)]
        return words

    def ours(self, method: str, batch: int, steps: int, output: Path) -> list[str]:
        """The command line of ours, its settings written beside `output`."""
        more: dict[str, Any] = {"rank": RANK, "targets": "linear"} if method == "lora" else {}
        if (self.base, method) == ("sdxl", "dreambooth"):
            more = {"fused_backward": True, "weights": "bf16"}
        path = output.with_name(f"{output.name}_settings.json")
        more |= {"batch_size": batch, "resolution": self.resolution}
        ours(self.field, method, "small", "preset", steps, output, **more).save(path)
        return ["lib", "train", str(path)]


def pair(work: Path, ground: Ground, tool: Tool, method: str, args: Any) -> dict[str, Any]:
    """Both sides in turn, `args.rounds` times: a row of the result."""
    steps, seen = SHORT + args.steps, {"ours": [], "theirs": []}
    for k in range(args.rounds):
        for who in list(seen)[:: 1 if k % 2 == 0 else -1]:
            name = f"{ground.base}_{method}_{who}_{k}"
            output = work / name
            if who == "ours":
                found = run(work, name, ground.ours(method, args.batch, steps, output), steps)
            else:
                program = ground.theirs(tool, method, args.batch, steps, output)
                found = run(work, name, program, steps, python=str(tool.python))
            shutil.rmtree(output, ignore_errors=True)
            seen[who].append(found)
            print(name, {key: found[key] for key in ("step", "first", "peak_bytes")}, flush=True)
    row = {"base": ground.base, "method": method, "batch": args.batch}
    row |= {"resolution": ground.resolution, "steps": args.steps}
    for who, some in seen.items():
        row[who] = {key: middle([one[key] for one in some]) for key in ("step", "first")}
        row[who] |= {key: some[0][key] for key in ("peak_bytes", "resident_bytes")}
    times = [b["step"] / a["step"] for a, b in zip(seen["ours"], seen["theirs"])]
    return row | {"faster": middle(times)}


def field(row: dict[str, Any]) -> list[Any]:
    """What both sides of a row trained: one row stays of each."""
    return [row[name] for name in ("base", "method", "batch", "resolution")]


def figures(found: dict[str, Any]) -> str:
    """The measured rows as Markdown."""
    lines = [
        (
            f"{found['device']}, torch {found['versions']['torch']}, sd-scripts"
            f" {found['sd_scripts']}; medians (smallest to largest) of the rounds, each of so many"
            " steps. Bytes are those of a step."
        ),
        "",
        (
            "| | pixels | batch | rounds x steps | ours, s a step | theirs, s a step |"
            " so many times as fast |"
            " ours, MiB | theirs, MiB |"
        ),
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in found["rows"]:
        mine, other = row["ours"], row["theirs"]
        times = [spread(part["step"], 3) for part in (mine, other)]
        mib = [f"{part['peak_bytes'] / 2**20:,.0f}" for part in (mine, other)]
        lines.append(
            f"| {row['base']}, {row['method']} | {row['resolution']} | {row['batch']} |"
            f" {row['faster']['rounds']} x {row['steps']} |"
            f" {' | '.join(times)} | {spread(row['faster'])} | {' | '.join(mib)} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    """Race, and write rows and table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sd-scripts", required=True, type=Path)
    parser.add_argument("--bases", nargs="+", default=list(PIPELINES), choices=list(PIPELINES))
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--resolution", type=int, help="pixels; by default the base's own")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--keep", type=Path, help="folder for runs and logs")
    args = parser.parse_args()
    try:
        tool = set_up("sd-scripts", args.sd_scripts.absolute())
    except BadInput as error:
        raise SystemExit(str(error)) from None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = {
        "made_by": "python -m benchmarks.kohya_race",
        "device": device_name(device),
        "versions": versions(),
        "sd_scripts": tool.version,
    }
    rows = rows_before(RESULTS, found, "device", "versions", "sd_scripts")
    with tempfile.TemporaryDirectory() as temporary:
        for base in args.bases:
            work = (args.keep or Path(temporary)) / base
            side = args.resolution or square_side(plan("lora", base))
            work.mkdir(parents=True)
            ground = Ground(work, base, side)
            for method in args.methods:
                row = pair(work, ground, tool, method, args)
                rows = [*(other for other in rows if field(other) != field(row)), row]
                write_json(RESULTS, found | {"rows": rows})
                into_file(OWN_README, "kohya race", figures(found | {"rows": rows}))


if __name__ == "__main__":
    main()
