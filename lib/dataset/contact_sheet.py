"""The photos of a plan as one picture, each with the frame of its crop."""

from pathlib import Path

from PIL import Image, ImageDraw

from lib.dataset.photo_file import open_photo
from lib.files.errors import BadInput
from lib.plots.figure import Table
from lib.plots.image_grid import _font, grid

USES = {"train": "train", "test": "held out", "out": "left out"}


def contact_sheet(plan, folder, side=150, wide=4):
    """The photos of a `plan` with their crops: solid frame trained on, dashed held out, crossed
    left out. Its table has the findings.
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
        table=Table(rows, ["", "photo", "use", "caption", "found"]),
    )


def framed(photo, entry, side):
    """`photo` shrunk to a `side` x `side` tile with the frame of its plan `entry`: a PIL image."""
    width, height = entry["width"] or photo.width, entry["height"] or photo.height
    factor = side / max(width, height)
    tile = Image.new("RGB", (side, side), "white")
    inside = photo.resize(
        (max(1, round(width * factor)), max(1, round(height * factor))), Image.Resampling.LANCZOS
    )
    x, y = (side - inside.width) // 2, (side - inside.height) // 2
    tile.paste(inside, (x, y))
    draw, out = ImageDraw.Draw(tile), entry["use"] == "out"
    left, top, right, bottom = (
        round(v * factor) for v in (entry["crop"] if not out else (0, 0, width, height))
    )
    box = [x + left, y + top, x + max(right, left + 1) - 1, y + max(bottom, top + 1) - 1]
    a, b, c, d = (box[0], box[1]), (box[2], box[1]), (box[2], box[3]), (box[0], box[3])
    dashes = [(k / 9, (k + 1) / 9) for k in range(0, 9, 2)] if entry["use"] == "test" else [(0, 1)]
    for color, thick in (("white", 6), ("black", 2)):  # black on white shows on any photo
        for (x0, y0), (x1, y1) in [(a, c), (b, d)] if out else [(a, b), (b, c), (c, d), (d, a)]:
            for start, end in dashes:
                draw.line(
                    [
                        x0 + (x1 - x0) * start,
                        y0 + (y1 - y0) * start,
                        x0 + (x1 - x0) * end,
                        y0 + (y1 - y0) * end,
                    ],
                    color,
                    thick,
                )
    return tile
