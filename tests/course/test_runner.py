"""The runner of the course, on two tiny notebooks that each test makes for itself and that really
run.
"""

import base64
import io
import json
import os
import re
import sys
import time

import nbformat
import pytest
from bs4 import BeautifulSoup
from conftest import ROOT
from PIL import Image

from lib.__main__ import main
from lib.course import runner
from lib.course.progress import Progress
from lib.course.report import report, table
from lib.course.runner import CourseFailed, closing, course, run_notebook
from lib.files.errors import BadInput
from lib.files.text import clock
from lib.plots.figure import Figure, as_table

SUMMARY = {
    "lora": {
        "seconds_per_step": 0.0912,
        "train_seconds": 18.2,
        "peak_bytes": 300 * 2**20,
        "file_bytes": 400_000,
        "dino": 0.8,
        "clip_i": 0.7,
        "clip_t": 0.3,
    },
    "dreambooth": {
        "seconds_per_step": 0.12,
        "train_seconds": 24.0,
        "peak_bytes": 500 * 2**20,
        "file_bytes": 17_600_000,
        "dino": 0.9,
        "clip_i": 0.75,
        "clip_t": 0.25,
    },
    "base_model": {"dino": 0.2, "clip_i": 0.3, "clip_t": 0.35},
    "real_photos": {"dino": 0.95, "clip_i": 0.97},
    "units": {"seconds_per_step": "s"},
    "verdict": "Nothing is decided.",
    "answer": ["Take <either>.", "It costs a little.", "Not sure at all."],
    "about": {
        "reference": "2 held-out photos",
        "prompts": ["a robot"],
        "seeds": [1],
        "dino": {"encoder": "pocket", "resize": "none"},
        "clip": {"encoder": "pocket", "resize": "none"},
    },
    "versions": {"torch": "2.13.0"},
    "device": "a test's processor",
}


def notebook(path, *cells):
    """Write a notebook of `cells`: markdown if it starts with '#', else code. The first code cell
    has the parameters, a display is key.
    """
    made = [
        nbformat.v4.new_markdown_cell(c) if c.startswith("#") else nbformat.v4.new_code_cell(c)
        for c in cells
    ]
    next(c for c in made if c.cell_type == "code").metadata["tags"] = ["parameters"]
    for cell in made:
        if "display(" in cell.source:
            cell.metadata["tags"] = ["key-picture"]
    whole = nbformat.v4.new_notebook(cells=made)
    whole.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    nbformat.write(whole, path)
    return path


@pytest.fixture
def small(tmp_path):
    """Two notebooks in a folder of their own: the first draws a picture, the second writes the
    summary.
    """
    folder = tmp_path / "notebooks"
    folder.mkdir()
    first = notebook(
        folder / "01_first.ipynb",
        "# Drawing\n\nSome `code` here.",
        "word = 'none'\noutput = '.'\nseed = 0",
        "## A red square\n\n```\n# not a heading\n```",
        "import time\nprint('[stage] mixing red: 1 of 2')\ntime.sleep(1.6)\n"
        "print('[stage] mixing ', end='')\nprint('red: 2 of 2')\ntime.sleep(1.6)",
        "from IPython.display import display\nfrom PIL import Image\ndisplay(Image.new('RGB', (8,"
        " 8), 'red'), metadata={'image/png': {'alt': 'a square in \"red\" & nothing else'}})",
    )
    second = notebook(
        folder / "02_second.ipynb",
        "# Comparing",
        "output = '.'\nseed = 0",
        "import os, pathlib\nimport lib.config.settings\npathlib.Path(output,"
        " 'where').write_text(f'{os.getcwd()} {seed}')",
        f"pathlib.Path(output, 'summary.json').write_text({json.dumps(json.dumps(SUMMARY))!s})",
        "## Exercises",
    )
    return [first, second]


