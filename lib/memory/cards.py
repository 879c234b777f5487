"""Which recipe fits which card, before anything is downloaded. `python -m lib forecast` prints it:

    python -m lib forecast --base sdxl --method dreambooth --resolution 1024 --card 12 --json
    python -m lib forecast --base sd15 --set data=runs/mine/data  # its largest pictures
    python -m lib forecast --base sd15 --card T4                  # a card by name

A card offers less than its name. `usable_bytes` takes off 0.8 GiB for the CUDA context and cuDNN's
workspaces (together about 0.5) and a desktop (0.3), and asks that a forecast and 8 % more go into
what is left: its own error, and what PyTorch's allocator cannot fill. A T4, sold as 16 GB, has
14.7 GiB. Counted is the worst of two moments: the training step, when VAE and text encoders have
left the card, and before it the encoding of the pictures, when the denoiser has not come yet. Not
counted are samples and measurements along the way, for which VAE and text encoders come back beside
the step's weights: where there is no memory for them, they are left out, and the training goes on.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from functools import cache
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from lib.config import METHOD_NAMES, METHODS, Settings, described
from lib.dataset.imagefolder import load_dataset
from lib.files import ROOT, BadInput, read_json
from lib.files.text import gib_cell
from lib.memory.forecasting import (
    caching_bytes,
    forecast,
    known_shape,
    largest_size,
    plan,
    square_side,
)
from lib.memory.known_cards import KNOWN_CARDS, Card, card_at_hand, card_named
from lib.memory.ladder import choose_rung, recipes
from lib.models.devices import fast_arithmetic, free_memory
from lib.plots import Table

CARDS = (4, 6, 8, 12, 16, 24, 48)  # GB by name, which are GiB

# The rows of "which fits": sizes, which are of cards with fast bf16, and cards by name.
TABLE = (*(Card(f"{size} GB", size) for size in CARDS), *KNOWN_CARDS)

RESERVED = int(0.8 * 2**30)  # bytes
MARGIN = 1.08  # over a forecast

# Settings that no byte of a step depends on, or that `recipe_key` says in another way.
WITHOUT_BYTES = (
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
    "keep",
    "resolution",
)

RESULTS = ROOT / "data" / "results" / "forecast.json"

# What was forecast in this process, by recipe and device: a training asks twice.
_forecasts: dict[str, dict[str, Any]] = {}

# (what, GB as published, source): shared by notebooks beside our own figures.
PUBLISHED = (
    ("Stable Diffusion 1.4, all weights", 27.5, "PEFT README, on an A100"),
    ("Stable Diffusion 1.4, LoRA", 15.5, "PEFT README, on an A100"),
    ("Stable Diffusion 1.4, LoRA with checkpointing", 8.12, "PEFT README, on an A100"),
    ("Stable Diffusion 1.5, all weights, checkpointing and 8-bit Adam", 16, "diffusers README"),
    ("SDXL, LoRA", "8 to 16", "kohya, diffusers READMEs"),
    ("SDXL, all weights", 24, "kohya README"),
)


def usable_bytes(card: float) -> int:
    """Bytes that a forecast may take on a card of `card` GB."""
    return int((card * 2**30 - RESERVED) / MARGIN)


def usable_bytes_now(device: torch.device, held: int = 0) -> int:
    """Bytes that a forecast may take on the device at hand: what other programs leave of it.

    `held` are bytes that are there already and that the forecast counts too.
    """
    if device.type == "cpu":
        return int((free_memory() + held) / MARGIN)
    free, total = torch.cuda.mem_get_info(device)
    ours = free + torch.cuda.memory_reserved(device)
    return min(usable_bytes(total / 2**30), int(ours / MARGIN))


def recipe_key(settings: Settings) -> dict[str, Any]:
    """What a forecast depends on, as it stands in data/results/forecast.json.

    Settings that bytes depend on and that are not the default.
    """
    values = asdict(settings) | {"base": known_shape(settings.base)}
    given = {
        f.name: values[f.name]
        for f in fields(settings)
        if f.name not in WITHOUT_BYTES and values[f.name] != f.default
    }
    width, height = largest_size(settings)
    return given | {
        "class_images": settings.prior_weight > 0,
        "resolution": width if width == height else [width, height],
    }


@cache
def stored_forecasts() -> list[dict[str, Any]]:
    """The rows of data/results/forecast.json.

    They count with other versions of the stack too, since a step's tensors hardly change with
    these: made with torch 2.13, they were within 8 % of what a card took under 2.11
    (benchmarks/README.md).
    """
    return read_json(RESULTS)["rows"] if RESULTS.is_file() else []


def expects_fast(device: str) -> str:
    """What "cuda" or "cpu" is fast in: the one at hand, without one a common card, bf16."""
    if device == "cuda" and not torch.cuda.is_available():
        return "bf16"
    return fast_arithmetic(torch.device(device))


def forecast_recipe(
    settings: Settings, device: str = "cuda", fast: str | None = None
) -> dict[str, Any]:
    """The bytes that a recipe takes, from stored forecasts or a new one.

    - "bytes" of the step, and the same split in "by_category"
    - "caching_bytes" of what comes before the step

    `fast`: as `forecast` has it, if not as `expects_fast` says. Stored ones are of cards with fast
    bf16.
    """
    fast = fast or expects_fast(device)
    recipe = recipe_key(settings)
    if device == "cuda" and fast == "bf16":
        for row in stored_forecasts():
            if row["recipe"] == recipe:
                return {name: row[name] for name in ("bytes", "caching_bytes", "by_category")}
    key = json.dumps([recipe, device, fast])
    if key not in _forecasts:
        before = {"caching_bytes": caching_bytes(settings, device, fast=fast)}
        _forecasts[key] = asdict(forecast(settings, device, fast=fast)) | before
    return _forecasts[key]


def needed_bytes(found: Mapping[str, Any]) -> int:
    """Bytes that a device must have for what `forecast_recipe` gives, or a stored row.

    The step's or those before it, whichever are more.
    """
    return max(found["bytes"], found["caching_bytes"])


def choose_recipe_for(
    settings: Settings, device: torch.device, held: int = 0
) -> tuple[Settings, str]:
    """The least slow recipe from `settings` down that `device` has memory for, and a sentence.

    `held` bytes of weights are there already. Raises BadInput for none.
    """
    machine = "machine" if device.type == "cpu" else torch.cuda.get_device_name(device)
    recipe, _, sentence = choose_rung(
        settings,
        usable_bytes_now(device, held),
        lambda recipe: needed_bytes(forecast_recipe(recipe, device.type)),
        f"this {machine}",
        device,
    )
    return recipe, sentence


def forecast_ladder(
    settings: Settings, device: str = "cuda", fast: str | None = None
) -> list[dict[str, Any]]:
    """The forecasts of all recipes from `settings` down, the least slow first.

    Each has "given_up" (a list of words), "settings", and what `forecast_recipe` gives.
    """
    return [
        {"given_up": list(given_up), "settings": recipe} | forecast_recipe(recipe, device, fast)
        for recipe, given_up in recipes(settings)
    ]


def first_that_fits(ladder: Sequence[Mapping[str, Any]], room: float) -> Mapping[str, Any] | None:
    """The first recipe of a `forecast_ladder` that fits into `room` bytes, or None."""
    return next((one for one in ladder if needed_bytes(one) <= room), None)


def recipe_name(given_up: Iterable[str]) -> str:
    """A recipe in words: what the ladder gave up."""
    return "; ".join(words.split(",")[0] for words in given_up) or "plain"


def fitting_recipes(base: str, device: torch.device) -> str:
    """The least slow recipe of each method that fits what a device has free, in words."""
    told = []
    for method in METHODS:
        ladder = forecast_ladder(plan(method, base), device.type)
        fits = first_that_fits(ladder, usable_bytes_now(device))
        words = recipe_name(fits["given_up"]) if fits else "no recipe fits"
        told.append(f"{METHOD_NAMES[method]}: {words}")
    return "; ".join(told)


def which_fits(base: str = "sd15", **changes: Any) -> Table:
    """A `Table` of the least slow recipe of both methods that fits each common card, and its GiB.

    At once for the recipes of data/results/forecast.json; a changed batch size or rank takes
    seconds for each rung of the ladder. Cards that are fast in fp16 take what those in bf16 take,
    within 2 %; one that is fast in fp32 alone takes up to twice that and is left out.
    """
    settings = {method: plan(method, base, **changes) for method in METHODS}
    ladders = {method: forecast_ladder(settings[method], fast="bf16") for method in METHODS}
    rows = []
    for card in (one for one in TABLE if one.fast != "fp32"):
        row = [card.name, usable_bytes(card.gib) / 2**30]
        for method in METHODS:
            found = _card_row(ladders[method], card)
            row += [found["recipe"] or "none", found["bytes"] and found["bytes"] / 2**30]
        rows.append(row)
    columns = ["card", "to be had, GiB"]
    for method in METHODS:
        columns += [METHOD_NAMES[method], f"{METHOD_NAMES[method]} needs, GiB"]
    at = f"{base} at {square_side(settings['lora'])} pixels"
    return Table(rows, columns, f"Forecast for {at}: the least slow recipe that fits")


def published() -> Table:
    """A `Table` of published figures to hold beside a forecast.

    They include what a process holds besides the step.
    """
    return Table(PUBLISHED, ["training", "GB", "source"], "Published peaks of memory")


def smallest_recipes(
    rows: Sequence[Mapping[str, Any]] | None = None,
) -> dict[tuple[str, str], float]:
    """{(base, method): bytes} of the smallest recipe with class images, of stored forecasts.

    What `lib.evaluation.advice.advise` takes.
    """
    found: dict[tuple[str, str], float] = {}
    for row in stored_forecasts() if rows is None else rows:
        if row["recipe"]["class_images"]:
            pair = row["recipe"].get("base", "pocket"), row["recipe"]["method"]
            found[pair] = min(needed_bytes(row), found.get(pair, needed_bytes(row)))
    return found


def settings_for(
    base: str, method: str, resolution: int | None = None, changes: Iterable[str] = ()
) -> Settings:
    """The `Settings` that a command line names; `changes` are texts such as "rank=32".

    Raises BadInput.
    """
    values = dict(_read_change(text) for text in changes)
    if "data" in values:
        load_dataset(values["data"])
    return plan(method, base, resolution=resolution, **values)


def _read_change(text: str) -> tuple[str, Any]:
    setting, equals, value = text.partition("=")
    if setting in ("base", "method", "resolution"):
        raise BadInput(f"--set {text} has an option of its own: write --{setting} {value}.")
    known = described(Settings)
    kind = known[setting].kind if setting in known else str
    try:
        if equals:
            return setting, TypeAdapter(kind).validate_python(value)
    except ValidationError:
        pass
    raise BadInput(
        f"--set {text} is no setting with its value: write it as in --set rank=32 or"
        " checkpointing=all."
    )


def read_card(text: str | None) -> Card:
    """The card that a command line names, by GB or by name; None is the one in this machine.

    Without one, a card of 8 GB. Raises BadInput.
    """
    if text is None:
        return card_at_hand() or Card("a card of 8 GB", 8)
    try:
        size = float(text)
    except ValueError:
        if known := card_named(text):
            return known
        raise BadInput(
            f"Invalid value for '--card': {text!r} is neither the card's memory in GB, such as 8,"
            f" nor one of {', '.join(card.name for card in KNOWN_CARDS)}."
        ) from None
    if not 0 < size <= 1000:
        raise BadInput(f"--card is {size}: give the card's memory in GB, such as 8.")
    return Card(f"a card of {size:g} GB", size, expects_fast("cuda"))


def report(settings: Settings, card: str | None = None, device: str = "cuda") -> dict[str, Any]:
    """What `print_forecast` prints, as a dict; sizes are bytes.

    - card: the card to choose for, as `read_card` reads it
    - device: whose kernels are counted, "cuda" or "cpu"

    Raises BadInput if no recipe fits the largest card.
    """
    chosen = read_card(card)
    if device not in ("cuda", "cpu"):
        raise BadInput(f"--device is {device}: give cuda or cpu.")
    ladder = forecast_ladder(settings, device, chosen.fast if device == "cuda" else None)
    sizes = {one["settings"]: needed_bytes(one) for one in ladder}
    most = max(*CARDS, chosen.gib)
    anywhere = f"any common card, {most:g} GB the largest"
    choose_rung(settings, usable_bytes(most), sizes.__getitem__, anywhere)
    try:
        *_, sentence = choose_rung(
            settings, usable_bytes(chosen.gib), sizes.__getitem__, chosen.name
        )
    except BadInput as error:
        sentence = str(error)
    return {
        "base": settings.base,
        "method": settings.method,
        "resolution": recipe_key(settings)["resolution"],
        "batch_size": settings.batch_size,
        "class_images": settings.prior_weight > 0 and settings.prior == "images",
        "device": device,
        "recipes": [
            {
                "recipe": recipe_name(one["given_up"]),
                "bytes": one["bytes"],
                "by_category": one["by_category"],
            }
            for one in ladder
        ],
        "card": chosen.name,
        "fast": chosen.fast,
        "cards": [_card_row(ladder, one) for one in TABLE if _like(one, chosen)],
        "sentence": sentence,
        "caching_bytes": ladder[0]["caching_bytes"],
    }


def _like(card: Card, chosen: Card) -> bool:
    """Whether a ladder that was forecast for one card holds for the other too."""
    return (card.fast == "fp32") == (chosen.fast == "fp32")


def _card_row(ladder: Sequence[Mapping[str, Any]], card: Card) -> dict[str, Any]:
    found = first_that_fits(ladder, usable_bytes(card.gib))
    return {
        "card": card.name,
        "card_gb": card.gib,
        "usable_bytes": usable_bytes(card.gib),
        "recipe": recipe_name(found["given_up"]) if found else None,
        "bytes": needed_bytes(found) if found else None,
    }


def print_forecast(
    settings: Settings, card: str | None = None, device: str = "cuda", as_json: bool = False
) -> None:
    """Print `report` as two tables and a sentence, or as JSON. Raises BadInput as it does."""
    found = report(settings, card, device)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    size = found["resolution"]
    pixels = size if isinstance(size, int) else f"{size[0]} x {size[1]}"
    more = " and as many class images" if found["class_images"] else ""
    title = (
        f"{METHOD_NAMES[found['method']]} on {found['base']} at {pixels} pixels, batch"
        f" {found['batch_size']}{more}: peak of the training step, GiB"
    )
    kinds = list(found["recipes"][0]["by_category"])
    rows = [
        [
            gib_cell(one["bytes"]),
            *(gib_cell(one["by_category"][kind]) for kind in kinds),
            one["recipe"],
        ]
        for one in found["recipes"]
    ]
    print(Table(rows, ["peak", *kinds, "recipe"], title), end="\n\n")
    rows = [
        [
            one["card"],
            gib_cell(one["usable_bytes"]),
            gib_cell(one["bytes"]),
            one["recipe"] or "none",
        ]
        for one in found["cards"]
    ]
    columns = ["card", "to be had", "needed", "the least slow recipe that fits"]
    print(Table(rows, columns), end="\n\n")
    if found["fast"] != "bf16" and device == "cuda":
        print(f"{found['card']} is slow in bf16: counted is what it is fast in, {found['fast']}.")
    if card is None and device == "cuda" and not card_at_hand():
        print(
            "No card was named and none is in this machine, so one of 8 GB is taken: name yours, as"
            " in --card 12."
        )
    print(found["sentence"])
    print(
        "Before the first step, while pictures are encoded and the U-Net waits:"
        f" {gib_cell(found['caching_bytes'])} GiB, needed in any case."
    )
