"""Panels, driven as a reader drives them (values set, buttons clicked), and quiet where there is no
reader.
"""

import copy
import sys
import threading
import time
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from bs4 import BeautifulSoup
from conftest import ROOT
from PIL import Image
from safetensors.torch import load_file

from lib.files.errors import BadInput
from lib.models.families import preset
from lib.training.loop import train
from lib.training.run_log import State
from lib.widgets import start_button
from lib.widgets.panels import explorer, photos_panel, training_panel
from lib.widgets.photo_panel import PhotosPanel
from lib.widgets.picture_explorer import Explorer, Models
from lib.widgets.showing import headless
from lib.widgets.start_button import StartButton
from lib.widgets.training_controls import REASONS, TrainingPanel


class Shown(list):
    """The widgets that were displayed, and in `left` what stays in a notebook in their places."""

    def __init__(self):
        self.left = []

    def display(self, thing, display_id=False):
        if not display_id:
            return self.append(thing)
        self.left.append(thing.data)
        return SimpleNamespace(update=lambda html, k=len(self.left) - 1: self.leave(k, html.data))

    def leave(self, k, html):
        self.left[k] = html


@pytest.fixture
def somebody(monkeypatch):
    """A reader who can press buttons; what is displayed is kept in the list."""
    monkeypatch.setenv("WORKBENCH_HEADLESS", "0")
    shown = Shown()
    monkeypatch.setattr("IPython.display.display", shown.display)
    return shown


@pytest.fixture
def nobody(monkeypatch):
    monkeypatch.setenv("WORKBENCH_HEADLESS", "1")
    monkeypatch.setattr(
        "IPython.display.display", lambda *_, **__: pytest.fail("something was displayed")
    )


@pytest.fixture
def plan(tmp_path):
    """A plan of three photos, 300 x 200, the last broken, and their folder."""
    for name in ("a b.png", "ü.png"):
        Image.new("RGB", (300, 200), "teal").save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"")
    entry = {
        "use": "train",
        "crop": [50, 0, 250, 200],
        "width": 300,
        "height": 200,
        "caption": "a zwx toy",
        "findings": [],
    }
    broken = entry | {
        "file": "broken.png",
        "use": "out",
        "crop": [0, 0, 0, 0],
        "width": 0,
        "height": 0,
        "findings": ["is empty"],
    }
    return [
        entry | {"file": "a b.png"},
        entry | {"file": "ü.png", "findings": ["is soft"]},
        broken,
    ], tmp_path


def settings(tmp_path, **changes):
    return preset(
        "lora", **{"data": "data", "output": str(tmp_path / "run"), "steps": 40} | changes
    )


def find(widget, kind):
    """All widgets of a kind inside `widget`."""
    return [
        w
        for child in getattr(widget, "children", ())
        for w in ([child] if isinstance(child, kind) else []) + find(child, kind)
    ]


def test_without_a_reader_panels_return_their_input_and_show_nothing(nobody, plan, tmp_path):
    entries, folder = plan
    before = copy.deepcopy(entries)
    assert photos_panel(entries, folder) is entries and entries == before
    recipe = settings(tmp_path)
    panel = training_panel(recipe)
    assert panel.settings is recipe
    state = State(2)
    state.step, state.losses = 2, [1.0, 0.5]
    assert panel(state) is None and not state.stopping
    recipe.save(tmp_path / "run" / "settings.json")
    choices = explorer({"lora": tmp_path / "run"}, "a toy", seed=3)
    assert choices == {
        "prompt": "a toy",
        "seed": 3,
        "guidance": 2.0,
        "adapter_weight": 1.0,
        "steps": 0,
    }


def test_a_script_has_no_reader_and_the_variable_has_the_last_word(monkeypatch):
    monkeypatch.delenv("WORKBENCH_HEADLESS", raising=False)
    assert headless()
    for value, expected in (("1", True), ("0", False)):
        monkeypatch.setenv("WORKBENCH_HEADLESS", value)
        assert headless() is expected


@pytest.fixture(scope="module")
def kernel():
    """A notebook's Python, as front ends start it."""
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3", startup_timeout=120, cwd=str(ROOT))
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def run(client, code, **options):
    """What `code` prints in the kernel."""
    lines = []
    client.execute_interactive(
        code,
        output_hook=lambda m: lines.append(
            m["content"].get("text") or str(m["content"].get("evalue", ""))
        ),
        timeout=120,
        **options,
    )
    return "".join(lines)