def test_the_course_runs_through(small, tmp_path):
    log, output = io.StringIO(), tmp_path / "out"
    summary = course({"word": "teapot", "seed": 7, "base": None}, output, small, log)

    injected = nbformat.read(output / "01_first.ipynb", 4).cells[2].source
    assert 'word = "teapot"\nseed = 7' in injected and str(output) in injected
    assert (output / "where").read_text() == f"{small[0].parent} 7", (
        "a notebook runs in its own folder, with the caller's parameters"
    )
    assert (
        summary["lora"] == SUMMARY["lora"]
        and json.loads((output / "summary.json").read_text()) == summary
    )
    assert (
        0 < summary["course"]["seconds"] < 300 and summary["course"]["peak_rss_bytes"] > 50 * 2**20
    )
    assert summary["units"] == {"seconds_per_step": "s", "seconds": "s", "peak_rss_bytes": "B"}
    assert set(json.loads((output / "timings.json").read_text())) == {"01_first", "02_second"}
    assert not list(output.glob("*.part"))

    lines = log.getvalue().splitlines()
    assert all(
        re.match(r"\[[12]/2\] 0[12]_\w+: (cell \d+/\d+, )?\d+:\d\d elapsed, .+: .+", line)
        for line in lines
    ), lines
    assert re.fullmatch(
        r"\[1/2\] 01_first: 0:\d\d elapsed, about 2:00 left: starting Python", lines[0]
    )
    assert any("cell 5/6" in line and line.endswith("mixing red: 2 of 2") for line in lines), lines
    assert "not a heading" not in log.getvalue()
    assert any("[2/2]" in line and "done in" in line for line in lines[-1:])

    page = (output / "report.html").read_text()
    order = (
        "side by side</h1>",
        "Take &lt;either&gt;.",
        "It costs a little.",
        "Not sure at all.",
        "<td>0.0912<",
        "Nothing is decided.",
        'id="key-picture"',
        "Some <code>",
        "Comparing</h2>",
    )
    places = [page.index(text) for text in order]
    assert places == sorted(places)
    assert len(re.findall(r"<h1\b", page)) == 1 and "A red square</h3>" in page
    soup = BeautifulSoup(page, "html.parser")
    (picture,) = soup.find_all("img")
    assert picture["alt"] == 'a square in "red" & nothing else' and picture.find_parent(
        id="key-picture"
    ), "the key picture is at the top, once, and its place has a link to it"
    assert [a.text for a in soup.main.select('a[href="#key-picture"]')]
    data = picture["src"].partition(";base64,")[2]
    assert Image.open(io.BytesIO(base64.b64decode(data, validate=False))).size == (8, 8)
    assert not [code for code in soup.select(".highlight") if not code.find_parent("details")]
    links = [a["href"] for a in soup.nav.select("a")]
    assert len(links) == 4 and soup.find("input", id="unfold")["type"] == "checkbox"
    for target in re.findall(r'href="#([^"]+)"', page):
        assert f'id="{target}"' in page, f"the link to {target} leads nowhere"
    outside = re.findall(
        r"<script|<link|(?:src|href)=[\"']?(?:https?:)?//|@import|url\((?!['\"]?data:)", page
    )
    assert not outside, "the page needs something from outside"


def test_the_report_folds_what_is_long_and_keeps_pictures_small():
    """Tables scroll in boxes of their own, long ones and long prints are folded, what was printed
    line after line is one, a large picture is made as large as it is shown.
    """
    noise = Image.effect_noise((3000, 400), 60).convert("RGB")
    file = io.BytesIO()
    noise.save(file, "JPEG", quality=95)
    figure = Figure(noise, "a grey noise")
    outputs = [
        {
            "text/html": as_table(
                [[k, note * k] for k in range(rows)], ["k", "n"], note
            )._repr_html_()
        }
        for rows, note in ((3, "short"), (40, "long"))
    ] + [
        {"text/html": figure._repr_html_()},
        {"image/jpeg": base64.b64encode(file.getvalue()).decode()},
    ]
    shown = [nbformat.v4.new_output("display_data", data=data) for data in outputs]
    shown += [nbformat.v4.new_output("stream", text="a line\n") for _ in range(50)]
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=shown)])
    page = report([made], SUMMARY, "Title")
    soup = BeautifulSoup(page, "html.parser")
    boxes = {box["aria-label"]: box for box in soup.main.select(".scroll")}
    assert all(table.find_parent(class_="scroll") for table in soup.find_all("table"))
    assert not boxes["short"].find_parent("details") and boxes["long"].find_parent("details")
    assert boxes["short"]["tabindex"] == "0"
    texts = [cell for cell in soup.main.find_all("td") if cell.get("style")]
    assert texts and all(len(cell.text) > 30 for cell in texts), "a sentence is not squeezed"
    (printed,) = [text for text in soup.main.find_all("pre") if "a line" in text.text]
    assert printed.find_parent("details")
    for picture in soup.find_all("img"):
        data = base64.b64decode(picture["src"].partition(";base64,")[2])
        assert Image.open(io.BytesIO(data)).width <= 1000 and len(data) < 200_000


