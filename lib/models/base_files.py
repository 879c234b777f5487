"""Where a base model lies and which files it is made of: the pocket base, a diffusers folder, a
single file, or a hub name.

Looked at are names, configurations and headers: no weight is loaded, nothing is run, and pickles
are refused. A model of the hub is looked up in its cache on this machine; only WORKBENCH_DOWNLOAD=1
allows a download, which says its size and licence first.
"""

import os
from pathlib import Path

from lib.files.errors import BadInput
from lib.files.json_file import read_json
from lib.files.paths import ROOT

POCKET = ROOT / "data" / "pocket"


PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl")


PARTS = (
    "unet",
    "vae",
    "text_encoder",
    "text_encoder_2",
    "tokenizer",
    "tokenizer_2",
    "scheduler",
)  # what a pipeline is loaded from


WITH_WEIGHTS = PARTS[:4]


def locate(name):
    """The folder or single file of the base model `name`, checked to be whole. Raises BadInput when
    there is none that can be loaded.

    `name`: "pocket", a diffusers folder, a .safetensors file in the original layout, or a hub name
    `owner/model`.
    """
    path = POCKET if name == "pocket" else Path(name).expanduser()
    if path.suffix.lower() in PICKLES:
        raise BadInput(
            f"Base model {name} is a pickle ({path.suffix}), which can run any code when it is"
            " opened: get the same model as a .safetensors file, which most model pages offer."
        )
    if path.is_file():
        if path.suffix.lower() != ".safetensors":
            raise BadInput(
                f"Base model {name} is no .safetensors file: name one, or a diffusers folder."
            )
        header(path)
        return path
    if path.is_dir():
        return check_folder(path)
    if (
        name.count("/") == 1
        and not name.startswith((".", "~", "/"))
        and path.suffix.lower() != ".safetensors"
    ):
        return hub_folder(name)
    raise BadInput(
        f"There is no base model '{name}': use 'pocket', a diffusers folder, a .safetensors file,"
        " or a hub name such as 'owner/model'."
    )


def header(path):
    """Shapes by key of a safetensors file, {key: tuple}, read from its header alone. Raises
    BadInput if it is damaged or cut short.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise BadInput(
            f"{path} is damaged or cut short ({_short(error)}): download or export it again."
        ) from None


def check_folder(folder):
    """The folder of a diffusers pipeline, if all of its parts are there, as safetensors, and none
    brings code of its own.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        raise BadInput(
            f"{folder} is no diffusers folder (it has no model_index.json): name the folder that"
            " holds one."
        )
    named = read_json(index)
    parts = {
        part: named[part]
        for part in PARTS
        if isinstance(named.get(part), list) and named[part] and named[part][0]
    }
    foreign = [part for part, made in parts.items() if made[0] not in ("diffusers", "transformers")]
    if foreign or not isinstance(named.get("_class_name"), str):
        what = f"its {foreign[0]}" if foreign else "its pipeline"
        raise BadInput(
            f"Base model {folder} brings code of its own ({what}), which never runs here: use a"
            " model made of diffusers' parts."
        )
    for part in [part for part in WITH_WEIGHTS if part in parts]:
        files = weight_files(folder / part)
        pickles = [f.name for f in (folder / part).glob("*") if f.suffix in PICKLES]
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
            header(file)
    return folder


def variant(folder):
    """What diffusers calls `variant`: "fp16" where a folder holds its U-Net in half precision
    alone, else None.
    """
    return "fp16" if any(".fp16" in f.name for f in weight_files(folder / "unet")) else None


def weight_files(folder, variant=None):
    """The safetensors of one part's folder that diffusers reads: those of the variant, the plain
    ones, or else what there is.
    """
    return [
        folder / name
        for name in _one_set(
            [f.name for f in sorted(folder.glob("*.safetensors"))], variant == "fp16"
        )
    ]


def _one_set(names, half=False):
    sets = [n for n in names if "non_ema" not in n]
    return [n for n in sets if (".fp16" in n) is half] or sets


def hub_folder(name, weights=True):
    """The folder of the hub model `name`, or of its configurations and tokenizers alone. Raises
    BadInput: absent, gated, no network.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    allowed = os.environ.get("WORKBENCH_DOWNLOAD") == "1"
    try:
        if not allowed:
            folder = Path(snapshot_download(name, local_files_only=True, allow_patterns=["*.json"]))
            return check_folder(folder) if weights else folder
        about = HfApi().model_info(name, files_metadata=True, timeout=30)
        files = chosen_files([s.rfilename for s in about.siblings], weights)
        left = [
            f
            for f in snapshot_download(name, allow_patterns=files, dry_run=True)
            if f.will_download
        ]
        if left:
            size, licence = (
                sum(f.file_size or 0 for f in left),
                (about.card_data or {}).get("license") or "not stated",
            )
            said = f"{size / 2**30:.2f} GiB" if size >= 2**29 else f"{size / 2**20:.1f} MiB"
            print(
                f"[stage] downloading {len(left)} files of {name}, {said}, licence: {licence}",
                flush=True,
            )
        folder = Path(snapshot_download(name, allow_patterns=files))
        return check_folder(folder) if weights else folder
    except BadInput as error:
        raise BadInput(
            f"{str(error).rstrip('.')}, or set WORKBENCH_DOWNLOAD=1 to download the rest of"
            f" '{name}'."
        ) from None
    except GatedRepoError:
        reason, remedy = (
            "it is gated",
            f"accept its terms at huggingface.co/{name} and run `hf auth login`",
        )
    except RepositoryNotFoundError:
        reason, remedy = (
            "the hub has no such model, or it is private",
            "check its name, or run `hf auth login`",
        )
    except HFValidationError:
        reason, remedy = (
            "this is no hub name",
            "use 'owner/model', 'pocket', a diffusers folder or a .safetensors file",
        )
    except OfflineModeIsEnabled:
        reason, remedy = (
            "HF_HUB_OFFLINE forbids the network",
            "unset it to download, or copy the model here and name its folder",
        )
    except FileNotFoundError:  # not in the cache
        reason, remedy = (
            "it is not on this machine",
            "set WORKBENCH_DOWNLOAD=1 to download it, size and licence are shown first",
        )
    except Exception as error:  # whatever a network can do
        reason, remedy = (
            f"the hub cannot be reached: {_short(error)}",
            "try again online, files that have arrived are kept",
        )
    raise BadInput(f"Base model '{name}' cannot be loaded ({reason}): {remedy}.")


def chosen_files(names, weights=True):
    """Of a hub model's files those that a pipeline is loaded from: configurations, tokenizers, and
    one set of safetensors a part.
    """
    chosen = []
    for part in ("", *PARTS):
        here = [n for n in names if n.rpartition("/")[0] == part]
        chosen += [
            n
            for n in here
            if n == "model_index.json"
            or part
            and n.endswith((".json", ".txt"))
            and ".index." not in n
        ]
        chosen += (
            _one_set([n for n in here if part in WITH_WEIGHTS and ".safetensors" in n])
            if weights
            else []
        )
    return chosen


def _short(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0][:150]
