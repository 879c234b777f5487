"""Texts for people: progress lines, sizes, times, lists that end in "and 3 more"."""

import os
import sys
import time
import traceback
import unicodedata
from collections.abc import Callable, Iterable


def listed(names: Iterable[str], most: int = 4) -> str:
    """'a, b, c, d and 3 more', for a sentence."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def printable(name: str | os.PathLike) -> str:
    """`name` without what would break a printed sentence: line breaks, undecodable bytes."""
    text = os.fsencode(name).decode("utf-8", "replace")
    return unicodedata.normalize("NFC", "".join(c if c.isprintable() else "?" for c in text))


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its type's name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def last_line(error: BaseException) -> str:
    """The last line of what Python would print of an exception: "ValueError: rank is 0"."""
    return "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]


def writable(text: str, encoding: str = "utf-8") -> bool:
    """Whether an encoding has every character of `text`."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def say(text: str) -> None:
    """Print a progress line, which the course's runner passes on."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    if not writable(text, encoding):
        text = text.encode(encoding, "replace").decode(encoding)
    print(f"[stage] {text}", flush=True)


def progress_lines(what: str, every: float = 5.0) -> Callable[[int, int], None]:
    """A function (done, total) that prints how far work is, at most each `every` seconds.

    On standard error, for what a command prints is its result; nothing where it is quick.
    """
    started = last = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < every:
            return
        last, spent = now, now - started
        left = f"{clock(spent)} elapsed, about {clock(spent * (total - done) / done)} left"
        print(f"{what}: {done} of {total}, {left}", file=sys.stderr, flush=True)

    return tell


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds, or with hours: '1:05', '2:00:00'."""
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    if minutes < 60:
        return f"{minutes}:{seconds:02d}"
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def amount(value: float, unit: str) -> str:
    """A measurement with its unit ("s", "bytes" or another): "0.242 s", "20.8 MiB", "0.613"."""
    if unit == "s":
        return f"{value:.3g} s"
    if unit == "bytes":
        return f"{value / 2**20:.3g} MiB"
    return f"{value:.3f}"


def size_text(size: float) -> str:
    """Bytes with three digits, in GiB, or in MiB below half of one."""
    return f"{size / 2**30:.3g} GiB" if size >= 2**29 else amount(size, "bytes")


def rough_size(size: float) -> str:
    """Bytes to a tenth of a GiB, or below half of one to a whole MiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.0f} MiB"


def gib_cell(size: float | None) -> str:
    """Bytes as GiB with two digits, for a table's cell; a dash for what is not known."""
    return "-" if size is None else f"{size / 2**30:.2f}"
