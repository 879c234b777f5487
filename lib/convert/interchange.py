"""Runs and adapters to and from other tools, whatever their form."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib.config import Settings, described
from lib.convert.adapter import Adapter, Source, diffusers_tensors, path_of
from lib.convert.composition import mix
from lib.convert.exporting import (
    base_of,
    export_lora,
    read_with_base,
    run_facts,
)
from lib.convert.merging import (
    MODEL_FORMS,
    whole_model,
    write_model,
)
from lib.convert.readers import Written
from lib.files import BadInput
from lib.files.safetensors_file import save_weights_file
from lib.models import preset
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
    where it has them. `data`: a data set to judge it by. Raises BadInput as `export_lora` does, and
    if there is something at `out`.
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
    return out


def _setting(name: str, text: Any) -> float | None:
    """What a header says of a setting, brought into its limits; None for what is no number."""
    setting = described(Settings)[name]
    low, high = setting.limits
    try:
        return setting.kind(min(max(float(text), low), high))
    except (TypeError, ValueError):
        return None
