"""The house itself: which room may import which, how large a room is, types, and what it offers."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from lib.files.lazy_exports import offered

ROOMS = sorted(path.parent for path in (ROOT / "lib").glob("*/__init__.py"))
IDS = [room.name for room in ROOMS]
MODULES, NAMES = 9, 8
STATEMENTS = 11_335


def run(*command: str) -> subprocess.CompletedProcess:
    """A tool of the same environment, run on the project."""
    tool = Path(sys.executable).parent / command[0]
    return subprocess.run(
        [str(tool), *command[1:]], capture_output=True, text=True, check=False, cwd=ROOT
    )


def test_imports_go_down_the_rooms_and_never_in_a_circle() -> None:
    checked = run("lint-imports", "--no-cache")
    assert checked.returncode == 0, checked.stdout[-3000:] + checked.stderr[-1000:]


def test_everything_is_formatted() -> None:
    checked = run("ruff", "format", "--check", "--quiet", ".")
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.slow
def test_types_fit() -> None:
    checked = run("pyright", "--pythonpath", sys.executable)
    assert checked.returncode == 0, checked.stdout[-3000:] + checked.stderr[-1000:]


def test_only_the_page_and_the_command_line_stand_outside_of_a_room() -> None:
    assert {path.name for path in (ROOT / "lib").glob("*.py")} == {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("room", ROOMS, ids=IDS)
def test_a_room_is_small_and_says_what_it_is_for(room: Path) -> None:
    modules = [path for path in room.glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= MODULES, f"{room.name} has {len(modules)} modules: split it"
    assert not [path for path in room.glob("*/*.py")], "no rooms within rooms"
    text = ast.get_docstring(ast.parse((room / "__init__.py").read_text("utf-8"))) or ""
    assert "Enters:" in text and "Leaves:" in text
    assert (ROOT / "tests" / room.name).is_dir(), f"tests/{room.name} is not there"


@pytest.mark.parametrize("package", ["lib", *(f"lib.{name}" for name in IDS)])
def test_what_a_room_offers_is_there(package: str) -> None:
    source = ROOT / package.replace(".", "/") / "__init__.py"
    names = offered(str(source))
    assert names and (package == "lib" or len(names) <= NAMES)
    module = importlib.import_module(package)
    for name, owner in names.items():
        assert getattr(module, name) is getattr(importlib.import_module(owner), name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = module.nothing


def test_the_page_costs_nothing() -> None:
    code = "import sys, lib; from lib import BadInput; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


def test_the_library_is_thin() -> None:
    sources = (ROOT / "lib").rglob("*.py")
    count = sum(
        isinstance(node, ast.stmt)
        for path in sources
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
    )
    assert count <= STATEMENTS, f"lib has {count} statements"
