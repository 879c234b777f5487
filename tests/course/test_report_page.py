"""The report in a real browser: at the width of a laptop and of a phone, in light and in dark,
nothing is cut off, nothing is too small or too pale to read, and every picture has its words.

Takes `pip install -e ".[browser]"` and a Chromium (Debian's package `chromium`, Chrome, or
`playwright install chromium`); skipped where either is missing.
"""

from pathlib import Path

import nbformat
import numpy as np
import pytest
from in_browser import chromium
from PIL import Image
from test_runner import SUMMARY

from lib.course.report import report
from lib.evaluation import results
from lib.plots import as_table, charts
from lib.plots.figure import CHART_WIDTH
from lib.plots.image_grid import grid

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the extra")

SIZES = {"laptop": (1280, 900), "phone": (390, 844)}
SMALLEST = 11  # pixels of a letter
LETTER = 10 * 110 / 72  # pixels of a chart's smallest letters where it is CHART_WIDTH wide
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}
# Elements whose own text is too small, or lies outside of the page and of every box that scrolls.
LOOK = """smallest => {
  const found = {small: [], outside: [], words: 0};
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement, range = document.createRange();
    range.selectNodeContents(texts.currentNode);
    const box = range.getBoundingClientRect(), text = texts.currentNode.data.trim();
    if (!text || !box.width) continue;
    found.words += 1;
    if (parseFloat(getComputedStyle(element).fontSize) < smallest) found.small.push(text);
    const scrolls = element.closest('.scroll, .grid, pre, nav');
    if (!scrolls && (box.left < 0 || box.right > innerWidth + 1)) found.outside.push(text);
  }
  for (const image of document.images) {
    const box = image.getBoundingClientRect(), scrolls = image.closest('.grid');
    if (!scrolls && box.width && box.right > innerWidth + 1) found.outside.push(image.alt);
  }
  return found;
}"""


def figures():
    """A figure of every kind that notebooks show, and tables and prints, long and short."""
    random = np.random.default_rng(0)
    tiles = [Image.fromarray(random.integers(0, 255, (64, 64, 3), np.uint8)) for _ in range(30)]
    names = ["base model (floor)", "LoRA", "DreamBooth", "DreamBooth cut to a LoRA", "the same"]
    places = [f"a zwx robot in the desert at {k} o'clock" for k in range(6)]
    many = as_table([[k, *range(14)] for k in range(30)], ["k", *(f"column {c}" for c in "a" * 14)])
    return [
        grid([tiles[k : k + 5] for k in range(0, 30, 5)], places, names, "One seed"),
        charts.bars({"LoRA": {"DINO": 0.5, "CLIP-I": 0.7}, "DreamBooth": {"DINO": 0.6}}, "cosine"),
        charts.curves({"LoRA": [3.0, 2.0, 1.25], "DreamBooth": [4.0, 2.0, 1.0]}),
        charts.points({"LoRA": [("rank 1", 0.5, 0.25), ("rank 4", 0.6, 0.5)]}, "CLIP-T", "DINO"),
        *(results.study(name) for name in ("scores", "rank", "recipes")),
        as_table([["LoRA", 0.5]], ["", "a measure with a rather long name"], "A short table"),
        many,
        results.verdict_table(),
    ]


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    new = nbformat.v4
    text = "# A notebook\n\nSome `code`, a [link](#answer), *words*.\n\n## A part\n\nMore words."
    cells = [new.new_markdown_cell(text)]
    for shown in figures():
        data = {"text/html": shown._repr_html_()}
        source = "# a comment\nfrom lib import train\nprint('text', 1.5, None)"
        cells.append(new.new_code_cell(source, outputs=[new.new_output("display_data", data=data)]))
    printed = new.new_output("stream", text="[stage] a line that is long enough to run on\n" * 30)
    cells += [new.new_code_cell("1", outputs=[printed]), new.new_markdown_cell("## The end")]
    cells[1].metadata["tags"] = ["key-picture"]
    page = report([new.new_notebook(cells=cells)], SUMMARY, "LoRA and DreamBooth", "It took long.")
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(page, "utf-8")
    return file


@pytest.fixture(scope="module")
def browser():
    with chromium() as made:
        yield made


@pytest.fixture(params=["light", "dark"])
def scheme(request):
    return request.param


@pytest.fixture(params=SIZES)
def page(request, browser, scheme, path):
    width, height = SIZES[request.param]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    made = context.new_page()
    made.set_default_timeout(180_000)
    made.goto(path.as_uri())
    yield made
    context.close()


def unfold(page):
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")


def test_nothing_is_cut_off_or_small(page):
    unfold(page)
    found = page.evaluate(LOOK, SMALLEST)
    assert found["words"] > 500
    assert not found["small"] and not found["outside"]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    fits = "all => all.every(each => each.scrollWidth <= each.clientWidth)"
    assert page.eval_on_selector_all(".grid", fits), "the pictures of all five fit on a phone"


def test_letters_of_charts_are_large_enough(page):
    widths = page.eval_on_selector_all(".chart img", "all => all.map(each => each.clientWidth)")
    assert len(widths) >= 6 and min(widths) / CHART_WIDTH * LETTER >= SMALLEST


def test_it_passes_the_checks_of_accessibility(page):
    """Contrast, alternative texts, headings, names of regions, and what else axe looks at."""
    unfold(page)
    found = axe.Axe().run(page, options=RULES).response["violations"]
    assert not [(each["id"], each["nodes"][0]["html"][:200]) for each in found]
    alts = page.eval_on_selector_all("img", "all => all.map(each => each.alt)")
    assert alts and all(len(alt) > 10 for alt in alts)


def test_pages_and_charts_are_dark_where_a_reader_wants_it_so(page, scheme):
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(18, 18, 18)"}[scheme]
    turned = page.eval_on_selector(".chart img", "each => getComputedStyle(each).filter")
    assert ("invert" in turned) == (scheme == "dark")
    kept = page.eval_on_selector(".grid img", "each => getComputedStyle(each).filter")
    assert kept == "none", "photos stay as they are"


def test_the_contents_stay_in_view(page):
    on_phone = page.viewport_size["width"] < 600
    page.evaluate("window.scrollTo(0, document.documentElement.scrollHeight / 2)")
    top = page.eval_on_selector("nav", "each => each.getBoundingClientRect().top")
    assert top == 0 and page.is_visible("nav label")
    assert page.is_visible("nav ul") != on_phone
    if on_phone:
        page.click("nav label")
        assert page.is_visible("nav ul")
    page.click("nav a:has-text('The end')")
    assert page.is_visible("nav ul") != on_phone, "it folds away again"
    place = page.eval_on_selector("h3:has-text('The end')", "e => e.getBoundingClientRect().top")
    assert place > page.eval_on_selector("nav label", "e => e.clientHeight") - 1


def test_it_opens_with_the_answer(page):
    places = page.eval_on_selector_all(
        "#answer > p, #answer > .scroll", "all => all.map(e => e.getBoundingClientRect().top)"
    )
    assert places == sorted(places) and max(places[:3]) < page.viewport_size["height"]
