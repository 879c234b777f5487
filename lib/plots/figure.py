"""A figure as notebooks need it: a picture with alternative text, and its numbers as a table with
real headings.
"""

import base64
import html
import io
import math

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

LARGEST = 120_000  # bytes of a picture: a notebook of a dozen stays easy to open, mail and keep


class Table:
    """Rows under column headings, the first cell of a row being its heading: real `<th>` in HTML,
    aligned columns as text.
    """

    def __init__(self, rows, columns, caption=""):
        self.rows, self.columns, self.caption = [list(r) for r in rows], list(columns), caption
        bad = next((r for r in self.rows if len(r) != len(self.columns)), None)
        if bad is not None:
            raise ValueError(
                f"A table row has {len(bad)} cells and there are {len(self.columns)} columns: give"
                " each row one cell a column"
            )

    def text(self):
        """The table as plain text."""
        lines = [[number(c) for c in line] for line in [self.columns, *self.rows]]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        right = [
            i > 0 and all(isinstance(r[i], int | float | None) for r in self.rows)
            for i in range(len(widths))
        ]
        body = [
            "  ".join(
                c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right)
            ).rstrip()
            for line in lines
        ]
        return "\n".join(([self.caption] if self.caption else []) + body)

    def markdown(self):
        """The table as Markdown, columns of numbers to the right."""
        right = [
            "---:" if i and all(isinstance(r[i], int | float | None) for r in self.rows) else "---"
            for i in range(len(self.columns))
        ]
        lines = [[number(cell) for cell in line] for line in (self.columns, right, *self.rows)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    __str__ = __repr__ = text

    def _repr_html_(self):
        def cells(line):
            texts = [html.escape(number(c)) for c in line]
            return (
                f'<tr><th scope="row">{texts[0]}</th>'
                + "".join(f"<td>{t}</td>" for t in texts[1:])
                + "</tr>"
            )

        head = "".join(f'<th scope="col">{html.escape(str(c))}</th>' for c in self.columns)
        caption = f"<caption>{html.escape(self.caption)}</caption>" if self.caption else ""
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{''.join(map(cells, self.rows))}</tbody></table>"


class Figure:
    """A picture to look at: `image` (PIL), `alt` (what it shows, in words), `table` (its numbers,
    or None), `caption`.

    Charts keep their matplotlib figure as `chart`. Notebooks and reports show the picture, the
    caption, and the table below it.
    """

    def __init__(self, image, alt, table=None, caption="", chart=None):
        self.image, self.alt, self.table, self.caption, self.chart = (
            image,
            alt,
            table,
            caption,
            chart,
        )
        self.mime, self.data = _encode(image)

    def _repr_html_(self):
        source = f"data:{self.mime};base64,{base64.b64encode(self.data).decode()}"
        caption = f"<figcaption>{html.escape(self.caption)}</figcaption>" if self.caption else ""
        numbers = (
            "<details open><summary>The figure in"
            f" numbers</summary>{self.table._repr_html_()}</details>"
            if self.table
            else ""
        )
        return (
            f'<figure style="margin: 0"><img src="{source}" alt="{html.escape(self.alt)}"'
            f' width="{self.image.width}" style="max-width: 100%; height:'
            f' auto">{caption}</figure>{numbers}'
        )

    def _repr_mimebundle_(self, include=None, exclude=None):
        # HTML is what front ends and nbconvert choose, for it alone keeps the alternative text; the
        # bare picture is for other programs.
        picture = base64.b64encode(self.data).decode()
        return {"text/html": self._repr_html_(), "text/plain": repr(self), self.mime: picture}, {
            self.mime: {"alt": self.alt}
        }

    def __repr__(self):
        return "\n".join(
            filter(None, [self.caption, f"[{self.alt}]", self.table and self.table.text()])
        )

    def save(self, path):
        """Write the picture to `path` as PNG, with its alternative text inside, as PNG's own
        "Description".
        """
        inside = PngInfo()
        inside.add_text("Description", self.alt)
        self.image.save(path, "PNG", pnginfo=inside)


def number(value):
    """A table cell as text: four significant digits for numbers, a dash for None."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return str(value)
    return (
        f"{value:,}"
        if isinstance(value, int)
        else f"{value:,.0f}"
        if abs(value) >= 10_000
        else f"{value:.4g}"
    )


def as_table(rows, columns=None, caption=""):
    """A `Table` of `rows`: sequences in the order of `columns`, or dicts with the columns as keys;
    the first column heads the rows.
    """
    if rows and isinstance(rows[0], dict):
        columns = list(columns or rows[0])
        rows = [[row.get(c) for c in columns] for row in rows]
    return Table(rows, columns or [], caption)


def _encode(image):
    """(MIME type, bytes): PNG; JPEG where a PNG would be larger than `LARGEST`; a smaller JPEG,
    shown as large, where that is as well.
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


def sentence_html(text):
    """A sentence as HTML for a widget, or nothing for none."""
    return f"<p>{html.escape(text)}</p>" if text else ""
