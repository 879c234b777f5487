"""Write a LoRA for the tools that people use, and call it done only when it was read back.

    export_lora("runs/course/lora", "kohya", "robot.safetensors")

The header says what the tools show: `ss_*` (Kohya's) and `modelspec.*` (Stability's modelspec
1.0.1): title, base, trigger words, training settings, content hashes. Numbers that no run recorded
are left out, never guessed.
"""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from lib.convert.adapter import (
    Adapter,
    Header,
    Source,
    diffusers_tensors,
    kohya_tensors,
    read_adapter,
    with_one_alpha,
    write_peft,
)
from lib.convert.readers import (
    Written,
    adapter_readers,
    check_loaded_back,
    load_back,
)
from lib.dataset.captions import MANNERS
from lib.files import BadInput, read_json, whole_folder
from lib.files.safetensors_file import HASH, open_weights, refuse_name, save_weights_file
from lib.files.whole_writes import may_be_replaced, size_of, whole_file
from lib.models import BaseWeights, open_base_weights
from lib.models.compatibility import BASE, FINGERPRINT, check_base, check_compatible

# What a LoRA can be written as, and whether that is a folder.
ADAPTER_FORMS = {"kohya": False, "diffusers": False, "peft": True}

# What marks a file as one that an export wrote, and that another may replace.
EXPORTED = "workbench.export"

# What a header says of its own file. Content hashes as the tools compute them: of all bytes behind
# the header (modelspec, Kohya).
CONTENT_HASHES = {
    "modelspec.hash_sha256": f"0x{HASH}",
    "sshs_model_hash": HASH,
    "format": "pt",
    EXPORTED: "true",
}

# Where a header names a base or another file, perhaps by where somebody keeps it.
NAMED = ("workbench.base", "ss_sd_model_name", "ss_vae_name", "modelspec.merged_from")

# What an import writes into a run folder beside settings.json: which of them the file told.
IMPORTED = "imported.json"

# What an export may have written into a folder: one that holds nothing else may be replaced.
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

# Kohya's name of a setting: ours.
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

Facts = dict[str, Any]


def export_lora(
    source: Source,
    to: str,
    out: str | Path,
    base: str | None = None,
    title: str | None = None,
    other_base: bool = False,
) -> Written:
    """Write the LoRA in `source` (a run, a file, a PEFT folder, an `Adapter`) as `to` to `out`.

    `to`: "kohya", "diffusers" or "peft", which is a folder with a folder for each part. `base`: the
    base model, by default the run's, or the one that the header names, or the pocket base. `title`:
    the name that tools show, by default the file's. What is at `out` is replaced if an export made
    it, and refused if not.

    Raises BadInput, before anything is written, if the adapter is damaged or does not fit the base
    (`other_base` allows another of its family), and if the file, read back by diffusers or PEFT, is
    not the adapter.
    """
    path = check_output(to, out, ADAPTER_FORMS)
    facts = run_facts(source)
    adapter, base_weights = read_with_base(source, base, facts)
    check_compatible(adapter, base_weights, other_base)
    texts = lora_texts(base_weights, facts, title or path.stem, adapter)
    adapter = replace(adapter, metadata=public_texts(adapter.metadata | texts))
    started = time.perf_counter()
    place = whole_folder(path, mark=True) if to == "peft" else whole_file(path)
    with place as part:
        names = _write(adapter, to, part, base_weights)
        seconds = time.perf_counter() - started
        found = adapter_readers(names, to, base_weights)
        tool, (_, bad) = next(iter(found.items()))
        if bad:
            raise BadInput(
                f"{path} was not written: {len(bad)} of its keys would not load in {tool}"
                f" ({bad[0]}): export in another form."
            )
        if base_weights.folder:
            meant = with_one_alpha(adapter) if to == "kohya" else adapter
            check_loaded_back(meant, load_back(part, to, base_weights), path)
    return Written(path, size_of(path), seconds, found, bool(base_weights.folder))


def _write(adapter: Adapter, to: str, path: Path, base_weights: BaseWeights) -> list[str]:
    """Write the files of one form, each read back as it is written. Returns the keys in them."""
    if to == "peft":
        keys: list[str] = []
        for part, layers in adapter.layers.items():
            keys += write_peft(path / part, part, layers, adapter.metadata | CONTENT_HASHES)
        return keys
    if to == "kohya":
        tensors, texts = kohya_tensors(
            adapter, base_weights.sdxl, base_weights.layers, base_weights.attended
        )
    else:
        tensors, texts = diffusers_tensors(adapter)
    save_weights_file(path, tensors, texts | CONTENT_HASHES, check=True)
    return list(tensors)


def read_with_base(
    source: Source, base: str | None = None, facts: Facts | None = None
) -> tuple[Adapter, BaseWeights]:
    """The adapter in `source`, and its base.

    The base is the one given, or the run's, or the header's, or the pocket base.
    """
    base_weights = open_base_weights(base_of(source, base, facts))
    return read_adapter(source, base_weights.layers), base_weights


