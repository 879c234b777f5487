"""Progress of the course on a terminal (one line, redrawn) or in a log (a line now and then), and
the memory it takes meanwhile.
"""

import re
import shutil
import sys
import threading
import time

from lib.files.text import clock

TICK = 0.25  # seconds between two looks at memory and clock


QUIET = 10.0  # a log gets a line at least this often, so that nobody wonders whether it still runs


HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)


def headings(cells):
    """For each cell of a notebook the markdown heading that it stands under, or ''."""
    found, current = [], ""
    for cell in cells:
        if cell.cell_type == "markdown":
            titles = HEADING.findall(re.sub(r"```.*?```", "", cell.source, flags=re.DOTALL))
            current = titles[-1] if titles else current
        found.append(current)
    return found


class Progress:
    """Says which notebook, stage and cell runs, for how long, and how long still. A context: it
    ticks while it is open.

    `expected` is seconds per notebook name, in the order they run: from the last run, or a guess.
    What the finished notebooks took against it corrects the rest. Its `write` takes what a notebook
    prints; lines that start with `[stage]` become the stage.
    """

    def __init__(self, expected, stream=None):
        self.expected, self.stream = dict(expected), stream or sys.stdout
        self.terminal = self.stream.isatty()
        self.started, self.seconds, self.peak = time.monotonic(), {}, 0
        self.notebook, self.stage, self.cells, self.cell, self.titles, self.rest = (
            None,
            "",
            0,
            None,
            [],
            "",
        )
        self._said, self._said_at, self._lock, self._over = (
            None,
            0.0,
            threading.RLock(),
            threading.Event(),
        )
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()
        self._clear()

    def begin(self, notebook):
        """A notebook starts; its kernel is not there yet."""
        with self._lock:
            self.notebook, self.stage, self.cell, self.cells, self.rest = (
                notebook,
                "starting Python",
                None,
                0,
                "",
            )
            self.began = time.monotonic()
            self.say()

    def at(self, cell, cells):
        """Cell number `cell` (from 0) of the notebook's `cells` starts."""
        with self._lock:
            if self.cell is None:
                self.titles, self.cells = headings(cells), len(cells)
            self.cell, self.stage = cell, self.titles[cell] or self.stage

    @property
    def heading(self):
        """The markdown heading that the current cell stands under, or ''."""
        return self.titles[self.cell] if self.cell is not None and self.titles else ""

    def write(self, text):
        """Text that the notebook printed, in pieces of any size."""
        *lines, self.rest = re.split(r"[\r\n]", self.rest + text)
        for line in lines:
            if line.startswith("[stage]"):
                self.stage = line.removeprefix("[stage]").strip()

    def flush(self):
        """Nothing is held back; papermill wants to be able to ask."""

    def done(self):
        """The notebook has ended well."""
        with self._lock:
            self.seconds[self.notebook] = time.monotonic() - self.began
            self.stage, self.cell = f"done in {clock(self.seconds[self.notebook])}", self.cells - 1
            self.say()
            self.notebook = None

    def left(self):
        """(seconds that the rest should take, whether that is a lower bound because the current
        notebook is over its time).
        """
        taken, planned = (
            sum(self.seconds.values()),
            sum(self.expected.get(name, 0) for name in self.seconds),
        )
        pace = max(taken / planned, 0.2) if planned else 1.0
        to_come = sum(
            seconds
            for name, seconds in self.expected.items()
            if name not in self.seconds and name != self.notebook
        )
        if self.notebook is None or self.notebook in self.seconds:
            return pace * to_come, False
        now, own = time.monotonic() - self.began, self.expected.get(self.notebook, 0)
        if now < pace * own:
            return pace * (own + to_come) - now, False
        return (
            max(pace, (taken + now) / max(planned + own, 1)) * to_come,
            True,
        )  # slower than thought, so the rest will be too

    def line(self):
        """The state in one line."""
        names, (left, over) = list(self.expected), self.left()
        number = (
            f"[{names.index(self.notebook) + 1}/{len(names)}] " if self.notebook in names else ""
        )
        cell = f"cell {self.cell + 1}/{self.cells}, " if self.cell is not None else ""
        rest = (
            f"{'at least' if over else 'about'} {clock(left)} left"
            if left
            else "longer than expected"
            if over
            else "last notebook done"
        )
        return (
            f"{number}{self.notebook}: {cell}{clock(time.monotonic() - self.started)} elapsed,"
            f" {rest}: {self.stage}"
        )

    def say(self):
        """Print the state now."""
        with self._lock:
            self._said, self._said_at = (self.notebook, self.stage), time.monotonic()
            text = self.line()
            if self.terminal:
                end = "\n" if self.stage.startswith("done in") else ""
                self.stream.write("\r\x1b[K" + text[: shutil.get_terminal_size().columns - 1] + end)
            else:
                self.stream.write(text + "\n")
            self.stream.flush()

    def _clear(self):
        if self.terminal:
            self.stream.write("\r\x1b[K")
            self.stream.flush()

    def _watch(self):
        import psutil

        me = psutil.Process()
        while not self._over.wait(TICK):
            resident = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    resident += process.memory_info().rss
                except psutil.Error:  # it has just ended
                    pass
            self.peak = max(self.peak, resident)
            with self._lock:
                waited = time.monotonic() - self._said_at
                news = self._said != (self.notebook, self.stage) and waited > 1
                if self.notebook and (self.terminal or news or waited > QUIET):
                    self.say()
