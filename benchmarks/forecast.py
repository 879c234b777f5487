"""The forecasts that ship, data/results/forecast.json: every recipe of the ladder for three bases
and both methods at batch size 1 (the pocket base: 4), with class images and without, at the base's
own resolution, on CUDA.

    python -m benchmarks.forecast [base ...]        # half an hour on one slow core for all; without weights or GPU

Rows of the ladder as it is that were made with the versions installed are kept; delete the file
after changes of the step or the forecast.
"""

import sys
from importlib.metadata import version

from lib.config.settings import METHODS
from lib.files.json_file import read_json, write_json
from lib.memory.cards import RESULTS, key, stored
from lib.memory.forecasting import caching, forecast, plan
from lib.memory.ladder import recipes

BASES = ("pocket", "sd15", "sdxl")
STACK = (
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
)  # what a step's memory depends on


def wanted(bases=BASES):
    """(settings, words) of every row."""
    for base in bases:
        for method in METHODS:
            for prior_weight in (1.0, 0.0):
                yield from recipes(plan(method, base, prior_weight=prior_weight))


if __name__ == "__main__":
    now = [key(settings) for settings, _ in wanted()]
    stack = {
        package: version(package).partition("+")[0] for package in STACK
    }  # after a plus: the device that torch was built for
    kept = stored() if RESULTS.is_file() and read_json(RESULTS)["versions"] == stack else []
    rows = [row for row in kept if row["recipe"] in now]
    for settings, words in wanted(sys.argv[1:] or BASES):
        recipe = key(settings)
        if all(row["recipe"] != recipe for row in rows):
            found = forecast(settings)
            rows.append(
                {
                    "recipe": recipe,
                    "given_up": list(words),
                    "bytes": found.bytes,
                    "caching_bytes": caching(settings),
                    "by_category": found.by_category,
                }
            )
            write_json(
                RESULTS,
                {
                    "made_by": "python -m benchmarks.forecast",
                    "device": "cuda",
                    "versions": stack,
                    "rows": rows,
                },
            )
            print(
                settings.base,
                settings.method,
                settings.prior_weight,
                *words,
                f"{found.bytes / 2**30:.2f} GiB",
                sep="; ",
                flush=True,
            )
