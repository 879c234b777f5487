"""Look at every photo of a folder: can it be used, and what about it would hurt training?

Which files are photos, and which hold captions of them, `list_photos` says, for every way in.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from lib.dataset.captions import SCENES, caption_rows, caption_text, composed
from lib.dataset.duplicates import same_background, same_pictures, thumbnail
from lib.dataset.photo_file import READABLE, REFUSED, format_of, open_photo
from lib.files import BadInput, listed, printable, read_json
from lib.files.whole_writes import file_hash

LOOK = 256  # pixels of the shorter side at which sharpness, exposure and bars are judged

# Softness of 15 sharp photographs: 0.21 to 0.47; of the same blurred by 12 of 1,440 pixels: 0.78 to
# 0.88. The rest are grey levels.
SOFT, DARK, BRIGHT, FLAT = 0.7, 70, 190, 16

SCREEN = re.compile(r"screen[ _-]?(shot|capture)|bildschirmfoto", re.IGNORECASE)
BAR = 16  # grey levels: black padding, with what JPEG adds to it, stays below


@dataclass
class Photo:
    """One photo as found.

    - width, height, crop (left, top, right, bottom): pixels of the upright picture
    - format, mode: as `open_photo` has them; sha256: of the file
    - findings: short sentences, each with what to do
    - error: why it cannot be used, or None
    - thumb: a small copy of what is inside any bars; None with an error
    - group: photos of one group show the same picture (copies, mirror images, re-crops) and must
      stay on one side of the held-out split
    - copy_of: the photo of which this one is an exact copy
    - caption: what a file beside it says of it, or ""; caption_from: the name of that file
    """

    path: Path
    width: int = 0
    height: int = 0
    format: str = ""
    mode: str = ""
    sha256: str = ""
    findings: tuple[str, ...] = ()
    error: str | None = None
    crop: tuple[int, int, int, int] = (0, 0, 0, 0)
    thumb: Any = None
    group: int = -1
    copy_of: str | None = None
    caption: str = ""
    caption_from: str = ""

    @property
    def name(self) -> str:
        """The file name as it can be printed."""
        return printable(self.path.name)


class Photos(list[Photo]):
    """The photos of a folder in the order of their names.

    `ignored`: names of files that are no photos; `findings`: about the whole folder.
    """

    ignored: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()


@dataclass
class Listing:
    """The files of a folder, told apart.

    - photos: in the order of their names
    - captions: {name of a photo: (its caption, the file that says so)}, of files beside them
    - ignored: names of what is neither; findings: about files that seem to be meant and are not
      used
    """

    photos: list[Path] = field(default_factory=list)
    captions: dict[str, tuple[str, str]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()


# How Kohya's trainer names a folder: "10_zwx toy", its repeats and its words.
KOHYA = re.compile(r"(\d+)_(.+)")

# Files with captions of several photos, as Hugging Face's imagefolder has them, and the columns
# that trainers read.
TABLES = ("metadata.jsonl", "metadata.csv")
COLUMNS = ("text", "caption", "prompt")
CAPTION_ENDINGS = (".caption", ".txt")  # the later one counts where both are there

# What may be meant for use and is not read, by the ending, and what to do then.
CAPTIONS_ARE_READ = (
    "captions are read from .txt, .caption, metadata.jsonl and metadata.csv; write them there"
)
UNREAD: dict[str, str] = dict.fromkeys(
    (".json", ".jsonl", ".parquet", ".tags", ".yaml", ".yml", ".csv", ".tsv", ".xlsx", ".ods"),
    CAPTIONS_ARE_READ,
)
ARCHIVES = (".zip", ".rar", ".7z", ".tar", ".gz", ".tgz")
UNREAD |= dict.fromkeys(ARCHIVES, "archives are not opened; unpack it here")
CAPTIONS_NAMED = re.compile(r"caption|prompt|\btags?\b", re.IGNORECASE)
MOST_LOOKED_AT = 10_000  # files in a subfolder, until it is taken for one without photos
PHOTOS_INSIDE = "photos are taken from the folder itself; move what you want used"


def list_photos(folder: Path) -> Listing:
    """The photos in `folder`, by their content, and the captions in files beside them.

    A caption stands in a file of the photo's name ("a.txt", "a.caption", "a.jpg.txt"), or in
    metadata.jsonl or metadata.csv. Raises BadInput for a caption file that cannot be read.
    """
    found = {path: is_photo(path) for path in sorted(folder.iterdir(), key=lambda path: path.name)}
    listing = Listing([path for path, photo in found.items() if photo])
    others = [p for p, photo in found.items() if not photo and p.name != "subject.json"]
    used = _captions_of_tables(listing, [path for path in others if path.name in TABLES])
    used |= _captions_of_texts(listing, [path for path in others if _may_be_caption(path)])
    left = [
        (printable(path.name) + ("/" if path.is_dir() else ""), _may_be_meant(path))
        for path in others
        if path not in used
    ]
    listing.ignored = tuple(name for name, reason in left if not reason)
    listing.findings += tuple(
        f"not used: {listed((name for name, why in left if why == reason), 20)}, for {reason}"
        for reason in dict.fromkeys(reason for _, reason in left if reason)
    )
    return listing


def _may_be_meant(path: Path) -> str:
    """Why a file or folder that may hold photos or captions is not used; "" where it holds none."""
    if path.name.startswith(".") or path.name in TABLES:  # what is wrong with a table is said there
        return ""
    if not path.is_dir():
        return UNREAD.get(path.suffix.lower(), "")
    return PHOTOS_INSIDE if holds_photos(path) else ""


def holds_photos(folder: Path) -> bool:
    """Whether there are photos in `folder`, however deep, as far as that is quickly seen."""
    return _readable(folder) and any(map(is_photo, islice(folder.rglob("*"), MOST_LOOKED_AT)))


def _may_be_caption(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    return path.suffix.lower() in CAPTION_ENDINGS and path.is_file()


def _captions_of_texts(listing: Listing, files: Iterable[Path]) -> set[Path]:
    """Take the captions of files that are named as their photos; returns the files taken."""
    photos: dict[str, list[str]] = {}
    for photo in listing.photos:
        for name in {photo.name, photo.stem}:
            photos.setdefault(composed(name).casefold(), []).append(photo.name)
    used, without = set(), []
    for path in sorted(files, key=lambda path: CAPTION_ENDINGS.index(path.suffix.lower())):
        named = photos.get(composed(path.stem).casefold(), [])
        used |= {path} if named else set()
        without += [] if named else [printable(path.name)]
        if named and (text := " ".join(caption_text(path).split())):
            listing.captions |= {name: (text, path.name) for name in named}
    # One text alone is rather a note, unless its name says otherwise.
    if without and (len(used) + len(without) > 1 or CAPTIONS_NAMED.search(without[0])):
        listing.findings += (
            f"no photo goes by the name of {listed(without)}, so nothing is captioned by it; name a"
            " caption file as its photo if it was meant",
        )
    return used


def _captions_of_tables(listing: Listing, files: Iterable[Path]) -> set[Path]:
    """Take the captions of metadata.jsonl or metadata.csv; returns the files taken."""
    names, used = [path.name for path in listing.photos], set()
    photos = {composed(n).casefold(): n for n in names} | {composed(n): n for n in names}
    for path in files:
        rows = caption_rows(path)
        column = next((name for name in COLUMNS if any(name in row for row in rows)), None)
        if column is None or not any("file_name" in row for row in rows):
            listing.findings += (
                f"{path.name} has no captions that can be read ('file_name' and"
                f" {', '.join(map(repr, COLUMNS[:-1]))} or {COLUMNS[-1]!r}), so it is not used;"
                " correct it if it was meant",
            )
            continue
        used.add(path)
        missing = []
        for row in rows:
            name, text = composed(os.path.normpath(str(row.get("file_name")))), row.get(column)
            photo = photos.get(name, photos.get(name.casefold()))
            if photo is None:
                missing.append(printable(name))
            elif not isinstance(text or "", str):
                raise BadInput(
                    f"{path.name}: the caption of {printable(photo)} is no text"
                    f" ({str(text)[:60]}); write it as one text"
                )
            elif text and text.strip():
                listing.captions[photo] = (" ".join(text.split()), path.name)
        if missing:
            listing.findings += (
                f"{path.name} names {listed(missing)}, which the folder does not have; correct it"
                " if a photo lacks its caption",
            )
    return used


def scan(
    folder: str | Path, resolution: int = 64, kind: str | None = None, aspect: str = "square"
) -> Photos:
    """Look at all photos in `folder` (its subfolders are not entered).

    - resolution: the side in pixels that training will use
    - kind: of a "style" or "lighting" the background is part, so it may be the same everywhere; by
      default what the folder's subject.json says
    - aspect: "square", or "photo" for crops of the whole picture

    Raises `BadInput` when the folder is missing, is no folder or holds no file that could be a
    photo. One bad photo does not raise: its `error` says what is wrong with it.
    """
    folder = Path(folder).expanduser()
    _check_folder(folder)
    listing = list_photos(folder)
    photos = Photos(_look(path, resolution, aspect) for path in listing.photos)
    for photo in photos:
        photo.caption, photo.caption_from = listing.captions.get(photo.path.name, ("", ""))
    photos.ignored, photos.findings = listing.ignored, listing.findings
    if not photos:
        raise BadInput(f"photo folder {folder} holds no photos; {_where_photos_are(folder)}")
    usable = [photo for photo in photos if not photo.error]
    _compare(usable)
    alike = same_background([photo.thumb for photo in usable])
    own = folder / "subject.json"
    kind = kind or (read_json(own).get("kind") if own.is_file() else None)
    if len(alike) >= 3 and len(alike) > len(usable) / 2 and kind not in SCENES:
        photos.findings += (
            f"{len(alike)} of {len(usable)} photos seem to have the same background"
            f" ({listed(usable[i].name for i in alike)}), which will be learnt as part of the"
            " subject; add photos taken in other places",
        )
    if sources := list(dict.fromkeys(photo.caption_from for photo in photos if photo.caption)):
        photos.findings += (
            f"captions are taken from {listed(map(printable, sources))}; edit them there or in the"
            " plan, or move these files away if they are no captions",
        )
    if photos.ignored:
        photos.findings += (
            f"ignored what is no photo: {listed(photos.ignored, 20)}; nothing to do",
        )
    return photos


def _check_folder(folder: Path) -> None:
    if not folder.exists():
        raise BadInput(f"photo folder {folder} does not exist; check the path")
    if not folder.is_dir():
        raise BadInput(
            f"{folder} is a file, not a folder; put the photos into a folder (unpack it if it is an"
            " archive) and give that"
        )
    if not _readable(folder):
        raise BadInput(
            f"photo folder {folder} may not be read; change its permissions, or copy it to where"
            " you may read it"
        )


def _where_photos_are(folder: Path) -> str:
    """What to do with a folder that holds no photos: perhaps its subfolders do."""
    inside = [printable(path.name) for path in sorted(folder.iterdir()) if holds_photos(path)]
    if any(KOHYA.fullmatch(name) for name in inside):
        return (
            f"its subfolders do ({listed(inside)}), in Kohya's form: run `python -m lib from-kohya"
            f" {folder} --out runs/mine/data`"
        )
    if inside:
        return f"its subfolders do ({listed(inside)}): give one of these"
    return f"put 3 to 8 photos ({' '.join(READABLE)}) into it"


def _readable(path: Path) -> bool:
    return path.is_dir() and os.access(path, os.R_OK | os.X_OK)


def is_photo(path: Path) -> bool:
    """Whether the owner of a file would call it a photo: by its name, or else by its content.

    A broken link counts, so that its owner hears of it.
    """
    if path.name.startswith(".") or not (path.is_file() or path.is_symlink()):
        return False
    if path.suffix.lower() in (*READABLE, *REFUSED):
        return True
    try:
        return path.is_file() and bool(format_of(path))
    except OSError:
        return False


def _look(path: Path, resolution: int, aspect: str) -> Photo:
    """One photo, not yet compared with others."""
    try:
        picture, (width, height), kind, mode, said = open_photo(path, size=LOOK)
    except BadInput as error:
        return Photo(path, error=str(error).removeprefix(printable(path.name) + ": "))
    scale, box = width / picture.width, _without_bars(np.asarray(picture.convert("L")))
    content = picture.crop(box)
    left, top, right, bottom = (
        round(v * scale) for v in (_square(content, box) if aspect == "square" else box)
    )
    wide, high = min(right - left, width), min(bottom - top, height)
    if aspect == "square":
        wide = high = min(wide, high)
    left, top = min(left, width - wide), min(top, height - high)
    findings = {
        "is named like a picture of a screen; take it out if it is one": SCREEN.search(path.name),
        "has black bars, which the proposed crop leaves out; keep them out if you move the crop": (
            box != (0, 0, *picture.size)
        ),
        f"gives only {wide} x {high} pixels and is enlarged to {resolution}, so it will look soft;"
        " use a larger photo": wide * high < resolution**2,
        f"is {width} x {height} pixels, so the square crop loses most of it; check that it holds"
        " the subject": aspect == "square" and wide / max(width, height) < 0.5,
    }
    return Photo(
        path,
        width=width,
        height=height,
        format=kind,
        mode=mode,
        sha256=file_hash(path),
        findings=(*said, *(f for f, holds in findings.items() if holds), *_looks(content)),
        crop=(left, top, left + wide, top + high),
        thumb=thumbnail(content),
    )


def _without_bars(grey: np.ndarray) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) without black padding.

    What makes a bar is its sharp end: a night sky fades into its picture.
    """
    edges = []
    for lines in (grey.T, grey, grey.T[::-1], grey[::-1]):
        black = (lines < BAR).mean(axis=1) > 0.98
        n = int(np.argmin(black)) if not black.all() else 0
        # JPEG and resizing smear the end over a line or two, so the picture is looked for a little
        # further in.
        sharp = n < 0.4 * len(lines) and (lines[min(n + 2, len(lines) - 1)] > 2 * BAR).mean() > 0.7
        edges.append(n if sharp and n >= max(2, 0.01 * len(lines)) else 0)
    # The smeared line belongs to the bar.
    left, top, right, bottom = (edge + 1 if edge else 0 for edge in edges)
    return left, top, grey.shape[1] - right, grey.shape[0] - bottom


