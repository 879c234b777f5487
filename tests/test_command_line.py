"""python -m lib: every command, its help and examples, and a sentence where something is wrong."""

import re
import shlex
import subprocess
import sys

import pytest
import torch
import typer
from conftest import ROOT

from lib.__main__ import app, main
from lib.convert.adapter import read_adapter
from lib.course import runner, sweeping
from lib.files.errors import BadInput

COMMANDS = typer.main.get_command(app).commands
NAMES = (
    "course prepare train forecast export import merge extract compose sweep compare to-kohya"
    " from-kohya card"
).split()


def help_of(name, capsys):
    assert main([name, "--help"]) == 0
    return capsys.readouterr().out


def examples(text):
    """The commands in a help text, those of two lines as one."""
    joined = re.sub(r"\\\n\s*", " ", text)
    lines = [line.split("  #")[0].strip() for line in joined.splitlines()]
    return [line for line in lines if line.startswith("python -m lib ")]


def test_the_commands_are_these(capsys):
    assert list(COMMANDS) == NAMES
    assert main([]) == 0
    shown = capsys.readouterr().out
    for name in NAMES:
        [line] = re.findall(rf"^  {name} +(\S.*)$", shown, re.MULTILINE)
        assert line.endswith(".") and "..." not in line, f"{line} is cut off in a list"


@pytest.mark.parametrize("name", NAMES)
def test_help_has_an_example_that_can_be_typed(name, capsys):
    found = examples(help_of(name, capsys))
    assert found and all(line.split()[3] == name for line in found)
    for line in found:
        COMMANDS[name].make_context(name, shlex.split(line)[4:])  # raises for what there is not


def test_help_waits_for_no_torch():
    program = (
        "import sys; from lib.__main__ import main; main(['--help']); main(['train', '--help']);"
        " slow = {'torch', 'rich', 'numpy', 'diffusers', 'papermill'};"
        " sys.exit(str(slow & set(sys.modules)) if slow & set(sys.modules) else 0)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["trian"], "No such command 'trian'"),
        (["train", "--stepps", "3"], "No such option: --stepps"),
        (["export", "run"], "Missing option '--out'"),
        (["export"], "Missing argument 'source'"),
        (["forecast", "--resolution", "many"], "Invalid value for '--resolution'"),
        (["extract", "run", "--to", "kohya", "--out", "x", "--rank", "1.5"], "'--rank'"),
        (["course", "extra"], "extra"),
    ],
)
def test_a_bad_option_is_one_sentence(arguments, said, capsys):
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert said in err and err.count("\n") == 1 and not out
    assert re.search(r"See `python -m lib( [a-z]+)? --help`\.\n$", err)


def test_what_a_room_refuses_is_one_sentence(tmp_path, capsys):
    assert main(["train", str(tmp_path / "none.json")]) == 1
    out, err = capsys.readouterr()
    assert "none.json" in err and err.count("\n") == 1 and not out


@pytest.mark.parametrize("error", [runner.CourseFailed("it stopped"), BadInput("it stopped")])
def test_a_course_that_fails_is_one_sentence(error, monkeypatch, capsys):
    monkeypatch.setattr(runner, "run_course", raising(error))
    assert main(["course"]) == 1 and capsys.readouterr().err == "it stopped\n"


@pytest.mark.parametrize(
    "module, function, arguments, said",
    [
        (
            runner,
            "run_course",
            ["course", "--output", "here"],
            "what was done until here is in here",
        ),
        (sweeping, "run_sweep", ["sweep", "a.ipynb"], "what is finished is in runs/sweep"),
    ],
)
def test_an_interrupt_ends_with_130(module, function, arguments, said, monkeypatch, capsys):
    monkeypatch.setattr(module, function, raising(KeyboardInterrupt()))
    assert main(arguments) == 130
    err = capsys.readouterr().err.strip()
    assert err.startswith("Stopped; ") and said in err and "\n" not in err


def raising(error):
    def function(*_):
        raise error

    return function


def test_compose_writes_the_exact_sum_of_two_loras(tmp_path, capsys):
    sources = [
        ROOT / "data" / "adapters" / f"{name}.safetensors" for name in ("clothing", "lighting")
    ]
    out = tmp_path / "both.safetensors"
    arguments = [str(sources[0]), f"{sources[1]}=0.5", "--to", "kohya", "--out", str(out)]
    assert main(["compose", *arguments]) == 0
    assert f"written: {out}" in capsys.readouterr().out
    both, first, second = (read_adapter(path, layers=1) for path in (out, *sources))
    name = "down_blocks.2.attentions.0.transformer_blocks.0.attn2.to_q"
    for part, layer, update in both:
        if layer == name:
            wanted = first.layers[part][name].delta() + second.layers[part][name].delta(0.5)
            torch.testing.assert_close(update.delta(), wanted, atol=1e-3, rtol=1e-2)
            return
    pytest.fail(f"{name} is not in the file")