def test_a_notebook_has_a_reader_only_where_someone_could_answer(kernel):
    code = (
        "import os; os.environ.pop('WORKBENCH_HEADLESS', None)\nfrom lib.widgets.panels import"
        " headless\nprint(headless())"
    )
    assert (
        run(kernel[1], code, allow_stdin=True, stdin_hook=lambda _: None).strip() == "False"
    )  # as JupyterLab, VS Code and Colab ask
    assert (
        run(kernel[1], code, allow_stdin=False).strip() == "True"
    )  # as papermill and nbconvert ask


TRAINING = """
import os, time; os.environ["WORKBENCH_HEADLESS"] = "0"
from lib.models.families import preset
from lib.training.loop import ctrl_c_stops
from lib.training.run_log import State
from lib.widgets.panels import training_panel
panel, state = training_panel(preset("lora", data="d", output="o"), edit=False), State(2000)
with ctrl_c_stops(state):  # as train does around its loop
    while state.step < state.steps and not state.stopping:
        state.step += 1
        if state.step == 2:
            print("started", panel.stop_button.comm.comm_id, flush=True)
        time.sleep(0.05)  # the step itself, within which the signal comes
        panel(state)
print("ended gently", 0 < state.step < state.steps, panel.stop_button.disabled)
"""


def click_in_jupyterlab(manager, client, button):
    """Click a button as JupyterLab does while a cell runs: on a subshell of the kernel."""
    client.control_channel.send(client.session.msg("create_subshell_request"))
    click = client.session.msg(
        "comm_msg", {"comm_id": button, "data": {"method": "custom", "content": {"event": "click"}}}
    )
    click["header"]["subshell_id"] = client.get_control_msg(timeout=60)["content"]["subshell_id"]
    client.shell_channel.send(click)


def interrupt(manager, client, button):
    """Interrupt the kernel, as the notebook's own stop button does."""
    manager.interrupt_kernel()


@pytest.mark.parametrize("stop", [click_in_jupyterlab, interrupt])
def test_a_running_training_is_ended_gently_by_its_button_and_by_the_notebooks_own(kernel, stop):
    manager, client = kernel
    client.execute(TRAINING)
    said, patience = "", time.monotonic() + 150
    while "ended" not in said and "Error" not in said and time.monotonic() < patience:
        content = client.get_iopub_msg(timeout=120)["content"]
        said += content.get("text", "") + content.get("ename", "")
        if content.get("text", "").startswith("started"):
            stop(manager, client, content["text"].split()[1])
    assert "ended gently True True" in said


def test_photos_are_edited_in_the_plan_itself(somebody, plan):
    entries, folder = plan
    assert photos_panel(entries, folder) is entries and len(somebody) == 1
    panel = PhotosPanel(entries, folder)
    panel.use.value, panel.caption.value = "test", "  a zwx toy   on a table "
    assert "This photo is held out." in panel.found.value
    panel.left.value = 90
    assert entries[0] == {
        "file": "a b.png",
        "use": "test",
        "crop": [90, 0, 290, 200],
        "width": 300,
        "height": 200,
        "caption": "a zwx toy on a table",
        "findings": [],
    }
    panel.next.click()
    assert "is soft" in panel.found.value and entries[1]["crop"] == [50, 0, 250, 200]
    panel.use.value = "out"
    assert entries[1]["use"] == "out" and entries[0]["use"] == "test"
    assert (
        "0 to train on, 1 held out, 2 left out" in panel.count.value
        and "At least 2" in panel.count.value
    )
    panel.reset.click()
    assert entries[1]["use"] == "train" == panel.use.value
    panel.previous.click()
    assert panel.caption.value == "a zwx toy on a table"


def test_going_through_the_photos_changes_nothing(somebody, plan):
    entries, folder = plan
    before = copy.deepcopy(entries)
    panel = PhotosPanel(entries, folder)
    for _ in range(4):
        panel.next.click()
    assert entries == before


def test_a_crop_stays_square_inside_the_photo_and_shrinks_about_its_middle(somebody, plan):
    entries, folder = plan
    panel = PhotosPanel(entries, folder)
    panel.side.value = 100
    assert entries[0]["crop"] == [100, 50, 200, 150]
    panel.left.value = panel.left.max
    panel.side.value = 200
    left, top, right, bottom = entries[0]["crop"]
    assert right - left == bottom - top == 200 and left >= 0 and top == 0 and right <= 300
    panel.side.value = 10_000
    assert entries[0]["crop"][2] - entries[0]["crop"][0] == 200


