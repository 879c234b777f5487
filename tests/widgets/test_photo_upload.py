"""Photos from one's own machine: into a folder of their own, nothing overwritten, nothing mixed."""

import io
import threading
from types import SimpleNamespace

import pytest
from made_photos import picture

from lib.dataset.folder_scan import scan
from lib.widgets import panels
from lib.widgets.panels import upload_panel
from lib.widgets.photo_upload import UploadPanel


@pytest.fixture
def shown(monkeypatch):
    """What is shown to a reader who can press buttons."""
    monkeypatch.setenv("WORKBENCH_HEADLESS", "0")
    monkeypatch.setattr(panels, "UPLOADS", [])
    shown = []

    def display(thing, display_id=False):
        if display_id:  # what stays in a notebook that is opened again
            return SimpleNamespace(update=lambda html: None)
        shown.append(thing)

    monkeypatch.setattr("IPython.display.display", display)
    return shown


def photo(seed):
    file = io.BytesIO()
    picture(seed).save(file, "JPEG")
    return file.getvalue()


def upload(panel, files):
    """What a browser does: it sends the files as the widget's state."""
    sent = [
        {
            "name": name,
            "type": "",
            "size": len(content),
            "content": memoryview(content),
            "last_modified": 1_700_000_000_000,
        }
        for name, content in files.items()
    ]
    panel.choose.set_state({"value": sent})


def test_what_is_uploaded_is_used_and_said(shown, tmp_path):
    panel = upload_panel("data/subjects/character", tmp_path / "photos")
    assert shown == [panel.box] and panel.folder == "data/subjects/character"
    assert panel.choose.multiple and ".heic" in panel.choose.accept
    upload(panel, {"a.jpg": photo(1), "b.JPG": photo(2), "a.txt": b"a zwx toy"})
    assert panel.folder == str(tmp_path / "photos") and "3 files are in" in panel.message.value
    assert "a.jpg, b.JPG, a.txt" in panel.message.value
    found = scan(panel.folder)
    assert [p.path.name for p in found] == ["a.jpg", "b.JPG"] and found[0].caption == "a zwx toy"


def test_a_cell_that_runs_again_forgets_nothing(shown, tmp_path):
    panel = upload_panel("mine", tmp_path / "photos")
    upload(panel, {"a.jpg": photo(1)})
    assert upload_panel("mine", tmp_path / "photos") is panel
    upload(panel, {"b.jpg": photo(2)})
    assert panel.written == ["a.jpg", "b.jpg"] and len(scan(panel.folder)) == 2
    assert upload_panel("other", tmp_path / "photos").folder == "other"


def test_an_earlier_upload_is_neither_mixed_nor_used_unasked(shown, tmp_path):
    upload(UploadPanel("mine", tmp_path / "photos"), {"a.jpg": photo(1)})
    panel = UploadPanel("mine", tmp_path / "photos")  # in another session
    assert panel.folder == "mine" and "set subject to that" in panel.message.value
    upload(panel, {"b.jpg": photo(2)})
    assert panel.folder == str(tmp_path / "photos-2") and len(scan(panel.folder)) == 1
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["a.jpg"]


def test_names_are_kept_apart_and_inside(shown, tmp_path):
    panel = UploadPanel("mine", tmp_path / "photos")
    upload(panel, {"a.jpg": photo(1), "../../b.jpg": photo(2), "C:\\me\\c.jpg": photo(3)})
    upload(panel, {"a.jpg": photo(4)})
    upload(panel, {"a.jpg": photo(1), "..": b"x", "x" * 300 + ".jpg": photo(5)})
    names = {path.name for path in (tmp_path / "photos").iterdir()}
    long = "x" * 251 + ".jpg"
    assert names == {"a.jpg", "a (2).jpg", "b.jpg", "c.jpg", "photo", long}
    assert (tmp_path / "photos" / "a.jpg").read_bytes() == photo(1)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_a_photo_that_was_chosen_twice_is_counted_once(shown, tmp_path):
    panel = UploadPanel("mine", tmp_path / "photos")
    upload(panel, {"a.jpg": photo(1), "trip/a.jpg": photo(1), "b.jpg": photo(2)})
    assert panel.written == ["a.jpg", "b.jpg"] and "2 files are in" in panel.message.value


def test_an_archive_is_sent_back(shown, tmp_path):
    panel = UploadPanel("mine", tmp_path / "photos")
    upload(panel, {"photos.zip": b"PK"})
    assert panel.folder == "mine" and "photos.zip: an archive; unpack it" in panel.message.value
    assert not (tmp_path / "photos").exists()


def test_a_place_that_cannot_be_written_is_one_sentence(shown, tmp_path):
    (tmp_path / "file").write_text("")
    panel = UploadPanel("mine", tmp_path / "file" / "photos")
    upload(panel, {"a.jpg": photo(1)})
    assert "cannot be written" in panel.message.value and panel.folder == "mine"


def test_colabs_older_widget_is_read_too(shown, tmp_path):
    from lib.widgets.photo_upload import _files

    older = {"a.jpg": {"metadata": {"name": "a.jpg", "size": 3}, "content": b"abc"}}
    assert list(_files(older)) == [("a.jpg", b"abc")]


def test_without_a_reader_nothing_is_shown_and_the_folder_is_the_parameters(monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBENCH_HEADLESS", "1")
    monkeypatch.setattr("IPython.display.display", lambda *_, **__: pytest.fail("displayed"))
    panel = upload_panel("data/subjects/character", tmp_path / "photos")
    assert panel.folder == "data/subjects/character" and not (tmp_path / "photos").exists()


def test_the_start_panel_waits_for_its_button_and_asks_what_it_is(shown, tmp_path):
    panel = upload_panel("data/subjects/character", tmp_path / "photos", start="Train both ways")

    def somebody():
        upload(panel, {"a.jpg": photo(1)})
        panel.noun.value = " teapot "
        panel.start.button.click()

    threading.Timer(0.3, somebody).start()
    panel.wait()
    assert panel.class_noun == "teapot" and panel.folder == str(tmp_path / "photos")
    again = upload_panel("data/subjects/character", tmp_path / "photos", "mug", "Train both ways")
    assert again is panel and panel.class_noun == "mug", "the parameter counts when it is given"


def test_the_start_panel_waits_for_nobody_where_nobody_is(monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBENCH_HEADLESS", "1")
    monkeypatch.setattr(panels, "UPLOADS", [])
    panel = upload_panel("data/subjects/character", tmp_path / "photos", "robot", "Train both ways")
    panel.wait()
    assert (panel.folder, panel.class_noun) == ("data/subjects/character", "robot")
