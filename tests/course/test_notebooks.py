"""The form of the notebooks, what they refuse and import, and those that need no whole course: 00
and the solutions.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from types import ModuleType

import nbformat
import pytest
from conftest import ROOT
from made_photos import picture
from nbclient import NotebookClient
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from safetensors.torch import load_file
from whole_course import check_run, execute, printed, set_up_again

from benchmarks.pages import QUESTIONS
from lib.course.runner import NOTEBOOKS
from lib.course.set_up import unmet
from lib.course.set_up_cell import badge, repository, set_up_cell, set_up_cells, write_set_up_cell
from lib.dataset import preparation
from lib.dataset.class_images import PLACES, SHOWN, class_prompts
from lib.dataset.imagefolder import load_dataset
from lib.dataset.preparation import prepare, read_words
from lib.evaluation.fidelity import protocol
from lib.files.errors import BadInput

FEW = {"sample_steps": 1}
NAMES = list(NOTEBOOKS)
JOB = "one_run"  # what 06 sweeps
START = "00_start_here"  # not a part of `make course`
ALONE = {"steps": 4, "class_images": 4, **FEW}
APPENDIX = "appendix_recipes"  # stands beside the course, needs no run


@pytest.mark.slow
def test_00_works_alone_and_answers(tmp_path):
    notebook = execute(START, tmp_path / "out", tmp_path, twice=True, **ALONE)
    check_run(tmp_path / "out" / "lora", "lora", steps=4, samples=8)
    check_run(tmp_path / "out" / "dreambooth", "dreambooth", steps=4, samples=8)
    assert load_file(tmp_path / "out" / "extracted.safetensors"), "a file to take home"
    [shown] = [c for c in notebook.cells if "key-picture" in c.metadata.get("tags", ())]
    [alt] = [m["alt"] for o in shown.outputs for m in o.metadata.values()]
    assert "base model (floor), LoRA, DreamBooth, DreamBooth cut to a LoRA" in alt
    text = printed(notebook)
    assert "one subject and one" in text and "DINO" in text and " MiB" in text
    assert "widgets" not in notebook.metadata


def test_the_report_opens_with_the_picture_of_all_contestants():
    tagged = [
        (path.stem, cell.source)
        for path in sorted((ROOT / "notebooks").glob("0[1-6]_*.ipynb"))
        for cell in nbformat.read(path, 4).cells
        if "key-picture" in cell.metadata.get("tags", ())
    ]
    name, source = tagged[-1]  # the last one is moved to the top
    assert name == "04_comparison" and "result.images" in source


@pytest.mark.slow
@pytest.mark.usefixtures("warm_kernels")
def test_01_keeps_the_photos_aspect_where_it_is_asked_to(tmp_path):
    (tmp_path / "photos").mkdir()
    for k in range(5):
        picture(k, (400, 300) if k else (300, 400)).save(tmp_path / "photos" / f"{k}.png")
    own = {
        "subject": str(tmp_path / "photos"),
        "class_noun": "toy",
        "aspect": "photo",
        "class_images": 10,
        "held_out": 0,
    }
    execute("01_dataset_prep", tmp_path / "out", tmp_path, **own, **FEW)
    dataset = load_dataset(tmp_path / "out" / "data")
    assert (
        set(dataset.sizes) == {item.size for item in dataset.class_images} == {(72, 56), (56, 72)}
    )


SOLVED = sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.usefixtures("warm_kernels")
@pytest.mark.parametrize("path", SOLVED, ids=lambda path: path.stem)
def test_the_solutions_run(path, tmp_path):
    few = {"output": str(tmp_path / "out"), "steps": 2, "class_images": 2} | FEW
    run_in_place(set_up_again(given(path, few)))


def test_every_notebook_of_the_course_has_its_exercises_worked_out():
    assert [path.stem for path in SOLVED] == NAMES


@pytest.mark.parametrize("path", SOLVED, ids=lambda path: path.stem)
def test_each_exercise_has_a_hint_and_a_worked_answer(path):
    exercises = nbformat.read(ROOT / "notebooks" / path.name, as_version=4).cells[-1].source
    asked = re.findall(r"^\d\. .*", exercises, re.MULTILINE)
    assert f"(solutions/{path.name})" in exercises
    assert all("<details><summary>Hint</summary>" in line for line in asked)
    solved = nbformat.read(path, as_version=4)
    nbformat.validate(solved)
    assert setup_cell(solved) == set_up_cell(repository())
    answers = [c for c in solved.cells if c.source.startswith("## ")]
    assert [cell.source.split(".")[0] for cell in answers] == [
        f"## {k}" for k in range(1, len(asked) + 1)
    ]
    for cell in solved.cells:
        assert cell.cell_type == "markdown" or (
            not cell.outputs and len(cell.source.splitlines()) <= 25
        )


def given(path, parameters):
    """The notebook at `path` with papermill's cell of `parameters` in it."""
    source = load_notebook_node(str(path))
    return parameterize_notebook(source, parameters, kernel_name="python3")