def test_a_crop_shrunk_in_small_steps_stays_about_its_middle_and_grows_back(somebody, plan):
    entries, folder = plan
    panel = PhotosPanel(entries, folder)
    for side in range(199, 149, -1):  # an arrow key held down
        panel.side.value = side
    assert entries[0]["crop"] == [75, 25, 225, 175]
    for side in range(151, 201):
        panel.side.value = side
    assert entries[0]["crop"] == [50, 0, 250, 200]


def mouse(panel, kind, x, y, buttons=1):
    """What a browser sends when the mouse is at x, y of the picture."""
    at = {"relativeX": x, "clientX": 50 + x, "clientY": 80 + y}
    panel.drags._handle_mouse_msg(panel.drags, at | {"type": kind, "buttons": buttons}, [])


def test_the_crop_is_dragged_on_the_photo_and_stays_inside_it(somebody, plan):
    entries, folder = plan
    panel = PhotosPanel(entries, folder)
    panel.side.value = 100
    assert entries[0]["crop"] == [100, 50, 200, 150]
    mouse(panel, "mousedown", 120, 120)
    mouse(panel, "mousemove", 128, 112)  # of a photo of 300 pixels shown on 240
    assert entries[0]["crop"] == [110, 40, 210, 140] and panel.left.value == 110
    mouse(panel, "mouseup", 500, 500, 0)
    assert entries[0]["crop"] == [200, 100, 300, 200], "as far as the photo goes"
    mouse(panel, "mousemove", 120, 120, 0)
    mouse(panel, "mouseup", 10, 10, 0)
    assert entries[0]["crop"] == [200, 100, 300, 200], "the button was let go"
    panel.reset.click()
    assert entries[0]["crop"] == [50, 0, 250, 200]


def test_a_drag_that_begins_nowhere_or_was_let_go_elsewhere_moves_nothing(somebody, plan):
    entries, folder = plan
    panel = PhotosPanel(entries, folder)
    panel.side.value = 100
    before = copy.deepcopy(entries)
    mouse(panel, "mousedown", 300, 120)  # on the crop beside the photo
    mouse(panel, "mousemove", 320, 140)
    mouse(panel, "mousedown", 120, 120)
    mouse(panel, "mousemove", 10, 10, 0)  # let go where no one saw it
    mouse(panel, "mousemove", 20, 20)
    panel.use.value = "out"
    before[0]["use"] = "out"
    mouse(panel, "mousedown", 120, 120)
    mouse(panel, "mousemove", 140, 140)
    panel.choose.value = 2  # a file that cannot be opened
    mouse(panel, "mousedown", 120, 120)
    mouse(panel, "mousemove", 140, 140)
    assert entries == before


def test_where_the_mouse_is_not_heard_the_panel_speaks_of_the_sliders(somebody, plan, monkeypatch):
    assert "Drag the crop" in PhotosPanel(*plan).picture.value
    monkeypatch.setitem(sys.modules, "ipyevents", None)  # not installed
    panel = PhotosPanel(*plan)
    assert panel.drags is None and "Drag" not in panel.picture.value
    assert "Move the crop by the sliders left and top" in panel.picture.value


def test_there_is_a_way_back_to_what_was_proposed_from_a_panel_made_again(somebody, plan):
    entries, folder = plan
    photos_panel(entries, folder, "zwx")
    panel = PhotosPanel(entries, folder, "zwx")
    panel.caption.value, panel.use.value = "a zwx toy in a room", "test"
    assert photos_panel(entries, folder, "zwx") is entries, "the cell again"
    again = somebody[-1]
    buttons = {b.description: b for b in find(again, type(panel.reset))}
    buttons["Caption as proposed"].click()
    assert entries[0]["caption"] == "a zwx toy" and entries[0]["use"] == "test"
    buttons["As proposed"].click()
    assert entries[0]["use"] == "train"


def test_a_caption_without_the_identifier_is_refused_with_a_word(somebody, plan):
    panel = PhotosPanel(*plan, "zwx")
    panel.caption.value = "a toy on a table"
    assert panel.caption.value == "a zwx toy" == plan[0][0]["caption"]
    assert "lacks the identifier &#x27;zwx&#x27;" in panel.message.value
    assert "The caption stays as it was." in panel.message.value


