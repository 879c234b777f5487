"""The course's results to read: the comparison table as text, and all notebooks with the answer
above them as one page that needs nothing beside it.
"""

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.config import CONTESTANT_NAMES
from lib.evaluation import comparison_table as tables
from lib.evaluation.results import answer_table
from lib.plots import Table

if TYPE_CHECKING:
    from bs4 import BeautifulSoup, Tag

LONG = 8  # rows of a table, or lines of printed text, above which a page folds it
WIDE = 6  # columns of a table, likewise
SENTENCE = 30  # letters of a cell, above which it is a text
SHOWN = 1000  # pixels of a picture at most: twice the width that a page gives it


# Beside the text on a wide page, a bar that unfolds on a narrow one: a box to tick, for that works
# without a script, and a link closes it again.
CONTENTS = """<input type="checkbox" id="unfold" aria-label="Show the contents">
<label for="unfold">Contents</label>
<ul onclick="document.getElementById('unfold').checked = false">{links}</ul>"""

STYLE = """
:root {color-scheme: light dark; --ground: #fff; --ink: #1b1b1b; --soft: #595959; --line: #d0d0d0;
  --shade: #f4f4f4; --link: #0b57a4; --word: #8a1f6a; --text: #1f6b2c; --figure: #8a4b00}
@media (prefers-color-scheme: dark) {:root {--ground: #121212; --ink: #e6e6e6; --soft: #ababab;
  --line: #444; --shade: #1e1e1e; --link: #8ec5ff; --word: #ff9ad5; --text: #8fdc9c;
  --figure: #ffc078}
  .chart img {filter: invert(.93) hue-rotate(180deg)}}
* {box-sizing: border-box}
body {margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif}
a {color: var(--link)}
main {max-width: 52rem; padding: 0 1rem 4rem; margin: 0 auto; min-width: 0}
h1, h2, h3, h4 {line-height: 1.25; scroll-margin-top: 3.5rem}
h2 {margin-top: 4rem; border-top: 1px solid var(--line); padding-top: 1.5rem}
a[id] {scroll-margin-top: 3.5rem}
#answer > p:not(.caption) {font-size: 1.05rem}
img {max-width: 100%}
figcaption, .caption {color: var(--soft); font-size: .9rem; margin: .4rem 0}
figure {margin: 0 0 .5rem}
.grid {font-size: .85rem}
.scroll {overflow-x: auto; max-width: 100%; margin: .5rem 0}
table {border-collapse: collapse; font-size: .875rem}
th, td {padding: .3rem .6rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line)}
tbody th {font-weight: 600}
details {margin: .5rem 0}
summary {color: var(--soft); cursor: pointer; font-size: .9rem}
pre {overflow-x: auto; background: var(--shade); padding: .6rem; font-size: .8125rem;
  margin: .5rem 0; white-space: pre-wrap; overflow-wrap: anywhere}
code {font-size: .875em; overflow-wrap: anywhere}
pre code {font-size: 1em}
.k, .kn, .kc, .kd, .ow {color: var(--word)}
.s, .s1, .s2, .sd, .sa, .si, .se {color: var(--text)}
.mi, .mf, .nb {color: var(--figure)}
.c, .c1, .cm {color: var(--soft)}
nav {position: sticky; top: 0; z-index: 1; background: var(--ground);
  border-bottom: 1px solid var(--line); font-size: .875rem}
nav input {position: absolute; opacity: 0}
nav label {display: block; padding: .6rem 1rem; font-weight: 600; cursor: pointer}
nav label::before {content: "\\2630\\00a0\\00a0"}
nav input:focus-visible + label {outline: 2px solid var(--link); outline-offset: -2px}
nav ul {display: none; list-style: none; margin: 0; padding: 0 1rem 1rem; max-height: 60vh;
  overflow-y: auto}
nav input:checked ~ ul {display: block}
nav a {text-decoration: none; display: block; padding: .15rem 0}
nav a:hover {text-decoration: underline}
.level2 {font-weight: 600; margin-top: .5rem}
.level3 {padding-left: .75rem}
@media (max-width: 40rem) {
  h1 {font-size: 1.5rem}
  th, td {padding: .3rem}
  table {font-size: .8125rem}
}
@media (min-width: 64rem) {
  body {display: grid; grid-template-columns: 17rem minmax(0, 1fr)}
  nav {height: 100vh; overflow-y: auto; border-bottom: 0; border-right: 1px solid var(--line)}
  nav input {display: none}
  nav label {cursor: default}
  nav label::before {content: none}
  nav ul {display: block; max-height: none}
}
@media print {nav {display: none}}
"""