def run_in_place(notebook):
    """Run a notebook as if it lay in the folder of the notebooks."""
    folder = {"metadata": {"path": str(ROOT / "notebooks")}}
    NotebookClient(notebook, kernel_name="python3", startup_timeout=180, resources=folder).execute()


@pytest.mark.parametrize(
    "path", sorted((ROOT / "notebooks").rglob("*.ipynb")), ids=lambda path: path.stem
)
def test_what_0_leaves_to_the_base_never_reaches_its_settings_as_0(path):
    code = "\n".join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code")
    for call in re.findall(
        r"(?:preset|replace)\((?:[^()]|\([^()]*\))*\)|recipe = dict\([^()]*\)", code
    ):
        for name in ("sample_steps", "guidance"):
            assert f"{name}={name}," not in call and f"{name}={name})" not in call, call


@pytest.mark.slow
@pytest.mark.usefixtures("warm_kernels")
@pytest.mark.parametrize(
    "name, parameters, said",
    [
        (
            "01_dataset_prep",
            {"subject": "no/such/folder"},
            "photo folder no/such/folder does not exist; check the path",
        ),
        (
            "01_dataset_prep",
            {"class_images": 10.0},
            "Setting 'class_images' must be a whole number, but it is 10.0 (float): write it as",
        ),
        (
            "02_lora_training",
            {"steps": -5},
            "Setting 'steps' is -5, outside 1 to 100000: choose a value in that range.",
        ),
        (
            "03_dreambooth_training",
            {"base": "pokcet"},
            "There is no base model 'pokcet': use 'pocket', a diffusers folder, a .saf",
        ),
        (
            "04_comparison",
            {},
            "does not exist: train first, LoRA with notebook 02 and DreamBooth with notebook 03",
        ),
        (
            "05_compose_and_ship",
            {},
            "does not exist: train first, LoRA with notebook 02 and DreamBooth with notebook 03",
        ),
    ],
)
def test_a_bad_parameter_is_one_sentence(name, parameters, said, tmp_path):
    with pytest.raises(BadInput) as refused:
        execute(name, tmp_path / "out", tmp_path, **parameters)
    assert said in str(refused.value)
    shown = [
        o
        for c in nbformat.read(tmp_path / f"{name}.ipynb", 4).cells
        for o in c.get("outputs", ())
        if o.output_type == "error"
    ]
    trace = "\n".join(shown[-1].traceback)
    assert said in trace and "Traceback" not in trace and len(trace) < 400, (
        "the reader sees the sentence, not a wall"
    )
    assert not (tmp_path / "out").exists()


def test_an_unknown_parameter_is_one_sentence(tmp_path):
    with pytest.raises(
        BadInput,
        match=(
            r"02_lora_training.ipynb has no parameter named stepps: correct the name .* which has"
            r" subject"
        ),
    ):
        execute("02_lora_training", tmp_path, tmp_path, stepps=3)


# --- their form


@pytest.fixture(params=NAMES)
def source(request):
    return nbformat.read(ROOT / "notebooks" / f"{request.param}.ipynb", as_version=4)


def test_the_start_sends_a_reader_to_every_notebook():
    first, *_, last = nbformat.read(ROOT / "notebooks" / f"{START}.ipynb", as_version=4).cells
    assert "**The question:**" in first.source and "**Takes** about" in first.source
    assert all(f"({name}.ipynb)" in last.source for name in NAMES)
    assert "**You can now decide**" in last.source


def test_04_has_its_parts_in_order_and_few_cells():
    """What it is to be read for comes first, and at most about forty cells."""
    cells = nbformat.read(ROOT / "notebooks/04_comparison.ipynb", as_version=4).cells
    text = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    assert len(cells) <= 42
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == [
        "Parameters",
        "Set-up",
        "The conclusion, to be checked",
        "Cost",
        "Fidelity",
        "Forgetting",
        "Many subjects",
        "A verdict on every claim",
        "So which one?",
        "Exercises",
    ]


def setup_cell(notebook):
    [cell] = set_up_cells(notebook)
    return cell.source


def test_it_says_what_it_teaches(source):
    first, last = source.cells[0].source, source.cells[-1].source
    assert "**You will learn**" in first and re.search(
        r"\*\*Takes\*\* about .*(second|minute)s? .*\b(GiB|MiB)\b", first, re.DOTALL
    )
    assert last.startswith("## Exercises") and len(re.findall(r"^\d\. ", last, re.MULTILINE)) >= 4
    code = [c.source for c in source.cells if c.cell_type == "code"]
    assert sorted(len(c.splitlines()) for c in code)[len(code) // 2] <= 12, (
        "most cells hold one idea"
    )


