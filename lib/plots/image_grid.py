"""What notebooks draw with: each figure is one short call, carries alternative text and its numbers
as a table, and reads without colour.

show.grid([before, after], rows=["base", "LoRA"], columns=places, caption="The same prompts and
seeds")
"""

import math
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from lib.plots.figure import Figure


def grid(images, rows=None, columns=None, caption="", alt=None, scale=3, smooth=True, table=None):
    """A `Figure` of PIL images: a list of rows (lists; None leaves a gap), or one flat list laid
    out by the number of `columns`.

    `rows`, `columns`: labels (or, for a flat list, the number of columns). `scale`: enlargement,
    LANCZOS or, if not `smooth`, NEAREST, which keeps pixels visible. `alt`: what is to be seen, put
    before the layout in words. Raises ValueError when labels don't match.
    """
    if not len(images):
        raise ValueError("There is no image to show: give at least one")
    if not isinstance(images[0], list | tuple):
        wide = (
            columns
            if isinstance(columns, int)
            else len(columns)
            if columns
            else math.ceil(len(images) / len(rows))
            if rows
            else 8
        )
        images = [images[i : i + wide] for i in range(0, len(images), wide)]
    columns = None if isinstance(columns, int) else columns
    wide = max(map(len, images))
    for what, labels, count in (("row", rows, len(images)), ("column", columns, wide)):
        if labels is not None and len(labels) != count:
            raise ValueError(
                f"There are {len(labels)} {what} labels and {count} {what}s of images: give one for"
                " each"
            )
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
            draw.text(
                (x0 + x * (cell + gap) + cell / 2, y0 - line * (len(text) - k)),
                part,
                "black",
                font,
                anchor="ma",
            )
    for y, row in enumerate(images):
        for k, part in enumerate(left[y] if left else ()):
            middle = y0 + y * (cell + gap) + cell / 2
            draw.text((gap, middle + line * (k - len(left[y]) / 2)), part, "black", font)
        for x, image in enumerate(row):
            if image is not None:
                factor = cell / max(image.size)
                size = [max(1, round(s * factor)) for s in image.size]
                how = Image.Resampling.LANCZOS if smooth or factor < 1 else Image.Resampling.NEAREST
                at = (
                    x0 + x * (cell + gap) + (cell - size[0]) // 2,
                    y0 + y * (cell + gap) + (cell - size[1]) // 2,
                )
                sheet.paste(image.convert("RGB").resize(size, how), at)
    shown = f"{len(some)} pictures in {len(images)} rows and {wide} columns"
    said = [f"{(alt or caption).rstrip('.')}: {shown}" if alt or caption else shown]
    said += [
        f"{what} {', '.join(map(str, labels))}"
        for what, labels in (("rows", rows), ("columns", columns))
        if labels
    ]
    return Figure(sheet, "; ".join(said) + ".", table, caption)


def _font(size):
    import matplotlib

    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size
    )


def _wrap(labels, width, font):
    """Each label as lines of at most `width` pixels."""
    letters = max(6, int(width / font.getlength("n")))
    return [textwrap.wrap(str(label), letters) or [""] for label in labels or ()]
