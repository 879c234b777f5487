"""The command line is quiet, tells how far long work is, and writes the bare base as one file."""

import subprocess
import sys
import warnings

import pytest
import torch
from adapters import tuned_run
from conftest import ROOT
from safetensors.torch import load_file

from lib.__main__ import main
from lib.convert import merging
from lib.convert.interchange import extract
from lib.files import text
from lib.files.quiet import quieten
from lib.files.text import progress_lines
from lib.models.base_weights import open_base_weights
from lib.models.single_file import layout


@pytest.mark.slow
def test_a_command_prints_nothing_beside_its_result(tmp_path):
    """Warnings of transformers and bitsandbytes stood before it and looked like errors."""
    source = str(ROOT / "data" / "adapters" / "clothing.safetensors")
    out = str(tmp_path / "x.safetensors")
    command = [sys.executable, "-m", "lib", "compose", source, "--to", "diffusers", "--out", out]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert ended.returncode == 0 and ended.stderr == ""
    assert "212 of 212 keys will load in diffusers\n" in ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["notebook", "notebook.ipynb", "notebook.ipynb.txt"])
def test_what_is_refused_is_one_line_in_a_shell_too(tmp_path, name):
    """Papermill warned of a name without ending, before the sentence."""
    (tmp_path / name).write_text("{}")
    command = [sys.executable, "-m", "lib", "sweep", str(tmp_path / name)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert ended.returncode == 1 and ended.stdout == ""
    [line] = ended.stderr.splitlines()
    assert line.startswith(f"The notebook {tmp_path / name} cannot be read")


def test_warnings_of_libraries_are_silent_and_ours_are_not(monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        quieten()
        noisy = ("peft.tuners.lora", "diffusers", "bitsandbytes.backends", "papermill.iorw")
        for module in (*noisy, "nbformat", "lib.x", "pefty"):
            warnings.warn_explicit("w", UserWarning, "f.py", 1, module, registry={})
    assert len(said) == 2
    assert text.os.environ["TRANSFORMERS_VERBOSITY"] == "info", "who asks for more gets it"


def test_progress_is_told_where_it_takes_long_and_not_where_it_is_quick(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(text.time, "monotonic", lambda: now[0])
    tell = progress_lines("writing x")
    for done in range(1, 11):
        now[0] += 3.0
        tell(done, 10)
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.splitlines()[0] == (
        "writing x: 2 of 10, 0:06 elapsed, about 0:24 left"
    )
    assert len(printed.err.splitlines()) == 5
    tell = progress_lines("writing y")
    for done in range(1, 11):
        now[0] += 0.1
        tell(done, 10)
    assert capsys.readouterr().err == ""


def test_writing_and_extracting_tell_each_tensor(tiny, tmp_path, dataset, monkeypatch):
    told = []

    def lines(what):
        return lambda done, total: told.append((what, done, total))

    folder = tiny("sd1")[0]
    run = tuned_run(folder, tmp_path / "dreambooth", dataset)
    monkeypatch.setattr("lib.convert.interchange.progress_lines", lines)
    extract(run, 4)
    monkeypatch.setattr(merging, "progress_lines", lines)
    merging.merge(run, "checkpoint", tmp_path / "x.safetensors")
    extracting = [row for row in told if row[0] == f"extracting from {run}"]
    writing = [row for row in told if row[0] == "writing x.safetensors"]
    weights = sum(map(len, open_base_weights(str(folder)).shapes.values()))
    assert [done for _, done, _ in extracting] == list(range(1, extracting[0][2] + 1))
    assert len(writing) <= weights and {total for *_, total in writing} == {weights}
    assert len(writing) > 0.9 * weights


def test_the_time_left_is_told_from_the_first_tensor_on(tiny, tmp_path, monkeypatch):
    """Imports and the check of all keys came before it: of a second's work 3 hours were left."""
    order, readers = [], merging.checkpoint_readers
    monkeypatch.setattr(
        merging, "checkpoint_readers", lambda *given: order.append("checked") or readers(*given)
    )
    monkeypatch.setattr(
        merging, "progress_lines", lambda what: order.append(what) or (lambda done, total: None)
    )
    model = merging.whole_model([], base=str(tiny("sd1")[0]))
    merging.write_model(model, "checkpoint", tmp_path / "x.safetensors")
    assert order == ["checked", "writing x.safetensors"]


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_bare_base_is_written_as_one_file(tiny, tmp_path, capsys, family):
    folder, out = str(tiny(family)[0]), tmp_path / "base.safetensors"
    command = ["merge", "--base", folder, "--to", "checkpoint", "--out", str(out)]
    assert main(command) == 0
    assert ", 0 of them not the base's" in capsys.readouterr().out
    base, found = open_base_weights(folder), load_file(out)
    entries = layout(base)
    assert found.keys() == entries.keys()
    for key, entry in entries.items():
        wanted = entry.make(base.read)
        assert torch.equal(found[key], wanted.half() if wanted.is_floating_point() else wanted)
    assert open_base_weights(str(out)).fingerprint() == base.fingerprint()


def test_nothing_at_all_is_one_sentence(tmp_path, capsys):
    out = tmp_path / "x.safetensors"
    assert main(["merge", "--to", "checkpoint", "--out", str(out)]) == 1
    assert "name LoRAs, or with --base the model to write bare" in capsys.readouterr().err
    assert not out.exists()