# nbconvert's plain notebook, without the scripts and styles that other templates load from
# elsewhere, and with the alternative text that a notebook gives a picture.
PICTURE = """<img src="data:image/KIND;base64,{{ output.data['image/KIND'] | escape_html }}"
 alt="{{ (output | get_metadata('alt', 'image/KIND') or '') | escape_html }}">"""

PAGE = f"""{{%- extends 'basic/index.html.j2' -%}}
{{% block header %}}<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{{{ nb.metadata.title | escape_html }}}}</title><style>{STYLE}</style></head>
<body><nav id="contents" aria-label="Contents"></nav><main>
<section id="answer"></section>{{% endblock %}}
{{% block footer %}}</main></body></html>{{% endblock %}}
{{% block input_group %}}<details class="code"><summary>Code</summary>{{{{ super() }}}}</details>
{{% endblock %}}
{{% block in_prompt %}}{{% endblock %}}{{% block empty_in_prompt %}}{{% endblock %}}
{{% block output_area_prompt %}}{{% endblock %}}
{{% block data_png scoped %}}{PICTURE.replace("KIND", "png")}{{% endblock %}}
{{% block data_jpg scoped %}}{PICTURE.replace("KIND", "jpeg")}{{% endblock %}}"""


def table(summary: Mapping[str, Any]) -> Table:
    """The comparison in `summary` (what `tables.write_summary` wrote) in five columns; the whole of
    it is folded below them.
    """
    rows = {name: values for name, values in summary.items() if name in CONTESTANT_NAMES}
    own = tables.Comparison(rows, summary["about"])
    short = answer_table(own)
    short.rest = tables.table(own)
    return short


def report(notebooks: Sequence[Any], summary: Mapping[str, Any], title: str, foot: str = "") -> str:
    """One HTML page, as text: the answer in three sentences and five columns, the key picture, and
    the executed `notebooks` in their order, with a table of contents that stays in view.

    Everything is inside it: no script, style, font or picture is loaded from elsewhere. Code, long
    tables and long printed texts are folded, and a picture stands there once.
    """
    import nbformat
    from bs4 import BeautifulSoup
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    contents: list[tuple[int, str, str]] = []
    cells: list[Any] = []
    starts: dict[str, str] = {}  # a notebook's file name -> its first anchor on the page
    for number, notebook in enumerate(notebooks, 1):
        starts[_file_name(notebook)] = f"part-{number}-{len(contents)}"
        for source in notebook.cells:
            cell: Any = nbformat.from_dict(source)
            cell.id = f"n{number}-{len(cells)}"  # ids are unique within a notebook only
            if cell.cell_type == "markdown":
                cell.source = _headings(cell.source, number, contents)
            cells.append(cell)
    page = nbformat.v4.new_notebook(cells=cells)
    page.metadata = nbformat.from_dict(
        {"title": title, "language_info": {"name": "python", "pygments_lexer": "ipython3"}}
    )
    exporter = HTMLExporter(
        extra_loaders=[DictLoader({"report.html.j2": PAGE})],
        template_file="report.html.j2",
        exclude_anchor_links=True,
    )
    exporter.register_preprocessor(CoalesceStreamsPreprocessor, enabled=True)  # a cell's lines
    exporter.log.setLevel("ERROR")
    # Only their names are parsed, for the pictures' bytes would take most of the time.
    text, pictures = _take_out_pictures(exporter.from_notebook_node(page)[0])
    soup = BeautifulSoup(text, "html.parser")
    _put(soup, "contents", _contents(contents))
    _put(soup, "answer", _answer(summary, title, foot))
    _move_key_picture(soup)
    _link_within(soup, starts)
    for picture in soup.find_all("img"):
        picture["loading"] = "lazy"
    for text in soup.select("main pre"):
        if text.get_text().count("\n") > LONG and not text.find_parent("details"):
            _fold(soup, text, "What it printed")
    for found in soup.find_all("table"):
        _fit(soup, found)
    return re.sub(r"\bpicture:(\d+)\b", lambda found: _small(pictures[int(found[1])]), str(soup))


def _take_out_pictures(page: str) -> tuple[str, list[str]]:
    """A page with picture:0, picture:1, ... in the place of pictures' bytes, and those in order."""
    pictures: list[str] = []

    def name(found: re.Match[str]) -> str:
        pictures.append(found[0])
        return f"picture:{len(pictures) - 1}"

    return re.sub(r"data:image/[\w+.-]+;base64,[\w+/=\s]+", name, page), pictures


