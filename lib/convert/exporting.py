"""Write a LoRA for the tools that people use, and call it done only when it was read back.

    export_lora("runs/course/lora", "kohya", "robot.safetensors")

The header says what the tools show: `ss_*` (Kohya's) and `modelspec.*` (Stability's modelspec
1.0.1): title, base, trigger words, training settings, content hashes. Numbers that no run recorded
are left out, never guessed.
"""

import json
import time
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from lib.convert.adapter import (
    diffusers_tensors,
    kohya_tensors,
    peft_tensors,
    read_adapter,
    with_one_alpha,
)
from lib.convert.readers import adapter_readers, check_loaded_back, load_back, reader_lines
from lib.files.errors import BadInput
from lib.files.json_file import read_json
from lib.files.safetensors_file import HASH, open_weights, save_weights_file
from lib.files.whole_writes import made_here, size_of, takes_place
from lib.models.base_weights import read_target
from lib.models.compatibility import check_fit

ADAPTER_FORMS = ("kohya", "diffusers", "peft")


# Content hashes as the tools compute them: of all bytes behind the header (modelspec, Kohya).
CONTENT_HASHES = {"modelspec.hash_sha256": f"0x{HASH}", "sshs_model_hash": HASH, "format": "pt"}


EXPORT_NAMES = (
    "unet",
    "text_encoder",
    "text_encoder_2",
    "vae",
    "scheduler",
    "tokenizer",
    "tokenizer_2",
    "model_index.json",
    "README.md",
    "feature_extractor",
    "pictures",
)


# Kohya's name of a setting -> ours.
KOHYA_SETTINGS = {
    "ss_learning_rate": "learning_rate",
    "ss_unet_lr": "learning_rate",
    "ss_max_train_steps": "steps",
    "ss_seed": "seed",
    "ss_total_batch_size": "batch_size",
    "ss_prior_loss_weight": "prior_weight",
    "ss_min_snr_gamma": "snr_gamma",
    "ss_max_grad_norm": "clip",
    "ss_lr_warmup_steps": "warmup",
}


@dataclass(frozen=True)
class Exported:
    """What was written: `path`, `form`, `bytes`, `seconds` of writing, `readers`: {tool: (keys that
    load, keys that do not)}, and whether it was `read_back` by diffusers or PEFT.
    """

    path: Path
    form: str
    bytes: int
    seconds: float
    readers: dict
    read_back: bool

    def lines(self):
        """What can be said of it, a sentence a tool: "256 of 256 keys will load in ComfyUI"."""
        yield from reader_lines(self.readers)
        if not self.read_back:
            yield (
                "not read back by diffusers: the base is a single file, and this machine has no"
                " configuration to build a model by"
            )


def export_lora(source, to, out, base=None, title=None, other_base=False):
    """Write the LoRA in `source` (a run, a file, a PEFT folder) as `to` ("kohya", "diffusers" or
    "peft") to `out`. Returns `Exported`.

    `base`: the base model, by default the run's, or the one that the header names, or the pocket
    base. PEFT's form is a folder with a folder for each part. What is at `out` is replaced if an
    export made it, and refused if not. Raises BadInput, before anything is written, if the adapter
    is damaged or does not fit the base, and if the file, read back by diffusers or PEFT, is not the
    adapter.
    """
    if to not in ADAPTER_FORMS:
        raise BadInput(
            f"There is no form '{to}' for a LoRA: choose one of {', '.join(ADAPTER_FORMS)}."
        )
    out, known = check_output_path(out, folder=to == "peft"), run_facts(source)
    adapter, target = read_with_base(source, base, known)
    check_fit(adapter, target, other_base)
    started = time.perf_counter()
    adapter = replace(
        adapter, metadata=adapter.metadata | header_texts(target, known, title or out.stem, adapter)
    )
    with takes_place(out) as part:
        names = []
        if to == "peft":
            for name, (tensors, metadata, config) in peft_tensors(adapter).items():
                save_weights_file(
                    part / name / "adapter_model.safetensors",
                    tensors,
                    metadata | CONTENT_HASHES,
                    check=True,
                )
                (part / name / "adapter_config.json").write_text(
                    json.dumps(config, indent=1) + "\n", "utf-8"
                )
                names += tensors
        else:
            made = (
                kohya_tensors(adapter, target.sdxl, target.layers, target.attended)
                if to == "kohya"
                else diffusers_tensors(adapter)
            )
            save_weights_file(part, made[0], made[1] | CONTENT_HASHES, check=True)
            names = list(made[0])
        seconds = time.perf_counter() - started
        known_to = adapter_readers(names, to, target)
        tool, (_, bad) = next(iter(known_to.items()))
        if bad:
            raise BadInput(
                f"{out} was not written: {len(bad)} of its keys would not load in {tool}"
                f" ({bad[0]}): export in another form."
            )
        if target.folder:
            check_loaded_back(
                with_one_alpha(adapter) if to == "kohya" else adapter,
                load_back(part, to, target),
                out,
            )
    return Exported(out, to, size_of(out), seconds, known_to, bool(target.folder))