def test_an_edited_plan_is_one_that_prepare_takes(somebody, tmp_path):
    from lib.dataset.captions import read_subject
    from lib.dataset.folder_scan import scan
    from lib.dataset.preparation import plan, prepare

    folder = ROOT / "data" / "subjects" / "character"
    entries = plan(scan(folder), read_subject(folder))
    panel = PhotosPanel(entries, folder)
    panel.choose.value = 1
    panel.side.value = 100
    panel.caption.value = "a zwx robot somewhere"
    panel.choose.value = 3
    panel.use.value = "out"
    data = prepare(folder, tmp_path / "data", edits=entries)
    assert len(data.train) == 5 and "a zwx robot somewhere" in {item.caption for item in data.train}


def test_an_empty_caption_is_refused_with_a_sentence(somebody, plan):
    entries, folder = plan
    panel = PhotosPanel(entries, folder)
    panel.caption.value = "  "
    assert (
        "empty" in panel.message.value
        and panel.caption.value == entries[0]["caption"] == "a zwx toy"
    )
    assert "The caption stays as it was." in panel.message.value
    panel.caption.value = "a zwx toy in the snow"
    assert not panel.message.value and entries[0]["caption"] == "a zwx toy in the snow"


def test_a_broken_photo_is_told_and_cannot_be_used(somebody, plan):
    entries, folder = plan
    panel = PhotosPanel(entries, folder)
    panel.choose.value = 2
    assert (
        panel.use.disabled
        and "is empty" in panel.found.value
        and "cannot be opened" in panel.picture.value
    )


def test_photos_in_the_panel_have_alternative_text(somebody, plan):
    page = BeautifulSoup(PhotosPanel(*plan).picture.value, "html.parser")
    assert "a b.png, train" in page.img["alt"]
    assert "sliders left and top" in page.figcaption.text, "how the crop is moved"


def test_settings_are_edited_by_making_new_ones(somebody, tmp_path):
    recipe = settings(tmp_path, rank=16, alpha=8.0)
    panel = training_panel(recipe)
    assert len(somebody) == 1
    panel.fields["steps"].value, panel.fields["learning_rate"].value, panel.fields["rank"].value = (
        77,
        0.003,
        4,
    )
    assert (
        panel.settings.steps,
        panel.settings.learning_rate,
        panel.settings.rank,
        panel.settings.alpha,
    ) == (77, 0.003, 4, 2.0)
    assert recipe == settings(tmp_path, rank=16, alpha=8.0)
    text = " ".join(w.value for w in find(somebody[0], type(panel.message)))
    assert all(reason.split(".")[0] in text for reason in REASONS.values())


@pytest.mark.parametrize("steps, every", [(8, 2), (400, 100), (1, 1)])
def test_another_number_of_steps_keeps_the_number_of_samples(somebody, tmp_path, steps, every):
    panel = training_panel(settings(tmp_path, steps=40, sample_every=10))
    panel.fields["steps"].value = steps
    assert (panel.settings.steps, panel.settings.sample_every) == (steps, every)
    none = training_panel(settings(tmp_path, sample_every=0))
    none.fields["steps"].value = steps
    assert none.settings.sample_every == 0


def test_a_refused_setting_leaves_the_others_and_says_why(somebody, tmp_path):
    panel = training_panel(settings(tmp_path))
    panel.fields["steps"].value = 0
    assert (
        "is 0, outside 1 to" in panel.message.value
        and panel.fields["steps"].value == panel.settings.steps == 40
    )


def test_dreambooth_has_no_rank_to_edit(somebody, tmp_path):
    panel = training_panel(preset("dreambooth", data="data", output="run"))
    assert "rank" not in panel.fields and "prior_weight" in panel.fields


