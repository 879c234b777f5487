"""Files of Stable Diffusion 1.5's size: seconds and memory to export, import, merge and extract,
with random weights in its shape.

    python -m benchmarks.file_sizes                   # 15 GB of disk, 10 minutes
    python -m benchmarks.file_sizes --width 64        # a U-Net a fifth as wide, to see that it runs
    python -m benchmarks.file_sizes --cases pocket    # these alone; others' results stay

Writes benchmarks/results/sizes.json.

Each case runs in a Python of its own, imports before the clock starts. Memory is the operating
system's figure at the peak, interpreter and libraries (0.8 GiB) included. The base is in fp32 as
published (4.3 GB), what is written in fp16 (2.1 GB); the LoRA has rank 32 beside all linear layers
of U-Net and text encoder.

Predictions, written before the measurement, for two cores: a LoRA exported in 4 s (of which most
builds a U-Net without memory to read it back into), imported in 1 s, two merged into one in 4 s; a
LoRA merged into its base in 30 s, DreamBooth written as one file in 20 s, both bound by SHA-256 and
the disk; a single file loaded in 20 s; a LoRA of rank 32 extracted in 75 s, since the randomised
SVD passes over a matrix eight times for 42 directions, 0.6 TFLOP in all. Memory stays below 1.6 GiB
wherever tensors are streamed, 0.8 times the file; only a model that is loaded to draw takes more
than twice the file, since on a processor its weights are fp32.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import count
from pathlib import Path

import torch

from lib.files.json_file import read_json, write_json
from lib.files.paths import ROOT
from lib.files.safetensors_file import write_weights
from lib.files.whole_writes import size_of
from lib.models.base_files import POCKET
from lib.models.devices import device_name, resident_bytes, versions
from lib.models.families import preset
from lib.models.layer_names import full_name

from .sections import OWN_README, into_file, read

RESULTS = ROOT / "benchmarks" / "results" / "sizes.json"
SHAPES, WIDTH, RANK = ROOT / "data" / "shapes" / "sd15", 320, 32
# case: (what it is, seconds wanted, rounds)
CASES = {
    "export": ("a LoRA to Kohya's form, keys checked and read back", 5, 3),
    "import": ("a LoRA from Kohya's form", 5, 3),
    "add": ("two LoRAs merged into one", 5, 3),
    "merge": ("a LoRA merged into its base, one file", 60, 1),
    "dreambooth": ("DreamBooth's weights, one file", 60, 1),
    "load": ("one file loaded as a base model", 60, 1),
    "extract": (f"a LoRA of rank {RANK} extracted from DreamBooth's weights", 600, 1),
    "pocket": ("an adapter loaded into a running pipeline, of the pocket base", 0.3, 9),
}
NEEDS = {"import": "export", "load": "dreambooth"}  # whose file they read
STREAMED = (
    "merge",
    "dreambooth",
)  # of these the memory shall stay below twice the checkpoint's size


def build(work, width):
    """Write the base, a DreamBooth run and two LoRA runs of random weights into `work`."""
    import diffusers
    import transformers

    from lib.convert.adapter import Adapter, Layer, diffusers_tensors
    from lib.files.safetensors_file import save_weights_file
    from lib.models.base_weights import open_base_weights
    from lib.step.methods import LINEAR, TEXT_ATTENTION

    base = work / "base"
    for part in ("unet", "vae", "text_encoder", "scheduler"):
        shutil.copytree(SHAPES / part, base / part)
    config = read_json(base / "unet" / "config.json")
    write_json(
        base / "unet" / "config.json",
        config | {"block_out_channels": [c * width // WIDTH for c in config["block_out_channels"]]},
    )
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "scheduler": ["diffusers", "PNDMScheduler"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    transformers.CLIPTokenizer.from_pretrained(
        POCKET / "tokenizer", model_max_length=77
    ).save_pretrained(base / "tokenizer")
    for part, kind in (
        ("unet", "UNet2DConditionModel"),
        ("vae", "AutoencoderKL"),
        ("text_encoder", "CLIPTextModel"),
    ):
        index[part] = ["transformers" if part == "text_encoder" else "diffusers", kind]
        config = read_json(base / part / "config.json")
        with torch.device("meta"):
            if part == "text_encoder":
                told = {k: v for k, v in config.items() if k not in ("architectures", "model_type")}
                model = transformers.CLIPTextModel(transformers.CLIPTextConfig(**told))
            else:
                model = getattr(diffusers, kind).from_config(config)
        names = {
            name: full_name(part, name) if part == "text_encoder" else name
            for name in model.state_dict()
        }  # as published
        shapes = {names[name]: ("F32", tuple(t.shape)) for name, t in model.state_dict().items()}
        file = (
            "model.safetensors" if part == "text_encoder" else "diffusion_pytorch_model.safetensors"
        )
        write_weights(
            base / part / file,
            shapes,
            lambda name, shapes=shapes: torch.randn(shapes[name][1]) / 50,
            {"format": "pt"},
        )
    write_json(base / "model_index.json", index)
    target = open_base_weights(str(base))
    run = work / "dreambooth"
    shapes = {name: ("F16", shape) for name, shape in target.shapes["unet"].items()}
    write_weights(
        run / "unet" / "diffusion_pytorch_model.safetensors",
        shapes,
        lambda name: target.read("unet", name) + torch.randn(shapes[name][1]) / 1000,
        {"format": "pt"},
    )
    shutil.copyfile(base / "unet" / "config.json", run / "unet" / "config.json")
    preset("dreambooth", str(base), data="-", output=str(run)).save(run / "settings.json")
    for name in ("lora", "other"):
        layers = {}
        for part, ends in (("unet", LINEAR), ("text_encoder", [*TEXT_ATTENTION, "fc1", "fc2"])):
            beside = {
                n: s
                for n, s in target.layer_shapes(part).items()
                if n.endswith(tuple(f".{end}" for end in ends))
            }
            layers[part] = {
                n: Layer(
                    torch.randn(RANK, *s[1:]).half(),
                    torch.randn(s[0], RANK, *[1] * (len(s) - 2)).half() / 100,
                    RANK / 2,
                )
                for n, s in beside.items()
            }
        save_weights_file(work / name / "adapter.safetensors", *diffusers_tensors(Adapter(layers)))
        preset("lora", str(base), data="-", output=str(work / name), rank=RANK).save(
            work / name / "settings.json"
        )


def prepared(case, work):
    """The call that is measured, a function without arguments, with everything that it needs
    imported and in place.
    """
    from lib.convert.composition import load_adapters, mix
    from lib.convert.exporting import export_lora
    from lib.convert.interchange import extract, import_lora
    from lib.convert.merging import merge
    from lib.models.base import load_base

    load_base()  # imports what drawing takes
    base, file, one = str(work / "base"), work / "kohya.safetensors", work / "one.safetensors"
    if case == "load" and not (work / "one").exists():
        shutil.copytree(work / "base", work / "one", ignore=shutil.ignore_patterns("*.safetensors"))
    if case == "pocket":
        running, names, adapter = (
            load_base(),
            count(),
            ROOT / "data" / "adapters" / "clothing.safetensors",
        )
        load_adapters(running, {"first": adapter})  # imports, and layers wrapped for the first time
        return lambda: load_and_remove(running, f"adapter_{next(names)}", adapter)
    calls = {
        "export": lambda: export_lora(work / "lora", "kohya", file),
        "import": lambda: import_lora(file, fresh(work / "imported"), base),
        "add": lambda: mix({"one": work / "lora", "two": work / "other"}, "cat", base=base),
        "merge": lambda: merge(work / "lora", "checkpoint", work / "merged.safetensors"),
        "dreambooth": lambda: merge(work / "dreambooth", "checkpoint", one),
        "load": lambda: load_base(str(one), "cpu"),
        "extract": lambda: export_lora(
            extract(work / "dreambooth", RANK)[0], "kohya", work / "extracted.safetensors"
        ),
    }
    return calls[case]


def load_and_remove(running, name, adapter):
    """Load an adapter beside the first, and take it out again, for the next round to meet the same
    pipeline.
    """
    from lib.convert.composition import load_adapters

    load_adapters(running, {name: adapter})
    running.pipe.set_adapters(["first"], [1.0])
    running.pipe.delete_adapters(name)


def fresh(folder):
    """`folder`, with nothing there."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def child(case, work):
    """Measure a case in this process, and print it as JSON."""
    call, seconds, before = prepared(case, work), [], resident_bytes()
    for _ in range(CASES[case][2]):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    print(
        json.dumps(
            {
                "seconds": statistics.median(seconds),
                "rounds": len(seconds),
                "memory": resident_bytes(),
                "before": before,
                "device": device_name(torch.device("cpu")),
            }
        )
    )


