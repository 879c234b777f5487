"""What the set-up does on Colab: Drive, the hub's consent and token, the GPU, and all packages."""

import sys
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

import pytest
import torch
from conftest import ROOT

from lib.course import set_up
from lib.course.set_up import ask_for_download, on_colab, tell_machine, unmet
from lib.files import BadInput
from lib.memory import cards

IN_DRIVE = "/content/drive/MyDrive/workbench"


@pytest.fixture
def colab(monkeypatch):
    """A Colab whose Drive writes down where it was mounted."""
    mounted = []
    google, here, drive = (ModuleType(n) for n in ("google", "google.colab", "google.colab.drive"))
    drive.mount = mounted.append
    google.colab, here.drive = here, drive
    for module in (google, here, drive):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return mounted


def test_drive_is_mounted_where_the_output_lies_in_it(colab, capsys):
    on_colab(IN_DRIVE)
    assert colab == ["/content/drive"] and not capsys.readouterr().out


def test_without_drive_colab_is_told_how_to_keep_runs(colab, capsys):
    on_colab("runs/course")
    said = capsys.readouterr().out
    assert not colab and "set `output` to a folder of your Drive" in said and IN_DRIVE in said


def test_elsewhere_nothing_is_said_of_drive(capsys):
    on_colab("runs/course")
    on_colab(IN_DRIVE)
    assert not capsys.readouterr().out


@pytest.fixture
def asked(monkeypatch):
    """Answers by order, and the questions that were asked."""
    questions, answers = [], []

    def answer(question):
        questions.append(question)
        if not answers:
            raise NotImplementedError("this frontend does not support input requests")
        return answers.pop(0)

    monkeypatch.setattr("builtins.input", answer)
    monkeypatch.setattr(set_up, "getpass", answer)
    monkeypatch.setenv("WORKBENCH_DOWNLOAD", "")
    monkeypatch.setenv("HF_TOKEN", "")
    return questions, answers


def test_a_download_is_asked_for_with_a_token(asked, monkeypatch):
    import os

    questions, answers = asked
    answers += ["yes", "hf_abc"]
    ask_for_download("somebody/no-such-model")
    assert "Download 'somebody/no-such-model'" in questions[0] and "token" in questions[1]
    assert os.environ["WORKBENCH_DOWNLOAD"] == "1" and os.environ["HF_TOKEN"] == "hf_abc"
    ask_for_download("somebody/no-such-model")
    assert len(questions) == 2, "asked once"


def test_a_no_downloads_nothing(asked):
    import os

    questions, answers = asked
    answers += ["no"]
    ask_for_download("somebody/no-such-model")
    assert len(questions) == 1 and os.environ["WORKBENCH_DOWNLOAD"] == ""


def test_where_nobody_can_answer_nothing_is_changed(asked):
    import os

    ask_for_download("somebody/no-such-model")
    assert os.environ["WORKBENCH_DOWNLOAD"] == ""


def test_a_mistyped_path_is_no_download(asked, tmp_path, monkeypatch):
    """It was asked whether to download 'models/sd51' from the hub."""
    (tmp_path / "models" / "sd15").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="did you mean models/sd15"):
        ask_for_download("models/sd51")
    assert not asked[0]


@pytest.mark.parametrize("base", ["pocket", "/some/folder", "./a/b", "model.safetensors"])
def test_what_is_no_hub_name_is_not_asked_about(asked, base):
    ask_for_download(base)
    assert not asked[0]


def test_the_gpu_and_what_fits_it_are_told(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(cards, "fitting_recipes", lambda base, device: f"{base} on {device}")
    tell_machine("sd15")
    assert capsys.readouterr().out == "Tesla T4: sd15 on cuda\n"


def test_what_fits_is_the_ladders_first_that_the_card_has_room_for(monkeypatch):
    ladder = cards.forecast_ladder(cards.plan("dreambooth", "sd15"), fast="bf16")
    monkeypatch.setattr(cards, "forecast_ladder", lambda settings, device: ladder)
    sizes = [cards.needed_bytes(one) for one in ladder]
    assert sizes[1] < sizes[0]
    for room, words in (
        (sizes[0], "DreamBooth: plain"),
        (sizes[1], f"DreamBooth: {cards.recipe_name(ladder[1]['given_up'])}"),
        (min(sizes) - 1, "DreamBooth: no recipe fits"),
    ):
        monkeypatch.setattr(cards, "usable_bytes_now", lambda device, room=room: room)
        assert cards.fitting_recipes("sd15", torch.device("cuda")).endswith(words)


def test_without_a_gpu_it_says_where_to_choose_one_but_not_for_the_pocket_base(capsys):
    tell_machine("pocket")
    assert not capsys.readouterr().out
    tell_machine("sd15")
    assert "No GPU was found" in capsys.readouterr().out


def test_with_torch_numpy_and_ipykernel_alone_all_else_is_missing(monkeypatch):
    def bare(name):
        if name in ("torch", "numpy", "ipykernel"):
            return version(name)
        raise PackageNotFoundError(name)

    monkeypatch.setattr(set_up, "version", bare)
    missing = {line.partition(">=")[0] for line in unmet(ROOT / "requirements.txt")}
    assert missing == {*set_up.WITH_VERSION, *set_up.ANY_VERSION}
    assert {"matplotlib", "ipywidgets", "pillow", "psutil", "bitsandbytes"} <= missing
