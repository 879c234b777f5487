"""The forecast against the card: the peak of a real training step on CUDA, with random weights in
the shapes of Stable Diffusion.

    python -m benchmarks.cuda_memory [sd15 sdxl] [--methods lora] [--precision fp16]

Writes benchmarks/results/cuda_memory.json; needs a GPU and no weights.

For each recipe of the ladder, batch size 1 with and without class images,
`torch.cuda.max_memory_allocated` of the second step, and where steps are recorded
(`lib/step/cuda_graph.py`) of the third, which is, and the fourth. The README beside this file has
them next to the forecasts that ship (data/results/forecast.json). Wanted: within 8 %. With
`--precision fp16` each trains in what cards without bf16 do, whatever this one is fast in; the
forecast of that is made on the way.
"""

import argparse
from pathlib import Path

import torch

from lib.config.names import METHOD_NAMES
from lib.config.settings import METHODS
from lib.files.json_file import read_json, write_json
from lib.files.paths import ROOT
from lib.files.text import say
from lib.memory.cards import recipe_key, stored_forecasts
from lib.memory.forecasting import forecast
from lib.models.devices import device_name, reclaim, versions
from lib.models.pipeline import silence_libraries

from .floor import best
from .forecast import wanted
from .random_base import step_of
from .sections import OWN_README, into_file, rows_before

RESULTS = ROOT / "benchmarks" / "results" / "cuda_memory.json"


def measure(settings, device):
    """Of a training with `settings` on a CUDA device {"bytes": peak of the second step, "recorded":
    of the third and fourth, "reserved": what the allocator holds then, "seconds": of a step after
    these}.
    """
    step, inputs = step_of(settings, device)
    step(*inputs)
    reclaim(device)
    found = {
        "bytes": _peak(lambda: step(*inputs)),
        "recorded": _peak(lambda: (step(*inputs), step(*inputs))),
    }
    return found | {
        "reserved": torch.cuda.memory_reserved(),
        "seconds": best(lambda: step(*inputs), device, 5),
    }


def workspaces(device):
    """Bytes that cuBLAS takes for itself on this card at the first product and keeps:
    `lib.memory.fake_tensors.WORKSPACE` by measurement.
    """
    reclaim(device)
    before = torch.cuda.memory_allocated()
    a, b = (torch.ones(64, 64, device=device, dtype=torch.bfloat16) for _ in range(2))
    torch.nn.functional.linear(a, b, b[0])
    torch.matmul(a, b)
    return torch.cuda.memory_allocated() - before - a.nbytes - b.nbytes


def _peak(do):
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    do()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def figures(found):
    """The measurements beside the forecasts, as Markdown; None is what was not measured."""
    if found is None:
        return "Not measured on this version yet: `python -m benchmarks.cuda_memory`.\n"
    lines = [
        (
            f"On {found['device']}, torch {found['versions']['torch']}, diffusers"
            f" {found['versions']['diffusers']}, batch size 1, GiB. The column forecast is what"
            " `python -m lib forecast` prints."
        ),
        "",
        (
            "| | class images | given up | forecast | measured | error | recorded | reserved |"
            " seconds a step |"
        ),
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row, predicted in against(found):
        given_up = "; ".join(words.partition(",")[0] for words in row["given_up"]) or "nothing"
        sizes = [f"{size / 2**30:.2f}" for size in (predicted, row["bytes"])]
        more = [
            f"{row[name] / 2**30:.2f}" if row[name] else "-" for name in ("recorded", "reserved")
        ]
        cells = [
            f"{row['base']}, {METHOD_NAMES[row['method']]}",
            "yes" if row["class_images"] else "no",
            given_up,
            *sizes,
            f"{predicted / row['bytes'] - 1:+.1%}",
            *more,
            f"{row['seconds']:.3f}" if row["seconds"] else "-",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def against(found):
    """[(row, bytes forecast for it)] of what was measured, in the order of the forecasts that ship;
    then rows that have a forecast of their own.
    """
    measured = {str(row["recipe"]): row for row in found["rows"]}
    shipped = [
        (measured[str(row["recipe"])], row["bytes"])
        for row in stored_forecasts()
        if str(row["recipe"]) in measured
    ]
    return shipped + [(row, row["forecast"]) for row in found["rows"] if "forecast" in row]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bases", nargs="*", default=["sd15", "sdxl"])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--precision", choices=("auto", "fp16"), default="auto")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit(
            "There is no CUDA device here: the forecast for Stable Diffusion stays unconfirmed"
            " until this runs on one."
        )
    silence_libraries()
    device = torch.device("cuda")
    found = {
        "device": device_name(device),
        "versions": versions(),
        "units": "bytes",
        "workspaces": workspaces(device),
        "rows": [],
    }
    kept = rows_before(args.output, found, "device", "versions")
    for settings, words in wanted(args.bases):
        if settings.method not in args.methods:
            continue
        settings = settings.replace(precision=args.precision)
        reclaim(device)  # of the recipe before
        try:
            measured = measure(settings, device)
        except torch.OutOfMemoryError:
            say(f"{recipe_key(settings)}: out of memory")
            continue
        about = {
            "recipe": recipe_key(settings),
            "base": settings.base,
            "method": settings.method,
            "class_images": settings.prior_weight > 0,
        }
        if args.precision != "auto":
            words = (*words, f"{args.precision} arithmetic")
            about["forecast"] = forecast(settings).bytes
        found["rows"].append(about | {"given_up": list(words)} | measured)
        say(f"{settings.base}, {settings.method}: {measured}")
        new = [row["recipe"] for row in found["rows"]]
        write_json(
            args.output,
            found | {"rows": [row for row in kept if row["recipe"] not in new] + found["rows"]},
        )
    if args.output == RESULTS:
        into_file(OWN_README, "cuda memory", figures(read_json(RESULTS)))


if __name__ == "__main__":
    main()
