"""Look at every photo of a folder: can it be used, and what about it would hurt training?"""

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import ImageFilter

from lib.dataset.duplicates import same_background, thumbnail, twins
from lib.dataset.photo_file import READABLE, REFUSED, open_photo
from lib.files.errors import BadInput
from lib.files.text import listed, printable

LOOK = 256  # pixels of the shorter side at which sharpness, exposure and bars are judged


# Softness of 15 sharp photographs: 0.21 to 0.47; of the same blurred by 12 of 1,440 pixels: 0.78 to
# 0.88. The rest are grey levels.
SOFT, DARK, BRIGHT, FLAT = 0.7, 70, 190, 16


BAR = 16  # grey levels: black padding, with what JPEG adds to it, stays below


@dataclass(frozen=True)
class Photo:
    """One photo as found. `width`, `height` and `crop` (left, top, right, bottom) are pixels of the
    upright picture.

    `findings` are short sentences, each with what to do; `error` says why it cannot be used, or is
    None. Photos with the same `group` show the same picture (copies, mirror images, re-crops) and
    must stay on one side of the held-out split; `copy_of` names the photo of which this one is an
    exact copy.
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
    group: int = -1
    copy_of: str | None = None

    @property
    def name(self):
        """The file name as it can be printed."""
        return printable(self.path.name)


class Photos(list):
    """The photos of a folder in the order of their names. `ignored`: names of strays; `findings`:
    about the whole folder.
    """

    ignored: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()


def scan(folder, resolution=64, kind=None, aspect="square"):
    """Look at all photos in `folder` (its subfolders are not entered). Returns `Photos`, a list of
    `Photo`.

    `resolution` is the side in pixels that training will use; of a subject of `kind` "style" or
    "lighting" the background is part, so it may be the same everywhere. `aspect`: "square", or
    "photo" for crops of the whole picture. Raises `BadInput` when the folder is missing, is no
    folder or holds no file that could be a photo. One bad photo does not raise: its `error` says
    what is wrong with it.
    """
    folder = Path(folder).expanduser()
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
    photos, thumbs, ignored = Photos(), [], []
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if _is_candidate(path):
            photo, thumb = _look(path, resolution, aspect)
            photos.append(photo)
            thumbs.append(thumb)
        elif path.name != "subject.json":
            ignored.append(printable(path.name) + ("/" if path.is_dir() else ""))
    if not photos:
        inside = [
            printable(p.name)
            for p in sorted(folder.iterdir())
            if _readable(p) and any(map(_is_candidate, p.iterdir()))
        ]
        put = f"put 3 to 8 photos ({' '.join(READABLE)}) into it"
        remedy = f"its subfolders do ({listed(inside)}): give one of these" if inside else put
        raise BadInput(f"photo folder {folder} holds no photos; {remedy}")
    usable = [i for i, photo in enumerate(photos) if not photo.error]
    _compare(photos, thumbs, usable)
    alike = same_background([thumbs[i] for i in usable])
    if len(alike) >= 3 and len(alike) > len(usable) / 2 and kind not in ("style", "lighting"):
        names = listed(photos[usable[i]].name for i in alike)
        said = (
            f"{len(alike)} of {len(usable)} photos seem to have the same background ({names}),"
            " which will be learnt as part of the subject; add photos taken in other places"
        )
        photos.findings += (said,)
    if ignored:
        photos.findings += (f"ignored what is no photo: {listed(ignored)}; nothing to do",)
    photos.ignored = tuple(ignored)
    return photos


def _readable(path):
    return path.is_dir() and os.access(path, os.R_OK | os.X_OK)


def _is_candidate(path):
    """Allow-list: only files that their owner would call photos. A broken link counts, so that its
    owner hears of it.
    """
    return (
        path.suffix.lower() in (*READABLE, *REFUSED)
        and not path.name.startswith(".")
        and (path.is_file() or path.is_symlink())
    )


def _look(path, resolution, aspect):
    """One photo as a `Photo` not yet compared with others, and its thumbnail (None when it cannot
    be used).
    """
    try:
        picture, (width, height), kind, mode, said = open_photo(path, size=LOOK)
    except BadInput as error:
        return Photo(path, error=str(error).removeprefix(printable(path.name) + ": ")), None
    findings, scale = list(said), width / picture.width
    box = _without_bars(np.asarray(picture.convert("L")))
    if box != (0, 0, *picture.size):
        findings.append(
            "has black bars, which the proposed crop leaves out; keep them out if you move the crop"
        )
    content = picture.crop(box)
    crop = [round(v * scale) for v in (_square(content, box) if aspect == "square" else box)]
    wide, high = min(crop[2] - crop[0], width), min(crop[3] - crop[1], height)
    if aspect == "square":
        wide = high = min(wide, high)
    left, top = min(crop[0], width - wide), min(crop[1], height - high)
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
    findings += _looks(content)
    photo = Photo(
        path,
        width,
        height,
        kind,
        mode,
        _sha256(path),
        tuple(findings),
        crop=(left, top, left + wide, top + high),
    )
    return photo, thumbnail(content)


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _without_bars(grey):
    """(left, top, right, bottom) without black padding. What makes a bar is its sharp end: a night
    sky fades into its picture.
    """
    edges = []
    for lines in (grey.T, grey, grey.T[::-1], grey[::-1]):
        black = (lines < BAR).mean(axis=1) > 0.98
        n = int(np.argmin(black)) if not black.all() else 0
        # JPEG and resizing smear the end over a line or two, so the picture is looked for a little
        # further in.
        sharp = n < 0.4 * len(lines) and (lines[min(n + 2, len(lines) - 1)] > 2 * BAR).mean() > 0.7
        edges.append(n if sharp and n >= max(2, 0.01 * len(lines)) else 0)
    left, top, right, bottom = edges
    inset = [
        e + 1 if e else 0 for e in (left, top, right, bottom)
    ]  # the smeared line belongs to the bar
    return inset[0], inset[1], grey.shape[1] - inset[2], grey.shape[0] - inset[3]


def _square(content, box):
    """The largest square within `box`, moved along its longer side to where the detail of `content`
    has its centre of mass.

    On an even background that is the subject; in a picture full of detail it is the middle.
    """
    width, height = content.size
    grey = np.asarray(content.convert("L"), np.float32)
    blurred = np.asarray(content.convert("L").filter(ImageFilter.BoxBlur(4)), np.float32)
    detail = np.maximum(np.abs(grey - blurred) - 4, 0)  # noise has no say
    if width == height or not detail.sum():
        x, y = width / 2, height / 2
    else:
        x, y = (
            float((detail.sum(axis=axis) * (np.arange(n) + 0.5)).sum() / detail.sum())
            for axis, n in ((0, width), (1, height))
        )
    side = min(width, height)
    left, top = (
        box[i] + min(max(centre - side / 2, 0), n - side)
        for i, (centre, n) in enumerate(((x, width), (y, height)))
    )
    return left, top, left + side, top + side


def softness(picture):
    """How much of a picture's variation a further blur leaves in place: about 0.2 for a sharp one,
    towards 1 for a blurred one.

    Unlike the variance of a Laplacian it does not take even surfaces for blur (Crete et al. 2007,
    the idea; box of 5 pixels).
    """
    grey = picture.convert("L")
    a, b = (np.asarray(p, np.float32) for p in (grey, grey.filter(ImageFilter.BoxBlur(2))))
    kept = [
        np.minimum(np.abs(np.diff(b, axis=axis)), np.abs(np.diff(a, axis=axis))).sum()
        / max(np.abs(np.diff(a, axis=axis)).sum(), 1e-6)
        for axis in (0, 1)
    ]
    return float(max(kept))


def _looks(content):
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


def _compare(photos, thumbs, usable):
    """Give each usable photo its group and say which show the same picture (changes the list in
    place).
    """
    first, group = {}, {i: i for i in usable}
    for i in usable:
        original = first.setdefault(photos[i].sha256, i)
        if original != i:
            group[i] = original
            said = f"is an exact copy of {photos[original].name} and is left out; nothing to do"
            photos[i] = replace(
                photos[i], copy_of=photos[original].path.name, findings=(*photos[i].findings, said)
            )
    distinct = [i for i in usable if photos[i].copy_of is None]
    for a, b, mirrored in twins([thumbs[i] for i in distinct]):
        i, j = distinct[a], distinct[b]
        group = {
            k: min(group[i], group[j]) if g in (group[i], group[j]) else g for k, g in group.items()
        }
        said = (
            f"shows the same picture as {photos[i].name}{', mirrored' if mirrored else ''}, so both"
            " stay on one side of the held-out split; leave one out, it teaches nothing new"
        )
        photos[j] = replace(photos[j], findings=(*photos[j].findings, said))
    for i in usable:
        photos[i] = replace(photos[i], group=group[i])


def report(photos):
    """What `scan` found as text, one line a finding."""
    lines = []
    for p in photos:
        seen = p.error or f"{p.width} x {p.height} {p.format}"
        lines += [f"{p.name}: {seen}", *(f"    {finding}" for finding in p.findings)]
    return "\n".join([*lines, *photos.findings])
