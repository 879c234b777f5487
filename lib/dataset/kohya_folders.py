"""Data sets in the folder form of Kohya's trainer, both ways: `10_identifier class/` with a caption
.txt beside each picture.

    python -m lib to-kohya runs/course/data --out kohya        # kohya/train/10_zwx robot/000.png, 000.txt; kohya/reg/1_robot
    python -m lib from-kohya kohya --out runs/mine/data

The number is how often an epoch repeats the folder (kohya-ss sd-scripts, docs/train_README.md).
Regularisation pictures are class images.
"""

import re
import shutil
import tempfile
from pathlib import Path

from lib.dataset.captions import KINDS
from lib.dataset.imagefolder import add_class_images, load_dataset
from lib.dataset.photo_file import open_photo
from lib.dataset.preparation import prepare
from lib.files.errors import BadInput
from lib.files.json_file import write_json
from lib.files.whole_writes import MADE, MARK, made_here, written_whole

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


FOLDER = re.compile(r"(\d+)_(.+)")


def to_kohya(data, out, repeats=10):
    """Write the data set in the folder `data` to `out`: `train/`, `reg/` (class images, once) and
    `held_out/` (not for training).

    Returns `out`. `out` is replaced only if this made it. Raises BadInput if it holds anything
    else.
    """
    dataset, out = load_dataset(data), Path(out).expanduser()
    if not 1 <= repeats <= 10_000:
        raise BadInput(
            f"The repeats are {repeats}, outside 1 to 10000: choose a number in that range."
        )
    if out.exists() and not made_here(out, ("train", "reg", "held_out", "subject.json")):
        raise BadInput(f"The output {out} exists and was not made by this command: choose another.")
    subject = dataset.subject
    name = f"{subject.identifier} {subject.class_noun}"
    parts = {
        f"train/{repeats}_{name}": dataset.train,
        f"reg/1_{subject.class_noun}": dataset.class_images,
        f"held_out/1_{name}": dataset.test,
    }
    with written_whole(out) as temporary:
        for folder, items in parts.items():
            for item in items:
                (temporary / folder).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(item.path, temporary / folder / item.path.name)
                (temporary / folder / item.path.name).with_suffix(".txt").write_text(
                    item.caption + "\n", "utf-8"
                )
        write_json(temporary / "subject.json", {"kind": subject.kind, "license": subject.license})
        write_json(temporary / MARK, MADE)
    return out


def from_kohya(
    folder, out, resolution=64, kind=None, class_noun=None, identifier=None, aspect="square"
):
    """Prepare a data set in `out` from a folder of Kohya's form: of `N_identifier class` folders,
    or with them in `train` or `img`.

    Pictures without a caption file get the folder's words, as in Kohya's trainer. What is in
    `held_out` is held out; else nothing is held back but what `prepare` chooses. `aspect`: as there
    ("photo" is what Kohya's trainer calls buckets). `reg` becomes class images, cropped to the
    middle, each to the nearest size that photos have. Returns (the `Dataset`, notes of what did not
    fit). Raises BadInput if there is no such folder, folders disagree on the words, or as `prepare`
    does.
    """
    folder, notes = Path(folder).expanduser(), []
    train = _folders(
        next((folder / n for n in ("train", "img", "image") if (folder / n).is_dir()), folder)
    )
    words = {name for _, name, _ in train}
    if not train:
        raise BadInput(
            f"{folder} has no folder such as '10_zwx robot' in it (or in its train or img): name"
            " one of Kohya's data folders."
        )
    if len(words) > 1:
        raise BadInput(
            f"{folder} holds {len(words)} concepts ({', '.join(sorted(words))}), one is trained at"
            " a time: name its folder."
        )
    first, _, rest = words.pop().partition(" ")
    identifier, class_noun = identifier or first, class_noun or rest
    if not class_noun:
        raise BadInput(
            f"The folder '{train[0][2].name}' names no class after '{identifier}': say what it is,"
            " such as class_noun='robot'."
        )
    if any(repeats > 1 for repeats, *_ in train):
        said = ", ".join(str(repeats) for repeats, *_ in train)
        notes.append(
            f"repeats ({said}) lengthen an epoch for Kohya's trainer; here `steps` says how long to"
            " train"
        )
    own, captions, held_out = folder / "subject.json", {}, []
    told = (
        {}
        if not own.is_file()
        else {k: v for k, v in _json(own).items() if k in ("kind", "license")}
    )
    with tempfile.TemporaryDirectory() as scratch:
        for split, folders in (("train", train), ("held_out", _folders(folder / "held_out"))):
            for k, (_, name, where) in enumerate(folders):
                for picture in _pictures(where):
                    file = f"{split}_{k}_{picture.name}"
                    shutil.copyfile(picture, Path(scratch) / file)
                    captions[file] = _caption(picture) or name
                    held_out += [file] if split == "held_out" else []
        words = {
            "kind": kind or told.get("kind", KINDS[0]),
            "class_noun": class_noun,
            "identifier": identifier,
            "held_out": held_out,
            "captions": captions,
            "license": told.get("license", ""),
        }
        write_json(Path(scratch) / "subject.json", words)
        dataset = prepare(scratch, out, resolution=resolution, aspect=aspect)
    regular = [
        (picture, name)
        for _, name, where in _folders(folder / "reg")
        for picture in _pictures(where)
    ]
    if regular:
        images = [_fitted(picture, dataset.sizes) for picture, _ in regular]
        dataset = add_class_images(
            dataset, images, [_caption(picture) or f"a {name}" for picture, name in regular]
        )
    return dataset, [*notes, *dataset.notes]


def _folders(folder):
    """[(repeats, words, path)] of the folders named as Kohya names them."""
    if not folder.is_dir():
        return []
    hits = [
        (FOLDER.fullmatch(path.name), path) for path in sorted(folder.iterdir()) if path.is_dir()
    ]
    return [(int(hit[1]), hit[2].strip(), path) for hit, path in hits if hit]


def _pictures(folder):
    return [
        p
        for p in sorted(folder.iterdir())
        if p.suffix.lower() in PICTURES and not p.name.startswith(".")
    ]


def _caption(picture):
    for ending in (".txt", ".caption"):
        path = picture.with_suffix(ending)
        if path.is_file():
            try:
                return " ".join(path.read_text("utf-8-sig").split())
            except (OSError, ValueError) as error:
                raise BadInput(
                    f"The caption {path} cannot be read as text ({error}): save it as UTF-8."
                ) from None
    return ""


def _fitted(path, sizes):
    from PIL import Image, ImageOps

    picture = open_photo(path)[0].convert("RGB")
    size = min(sizes, key=lambda size: abs(size[0] / size[1] - picture.width / picture.height))
    return ImageOps.fit(picture, size, Image.Resampling.LANCZOS)


def _json(path):
    from lib.files.json_file import read_json

    return read_json(path)
