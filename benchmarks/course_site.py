"""The course as a static site: executed notebooks, docs and results, with search.

    make site                           # of the last course run, runs/course, into build/site
    python -m benchmarks.course_site runs/toy

Nothing is executed: notebooks are taken as a run has left them. Sphinx with myst-nb and furo makes
the pages. It alone of the well-kept tools builds without the network, from packages of PyPI:
mystmd (Jupyter Book 2) asks api.mystmd.org for its theme, Quarto comes from its own address only,
and Material for MkDocs is no longer developed. Its search needs no server of its own.
"""

import argparse
import base64
import hashlib
import importlib.util
import io
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from lib.course.set_up_cell import set_up_cells, write_set_up_cell
from lib.files.errors import BadInput
from lib.files.paths import ROOT
from lib.files.text import listed
from lib.files.whole_writes import whole_folder

RUN = ROOT / "runs" / "course"
SITE = ROOT / "build" / "site"
# Headings of the contents, and their pages in the order of reading; before them comes the README.
PARTS = {
    "The course": [
        "notebooks/00_start_here.ipynb",
        "notebooks/01_dataset_prep.ipynb",
        "notebooks/02_lora_training.ipynb",
        "notebooks/03_dreambooth_training.ipynb",
        "notebooks/04_comparison.ipynb",
        "notebooks/05_compose_and_ship.ipynb",
        "notebooks/06_many_runs.ipynb",
        "notebooks/appendix_recipes.ipynb",
    ],
    "Results": ["docs/results.md"],
    "Exercises, worked out": [
        "notebooks/solutions/01_dataset_prep.ipynb",
        "notebooks/solutions/02_lora_training.ipynb",
        "notebooks/solutions/03_dreambooth_training.ipynb",
        "notebooks/solutions/04_comparison.ipynb",
        "notebooks/solutions/05_compose_and_ship.ipynb",
        "notebooks/solutions/06_many_runs.ipynb",
    ],
    "Guides": [
        "docs/glossary.md",
        "docs/panels.md",
        "docs/one-file.md",
        "docs/faq.md",
        "docs/troubleshooting.md",
        "docs/gpu-and-colab.md",
        "docs/formats.md",
        "docs/settings.md",
        "docs/teaching.md",
        "docs/rehearsals.md",
    ],
    "Notebooks for one purpose": [
        "notebooks/one_run.ipynb",
        "notebooks/colab_whole_course.ipynb",
    ],
    "How it is built": [
        "docs/architecture.md",
        "docs/adding-a-family.md",
        "benchmarks/README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
    ],
}
PAGES = [page for pages in PARTS.values() for page in pages]
NOTEBOOKS = [page for page in PAGES if page.endswith(".ipynb")]
PACKAGES = ("sphinx", "myst_nb", "furo")  # the extra `site`

NOT_RUN = "The run that this site shows did not execute this notebook: its code is without results."
STOPPED = "In the run that this site shows, this notebook stopped at an error."
LINKED = re.compile(r"\]\(([^)\s#]+)\)|<img src=\"([^\"]+)\"")  # in Markdown
PICTURE = re.compile(r'src="data:image/(\w+);base64,([\w+/=\s]+)"')  # in HTML
TABLE = re.compile(r"<table>(?:<caption>([^<]*)</caption>)?")
PICTURES = "_pictures"  # their folder on the site


def executed(path: Path) -> Any:
    """The notebook in a file, or None where there is none, or one without results.

    Raises BadInput for a file that is no notebook.
    """
    import nbformat

    if not path.is_file():
        return None
    try:
        notebook = nbformat.read(path, as_version=4)
    except Exception as error:  # whatever nbformat makes of a broken file
        raise BadInput(
            f"Notebook {path} cannot be read ({type(error).__name__}): run the course again."
        ) from None
    return notebook if any(cell.get("outputs") for cell in notebook.cells) else None


def read_run(run: Path) -> dict[str, Any]:
    """The executed notebooks of a run's folder, by their pages' paths in the project; those of
    solutions lie in its folder solutions. Raises BadInput where there are none.
    """
    found = {page: executed(run / page.removeprefix("notebooks/")) for page in NOTEBOOKS}
    found = {page: notebook for page, notebook in found.items() if notebook}
    if not found:
        raise BadInput(
            f"There are no executed notebooks in {run}: run `make course` first, or name the folder"
            " of a run, as in `make site OUTPUT=runs/toy`."
        )
    return found


def _note(notebook: Any, text: str) -> None:
    """Say something of a notebook below its opening words."""
    import nbformat

    notebook.cells.insert(1, nbformat.v4.new_markdown_cell(f"```{{note}}\n{text}\n```"))


def _take_out_pictures(text: str, up: str, site: Path) -> str:
    """HTML with its pictures as files of the site, which a page loads when they come into view.

    `up` leads from the page to the site's top.
    """

    def file_of(found: re.Match[str]) -> str:
        data = base64.b64decode(found[2])
        path = site / PICTURES / f"{hashlib.sha256(data).hexdigest()[:16]}.{found[1]}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        width, height = Image.open(io.BytesIO(data)).size  # so that nothing moves when it comes
        size = f'width="{width}" height="{height}" loading="lazy"'
        return f'src="{up}{PICTURES}/{path.name}" {size}'

    return PICTURE.sub(file_of, text)


def _html_for_page(text: str, up: str, site: Path) -> str:
    """What a notebook shows as HTML, for a page: pictures as files, and tables in boxes that
    scroll, which a keyboard reaches, with their captions above.
    """

    def boxed(found: re.Match[str]) -> str:
        caption = found[1] or ""
        box = f'<div class="scroll" tabindex="0" role="group" aria-label="{caption or "Table"}">'
        return (f'<p class="caption">{caption}</p>' if caption else "") + box + "<table>"

    text = TABLE.sub(boxed, text).replace("</table>", "</table></div>")
    return _take_out_pictures(text, up, site)


