"""Every parameter of every notebook is checked by one piece before anything slow, and a relative
path means the same to course, sweep and papermill.
"""

import ast
import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import IPython
import nbformat
import pytest
from conftest import ROOT
from PIL import Image

import lib
from lib.config import described
from lib.course import runner, sweeping
from lib.course.parameters import SETTINGS, Parameters, check_parameters, found_paths
from lib.course.set_up import start
from lib.course.set_up_cell import set_up_cell
from lib.evaluation.advice import Needs
from lib.evaluation.judge import PAIRS
from lib.files.errors import BadInput

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def parameters_of(path):
    """{parameter: value} of a notebook's parameters cell, and the names that it assigns later."""
    given, later = {}, set()
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type != "code":
            continue
        if "parameters" in cell.metadata.get("tags", ()):
            exec(cell.source, {}, given)
            continue
        nodes = ast.walk(ast.parse(cell.source))
        stored = (n for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
        later |= {node.id for node in stored}
    return given, later


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_parameter_is_known_and_stays_what_it_is(path):
    given, later = parameters_of(path)
    known = {*described(Parameters), *SETTINGS, *described(Needs)}
    assert given and given.keys() <= known, "an unknown one would not be checked"
    assert not given.keys() & later, "the set-up cell can run again and checks it as it then is"
    check_parameters(given)
    for name, value in given.items():
        wrong = 7 if isinstance(value, str) else "4,0"
        with pytest.raises(BadInput, match=f"'{name}' must be .*, but it is {wrong!r} "):
            check_parameters(given | {name: wrong})


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("class_images", 10.0, "must be a whole number, but it is 10.0 (float): write it as one."),
        ("class_images", 0, "is 0, outside 1 to 10000"),
        ("sample_steps", -1, "is -1, outside 1 to 1000: choose a value in that range. 0 leaves"),
        ("guidance", "4,0", "must be a number, but it is '4,0' (str): write it as one."),
        ("seed", -1, "is -1, outside 0 to"),
        ("held_out", -1, "is -1, outside 0 to"),
        ("steps", -5, "is -5, outside 1 to 100000: choose a value in that range."),
        ("prior_weight", -0.5, "is -0.5, outside 0.0 to 10.0"),
        ("ranks", 4, "must be a list of whole numbers, but it is 4 (int): write it as one."),
        ("seeds", [0, "1"], "must be a list of whole numbers, but in it is '1' (str)"),
        ("subjects", ["a", 2], "must be a list of texts, but in it is 2 (int)"),
        ("workers", 0, "is 0, outside 1 to 10000"),
        ("aspect", "round", "is 'round': it must be one of square, photo."),
        ("prompts", "all", "must be one of full, course"),
        ("judge", "dino", "must be one of , pocket, real"),
        ("pictures", 3, "is 3, outside 4 to"),
        ("identifier", 123, "must be a text, but it is 123 (int)"),
        ("subject", " ", "is empty: name a folder."),
        ("output", "", "is empty: name a folder."),
        ("learning_rate", float("nan"), "outside"),
        ("class_images", True, "must be a whole number"),
    ],
)
def test_a_wrong_value_is_one_sentence(name, value, said):
    with pytest.raises(BadInput) as refused:
        check_parameters({name: value})
    assert str(refused.value).startswith(f"Setting '{name}'") and said in str(refused.value)


@pytest.mark.parametrize(
    "given, said",
    [
        ({"kind": "Character"}, "kind 'Character' is unknown.*did you mean character"),
        ({"identifier": "zwx zwx"}, "identifier 'zwx zwx' is more than one word"),
        ({"identifier": "z" * 41}, "identifier is 41 characters long"),
        ({"class_noun": "to/y"}, "class_noun 'to/y' holds '/'"),
        ({"class_noun": " "}, "class_noun is empty"),
        ({"class_noun": "zwx toy", "identifier": "zwx"}, "'zwx' is in the class noun too"),
        ({"ranks": [4, 0]}, "Setting 'rank' is 0, outside 1 to"),
        ({"seeds": [0, -1]}, "Setting 'seed' is -1, outside 0 to"),
    ],
)
def test_words_and_lists_are_checked_before_a_base_is_loaded(given, said):
    with pytest.raises(BadInput, match=said):
        check_parameters(given)
    check_parameters({"kind": "", "identifier": "zwx-", "class_noun": "", "base": "pocket"})
    check_parameters({"kind": "style", "class_noun": "tea pot", "identifier": "", "ranks": [1]})


def test_zero_means_the_presets_value_and_functions_are_no_values():
    check_parameters({"steps": 0, "rank": 0, "learning_rate": 0.0, "prior_weight": -1.0})
    check_parameters({"prompts": print, "fidelity": json, "unknown": object()})


