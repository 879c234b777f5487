"""The course's results to read: the comparison table as text, and all notebooks with it as one page
that needs nothing beside it.
"""

import html
import re
from types import SimpleNamespace

from lib.config.names import CONTESTANT_NAMES
from lib.evaluation import comparison_table as tables

PICTURE = """<div class="jp-RenderedImage jp-OutputArea-output">
<img src="data:image/KIND;base64,{{ output.data['image/KIND'] | escape_html }}"
{%- set alt = output | get_metadata('alt', 'image/KIND') %}{% if alt %} alt="{{ alt | escape_html }}"{% endif %}></div>"""


# Lab's page without the scripts that it would load from elsewhere, and with the alternative text
# that a notebook gives a picture.
TEMPLATE = f"""{{%- extends 'lab/index.html.j2' -%}}
{{% block html_head_js %}}{{% endblock %}}{{% block html_head_js_mathjax %}}{{% endblock %}}
{{% block html_head_js_mermaidjs %}}{{% endblock %}}
{{% block html_head_css %}}<style>
main {{max-width: 60rem; margin: auto}} body {{font-size: 16px; padding: 1rem}} .jp-Cell img {{max-width: 100%; height: auto}}
.jp-InputPrompt, .jp-OutputPrompt {{display: none}} .jp-RenderedHTMLCommon table {{display: block; overflow-x: auto}}
</style>{{% endblock %}}
{{% block data_png scoped %}}{PICTURE.replace("KIND", "png")}{{% endblock %}}
{{% block data_jpg scoped %}}{PICTURE.replace("KIND", "jpeg")}{{% endblock %}}"""


def table(summary, form="text"):
    """The comparison in `summary` (what `tables.write_summary` wrote) as a "text", "markdown" or
    "html" table.
    """
    rows = {name: values for name, values in summary.items() if name in CONTESTANT_NAMES}
    return tables.table(SimpleNamespace(rows=rows, about=summary["about"]), form)


def key_picture(notebooks):
    """(kind, data, alternative text) of the picture for the top: the last of cells tagged
    `key-picture`, else the last notebook's largest.

    None if there is neither.
    """
    found, tagged = [], []
    for notebook in notebooks:
        for cell in notebook.cells:
            for output in cell.get("outputs", ()):
                kind = next(
                    (
                        kind
                        for kind in ("image/png", "image/jpeg")
                        if kind in output.get("data", {})
                    ),
                    None,
                )
                if kind:
                    alt = (
                        output.metadata.get(kind, {}).get("alt") or output.metadata.get("alt") or ""
                    )
                    picture = (kind, output.data[kind].strip(), alt)
                    if "key-picture" in cell.metadata.get("tags", ()):
                        tagged.append(picture)
                    elif notebook is notebooks[-1]:
                        found.append(picture)
    return tagged[-1] if tagged else max(found, key=lambda picture: len(picture[1]), default=None)


def report(notebooks, summary, title, foot=""):
    """One HTML page, as text: the table, the key picture, a table of contents and the executed
    `notebooks` in their order.

    Everything is inside it: no script, style, font or picture is loaded from elsewhere.
    """
    import nbformat
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter

    contents, cells = [], []
    for n, notebook in enumerate(notebooks, 1):
        for cell in notebook.cells:
            cell = nbformat.from_dict(cell)
            cell.id = f"n{n}-{len(cells)}"  # ids are unique within a notebook only
            if cell.cell_type == "markdown":
                cell.source = _headings(cell.source, n, contents)
            cells.append(cell)
    top = [
        f"# {title}",
        table(summary, "html"),
        html.escape(summary.get("verdict", "")),
        html.escape(foot),
    ]
    picture = key_picture(notebooks)
    if picture:
        kind, data, alt = picture
        top.append(f'<img src="data:{kind};base64,{data}" alt="{html.escape(alt)}">')
    top += [
        "## Contents",
        "\n".join(
            "  " * (level - 2) + f"- [{text}](#{anchor})"
            for level, text, anchor in contents
            if level <= 3
        ),
    ]
    whole = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell("\n\n".join(top), id="top"), *cells]
    )
    whole.metadata = nbformat.from_dict(
        {"title": title, "language_info": {"name": "python", "pygments_lexer": "ipython3"}}
    )
    loader = DictLoader({"report.html.j2": TEMPLATE})
    exporter = HTMLExporter(
        extra_loaders=[loader], template_file="report.html.j2", exclude_anchor_links=True
    )
    exporter.log.setLevel("ERROR")
    return exporter.from_notebook_node(whole)[0]


def _headings(source, number, contents):
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