@pytest.mark.parametrize("name", [*NAMES, APPENDIX])
def test_its_predictions_can_be_answered_and_stand_beside_the_result(name):
    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
    prose = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    assert "Predict first" not in prose and "Write down now" not in prose
    asked, answered = [], []
    for number, cell in enumerate(cells):
        for line in cell.source.splitlines() if cell.cell_type == "code" else ():
            if found := re.match(r"(\w+) = predict\(", line):
                asked.append(found[1])
            if found := re.match(r" *(\w+)\.beside\(", line):
                assert found[1] in asked, f"cell {number} shows what nobody was asked"
                answered.append(found[1])
    assert len(asked) >= 3 and sorted(asked) == sorted(answered), "each is asked and shown once"


@pytest.mark.parametrize("name", NAMES)
def test_it_says_its_question_what_it_decides_and_where_to_go(name):
    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
    assert f"**The question:** {QUESTIONS[name]}\n" in cells[0].source
    order = [START, *NAMES]
    place = order.index(name)
    for other in order[place - 1 : place] + order[place + 1 : place + 2]:
        assert f"({other}.ipynb)" in cells[0].source, "the one before and the one after"
    assert sum("**You can now decide**" in c.source for c in cells) == 1
    assert len(cells) <= 42 and any("docs/glossary.md" in c.source for c in cells)


@pytest.mark.parametrize("name", NAMES)
def test_it_takes_about_as_long_as_it_says(name):
    text = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells[0].source
    said = int(re.search(r"\*\*Takes\*\* about (\d+) seconds", text)[1])
    speed = json.loads((ROOT / "benchmarks" / "results" / "pocket.json").read_text("utf-8"))
    measured = speed["notebooks"].get(name)
    if measured is None:
        pytest.skip("make bench has not measured it yet")
    assert measured / 1.5 < said < measured * 1.5, f"make bench measured {measured:.0f} s"


def test_the_set_up_is_the_same_everywhere():
    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    read = {path.name: nbformat.read(path, 4) for path in paths}
    found = {setup_cell(notebook) for notebook in read.values() if set_up_cells(notebook)}
    assert found == {set_up_cell(repository())}, "`make notebooks` writes it into all of them"
    for name, notebook in read.items():
        opening = notebook.cells[0].source
        assert opening.startswith(badge(repository(), name) + "# "), (
            f"{name}: `make notebooks` writes the badge for the address in pyproject.toml"
        )


def test_the_set_up_is_written_into_notebooks(tmp_path):
    made = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell("from lib.old import start\n\nstart()"),
            nbformat.v4.new_code_cell("restart()\nprint('ü')"),
        ]
    )
    nbformat.write(made, tmp_path / "one.ipynb")
    assert write_set_up_cell(tmp_path) == [tmp_path / "one.ipynb"]
    cells = nbformat.read(tmp_path / "one.ipynb", 4).cells
    cell = set_up_cell(repository())
    assert [each.source for each in cells] == [cell, "restart()\nprint('ü')"]
    assert write_set_up_cell(tmp_path) == []


def test_one_address_goes_into_every_set_up_cell_and_badge(tmp_path):
    cells = [
        nbformat.v4.new_markdown_cell("# One\n\nWords."),
        nbformat.v4.new_code_cell("start()"),
    ]
    path = tmp_path / "one.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    for owner in ("first", "second"):
        address = f"https://github.com/{owner}/course.git"
        assert write_set_up_cell(tmp_path, address) == [path]
        opening, setup = nbformat.read(path, 4).cells
        place = f"colab.research.google.com/github/{owner}/course/blob/main/notebooks/one.ipynb)"
        assert opening.source.count("Open in Colab") == 1 and place in opening.source
        place = f"mybinder.org/v2/gh/{owner}/course/main?urlpath=lab/tree/notebooks/one.ipynb)"
        assert opening.source.count("Open in Binder") == 1 and place in opening.source
        assert opening.source.endswith("\n\n# One\n\nWords.")
        assert f'"WORKBENCH_REPOSITORY", "{address}"' in setup.source
    write_set_up_cell(tmp_path, "file:///somewhere")  # Colab cannot open that
    assert nbformat.read(path, 4).cells[0].source == "# One\n\nWords."


def test_the_set_up_finds_the_course_and_can_run_twice(source):
    script = setup_cell(source) + "\nprint(os.getcwd(), sys.path[0], 'torch' in sys.modules)"
    said = subprocess.run(
        [sys.executable, "-c", f"{script}\n{script}"],
        cwd=ROOT / "notebooks",
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.splitlines() == [f"{ROOT} {ROOT} False"] * 2 and not said.stderr


@pytest.mark.skipif(
    not (ROOT / ".git").exists() or not shutil.which("git"),
    reason="needs git and a clone of the project",
)
def test_the_set_up_fetches_the_course_where_it_is_missing(tmp_path):
    script = (
        setup_cell(nbformat.read(ROOT / "notebooks/01_dataset_prep.ipynb", 4))
        + "\nprint(os.getcwd())"
    )
    lost = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "WORKBENCH_REPOSITORY": ""},
    )
    assert lost.stderr.strip().endswith("name its repository in REPOSITORY above.") and not list(
        tmp_path.iterdir()
    )
    assert "papermill the course's folder with --cwd" in lost.stderr
    for _ in range(2):  # the second time it is there
        said = subprocess.run(
            [sys.executable, "-c", script],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "WORKBENCH_REPOSITORY": ROOT.as_uri(), "PYTHONPATH": ""},
        )
        assert said.stdout.split() == [str(tmp_path / "lora-vs-dreambooth-workbench")]


# --- what they import


def imported():
    """{package: names} that the notebooks import from lib."""
    found = {}
    for name in (START, JOB, *NAMES, APPENDIX):
        for cell in nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells:
            if cell.cell_type != "code":
                continue
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.Import):
                    assert not [alias for alias in node.names if alias.name.startswith("lib")]
                if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "lib":
                    found.setdefault(node.module, set()).update(a.name for a in node.names)
    return found


def test_notebooks_import_from_lib_and_six_of_its_packages_at_most():
    packages = {name: found for name, found in imported().items() if name != "lib"}
    assert len(packages) <= 6 and all(name.count(".") == 1 for name in packages), packages
    for name, found in packages.items():
        assert len(found) <= 8, f"{name} has more than fits in a head: {sorted(found)}"


def test_what_notebooks_import_and_use_is_there():
    modules = {}
    for package, names in imported().items():
        for name in names:
            exec(f"from {package} import {name}", {}, here := {})
            if isinstance(here[name], ModuleType):
                modules[name] = here[name]
    assert {"charts", "results"} <= set(modules)
    for name in (START, JOB, *NAMES, APPENDIX):
        for cell in nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells:
            for node in ast.walk(ast.parse(cell.source if cell.cell_type == "code" else "")):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    module = modules.get(node.value.id)
                    assert module is None or hasattr(module, node.attr), ast.unparse(node)


# --- what they begin with


def test_only_what_is_missing_or_too_old_is_installed(tmp_path):
    assert unmet(ROOT / "requirements.txt") == []
    (tmp_path / "new.txt").write_text(
        "torch>=99  # never touched\npeft>=99.1 # why\nipywidgets>=99\ndiffusers>=0.1\n\n# note\n"
    )
    assert unmet(tmp_path / "new.txt") == ["peft>=99.1"]


@pytest.fixture(scope="module")
def model():
    from lib.models.base import load_base

    return load_base("pocket")


@pytest.mark.parametrize(
    "kind", sorted(p.name for p in (ROOT / "data/subjects").iterdir() if p.is_dir())
)
def test_every_kind_has_its_prompts(kind, model, tmp_path):
    dataset = prepare(ROOT / "data/subjects" / kind, tmp_path / "data")
    plain = class_prompts(dataset)
    pairs = protocol(dataset.subject, model, "course")
    word = dataset.subject.identifier
    assert len(plain) == 40 and len(set(plain)) >= 5 and len(pairs) == 8
    assert not [
        text
        for text in plain + [p for _, p in pairs]
        if re.search(rf"\b({word}|style|pose|light)\b", text)
    ]
    assert all(word in asked.split() for asked, _ in pairs)
    if kind not in ("style", "lighting"):
        noun = dataset.subject.class_noun
        with_class = [text for text in plain if noun in text.split()]
        assert plain.count(f"a {noun}") == 8 and len(with_class) == 32
        assert all(any(colour in text for text in with_class) for colour in SHOWN["colours"])
        # In a place the class would win over a subject whose captions name none.
        assert not [text for text in with_class if any(place in text for place in PLACES)]
        shown = [place for place in PLACES if any(place in text for text in plain)]
        assert sorted(shown) == sorted(SHOWN["places"])


def test_the_proposed_identifier_is_one_piece(model, tmp_path, monkeypatch):
    assert len(model.tokens(read_words(tmp_path, model, "robot").identifier)) == 1
    monkeypatch.setattr(preparation, "IDENTIFIERS", ("pipbot", "zwx", "sunflower"))
    assert read_words(tmp_path, model, "robot").identifier == "zwx"