def _square(
    content: Image.Image, box: tuple[int, int, int, int]
) -> tuple[float, float, float, float]:
    """The largest square within `box`, moved along its longer side to the detail of `content`.

    To where that has its centre of mass: on an even background that is the subject; in a picture
    full of detail it is the middle.
    """
    width, height = content.size
    grey = np.asarray(content.convert("L"), np.float32)
    blurred = np.asarray(content.convert("L").filter(ImageFilter.BoxBlur(4)), np.float32)
    detail = np.maximum(np.abs(grey - blurred) - 4, 0)  # noise has no say
    x, y = width / 2, height / 2
    if width != height and detail.sum():
        x, y = (
            float((detail.sum(axis) * (np.arange(length) + 0.5)).sum() / detail.sum())
            for axis, length in enumerate((width, height))
        )
    side = min(width, height)
    left = box[0] + min(max(x - side / 2, 0), width - side)
    top = box[1] + min(max(y - side / 2, 0), height - side)
    return left, top, left + side, top + side


def softness(picture: Image.Image) -> float:
    """How much of a picture's variation a further blur leaves in place.

    About 0.2 for a sharp one, towards 1 for a blurred one. Unlike the variance of a Laplacian it
    does not take even surfaces for blur (Crete et al. 2007, the idea; box of 5 pixels).
    """
    grey = picture.convert("L")
    sharp = np.asarray(grey, np.float32)
    blurred = np.asarray(grey.filter(ImageFilter.BoxBlur(2)), np.float32)
    left_in_place = []
    for axis in (0, 1):
        before, after = (np.abs(np.diff(values, axis=axis)) for values in (sharp, blurred))
        left_in_place.append(np.minimum(after, before).sum() / max(before.sum(), 1e-6))
    return float(max(left_in_place))


