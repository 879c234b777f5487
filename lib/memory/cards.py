"""Which recipe fits which card, before anything is downloaded. `python -m lib forecast` prints it:

    python -m lib forecast --base sdxl --method dreambooth --resolution 1024 [--card 12] [--set prior_weight=0] [--json]
    python -m lib forecast --base sd15 --set data=runs/mine/data      # for the largest of a data set's pictures

A card offers less than its name. `usable` takes off 0.8 GiB for the CUDA context and cuDNN's
workspaces (together about 0.5) and a desktop (0.3), and asks that a forecast and 8 % more fit the
rest: its own error, and what PyTorch's allocator cannot fill. A T4, sold as 16 GB, has 14.7 GiB.
Counted is the worst of two moments: the training step, when VAE and text encoders have left the
card, and before it the encoding of the pictures, when the U-Net has not come yet. Not counted are
samples and measurements along the way, for which VAE and text encoders come back beside the step's
weights: where they do not fit, they are left out, and the training goes on.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, fields

import torch

from lib.config.checked import described
from lib.config.names import METHOD_NAMES
from lib.config.settings import METHODS, Settings
from lib.dataset.imagefolder import load_dataset
from lib.files.errors import BadInput
from lib.files.json_file import read_json
from lib.files.paths import ROOT
from lib.memory.forecasting import caching, forecast, largest, plan, shape_of, side
from lib.memory.ladder import choose, recipes
from lib.models.devices import free_memory, has_fast_bf16
from lib.plots.figure import Table

CARDS = (4, 6, 8, 12, 16, 24, 48)  # GB by name, which are GiB


TAKEN, SLACK = 0.8 * 2**30, 1.08


# Settings that no byte of a step depends on, or that `key` says in another way.
WEIGHTLESS = (
    "data",
    "output",
    "seed",
    "steps",
    "learning_rate",
    "alpha",
    "prior_weight",
    "snr_gamma",
    "clip",
    "warmup",
    "cooldown",
    "sample_every",
    "sample_steps",
    "guidance",
    "save_every",
    "resolution",
)


RESULTS = ROOT / "data" / "results" / "forecast.json"


FRESH = {}  # what was forecast in this process, by recipe and device: a training asks twice


# (what, GB as published, source): shared by notebooks beside our own figures.
PUBLISHED = (
    ("Stable Diffusion 1.4, all weights", 27.5, "PEFT README, on an A100"),
    ("Stable Diffusion 1.4, LoRA", 15.5, "PEFT README, on an A100"),
    ("Stable Diffusion 1.4, LoRA with checkpointing", 8.12, "PEFT README, on an A100"),
    ("Stable Diffusion 1.5, all weights, checkpointing and 8-bit Adam", 16, "diffusers README"),
    ("SDXL, LoRA", "8 to 16", "kohya, diffusers READMEs"),
    ("SDXL, all weights", 24, "kohya README"),
)


def usable(card):
    """Bytes that a forecast may take on a card of `card` GB."""
    return int((card * 2**30 - TAKEN) / SLACK)


def room(device, held=0):
    """Bytes that a forecast may take on the device at hand, now: what other programs leave of it,
    and `held`, which the forecast counts too, is there already.
    """
    if device.type == "cpu":
        return int((free_memory() + held) / SLACK)
    free, total = torch.cuda.mem_get_info(device)
    return min(usable(total / 2**30), int((free + torch.cuda.memory_reserved(device)) / SLACK))


def key(settings):
    """What a forecast depends on, as it stands in data/results/forecast.json: settings that weigh
    something and are not the default.
    """
    values = {
        f.name: getattr(settings, f.name) for f in fields(settings) if f.name not in WEIGHTLESS
    } | {"base": shape_of(settings.base)}
    given = {
        f.name: values[f.name]
        for f in fields(settings)
        if f.name in values and values[f.name] != f.default
    }
    pixels = largest(settings)
    return given | {
        "class_images": settings.prior_weight > 0,
        "resolution": pixels[0] if pixels[0] == pixels[1] else list(pixels),
    }


def stored():
    """The rows of data/results/forecast.json. They count with other versions of the stack too,
    since a step's tensors hardly change with these: made with torch 2.13, they were within 8 % of
    what a card took under 2.11 (benchmarks/README.md).
    """
    return read_json(RESULTS)["rows"] if RESULTS.is_file() else []


def bf16_on(device):
    """Whether "cuda" or "cpu" multiplies bf16 fast: the one at hand, or where there is none a
    common card.
    """
    return (
        has_fast_bf16(torch.device(device))
        if device == "cpu" or torch.cuda.is_available()
        else True
    )


def weigh(settings, device="cuda", rows=None, bf16=None):
    """{"bytes" of the step, "caching_bytes" of what comes before it, "by_category" of the step} of
    a recipe: one of the `rows` of data/results/forecast.json, which are of cards with fast bf16, or
    a new forecast. `bf16`: as `forecast` has it, if not `bf16_on` it.
    """
    bf16, wanted = bf16_on(device) if bf16 is None else bf16, key(settings)
    if device == "cuda" and bf16:
        for row in stored() if rows is None else rows:
            if row["recipe"] == wanted:
                return {name: row[name] for name in ("bytes", "caching_bytes", "by_category")}
    mine = json.dumps([wanted, device, bf16])
    if mine not in FRESH:
        FRESH[mine] = asdict(forecast(settings, device, bf16=bf16)) | {
            "caching_bytes": caching(settings, device, bf16=bf16)
        }
    return FRESH[mine]


def needed(weighed):
    """Bytes that a device must have for what `weigh` gives, or a row: the step's or those before
    it, whichever are more.
    """
    return max(weighed["bytes"], weighed["caching_bytes"])


def choose_for(settings, device, held=0):
    """(settings, sentence): the least slow recipe from `settings` down that `device` has room for,
    of which `held` bytes of weights are there already. Raises BadInput for none.
    """
    rows, where = (
        stored(),
        "this machine" if device.type == "cpu" else f"this {torch.cuda.get_device_name(device)}",
    )
    return choose(
        settings, room(device, held), lambda s: needed(weigh(s, device.type, rows)), where, device
    )[::2]


def ladder(settings, device="cuda", bf16=None):
    """The forecasts of all recipes from `settings` down, the least slow first: dicts with "words",
    "settings", and what `weigh` gives.
    """
    rows = stored()
    return [
        {"words": list(words), "settings": s} | weigh(s, device, rows, bf16)
        for s, words in recipes(settings)
    ]


def pick(weighed, card):
    """The first of `ladder`'s recipes that fits a card, or None."""
    return next((recipe for recipe in weighed if needed(recipe) <= usable(card)), None)


def name(words):
    """A recipe in words: what the ladder gave up."""
    return "; ".join(w.split(",")[0] for w in words) or "plain"


def which_fits(base="sd15", **changes):
    """A `Table` for notebooks: for each common card, with fast bf16, the least slow recipe of both
    methods that fits, and the GiB it needs.

    At once for the recipes of data/results/forecast.json; a changed batch size or rank takes
    seconds for each rung of the ladder.
    """
    asked = {m: plan(m, base, **changes) for m in METHODS}
    both = {m: ladder(asked[m], bf16=True) for m in METHODS}
    rows = []
    for card in CARDS:
        row = [f"{card} GB", usable(card) / 2**30]
        for method in METHODS:
            found = pick(both[method], card)
            row += [name(found["words"]), needed(found) / 2**30] if found else ["none", None]
        rows.append(row)
    columns = [
        "card",
        "to be had, GiB",
        *(c for m in METHODS for c in (METHOD_NAMES[m], f"{METHOD_NAMES[m]} needs, GiB")),
    ]
    return Table(
        rows,
        columns,
        f"Forecast for {base} at {side(asked['lora'])} pixels: the least slow recipe that fits",
    )


def published():
    """A `Table` of published figures to hold beside a forecast. They include what a process holds
    besides the step.
    """
    return Table(PUBLISHED, ["training", "GB", "source"], "Published peaks of memory")


def for_guide(rows=None):
    """{(base, method): bytes} of the smallest recipe with class images, from
    data/results/forecast.json: what `lib.evaluation.advice.advise` takes.
    """
    found = {}
    for row in stored() if rows is None else rows:
        if row["recipe"]["class_images"]:
            pair = row["recipe"].get("base", "pocket"), row["recipe"]["method"]
            found[pair] = min(needed(row), found.get(pair, needed(row)))
    return found