def read_with_base(source, base=None, known=None):
    """(the adapter in `source`, its base as a `Target`): the base given, or the run's, or the
    header's, or the pocket base.
    """
    known = run_facts(source) if known is None else known
    base = (
        base
        or known.get("settings", {}).get("base")
        or read_adapter(source).metadata.get("workbench.base", "pocket")
    )
    target = read_target(base)
    return read_adapter(source, target.layers), target


def check_output_path(out, folder=False):
    """`out` as a path that may be written. Raises BadInput if something else of the user's is
    there, or its ending is another form's.
    """
    out = Path(out).expanduser()
    if not folder and out.suffix != ".safetensors":
        raise BadInput(
            f"The output {out} does not end in .safetensors, by which the tools know such files:"
            f" call it {out}.safetensors."
        )
    if out.is_dir() and not folder:
        raise BadInput(f"The output {out} is a folder: name a file.")
    if out.is_file() and not folder and not _made_here(out):
        raise BadInput(
            f"The output {out} exists and was not made by an export: choose another name."
        )
    if folder and out.exists() and not made_here(out, EXPORT_NAMES):
        raise BadInput(
            f"The output {out} exists and was not made by an export: choose another name."
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"The output {out} cannot be made ({error.strerror}): choose another place."
        ) from None
    return out


def _made_here(path):
    try:
        return "workbench.base" in open_weights(path).metadata
    except BadInput:
        return False


def run_facts(source):
    """What a run folder tells beside its weights: {"settings", "metrics", "subject"}, each only
    where it is there.
    """
    source, found = Path(source).expanduser(), {}
    for name in ("settings", "metrics"):
        if (source / f"{name}.json").is_file():
            found[name] = read_json(source / f"{name}.json")
    record = Path(found.get("settings", {}).get("data", "-")) / "dataset.json"
    if record.is_file():
        data = read_json(record)
        found |= {
            "subject": data.get("subject", {}),
            "resolution": data.get("resolution"),
            "images": sum(
                name.startswith("train/") and name.endswith(".png")
                for name in data.get("files", {})
            ),
            "class_images": sum(
                name.startswith("class/") and name.endswith(".png")
                for name in data.get("files", {})
            ),
        }
    if found:
        found["date"] = datetime.fromtimestamp(
            int((source / "settings.json").stat().st_mtime)
        ).isoformat()
    return found


def header_texts(target, known, title, adapter=None):
    """The header's texts, from the base, what the run tells (`facts`) and, for a LoRA, the
    `adapter`; only what is known.
    """
    settings, subject, metrics = (known.get(key, {}) for key in ("settings", "subject", "metrics"))
    recipe = {
        name: value for name, value in settings.items() if name not in ("data", "output")
    }  # where someone keeps files is their own
    (architecture, version), side, images = (
        target.architecture,
        known.get("resolution"),
        known.get("images"),
    )
    identifier, noun = subject.get("identifier"), subject.get("class_noun")
    trigger = (
        identifier
        if subject.get("kind") in ("style", "lighting", "pose")
        else f"{identifier} {noun}"
    )
    stability = target.sdxl or adapter is None
    architecture = f"{architecture}/lora" if adapter and architecture else architecture
    said = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": architecture,
        "modelspec.implementation": (
            "https://github.com/Stability-AI/generative-models" if stability else "diffusers"
        ),
        "modelspec.title": title,
        "modelspec.resolution": side and f"{side}x{side}",
        "modelspec.date": known.get("date"),
        "modelspec.prediction_type": (
            "v" if target.prediction == "v_prediction" else target.prediction
        ),
        "modelspec.trigger_phrase": identifier and trigger,
        "modelspec.license": subject.get("license"),
        "modelspec.usage_hint": identifier and f"Write '{trigger}' into the prompt.",
        "workbench.base": target.name,
        "workbench.base_fingerprint": target.fingerprint(),
        "workbench.identifier": identifier,
        "workbench.class_noun": noun,
        "workbench.kind": subject.get("kind"),
        "workbench.settings": recipe and json.dumps(recipe),
    }
    if adapter:
        said |= {
            "ss_network_module": "networks.lora",
            "ss_network_dim": max(adapter.ranks),
            "ss_base_model_version": version,
            "ss_network_alpha": next(layer.alpha for _, _, layer in with_one_alpha(adapter)),
            "ss_sd_model_name": target.name,
            "ss_v2": target.family == "Stable Diffusion 2.x",
            "ss_output_name": title,
            "ss_resolution": side and f"({side}, {side})",
            "ss_num_train_images": images,
            "ss_num_reg_images": known.get("class_images"),
            "ss_steps": metrics.get("steps"),
            "ss_dataset_dirs": (
                identifier and json.dumps({f"1_{trigger}": {"n_repeats": 1, "img_count": images}})
            ),
            "ss_tag_frequency": identifier and json.dumps({f"1_{trigger}": {trigger: images}}),
        }
        said |= {name: settings.get(ours) for name, ours in KOHYA_SETTINGS.items()}
    return {key: str(value) for key, value in said.items() if value not in (None, "", {})}
