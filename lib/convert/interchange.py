"""Runs and adapters to and from other tools, whatever their form."""

import tempfile
from pathlib import Path

from lib.config.checked import described
from lib.config.settings import Settings
from lib.convert.adapter import diffusers_tensors
from lib.convert.exporting import check_output_path, export_lora, read_with_base, run_facts
from lib.convert.extraction import extract
from lib.convert.merging import MODEL_FORMS, merge
from lib.files.errors import BadInput
from lib.files.safetensors_file import save_weights_file
from lib.models.compatibility import check_fit
from lib.models.families import preset


def export(source, to, out, **options):
    """Export a run or an adapter in any form: LoRAs by `export_lora`, DreamBooth runs by `merge`,
    to which `options` go.
    """
    if run_facts(source).get("settings", {}).get("method") == "dreambooth":
        if to not in MODEL_FORMS:
            raise BadInput(
                f"{source} is a DreamBooth run, a whole model: export it to {' or '.join(MODEL_FORMS)},"
                " or extract a LoRA from it."
            )
        return merge(source, to, out, **options)
    if to == "checkpoint":
        return merge(source, to, out, **options)
    return export_lora(source, to, out, **options)


def extract_to(run, rank, to, out, base=None, title=None, progress=None, other_base=False):
    """Extract a LoRA and export it. Returns (`Exported`, what was `RetainedEnergy`)."""
    check_output_path(out, folder=to == "peft")
    adapter, kept = extract(run, rank, base, title, progress, other_base)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        save_weights_file(path, *diffusers_tensors(adapter))
        return (
            export_lora(
                path, to, out, base or run_facts(run).get("settings", {}).get("base"), title
            ),
            kept,
        )


def import_lora(source, out, base=None, data=None, other_base=False):
    """Make a run folder in `out` from somebody's LoRA in any form, so that all here that takes a
    run takes it: load, combine, merge.

    Settings come from its header where it has them. `data`: a data set to judge it by. Returns the
    folder.
    """
    out = Path(out)
    adapter, target = read_with_base(source, base)
    check_fit(adapter, target, other_base)
    if out.exists():
        raise BadInput(f"The output {out} exists: choose another folder.")
    said = adapter.metadata
    rank, layer = max(adapter.ranks), next(layer for _, _, layer in adapter)
    said = {
        "steps": said.get("ss_steps") or said.get("ss_max_train_steps"),
        "seed": said.get("ss_seed"),
        "rank": rank,
        "learning_rate": said.get("ss_unet_lr") or said.get("ss_learning_rate"),
        "alpha": layer.alpha,
    }
    told = {name: _number(name, text) for name, text in said.items()}
    settings = preset("lora", target.name, data=str(data or "-"), output=str(out), **told)
    save_weights_file(out / "adapter.safetensors", *diffusers_tensors(adapter))
    settings.save(out / "settings.json")
    return out


def _number(name, text):
    """What a header says of a setting, brought into the setting's limits; None for what is no
    number.
    """
    setting = described(Settings)[name]
    low, high = setting.limits
    try:
        return setting.kind(min(max(float(text), low), high)) if text is not None else None
    except ValueError:
        return None