def test_the_live_figure_follows_and_the_stop_button_stops(somebody, tmp_path):
    panel, state = TrainingPanel(settings(tmp_path)), State(40)
    state.step, state.losses, state.seconds = 10, [1.0] * 10, 1.0
    state.samples.append((10, [Image.new("RGB", (64, 64), "teal")] * 2))
    panel(state)
    assert len(somebody) == 1 and panel.bar.value == 10 and "about 3 s left" in panel.status.value
    assert (
        BeautifulSoup(panel.loss.value, "html.parser").img["alt"].startswith("Line chart of loss")
    )
    assert (
        "rows step 10; columns no place, in the forest"
        in BeautifulSoup(panel.samples.value, "html.parser").img["alt"]
    )
    assert not state.stopping
    panel.stop_button.click()
    assert state.stopping
    state.step = 11
    panel(state)
    assert (
        "LoRA: step 11 of 40, stopped" in panel.status.value
        and panel.stop_button.disabled
        and len(somebody) == 1
    )


def test_what_is_said_of_the_end_stays_when_a_click_is_slow(somebody, tmp_path):
    """A click comes in another thread: as soon as it has stopped the training, the training's own
    thread draws the end.
    """
    panel, state = TrainingPanel(settings(tmp_path)), State(40)
    state.step, whole = 1, state.stop
    panel(state)
    state.stop = lambda: (whole(), panel(state))
    panel.stop_button.click()
    assert "step 1 of 40, stopped; what was learnt is kept" in panel.status.value


def test_drawing_takes_a_small_part_of_the_time(somebody, tmp_path):
    panel, state, drawn = TrainingPanel(settings(tmp_path)), State(10_000), []
    whole = panel.draw
    panel.draw = lambda over: (drawn.append(state.step), whole(over))
    for state.step in range(1, 500):
        state.losses.append(1.0)
        panel(state)
    assert drawn == [1]


def test_a_stopped_training_leaves_a_usable_run(somebody, tmp_path, tiny_folder, dataset):
    from lib.models.base import load_base
    from lib.step.run_weights import load_run

    panel = TrainingPanel(
        settings(
            tmp_path,
            base=tiny_folder,
            data=str(dataset.root),
            sample_every=2,
            sample_steps=2,
            prior_weight=0.0,
        )
    )

    def click(state):
        if state.step == 3:
            panel.stop_button.click()

    folder = train(panel.settings, watchers=[panel, click])
    assert len((folder / "log.jsonl").read_text().splitlines()) in (3, 4)
    assert Models({"lora": folder}).draw("a zwx robot", steps=2).image.width > 100
    load_run(folder, load_base(tiny_folder))


def recipe(tmp_path, tiny_folder, dataset, **changes):
    """Settings of a short training on the tiny base."""
    common = {"base": tiny_folder, "data": str(dataset.root), "prior_weight": 0.0}
    return settings(tmp_path, steps=6, sample_every=0, sample_steps=2, **common | changes)


def in_the_middle(step, what):
    """What makes watchers that do `what` after a step, and a list of those that were made."""
    made = []

    def watchers(settings, model):
        made.append((settings, model))
        return [lambda state: state.step == step and what()]

    return watchers, made


def test_a_training_cell_runs_again_after_a_stop_and_after_a_changed_field(
    somebody, tmp_path, tiny_folder, dataset
):
    panel = training_panel(recipe(tmp_path, tiny_folder, dataset))
    panel.start.button.click()
    watchers, made = in_the_middle(2, lambda: panel.stop_button.click())
    run = panel.train(watchers)
    assert len((run / "log.jsonl").read_text().splitlines()) < 6
    assert panel.train(watchers) == run and len(made) == 2, "the cell again: it goes on"
    assert len((run / "log.jsonl").read_text().splitlines()) == 6
    assert made[0][1] is not made[1][1] is panel.model, "each time on a base model loaded afresh"
    panel.fields["steps"].value = 8
    assert panel.train() == run and len((run / "log.jsonl").read_text().splitlines()) == 8
    assert panel.train() == run, "and once more, of a finished one"


def test_a_stopped_training_goes_on_by_one_click(somebody, tmp_path, tiny_folder, dataset):
    panel = training_panel(recipe(tmp_path, tiny_folder, dataset))
    panel.start.button.click()
    watchers, made = in_the_middle(2, lambda: panel.stop_button.click())
    run = panel.train(watchers)
    assert not panel.go_on_button.disabled and panel.stop_button.disabled
    shown = len(somebody)
    panel.go_on_button.click()
    panel.going.join()
    assert len((run / "log.jsonl").read_text().splitlines()) == 6 and len(made) == 2
    assert "step 6 of 6, done. Run the cells below again" in panel.status.value
    assert panel.go_on_button.disabled and len(somebody) == shown, "in the same figure"
    whole = training_panel(recipe(tmp_path, tiny_folder, dataset, output=str(tmp_path / "whole")))
    whole.start.button.click()
    gone_on, at_once = (load_file(r / "adapter.safetensors") for r in (run, whole.train()))
    assert all(gone_on[name].equal(at_once[name]) for name in at_once), "as if never stopped"


