"""Look at every photo of a folder: can it be used, and what about it would hurt training?"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from lib.dataset.duplicates import same_background, same_pictures, thumbnail
from lib.dataset.photo_file import READABLE, REFUSED, open_photo
from lib.files import BadInput, listed, printable
from lib.files.whole_writes import file_hash

LOOK = 256  # pixels of the shorter side at which sharpness, exposure and bars are judged


# Softness of 15 sharp photographs: 0.21 to 0.47; of the same blurred by 12 of 1,440 pixels: 0.78 to
# 0.88. The rest are grey levels.
SOFT, DARK, BRIGHT, FLAT = 0.7, 70, 190, 16


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


def scan(
    folder: str | Path, resolution: int = 64, kind: str | None = None, aspect: str = "square"
) -> Photos:
    """Look at all photos in `folder` (its subfolders are not entered).

    - resolution: the side in pixels that training will use
    - kind: of a "style" or "lighting" the background is part, so it may be the same everywhere
    - aspect: "square", or "photo" for crops of the whole picture

    Raises `BadInput` when the folder is missing, is no folder or holds no file that could be a
    photo. One bad photo does not raise: its `error` says what is wrong with it.
    """
    folder = Path(folder).expanduser()
    _check_folder(folder)
    photos = Photos()
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if _is_candidate(path):
            photos.append(_look(path, resolution, aspect))
        elif path.name != "subject.json":
            photos.ignored += (printable(path.name) + ("/" if path.is_dir() else ""),)
    if not photos:
        raise BadInput(f"photo folder {folder} holds no photos; {_where_photos_are(folder)}")
    usable = [photo for photo in photos if not photo.error]
    _compare(usable)
    alike = same_background([photo.thumb for photo in usable])
    if len(alike) >= 3 and len(alike) > len(usable) / 2 and kind not in ("style", "lighting"):
        names = listed(usable[i].name for i in alike)
        photos.findings += (
            f"{len(alike)} of {len(usable)} photos seem to have the same background ({names}),"
            " which will be learnt as part of the subject; add photos taken in other places",
        )
    if photos.ignored:
        photos.findings += (f"ignored what is no photo: {listed(photos.ignored)}; nothing to do",)
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
    inside = [
        printable(path.name)
        for path in sorted(folder.iterdir())
        if _readable(path) and any(map(_is_candidate, path.iterdir()))
    ]
    if inside:
        return f"its subfolders do ({listed(inside)}): give one of these"
    return f"put 3 to 8 photos ({' '.join(READABLE)}) into it"


def _readable(path: Path) -> bool:
    return path.is_dir() and os.access(path, os.R_OK | os.X_OK)


def _is_candidate(path: Path) -> bool:
    """Whether the owner of a file would call it a photo, by an allow-list of endings.

    A broken link counts, so that its owner hears of it.
    """
    return (
        path.suffix.lower() in (*READABLE, *REFUSED)
        and not path.name.startswith(".")
        and (path.is_file() or path.is_symlink())
    )


def _look(path: Path, resolution: int, aspect: str) -> Photo:
    """One photo, not yet compared with others."""
    try:
        picture, (width, height), kind, mode, said = open_photo(path, size=LOOK)
    except BadInput as error:
        return Photo(path, error=str(error).removeprefix(printable(path.name) + ": "))
    findings, scale = list(said), width / picture.width
    box = _without_bars(np.asarray(picture.convert("L")))
    if box != (0, 0, *picture.size):
        findings.append(
            "has black bars, which the proposed crop leaves out; keep them out if you move the crop"
        )
    content = picture.crop(box)
    proposed = _square(content, box) if aspect == "square" else box
    left, top, right, bottom = (round(v * scale) for v in proposed)
    wide, high = min(right - left, width), min(bottom - top, height)
    if aspect == "square":
        wide = high = min(wide, high)
    left, top = min(left, width - wide), min(top, height - high)
    if wide * high < resolution**2:
        findings.append(
            f"gives only {wide} x {high} pixels and is enlarged to {resolution}, so it will look"
            " soft; use a larger photo"
        )
    if aspect == "square" and wide / max(width, height) < 0.5:
        findings.append(
            f"is {width} x {height} pixels, so the square crop loses most of it; check that it"
            " holds the subject"
        )
    return Photo(
        path,
        width=width,
        height=height,
        format=kind,
        mode=mode,
        sha256=file_hash(path),
        findings=(*findings, *_looks(content)),
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
    findings = []
    if top < DARK:
        findings.append("is very dark; brighten it, or take it again with more light")
    if low > BRIGHT and high > 250:
        findings.append("is overexposed; darken it, or take it again with less light")
    if softness(content) > SOFT:
        findings.append(
            "is blurred or enlarged; use a sharper photo (at 64 pixels it hardly shows, at 512 it"
            " does)"
        )
    return findings


def _compare(photos: Sequence[Photo]) -> None:
    """Give each usable photo its group and say which show the same picture."""
    first: dict[str, Photo] = {}
    for number, photo in enumerate(photos):
        photo.group = number
        original = first.setdefault(photo.sha256, photo)
        if original is not photo:
            photo.group, photo.copy_of = original.group, original.path.name
            photo.findings += (
                f"is an exact copy of {original.name} and is left out; nothing to do",
            )
    distinct = list(first.values())
    for i, j, mirrored in same_pictures([photo.thumb for photo in distinct]):
        one, other = distinct[i], distinct[j]
        joined = {one.group, other.group}
        for photo in photos:
            photo.group = min(joined) if photo.group in joined else photo.group
        other.findings += (
            f"shows the same picture as {one.name}{', mirrored' if mirrored else ''}, so both"
            " stay on one side of the held-out split; leave one out, it teaches nothing new",
        )


def report(photos: Photos) -> str:
    """What `scan` found as text, one line a finding."""
    lines = []
    for photo in photos:
        seen = photo.error or f"{photo.width} x {photo.height} {photo.format}"
        lines += [f"{photo.name}: {seen}", *(f"    {finding}" for finding in photo.findings)]
    return "\n".join([*lines, *photos.findings])
