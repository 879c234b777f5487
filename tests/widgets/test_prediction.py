"""A prediction is asked for, need not be given, and stands beside the result."""

import ipywidgets as w
import pytest

from lib.widgets import predict
from lib.widgets.prediction import NOT_ASKED


class Handle:
    """What `display` returns of what may change."""

    def update(self, html):
        self.html = html.data


@pytest.fixture
def handle():
    return Handle()


@pytest.fixture
def shown(monkeypatch, handle):
    """The widgets that a reader is shown."""
    monkeypatch.setenv("WORKBENCH_HEADLESS", "0")
    shown = []
    monkeypatch.setattr(
        "IPython.display.display",
        lambda thing, display_id=False: handle if display_id else shown.append(thing),
    )
    return shown


def test_a_choice_stands_beside_the_result(shown, handle, capsys):
    asked = predict("Which is <larger>?", "LoRA", "DreamBooth")
    [box] = shown
    assert isinstance(asked.field, w.Dropdown)
    assert asked.field.tooltip == "Which is <larger>?", "the name of the field, for who hears it"
    assert asked.field.options == (NOT_ASKED, "LoRA", "DreamBooth") and "&lt;larger&gt;" in (
        box.children[0].value
    )
    asked.beside("DreamBooth")
    assert not capsys.readouterr().out, "nothing was predicted"
    asked.field.value = "LoRA"
    assert "You predicted: LoRA" in handle.html, "and stays in a notebook that is opened again"
    asked.beside("DreamBooth")
    said = capsys.readouterr().out
    assert said == "Which is <larger>? You predicted: LoRA. It is: DreamBooth.\n"


def test_a_number_stands_beside_the_result(shown, capsys):
    asked = predict("How many numbers?")
    asked.field.value = " about 500 "
    asked.beside(1234567)
    assert "You predicted: about 500. It is: 1,234,567." in capsys.readouterr().out


def test_without_a_reader_the_question_is_printed_and_nothing_else(monkeypatch, capsys):
    monkeypatch.setenv("WORKBENCH_HEADLESS", "1")
    asked = predict("How many numbers?", "one", "two")
    asked.beside("two")
    assert capsys.readouterr().out == "Predict first: How many numbers?\n" and asked.field is None