def collect(cases, measure, save):
    """Measure `cases` one by one with `measure(case)`, calling `save(case, result)` after each; the
    names of those that failed.

    So a case that fails, or that somebody stops, takes nothing from those before it.
    """
    failed = []
    for case in cases:
        try:
            save(case, measure(case))
        except subprocess.CalledProcessError:
            failed.append(case)
    return failed


def figures(found):
    """What was measured as Markdown; None is nothing yet."""
    if found is None:
        return "Not measured on this version yet: `python -m benchmarks.file_sizes`.\n"
    size, gib, cases = found.get("checkpoint_bytes"), 2**30, found["cases"]
    lines = [
        f"On {found['device']}, torch {found['versions']['torch']}"
        + (
            f": a U-Net of {found['parameters']:,} random weights, a LoRA of rank {found['rank']}"
            f" ({found['lora_bytes'] / 2**20:.0f} MiB), one file of {size / gib:.2f} GiB in fp16"
            f" made from a base of {found['base_bytes'] / gib:.2f} GiB in fp32."
            if size
            else "."
        ),
        "",
        "| | wanted, s | seconds | memory at the peak, GiB | times the file |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for case, (what, wanted, _) in CASES.items():
        if case in cases:
            row = cases[case]
            what += (
                f" ({row['device']})"
                if row.get("device", found["device"]) != found["device"]
                else ""
            )
            times = (
                "-"
                if case == "pocket" or not size
                else f"{row['memory'] / size:.2f}{' (2 wanted)' if case in STREAMED else ''}"
            )
            seconds = f"{row['seconds']:.{1 if wanted >= 1 else 2}f}"
            lines.append(f"| {what} | {wanted} | {seconds} | {row['memory'] / gib:.2f} | {times} |")
        else:
            lines.append(f"| {what} | {wanted} | not measured | - | - |")
    return "\n".join(lines) + "\n"


def sizes_of(work):
    """What the files in `work` are, where they are there."""
    from lib.models.base_weights import open_base_weights

    if not all((work / name).exists() for name in ("base", "one.safetensors", "kohya.safetensors")):
        return {}
    weights = sum(
        torch.Size(shape).numel()
        for shape in open_base_weights(str(work / "base")).shapes["unet"].values()
    )
    return {
        "parameters": weights,
        "checkpoint_bytes": size_of(work / "one.safetensors"),
        "lora_bytes": size_of(work / "kohya.safetensors"),
        "base_bytes": sum(f.stat().st_size for f in (work / "base").rglob("*.safetensors")),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--width",
        type=int,
        default=WIDTH,
        help="channels of the U-Net's first block, a multiple of 32 (default: 320)",
    )
    parser.add_argument(
        "--cases",
        nargs="+",
        choices=list(CASES),
        default=list(CASES),
        help="what to measure (default: all)",
    )
    parser.add_argument(
        "--work",
        type=Path,
        help="a folder with 15 GB of room (default: the system's temporary one)",
    )
    parser.add_argument("--child", nargs=2, metavar=("CASE", "WORK"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args.child[0], Path(args.child[1]))
    found = {
        "cases": {},
        "rank": RANK,
        "device": device_name(torch.device("cpu")),
        "versions": versions(),
    }
    before = read(RESULTS) if args.width == WIDTH else None
    if before and all(before[key] == found[key] for key in ("rank", "versions")):
        found = before | ({"device": found["device"]} if set(args.cases) == set(CASES) else {})
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        work = Path(work)

        def measure(case):
            print(f"{case} ...", flush=True)
            said = subprocess.run(
                [sys.executable, "-m", "benchmarks.file_sizes", "--child", case, str(work)],
                check=True,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
            )
            return json.loads(said.stdout.splitlines()[-1])

        def save(case, result):
            found["cases"][case] = result
            found.update(sizes_of(work))
            print(case, result, flush=True)
            if args.width == WIDTH:
                write_json(RESULTS, found)
                into_file(OWN_README, "sizes", figures(found))

        wanted = {*args.cases, *(NEEDS[case] for case in args.cases if case in NEEDS)}
        if wanted != {"pocket"}:
            build(work, args.width)
        failed = collect([case for case in CASES if case in wanted], measure, save)
    print(figures(found))
    if failed:
        return f"{', '.join(failed)} failed, for the reasons above; what else was measured is kept."


if __name__ == "__main__":
    sys.exit(main())
