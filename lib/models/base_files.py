"""Where a base model lies and which files it is made of: a folder, a single file, or a hub name.

Looked at are names, configurations and headers: no weight is loaded, nothing is run, and pickles
are refused. A model of the hub is looked up in its cache on this machine; only WORKBENCH_DOWNLOAD=1
allows a download, which says its size and licence first.
"""

import difflib
import math
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from lib.files import ROOT, BadInput, read_json, say
from lib.files.paths import PICKLE_ENDINGS
from lib.files.text import first_line, size_text

POCKET = ROOT / "data" / "pocket"

# The parts of a pipeline, by diffusers' names: those that a run can train, those that hold weights,
# and all that a base model is loaded from.
TRAINABLE_PARTS = ("unet", "text_encoder", "text_encoder_2")
WEIGHT_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
PIPELINE_PARTS = (*WEIGHT_PARTS, "tokenizer", "tokenizer_2", "scheduler")

# The file without which a part is none, by its kind: any one of them.
CONFIG = ("config.json",)
PART_FILES = {
    "tokenizer": ("tokenizer.json", "merges.txt"),
    "scheduler": ("scheduler_config.json",),
}

PREDICTIONS = ("epsilon", "v_prediction")  # what a denoiser may predict: noise, or velocity
BETAS = {"beta_start": 0.0001, "beta_end": 0.02}  # with diffusers' defaults

# What is said of a base's weight that is none.
NOT_NUMBERS = (
    "Base model '{}' holds values that are not numbers (in {}): its file is damaged, or its own"
    " training diverged; get it again, or take another base."
)

LIBRARIES = ("diffusers", "transformers")  # whose classes a pipeline may be made of

Shapes = dict[str, tuple[int, ...]]  # tensor name -> shape


def locate(name: str) -> Path:
    """The folder or single file of the base model `name`, checked to be complete.

    `name`: "pocket", a diffusers folder, a .safetensors file in the original layout, or a hub name
    `owner/model`. Raises BadInput when there is none that can be loaded.
    """
    path = POCKET if name == "pocket" else Path(name).expanduser()
    ending = path.suffix.lower()
    if ending in PICKLE_ENDINGS:
        raise BadInput(
            f"Base model {name} is a pickle ({path.suffix}), which can run any code when it is"
            " opened: get the same model as a .safetensors file, which most model pages offer."
        )
    if path.is_file():
        if ending != ".safetensors":
            raise BadInput(
                f"Base model {name} is no .safetensors file: name one, or a diffusers folder."
            )
        header_shapes(path)
        return path
    if path.is_dir():
        return check_folder(path)
    if name.count("/") == 1 and not name.startswith((".", "~", "/")) and ending != ".safetensors":
        if os.environ.get("WORKBENCH_DOWNLOAD") != "1" and path.parent.is_dir():
            _refuse_mistyped(path, name)
        return hub_folder(name)
    near = _near(path)
    raise BadInput(
        f"There is no base model '{name}': use 'pocket', a diffusers folder, a .safetensors file,"
        f" or a hub name such as 'owner/model'{f' (did you mean {near}?)' if near else ''}."
    )


def _near(path: Path) -> Path | None:
    """What lies beside `path`, or where that would be, under a name much like its own."""
    there = os.listdir(path.parent) if os.access(path.parent, os.R_OK | os.X_OK) else []
    near = difflib.get_close_matches(path.name.lower(), map(str.lower, there), 1)
    return next((path.parent / name for name in there if name.lower() in near), None)


def _refuse_mistyped(path: Path, name: str) -> None:
    """Raise BadInput, unless the hub's cache has `name`, whose beginning is a folder here."""
    from huggingface_hub.errors import HFValidationError

    try:
        _snapshot(name, True)
    except (FileNotFoundError, HFValidationError):
        near = _near(path)
        hint = f"did you mean {near}?" if near else "check the path."
        raise BadInput(
            f"There is no base model {name} in the folder {path.parent}: {hint}"
        ) from None


def header_shapes(path: Path) -> Shapes:
    """The shape of each tensor of a safetensors file, read from its header alone.

    Raises BadInput if the file is damaged or cut short.
    """
    from safetensors import SafetensorError, safe_open

    from lib.files.safetensors_file import refuse_pointer  # late, as these: they import torch

    refuse_pointer(path)
    try:
        with safe_open(path, "pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise BadInput(
            f"{path} is damaged or cut short ({first_line(error)[:150]}): download or export it"
            " again."
        ) from None


