"""Data sets in the folder form of Kohya's trainer, both ways.

A folder `10_identifier class/` with a caption .txt beside each picture:

    python -m lib to-kohya runs/course/data --out kohya     # kohya/train/10_zwx robot/000.png ...
    python -m lib from-kohya kohya --out runs/mine/data

The number is how often an epoch repeats the folder (kohya-ss sd-scripts, docs/train_README.md), and
so how much it counts beside others.
Regularisation pictures (`reg/1_robot/`) are class images.
"""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageOps

from lib.dataset.captions import (
    class_caption,
    composed,
    read_subject,
    rename,
    with_identifier,
)
from lib.dataset.folder_scan import KOHYA, holds_photos, is_photo, list_photos
from lib.dataset.imagefolder import Dataset, add_class_images, load_dataset
from lib.dataset.photo_file import open_photo
from lib.dataset.preparation import prepare
from lib.files import BadInput, listed, printable, whole_folder, write_json
from lib.files.paths import fitting_name
from lib.files.whole_writes import file_hash, may_be_replaced, unwritable_refused

HELD_OUT = "held_out - "  # before the names of pictures that are prepared to be held out


def to_kohya(data: str | Path, out: str | Path, repeats: int = 10) -> Path:
    """Write the data set in the folder `data` to `out`, and return that.

    `train/`, `reg/` (class images, once) and `held_out/` (not for training). `out` is replaced only
    if this made it. Raises BadInput if it holds anything else.
    """
    dataset, out = load_dataset(data), Path(out).expanduser()
    if not 1 <= repeats <= 10_000:
        raise BadInput(
            f"The repeats are {repeats}, outside 1 to 10000: choose a number in that range."
        )
    if out.exists() and not may_be_replaced(out, ("train", "reg", "held_out", "subject.json")):
        raise BadInput(f"The output {out} exists and was not made by this command: choose another.")
    subject = dataset.subject
    name = f"{subject.identifier} {subject.class_noun}"
    parts = {
        f"train/{repeats * each}_{name}": [i for i in dataset.train if i.repeats == each]
        for each in sorted({item.repeats for item in dataset.train})
    } | {
        f"reg/1_{subject.class_noun}": dataset.class_images,
        f"held_out/1_{name}": dataset.test,
    }
    with unwritable_refused(out), whole_folder(out, mark=True) as temporary:
        for folder, items in parts.items():
            for item in items:
                copy = temporary / folder / item.path.name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(item.path, copy)
                copy.with_suffix(".txt").write_text(item.caption + "\n", "utf-8")
        write_json(temporary / "subject.json", {"kind": subject.kind, "license": subject.license})
    return out


def from_kohya(
    folder: str | Path,
    out: str | Path,
    class_noun: str | None = None,
    identifier: str | None = None,
    kind: str | None = None,
    **options: Any,
) -> tuple[Dataset, list[str]]:
    """Prepare a data set in `out` from a folder of Kohya's form: (the `Dataset`, notes).

    `folder` holds `N_identifier class` folders, itself or in its `train` or `img`. Pictures
    without a caption file get the folder's words, as in Kohya's trainer. What is in `held_out` is
    held out; else nothing is held back but what `prepare` chooses. `options`: those of
    `PreparationOptions` (aspect "photo" is what Kohya's trainer calls buckets). `reg` becomes class
    images, cropped to the middle, each to the nearest size that photos have. The notes say what did
    not fit, and what was found about the photos. Raises BadInput if there is no such folder,
    folders disagree on the words, or as `prepare` does.

    Where folders differ in repeats, these become the `Item.repeats` of their pictures; a picture
    that lies in several counts for all of them.
    """
    folder = Path(folder).expanduser()
    places = (folder / name for name in ("train", "img", "image"))
    place = next((place for place in places if place.is_dir()), folder)
    train = _folders(place)
    first, class_of_folder = _words(folder, train)
    identifier, class_noun = identifier or first, class_noun or class_of_folder
    if not class_noun:
        raise BadInput(
            f"The folder '{train[0].path.name}' names no class after '{identifier}': write into its"
            f" name what it is, such as '{train[0].path.name} robot'."
        )
    subject = read_subject(folder, kind, class_noun, identifier)
    renamed = {first: identifier} | ({class_of_folder: class_noun} if class_of_folder else {})
    held_out = _folders(folder / "held_out")
    seen: dict[str, tuple[Path, str]] = {}  # where a picture was met first, and as which file
    said, repeats, doubles = {}, {}, []
    with tempfile.TemporaryDirectory() as scratch:
        for each in (*(each for each in train if each.repeats), *held_out):
            before = HELD_OUT if each in held_out else ""
            for picture, caption in each.pictures():
                file = _named(f"{before}{each.path.name} - {picture.name}", len(said))
                met, twin = seen.setdefault(before + file_hash(picture), (each.path, file))
                if met == each.path:
                    shutil.copyfile(picture, Path(scratch) / file)
                    repeats[file] = each.repeats
                else:
                    doubles.append(file)
                    file, repeats[twin] = twin, repeats[twin] + each.repeats
                said[file] = rename(caption, renamed) or said.get(file, rename(each.words, renamed))
        captions = {file: with_identifier(subject, text) for file, text in said.items()}
        completed = {file: text for file, text in captions.items() if text != said[file]}
        words = {"held_out": [f for f in said if f.startswith(HELD_OUT)], "captions": captions}
        write_json(Path(scratch) / "subject.json", asdict(subject) | words)
        edits = [
            {"file": f, "repeats": n} for f, n in repeats.items() if f not in words["held_out"]
        ]
        dataset = prepare(scratch, out, edits=edits, **options)
    notes = _passed_over(folder, place)
    if doubles:
        notes.append(
            f"in more than one folder, so that the repeats of all of them count: {listed(doubles)}"
        )
    if completed:
        pictures = dict.fromkeys(f.removeprefix(HELD_OUT).partition(" - ")[2] for f in completed)
        notes.append(
            f"the identifier {identifier!r} is written into the captions that lacked it, as"
            f" {next(iter(completed.values()))!r}: {listed(pictures)}"
        )
    notes += _notes_on_repeats(train)
    reg = _folders(folder / "reg")
    dataset, unread = _add_regularisation(dataset, reg)
    notes += unread
    for each in (*train, *held_out, *reg):
        listing = list_photos(each.path)
        notes += [f"{each.path.name}: {finding}" for finding in listing.findings]
        if listing.ignored:
            strays = listed(listing.ignored, 20)
            notes.append(f"{each.path.name}: ignored what is no photo: {strays}; nothing to do")
    return dataset, [*notes, *dataset.notes]


