"""The course's results to read: the comparison table as text, and all notebooks with it as one page that needs nothing beside it."""

import html
import re

ROWS = {"real_photos": "real photos", "base_model": "base model", "lora": "LoRA", "dreambooth": "DreamBooth"}
COLUMNS = {                                                     # key: heading, factor, format
    "seconds_per_step": ("s/step", 1, ".3f"),
    "train_seconds": ("training, s", 1, ".1f"),
    "peak_bytes": ("peak memory, MiB", 2**-20, ",.0f"),
    "file_bytes": ("file, MB", 1e-6, ",.2f"),
    "dino": ("DINO", 1, ".3f"),
    "clip_i": ("CLIP-I", 1, ".3f"),
    "clip_t": ("CLIP-T", 1, ".3f"),
}
PICTURE = """<div class="jp-RenderedImage jp-OutputArea-output"><img src="data:image/KIND;base64,{{ output.data['image/KIND'] | escape_html }}"
{%- set alt = output | get_metadata('alt', 'image/KIND') %}{% if alt %} alt="{{ alt | escape_html }}"{% endif %}></div>"""
# Lab's page without the scripts that it would load from elsewhere, and with the alternative text that a notebook gives a picture.
TEMPLATE = f"""{{%- extends 'lab/index.html.j2' -%}}
{{% block html_head_js %}}{{% endblock %}}{{% block html_head_js_mathjax %}}{{% endblock %}}{{% block html_head_js_mermaidjs %}}{{% endblock %}}
{{% block html_head_css %}}<style>
main {{max-width: 60rem; margin: auto}} body {{font-size: 16px; padding: 1rem}} .jp-Cell img {{max-width: 100%; height: auto}}
.jp-InputPrompt, .jp-OutputPrompt {{display: none}} .jp-RenderedHTMLCommon table {{display: block; overflow-x: auto}}
</style>{{% endblock %}}
{{% block data_png scoped %}}{PICTURE.replace("KIND", "png")}{{% endblock %}}
{{% block data_jpg scoped %}}{PICTURE.replace("KIND", "jpeg")}{{% endblock %}}"""


def table(summary):
    """The comparison as rows of text, headings first: one row each for what `summary` has of `ROWS`; what was not measured is '-'."""
    rows = [["", *(heading for heading, _, _ in COLUMNS.values())]]
    for key, name in ROWS.items():
        if key in summary:
            values = [summary[key].get(column) for column in COLUMNS]
            rows.append([name, *("-" if value is None else format(value * factor, form)
                                 for value, (_, factor, form) in zip(values, COLUMNS.values()))])
    return rows


def as_text(rows):
    """`rows` for a terminal: first column to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths))) for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def as_html(rows):
    """`rows` as an HTML table with a head."""
    def line(row, tag):
        return "<tr>" + "".join(f"<{tag if i else 'th'}>{html.escape(cell)}</{tag if i else 'th'}>" for i, cell in enumerate(row)) + "</tr>"

    body = "".join(line(row, "td") for row in rows[1:])
    return f"<table><thead>{line(rows[0], 'th')}</thead><tbody>{body}</tbody></table>"


def key_picture(notebooks):
    """(data, alternative text) of the picture for the top: the last one of a cell tagged `key-picture`, else the last notebook's largest."""
    found, tagged = [], []
    for notebook in notebooks:
        for cell in notebook.cells:
            for output in cell.get("outputs", ()):
                data = output.get("data", {}).get("image/png")
                if data:
                    picture = (data, _alternative(output))
                    (tagged if "key-picture" in cell.metadata.get("tags", ()) else found if notebook is notebooks[-1] else []).append(picture)
    return tagged[-1] if tagged else max(found, key=lambda picture: len(picture[0]), default=None)


def _alternative(output):
    return output.metadata.get("image/png", {}).get("alt") or output.metadata.get("alt") or ""


def report(notebooks, summary, title, foot=""):
    """One HTML page, as text: the table, the key picture, a table of contents and the executed `notebooks` in their order.

    Everything is inside it: no script, style, font or picture is loaded from elsewhere.
    """
    import nbformat
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter

    contents, cells = [], []
    for n, notebook in enumerate(notebooks, 1):
        for cell in notebook.cells:
            cell = nbformat.from_dict(cell)
            cell.id = f"n{n}-{len(cells)}"          # ids are unique within a notebook only
            if cell.cell_type == "markdown":
                cell.source = _headings(cell.source, n, contents)
            cells.append(cell)
    top = [f"# {title}", as_html(table(summary)), html.escape(foot)]
    picture = key_picture(notebooks)
    if picture:
        top.append(f'<img src="data:image/png;base64,{picture[0].strip()}" alt="{html.escape(picture[1])}">')
    top += ["## Contents", "\n".join("  " * (level - 2) + f"- [{text}](#{anchor})" for level, text, anchor in contents if level <= 3)]
    whole = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("\n\n".join(top), id="top"), *cells])
    whole.metadata = nbformat.from_dict({"title": title, "language_info": {"name": "python", "pygments_lexer": "ipython3"}})
    exporter = HTMLExporter(extra_loaders=[DictLoader({"report.html.j2": TEMPLATE})], template_file="report.html.j2", exclude_anchor_links=True)
    exporter.log.setLevel("ERROR")
    return exporter.from_notebook_node(whole)[0]


def _headings(source, number, contents):
    """`source` with its headings one level lower, since the page has a title of its own, and an anchor before each for `contents`."""
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