def check_folder(folder: Path) -> Path:
    """The folder of a diffusers pipeline, if it is complete, as safetensors, without own code."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise BadInput(
            f"{folder} is no diffusers folder (it has no model_index.json): name the folder that"
            " holds one."
        )
    named = read_json(index)
    parts = {
        part: named[part]
        for part in PIPELINE_PARTS
        if isinstance(named.get(part), list) and named[part] and named[part][0]
    }
    foreign = [part for part, made in parts.items() if made[0] not in LIBRARIES]
    if foreign or not isinstance(named.get("_class_name"), str):
        what = f"its {foreign[0]}" if foreign else "its pipeline"
        raise BadInput(
            f"Base model {folder} brings code of its own ({what}), which never runs here: use a"
            " model made of diffusers' parts."
        )
    for part in WEIGHT_PARTS:
        if part in parts:
            _check_part(folder, part)
    return folder


def check_parts(folder: Path, weights: Collection[str], others: Collection[str]) -> None:
    """Raise BadInput unless a folder in diffusers form names these parts and holds their files.

    `weights`: parts with weights, of which only the configurations are looked for; `others`:
    tokenizers and the scheduler.
    """
    named = read_json(folder / "model_index.json")
    for part in (*weights, *others):
        kind = part.removesuffix("_2")
        if not (isinstance(named.get(part), list) and named[part] and named[part][0]):
            missing = f"model_index.json names no {part}"
        elif not any((folder / part / each).is_file() for each in PART_FILES.get(kind, CONFIG)):
            missing = f"{part}/ holds no {' or '.join(PART_FILES.get(kind, CONFIG))}"
        else:
            continue
        raise BadInput(f"Base model {folder} is incomplete ({missing}): download or copy it again.")
    if "scheduler" in others:
        file = folder / "scheduler" / "scheduler_config.json"
        _refuse_numbers(file, _wrong_in_schedule(read_json(file)))
    if "vae" in weights:
        file = folder / "vae" / "config.json"
        scale = read_json(file).get("scaling_factor", 1)  # diffusers' own where none is said
        bad = not isinstance(scale, int | float) or not 0 < scale < math.inf
        _refuse_numbers(
            file, f"scaling_factor {scale!r}, which is no number above 0" if bad else ""
        )


def _wrong_in_schedule(stated: dict[str, Any]) -> str:
    """What is wrong with a noise schedule that no training can follow: another one in its place
    would be a wrong loss without a word. Empty where nothing is.
    """
    predicted = stated.get("prediction_type", PREDICTIONS[0])
    steps = stated.get("num_train_timesteps", 1000)
    betas = [stated.get(name, default) for name, default in BETAS.items()]
    if predicted not in PREDICTIONS:
        return f"prediction_type {predicted!r}, and here it can be {' or '.join(PREDICTIONS)}"
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        return f"num_train_timesteps {steps!r}, which is no whole number from 1 on"
    if not all(isinstance(beta, float) and 0 < beta < 1 for beta in betas):
        return f"{' and '.join(BETAS)} {betas}, which are not both between 0 and 1"
    return ""


def _refuse_numbers(file: Path, wrong: str) -> None:
    """Raise BadInput for what is `wrong` in a part's configuration, if anything is."""
    if wrong:
        raise BadInput(
            f"{file} says {wrong}: copy the file again from where the base model came from, or take"
            " another base."
        )


def _check_part(folder: Path, part: str) -> None:
    files = weight_files(folder / part)
    pickles = [f.name for f in (folder / part).glob("*") if f.suffix in PICKLE_ENDINGS]
    if not files and pickles:
        raise BadInput(
            f"Base model {folder} has its {part} as a pickle only ({pickles[0]}), which can run"
            " any code when it is opened: get it as .safetensors, which most model pages"
            " offer."
        )
    if not files or not (folder / part / "config.json").is_file():
        missing = ".safetensors weights" if not files else "config.json"
        raise BadInput(
            f"Base model {folder} is incomplete ({part}/ holds no {missing}): download or copy"
            " it again."
        )
    for file in files:
        header_shapes(file)