def base_of(source: Source, base: str | None = None, facts: Facts | None = None) -> str:
    """The name of the base of a LoRA: the one given, or the run's, the header's, or "pocket"."""
    facts = run_facts(source) if facts is None else facts
    named = base or facts.get("settings", {}).get("base")
    return named or read_adapter(source).metadata.get("workbench.base", "pocket")


def tuned_weights(
    run: str | Path, facts: Facts, base: str | None = None, other_base: bool = False
) -> BaseWeights:
    """The base of a DreamBooth run with its tuned weights over it.

    Raises BadInput if it has none, or, unless `other_base`, if it was trained on another base.
    """
    name: str = base or facts.get("settings", {}).get("base", "pocket")
    base_weights = open_base_weights(name, run)
    if not base_weights.tuned:
        raise BadInput(
            f"{run} has no tuned weights (no folder unet): name a DreamBooth run, or train it again"
            " if its training did not finish."
        )
    if not other_base:
        check_base(run, open_base_weights(name))
    return base_weights


def check_output(to: str, out: str | Path, forms: Mapping[str, bool]) -> Path:
    """`out` as a path that may be written as `to`; `forms`: whether each is a folder.

    Raises BadInput if there is no such form, something else of the user's is there, or its ending
    is another form's.
    """
    if to not in forms:
        raise BadInput(f"There is no form '{to}': choose one of {', '.join(forms)}.")
    out, folder = Path(out).expanduser(), forms[to]
    refuse_name(out)
    if not folder and out.suffix != ".safetensors":
        raise BadInput(
            f"The output {out} does not end in .safetensors, by which the tools know such files:"
            f" call it {out}.safetensors."
        )
    if out.is_dir() and not folder:
        raise BadInput(f"The output {out} is a folder: name a file.")
    if out.exists() and not (may_be_replaced(out, EXPORT_NAMES) if folder else _is_export(out)):
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


def _is_export(path: Path) -> bool:
    try:
        texts = open_weights(path).metadata
    except BadInput:
        return False
    return EXPORTED in texts or {"workbench.base", "modelspec.hash_sha256"} <= texts.keys()


def run_facts(source: Source) -> Facts:
    """What a run folder tells beside its weights, each only where it is there.

    settings and metrics (the files' content); subject, resolution, images and class_images (of its
    data set); date (of its settings). Of an imported run, whose settings are mostly this project's
    own and whose data set only judges it: `imported`, and the settings that its file told.
    """
    if isinstance(source, Adapter):
        return {}
    folder = Path(source).expanduser()
    facts: Facts = {
        name: read_json(folder / f"{name}.json")
        for name in ("settings", "metrics")
        if (folder / f"{name}.json").is_file()
    }
    if (folder / IMPORTED).is_file():
        told = {"method", "base", *read_json(folder / IMPORTED)["settings"]}
        facts["settings"] = {n: value for n, value in facts["settings"].items() if n in told}
        return facts | {"imported": True}
    record = Path(facts.get("settings", {}).get("data", "-")) / "dataset.json"
    if record.is_file():
        data = read_json(record)
        pictures = [name for name in data.get("files", {}) if name.endswith(".png")]
        facts["subject"] = data.get("subject", {})
        facts["resolution"] = data.get("resolution")
        facts["images"] = sum(name.startswith("train/") for name in pictures)
        facts["class_images"] = sum(name.startswith("class/") for name in pictures)
    if facts:
        written = (folder / "settings.json").stat().st_mtime
        facts["date"] = datetime.fromtimestamp(int(written)).isoformat()
    return facts


def model_texts(base_weights: BaseWeights, facts: Facts, title: str, lora: bool = False) -> Header:
    """A header's texts by Stability's modelspec.

    From the base and what the run tells (`run_facts`), only what is known. `lora`: the file is one,
    and not a whole model.
    """
    subject, side = facts.get("subject", {}), facts.get("resolution")
    identifier, trigger = subject.get("identifier"), trigger_words(subject)
    architecture = base_weights.architecture[0]
    original_code = base_weights.sdxl or not lora
    # Where someone keeps files is their own.
    settings = {} if facts.get("imported") else facts.get("settings", {})
    recipe = {name: value for name, value in settings.items() if name not in ("data", "output")}
    texts = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": (
            f"{architecture}/lora" if lora and architecture else architecture
        ),
        "modelspec.implementation": (
            "https://github.com/Stability-AI/generative-models" if original_code else "diffusers"
        ),
        "modelspec.title": title,
        "modelspec.resolution": side and f"{side}x{side}",
        "modelspec.date": facts.get("date"),
        "modelspec.prediction_type": (
            "v" if base_weights.prediction == "v_prediction" else base_weights.prediction
        ),
        "modelspec.trigger_phrase": trigger,
        "modelspec.license": subject.get("license"),
        "modelspec.usage_hint": trigger and f"Write '{trigger}' into the prompt.",
        **({} if lora else base_texts(base_weights)),
        "workbench.identifier": identifier,
        "workbench.class_noun": subject.get("class_noun"),
        "workbench.kind": subject.get("kind"),
        "workbench.settings": recipe and json.dumps(recipe),
    }
    return _known(texts)


