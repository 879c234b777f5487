"""Several concepts in one model: adapters together with a weight each, or mixed into one by PEFT.

base = load_base("pocket")
adapters = {"robot": "runs/course/lora", "light": "data/adapters/lighting.safetensors"}
load_adapters(base, adapters, {"robot": 1.0, "light": 0.7})
base.generate(["a zwx robot in vqx light"], [0])
"""

import re
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

from lib.convert.adapter import (
    Adapter,
    Layer,
    Source,
    check_weights,
    diffusers_tensors,
    peft_config,
    read_adapter,
    write_peft,
)
from lib.convert.readers import loaded_layers, unfilled_model
from lib.files import BadInput
from lib.files.text import first_line
from lib.models import Base, BaseWeights, open_base_weights
from lib.models.compatibility import BASE, FINGERPRINT, check_compatible, trained_on
from lib.step import load_run

# PEFT's ways of mixing (peft.tuners.lora.model.LoraModel.add_weighted_adapter), and what each does,
# in a few words.
MIXES = {
    "cat": "every update whole, side by side: the exact sum, and the sum of the ranks",
    "linear": "A's and B's are summed separately, so the cross terms A1 B2 and A2 B1 appear too",
    "svd": "the exact sum, cut back to one adapter's rank",
    "ties_svd": "small values dropped, signs voted on, then as svd (Yadav et al. 2023)",
    "dare_linear_svd": (
        "values dropped by chance and the rest scaled up, then as svd (Yu et al. 2023)"
    ),
    "dare_ties_svd": "dropped by chance, signs voted on, then as svd",
}

DENSITY = 0.5  # share of the values that ties and dare keep


def check_name(name: Any, taken: Iterable[str] = ()) -> None:
    """Raise BadInput unless `name` can name an adapter, and is not yet taken.

    It is a key and a file name: letters, digits, - and _.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name):
        raise BadInput(
            f"The adapter name {name!r} cannot be used: write it with letters, digits, - and _, at"
            " most 40, and no folder."
        )
    if name in taken:
        raise BadInput(
            f"The adapter name '{name}' is taken by another adapter in this pipeline: choose"
            " another."
        )


def load_adapters(
    base: Base,
    adapters: Mapping[str, Source],
    weights: Mapping[str, float] | None = None,
    other_base: bool = False,
) -> Base:
    """Load `adapters` into a `Base` by their names, beside those it has, and switch them on.

    `weights`: {name: strength}, 1 where not given; adapters that are loaded already may be named
    too. Returns the base. Raises BadInput, before anything is changed, for a name that is taken or
    no name, and for an adapter that is damaged or for another base.
    """
    loaded = {name for names in base.pipe.get_list_adapters().values() for name in names}
    check_weights((weights or {}).values())
    for name in adapters:
        check_name(name, loaded)
    read = _read_fitting(adapters, open_base_weights(base.name), other_base) if adapters else {}
    for name, adapter in read.items():
        _load_adapter(base, name, adapter)
    strengths = dict.fromkeys(read, 1.0) | dict(weights or {})
    unknown = sorted(set(strengths) - loaded - set(read))
    if unknown:
        raise BadInput(
            f"There is no adapter '{unknown[0]}' in this pipeline, which has"
            f" {', '.join(sorted(loaded | set(read))) or 'none'}."
        )
    base.pipe.set_adapters(list(strengths), [float(w) for w in strengths.values()])
    return base


def load_fused(
    base: Base, adapters: Mapping[str, Source], weights: Mapping[str, float] | None = None
) -> Base:
    """Load adapters into a fresh `Base` and write them into its weights. Returns the base.

    It draws as fast as without any.
    """
    load_adapters(base, adapters, weights).pipe.fuse_lora()
    return base


def _read_fitting(
    sources: Mapping[str, Source], base_weights: BaseWeights, other_base: bool
) -> dict[str, Adapter]:
    """{name: adapter}, all read before the first is checked against the base."""
    adapters = {name: read_adapter(source, base_weights.layers) for name, source in sources.items()}
    for adapter in adapters.values():
        check_compatible(adapter, base_weights, other_base)
    return adapters


def _load_adapter(base: Base, name: str, adapter: Adapter) -> None:
    """Put a checked `Adapter` into a `Base`: diffusers' own loader, part by part.

    With the configuration that it came with.
    """
    for part, layers in adapter.layers.items():
        tensors, _ = diffusers_tensors(Adapter({part: layers}))
        config = {f"{part}.{key}": value for key, value in peft_config(part, layers).items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if part == "unet":
                base.denoiser.load_lora_adapter(
                    tensors,
                    prefix="unet",
                    adapter_name=name,
                    metadata=config,
                    low_cpu_mem_usage=True,
                )
            else:
                encoder = getattr(base.pipe, part)
                base.pipe.load_lora_into_text_encoder(
                    tensors, None, encoder, prefix=part, adapter_name=name, metadata=config
                )


def mix(
    sources: Mapping[str, Source],
    how: str = "cat",
    weights: Mapping[str, float] | None = None,
    base: str = "pocket",
) -> Adapter:
    """One `Adapter` made of several, by name, with PEFT's `add_weighted_adapter`.

    `how`: one of `MIXES`. The base's weights are not needed. Chance (dare) is the same every time.
    Raises BadInput if PEFT cannot mix these that way, such as linear with unlike ranks.
    """
    check_weights((weights or {}).values())
    base_weights = open_base_weights(base)
    for name in sources:
        check_name(name)
    adapters = _read_fitting(sources, base_weights, other_base=True)
    strengths = dict.fromkeys(adapters, 1.0) | dict(weights or {})
    # Of full matrices only the first directions would be taken anyway.
    options: dict[str, Any] = {"combination_type": how, "svd_full_matrices": False}
    if how.startswith(("ties", "dare")):
        options["density"] = DENSITY
    layers = {}
    for part in sorted({part for adapter in adapters.values() for part in adapter.layers}):
        some = {name: a.layers[part] for name, a in adapters.items() if part in a.layers}
        layers[part] = _mix_part(part, some, strengths, options, base_weights)
    names = ", ".join(adapters)
    texts = {"modelspec.merged_from": names, BASE: base}
    bases = {
        adapter.metadata.get(FINGERPRINT) or trained_on(adapter.source).get(FINGERPRINT)
        for adapter in adapters.values()
    }
    [fingerprint, *others] = bases
    if fingerprint and not others:  # of one base, and all of them say so
        texts[FINGERPRINT] = fingerprint
    return Adapter(layers, texts, f"{how} of {names}")


def _mix_part(
    part: str,
    adapters: Mapping[str, dict[str, Layer]],
    weights: Mapping[str, float],
    options: dict[str, Any],
    base_weights: BaseWeights,
) -> dict[str, Layer]:
    """The layers of one part of a mixed adapter; `options`: `add_weighted_adapter`'s."""
    from peft import PeftModel  # late: takes seconds

    first, *others = adapters
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, layers in adapters.items():
            write_peft(Path(folder) / name, part, layers, {"format": "pt"})
        model: Any = PeftModel.from_pretrained(
            unfilled_model(part, base_weights, torch.half), f"{folder}/{first}", first
        )
        for name in others:
            model.load_adapter(f"{folder}/{name}", name)
        strengths = [float(weights[name]) for name in adapters]
        try:
            model.base_model.add_weighted_adapter(list(adapters), strengths, "mixed", **options)
        except ValueError as error:
            raise BadInput(
                f"These adapters cannot be mixed by '{options['combination_type']}'"
                f" ({first_line(error)}): choose another way."
            ) from None
        mixed = loaded_layers(part, model.base_model.model, "mixed")
    return {name: _in_half(layer) for (_, name), layer in mixed.items()}