def variant(folder: Path, part: str = "unet") -> str | None:
    """What diffusers calls `variant`: "fp16" where a part is there in half precision alone."""
    files = weight_files(folder / part)
    return "fp16" if any(".fp16" in file.name for file in files) else None


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The safetensors of one part's folder that diffusers reads.

    Those of the variant, the plain ones, or else what there is.
    """
    names = [file.name for file in sorted(folder.glob("*.safetensors"))]
    return [folder / name for name in _one_set(names, variant == "fp16")]


def _one_set(names: Iterable[str], half: bool = False) -> list[str]:
    sets = [n for n in names if "non_ema" not in n]
    return [n for n in sets if (".fp16" in n) is half] or sets


def hub_folder(name: str, weights: bool = True) -> Path:
    """The folder of the hub model `name`, or of its configurations and tokenizers alone.

    Raises BadInput where it is not there: absent, gated, no network.
    """
    try:
        folder = _snapshot(name, weights)
        return check_folder(folder) if weights else folder
    except BadInput as error:
        raise BadInput(
            f"{str(error).rstrip('.')}, or set WORKBENCH_DOWNLOAD=1 to download the rest of"
            f" '{name}'."
        ) from None
    except Exception as error:  # whatever a network can do
        reason, remedy = _hub_reason(name, error)
        if weights and isinstance(error, FileNotFoundError):
            reason, remedy = f"{reason}, as no folder either", f"check the path, or {remedy}"
    raise BadInput(f"Base model '{name}' cannot be loaded ({reason}): {remedy}.")


def _snapshot(name: str, weights: bool) -> Path:
    """The cache folder of a hub model, what is missing downloaded if allowed, and said before."""
    from huggingface_hub import HfApi, snapshot_download

    if os.environ.get("WORKBENCH_DOWNLOAD") != "1":
        return Path(snapshot_download(name, local_files_only=True, allow_patterns=["*.json"]))
    about = HfApi().model_info(name, files_metadata=True, timeout=30)
    files = chosen_files([file.rfilename for file in about.siblings or ()], weights)
    planned = snapshot_download(name, allow_patterns=files, dry_run=True)
    left = [file for file in planned if file.will_download]
    if left:
        size = sum(file.file_size or 0 for file in left)
        licence = (about.card_data or {}).get("license") or "not stated"
        say(
            f"downloading {len(left)} files of {name}, {size_text(size)}, licence: {licence}",
        )
    return Path(snapshot_download(name, allow_patterns=files))


def _hub_reason(name: str, error: Exception) -> tuple[str, str]:
    """(why a hub model is not there, what to do) for an exception of huggingface_hub."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    # The first kind that fits counts: a gated model is also one that was not found.
    known: tuple[tuple[type[Exception], str, str], ...] = (
        (
            GatedRepoError,
            "it is gated",
            f"accept its terms at huggingface.co/{name} and run `hf auth login`",
        ),
        (
            RepositoryNotFoundError,
            "the hub has no such model, or it is private",
            "check its name, or run `hf auth login`",
        ),
        (
            HFValidationError,
            "this is no hub name",
            "use 'owner/model', 'pocket', a diffusers folder or a .safetensors file",
        ),
        (
            OfflineModeIsEnabled,
            "HF_HUB_OFFLINE forbids the network",
            "unset it to download, or copy the model here and name its folder",
        ),
        (
            FileNotFoundError,  # not in the cache
            "it is not on this machine",
            "set WORKBENCH_DOWNLOAD=1 to download it, size and licence are shown first",
        ),
    )
    unreached = (
        f"the hub cannot be reached: {first_line(error)[:150]}",
        "try again online, files that have arrived are kept",
    )
    told = ((reason, remedy) for kind, reason, remedy in known if isinstance(error, kind))
    return next(told, unreached)


def chosen_files(names: list[str], weights: bool = True) -> list[str]:
    """Of a hub model's files those that a pipeline is loaded from.

    Configurations, tokenizers, and one set of safetensors a part.
    """
    chosen = [name for name in names if name == "model_index.json"]
    for part in PIPELINE_PARTS:
        inside = [name for name in names if name.rpartition("/")[0] == part]
        texts = (name for name in inside if name.endswith((".json", ".txt")))
        chosen += [name for name in texts if ".index." not in name]
        if weights and part in WEIGHT_PARTS:
            chosen += _one_set(name for name in inside if ".safetensors" in name)
    return chosen
