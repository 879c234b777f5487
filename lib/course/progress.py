"""Progress of the course, one line on a terminal or a line now and then in a log, and the memory
that it takes meanwhile.
"""

import re
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Self, TextIO

import psutil
from rich.console import Console
from rich.live import Live
from rich.text import Text
from traitlets.config import Config

from lib.files.text import clock

TICK = 0.25  # seconds between two looks at memory and clock
ENGINE = "course"  # papermill's name for the engine of `register_engine`
# Where both sides can, what kernel and runner say to each other is encrypted; otherwise each kernel
# prints a warning into the progress.
ENCRYPTED = Config(KernelManager={"transport_encryption": "auto"})
# A kernel that is told to end is interrupted first, and calls that an error where it was not quite
# idle. What goes wrong in a cell is raised here.
SILENT = ["--IPKernelApp.log_level=CRITICAL"]
QUIET = 10.0  # a log gets a line at least this often, so that nobody wonders whether it still runs
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)


def headings(cells: Sequence[Any]) -> list[str]:
    """For each cell of a notebook the markdown heading that it stands under, or ''."""
    found, current = [], ""
    for cell in cells:
        if cell.cell_type == "markdown":
            titles = HEADING.findall(re.sub(r"```.*?```", "", cell.source, flags=re.DOTALL))
            current = [current, *titles][-1]
        found.append(current)
    return found


class Progress:
    """Says which notebook, stage and cell runs, for how long, and how long still.

    A context: it ticks while it is open. `expected` is seconds per notebook name, in the order they
    run: from the last run, or a guess. What the finished notebooks took against it corrects the
    time left. Its `write` takes what a notebook prints; lines that start with `[stage]` become the
    stage. `seconds` is what each finished notebook took, `peak` the largest sum of the resident
    memory of this process and its children, in bytes.
    """

    def __init__(self, expected: Mapping[str, float], stream: TextIO | None = None):
        self.expected = dict(expected)
        self.stream = stream or sys.stdout
        self.started = self.began = time.monotonic()
        self.seconds: dict[str, float] = {}
        self.peak = 0
        self.notebook: str | None = None
        self.stage = ""
        self.cell: int | None = None  # none before the notebook's Python has started
        self.cells = 0
        self.titles: list[str] = []
        self._unfinished_line = ""
        self._said: tuple[str | None, str] | None = None
        self._said_at = 0.0
        self._live: Live | None = None
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        if self.stream.isatty():
            # A line that is drawn again in place; what others print meanwhile goes above it.
            width = shutil.get_terminal_size().columns - 1
            console = Console(file=self.stream, force_terminal=True, width=width)
            self._live = Live(console=console, auto_refresh=False, transient=True)
            self._live.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self._live:
            self._live.stop()

    def begin(self, notebook: str) -> None:
        """A notebook starts; its kernel is not there yet."""
        with self._lock:
            self.notebook, self.stage = notebook, "starting Python"
            self.cell, self.cells = None, 0
            self._unfinished_line = ""
            self.began = time.monotonic()
            self.say()

    def at(self, cell: int, cells: Sequence[Any]) -> None:
        """Cell number `cell` (from 0) of the notebook's `cells` starts."""
        with self._lock:
            if self.cell is None:
                self.titles, self.cells = headings(cells), len(cells)
            self.cell = cell
            self.stage = self.titles[cell] or self.stage

    @property
    def heading(self) -> str:
        """The markdown heading that the current cell stands under, or ''."""
        return self.titles[self.cell] if self.cell is not None and self.titles else ""

    def write(self, text: str) -> None:
        """Text that the notebook printed, in pieces of any size."""
        *lines, self._unfinished_line = re.split(r"[\r\n]", self._unfinished_line + text)
        for line in lines:
            if line.startswith("[stage]"):
                self.stage = line.removeprefix("[stage]").strip()

    def flush(self) -> None:
        """Do nothing, for nothing is held back. (papermill calls it.)"""

    def done(self) -> None:
        """The notebook has ended well."""
        with self._lock:
            assert self.notebook is not None, "begin comes first"
            self.seconds[self.notebook] = time.monotonic() - self.began
            self.stage = f"done in {clock(self.seconds[self.notebook])}"
            self.cell = self.cells - 1
            self.say(stays=True)
            self.notebook = None

    def left(self) -> tuple[float, bool]:
        """Seconds that are left, and whether that is the least: the notebook is over its time."""
        taken = sum(self.seconds.values())
        planned = sum(self.expected.get(name, 0) for name in self.seconds)
        pace = max(taken / planned, 0.2) if planned else 1.0
        to_come = sum(
            seconds
            for name, seconds in self.expected.items()
            if name not in self.seconds and name != self.notebook
        )
        if self.notebook is None or self.notebook in self.seconds:
            return pace * to_come, False
        spent, own = time.monotonic() - self.began, self.expected.get(self.notebook, 0)
        if spent < pace * own:
            return pace * (own + to_come) - spent, False
        # Slower than thought, so the others will be too.
        return max(pace, (taken + spent) / max(planned + own, 1)) * to_come, True

    def line(self) -> str:
        """The state in one line."""
        names = list(self.expected)
        left, over = self.left()
        number = (
            f"[{names.index(self.notebook) + 1}/{len(names)}] " if self.notebook in names else ""
        )
        cell = f"cell {self.cell + 1}/{self.cells}, " if self.cell is not None else ""
        remaining = "longer than expected" if over else "last notebook done"
        if left:
            remaining = f"{'at least' if over else 'about'} {clock(left)} left"
        elapsed = clock(time.monotonic() - self.started)
        return f"{number}{self.notebook}: {cell}{elapsed} elapsed, {remaining}: {self.stage}"

    def say(self, stays: bool = False) -> None:
        """Show the state now. On a terminal it is overwritten by the next, unless it `stays`."""
        with self._lock:
            self._said, self._said_at = (self.notebook, self.stage), time.monotonic()
            if not self._live:
                print(self.line(), file=self.stream, flush=True)
                return
            line = Text(self.line(), no_wrap=True, overflow="ellipsis")
            self._live.update("" if stays else line, refresh=True)
            if stays:
                self._live.console.print(line, no_wrap=True, overflow="ellipsis")

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._over.wait(TICK):
            resident = 0
            for process in [me, *me.children(recursive=True)]:
                with suppress(psutil.Error):  # it has just ended
                    resident += process.memory_info().rss
            self.peak = max(self.peak, resident)
            with self._lock:
                waited = time.monotonic() - self._said_at
                news = self._said != (self.notebook, self.stage) and waited > 1
                if self.notebook and (self._live or news or waited > QUIET):
                    self.say()


def register_engine() -> None:
    """Tell papermill of `ENGINE`: its own engine, with `progress.at(index, cells)` called before
    each cell.
    """
    # Late: it takes seconds.
    from papermill.engines import NBClientEngine, papermill_engines

    class CourseEngine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(
            cls, nb_man: Any, kernel_name: str, progress: Any = None, **options: Any
        ) -> Any:
            """Run the notebook that `nb_man` holds, watched by `progress`."""
            start = nb_man.cell_start

            def cell_start(cell: Any, cell_index: int | None = None, **more: Any) -> Any:
                progress.at(cell_index, nb_man.nb.cells)
                return start(cell, cell_index, **more)

            nb_man.cell_start = cell_start
            return super().execute_managed_notebook(
                nb_man, kernel_name, config=ENCRYPTED, extra_arguments=SILENT, **options
            )

    papermill_engines.register(ENGINE, CourseEngine)
