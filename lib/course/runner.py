"""The whole course, headlessly: notebooks 01 to 06 in order, one report, one table.

    python -m lib course                      # the example subject, as `make course` does
    python -m lib course --subject my/photos --class-noun toy --output runs/toy

Each notebook gets those of the settings given here that it has a parameter for. Executed notebooks,
`report.html`, `summary.json` and `timings.json` go to the output folder.
"""

import os
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from lib.course.parameters import check_parameters, found_paths
from lib.course.progress import ENGINE, Progress, register_engine
from lib.course.report import report, table
from lib.course.set_up_cell import set_up_cells
from lib.files import ROOT, BadInput, read_json, write_json
from lib.files.paths import check_path
from lib.files.text import clock
from lib.files.whole_writes import whole_file

# Seconds each takes on two free CPU cores, roughly: the first run's guess at the time left; later
# runs have timings.json.
NOTEBOOKS = {
    "01_dataset_prep": 15,
    "02_lora_training": 70,
    "03_dreambooth_training": 85,
    "04_comparison": 55,
    "05_compose_and_ship": 60,
    "06_many_runs": 30,
}
GUESS = 60  # seconds of a notebook that is not one of the course's


class CourseFailed(RuntimeError):
    """A notebook stopped. Its text is one sentence: which notebook and cell, the error, where to
    read more.
    """


def run_notebook(
    source: Path, executed: Path, parameters: Mapping[str, Any], progress: Progress
) -> None:
    """Execute the notebook `source` with `parameters` in the folder it lies in; write the executed
    copy to the path `executed`.

    Raises `BadInput` for a parameter that it does not have (papermill would only warn) and for one
    that it refuses itself, and `CourseFailed` when a cell fails or its Python dies. A Python that
    does not start gets a second chance.
    """
    import papermill

    register_engine()
    known = papermill.inspect_notebook(str(source))
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise BadInput(
            f"notebook {source.name} has no parameter named {' or '.join(unknown)}: correct the"
            " name or add it to the notebook's parameters cell, which has"
            f" {', '.join(known) or 'none'}"
        )
    for last_attempt in (False, True):
        progress.begin(source.stem)
        try:
            papermill.execute_notebook(
                str(source),
                str(executed),
                dict(parameters),
                engine_name=ENGINE,
                kernel_name="python3",
                start_timeout=180,
                cwd=str(source.parent),
                progress_bar=False,
                stdout_file=progress,
                progress=progress,
            )
            return progress.done()
        except papermill.PapermillExecutionError as error:
            raise _cell_error(error, source, executed, progress) from None
        except Exception as error:
            if progress.cell is not None:  # not a cell's error, so its Python has died under it
                raise CourseFailed(
                    f"notebook {source.name} lost its Python in cell {progress.cell + 1} of"
                    f" {progress.cells} ({error}), most likely for want of memory (at most"
                    f" {progress.peak / 2**30:.1f} GiB were in use): close other programs and run"
                    f" again; what it had done is in {executed}"
                ) from error
            if last_attempt:
                raise CourseFailed(
                    f"no Python started for notebook {source.name} ({error}): run `make clean` and"
                    " again"
                ) from error


def _cell_error(error: Any, source: Path, executed: Path, progress: Progress) -> Exception:
    """What papermill says of a cell that failed, as the exception to raise."""
    lines = error.evalue.strip().splitlines() or [""]
    if error.ename == "BadInput":
        return BadInput(" ".join(lines))
    under = f" under “{progress.heading}”" if progress.heading else ""
    return CourseFailed(
        f"notebook {source.name} stopped in cell [{error.exec_count}]{under} with {error.ename}:"
        f" {lines[0]}; the executed notebook, with the whole error, is {executed}"
    )