def test_a_training_that_goes_on_leaves_the_next_click_free(somebody, tmp_path, monkeypatch):
    panel, gate = training_panel(settings(tmp_path)), threading.Event()
    panel.begin(State(40))
    monkeypatch.setattr(panel, "_train", lambda: gate.wait(60))
    panel.go_on()
    assert panel.training and panel.going.is_alive(), "the click is over, the training is not"
    panel.stop_button.click()
    assert panel.state.stopping
    gate.set()
    panel.going.join()
    assert not panel.training


def test_what_ends_a_training_that_went_on_is_said_and_it_can_go_on_again(
    somebody, tmp_path, monkeypatch
):
    panel = training_panel(settings(tmp_path))
    panel.begin(State(40))
    monkeypatch.setattr(panel, "_train", Mock(side_effect=RuntimeError("the loss is <nan>")))
    panel.go_on()
    panel.going.join()
    assert panel.status.value == "the loss is &lt;nan&gt;" and not panel.go_on_button.disabled


def test_settings_are_not_edited_under_a_training_that_runs(
    somebody, tmp_path, tiny_folder, dataset
):
    panel = training_panel(recipe(tmp_path, tiny_folder, dataset))
    panel.start.button.click()

    def edit():
        panel.fields["steps"].value = 3

    panel.train(in_the_middle(2, edit)[0])
    assert panel.settings.steps == 6 == panel.fields["steps"].value
    assert "steps stays 6, for a training runs by it" in panel.message.value
    edit()
    assert panel.settings.steps == 3


def test_a_cell_waits_for_the_button_as_long_as_somebody_is_busy(somebody, monkeypatch):
    monkeypatch.setattr(start_button, "PATIENCE", 0.5)
    start, began = StartButton("Train"), time.monotonic()
    start.wait()
    assert 0.4 < time.monotonic() - began < 5, "nobody did anything"
    start.wait()
    assert time.monotonic() - began < 6, "it is waited for once"
    start = StartButton("Train")
    threading.Timer(0.2, start.hold).start()
    threading.Timer(1.5, start.button.click).start()
    began = time.monotonic()
    start.wait()
    assert time.monotonic() - began > 1.2, "somebody changed a field, so it waits for the click"
    before = StartButton("Train")
    before.hold()
    before.wait()  # a change before the cell ran does not say that a click would be heard now
    pressed = StartButton("Train")
    pressed.button.click()
    assert "run the cells below" in pressed.message.value


def test_an_edit_makes_the_cell_wait(somebody, tmp_path):
    panel = training_panel(settings(tmp_path))
    panel.start.waiting = True
    panel.fields["steps"].value = 50
    assert panel.start.held


def test_a_notebook_that_is_opened_again_has_a_picture_and_a_line(somebody, runs, plan, tmp_path):
    panel, state = TrainingPanel(settings(tmp_path)), State(1)
    state.step, state.losses = 1, [1.0]
    state.samples.append((1, [Image.new("RGB", (64, 64), "teal")] * 2))
    panel(state)
    photos_panel(*plan)
    for left, said in zip(somebody.left, ("step 1 of 1, done", "2 to train on")):
        assert "run this cell to have it" in left and "<img" in left and said in left
    assert len(somebody.left) == len(somebody) == 2


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_folder, dataset):
    """A run of each method, three steps on the tiny base."""
    where = tmp_path_factory.mktemp("runs")
    common = {
        "base": tiny_folder,
        "data": str(dataset.root),
        "steps": 3,
        "sample_every": 0,
        "learning_rate": 0.02,
    }
    return {m: train(preset(m, output=str(where / m), **common)) for m in ("lora", "dreambooth")}


