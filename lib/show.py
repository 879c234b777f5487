"""What notebooks draw with: each figure is one short call, carries alternative text and its numbers as a table, and reads without colour.

    show.grid([before, after], rows=["base", "LoRA"], columns=places, caption="The same prompts and seeds")
"""

import html
import math
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .charts import along, bars, curves, intervals, learning_rate_curve, losses, points, trade
from .decode import open_photo
from .figure import Figure, Table, table
from .settings import BadInput

__all__ = ["Figure", "Table", "along", "bars", "curves", "framed", "grid", "intervals", "learning_rate_curve", "losses", "photos", "points",
           "progress", "table", "trade", "words"]
USES = {"train": "train", "test": "held out", "out": "left out"}


def grid(images, rows=None, columns=None, caption="", alt=None, scale=3, smooth=True, table=None):
    """A `Figure` of PIL images: a list of rows (lists; None leaves a gap), or one flat list laid out by the number of `columns`.

    `rows`, `columns`: labels (or, for a flat list, the number of columns). `scale`: enlargement, LANCZOS or, if not `smooth`, NEAREST,
    which keeps pixels visible. `alt`: what is to be seen, put before the layout in words. Raises ValueError when labels don't match.
    """
    if not len(images):
        raise ValueError("There is no image to show: give at least one")
    if not isinstance(images[0], list | tuple):
        wide = columns if isinstance(columns, int) else len(columns) if columns else math.ceil(len(images) / len(rows)) if rows else 8
        images = [images[i:i + wide] for i in range(0, len(images), wide)]
    columns = None if isinstance(columns, int) else columns
    wide = max(map(len, images))
    for what, labels, count in (("row", rows, len(images)), ("column", columns, wide)):
        if labels is not None and len(labels) != count:
            raise ValueError(f"There are {len(labels)} {what} labels and {count} {what}s of images: give one for each")
    some = [i for row in images for i in row if i is not None]
    cell = max(max(i.size) for i in some)
    scale = min(scale, max(1, 1600 / (cell * wide)))
    cell, gap = round(cell * scale), 6
    font = _font(15)
    top, left = _wrap(columns, cell, font), _wrap(rows, 150, font)
    line = sum(font.getmetrics()) + 2
    y0 = gap + line * max((len(t) for t in top), default=0)
    x0 = gap + max((round(font.getlength(s)) + 8 for t in left for s in t), default=0)
    sheet = Image.new("RGB", (x0 + wide * (cell + gap), y0 + len(images) * (cell + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for x, text in enumerate(top):
        for k, part in enumerate(text):
            draw.text((x0 + x * (cell + gap) + cell / 2, y0 - line * (len(text) - k)), part, "black", font, anchor="ma")
    for y, row in enumerate(images):
        for k, part in enumerate(left[y] if left else ()):
            middle = y0 + y * (cell + gap) + cell / 2
            draw.text((gap, middle + line * (k - len(left[y]) / 2)), part, "black", font)
        for x, image in enumerate(row):
            if image is not None:
                factor = cell / max(image.size)
                size = [max(1, round(s * factor)) for s in image.size]
                how = Image.Resampling.LANCZOS if smooth or factor < 1 else Image.Resampling.NEAREST
                at = (x0 + x * (cell + gap) + (cell - size[0]) // 2, y0 + y * (cell + gap) + (cell - size[1]) // 2)
                sheet.paste(image.convert("RGB").resize(size, how), at)
    shown = f"{len(some)} pictures in {len(images)} rows and {wide} columns"
    said = [f"{(alt or caption).rstrip('.')}: {shown}" if alt or caption else shown]
    said += [f"{what} {', '.join(map(str, labels))}" for what, labels in (("rows", rows), ("columns", columns)) if labels]
    return Figure(sheet, "; ".join(said) + ".", table, caption)


def progress(run, labels=None, most=5, caption="", scale=2):
    """The fixed-seed samples of a run along its training, a row for each of at most `most` steps, first and last always among them.

    `run`: a run folder, or `[(step, [PIL images])]` as a watcher sees it. `labels`: what each column shows, such as its prompt.
    """
    if isinstance(run, str | Path):
        files = {}
        for path in sorted((Path(run) / "samples").glob("step_*_*.png")):
            _, step, k = path.stem.split("_")
            files.setdefault(int(step), {})[int(k)] = path
        run = [(step, [Image.open(p).convert("RGB") for _, p in sorted(some.items())]) for step, some in sorted(files.items())]
    if not run:
        raise ValueError("The run has no samples: set sample_every to a number of steps and train again")
    kept = [run[i] for i in sorted({round(i) for i in np.linspace(0, len(run) - 1, min(most, len(run)))})]
    return grid([images for _, images in kept], [f"step {step}" for step, _ in kept], labels, caption, "Samples along the training", scale)


def photos(plan, folder, side=150, wide=4):
    """The photos of a `plan` with their crops: solid frame trained on, dashed held out, crossed left out. Its table has the findings."""
    tiles, rows = [], []
    for entry in plan:
        try:
            photo, *_ = open_photo(Path(folder) / entry["file"], size=2 * side)
        except BadInput:
            photo = Image.new("RGB", (side, side), "#dddddd")
        tile = framed(photo, entry, side)
        at, outline = (side // 2, side - 9), {"stroke_width": 4, "stroke_fill": "white"}
        ImageDraw.Draw(tile).text(at, str(len(rows) + 1), "black", _font(20), anchor="ms", **outline)
        tiles.append(tile)
        rows.append([len(rows) + 1, entry["file"], USES[entry["use"]], entry["caption"], "; ".join(entry["findings"]) or "nothing"])
    tiles += [None] * (-len(tiles) % min(wide, len(tiles) or 1))
    lines = [tiles[i:i + wide] for i in range(0, len(tiles), wide)]
    return grid(lines, scale=1, caption="The photos with their crops: solid frame trained on, dashed held out, crossed out left out",
                table=Table(rows, ["", "photo", "use", "caption", "found"]))


def framed(photo, entry, side):
    """`photo` shrunk to a `side` x `side` tile with the frame of its plan `entry`: a PIL image."""
    width, height = entry["width"] or photo.width, entry["height"] or photo.height
    factor = side / max(width, height)
    tile = Image.new("RGB", (side, side), "white")
    inside = photo.resize((max(1, round(width * factor)), max(1, round(height * factor))), Image.Resampling.LANCZOS)
    x, y = (side - inside.width) // 2, (side - inside.height) // 2
    tile.paste(inside, (x, y))
    draw, out = ImageDraw.Draw(tile), entry["use"] == "out"
    left, top, right, bottom = (round(v * factor) for v in (entry["crop"] if not out else (0, 0, width, height)))
    box = [x + left, y + top, x + max(right, left + 1) - 1, y + max(bottom, top + 1) - 1]
    a, b, c, d = (box[0], box[1]), (box[2], box[1]), (box[2], box[3]), (box[0], box[3])
    dashes = [(k / 9, (k + 1) / 9) for k in range(0, 9, 2)] if entry["use"] == "test" else [(0, 1)]
    for color, thick in (("white", 6), ("black", 2)):  # black on white shows on any photo
        for (x0, y0), (x1, y1) in [(a, c), (b, d)] if out else [(a, b), (b, c), (c, d), (d, a)]:
            for start, end in dashes:
                draw.line([x0 + (x1 - x0) * start, y0 + (y1 - y0) * start, x0 + (x1 - x0) * end, y0 + (y1 - y0) * end], color, thick)
    return tile


def words(text):
    """A sentence as HTML for a widget, or nothing for none."""
    return f"<p>{html.escape(text)}</p>" if text else ""


def _font(size):
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)


def _wrap(labels, width, font):
    """Each label as lines of at most `width` pixels."""
    letters = max(6, int(width / font.getlength("n")))
    return [textwrap.wrap(str(label), letters) or [""] for label in labels or ()]