def course(
    settings: Mapping[str, Any],
    output: str | Path = ROOT / "runs/course",
    notebooks: Iterable[str | Path] | None = None,
    stream: TextIO | None = None,
) -> dict[str, Any]:
    """Run `notebooks` (paths; the course's) in order with `settings` (parameter -> value; None
    means the notebook's own value).

    Every one gets `output`; each gets those of the settings that it has a parameter for. Returns
    the summary that notebook 04 wrote to `output/summary.json`, to which "course" is added:
    "seconds" and "peak_rss_bytes" (resident memory of all processes together). Raises `BadInput`
    for settings that no notebook knows, or that are no good, and `CourseFailed`.
    """
    import nbformat

    check_path("output", str(output))
    started, output = time.time(), Path(output).expanduser().resolve()
    notebooks = notebooks or [ROOT / "notebooks" / f"{name}.ipynb" for name in NOTEBOOKS]
    sources = [Path(path).resolve() for path in notebooks]
    settings = {name: value for name, value in settings.items() if value is not None}
    if any(source.parent == output for source in sources):
        raise BadInput(
            f"output folder {output} is where the notebooks lie, which their executed copies would"
            " replace: give another"
        )
    settings |= found_paths(settings, Path.cwd())
    parameters = _parameters(settings, sources, output)
    if "subject" in settings:
        check_subject(
            Path(ROOT, settings["subject"]), settings.get("class_noun"), settings.get("identifier")
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"output folder {output} cannot be made ({error.strerror}): give another"
        ) from None
    # The notebooks' Pythons import lib.
    paths = [str(ROOT), os.environ.get("PYTHONPATH")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    timings = output / "timings.json"
    with Progress(_expected(timings, sources), stream) as progress:
        for source, values in zip(sources, parameters):
            run_notebook(source, output / source.name, values, progress)
            write_json(timings, progress.expected | progress.seconds)
    path = output / "summary.json"
    if not path.exists() or path.stat().st_mtime < started - 1:
        raise CourseFailed(
            f"the last notebook ran through but wrote no {path}: see its executed copy in {output}"
        )
    summary = read_json(path)
    summary["course"] = {
        "seconds": round(time.time() - started, 1),
        "peak_rss_bytes": progress.peak,
    }
    summary.setdefault("units", {}).update(seconds="s", peak_rss_bytes="B")
    write_json(path, summary)
    executed = [nbformat.read(output / source.name, as_version=4) for source in sources]
    page = report(executed, summary, "LoRA and DreamBooth, side by side", closing(summary))
    with whole_file(output / "report.html") as unfinished:
        unfinished.write_text(page, encoding="utf-8")
    return summary


def closing(summary: Mapping[str, Any]) -> str:
    """One line on the whole run: its time and memory, with the device."""
    spent = summary["course"]
    # Several, where a busy machine let one training fewer threads than the other.
    found = summary.get("device") or []
    devices = " and ".join([found] if isinstance(found, str) else found)
    memory = spent["peak_rss_bytes"] / 2**30
    return (
        f"The whole course took {clock(spent['seconds'])} min and at most {memory:.2f} GiB of"
        f" resident memory{devices and f', on {devices}'}."
    )


def check_subject(
    folder: str | Path, class_noun: str | None = None, identifier: str | None = None
) -> None:
    """Refuse a subject that notebook 01 would refuse, before any Python is started for it
    (`BadInput`).
    """
    from lib.dataset import prepare, scan

    if not Path(folder).expanduser().is_dir():
        scan(folder)  # says what is wrong with it, before anything is said about words
    with tempfile.TemporaryDirectory() as scratch:
        # Notebook 01 proposes an identifier if none is given.
        prepare(folder, Path(scratch) / "data", class_noun, identifier or "zwx")


def _parameters(
    settings: dict[str, Any], sources: Sequence[Path], output: Path
) -> list[dict[str, Any]]:
    """The parameters of each notebook. Raises `BadInput` for a setting that none has."""
    import papermill

    missing = [source for source in sources if not source.exists()]
    if missing:
        raise BadInput(
            f"notebook {missing[0]} does not exist: get the whole checkout back, for instance with"
            " `git restore notebooks`"
        )
    known = [papermill.inspect_notebook(str(source)) for source in sources]
    unknown = sorted(set(settings) - set().union(*known))
    if unknown:
        raise BadInput(
            f"no notebook has a parameter named {' or '.join(unknown)}: they have"
            f" {', '.join(sorted(set().union(*known)))}"
        )
    parameters = [
        {"output": str(output)} | {name: value for name, value in settings.items() if name in names}
        for names in known
    ]
    for source, values in zip(sources, parameters):
        if set_up_cells(read_json(source)):
            check_parameters(values)
    return parameters


def _expected(timings: Path, sources: Sequence[Path]) -> dict[str, float]:
    """Seconds per notebook: from the last run where it left them, else the guess."""
    expected = {source.stem: float(NOTEBOOKS.get(source.stem, GUESS)) for source in sources}
    try:
        last = read_json(timings)
        return {name: float(last.get(name, guess)) for name, guess in expected.items()}
    except (ValueError, TypeError):  # none yet, or a damaged one
        return expected


def _whole_number(name: str, text: str | None, least: int) -> int | None:
    if text is None:
        return None
    try:
        value = int(text)
    except ValueError:
        raise BadInput(
            f"{name}={text} is not a whole number: give one, such as {name}={max(least, 100)}"
        ) from None
    if value < least:
        raise BadInput(f"{name}={text} is too small: give {least} or more")
    return value


def run_course(settings: dict[str, str | None], output: str | Path) -> None:
    """`course` with the texts that a command line gives; prints the answer, its table, and where
    the report is.

    Raises `BadInput` and `CourseFailed`.
    """
    checked = settings | {
        "steps": _whole_number("STEPS", settings.get("steps"), 1),
        "seed": _whole_number("SEED", settings.get("seed"), 0),
    }
    summary = course(checked, output)
    print(
        "",
        *summary.get("answer", ()),
        table(summary),
        closing(summary),
        f"Report: {Path(output) / 'report.html'}",
        sep="\n\n",
    )
