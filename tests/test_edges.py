"""What stands at the edges: names as long as a disk takes, terminals and paths that are not UTF-8,
the folder that one stands in, a reader that reads no further. None of them ends in a traceback.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from lib.__main__ import main
from lib.config.settings import Settings
from lib.course.parameters import check_parameters
from lib.course.runner import course
from lib.files.errors import BadInput
from lib.files.json_file import read_json, write_json
from lib.files.safetensors_file import open_weights
from lib.files.text import say
from lib.files.whole_writes import whole_file, whole_folder
from lib.training import loop

NOT_UTF8 = os.fsdecode(b"runs/\xff")


def command(*arguments, cwd=ROOT, **environment):
    """`python -m lib` in a Python of its own: (exit code, output, errors) as bytes."""
    ended = subprocess.run(
        [sys.executable, "-m", "lib", *arguments],
        cwd=cwd,
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.parametrize("length", [251, 255])
def test_a_name_as_long_as_a_disk_takes_is_written_and_replaced(tmp_path, length):
    name = "é" + "n" * (length - 2)
    for text in ("one", "two"):
        with whole_folder(tmp_path / name) as unfinished:
            (unfinished / "a").write_text(text)
    assert (tmp_path / name / "a").read_text() == "two"
    with whole_file(tmp_path / "folder" / name) as unfinished:
        unfinished.write_text("three")
    assert (tmp_path / "folder" / name).read_text() == "three"
    assert [path.name for path in tmp_path.iterdir() if path.name[0] == "."] == []


def test_a_run_of_such_a_name_trains_and_is_set_aside(make, tmp_path):
    first = make(output=str(tmp_path / ("r" * 251)), steps=1)
    run = loop.train(first)
    loop.train(first.replace(seed=1))
    others = [path for path in tmp_path.iterdir() if path.name.endswith("r_before_1")]
    assert Settings.load(run / "settings.json").seed == 1 and len(others) == 1
    assert read_json(others[0] / "settings.json")["seed"] == 0


@pytest.mark.parametrize("name", ["base", "data", "output"])
@pytest.mark.parametrize(
    "value, said",
    [
        ("x/" + "n" * 256, "has a name of 256 bytes in it, and a disk takes 255: choose a shorter"),
        ("é" * 128, "has a name of 256 bytes"),
        ("a\0b", "has a zero byte in it"),
        (NOT_UTF8, "is runs/�, which is no text in this system's encoding: write it in plain"),
    ],
)
def test_a_path_that_no_disk_or_text_can_hold_is_one_sentence(name, value, said):
    with pytest.raises(BadInput) as refused:
        Settings(**{"method": "lora", "data": "d", "output": "o"} | {name: value})
    assert f"Setting '{name}' {said}" in str(refused.value)
    if name == "output":
        with pytest.raises(BadInput, match="Setting 'subject' "):
            check_parameters({"subject": value})


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "n" * 300),
        ("course", "--subject", "n" * 300),
        ("forecast", "--base", "n" * 300),
        ("card", "n" * 300, "--out", "x"),
        ("sweep", "n" * 300),
    ],
)
def test_no_command_has_a_traceback_for_a_name_that_is_too_long(arguments, capsys):
    assert main(list(arguments)) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize("path", ["~nobody-of-that-name/x", "circle", "circle/x", "/dev/null"])
@pytest.mark.parametrize(
    "words",
    [
        "train PATH",
        "prepare PATH --class-noun toy --out out",
        "prepare photos --class-noun toy --out PATH",
        "course --subject PATH --output out",
        "course --output PATH",
        "forecast --base PATH",
        "import PATH --base pocket --out out",
        "export PATH --to kohya --out out.safetensors",
        "merge PATH --to checkpoint --out out.safetensors",
        "sweep PATH",
        "compare PATH",
        "to-kohya PATH --out out",
        "from-kohya PATH --out out",
        "card PATH --out out",
    ],
)
def test_a_path_that_leads_nowhere_is_one_sentence(words, path, tmp_path, monkeypatch, capsys):
    """Python raises what is no OSError for a user it does not know and for links in a circle."""
    monkeypatch.chdir(tmp_path)
    Path("circle").symlink_to("circle")
    assert main([path if word == "PATH" else word for word in words.split()]) == 1
    said = capsys.readouterr().err.strip()
    assert said and len(said.splitlines()) == 1, said
    assert sorted(each.name for each in tmp_path.iterdir()) == ["circle"], "nothing is made"


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1"])
def test_a_terminal_that_lacks_a_character_shows_another(encoding, tmp_path):
    (tmp_path / "Größe ❄.json").write_text("[")
    environment = {"PYTHONIOENCODING": encoding}
    code, shown, said = command("train", "Größe ❄.json", cwd=tmp_path, **environment)
    assert code == 1 and b"cannot be read as JSON" in said and b"Traceback" not in said
    code, shown, said = command("train", "--help", **environment)
    assert code == 0 and shown and not said


def test_a_progress_line_reaches_any_terminal(monkeypatch, tmp_path):
    with open(tmp_path / "log", "w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        say("photo ❄.png of \udcff")
    assert (tmp_path / "log").read_text() == "[stage] photo ?.png of ?\n"


def test_a_reader_that_reads_no_further_gets_no_traceback():
    """As in `python -m lib forecast | head -1`: the pipe's other end is closed at once."""
    running = subprocess.Popen(
        [sys.executable, "-m", "lib", "forecast", "--base", "sd15", "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    running.stdout.close()
    said = running.stderr.read()
    running.wait()
    assert b"Traceback" not in said and b"Exception" not in said


@pytest.mark.parametrize("to", ["kohya", "checkpoint"])
def test_a_weight_file_of_a_name_that_is_not_utf8_is_blamed_on_the_name(tmp_path, capsys, to):
    """It was "cut off, too long or its header is wrong; copy or download it again"."""
    source = str(ROOT / "data" / "adapters" / "clothing.safetensors")
    bad = str(tmp_path / os.fsdecode(b"a\xff.safetensors"))
    assert main(["export", source, "--to", to, "--out", bad]) == 1
    said = capsys.readouterr().err
    assert "a\ufffd.safetensors is no text in UTF-8" in said and "rename it" in said
    assert ".part" not in said and not list(tmp_path.iterdir())
    shutil.copyfile(source, bad)
    assert main(["export", bad, "--to", to, "--out", str(tmp_path / "b.safetensors")]) == 1
    assert "is no text in UTF-8" in capsys.readouterr().err
    assert main(["merge", "--base", bad, "--to", "diffusers", "--out", str(tmp_path / "c")]) == 1
    assert "is no text in UTF-8" in capsys.readouterr().err


def test_a_title_that_is_not_utf8_is_written_as_it_can_be(tmp_path, capsys):
    source = str(ROOT / "data" / "adapters" / "clothing.safetensors")
    out = str(tmp_path / "a.safetensors")
    title = os.fsdecode(b"caf\xe9")
    assert main(["compose", source, "--to", "kohya", "--out", out, "--title", title]) == 0
    assert open_weights(out).metadata["modelspec.title"] == "caf?"


def test_names_that_are_not_utf8_pass_through_json(tmp_path):
    write_json(tmp_path / "a.json", {"file": NOT_UTF8, "word": "Größe"})
    assert read_json(tmp_path / "a.json") == {"file": NOT_UTF8, "word": "Größe"}
    write_json(tmp_path / "b.json", {"word": "Größe"})
    assert "Größe" in (tmp_path / "b.json").read_text("utf-8"), "readable, where it can be"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": '])
def test_json_that_cannot_be_read_is_one_sentence(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(BadInput, match="a.json cannot be read as JSON"):
        read_json(tmp_path / "a.json")


def test_the_mark_that_windows_editors_write_is_no_fault(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"rank": 4}), encoding="utf-8-sig")
    assert read_json(tmp_path / "a.json") == {"rank": 4}


def test_the_run_folder_that_one_stands_in_is_returned_gone_on_with_and_not_set_aside(
    make, tmp_path, monkeypatch, capsys
):
    first = make(steps=2, save_every=1, output=str(tmp_path / "lora"))
    loop.train(first, watchers=[lambda state: state.stop()])
    monkeypatch.chdir(tmp_path / "lora")
    for output in (".", "../lora/samples/.."):
        assert loop.train(first.replace(output=output)).resolve() == tmp_path / "lora"
    said = capsys.readouterr().out
    assert "going on after step 1" in said and "has been trained already" in said
    with pytest.raises(BadInput, match="is the folder that you stand in, which cannot be set"):
        loop.train(first.replace(output=".", seed=1))
    assert Settings.load("settings.json").seed == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lora"]


def test_the_course_replaces_no_notebook_of_its_own(tmp_path):
    notebook = Path(tmp_path, "01_mine.ipynb")
    notebook.write_text("{}")
    with pytest.raises(BadInput, match="is where the notebooks lie"):
        course({}, tmp_path, [notebook])
    assert notebook.read_text() == "{}"