def settings_for(
    base: str, method: str, resolution: int | None = None, changes: Iterable[str] = ()
) -> Settings:
    """The `Settings` that a command line names; `changes` are texts such as "rank=32".

    Raises BadInput.
    """
    known = described(Settings)
    values = {}
    for pair in changes:
        setting, equals, value = pair.partition("=")
        kind = known[setting].kind if setting in known else str
        if setting in ("base", "method", "resolution"):
            raise BadInput(f"--set {pair} has an option of its own: write --{setting} {value}.")
        try:
            if not equals or kind is bool and value.lower() not in ("true", "false"):
                raise ValueError
            values[setting] = value.lower() == "true" if kind is bool else kind(value)
        except ValueError:
            raise BadInput(
                f"--set {pair} is no setting with its value: write it as in --set rank=32 or"
                " checkpointing=all."
            ) from None
    if "data" in values:
        load_dataset(values["data"])
    return plan(method, base, resolution=resolution, **values)


def report(settings: Settings, card: float | None = None, device: str = "cuda") -> dict:
    """What `print_forecast` prints, as a dict in bytes.

    `card` is the GB of the card to choose for: the one in this machine, or 8, if not given;
    `device` says whose kernels are counted. Raises BadInput if no recipe fits the largest card.
    """
    if card is not None and not 0 < card <= 1000:
        raise BadInput(f"--card is {card}: give the card's memory in GB, such as 8.")
    if device not in ("cuda", "cpu"):
        raise BadInput(f"--device is {device}: give cuda or cpu.")
    card = card or (
        round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)
        if torch.cuda.is_available()
        else 8
    )
    weighed = ladder(settings, device)
    sizes = {recipe["settings"]: needed(recipe) for recipe in weighed}
    most = max(*CARDS, card)
    choose(settings, usable(most), sizes.get, f"any common card, {most:g} GB the largest")
    try:
        sentence = choose(settings, usable(card), sizes.get, f"a card of {card:g} GB")[2]
    except BadInput as error:
        sentence = str(error)
    cards = []
    for size in CARDS:
        fits = pick(weighed, size)
        recipe = fits and name(fits["words"])
        cards.append(
            {
                "card_gb": size,
                "usable_bytes": usable(size),
                "recipe": recipe,
                "bytes": fits and needed(fits),
            }
        )
    found = [
        {"recipe": name(w["words"]), "bytes": w["bytes"], "by_category": w["by_category"]}
        for w in weighed
    ]
    return {
        "base": settings.base,
        "method": settings.method,
        "resolution": key(settings)["resolution"],
        "batch_size": settings.batch_size,
        "class_images": settings.prior_weight > 0,
        "device": device,
        "recipes": found,
        "cards": cards,
        "sentence": sentence,
        "caching_bytes": weighed[0]["caching_bytes"],
    }


def print_forecast(
    settings: Settings, card: float | None = None, device: str = "cuda", as_json: bool = False
) -> None:
    """Print `report` as two tables and a sentence, or as JSON. Raises BadInput as it does."""
    found = report(settings, card, device)
    if as_json:
        return print(json.dumps(found, indent=1))
    pictures = (
        f"batch {found['batch_size']}{' and as many class images' if found['class_images'] else ''}"
    )
    at = (
        found["resolution"]
        if isinstance(found["resolution"], int)
        else "{} x {}".format(*found["resolution"])
    )
    title = (
        f"{METHOD_NAMES[found['method']]} on {found['base']} at {at} pixels, {pictures}: peak of the"
        " training step, GiB"
    )
    kinds = list(found["recipes"][0]["by_category"])
    rows = [
        [gib(r["bytes"]), *(gib(r["by_category"][k]) for k in kinds), r["recipe"]]
        for r in found["recipes"]
    ]
    print(Table(rows, ["peak", *kinds, "recipe"], title), end="\n\n")
    rows = [
        [f"{c['card_gb']} GB", gib(c["usable_bytes"]), gib(c["bytes"]), c["recipe"] or "none"]
        for c in found["cards"]
    ]
    print(
        Table(rows, ["card", "to be had", "needed", "the least slow recipe that fits"]), end="\n\n"
    )
    print(found["sentence"])
    print(
        "Before the first step, while pictures are encoded and the U-Net waits:"
        f" {gib(found['caching_bytes'])} GiB, needed in any case."
    )


def gib(size):
    """Bytes as GiB with two digits, as a cell."""
    return "-" if size is None else f"{size / 2**30:.2f}"