def test_the_answer_is_one_table_of_five_columns_with_the_whole_one_folded():
    soup = BeautifulSoup(report([], SUMMARY, "Title"), "html.parser")
    short, whole = soup.find(id="answer").find_all("table")
    assert len(short.select("thead tr > *")) == 5 and not short.find_parent("details")
    assert whole.find_parent("details") and len(whole.select("tbody tr")) == 4
    assert [row.text for row in short.select("tbody th")][:3] == [
        "seconds a step",
        "memory, MiB",
        "file, MiB",
    ]


def test_a_second_run_knows_how_long_it_takes(small, tmp_path):
    (tmp_path / "timings.json").write_text('{"01_first": 30, "02_second": 5.9, "03_gone": 7}')
    log = io.StringIO()
    course({}, tmp_path, small, log)
    assert "about 0:36 left" in log.getvalue().splitlines()[0]


def test_unknown_settings_are_refused_before_anything_runs(small, tmp_path):
    with pytest.raises(
        BadInput, match=r"no notebook has a parameter named sead: they have output, seed, word"
    ):
        course({"sead": 1}, tmp_path / "out", small, io.StringIO())
    assert not (tmp_path / "out").exists()
    with pytest.raises(
        BadInput, match=r"02_second.ipynb has no parameter named word: .* which has output, seed"
    ):
        run_notebook(small[1], tmp_path / "x.ipynb", {"word": "x"}, Progress({}, io.StringIO()))


def test_a_failing_cell_is_one_sentence(small, tmp_path):
    notebook(small[1], "# Comparing", "output = '.'", "## Dividing", "print(1)", "1 / 0")
    with pytest.raises(CourseFailed) as failed:
        course({}, tmp_path, small, io.StringIO())
    executed = tmp_path / "02_second.ipynb"
    assert (
        str(failed.value)
        == "notebook 02_second.ipynb stopped in cell [4] under “Dividing” with ZeroDivisionError:"
        f" division by zero; the executed notebook, with the whole error, is {executed}"
    )
    assert "ZeroDivisionError" in executed.read_text()
    assert "01_first" in json.loads((tmp_path / "timings.json").read_text()), (
        "what has ended is remembered"
    )


def test_bad_input_in_a_notebook_is_its_own_sentence(small, tmp_path):
    notebook(
        small[0],
        "# Drawing",
        "output = '.'",
        "from lib.course.set_up import start\nfrom lib.config.settings import BadInput\nstart()\n"
        "raise BadInput('word=zzz is not known: take zwx')",
    )
    with pytest.raises(BadInput) as failed:
        course({}, tmp_path, small, io.StringIO())
    assert str(failed.value) == "word=zzz is not known: take zwx"


def test_a_python_that_dies_is_told_from_one_that_does_not_start(small, tmp_path):
    notebook(
        small[0],
        "# Drawing",
        "output = '.'",
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    )
    with pytest.raises(
        CourseFailed, match=r"01_first.ipynb lost its Python in cell 4 of 4 .* want of memory"
    ):
        course({}, tmp_path, small, io.StringIO())