def test_the_explorer_draws_by_its_widgets_and_gives_its_choices(somebody, runs):
    choices = explorer(runs, steps=2)
    assert choices["prompt"] == "a zwx robot in the snow" and len(somebody) == 1
    panel = Explorer(Models(runs), choices)
    panel.prompt.value, panel.seed.value, panel.guidance.value, panel.weight.value = (
        "a robot at night",
        5,
        2.0,
        0.5,
    )
    assert choices == {
        "prompt": "a robot at night",
        "seed": 5,
        "guidance": 2.0,
        "adapter_weight": 0.5,
        "steps": 2,
    }
    panel.button.click()
    alt = BeautifulSoup(panel.picture.value, "html.parser").img["alt"]
    assert all(
        word in alt
        for word in ("a robot at night", "seed 5", "base model", "LoRA, weight 0.5", "DreamBooth")
    )
    assert not panel.button.disabled


def test_enter_in_the_prompt_draws_what_stands_there(somebody, runs):
    explorer(runs, steps=2)
    panel = Explorer(Models(runs), explorer(runs, steps=2))
    left = []
    panel.leave = left.append
    panel.prompt.value = "a robot in space"
    panel.prompt._handle_custom_msg({"event": "submit"}, [])  # as the browser sends it
    assert "a robot in space" in panel.picture.value and left == [panel.picture.value]
    assert panel.prompt.continuous_update, "Enter comes before the change of an unfinished field"


def test_words_that_the_base_does_not_know_are_marked(somebody, runs):
    models = Models(runs)
    models.settings = models.settings.replace(base="pocket")
    panel = Explorer(models, {**explorer(runs, "a zwx robot in the snow"), "steps": 2})
    assert panel.words.value == ""
    panel.prompt.value = "a zwx robot in a kitchen, with a red Hat"
    assert "<mark>kitchen,</mark> <mark>with</mark> a red <mark>Hat</mark>" in panel.words.value
    assert models.unknown("a <b> robot") == ["<b>"] and "&lt;b&gt;" in (
        setattr(panel.prompt, "value", "a <b> robot") or panel.words.value
    )
    assert "has never read “kitchen” and “hat”" in models.remark("a robot in a kitchen, a hat")
    assert models.remark("a red robot on the beach") == ""
    models.settings = models.settings.replace(base="sd15")
    assert models.unknown("a kitchen") == []


def test_the_explorer_draws_the_extracted_lora_too(runs, tmp_path):
    from lib.convert import extract
    from lib.convert.exporting import export_lora

    file = export_lora(extract(runs["dreambooth"], 4)[0], "kohya", tmp_path / "cut.safetensors")
    models = Models({"extracted": file.path, **runs})
    drawn = models.draw("a robot", steps=2)
    assert "base model, LoRA, weight 1, DreamBooth, DreamBooth cut to a LoRA" in drawn.alt
    cut, base = (
        models.picture(n, "a robot", 0, 4.0, w, 4) for n, w in (("extracted", None), ("base", 0.0))
    )
    assert cut.tobytes() != base.tobytes()
    with pytest.raises(BadInput, match="lora and dreambooth"):
        Models({"extracted": file.path})


def test_an_adapter_of_weight_zero_is_the_base_and_one_is_not(runs):
    from lib.models.base import load_base

    models, ask = Models(runs), ("a robot", 0, 4.0)
    pictures = {w: models.picture("lora", *ask, w, 4).tobytes() for w in (0.0, 1.0)}
    base = load_base(models.settings.base).generate(["a robot"], [0], 4, 4.0)[0].tobytes()
    assert pictures[0.0] == base == models.picture("base", *ask, 0.0, 4).tobytes() != pictures[1.0]
    assert models.picture("dreambooth", *ask, None, 4).tobytes() != base


def test_what_the_explorer_cannot_draw_it_says(somebody, runs, tmp_path):
    panel = Explorer(
        Models(runs), {"prompt": "a", "seed": 0, "guidance": 4.0, "adapter_weight": 1.0, "steps": 2}
    )
    panel.prompt.value = ""
    panel.button.click()
    assert (
        "prompt is empty" in panel.picture.value
        and not panel.button.disabled
        and panel.button.description == "Draw"
    )
    panel.prompt.value = "a robot " * 60
    panel.button.click()
    assert "falls into 120 pieces" in panel.picture.value and "<img" not in panel.picture.value
    panel.prompt.value = "a robot"
    panel.button.click()
    assert "<img" in panel.picture.value
    with pytest.raises(BadInput, match="lora and dreambooth"):
        Models({"lokr": tmp_path})
    with pytest.raises(BadInput, match="settings.json"):
        Models({"lora": tmp_path})
