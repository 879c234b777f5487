"""The course's site: no page is forgotten, the order is the course's, links lead somewhere."""

import re
import urllib.parse
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from conftest import ROOT
from PIL import Image

from benchmarks import course_site
from benchmarks.course_site import NOTEBOOKS, PAGES
from lib.course.runner import NOTEBOOKS as COURSE
from lib.files.errors import BadInput
from lib.plots import Table
from lib.plots.figure import Figure
from lib.widgets.showing import LEFT, STYLE

ALT = "A red square."
TABLE = Table([["LoRA", 0.5]], ["", "DINO"], "A table of one row")
PANEL = f'{STYLE}<div class="left-of-a-panel"><p>{LEFT}</p><p>rank 4</p></div>'
WIDGET = {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}, "text/plain": "VBox()"}


def outputs() -> list:
    """A picture, a table, a panel and what is left of it, and a printed path of this machine."""
    shown = Figure(Image.new("RGB", (8, 4), "red"), ALT)._repr_mimebundle_()[0]
    forms = [shown, {"text/html": TABLE._repr_html_()}, WIDGET, {"text/html": PANEL}]
    printed = nbformat.v4.new_output("stream", text=f"written: {ROOT}/runs/course/lora\n")
    return [*(nbformat.v4.new_output("display_data", data=data) for data in forms), printed]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run that executed notebook 02, and stopped at an error in 03."""
    folder = tmp_path_factory.mktemp("course")
    error = nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=["no"])
    shown = {"02_lora_training.ipynb": outputs(), "03_dreambooth_training.ipynb": [error]}
    for name, results in shown.items():
        notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
        next(c for c in notebook.cells if c.cell_type == "code").outputs = results
        notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {}}
        nbformat.write(notebook, folder / name)
    return folder


def test_every_page_is_there_once() -> None:
    places = ("notebooks/*.ipynb", "notebooks/solutions/*.ipynb", "docs/*.md", "*.md")
    there = {path.relative_to(ROOT).as_posix() for place in places for path in ROOT.glob(place)}
    assert set(PAGES) == there - {"README.md"} | {"benchmarks/README.md"}
    assert len(PAGES) == len(set(PAGES))


def test_the_order_is_the_courses() -> None:
    course = [Path(page).stem for page in course_site.PARTS["The course"]]
    assert course == ["00_start_here", *COURSE, "appendix_recipes"]
    solved = course_site.PARTS["Exercises, worked out"]
    assert solved == sorted(solved)


@pytest.mark.parametrize("folder", ["missing", "notebooks"])
def test_without_results_it_says_what_to_run(folder, tmp_path) -> None:
    place = ROOT / "notebooks" if folder == "notebooks" else tmp_path / folder
    with pytest.raises(BadInput) as refused:
        course_site.read_run(place)
    assert str(refused.value) == (
        f"There are no executed notebooks in {place}: run `make course` first, or name the folder"
        " of a run, as in `make site OUTPUT=runs/toy`."
    )


def test_a_broken_notebook_is_named(tmp_path) -> None:
    (tmp_path / "02_lora_training.ipynb").write_text("{")
    with pytest.raises(BadInput, match=r"02_lora_training.ipynb cannot be read \(NotJSONError\)"):
        course_site.read_run(tmp_path)


def test_a_missing_package_leaves_the_site_of_before(run, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(course_site, "PACKAGES", ("json", "no_such_package"))
    (tmp_path / "index.html").write_text("before")
    with pytest.raises(BadInput, match=r"\(no_such_package\): `make site` installs them"):
        course_site.build(run, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_a_notebook_is_taken_as_it_was_executed(run, tmp_path) -> None:
    page = "notebooks/02_lora_training.ipynb"
    notebook = course_site.read_run(run)[page]
    made = nbformat.reads(course_site.for_page(notebook, page, tmp_path), as_version=4)
    cell = next(cell for cell in made.cells if cell.get("outputs"))
    picture, table, panel = (
        BeautifulSoup(output.data["text/html"], "html.parser") for output in cell.outputs[:3]
    )
    assert picture.img["alt"] == ALT and (picture.img["width"], picture.img["height"]) == ("8", "4")
    [file] = (tmp_path / "_pictures").iterdir()
    assert picture.img["src"] == f"../_pictures/{file.name}"
    assert Image.open(file).size == (8, 4)
    box = table.select_one(".scroll")
    assert table.p.text == box["aria-label"] == TABLE.caption and box.table and not box.caption
    assert LEFT in panel.text and "rank 4" in panel.text
    assert cell.outputs[3].text == "written: runs/course/lora\n" and len(cell.outputs) == 4
    assert "widgets" not in made.metadata
    hidden = [cell.source for cell in made.cells if "hide-input" in cell.metadata.tags]
    assert len(hidden) == 1 and "start(FOLDER)" in hidden[0]


def test_what_the_run_did_not_execute_says_so(run, tmp_path) -> None:
    said = course_site.write_pages(course_site.read_run(run), tmp_path, tmp_path)
    assert said[0] == "Stopped at an error in this run: 03_dreambooth_training.ipynb"
    assert said[1].startswith("Without results, for the run has no executed copy: 00_start_here")
    for page, note in {
        NOTEBOOKS[0]: course_site.NOT_RUN,
        NOTEBOOKS[2]: "",
        NOTEBOOKS[3]: course_site.STOPPED,
    }.items():
        text = nbformat.read(tmp_path / page, as_version=4).cells[1].source
        assert text == f"```{{note}}\n{note}\n```" if note else "```{note}" not in text


@pytest.mark.parametrize("address", ["", "https://github.com/owner/course"])
def test_badges_come_from_the_one_address(address, run, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("lib.course.set_up_cell.repository", lambda: address)
    course_site.write_pages(course_site.read_run(run), tmp_path, tmp_path)
    for page in NOTEBOOKS:
        opening = nbformat.read(tmp_path / page, as_version=4).cells[0].source
        for place in ("colab.research.google.com/github/owner/course/", "mybinder.org/v2/gh/owner"):
            assert (place in opening) == bool(address), page


@pytest.fixture(scope="module")
def site(run, tmp_path_factory) -> Path:
    for package in course_site.PACKAGES:
        pytest.importorskip(package, reason="needs the extra `site`, which `make site` installs")
    folder = tmp_path_factory.mktemp("built") / "site"
    said = course_site.build(run, folder)
    assert len(said) == 2, f"Sphinx warns: {said[2:]}"
    return folder


@pytest.fixture(scope="module")
def html(site) -> dict[str, BeautifulSoup]:
    return {
        path.relative_to(site).as_posix(): BeautifulSoup(path.read_text("utf-8"), "html.parser")
        for path in site.rglob("*.html")
    }


def page_of(name: str) -> str:
    return str(Path(name).with_suffix(".html"))


def test_every_link_within_the_site_resolves(site, html) -> None:
    assert {page_of(name) for name in PAGES} | {"index.html", "search.html"} <= set(html)
    anchors = {name: {tag["id"] for tag in page.select("[id]")} for name, page in html.items()}
    broken, seen = [], 0
    for name, page in html.items():
        for tag in page.select("[href], [src]"):
            target = str(tag.get("href") or tag.get("src"))
            if re.match(r"[a-z]+:|//", target) or target in ("", "#"):
                continue
            path, _, anchor = urllib.parse.unquote(target).partition("#")
            path = path.partition("?")[0]
            found = (site / name).parent / path if path else site / name
            found = found.resolve()
            key = found.relative_to(site.resolve()).as_posix()
            if not found.is_file() or (anchor and key in html and anchor not in anchors[key]):
                broken.append(f"{name}: {target}")
            seen += 1
    assert seen > 1000 and not broken, broken


def test_links_between_notebooks_and_docs_stay_within_it(html) -> None:
    links = {
        str(link["href"]) for link in html["notebooks/00_start_here.html"].select("article a[href]")
    }
    assert {"01_dataset_prep.html", "../docs/glossary.html"} <= links
    assert not [
        link
        for page in html.values()
        for link in page.select('article a[href$=".ipynb"]')
        if "_sources/" not in str(link["href"])
    ]


def test_a_page_leads_to_the_one_before_and_after(html) -> None:
    order = ["index.html", *map(page_of, PAGES)]
    for before, after in zip(order, order[1:]):
        following = html[before].select_one('link[rel="next"]')
        assert (
            (Path(before).parent / str(following["href"])).as_posix().endswith(Path(after).name)
        ), f"after {before} comes {following['href']}"


def test_it_needs_nothing_from_elsewhere(html) -> None:
    for name, page in html.items():
        loaded = page.select("script[src], img[src], link[rel=stylesheet]")
        asked = [str(tag.get("src") or tag.get("href")) for tag in loaded]
        assert not [address for address in asked if re.match(r"https?:|//", address)], name


def test_what_scrolls_is_reached_by_the_keyboard_and_headings_have_their_depth(html) -> None:
    for name, page in html.items():
        scroll = page.select("pre, .table-wrapper, .scroll")
        assert all(each.get("tabindex") == "0" for each in scroll), name
        assert all(each.get("aria-level") for each in page.select('[role="heading"]')), name
    assert html["docs/results.html"].select(".table-wrapper")


def test_pictures_keep_their_words(html) -> None:
    for name, page in html.items():
        assert all(image.get("alt") for image in page.select("article img")), name
    assert len(html["docs/results.html"].select("article img")) >= 3
    assert html["notebooks/02_lora_training.html"].find("img", alt=ALT)


def test_a_pages_source_is_the_notebook_to_run(site, html) -> None:
    for name in NOTEBOOKS:
        assert (site / "_sources" / name).read_bytes() == (ROOT / name).read_bytes()
        assert html[page_of(name)].select(f'a[href$="_sources/{name}"]')


def test_search_knows_a_word_of_every_kind_of_page(site) -> None:
    index = (site / "searchindex.js").read_text("utf-8")
    for name in ("index", *(str(Path(page).with_suffix("")) for page in PAGES)):
        assert f'"{name}"' in index