def lora_texts(base_weights: BaseWeights, facts: Facts, title: str, adapter: Adapter) -> Header:
    """The header's texts of a LoRA: those of `model_texts`, and Kohya's; only what is known."""
    settings = {} if facts.get("imported") else facts.get("settings", {})
    metrics = facts.get("metrics", {})
    side, images = facts.get("resolution"), facts.get("images")
    trigger = trigger_words(facts.get("subject", {}))
    folder = f"1_{trigger}"  # as Kohya's trainer would name it
    texts = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": max(adapter.ranks),
        "ss_base_model_version": base_weights.architecture[1],
        "ss_network_alpha": next(layer.alpha for _, _, layer in with_one_alpha(adapter)),
        "ss_sd_model_name": settings.get("base"),
        "ss_v2": base_weights.family == "Stable Diffusion 2.x",
        "ss_output_name": title,
        "ss_resolution": side and f"({side}, {side})",
        "ss_num_train_images": images,
        "ss_num_reg_images": facts.get("class_images"),
        "ss_steps": metrics.get("steps"),
        "ss_dataset_dirs": trigger and json.dumps({folder: {"n_repeats": 1, "img_count": images}}),
        "ss_tag_frequency": trigger and json.dumps({folder: {trigger: images}}),
    }
    texts |= {name: settings.get(ours) for name, ours in KOHYA_SETTINGS.items()}
    texts |= {BASE: settings.get("base"), FINGERPRINT: metrics.get("base_fingerprint")}
    if settings.get("base") == base_weights.name:  # else only the file knows on what it was trained
        texts |= base_texts(base_weights)
    return model_texts(base_weights, facts, title, lora=True) | _known(texts)


def base_texts(base_weights: BaseWeights) -> Header:
    """What a header says of the base that a LoRA was trained on, or a model made from."""
    return {BASE: base_weights.name, FINGERPRINT: base_weights.fingerprint()}


def trigger_words(subject: dict[str, Any]) -> str | None:
    """What to write into a prompt: identifier and class noun, or the identifier of a manner."""
    identifier = subject.get("identifier")
    if not identifier or subject.get("kind") in MANNERS:
        return identifier
    return f"{identifier} {subject.get('class_noun')}"


def _known(texts: dict[str, Any]) -> Header:
    return {key: str(value) for key, value in texts.items() if value not in (None, "", {})}


# A text in JSON that begins as a path does, or an address, and has two parts at least.
JSON_PATH = r'"(?:[/~$%]|\\\\|[A-Za-z][\w+.-]*:)[^"/\\]*[/\\]+[^"/\\]+(?:[/]|\\\\|[^"\\])*"'


def public_texts(texts: Header) -> Header:
    """A header's texts without where somebody keeps files: of a path its last part."""
    public = {key: public_name(text) for key, text in texts.items()}
    for key in NAMED:
        if key in texts:
            names = texts[key].split(", ") if key.endswith("merged_from") else [texts[key]]
            public[key] = ", ".join(public_name(name, named=True) for name in names)
    if "workbench.settings" in texts:
        recipe = json.loads(texts["workbench.settings"])
        recipe["base"] = public_name(recipe.get("base", ""), named=True)
        public["workbench.settings"] = json.dumps(recipe)
    return public


def public_name(name: str, named: bool = False) -> str:
    """What may be said of a name: of a path on somebody's machine its last part, else all of it.

    `named`: it names a model or a file, so that a relative path counts too. A hub's name has one
    slash, and is kept; of a folder in the hub's cache it is made again. An address loses what lets
    somebody in: name and password, and what stands behind the `?`. Of JSON, such as OneTrainer's
    whole configuration, each text of two parts or more is seen to ("\\m/" is no path).
    """
    if name[:1] in ("{", "["):
        return re.sub(JSON_PATH, lambda hit: json.dumps(public_name(json.loads(hit[0]))), name)
    if address := re.fullmatch(r"((?!file:)\w[\w+.-]*://)(?:[^/@]*@)?([^?#\s]*)([?#]\S*)?", name):
        return address[1] + address[2]
    name = re.sub(r"^file:(//[^/]*)?(?=/)", "", name)
    parts = [part for part in re.split(r"[\\/]", name) if part]
    cached = [part for part in parts if part.startswith("models--")]
    local = re.match(r"[\\/~]|[A-Za-z]:[\\/]|(\$\w+|\$\{\w+\}|%\w+%)[\\/]", name)
    if named and "://" not in name:
        local = local or name[0:1] == "." or len(parts) != 2 or "\\" in name or Path(name).exists()
    if not local or not parts or "\n" in name:
        return name
    return cached[0].removeprefix("models--").replace("--", "/") if cached else parts[-1]