def test_a_python_that_does_not_start_gets_a_second_chance(small, tmp_path, monkeypatch):
    """The kernel is a program that fails the first time, and the real one after that."""
    spec, mark = tmp_path / "kernels/python3", tmp_path / "tried"
    spec.mkdir(parents=True)
    program = (
        f"import os, sys; p = {str(mark)!r}; new = not os.path.exists(p); open(p, 'a').write('x');"
        " new and sys.exit(3); os.execv(sys.executable, [sys.executable, '-m',"
        " 'ipykernel_launcher', *sys.argv[1:]])"
    )
    (spec / "kernel.json").write_text(
        json.dumps(
            {
                "argv": [sys.executable, "-c", program, "-f", "{connection_file}"],
                "display_name": "x",
                "language": "python",
            }
        )
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    course({}, tmp_path, small[1:], io.StringIO())
    assert mark.read_text() == "xx"


def test_a_notebook_without_a_summary_is_told(small, tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    os.utime(tmp_path / "summary.json", (1, 1))
    with pytest.raises(CourseFailed, match="wrote no"):
        course({}, tmp_path, small[:1], io.StringIO())


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--subject", "no/such/folder"], "no/such/folder"),
        (["--steps", "many"], "STEPS=many is not a whole number: give one, such as STEPS=100"),
        (["--steps", "0"], "STEPS=0 is too small: give 1 or more"),
        (["--seed", "-1"], "SEED=-1 is too small: give 0 or more"),
    ],
)
def test_the_command_refuses_bad_input_with_one_sentence(arguments, said, tmp_path, capsys):
    if not all((ROOT / "notebooks" / f"{name}.ipynb").exists() for name in runner.NOTEBOOKS):
        pytest.fail("notebooks 01 to 04 are not there yet")
    started = time.monotonic()
    assert main(["course", *arguments, "--output", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert said in err and len(err.strip().splitlines()) == 1 and not out
    assert not (tmp_path / "out").exists() and time.monotonic() - started < 30


def test_a_subject_folder_is_checked_first(tmp_path):
    def picture(name):
        Image.effect_noise((90, 90), 60).convert("RGB").save(tmp_path / name)

    picture("first.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(BadInput, match=r"only one photo to train on \(broken.png"):
        runner.check_subject(tmp_path, "toy")
    for name in ("second.png", "third.png"):
        picture(name)
    with pytest.raises(BadInput, match="class_noun"):
        runner.check_subject(tmp_path)
    runner.check_subject(tmp_path, "toy")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "broken.png",
        "first.png",
        "second.png",
        "third.png",
    ]


def test_the_table_has_five_columns_and_the_whole_one_below_it():
    short = table(SUMMARY)
    assert short.columns[:3] == ["", "LoRA", "DreamBooth"] and len(short.columns) == 5
    assert short.rows[0][:3] == ["seconds a step", "0.0912", "0.12"]
    assert short.columns[3] == "base, real photos"
    assert short.rows[3][:4] == ["likeness (DINO)", "0.800", "0.900", "0.200, 0.950"]
    _, *lines = short.rest.text().splitlines()  # without the caption
    assert [
        name in line
        for name, line in zip(["LoRA", "DreamBooth", "base model", "real photos"], lines[1:])
    ] == [True] * 4
    assert (
        lines[1].split()[1:4] == ["0.091", "18", "300"]
        and "0.900" in lines[2]
        and "clip" not in lines[4]
    )


def test_links_between_notebooks_stay_on_the_page():
    texts = [
        "# One\n\nSee [two](02_two.ipynb), [three](03_three.ipynb), [a page](../docs/a.md), [x](https://x.org).",
        "# Two",
    ]
    made = []
    for name, text in zip(("01_one", "02_two"), texts):
        made.append(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)]))
        made[-1].metadata["papermill"] = {"input_path": f"/there/{name}.ipynb"}
    soup = BeautifulSoup(report(made, SUMMARY, "Title"), "html.parser")
    links = {a.text: a["href"] for a in soup.main.select("a[href]")}
    assert soup.find(id=links["two"][1:]).find_next("h2").text == "Two"
    assert not {"three", "a page"} & set(links) and links["x"] == "https://x.org"


def test_a_terminal_gets_one_line_that_fits(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("COLUMNS", "60")
    screen = Terminal()
    with Progress({"01_first": 10.0, "02_second": 20.0}, screen) as progress:
        progress.begin("01_first")
        progress.write("[stage] " + "a long way " * 20 + "\n")
        time.sleep(0.8)
        progress.done()
    shown = re.sub(r"\x1b\[\?25[lh]", "", screen.getvalue())  # the cursor, hidden meanwhile
    back_up_again = "\n\r\x1b[1A\x1b[2K"
    assert shown.removesuffix(back_up_again).count("\n") == 1, "one line a notebook stays"
    drawn = re.split(r"\r\x1b\[2K", shown)
    assert len(drawn) >= 4 and all(len(line.strip("\n")) < 60 for line in drawn)


def test_time_left_follows_the_pace():
    progress = Progress({"a": 10.0, "b": 20.0, "c": 40.0}, io.StringIO())
    progress.begin("a")
    progress.began -= 20  # took twice as long as expected
    progress.done()
    assert progress.left() == (pytest.approx(120, rel=0.01), False)
    progress.begin("b")
    progress.began -= 30
    assert progress.left() == (pytest.approx(10 + 80, rel=0.01), False)
    progress.began -= 100  # far over: 150 s for what should take 30, so 40 will take 200
    assert (
        progress.left() == (pytest.approx(200, rel=0.01), True)
        and "at least 3:2" in progress.line()
    )
    progress.done()
    progress.begin("c")
    progress.began -= 1000
    assert progress.left() == (0, True) and "longer than expected" in progress.line()


def test_clock():
    assert [clock(s) for s in (0, 65.4, 3600)] == ["0:00", "1:05", "1:00:00"]


def test_the_last_line_names_each_device():
    spent = {"course": {"seconds": 61, "peak_rss_bytes": 2**31}}
    assert closing(spent) == (
        "The whole course took 1:01 min and at most 2.00 GiB of resident memory."
    )
    for device, said in (("CPU", "CPU"), (["CPU, 1 thread", "CPU"], "CPU, 1 thread and CPU")):
        assert closing(spent | {"device": device}).endswith(f"resident memory, on {said}.")
