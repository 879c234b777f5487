"""The course's results to read: the comparison table as text, and all notebooks with it as one page
that needs nothing beside it.
"""

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lib.config import CONTESTANT_NAMES
from lib.evaluation import comparison_table as tables
from lib.plots import Table

PICTURE = """<div class="jp-RenderedImage jp-OutputArea-output">
<img src="data:image/KIND;base64,{{ output.data['image/KIND'] | escape_html }}"
{%- set alt = output | get_metadata('alt', 'image/KIND') %}
{%- if alt %} alt="{{ alt | escape_html }}"{% endif %}></div>"""
STYLE = """<style>
main {max-width: 60rem; margin: auto}
body {font-size: 16px; padding: 1rem}
.jp-Cell img {max-width: 100%; height: auto}
.jp-InputPrompt, .jp-OutputPrompt {display: none}
.jp-RenderedHTMLCommon table {display: block; overflow-x: auto}
</style>"""
# Lab's page without the scripts that it would load from elsewhere, and with the alternative text
# that a notebook gives a picture.
TEMPLATE = f"""{{%- extends 'lab/index.html.j2' -%}}
{{% block html_head_js %}}{{% endblock %}}{{% block html_head_js_mathjax %}}{{% endblock %}}
{{% block html_head_js_mermaidjs %}}{{% endblock %}}
{{% block html_head_css %}}{STYLE}{{% endblock %}}
{{% block data_png scoped %}}{PICTURE.replace("KIND", "png")}{{% endblock %}}
{{% block data_jpg scoped %}}{PICTURE.replace("KIND", "jpeg")}{{% endblock %}}"""


def table(summary: Mapping[str, Any]) -> Table:
    """The comparison in `summary` (what `tables.write_summary` wrote) as a table."""
    rows = {name: values for name, values in summary.items() if name in CONTESTANT_NAMES}
    return tables.table(tables.Comparison(rows, summary["about"]))


def _key_picture(notebooks: Sequence[Any]) -> str:
    """The picture for the top, in HTML: the last of cells tagged `key-picture`, else the last
    notebook's largest; nothing if there is neither.
    """
    tagged = [
        picture
        for notebook in notebooks
        for cell in notebook.cells
        if "key-picture" in cell.metadata.get("tags", ())
        for picture in _pictures(cell)
    ]
    if tagged:
        return tagged[-1]
    drawn = [picture for cell in notebooks[-1].cells for picture in _pictures(cell)]
    return max(drawn, key=len, default="")


def _pictures(cell: Any) -> Iterator[str]:
    """The pictures that a cell shows, in HTML with their alternative texts."""
    for output in cell.get("outputs", ()):
        shown = output.get("data", {})
        kind = next((kind for kind in ("image/png", "image/jpeg") if kind in shown), None)
        if kind:
            own = output.metadata.get(kind, {}).get("alt")
            alt = html.escape(own or output.metadata.get("alt") or "")
            yield f'<img src="data:{kind};base64,{shown[kind].strip()}" alt="{alt}">'


def report(notebooks: Sequence[Any], summary: Mapping[str, Any], title: str, foot: str = "") -> str:
    """One HTML page, as text: the table, the key picture, a table of contents and the executed
    `notebooks` in their order.

    Everything is inside it: no script, style, font or picture is loaded from elsewhere.
    """
    import nbformat
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter

    contents: list[tuple[int, str, str]] = []
    cells: list[Any] = []
    for number, notebook in enumerate(notebooks, 1):
        for source in notebook.cells:
            cell: Any = nbformat.from_dict(source)
            cell.id = f"n{number}-{len(cells)}"  # ids are unique within a notebook only
            if cell.cell_type == "markdown":
                cell.source = _headings(cell.source, number, contents)
            cells.append(cell)
    lines = [
        "  " * (level - 2) + f"- [{text}](#{anchor})"
        for level, text, anchor in contents
        if level <= 3
    ]
    parts = [
        f"# {title}",
        table(summary)._repr_html_(),
        html.escape(summary.get("verdict", "")),
        html.escape(foot),
        _key_picture(notebooks),
        "## Contents",
        "\n".join(lines),
    ]
    top = nbformat.v4.new_markdown_cell("\n\n".join(parts), id="top")
    page = nbformat.v4.new_notebook(cells=[top, *cells])
    page.metadata = nbformat.from_dict(
        {"title": title, "language_info": {"name": "python", "pygments_lexer": "ipython3"}}
    )
    exporter = HTMLExporter(
        extra_loaders=[DictLoader({"report.html.j2": TEMPLATE})],
        template_file="report.html.j2",
        exclude_anchor_links=True,
    )
    exporter.log.setLevel("ERROR")
    return exporter.from_notebook_node(page)[0]


def _headings(source: str, number: int, contents: list[tuple[int, str, str]]) -> str:
    """`source` with its headings one level lower, since the page has a title of its own, and an
    anchor before each for `contents`.
    """
    lines, fenced = [], False
    for line in source.split("\n"):
        fenced ^= line.lstrip().startswith("```")
        heading = None if fenced else re.match(r"(#{1,5})\s+(.+?)\s*#*$", line)
        if heading:
            level, anchor = len(heading[1]) + 1, f"part-{number}-{len(contents)}"
            contents.append((level, heading[2], anchor))
            line = f'<a id="{anchor}"></a>\n\n{"#" * level} {heading[2]}'
        lines.append(line)
    return "\n".join(lines)
