"""A figure as notebooks need it: a picture with alternative text, and its numbers as a table with
real headings.
"""

import base64
import html
import io
import math
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Chart

CHART_WIDTH = 495  # CSS pixels; on a phone's 358 a chart's smallest letters still have 11
# JupyterLab's dark themes leave a chart white: it is turned there, as on a dark report page.
ON_DARK = """<style>body[data-jp-theme-light="false"] .chart img {
filter: invert(.93) hue-rotate(180deg)}</style>"""
PARTED = re.compile(r"(/|(?<=\w)\.(?=[a-z]))")  # where a long name may be broken
LARGEST = 120_000  # bytes of a picture: a notebook of a dozen stays easy to open, mail and keep


class Paragraphs:
    """Sentences to read: notebooks show them in the letters of the page, and not as printed text,
    whose words JupyterLab breaks anywhere.
    """

    def __init__(self, *texts: str):
        self.texts = texts

    def __repr__(self):
        return "\n\n".join(self.texts)

    def _repr_html_(self):
        return "".join(f"<p>{html.escape(text)}</p>" for text in self.texts)


class Table:
    """Rows under column headings, the first cell of a row being its heading.

    Real `<th>` in HTML, aligned columns as text. Raises ValueError for a row with more or fewer
    cells than there are columns. `rest` is a longer table that notebooks fold below it.
    """

    def __init__(
        self,
        rows: Iterable[Iterable],
        columns: Iterable[str],
        caption: str = "",
        rest: "Table | None" = None,
    ):
        self.rows, self.columns, self.caption = [list(r) for r in rows], list(columns), caption
        self.rest = rest
        bad = next((row for row in self.rows if len(row) != len(self.columns)), None)
        if bad is not None:
            raise ValueError(
                f"A table row has {len(bad)} cells and there are {len(self.columns)} columns: give"
                " each row one cell a column"
            )

    def text(self) -> str:
        """The table as plain text."""
        lines = [[number(cell) for cell in line] for line in (self.columns, *self.rows)]
        for i, right in enumerate(self._numeric()):
            width = max(len(line[i]) for line in lines)
            for line in lines:
                line[i] = line[i].rjust(width) if right else line[i].ljust(width)
        body = ["  ".join(line).rstrip() for line in lines]
        return "\n".join([self.caption, *body] if self.caption else body)

    def markdown(self) -> str:
        """The table as Markdown, columns of numbers to the right."""
        right = ["---:" if numeric else "---" for numeric in self._numeric()]
        lines = [[number(cell) for cell in line] for line in (self.columns, right, *self.rows)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    __str__ = __repr__ = text

    def _numeric(self):
        """Whether a column holds numbers alone, for each; the first is headings."""
        return [
            i > 0 and all(isinstance(row[i], int | float | None) for row in self.rows)
            for i in range(len(self.columns))
        ]

    def _repr_html_(self):
        def cells(line):
            # A path, or a layer's name, may go on in the next line of its cell.
            heading, *texts = [PARTED.sub(r"\1<wbr>", html.escape(number(c))) for c in line]
            others = "".join(f"<td>{text}</td>" for text in texts)
            return f'<tr><th scope="row">{heading}</th>{others}</tr>'

        def heading_of(column):
            # An empty heading would be read out as one that says nothing.
            text = html.escape(str(column))
            return f'<th scope="col">{text}</th>' if text else "<td></td>"

        head = "".join(map(heading_of, self.columns))
        caption = f"<caption>{html.escape(self.caption)}</caption>" if self.caption else ""
        body = "".join(map(cells, self.rows))
        rest = (
            f"<details><summary>All of it</summary>{self.rest._repr_html_()}</details>"
            if self.rest
            else ""
        )
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{rest}"


class Figure:
    """A picture to look at, what it shows in words, and its numbers.

    Notebooks and reports show the picture, the caption, and the table folded below it. `chart` is
    the matplotlib figure of a chart; `drawn` says that the picture is one, dark on white, which a
    dark page may invert.
    """

    def __init__(
        self,
        image: Image.Image,
        alt: str,
        table: Table | None = None,
        caption: str = "",
        chart: "Chart | None" = None,
        drawn: bool = False,
    ):
        self.image, self.alt, self.caption = image, alt, caption
        self.table, self.chart, self.drawn = table, chart, drawn or chart is not None

    @cached_property
    def encoded(self) -> tuple[str, bytes]:
        """The picture as it is shown: its MIME type and its bytes."""
        return _encode(self.image)

    def with_table(self, table: Table) -> "Figure":
        """The same figure, with numbers to be shown below it."""
        self.table = table
        return self

    def _repr_html_(self):
        caption = f"<figcaption>{html.escape(self.caption)}</figcaption>" if self.caption else ""
        numbers = (
            f"<details><summary>The figure in numbers</summary>{self.table._repr_html_()}</details>"
            if self.table
            else ""
        )
        kind, style = (' class="chart"', ON_DARK) if self.drawn else ("", "")
        shown = f'<figure{kind} style="margin: 0">{self._shown()}{caption}</figure>'
        return f"{style}{shown}{numbers}"

    def _shown(self):
        """The picture in HTML."""
        width = CHART_WIDTH if self.drawn else self.image.width
        return img(*self.encoded, self.alt, f"width: {width}px; max-width: 100%")

    def _repr_mimebundle_(self, include=None, exclude=None):
        # HTML is what front ends and nbconvert choose, for it alone keeps the alternative text; the
        # bare picture is for other programs.
        mime, data = self.encoded
        picture = base64.b64encode(data).decode()
        forms = {"text/html": self._repr_html_(), "text/plain": repr(self), mime: picture}
        return forms, {mime: {"alt": self.alt}}

    def __repr__(self):
        numbers = self.table.text() if self.table else ""
        return "\n".join(filter(None, [self.caption, f"[{self.alt}]", numbers]))

    def save(self, path: str | Path) -> None:
        """Write the picture as PNG, its alternative text inside as PNG's own "Description"."""
        inside = PngInfo()
        inside.add_text("Description", self.alt)
        self.image.save(path, "PNG", pnginfo=inside)


def number(value: Any) -> str:
    """A table cell as text: four significant digits for numbers, a dash for None."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def as_table(rows: Sequence[Any], columns: Sequence[str] | None = None, caption: str = "") -> Table:
    """A `Table` of `rows`: sequences in the order of `columns`, or dicts with them as keys.

    The first column heads the rows.
    """
    if rows and isinstance(rows[0], dict):
        columns = list(columns or rows[0])
        rows = [[row.get(c) for c in columns] for row in rows]
    return Table(rows, columns or [], caption)


def img(mime: str, data: bytes, alt: str, style: str) -> str:
    """A picture as an HTML element that needs nothing beside it."""
    source = f"data:{mime};base64,{base64.b64encode(data).decode()}"
    return f'<img src="{source}" alt="{html.escape(alt)}" style="{style}; height: auto">'


def _encode(image):
    """(MIME type, bytes): PNG, or JPEG where a PNG would be larger than `LARGEST`.

    Where that is too large as well, of fewer pixels, and shown as large.
    """
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    if file.tell() <= LARGEST:
        return "image/png", file.getvalue()
    while True:
        for quality in (92, 85, 75):
            file = io.BytesIO()
            image.save(file, "JPEG", quality=quality, subsampling=0)
            if file.tell() <= LARGEST:
                return "image/jpeg", file.getvalue()
        image = image.resize(
            (image.width * 4 // 5, image.height * 4 // 5), Image.Resampling.LANCZOS
        )
