"""`make bench`: speed and memory of the pocket base on this machine, into
benchmarks/results/pocket.json and docs/results.md.

    python -m benchmarks [--rounds 5] [--steps 30]

Both methods are timed in one process, turn about, so that a noisy machine is noisy for both; the
ratio comes with its spread. The course's own figures and the picture come from runs/course, which
`make course` makes first.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.analysis.ranges import COLUMNS
from lib.config.names import CONTESTANT_NAMES
from lib.convert.composition import load_adapters
from lib.convert.interchange import extract
from lib.dataset.captions import prompts
from lib.dataset.class_images import draw_class_images
from lib.dataset.imagefolder import load_dataset
from lib.dataset.preparation import prepare
from lib.files.json_file import read_json, write_json
from lib.files.paths import ROOT
from lib.models.base import load_base
from lib.models.devices import device_name, versions
from lib.models.families import preset
from lib.step.run_weights import load_run
from lib.training.loop import train

from .sections import RESULTS_PAGE, into_file, middle, spread

RESULTS = ROOT / "benchmarks" / "results" / "pocket.json"
PICTURE = ROOT / "data" / "results" / "side_by_side.png"
COURSE = ROOT / "runs" / "course"
COLD = """
from lib.models.families import preset
from lib.training.loop import train
train(preset({method!r}, data={data!r}, output={output!r}, steps=1, sample_every=0))
"""
SHOWN = ("on the beach", "in the forest", "at night", "in the snow", "in space")


def measure(rounds, steps):
    """Seconds a step of both methods turn about, seconds a picture, seconds from a cold start to
    the end of the first step.
    """
    found = {"lora": [], "dreambooth": [], "ratio": [], "picture": [], "cold start": []}
    peaks = {}
    with tempfile.TemporaryDirectory() as work:
        base = load_base()
        data = str(
            draw_class_images(
                base, prepare(ROOT / "data" / "subjects" / "character", Path(work) / "data")
            ).root
        )
        for k in range(rounds):
            for method in ("lora", "dreambooth"):
                run = train(
                    preset(
                        method,
                        data=data,
                        output=f"{work}/{method}_{k}",
                        steps=steps,
                        sample_every=0,
                    )
                )
                result = read_json(run / "metrics.json")
                found[method].append(result["seconds_per_step"])
                peaks[method] = {
                    key: result[key]
                    for key in (
                        "peak_bytes",
                        "peak_by_category",
                        "file_bytes",
                        "trainable_parameters",
                    )
                }
            found["ratio"].append(found["dreambooth"][-1] / found["lora"][-1])
            start = time.perf_counter()
            base.generate(["a red robot in the snow"] * 8, range(8), base.sample_steps)
            found["picture"].append((time.perf_counter() - start) / 8)
            if k < 3:
                start = time.perf_counter()
                code = COLD.format(method="lora", data=data, output=f"{work}/cold_{k}")
                subprocess.run(
                    [sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.DEVNULL
                )
                found["cold start"].append(time.perf_counter() - start)
        device, picture_steps = device_name(base.device), base.sample_steps
    return {
        "seconds": {name: middle(values) for name, values in found.items()},
        "memory": peaks,
        "device": device,
        "steps": steps,
        "picture_steps": picture_steps,
        "versions": versions(),
    }


def picture():
    """The README's picture: the same prompts and seeds by the base model and the course's three
    contestants, under the real photos.
    """
    from PIL import Image

    from lib.plots.image_grid import grid

    data = load_dataset(COURSE / "data")
    items = [*data.test, *data.train][: len(SHOWN)]
    rank = preset("lora", data="-", output="-").rank
    cut, _ = extract(COURSE / "dreambooth", rank, progress=lambda done, total: None)
    models = {
        "base model": load_base(),
        "LoRA": load_run(COURSE / "lora", load_base()),
        "DreamBooth": load_run(COURSE / "dreambooth", load_base()),
        "DreamBooth cut to a LoRA": load_adapters(load_base(), {"cut": cut}),
    }
    seeds = [3000 + k for k in range(len(SHOWN))]
    rows = []
    for name, model in models.items():
        known = name != "base model"
        words = [prompts(data.subject, place, with_identifier=known) for place in SHOWN]
        rows.append(model.generate(words, seeds))
    # At this scale the labels can be read on a phone, which shows the sheet half as wide.
    drawn = grid(rows, rows=list(models), columns=SHOWN, scale=2).image
    places = [item.caption.removeprefix(prompts(data.subject)).strip() for item in items]
    photos = grid(
        [[Image.open(item.path) for item in items]], rows=["photos"], columns=places, scale=2
    ).image
    sheet = Image.new("RGB", (drawn.width, photos.height + drawn.height), "white")
    sheet.paste(
        photos, (drawn.width - photos.width, 0)
    )  # the photos stand in places of their own, so they have their own heads
    sheet.paste(drawn, (0, photos.height))
    sheet.save(PICTURE)


def figures(found):
    """The section of figures of docs/results.md, as Markdown, from what was measured."""
    s, memory, course = found["seconds"], found["memory"], found.get("course")

    lines = [
        (
            f"Measured on {found['device']}, torch {found['versions']['torch']}: median (smallest"
            f" to largest) of {s['lora']['rounds']} rounds."
        ),
        "",
        "| | LoRA | DreamBooth |",
        "| --- | ---: | ---: |",
        (
            f"| seconds a training step, 4 instance + 4 class images | {spread(s['lora'], 3)} |"
            f" {spread(s['dreambooth'], 3)} |"
        ),
        (
            f"| peak memory of the step, MiB | {memory['lora']['peak_bytes'] / 2**20:.0f} |"
            f" {memory['dreambooth']['peak_bytes'] / 2**20:.0f} |"
        ),
        (
            f"| file as shipped, MiB | {memory['lora']['file_bytes'] / 2**20:.2f} |"
            f" {memory['dreambooth']['file_bytes'] / 2**20:.2f} |"
        ),
        (
            f"| weights that train | {memory['lora']['trainable_parameters']:,} |"
            f" {memory['dreambooth']['trainable_parameters']:,} |"
        ),
        "",
        (
            f"In the same round a DreamBooth step took {spread(s['ratio'])} times as long as a LoRA"
            " step; the table's medians are each of their own rounds, so their quotient differs. A"
            f" picture of {found['picture_steps']} guided steps takes {spread(s['picture'])} s;"
            f" LoRA's cold start to the end of its first step, in {s['cold start']['rounds']}"
            f" rounds, {spread(s['cold start'], 1)} s."
        ),
    ]
    if course:
        lines += [
            f"`make course` took {course['seconds'] / 60:.1f} minutes after installation, and at"
            f" its peak {course['peak_rss_bytes'] / 2**30:.2f} GiB of resident memory."
        ]
    if found.get("notebooks"):
        total = sum(found["notebooks"].values())
        shares = (
            f"{name[:2]} {seconds:.0f} s ({seconds / total:.0%})"
            for name, seconds in sorted(found["notebooks"].items())
        )
        lines += [f"Of that the notebooks took: {', '.join(shares)}."]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    found = measure(args.rounds, args.steps)
    if (COURSE / "summary.json").is_file():
        summary = read_json(COURSE / "summary.json")
        found["course"] = summary.get("course")
        # What the default run scored: held against where PocketBench's subjects lie.
        found["scores"] = {
            name: {key: summary[name][key] for key in COLUMNS if key in summary[name]}
            for name in CONTESTANT_NAMES
            if name in summary
        }
        found["notebooks"] = (
            read_json(COURSE / "timings.json") if (COURSE / "timings.json").is_file() else None
        )
        picture()
    write_json(RESULTS, found)
    into_file(RESULTS_PAGE, "bench", figures(found))
    print(figures(found))


if __name__ == "__main__":
    main()