# What Sphinx's theme leaves out for who has no mouse or no eyes: how deep a heading of the contents
# is, and a way to reach by the keyboard what scrolls.
REACHED = {
    'role="heading">': 'role="heading" aria-level="2">',
    "<pre>": '<pre tabindex="0">',
    '<div class="table-wrapper': (
        '<div tabindex="0" role="group" aria-label="Table" class="table-wrapper'
    ),
}


def _reachable(page: Path) -> None:
    """Mend a finished page in its place, as `REACHED` says."""
    text = page.read_text("utf-8")
    for before, after in REACHED.items():
        text = text.replace(before, after)
    page.write_text(text, "utf-8")


def for_page(notebook: Any, page: str, site: Path) -> str:
    """An executed notebook as Sphinx is to read it, as JSON: without widgets, which need a living
    Python, without the machine's own paths, and with its pictures as files in `site`.
    """
    up = "../" * page.count("/")
    for cell in set_up_cells(notebook):
        cell["metadata"]["tags"] = ["hide-input"]
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata.get("tags", [])}
        if cell.cell_type != "code":
            continue
        for output in cell.outputs:
            shown = output.get("data", {})
            if "application/vnd.jupyter.widget-view+json" in shown:
                shown.clear()  # what is left of a panel is an output of its own
            if "text/html" in shown:
                output.data = {"text/html": _html_for_page(shown["text/html"], up, site)}
        cell.outputs = [each for each in cell.outputs if each.get("data", True)]
    notebook.metadata = {
        "kernelspec": notebook.metadata.kernelspec,
        "language_info": {"name": "python", "pygments_lexer": "ipython3"},
    }
    return json.dumps(notebook, ensure_ascii=False).replace(f"{ROOT}/", "")


def home() -> str:
    """The README with the contents of the whole site, which the pages' margin shows."""
    text = (ROOT / "README.md").read_text("utf-8")
    for heading, pages in PARTS.items():
        names = "\n".join(page.rpartition(".")[0] for page in pages)
        text += f"\n```{{toctree}}\n:hidden:\n:caption: {heading}\n\n{names}\n```\n"
    return text


def write_pages(found: dict[str, Any], folder: Path, site: Path) -> list[str]:
    """Write what Sphinx reads into `folder`, pictures into `site`. Returns what to say of it.

    found: executed notebooks by their pages, as of `read_run`.
    """
    import nbformat

    stopped = []
    texts = {"index.md": home()}
    for page in PAGES:
        if page.endswith(".md"):
            texts[page] = (ROOT / page).read_text("utf-8")
            continue
        notebook = found.get(page) or nbformat.read(ROOT / page, as_version=4)
        errors = [each for cell in notebook.cells for each in cell.get("outputs", ())]
        if page not in found:
            _note(notebook, NOT_RUN)
        elif any(each.output_type == "error" for each in errors):
            _note(notebook, STOPPED)
            stopped.append(page)
        texts[page] = for_page(notebook, page, site)
    for page, text in texts.items():
        path = folder / page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    for page, text in texts.items():
        for linked in {one or other for one, other in LINKED.findall(text)}:
            source = (ROOT / page).parent / linked
            target = (folder / page).parent / linked
            if source.is_file() and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
    write_set_up_cell(folder / "notebooks")  # with today's badges
    left_out = [page for page in NOTEBOOKS if page not in found]
    said = [f"Stopped at an error in this run: {_names(stopped)}"] if stopped else []
    if left_out:
        said.append(f"Without results, for the run has no executed copy: {_names(left_out)}")
    return said


def _names(pages: list[str]) -> str:
    return ", ".join(page.removeprefix("notebooks/") for page in pages)


def build(run: Path = RUN, site: Path = SITE) -> list[str]:
    """Build the site of a run's folder into `site`, whole or not at all.

    Returns what to say of it: notebooks without results, and Sphinx's warnings. Raises BadInput
    where a package is missing, or the run has no executed notebooks.
    """
    missing = [name for name in PACKAGES if not importlib.util.find_spec(name)]
    if missing:
        raise BadInput(
            f"The site takes packages that are not installed ({listed(missing)}): `make site`"
            " installs them, as `pip install -e '.[site]'` does."
        )
    from sphinx.application import Sphinx  # pyright: ignore[reportMissingImports]

    found, warnings = read_run(run), io.StringIO()
    with tempfile.TemporaryDirectory() as work, whole_folder(site) as made:
        pages = Path(work, "pages")
        said = write_pages(found, pages, made)
        trees = Path(work, "trees")
        sphinx = Sphinx(
            pages, ROOT / "docs", made, trees, "html", status=None, warning=warnings, freshenv=True
        )
        sphinx.build()
        for path in made.rglob("*.html"):
            _reachable(path)
        for page in NOTEBOOKS:  # a page's source is the notebook to run, without results
            shutil.copyfile(ROOT / page, made / "_sources" / page)
    return said + warnings.getvalue().splitlines()


def main() -> None:
    """Build the site, and say where it is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, nargs="?", default=RUN, help="the folder of a course run")
    args = parser.parse_args()
    try:
        print(*build(args.run), sep="\n")
    except BadInput as error:
        sys.exit(str(error))
    print(f"Site: {SITE / 'index.html'}; its search works at any address, for instance under")
    print(f"python -m http.server --directory {SITE}")


if __name__ == "__main__":
    main()