def _named(name: str, number: int) -> str:
    """The name under which a picture is prepared: by folder and file, cut where a disk needs it."""
    return (
        name
        if fitting_name(name, "") == name
        else fitting_name(name, f" {number}{Path(name).suffix}")
    )


def _passed_over(folder: Path, place: Path) -> list[str]:
    """A note on photos beside Kohya's folders, in `folder` and in the `place` in it of these."""
    names = [
        printable(path.name)
        for where in dict.fromkeys((folder, place))
        for path in sorted(where.iterdir())
        if is_photo(path)
        or path not in (place, folder / "reg", folder / "held_out")
        and not KOHYA.fullmatch(path.name)
        and holds_photos(path)
    ]
    told = (
        f"not used: {listed(names, 20)}, for no folder such as '10_zwx robot' says how they count;"
        " move into one what you want used"
    )
    return [told] if names else []


def _notes_on_repeats(train: Sequence["_KohyaFolder"]) -> list[str]:
    """What becomes of the folders' repeats, a sentence each."""
    notes, repeats = [], {each.path.name: each.repeats for each in train if each.repeats}
    if len(set(repeats.values())) > 1:
        notes.append(
            f"the repeats of {listed(repeats)} are kept as weights: in training a picture comes as"
            " often as its folder says against the others; `steps` says how long to train"
        )
    elif max(repeats.values(), default=1) > 1:
        notes.append(
            f"repeats ({', '.join(map(str, repeats.values()))}) lengthen an epoch for Kohya's"
            " trainer; here `steps` says how long to train"
        )
    if none := [each.path.name for each in train if not each.repeats]:
        notes.append(f"{listed(none)}: 0 repeats, so it is not trained on; give it 1 to use it")
    return notes


def _add_regularisation(
    dataset: Dataset, folders: Sequence["_KohyaFolder"]
) -> tuple[Dataset, list[str]]:
    """The data set with the pictures of `folders` as class images, and notes on what is lost."""
    images, captions, notes = [], [], []
    for each in folders:
        for picture, caption in each.pictures():
            try:
                images.append(_fitted(picture, dataset.sizes))
            except BadInput as error:
                notes.append(f"{each.path.name}: {error}")
                continue
            captions.append(class_caption(dataset.subject, caption or f"a {each.words}"))
    if len({each.repeats for each in folders}) > 1:
        notes.append(
            f"the repeats of {listed(each.path.name for each in folders)} are not kept: each class"
            " image comes as often as any other"
        )
    return (add_class_images(dataset, images, captions) if images else dataset), notes


class _KohyaFolder(NamedTuple):
    """A folder named as Kohya names them."""

    repeats: int
    words: str
    path: Path

    def pictures(self) -> list[tuple[Path, str]]:
        """The pictures in it, in the order of their names, each with its caption, or ""."""
        listing = list_photos(self.path)
        return [(path, listing.captions.get(path.name, ("", ""))[0]) for path in listing.photos]


def _words(folder: Path, train: list[_KohyaFolder]) -> tuple[str, str]:
    """(identifier, class) that the names of the folders say; the class may be empty."""
    words = {composed(each.words) for each in train}
    if not train:
        lies_in = f"the folder that it lies in, {folder.absolute().parent}"
        remedy = lies_in if KOHYA.fullmatch(folder.name) else "one of Kohya's data folders"
        raise BadInput(
            f"{folder} has no folder such as '10_zwx robot' in it (or in its train or img): name"
            f" {remedy}."
        )
    if len(words) > 1:
        raise BadInput(
            f"{folder} holds {len(words)} concepts ({', '.join(sorted(words))}), one is trained at"
            " a time: move the folders of the others elsewhere."
        )
    identifier, _, class_noun = words.pop().partition(" ")
    return identifier, class_noun


def _folders(folder: Path) -> list[_KohyaFolder]:
    """The folders in `folder` that are named as Kohya names them."""
    if not folder.is_dir():
        return []
    return [
        _KohyaFolder(int(named[1]), named[2].strip(), path)
        for path in sorted(folder.iterdir())
        if path.is_dir() and (named := KOHYA.fullmatch(path.name))
    ]


def _fitted(path: Path, sizes: Sequence[tuple[int, int]]) -> Image.Image:
    """A picture cropped to the middle, in the one of `sizes` nearest to its aspect."""
    picture = open_photo(path).picture
    aspect = picture.width / picture.height
    size = min(sizes, key=lambda size: abs(size[0] / size[1] - aspect))
    return ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
