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
    for entry in plan:
        try:
            photo, *_ = open_photo(Path(folder) / entry["file"], size=2 * side)
        except BadInput:
            photo = Image.new("RGB", (side, side), "#dddddd")
        tile = framed(photo, entry, side)
        at, outline = (side // 2, side - 9), {"stroke_width": 4, "stroke_fill": "white"}
        ImageDraw.Draw(tile).text(
            at, str(len(rows) + 1), "black", _font(20), anchor="ms", **outline
        )
        tiles.append(tile)
        rows.append(
            [
                len(rows) + 1,
                entry["file"],
                USES[entry["use"]],
                entry["caption"],
                "; ".join(entry["findings"]) or "nothing",
            ]
        )
    tiles += [None] * (-len(tiles) % min(wide, len(tiles) or 1))
    lines = [tiles[i : i + wide] for i in range(0, len(tiles), wide)]
    return grid(
        lines,
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
    dashed = entry["use"] == "test"
    for color, thick in (("white", 6), ("black", 2)):  # black on white shows on any photo
        for start, end in lines:
            _line(tile, start, end, dashed, color, thick)
    return tile


Point = tuple[float, float]


def _line(
    tile: Image.Image, start: Point, end: Point, dashed: bool, color: str, thick: int
) -> None:
    """Draw a line, in one or in five dashes."""
    (x0, y0), (x1, y1) = start, end
    dashes = [(k / 9, (k + 1) / 9) for k in range(0, 9, 2)] if dashed else [(0, 1)]
    for begin, stop in dashes:
        ends = [
            x0 + (x1 - x0) * begin,
            y0 + (y1 - y0) * begin,
            x0 + (x1 - x0) * stop,
            y0 + (y1 - y0) * stop,
        ]
        ImageDraw.Draw(tile).line(ends, color, thick)
