"""The panels where they are used: JupyterLab, as `make lab` starts it, in a real browser. Each
panel is used with mouse and keyboard, cells are run again, a training is stopped and goes on; at
1400 and at 700 pixels, in light and in dark, no label is cut, nothing lies outside, charts follow
the theme, and axe finds nothing against accessibility.

Skipped as tests/in_browser.py says. `make test ARGS=tests/course/test_panels_in_browser.py
SCREENSHOTS=docs` makes the pictures of docs/panels.md anew, from longer trainings.
"""

import io
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from in_browser import chromium
from PIL import Image, ImageChops

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the extra")

pytestmark = pytest.mark.slow

PICTURES = os.environ.get("SCREENSHOTS", "")
FEW = {"sample_steps": 20 if PICTURES else 1}
SMALL = {
    "00_start_here": {"steps": 30 if PICTURES else 2, "class_images": 4, "output": "runs/start"},
    "01_dataset_prep": {"class_images": 2},
    "02_lora_training": {"steps": 120 if PICTURES else 400, "batch_size": 2, "rank": 4},
}
# The same notebooks and those that follow on them, whose every cell is run twice, in this order.
SHORT = {"steps": 2, "rank": 2, "sample_steps": 1, "output": "runs/twice"}
TWICE = {
    "00_start_here": {"class_images": 4, "output": "runs/twice_start"},
    "01_dataset_prep": {"class_images": 2},
    "02_lora_training": {},
    "03_dreambooth_training": {},
    "04_comparison": {"prompts": "course", "pictures_per_prompt": 1, "class_pictures": 1},
    "05_compose_and_ship": {"pictures": 4},
    "06_many_runs": {"job_steps": 2, "ranks": [1]},
    "appendix_recipes": {},
}
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}  # of accessibility, of axe
LARGEST = 120_000  # bytes of a panel's picture
TOKEN = "a-token-of-the-tests"
PATIENCE = 900 if PICTURES else 300  # seconds until a busy machine has done what is waited for

# Settings of JupyterLab: its theme follows the browser's, and it asks the network nothing.
ADAPTIVE = ("apputils-extension/themes", '{"adaptive-theme": true}')
QUIET = ("apputils-extension/notification", '{"fetchNews": "false", "checkForUpdates": false}')

# Where the panel `selector` cuts a label, or lies outside of its output. Sliders draw their handles
# over their ends, and a text may be longer than its field.
CUT = """selector => {
  const found = [];
  for (const each of document.querySelectorAll(`${selector} .jupyter-widgets *`)) {
    const box = each.getBoundingClientRect(), style = getComputedStyle(each);
    const output = each.closest('.jp-OutputArea-output').getBoundingClientRect();
    if (!box.width || each.closest('.slider-container, input, select, svg')) continue;
    const scrolls = ['auto', 'scroll'].includes(style.overflowX) || style.display === 'inline';
    if (each.scrollWidth > each.clientWidth + 1 && each.clientWidth && !scrolls)
      found.push(`cut: ${each.className} ${each.textContent.trim()}`);
    if (box.right > output.right + 1 && !each.closest('.scroll, .grid'))
      found.push(`outside: ${each.className} ${each.textContent.trim()}`);
  }
  return found;
}"""
# Charts of the panel `selector` that are white on a dark page.
WHITE = """selector => [...document.querySelectorAll(`${selector} .chart img`)]
  .filter(each => !getComputedStyle(each).filter.includes('invert')).map(each => each.alt)"""
# What is wrong with the outputs of all cells that have run: errors, and what went to stderr.
WRONG = """() => jupyterapp.shell.currentWidget.content.widgets.flatMap(cell => {
  const outputs = cell.model.outputs;
  return Array.from({length: outputs ? outputs.length : 0}, (_, k) => outputs.get(k).toJSON());
}).filter(each => each.output_type === 'error' || each.name === 'stderr')
  .map(each => each.evalue || each.text)"""
