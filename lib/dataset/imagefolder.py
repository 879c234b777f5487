"""A prepared data set on disk, in the Hugging Face imagefolder form: written whole or not at all,
checked when loaded.

<folder>/train/  000.png ... metadata.jsonl      instance images; a line of metadata: {"file_name":
"000.png", "text": "a zwx toy"},
                                                 and "shown" where pictures keep their photo's aspect (see `Item`)
         test/   the same                        held-out photos, where there are any
         class/  the same                        class images, once `add_class_images` was called
         dataset.json                            subject, plan, notes, and the SHA-256 of every other file
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lib.dataset.captions import Subject, check_caption
from lib.files.errors import BadInput
from lib.files.whole_writes import written_whole

FORMAT, VERSION = "lora-dreambooth-workbench data set", 1


@dataclass(frozen=True)
class Item:
    """One picture of a data set, and its caption. `shown`, where pictures need not be square:
    height and width in pixels of the photo that it was cut from, top and left of the cut, in pixels
    of the picture.
    """

    path: Path
    caption: str
    shown: tuple[int, ...] = ()

    @property
    def size(self):
        """(width, height) in pixels."""
        with Image.open(self.path) as image:
            return image.size


@dataclass(frozen=True)
class Dataset:
    """A prepared data set. `resolution` is the side of every picture in pixels, or of a square of
    as many where they keep their photo's aspect; `notes` are the sentences said about the photos.
    """

    root: Path
    subject: Subject
    train: list[Item]
    test: list[Item]
    class_images: list[Item]
    resolution: int
    notes: tuple[str, ...] = ()

    @property
    def sizes(self):
        """(width, height) of each picture trained on, in order."""
        return sorted(item.size for item in self.train)


def load_dataset(folder):
    """The `Dataset` in `folder`. Reads every file once. Raises `BadInput` when it is none, or not
    as it was written.
    """
    folder = Path(folder).expanduser()
    record = read_record(folder)
    if record is None:
        raise BadInput(
            f"{folder} is no prepared data set (no dataset.json of this project in it); prepare one"
            " with notebook 01"
        )
    items = {"train": [], "test": [], "class": []}
    for name, digest in record["files"].items():
        path = folder / name
        if not path.is_file():
            raise BadInput(
                f"data set {folder} is incomplete: {name} is missing; prepare it again with"
                " notebook 01"
            )
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise BadInput(
                f"data set {folder} is damaged or was edited: {name} is not as it was written;"
                " prepare it again"
            )
        if path.name == "metadata.jsonl":
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            items[path.parent.name] = [
                Item(path.parent / line["file_name"], line["text"], tuple(line.get("shown", ())))
                for line in lines
            ]
    subject, notes = Subject(**record["subject"]), tuple(record["notes"])
    return Dataset(
        folder, subject, items["train"], items["test"], items["class"], record["resolution"], notes
    )


def add_class_images(dataset, images, captions):
    """Write class images (RGB PIL pictures of a size that photos have) with their captions, in
    place of any from before.

    Returns the new `Dataset`. Raises `BadInput` when their number or size does not fit.
    """
    images, captions = (
        list(images),
        [check_caption(f"class image {i}", text) for i, text in enumerate(captions)],
    )
    if len(images) != len(captions) or not images:
        raise BadInput(
            f"{len(images)} class images came with {len(captions)} captions; give one caption for"
            " each, and at least one"
        )
    sizes = list(dict.fromkeys(dataset.sizes))
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
    with written_whole(dataset.root) as temporary:
        record["files"] = {
            name: digest
            for name, digest in record["files"].items()
            if not name.startswith("class/")
        }
        for name in record["files"]:
            (temporary / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(dataset.root / name, temporary / name)
        record["files"] |= write_split(
            temporary,
            "class",
            [(lambda image=image: image, text) for image, text in zip(images, captions)],
        )
        write_record(temporary, record)
    return load_dataset(dataset.root)


def check_output(folder, output):
    """Raise `BadInput` unless a data set made from `folder` may be written to `output` (both
    resolved) without touching a user's file.
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


def read_record(folder):
    """The dict in `folder`/dataset.json, or None when there is none or it is not this project's."""
    try:
        record = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    ours = (
        isinstance(record, dict)
        and record.get("format") == FORMAT
        and record.get("version") == VERSION
    )
    return record if ours and isinstance(record.get("files"), dict) else None


def write_record(folder, record):
    """Write dataset.json; ASCII, so that even a file name that is no valid text survives."""
    (folder / "dataset.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def write_split(root, split, pictures):
    """Write pictures, each (function that makes it, caption, more metadata if any), to
    `root`/`split`. Returns {file: SHA-256}, files relative to `root`.
    """
    folder = root / split
    folder.mkdir()
    lines = []
    for i, (picture, caption, *more) in enumerate(pictures):
        name = f"{i:03d}.png"
        picture().convert("RGB").save(folder / name)
        lines.append(
            json.dumps({"file_name": name, "text": caption} | dict(*more), ensure_ascii=False)
            + "\n"
        )
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
    return {
        f"{split}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }
