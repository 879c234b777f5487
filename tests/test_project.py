"""The project's own form: the four lists of packages agree, the README shows the tree as it is,
notebooks and library stay readable.
"""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
COURSE = [
    "01_dataset_prep",
    "02_lora_training",
    "03_dreambooth_training",
    "04_comparison",
    "05_compose_and_ship",
    "06_many_runs",
]
NOTEBOOKS = sorted(
    {
        *(ROOT / "notebooks").glob("*.ipynb"),
        *(ROOT / "notebooks" / f"{name}.ipynb" for name in COURSE),
    }
)
SOURCES = sorted(path for path in (ROOT / "lib").rglob("*.py"))
OPTIONS = 500  # lines of the command line, a list of commands and their options
CLUSTER = {"distributed", "submitit"}  # an extra, which the tests have too
LONGEST_CELL, LONGEST_FILE = 25, 480  # lines of at most 100 columns, one thing a line
# What `make course` may be asked for, and who must be able to take it.
PARAMETERS = {
    "01": {"subject", "class_noun", "identifier", "base", "seed", "output"},
    "02": {"base", "seed", "steps", "output"},
    "03": {"base", "seed", "steps", "output"},
    "04": {"seed", "output"},
    "05": {"seed", "output"},
    "06": {"base", "output"},
}


def requirements(lines):
    """Package name -> Requirement, for the lines of a requirements file."""
    found = [
        Requirement(line.split("#")[0].strip())
        for line in lines
        if line.split("#")[0].strip() and not line.lstrip().startswith("-")
    ]
    assert len({canonicalize_name(r.name) for r in found}) == len(found), (
        "a package is listed twice"
    )
    return {canonicalize_name(r.name): r for r in found}


def read(name):
    path = ROOT / name
    assert path.exists(), f"{name} is not there yet"
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def floors():
    return requirements(read("requirements.txt").splitlines())


@pytest.fixture(scope="module")
def pins():
    return requirements(read("constraints.txt").splitlines())


def test_requirements_are_floors_with_a_reason(floors):
    for line in read("requirements.txt").splitlines():
        assert line.startswith("#") or re.search(r"\S  +# \S", line), f"no reason beside {line!r}"
    for name, requirement in floors.items():
        assert [s.operator for s in requirement.specifier] == [">="], (
            f"{name} needs a floor alone, so that Colab keeps what it has"
        )
    assert {
        "torch",
        "diffusers",
        "transformers",
        "peft",
        "accelerate",
        "bitsandbytes",
        "matplotlib",
    } <= set(floors)
    assert {"jupyterlab", "ipywidgets", "papermill"} <= set(floors)


def test_constraints_are_exact_and_above_the_floors(floors, pins):
    for name, requirement in pins.items():
        assert [s.operator for s in requirement.specifier] == ["=="] and "*" not in str(
            requirement
        ), f"{name} is not pinned exactly"
    for name, requirement in floors.items():
        assert name in pins, f"{name} has a floor and no exact version"
        assert next(iter(pins[name].specifier)).version in requirement.specifier, (
            f"{name}: the pin is below the floor"
        )
    assert str(pins["torch"].specifier) == "==2.13.0", (
        "without a local tag, so that a CPU and a CUDA build both satisfy it"
    )


def test_constraints_are_what_runs_here(pins):
    from importlib.metadata import distributions

    here = {canonicalize_name(d.metadata["Name"]): d.version.split("+")[0] for d in distributions()}
    other = {
        name: here[name]
        for name, pin in pins.items()
        if name in here and here[name] not in pin.specifier
    }
    assert not other, (
        f"installed versions differ from constraints.txt: {other}; run `make clean` and then `make"
        " test`"
    )


def test_conda_gets_the_same(floors):
    lines = read("environment.yml").splitlines()
    assert all("#" in line for line in lines if line.strip()), (
        "every line of environment.yml says why it is there"
    )
    environment = yaml.safe_load(read("environment.yml"))
    pip = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    assert "--constraint constraints.txt" in pip and "--editable ." in pip
    assert {n: str(r) for n, r in requirements(pip).items()} == {
        n: str(r) for n, r in floors.items()
    }
    python = next(
        item
        for item in environment["dependencies"]
        if isinstance(item, str) and item.startswith("python=")
    )
    assert python.removeprefix("python=") + ".0" in SpecifierSet(
        tomllib.loads(read("pyproject.toml"))["project"]["requires-python"]
    )


def test_the_package_needs_the_same(floors):
    project = tomllib.loads(read("pyproject.toml"))
    for_tests = {
        re.split(r"\[|>=", line)[0]
        for line in read("requirements.txt").splitlines()
        if "[test]" in line
    }
    assert for_tests == {"pytest", "pytest-xdist", "ruff", "import-linter", "pyright", *CLUSTER}
    assert {n: str(r) for n, r in requirements(project["project"]["dependencies"]).items()} == {
        n: str(r) for n, r in floors.items() if n not in for_tests
    }
    assert {
        n: str(r)
        for n, r in requirements(project["project"]["optional-dependencies"]["test"]).items()
    } == {n: str(r) for n, r in floors.items() if n in for_tests}
    assert {
        n: str(r)
        for n, r in requirements(project["project"]["optional-dependencies"]["cluster"]).items()
    } == {n: str(r) for n, r in floors.items() if n in CLUSTER}
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for room in ("lib", "pocket")
        for path in (ROOT / room).rglob("__init__.py")
    }
    assert set(project["tool"]["setuptools"]["packages"]) == folders
    assert project["project"]["license"] == "Apache-2.0"
    assert "Apache License" in read("LICENSE") and "limitations under the License" in read(
        "LICENSE"
    )


def imported(path):
    """Names of the packages that a file imports, at its top or late."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


def test_what_the_library_imports_is_required(floors):
    from importlib.metadata import packages_distributions

    packages = packages_distributions()
    # Used where they are there, and never missed: lib/evaluation/judge.py; Colab's own.
    optional = {"lpips", "masc", "torchvision", "google"}
    for path in SOURCES:
        for name in sorted(set(imported(path)) - set(sys.stdlib_module_names) - {"lib"} - optional):
            owners = {canonicalize_name(owner) for owner in packages.get(name, [name])}
            assert owners & set(floors), (
                f"{path.relative_to(ROOT)} imports {name}, which requirements.txt does not name"
            )


def tree(text):
    """The paths of the README's file tree (its first fenced block that names lib/): indented names,
    folders end in '/'.
    """
    block = next(
        (
            b
            for b in re.findall(r"```[a-z]*\n(.*?)```", text, re.DOTALL)
            if re.search(r"^lib/", b, re.MULTILINE)
        ),
        None,
    )
    assert block, "README.md has no file tree (a fenced block with a line that starts with lib/)"
    paths, above = [], []
    for line in block.splitlines():
        if not line.strip():
            continue
        depth, name = len(line) - len(line.lstrip()), line.split()[0]
        if depth > 20:  # the rest of a comment
            continue
        above = [(d, n) for d, n in above if d < depth]
        paths.append("".join(n for _, n in above) + name)
        if name.endswith("/"):
            above.append((depth, name))
    return paths


def test_the_readme_tree_is_the_tree():
    paths = tree(read("README.md"))
    missing = [
        path for path in paths if not (ROOT / path).exists() and not path.startswith("runs/")
    ]
    assert not missing, f"README.md's tree names what is not there: {missing}"
    shown = {path.rstrip("/") for path in paths}
    unnamed = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "lib").iterdir()
        if (path / "__init__.py").exists() and str(path.relative_to(ROOT)) not in shown
    ]
    assert not unnamed, f"README.md's tree leaves out {unnamed}"
    unlinked = [
        path.name for path in NOTEBOOKS if f"(notebooks/{path.name})" not in read("README.md")
    ]
    assert not unlinked, f"README.md does not link {unlinked}"


def test_jupyterlab_shows_data_and_runs_and_takes_a_phones_photos():
    options = read("Makefile").split("LAB_OPTIONS :=")[1].split("\n\n")[0]
    assert "--ServerApp.root_dir=." in options and "default_url=/lab/tree/notebooks" in options
    [size] = re.findall(r"'websocket_max_message_size': (\d+)", options)
    assert int(size) >= 100 * 2**20, "a dozen photos are one message"
    assert "$(LAB_OPTIONS)" in read("Makefile").split("\nlab:")[1].split("\n\n")[0]


def test_the_readme_names_targets_that_exist():
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.MULTILINE))
    assert {"course", "lab", "test", "bench", "pocket", "clean"} <= targets
    named = set(re.findall(r"^\s*make ([a-z]+)|`make ([a-z]+)", read("README.md"), re.MULTILINE))
    named = {one or other for one, other in named}
    assert {"course", "test"} <= named, "README.md shows the two commands"
    assert named <= targets, f"README.md names targets that the Makefile lacks: {named - targets}"


def test_targets_run_modules_that_exist():
    for module in re.findall(r"\$\(RUN\) -m ((?:lib|benchmarks)[\w.]*)", read("Makefile")):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), (
            f"the Makefile runs {module}, which is not there yet"
        )


def test_ci_runs_the_tests():
    assert "make test" in read(".ci/run") and (ROOT / ".ci/run").stat().st_mode & 0o111


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_library_file_is_short(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    most = OPTIONS if path == ROOT / "lib" / "__main__.py" else LONGEST_FILE
    assert lines <= most, (
        f"{path.relative_to(ROOT)} has {lines} lines: split it where it does two things"
    )


def test_the_style_is_kept():
    checked = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--quiet", "."],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


# --- the notebooks' form


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    if not request.param.exists():
        pytest.fail(f"{request.param.name} is not there yet")
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def parameters_cell(notebook):
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    assert len(tagged) == 1, f"{len(tagged)} cells are tagged `parameters`, one has to be"
    return tagged[0]


def test_it_is_valid_and_stripped(notebook, path):
    nbformat.validate(notebook)
    assert notebook.nbformat == 4 and notebook.nbformat_minor >= 5
    assert (
        notebook.metadata.kernelspec.name == "python3"
        and notebook.metadata.kernelspec.get("language") == "python"
    )
    assert "widgets" not in notebook.metadata, "widget state is left in"
    assert "papermill" not in notebook.metadata, "this is an executed copy"
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None, (
                f"cell {number} has outputs or a count: strip it"
            )
    assert path.stat().st_size < 200_000


def test_its_cells_have_ids(notebook):
    ids = [cell.get("id") for cell in notebook.cells]
    assert all(ids) and len(set(ids)) == len(ids)


def test_its_code_cells_are_short(notebook):
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type == "code":
            lines = len(cell.source.splitlines())
            assert 0 < lines <= LONGEST_CELL, (
                f"cell {number} has {lines} lines, from 1 to {LONGEST_CELL} are one idea"
            )


def test_its_headings_are_in_order(notebook):
    levels = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text = re.sub(r"```.*?```", "", cell.source, flags=re.DOTALL)
            levels += [len(marks) for marks in re.findall(r"^(#{1,6}) \S", text, re.MULTILINE)]
    assert levels and levels[0] == 1 and levels.count(1) == 1, (
        f"one H1, at the top; the levels are {levels}"
    )
    assert all(b <= a + 1 for a, b in zip(levels, levels[1:])), (
        f"a heading level is skipped: {levels}"
    )
    assert notebook.cells[0].cell_type == "markdown"


def test_its_parameters_are_literals_that_papermill_sees(notebook, path):
    cell = parameters_cell(notebook)
    names = set()
    for statement in ast.parse(cell.source).body:
        assert isinstance(statement, (ast.Assign, ast.AnnAssign)), (
            f"line {statement.lineno} of the parameters cell is no plain assignment"
        )
        target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
        names.add(target.id)
        ast.literal_eval(statement.value)
    seen = set(papermill.inspect_notebook(str(path)))
    assert names == seen, (
        "papermill reads line by line: no second '=', no `int | None`, no dotted types"
    )
    needed = PARAMETERS.get(path.stem[:2], set())
    assert needed <= names, (
        f"`make course` passes {sorted(needed - names)}, which the parameters cell lacks"
    )


def test_its_code_parses(notebook):
    from IPython.core.inputtransformer2 import TransformerManager

    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type == "code":
            source = TransformerManager().transform_cell(cell.source)
            try:
                compile(source, f"cell {number}", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            except SyntaxError as error:
                pytest.fail(f"cell {number} does not parse: {error}")