def test_the_judges_are_those_that_there_are():
    assert set(described(Parameters)["judge"].choices) == {"", *PAIRS}


@pytest.fixture
def shell(monkeypatch):
    """What stands in for a notebook's Python: its variables, and what shows its errors."""
    made = SimpleNamespace(user_ns={}, set_custom_exc=lambda *_: None)
    monkeypatch.setattr(IPython, "get_ipython", lambda: made)
    return made


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder of photos, `mine/photos` from where one stands."""
    folder = tmp_path / "mine" / "photos"
    folder.mkdir(parents=True)
    for k in range(3):
        Image.effect_noise((90, 90), 60 + k).convert("RGB").save(folder / f"{k}.png")
    monkeypatch.chdir(tmp_path)
    return folder


def test_the_set_up_of_every_notebook_checks_and_finds(shell, photos):
    assert set_up_cell("").endswith("from lib import start\n\nstart(FOLDER)") and lib.start is start
    shell.user_ns = {"guidance": "4,0"}
    with pytest.raises(BadInput, match="Setting 'guidance' must be a number"):
        start(Path.cwd())
    shell.user_ns = {"subject": "mine/photos", "base": "pocket", "masks": ""}
    start(Path.cwd())
    assert shell.user_ns == {"subject": str(photos), "base": "pocket", "masks": ""}
    shell.user_ns = {"kohya_lora": "mine/absent.safetensors"}
    with pytest.raises(BadInput, match="'kohya_lora' is mine/absent.safetensors, which is not the"):
        start(Path.cwd())


def test_a_relative_path_counts_from_the_course_or_from_where_one_stands(photos, tmp_path):
    ours = {"subject": "data/subjects/character", "base": "data/pocket"}
    assert found_paths(ours, ROOT) == found_paths(ours, tmp_path) == {}
    hub = {"base": "owner/model", "subject": "no/such"}
    assert found_paths(hub, tmp_path) == {}, "to be refused by who looks for it"
    both = {"subject": "mine/photos", "base": "mine"}
    assert found_paths(both, tmp_path) == {
        "subject": str(photos),
        "base": str(photos.parent),
    }
    home = {"subject": "~/photos", "output": "~/runs", "kohya_lora": "~/a.safetensors"}
    with pytest.raises(BadInput, match="'kohya_lora' is .*/a.safetensors, which is not there"):
        found_paths(home, tmp_path)
    there = {"subject": "~/photos", "output": "~/runs", "base": "~", "judge": "~/j", "masc": "~/m"}
    assert found_paths(there | {"kohya_lora": ""}, tmp_path) == {
        name: os.path.expanduser(path) for name, path in there.items()
    }
    (tmp_path / "data" / "subjects").mkdir(parents=True)
    with pytest.raises(BadInput, match="'subject' is data/subjects, which is .* and .*: write"):
        found_paths({"subject": "data/subjects"}, tmp_path)


def small_notebook(path):
    """A notebook with our set-up cell and two parameters."""
    cells = [
        nbformat.v4.new_code_cell("subject = ''\noutput = '.'\nsteps = 0"),
        nbformat.v4.new_code_cell(set_up_cell("")),
    ]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def test_course_and_sweep_find_the_same_and_refuse_before_any_python(photos, tmp_path, monkeypatch):
    source, met = small_notebook(tmp_path / "one.ipynb"), []

    def run(source, executed, parameters, progress):
        met.append(parameters["subject"])
        (Path(parameters["output"]) / "summary.json").write_text('{"dino": 1}')
        executed.write_text(source.read_text())

    monkeypatch.setattr(runner, "run_notebook", run)
    monkeypatch.setattr(sweeping, "run_notebook", run)
    monkeypatch.setattr(sweeping, "sweep", sweep_here(sweeping.sweep))
    sweeping.run_sweep(source, ["subject=mine/photos"], output="sweep")
    monkeypatch.setattr(runner, "check_subject", lambda folder, *_: met.append(str(folder)))
    monkeypatch.setattr(runner, "report", lambda *_: "")
    runner.course({"subject": "mine/photos"}, "course", [source], io.StringIO())
    assert met == [str(photos)] * 3
    for wrong in (
        lambda: runner.course({"steps": 2.5}, "out", [source], io.StringIO()),
        lambda: sweeping.run_sweep(source, ["steps=2.5"], output="out"),
    ):
        with pytest.raises(BadInput, match="Setting 'steps' must be a whole number, but it is 2.5"):
            wrong()
    assert len(met) == 3 and not Path("out").exists()


def sweep_here(sweep):
    """`sweep` without processes of its own."""
    return lambda jobs, work, folder, pool, say: sweep(jobs, work, folder, None, say=say)
