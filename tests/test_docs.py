"""README, docs and notebooks: every link and path leads somewhere, every command is there."""

import re
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT

PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("benchmarks/*.md"),
        *ROOT.glob("data/**/*.md"),
        *ROOT.glob("notebooks/*.ipynb"),
    ]
)
FOLDERS = "lib|docs|data|tests|benchmarks|pocket|notebooks"
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
README_BYTES = 10 * 1024


def text_of(page: Path) -> str:
    """A page as Markdown; of a notebook its code cells too, fenced."""
    if page.suffix == ".md":
        return page.read_text("utf-8")
    cells = nbformat.read(page, as_version=4).cells
    return "\n\n".join(
        f"```\n{cell.source}\n```" if cell.cell_type == "code" else cell.source for cell in cells
    )


def anchors(page: Path) -> set[str]:
    """The anchors that a Markdown page's headings have on the web."""
    headings = re.findall(r"^#{1,6} (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)
    for linked, shown in re.findall(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"", prose):
        target = linked or shown
        if re.match(r"[a-z]+:", target):
            continue  # another site, or a picture within the page
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name} links to {target}, which is not there"
        if anchor and found.suffix == ".md":
            assert anchor in anchors(found), f"{page.name} links to {target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_paths_that_are_named_are_there(page: Path) -> None:
    for path in re.findall(rf"`((?:{FOLDERS})/[\w./-]+)`", text_of(page)):
        assert (ROOT / path).exists(), f"{page.name} names {path}, which is not there"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_that_are_named_are_there(page: Path) -> None:
    from typer.main import get_group

    from lib.__main__ import app

    text = text_of(page)
    known = get_group(app).commands
    for command in re.findall(r"python -m lib (\w[\w-]*)", text):
        assert command in known, f"{page.name}: python -m lib has no command {command}"
    for module in re.findall(r"python -m ((?:benchmarks|pocket|lib\.)[\w.]*)", text):
        path = ROOT / module.rstrip(".").replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), (
            f"{page.name}: there is no python -m {module}"
        )
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for target in re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE):
        assert target in targets, f"{page.name}: the Makefile has no {target}"


def test_the_readme_fits_two_screens() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= README_BYTES


def test_what_is_made_from_rows_and_settings_is_up_to_date() -> None:
    from benchmarks import pages
    from benchmarks.analysis.study_rows import read_bench
    from benchmarks.sections import README, SETTINGS_PAGE, read, section

    speed = read(pages.SPEED)
    made = "run `python -m benchmarks.pages`"
    assert section(README, "answer") == pages.answer(read_bench(), speed), made
    assert section(README, "syllabus") == pages.syllabus(speed), made
    assert section(SETTINGS_PAGE, "settings") == pages.settings_page(), made


def test_the_lesson_plans_name_parts_that_the_notebooks_have() -> None:
    rows = [line for line in text_of(ROOT / "docs/teaching.md").splitlines() if line[:1] == "|"]
    headings, named = {}, 0
    for path in ROOT.glob("notebooks/0*.ipynb"):
        headings[path.name[:2]] = re.findall(r"^#+ (.+)$", text_of(path), re.MULTILINE)
    for cell in "".join(rows).split("|"):
        notebooks = re.findall(r"(?<![\w/])0[0-6](?=[\],; ])", cell)
        there = [heading for number in notebooks for heading in headings[number]]
        parts = re.findall(r'"([^"]+)"', cell) if notebooks else []
        assert not [part for part in parts if part not in there], cell
        named += len(parts)
    assert named > 10


def test_what_windows_types_is_what_make_does() -> None:
    """Nobody here can run them: each command is held to the files, modules and options it names."""
    from importlib.util import find_spec

    page = text_of(ROOT / "docs" / "troubleshooting.md").split("**Windows")[1].split("**pip")[0]
    make = (ROOT / "Makefile").read_text("utf-8")
    first, *others = re.findall(r"^(?:py |\.venv).*$", page, re.MULTILINE)
    made = re.fullmatch(r"py -(3\.\d+) -m venv \.venv", first)
    assert made and f"python{made[1]} " in make.split("PYTHONS :=")[1]
    assert len(others) == 4
    for command in others:
        module = re.match(r"\.venv\\Scripts\\python -m (\w+)", command)
        assert module and find_spec(module[1]), command
        for file in re.findall(r"-[rc] (\S+)", command):
            assert (ROOT / file).is_file() and file in make, command
        for option in re.findall(r"--ServerApp\S+ \d+\}\"", command):
            assert option in make, command
    assert any("--ServerApp" in command for command in others)
