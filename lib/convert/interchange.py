"""Runs and adapters to and from other tools, whatever their form.

    adapter, retained = extract("runs/course/dreambooth", rank=16)
    retained.of_layers          # the share of the change that is in the adapter

A LoRA is extracted from a tuned model by truncated SVD: the best update of its rank (Eckart and
Young 1936) of the difference of each layer's weights, a convolution's as a matrix [out, in x
kernel]. What a LoRA cannot hold (norms, biases, embeddings) is left out, and said. Layers outside
of blocks, which Kohya's own tools pass over, stay in: 0.8 % of the change on the pocket base, and
without them pictures at rank 64 are three times as far from the model's.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lib.config import Settings, described
from lib.convert.adapter import Adapter, Layer, Source, diffusers_tensors, low_rank, path_of
from lib.convert.composition import mix
from lib.convert.exporting import (
    IMPORTED,
    base_of,
    export_lora,
    lora_texts,
    read_with_base,
    run_facts,
    tuned_weights,
)
from lib.convert.merging import (
    MODEL_FORMS,
    whole_model,
    write_model,
)
from lib.convert.readers import Written
from lib.files import BadInput, write_json
from lib.files.safetensors_file import save_weights_file
from lib.files.text import progress_lines
from lib.models import open_base_weights, preset
from lib.models.compatibility import check_compatible


def export(
    source: Source,
    to: str,
    out: str | Path,
    base: str | None = None,
    title: str | None = None,
    other_base: bool = False,
) -> Written:
    """Write a run or an adapter for other tools, as `export_lora` or `merge` does.

    `to`: "kohya", "diffusers" or "peft" for a LoRA, and "checkpoint" for one merged into its base;
    "checkpoint" or "diffusers" for a DreamBooth run. Raises BadInput as these two do.
    """
    tuned = run_facts(source).get("settings", {}).get("method") == "dreambooth"
    if tuned and to not in MODEL_FORMS:
        raise BadInput(
            f"{source} is a DreamBooth run, a whole model: export it to"
            f" {' or '.join(MODEL_FORMS)}, or extract a LoRA from it."
        )
    if tuned or to == "checkpoint":
        return write_model(whole_model([source], None, base, other_base), to, out, title)
    return export_lora(source, to, out, base, title, other_base)


@dataclass(frozen=True)
class RetainedEnergy:
    """How much of the change is in the adapter: shares of the sum of S^2 (squared Frobenius norm).

    of_layers: of the change of the layers that a LoRA can sit beside; of_all: of the change of
    every weight; by_layer: {"part.name": share}.
    """

    of_layers: float
    of_all: float
    by_layer: dict[str, float]


def extract(
    run: str | Path,
    rank: int = 16,
    base: str | None = None,
    progress: Callable[[int, int], object] | None = None,
    other_base: bool = False,
) -> tuple[Adapter, RetainedEnergy]:
    """The adapter of `rank`, alpha the same, in a DreamBooth run's tuned parts against its base.

    A layer smaller than `rank` keeps all that it has. `progress(done, total)` is called after each
    weight, by default to print how far it is. Raises BadInput if the run has no tuned parts, or
    they do not fit the base, or nothing was changed, and, unless `other_base`, if it was trained
    on another base.
    """
    if not 1 <= rank <= 1024:
        raise BadInput(f"The rank is {rank}, outside 1 to 1024: choose one in that range.")
    facts = run_facts(run)
    tuned = tuned_weights(run, facts, base, other_base)
    plain = open_base_weights(tuned.name)
    layers: dict[str, dict[str, Layer]] = {}
    shares: dict[str, float] = {}
    retained = in_layers = in_all = 0.0
    names = [(part, name) for part in tuned.tuned for name in tuned.shapes[part]]
    progress = progress or progress_lines(f"extracting from {run}")
    for done, (part, name) in enumerate(names, 1):
        change = tuned.read(part, name).float() - plain.read(part, name).float()
        size, layer_name = change.square().sum().item(), name.removesuffix(".weight")
        in_all += size
        if name.endswith(".weight") and layer_name in tuned.layer_shapes(part):
            layer, share = low_rank(change, rank)
            in_layers += size
            retained += share * size
            layers.setdefault(part, {})[layer_name] = layer
            shares[f"{part}.{layer_name}"] = share
        progress(done, len(names))
    if not in_layers:
        raise BadInput(
            f"{run} has the weights of '{plain.name}' unchanged: there is nothing to extract; check"
            " both names."
        )
    adapter = Adapter(layers, source=str(run))
    texts = lora_texts(plain, facts, f"{Path(run).name} rank {rank}", adapter) | {
        "ss_network_dim": str(rank),  # layers that are smaller have less
        "ss_network_alpha": str(float(rank)),
        "ss_training_comment": (
            f"extracted by SVD from a full fine-tune; {retained / in_layers:.4f} of the layers'"
            " sum of S^2 kept"
        ),
    }
    energy = RetainedEnergy(retained / in_layers, retained / in_all, shares)
    return replace(adapter, metadata=texts), energy


def compose(
    sources: Sequence[Source],
    weights: Sequence[float] | None = None,
    how: str = "cat",
    base: str | None = None,
) -> Adapter:
    """Mix LoRAs, each with its weight (1 where none are given), into one that can be exported.

    `how`: one of `lib.convert.composition.MIXES`. `base`: by default that of the first. Raises
    BadInput as `mix` does.
    """
    stems = [re.sub("[^A-Za-z0-9_-]", "_", path_of(source).stem) for source in sources]
    names = [f"{k}_{stem}"[:40] for k, stem in enumerate(stems, 1)]
    strengths = dict(zip(names, weights)) if weights else None
    return mix(dict(zip(names, sources)), how, strengths, base_of(sources[0], base))


def import_lora(
    source: Source,
    out: str | Path,
    base: str | None = None,
    data: str | Path | None = None,
    other_base: bool = False,
) -> Path:
    """Make a run folder in `out` from somebody's LoRA in any form. Returns the folder.

    All here that takes a run takes it then: load, combine, merge. Settings come from its header
    where it has them; the others are this project's, and no export calls them the LoRA's own.
    `data`: a data set to judge it by. Raises BadInput as `export_lora` does, and if there is
    something at `out`.
    """
    out = Path(out)
    adapter, base_weights = read_with_base(source, base)
    check_compatible(adapter, base_weights, other_base)
    if out.exists():
        raise BadInput(f"The output {out} exists: choose another folder.")
    header, layer = adapter.metadata, next(layer for _, _, layer in adapter)
    texts = {
        "steps": header.get("ss_steps") or header.get("ss_max_train_steps"),
        "seed": header.get("ss_seed"),
        "rank": max(adapter.ranks),
        "learning_rate": header.get("ss_unet_lr") or header.get("ss_learning_rate"),
        "alpha": layer.alpha,
    }
    found = {name: _setting(name, text) for name, text in texts.items()}
    settings = preset("lora", base_weights.name, data=str(data or "-"), output=str(out), **found)
    save_weights_file(out / "adapter.safetensors", *diffusers_tensors(adapter))
    settings.save(out / "settings.json")
    told = [name for name, value in found.items() if value is not None]
    write_json(out / IMPORTED, {"from": path_of(source).name, "settings": told})
    return out


def _setting(name: str, text: Any) -> float | None:
    """What a header says of a setting, brought into its limits; None for what is no number."""
    setting = described(Settings)[name]
    low, high = setting.limits
    try:
        return setting.kind(min(max(float(text), low), high))
    except (TypeError, ValueError):
        return None