STATE = """id => {
  const cell = jupyterapp.shell.currentWidget.content.widgets.find(each => each.model.id === id);
  return [cell.model.executionCount, cell.model.executionState];
}"""
SHOW = """async id => {
  const notebook = jupyterapp.shell.currentWidget.content;
  const place = notebook.widgets.findIndex(each => each.model.id === id);
  notebook.activeCellIndex = place;
  notebook.deselectAll();
  await notebook.scrollToItem(place, 'start');
  return place;
}"""
CONNECTED = """() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel
  ?.connectionStatus === 'connected'"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def project(folder: Path) -> Path:
    """A project folder with notebooks of its own, whose parameters are small."""
    for name in ("lib", "data", "docs", "benchmarks", "requirements.txt", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    for place, common, all_of_them in (("", FEW, SMALL), ("twice", SHORT, TWICE)):
        (folder / "notebooks" / place).mkdir()
        for name, own in all_of_them.items():
            made = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
            for cell in made.cells:
                if "parameters" in cell.metadata.get("tags", ()):
                    given = {key: v for key, v in common.items() if f"{key} =" in cell.source} | own
                    cell.source += "".join(f"\n{key} = {v!r}" for key, v in given.items())
            nbformat.write(made, folder / "notebooks" / place / f"{name}.ipynb")
    job = Path("notebooks", "one_run.ipynb")  # which 06 runs over a grid
    (folder / job).symlink_to(ROOT / job)
    return folder


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where JupyterLab, by `make lab`'s own command, serves the project's copy."""
    if not shutil.which("make"):
        pytest.skip("needs make, which knows how the lab is started")
    folder, port = project(tmp_path_factory.mktemp("project")), free_port()
    settings = tmp_path_factory.mktemp("settings")
    for name, text in (ADAPTIVE, QUIET):
        path = settings / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    mine = f"--no-browser --allow-root --port={port} --IdentityProvider.token={TOKEN}"
    mine += " --LabApp.expose_app_in_browser=True --LabApp.extension_manager=readonly"
    told = ["make", "-n", "-o", ".venv/.ready", "lab", f"ARGS={mine}", f"RUN={sys.executable}"]
    command = subprocess.run(told, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    own = {"JUPYTERLAB_SETTINGS_DIR": settings, "JUPYTERLAB_WORKSPACES_DIR": settings / "spaces"}
    environment = {**os.environ, **{name: str(path) for name, path in own.items()}}
    environment.pop("WORKBENCH_HEADLESS", None)
    with open(settings / "log", "w", encoding="utf-8") as log:
        server = subprocess.Popen(
            shlex.split(command), cwd=folder, env=environment, stdout=log, stderr=log
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for_server(f"{address}/api?token={TOKEN}", server, settings / "log")
        yield address
    finally:
        server.terminate()
        server.wait(60)


def wait_for_server(address: str, server: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text("utf-8")
        try:
            urllib.request.urlopen(address, timeout=10).close()
            return
        except OSError:
            time.sleep(0.3)
    raise AssertionError(log.read_text("utf-8"))


@pytest.fixture(scope="module")
def page(address):
    with chromium() as browser:
        made = browser.new_page(viewport={"width": 1400, "height": 1000})
        made.set_default_timeout(PATIENCE * 1000)
        yield made


class Notebook:
    """A notebook that is open in the page."""

    def __init__(self, page, address: str, name: str):
        self.page = page
        page.goto(f"{address}/lab/tree/notebooks/{name}.ipynb?token={TOKEN}&reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        page.wait_for_function(CONNECTED)
        if page.is_visible(".jp-FileBrowser"):
            self.command("application:toggle-left-area")

    def command(self, name: str) -> None:
        self.page.evaluate("name => { jupyterapp.commands.execute(name) }", name)

    def start(self, *ids: str) -> None:
        """Run cells as somebody does who presses Shift and Enter, without waiting for them."""
        for each in ids:
            self.page.evaluate(SHOW, each)
            self.command("notebook:enter-command-mode")
            self.command("notebook:run-cell")

    def run(self, *ids: str) -> None:
        """Run cells, one after the other, until they are done and none has an error."""
        for each in ids:
            before = self.page.evaluate(STATE, each)[0]
            self.start(each)
            self.wait(each, before)

    def wait(self, each: str, before: int | None = None) -> None:
        """Wait until a cell has run."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            count, state = self.page.evaluate(STATE, each)
            if count is not None and count != before and state == "idle":
                assert not self.page.evaluate(WRONG)
                return
            assert not self.page.evaluate(WRONG)
            time.sleep(0.2)
        raise AssertionError(f"cell {each} is not done")

    def panel(self, each: str):
        """The outputs of a cell, scrolled to."""
        place = self.page.evaluate(SHOW, each)
        self.selector = f'.jp-Cell[data-windowed-list-index="{place}"] .jp-OutputArea'
        return self.page.locator(self.selector).first

    def look(self, each: str, picture: str = "") -> None:
        """A panel is whole at both widths, in light and in dark, and shows no error."""
        for width in (700, 1400):
            for scheme in ("dark", "light"):
                self.page.set_viewport_size({"width": width, "height": 1000})
                self.page.emulate_media(color_scheme=scheme)
                name = "Dark" if scheme == "dark" else "Light"
                self.page.wait_for_selector(
                    f'body[data-jp-theme-name="JupyterLab {name}"]', state="attached"
                )
                panel = self.panel(each)
                panel.locator(".jupyter-widgets").first.wait_for()
                assert not self.page.evaluate(CUT, self.selector), (width, scheme)
                if scheme == "dark":
                    assert not self.page.evaluate(WHITE, self.selector), width
                assert "Error displaying widget" not in panel.inner_text()
                assert not panel.locator("[title=null]").count(), "what a mouse that rests is told"
                buttons = panel.locator(".jupyter-button")
                assert all(buttons.nth(k).is_visible() for k in range(buttons.count()))
        found = axe.Axe().run(self.page, f"{self.selector} .jupyter-widgets", RULES)
        wrong = found.response["violations"]
        assert not [(rule["id"], rule["nodes"][0]["html"][:200]) for rule in wrong]
        if picture and PICTURES:
            self.page.set_viewport_size({"width": 1400, "height": 2000})  # with all of it in view
            save(self.panel(each), Path(PICTURES) / f"panel_{picture}.png")
            self.page.set_viewport_size({"width": 1400, "height": 1000})
            self.panel(each)


def save(panel, path: Path) -> None:
    """A small picture of a panel."""
    shot = Image.open(io.BytesIO(panel.screenshot())).convert("RGB")
    ground = Image.new("RGB", shot.size, shot.getpixel((shot.width - 1, shot.height - 1)))
    box = ImageChops.difference(shot, ground).getbbox()
    shot.crop(box).quantize(128).save(path, optimize=True)
    assert path.stat().st_size < LARGEST, f"{path} is too large for a page"


def press(panel, name: str) -> None:
    """A button by the keyboard: it is focused, and Enter pressed.

    Its icon counts as a letter before its words.
    """
    panel.get_by_role("button", name=re.compile(rf"^\W*{name}$")).press("Enter")


def holds(field, text: str) -> None:
    """Wait until a field holds a text."""
    arguments = [field.element_handle(), text]
    field.page.wait_for_function("([field, text]) => field.value === text", arg=arguments)


def said(panel, text: str | re.Pattern[str]):
    """Wait until the panel says a text."""
    panel.get_by_text(text).first.wait_for()


def test_photos_are_gone_through_and_predictions_answered(page, address):
    book = Notebook(page, address, "01_dataset_prep")
    book.run("c02-f61d3b", "c04-431588", "upload-photos")
    panel = book.panel("upload-photos")
    said(panel, "Without an upload the photos are those of data/subjects/character.")
    panel.get_by_placeholder("no prediction yet").fill("3")
    page.keyboard.press("Enter")
    book.look("upload-photos")
    book.run("c06-6352b5")
    said(book.panel("c06-6352b5"), "You predicted: 3. It is: 0.")
    book.run("c07-2e5f53", "c10-f8bd90", "c14-6cc64d", "c19-14ef28", "c21-c5fe51")
    panel = book.panel("c21-c5fe51")
    caption = panel.get_by_label("caption")
    first = caption.input_value()
    caption.fill("no such word")
    page.keyboard.press("Tab")
    said(panel, "The caption stays as it was.")
    caption.fill(f"{first} in the evening")
    page.keyboard.press("Tab")
    press(panel, "Next")
    panel.get_by_role("button", name="hold it out").click()
    said(panel, "This photo is held out.")
    panel.get_by_role("button", name="Previous", exact=True).click()
    holds(caption, f"{first} in the evening")
    press(panel, "Caption as proposed")
    holds(caption, first)
    side = panel.locator(".noUi-handle").last
    side.focus()
    page.keyboard.press("ArrowLeft")
    said(panel, "255")
    press(panel, "As proposed")
    said(panel, "256")
    drag_the_crop(page, panel)
    book.look("c21-c5fe51", "photos")
    book.run("c21-c5fe51", "c23-6b00be")


def drag_the_crop(page, panel):
    """Make the crop smaller, and draw it with the mouse to the photo's upper left, and back."""
    panel.get_by_role("slider", name="side").press("Home")
    said(panel, re.compile("^16$"))
    photo = panel.locator(".widget-html:has(.grid)").first
    photo.scroll_into_view_if_needed()
    at = photo.bounding_box()
    page.mouse.move(at["x"] + 120, at["y"] + 120)
    page.mouse.down()
    page.mouse.move(at["x"] + 4, at["y"] + 4, steps=4)
    page.mouse.up()
    for name in ("left", "top"):
        said(panel.locator(f".widget-inline-hbox:has([aria-label={name}])"), re.compile("^0$"))
    press(panel, "As proposed")
    said(panel, "256")


def test_a_training_is_begun_stopped_goes_on_and_runs_again(page, address):
    book = Notebook(page, address, "02_lora_training")
    book.run("c02-879f63", "c04-431588", "c05-2d2f18", "c07-d0dec6", "c09-ec0c2b", "c32-eeaec6")
    panel = book.panel("c32-eeaec6")
    panel.get_by_role("combobox").last.select_option("shape")
    rate = panel.get_by_label("learning_rate")
    rate.fill("-1")
    page.keyboard.press("Tab")
    said(panel, "Setting 'learning_rate' is -1")
    panel.get_by_label("seed").fill("1")
    page.keyboard.press("Tab")
    said(panel, "seed is 1 now.")
    book.look("c32-eeaec6", "settings")
    book.start("n-2b916894e1")
    said(panel, "It begins by itself in")
    press(panel, "Train")
    training = book.panel("n-2b916894e1")
    said(training, re.compile(r"LoRA: step [5-9]\d of" if PICTURES else "LoRA: step "))
    steps = book.panel("c32-eeaec6").get_by_label("steps")
    steps.fill("5")
    page.keyboard.press("Tab")
    said(panel, "for a training runs by it")
    press(book.panel("n-2b916894e1"), "Stop here")
    book.wait("n-2b916894e1")
    said(training, "stopped; what was learnt is kept")
    book.look("n-2b916894e1", "training")
    book.panel("n-2b916894e1").get_by_role("button", name="Go on").click()
    said(training, "s left")
    training.get_by_role("button", name="Stop here").click()
    said(training, "Run the cells below again")
    book.start("n-2b916894e1")  # the cell again, after a stop
    said(training, "s left")
    press(book.panel("n-2b916894e1"), "Stop here")
    said(training, "stopped; what was learnt is kept")


def test_a_notebook_that_is_opened_again_has_a_line_in_place_of_its_panels(page, address):
    book = Notebook(page, address, "01_dataset_prep")
    book.run("c02-f61d3b", "c04-431588", "upload-photos")
    panel = book.panel("upload-photos")
    photos = sorted((ROOT / "data" / "subjects" / "character").glob("*.png"))
    with page.expect_file_chooser() as chosen:
        panel.get_by_role("button", name=re.compile("Upload photos")).click()
    chosen.value.set_files(photos)
    said(panel, f"{len(photos)} files are in")
    book.look("upload-photos")
    page.evaluate("async () => await jupyterapp.commands.execute('docmanager:save')")
    page.evaluate(
        "async () => await jupyterapp.shell.currentWidget.sessionContext.shutdown()",
    )
    again = Notebook(page, address, "01_dataset_prep")
    panel = again.panel("upload-photos")
    said(panel, "Here was a panel")
    assert "Error displaying widget" not in panel.inner_text()


def test_both_ways_train_by_one_button_and_the_explorer_draws_at_enter(page, address):
    book = Notebook(page, address, "00_start_here")
    book.command("notebook:run-all-cells")
    panel = book.panel("s06-photos")
    panel.get_by_label("this is a").fill("robot")
    page.keyboard.press("Tab")
    said(panel, "Press it when you are ready.")
    book.look("s06-photos", "start")
    press(book.panel("s06-photos"), "Train both ways")
    book.wait("s09-train")
    book.look("s09-train")
    book.wait("s16-answer")
    book.run("s09-train")  # what is finished is there at once
    panel = book.panel("s14-explore")
    prompt = panel.get_by_label("prompt")
    prompt.fill("a zwx robot in the kitchen")
    said(panel, "marked words are unknown to the base model")
    prompt.press("Enter")
    panel.get_by_role("img").first.wait_for()
    book.look("s14-explore", "explorer")
    broken = "() => getComputedStyle(document.querySelector('.jp-OutputArea pre')).wordBreak"
    assert page.evaluate(broken) == "normal", "words are printed whole"
    before = page.evaluate(STATE, "s16-answer")[0]
    book.command("notebook:run-all-cells")  # all of it again
    book.wait("s16-answer", before)


@pytest.mark.parametrize("name", TWICE)
def test_each_cell_runs_twice(page, address, name):
    """In front of a person, with panels, and a training that begins by itself."""
    book = Notebook(page, address, f"twice/{name}")
    made = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    code = [cell for cell in made.cells if cell.cell_type == "code"]
    for cell in code:
        book.run(cell.id, cell.id)
    book.run(*[cell.id for cell in code if "start(FOLDER)" in cell.source])  # all of it again
    assert "Error displaying widget" not in page.locator(".jp-Notebook").inner_text()