def _in_half(layer: Layer) -> Layer:
    """The layer in fp16, without a magnitude, which a mix does not have."""
    return Layer(layer.down.half().contiguous(), layer.up.half().contiguous(), layer.alpha)


@contextmanager
def timed(into: list[float]) -> Iterator[None]:
    """Append the seconds that the block took to the list `into`."""
    start = time.perf_counter()
    yield
    into.append(time.perf_counter() - start)


def switch_times(
    base: Base, adapters: Mapping[str, Source], run: str | Path | None = None, rounds: int = 5
) -> dict[str, float]:
    """Median seconds to change the concept of a running `Base`, by the way that it is changed.

    `adapters`: two or more, by name. The base ends as it began.

    - load: an adapter, from disk into the pipeline
    - choose: another of those that are loaded
    - remove: one that is loaded
    - fuse, unfuse: one into the base's weights, and out again
    - checkpoint: with a DreamBooth `run`, its U-Net from disk in the base's place
    """
    ways = ["load", "choose", "remove", "fuse", "unfuse", *["checkpoint"] * bool(run)]
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    # Imports, and layers wrapped for the first time.
    load_adapters(base, {"warm_up": next(iter(adapters.values()))})
    for _ in range(rounds):
        for name, source in adapters.items():
            with timed(seconds["load"]):
                load_adapters(base, {name: source})
        for name in adapters:
            with timed(seconds["choose"]):
                base.pipe.set_adapters([name], [1.0])
        chosen = list(adapters)[-1]
        with timed(seconds["fuse"]):
            base.pipe.fuse_lora(adapter_names=[chosen])
        with timed(seconds["unfuse"]):
            base.pipe.unfuse_lora()
        base.pipe.set_adapters(["warm_up"], [1.0])  # PEFT warns where an active adapter goes
        for name in adapters:
            with timed(seconds["remove"]):
                base.pipe.delete_adapters(name)
    base.pipe.unload_lora_weights()
    if run:
        _time_checkpoint(base, run, rounds, seconds["checkpoint"])
    return {way: median(some) for way, some in seconds.items()}


def _time_checkpoint(base: Base, run: str | Path, rounds: int, into: list[float]) -> None:
    for _ in range(rounds):
        before = base.stored_denoiser
        with timed(into):
            load_run(run, base)
        base.stored_denoiser = before
