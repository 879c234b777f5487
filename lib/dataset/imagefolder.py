"""A prepared data set on disk, in the Hugging Face imagefolder form.

Written whole or not at all, checked when loaded:

    <folder>/train/        instance images: 000.png ... and metadata.jsonl, a line a picture:
                           {"file_name": "000.png", "text": "a zwx toy"}, and "shown" where pictures
                           keep their photo's aspect, "repeats" where some come more often (see
                           `Item`)
             test/         the same for held-out photos, where there are any
             class/        the same for class images, once `add_class_images` was called
             dataset.json  subject, plan, notes, and the SHA-256 of every other file
"""

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from lib.dataset.captions import Subject, check_caption
from lib.files import BadInput, read_json, whole_folder
from lib.files.whole_writes import file_hash, unwritable_refused

FORMAT, VERSION = "lora-dreambooth-workbench data set", 1


class NewPicture(NamedTuple):
    """A picture to be written: `make` gives it, `metadata` stands beside its caption."""

    make: Callable[[], Image.Image]
    caption: str
    metadata: dict[str, Any] = {}


@dataclass(frozen=True)
class Item:
    """One picture of a data set, and its caption.

    `shown`, where pictures need not be square: height and width in pixels of the photo that it was
    cut from, top and left of the cut, in pixels of the picture. `repeats`: how often training takes
    it where it takes a picture of 1 repeat once.
    """

    path: Path
    caption: str
    shown: tuple[int, ...] = ()
    repeats: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        with Image.open(self.path) as image:
            return image.size


@dataclass(frozen=True)
class Dataset:
    """A prepared data set.

    `resolution`: the side of every picture in pixels, or of a square of as many where they keep
    their photo's aspect; `notes`: the sentences said about the photos; `photos`: what became of
    each (file, use, crop, caption).
    """

    root: Path
    subject: Subject
    train: list[Item]
    test: list[Item]
    class_images: list[Item]
    resolution: int
    notes: tuple[str, ...] = ()
    photos: tuple[dict[str, Any], ...] = ()

    @property
    def captions(self) -> dict[str, str]:
        """The captions of the photos, trained on and held out, by picture: "train/000.png"."""
        return {
            f"{split}/{item.path.name}": item.caption
            for split, items in (("train", self.train), ("test", self.test))
            for item in items
        }

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(width, height) of each picture trained on, in order."""
        return sorted(item.size for item in self.train)


def load_dataset(folder: str | Path) -> Dataset:
    """The `Dataset` in `folder`, of which every file is read once.

    Raises `BadInput` when it is none, or not as it was written.
    """
    folder = Path(folder).expanduser()
    record = read_record(folder)
    if record is None:
        raise BadInput(
            f"{folder} is no prepared data set (no dataset.json of this project in it); prepare one"
            " with notebook 01"
        )
    items: dict[str, list[Item]] = {"train": [], "test": [], "class": []}
    for name, digest in record["files"].items():
        path = folder / name
        if not path.is_file():
            raise BadInput(
                f"data set {folder} is incomplete: {name} is missing; prepare it again with"
                " notebook 01"
            )
        if file_hash(path) != digest:
            raise BadInput(
                f"data set {folder} is damaged or was edited: {name} is not as it was written;"
                " prepare it again"
            )
        if path.name == "metadata.jsonl":
            items[path.parent.name] = [
                Item(
                    path.with_name(line["file_name"]),
                    line["text"],
                    tuple(line.get("shown", ())),
                    line.get("repeats", 1),
                )
                for line in map(json.loads, path.read_text(encoding="utf-8").splitlines())
            ]
    return Dataset(
        root=folder,
        subject=Subject(**record["subject"]),
        train=items["train"],
        test=items["test"],
        class_images=items["class"],
        resolution=record["resolution"],
        notes=tuple(record["notes"]),
        photos=tuple(record.get("photos", ())),
    )


def add_class_images(
    dataset: Dataset, images: Iterable[Image.Image], captions: Iterable[str]
) -> Dataset:
    """Write class images with their captions, in place of any from before: the new `Dataset`.

    `images`: RGB, of sizes that the photos have. Raises `BadInput` when their number or size does
    not fit.
    """
    images = list(images)
    captions = [check_caption(f"class image {i}", text) for i, text in enumerate(captions)]
    if len(images) != len(captions) or not images:
        raise BadInput(
            f"{len(images)} class images came with {len(captions)} captions; give one caption for"
            " each, and at least one"
        )
    sizes = dict.fromkeys(dataset.sizes)
    for i, image in enumerate(images):
        if image.size not in sizes:
            fit = " or ".join(f"{width} x {height}" for width, height in sizes)
            raise BadInput(
                f"class image {i} is {image.width} x {image.height} pixels; make it {fit}"
            )
    record = read_record(dataset.root)
    if record is None:
        raise BadInput(
            f"{dataset.root} is no prepared data set any more; prepare it again with notebook 01"
        )
    with unwritable_refused(dataset.root), whole_folder(dataset.root) as temporary:
        shutil.copytree(dataset.root, temporary, dirs_exist_ok=True)  # the user's own files too
        shutil.rmtree(temporary / "class", ignore_errors=True)
        record["files"] = {
            name: digest
            for name, digest in record["files"].items()
            if not name.startswith("class/")
        }
        pictures = [NewPicture(image.copy, text) for image, text in zip(images, captions)]
        record["files"] |= write_split(temporary, "class", pictures)
        write_record(temporary, record)
    return load_dataset(dataset.root)


def check_output(folder: Path, output: Path) -> None:
    """Raise `BadInput` unless `output` may be written without touching a user's file.

    `folder`: the photos that the data set is made from. Both paths are resolved.
    """
    if output == folder or folder in output.parents or output in folder.parents:
        raise BadInput(
            f"output {output} and photo folder {folder} lie within each other; choose an output"
            " elsewhere"
        )
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    record = read_record(output) if output.is_dir() else None
    if record is None:
        raise BadInput(
            f"output {output} exists and is no data set prepared here; choose another output, or"
            " move it away"
        )
    ours = {"dataset.json", *record["files"]}
    for path in sorted(output.rglob("*")):
        name = path.relative_to(output)
        stray = name.name == "Thumbs.db" or any(part.startswith(".") for part in name.parts)
        if path.is_file() and not stray and name.as_posix() not in ours:
            raise BadInput(
                f"output {output} holds {name.as_posix()}, which is no part of the data set to be"
                " replaced; move that file away"
            )


def read_record(folder: Path) -> dict[str, Any] | None:
    """The dict in `folder`/dataset.json, or None when there is none or it is not this project's."""
    try:
        record = read_json(folder / "dataset.json")
    except BadInput:
        return None
    ours = (record.get("format"), record.get("version")) == (FORMAT, VERSION)
    return record if ours and isinstance(record.get("files"), dict) else None


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write dataset.json; ASCII, so that even a file name that is no valid text survives."""
    (folder / "dataset.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def write_split(root: Path, split: str, pictures: Iterable[NewPicture]) -> dict[str, str]:
    """Write pictures to `root`/`split`, and return {file: SHA-256}, files relative to `root`."""
    folder = root / split
    folder.mkdir()
    lines = []
    for i, (make, caption, metadata) in enumerate(pictures):
        name = f"{i:03d}.png"
        make().convert("RGB").save(folder / name)
        said = {"file_name": name, "text": caption} | metadata
        lines.append(json.dumps(said, ensure_ascii=False) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
    return {f"{split}/{path.name}": file_hash(path) for path in sorted(folder.iterdir())}