def _looks(content: Image.Image) -> list[str]:
    """Findings about sharpness and exposure of the picture inside any bars."""
    low, high, top = np.percentile(np.asarray(content.convert("L")), (5, 95, 99))
    if top - low < FLAT:
        return ["is almost one even colour, so it shows nothing to learn; take it out"]
    findings = {
        "is very dark; brighten it, or take it again with more light": top < DARK,
        "is overexposed; darken it, or take it again with less light": low > BRIGHT and high > 250,
        "is blurred or enlarged; use a sharper photo (at 64 pixels it hardly shows, at 512 it"
        " does)": softness(content) > SOFT,
    }
    return [finding for finding, holds in findings.items() if holds]


def _compare(photos: Sequence[Photo]) -> None:
    """Give each usable photo its group and say which show the same picture."""
    first: dict[str, Photo] = {}
    for number, photo in enumerate(photos):
        photo.group = number
        original = first.setdefault(photo.sha256, photo)
        if original is not photo:
            photo.group, photo.copy_of = original.group, original.path.name
            if not original.caption:  # the words are of the picture, whichever file they lie beside
                original.caption, original.caption_from = photo.caption, photo.caption_from
            photo.findings += (
                f"is an exact copy of {original.name} and is left out; nothing to do",
            )
    distinct = list(first.values())
    same: dict[str, list[str]] = {}  # by the later photo's name, as messages name the others
    for i, j, mirrored in same_pictures([photo.thumb for photo in distinct]):
        one, other = distinct[i], distinct[j]
        joined = {one.group, other.group}
        for photo in photos:
            photo.group = min(joined) if photo.group in joined else photo.group
        same.setdefault(other.name, []).append(one.name + (" (mirrored)" if mirrored else ""))
    for photo in distinct:
        if others := same.get(photo.name):
            photo.findings += (
                f"shows the same picture as {listed(others)}, so they stay on one side of the"
                " held-out split; leave all but one out, the others teach nothing new",
            )


def report(photos: Photos) -> str:
    """What `scan` found as text, one line a finding."""
    lines = []
    for photo in photos:
        seen = photo.error or f"{photo.width} x {photo.height} {photo.format}"
        lines += [f"{photo.name}: {seen}", *(f"    {finding}" for finding in photo.findings)]
    return "\n".join([*lines, *photos.findings])