def _put(soup: "BeautifulSoup", anchor: str, markup: str) -> None:
    from bs4 import BeautifulSoup

    soup.select("#" + anchor)[0].append(BeautifulSoup(markup, "html.parser"))


def _contents(found: Sequence[tuple[int, str, str]]) -> str:
    links = [
        f'<li class="level{level}"><a href="#{anchor}">{html.escape(text)}</a></li>'
        for level, text, anchor in found
        if level <= 3
    ]
    return CONTENTS.format(links="".join(links))


def _answer(summary: Mapping[str, Any], title: str, foot: str) -> str:
    """The page's top: the answer, its table, and the verdict."""
    lines = [
        f"<h1>{html.escape(title)}</h1>",
        *(f"<p>{html.escape(sentence)}</p>" for sentence in summary.get("answer", ())),
        table(summary)._repr_html_(),
        f"<details><summary>In words</summary><p>{html.escape(summary.get('verdict', ''))}</p>"
        f"<p>{html.escape(foot)}</p></details>",
    ]
    return "".join(lines)


def _move_key_picture(soup: "BeautifulSoup") -> None:
    """Move the key picture, the last of cells tagged `key-picture`, below the answer, with a link
    to it in its place.
    """
    from bs4 import BeautifulSoup

    marked = [
        tag for cell in soup.select(".celltag_key-picture") for tag in cell.select("figure, img")
    ]
    shown = [tag for tag in marked if tag.name == "figure" or not tag.find_parent("figure")]
    if not shown:
        return
    link = '<p><a href="#key-picture">The pictures stand at the top of the page.</a></p>'
    shown[-1].insert_after(BeautifulSoup(link, "html.parser"))
    place = soup.new_tag("div", id="key-picture")
    place.append(shown[-1].extract())
    soup.select("#answer")[0].append(place)


def _file_name(notebook: Any) -> str:
    """What the file of an executed notebook is called, as papermill noted it."""
    return Path(notebook.metadata.get("papermill", {}).get("input_path") or "").name


def _link_within(soup: "BeautifulSoup", starts: Mapping[str, str]) -> None:
    """Let links to other notebooks lead to their places on this page; those to other files become
    plain words, for the page lies in another folder.
    """
    for link in soup.select("main a[href]"):
        if re.match(r"#|[a-z]+:", str(link["href"])):
            continue
        anchor = starts.get(Path(str(link["href"])).name)
        if anchor:
            link["href"] = f"#{anchor}"
        else:
            link.unwrap()


def _small(source: str) -> str:
    """A picture in a page's own bytes as WebP, no wider than it is shown, where that is smaller."""
    from PIL import Image

    head, _, data = source.partition(";base64,")
    if head == "data:image/webp" or not head.startswith("data:image/"):
        return source
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    image = image.convert("RGBA" if "A" in image.getbands() else "RGB")
    if image.width > SHOWN:
        image = image.resize(
            (SHOWN, round(image.height * SHOWN / image.width)), Image.Resampling.LANCZOS
        )
    file = io.BytesIO()
    drawn = head == "data:image/png"  # few colours, sharp edges
    if drawn:
        image = image.quantize(64).convert("RGB")
    image.save(file, "WEBP", lossless=drawn, quality=85, method=4)
    smaller = base64.b64encode(file.getvalue()).decode()
    return f"data:image/webp;base64,{smaller}" if len(smaller) < len(data) else source


def _fold(soup: "BeautifulSoup", tag: "Tag", words: str) -> None:
    """Put `tag` into a box that opens with a click on `words`."""
    folded, summary = soup.new_tag("details"), soup.new_tag("summary")
    summary.string = words
    tag.wrap(folded)
    folded.insert(0, summary)


def _fit(soup: "BeautifulSoup", found: "Tag") -> None:
    """Let a table scroll in a box of its own, which a keyboard reaches, and fold it where it is
    long or wide.
    """
    rows, columns = len(found.select("tbody tr")), len(found.select("thead tr > *"))
    caption = found.caption.extract() if found.caption else None
    words = caption.get_text() if caption else "Table"
    box = soup.new_tag("div", attrs={"class": "scroll", "tabindex": "0", "role": "group"})
    box["aria-label"] = words
    found.wrap(box)
    for cell in found.select("td"):
        if len(cell.get_text()) > SENTENCE:
            cell["style"] = "min-width: 10rem"  # rather than a word a line, on a phone
    if caption:
        paragraph = soup.new_tag("p", attrs={"class": "caption"})
        paragraph.string = words
        box.insert_before(paragraph)
    if (rows > LONG or columns > WIDE) and not box.find_parent("details"):
        _fold(soup, box, f"The table: {rows} rows")


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
