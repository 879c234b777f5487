"""The photos of a plan as one picture, each with the frame of its crop."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from lib.dataset.photo_file import open_photo
from lib.files import BadInput
from lib.plots import Figure, Table, grid
from lib.plots.image_grid import _font

USES = {"train": "train", "test": "held out", "out": "left out"}


def contact_sheet(
    plan: Sequence[Mapping[str, Any]], folder: str | Path, side: int = 150, wide: int = 4
) -> Figure:
    """The photos of a `plan` with their crops, in tiles of `side` pixels, `wide` of them in a row.

    Solid frame trained on, dashed held out, crossed left out. Its table has the findings.
    """
    tiles, rows = [], []
    for number, entry in enumerate(plan, 1):
        try:
            photo, *_ = open_photo(Path(folder) / entry["file"], size=2 * side)
        except BadInput:
            photo = Image.new("RGB", (side, side), "#dddddd")
        tile = framed(photo, entry, side)
        ImageDraw.Draw(tile).text(
            (side // 2, side - 9),
            str(number),
            "black",
            _font(20),
            anchor="ms",
            stroke_width=4,
            stroke_fill="white",
        )
        tiles.append(tile)
        findings = "; ".join(entry["findings"]) or "nothing"
        rows.append([number, entry["file"], USES[entry["use"]], entry["caption"], findings])
    return grid(
        tiles,
        columns=min(wide, len(tiles)),
        scale=1,
        caption=(
            "The photos with their crops: solid frame trained on, dashed held out, crossed out"
            " left out"
        ),
    ).with_table(Table(rows, ["", "photo", "use", "caption", "found"]))


def framed(photo: Image.Image, entry: Mapping[str, Any], side: int) -> Image.Image:
    """`photo` shrunk to a `side` x `side` tile with the frame of its plan `entry`."""
    width, height = entry["width"] or photo.width, entry["height"] or photo.height
    factor = side / max(width, height)
    tile = Image.new("RGB", (side, side), "white")
    inside = photo.resize(
        (max(1, round(width * factor)), max(1, round(height * factor))), Image.Resampling.LANCZOS
    )
    x, y = (side - inside.width) // 2, (side - inside.height) // 2
    tile.paste(inside, (x, y))
    out = entry["use"] == "out"
    crop = (0, 0, width, height) if out else entry["crop"]
    left, top, right, bottom = (round(v * factor) for v in crop)
    x0, y0 = x + left, y + top
    x1, y1 = x + max(right, left + 1) - 1, y + max(bottom, top + 1) - 1
    a, b, c, d = (x0, y0), (x1, y0), (x1, y1), (x0, y1)
    lines = [(a, c), (b, d)] if out else [(a, b), (b, c), (c, d), (d, a)]
    dashes = [(k / 9, (k + 1) / 9) for k in range(0, 9, 2)] if entry["use"] == "test" else [(0, 1)]
    for color, thick in (("white", 6), ("black", 2)):  # black on white shows on any photo
        for (x0, y0), (x1, y1) in lines:
            for begin, stop in dashes:
                ends = [(x0 + (x1 - x0) * at, y0 + (y1 - y0) * at) for at in (begin, stop)]
                ImageDraw.Draw(tile).line(ends, color, thick)
    return tile
