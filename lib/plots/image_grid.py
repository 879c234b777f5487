"""Pictures side by side, with labels, as one figure.

grid([before, after], rows=["base", "LoRA"], columns=places, caption="The same prompts, seeds")
"""

import html
import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from lib.plots.figure import LARGEST, Figure, img

GAP = 6  # pixels between pictures
WIDEST = 1600  # pixels, of all pictures in a row
ROW_LABEL = 150  # pixels, the width at which a row's label is broken into lines


def grid(
    images: Sequence[Any],
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | int | None = None,
    caption: str = "",
    alt: str | None = None,
    scale: float = 3,
) -> Figure:
    """PIL images as a list of rows (lists; None leaves a gap), or as a flat list.

    rows, columns: labels; for a flat list, their number lays it out, and `columns` may be that
    number. scale: enlargement, by LANCZOS. alt: what is to be seen, put before the layout in words;
    `caption`, if not given. Raises ValueError when labels don't match.
    """
    if not len(images):
        raise ValueError("There is no image to show: give at least one")
    lines = _laid_out(images, rows, columns)
    columns = None if isinstance(columns, int) else columns
    width = max(map(len, lines))
    count = sum(image is not None for line in lines for image in line)
    shown = f"{count} pictures in {len(lines)} rows and {width} columns"
    said = [f"{(alt or caption).rstrip('.')}: {shown}" if alt or caption else shown]
    for what, labels, wanted in (("row", rows, len(lines)), ("column", columns, width)):
        if labels is not None and len(labels) != wanted:
            raise ValueError(
                f"There are {len(labels)} {what} labels and {wanted} {what}s of images: give one"
                " for each"
            )
        if labels:
            said.append(f"{what}s {', '.join(map(str, labels))}")
    figure = Grid(_sheet(lines, rows, columns, scale), "; ".join(said) + ".", None, caption)
    figure.lay_out(lines, rows, columns, scale)
    return figure


class Grid(Figure):
    """A figure of pictures whose labels a page shows as text, of its own size and colour on a phone
    or on a dark ground; in `image` they are drawn.
    """

    laid_out = ""

    def lay_out(self, lines: Sequence[Any], rows: Any, columns: Any, scale: float) -> None:
        """Make the HTML of `grid`'s pictures and labels."""
        cell, width = _cell(lines, scale), max(map(len, lines))
        sheet = img("image/webp", _bare_sheet(lines), self.alt, "width: 100%")
        above = "".join(f'<span style="{ABOVE}">{_breakable(t)}</span>' for t in columns or ())
        beside = "".join(f"<span>{_breakable(t)}</span>" for t in rows or ())
        left = "fit-content(clamp(4.5rem, 22vw, 9rem)) " if rows else ""
        room = f"max-width: {(cell + GAP) * width + 150}px; min-width: {LEAST * width}px"
        self.laid_out = (
            '<div class="grid" tabindex="0" style="overflow-x: auto">'
            f'<div style="display: grid; {room};'
            f' grid-template-columns: {left}minmax(0, {(cell + GAP) * width}px)">'
            + ("<span></span>" if rows else "")
            + f'<div style="display: flex; align-items: end">{above}</div>'
            + (f'<div style="{BESIDE}">{beside}</div>' if rows else "")
            + f"<div>{sheet}</div></div></div>"
        )

    def _shown(self):
        return self.laid_out


# How labels stand above and beside the pictures.
ABOVE = "flex: 1 1 0; text-align: center; padding: 0 2px; line-height: 1.2"
BESIDE = "display: grid; grid-auto-rows: 1fr; align-items: center; line-height: 1.2"
LEAST = 52  # CSS pixels of a picture, below which a grid scrolls in its own box
NATIVE = 256  # pixels of a picture in a sheet at most


def _breakable(label):
    """A label in HTML, whose longest word a narrow page may hyphenate."""
    return html.escape(str(label)).replace("DreamBooth", "Dream&shy;Booth")


def _cell(lines, scale):
    """Pixels of a picture as it is shown."""
    largest = max(max(image.size) for line in lines for image in line if image is not None)
    return round(largest * min(scale, max(1, WIDEST / (largest * max(map(len, lines))))))


def _bare_sheet(lines):
    """All pictures in one WebP, each in its own size and in the middle of a square cell, with
    nothing between them: a browser enlarges them smoothly, in a fraction of the bytes.
    """
    images = [image for line in lines for image in line if image is not None]
    side = min(NATIVE, max(max(image.size) for image in images))
    step = side + GAP // 2
    sheet = Image.new("RGBA", (step * max(map(len, lines)), step * len(lines)))
    _paste(sheet, lines, side, step)
    for quality in (90, 80, 65, 50):
        file = io.BytesIO()
        sheet.save(file, "WEBP", quality=quality)
        if file.tell() <= LARGEST:
            break
    return file.getvalue()


def _laid_out(images, rows, columns):
    """The images as a list of rows."""
    if isinstance(images[0], list | tuple):
        return images
    if isinstance(columns, int):
        width = columns
    elif columns:
        width = len(columns)
    elif rows:
        width = math.ceil(len(images) / len(rows))
    else:
        width = 8
    return [images[i : i + width] for i in range(0, len(images), width)]


def _sheet(lines, rows, columns, scale):
    """One white image with all pictures, each in the middle of a square cell, and the labels."""
    width, cell = max(map(len, lines)), _cell(lines, scale)
    step, font = cell + GAP, _font(15)
    above, beside = _wrap(columns, cell, font), _wrap(rows, ROW_LABEL, font)
    text_height = sum(font.getmetrics()) + 2
    left = GAP + max((round(font.getlength(t)) + 8 for text in beside for t in text), default=0)
    top = GAP + text_height * max((len(text) for text in above), default=0)
    sheet = Image.new("RGB", (left + width * step, top + len(lines) * step), "white")
    draw = ImageDraw.Draw(sheet)
    for x, text in enumerate(above):
        for k, part in enumerate(text):
            at = (left + x * step + cell / 2, top - text_height * (len(text) - k))
            draw.text(at, part, "black", font, anchor="ma")
    for y, text in enumerate(beside):
        for k, part in enumerate(text):
            middle = top + y * step + cell / 2
            draw.text((GAP, middle + text_height * (k - len(text) / 2)), part, "black", font)
    _paste(sheet, lines, cell, step, (left - GAP // 2, top - GAP // 2))
    return sheet


def _paste(sheet, lines, side, step, corner=(0, 0)):
    """Put all pictures on a sheet, the longer side of each `side` pixels, in the middle of squares
    of `step` pixels that begin at `corner`.
    """
    for y, line in enumerate(lines):
        for x, image in enumerate(line):
            if image is not None:
                factor = side / max(image.size)
                size = [max(1, round(length * factor)) for length in image.size]
                tile = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
                across, down = ((step - length) // 2 for length in size)
                sheet.paste(tile, (corner[0] + x * step + across, corner[1] + y * step + down))


def _font(size):
    import matplotlib  # late: it takes a second to start

    path = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
    return ImageFont.truetype(str(path), size)


def _wrap(labels, width, font):
    """Each label as lines of at most `width` pixels."""
    letters = max(6, int(width / font.getlength("n")))
    return [textwrap.wrap(str(label), letters) or [""] for label in labels or ()]
