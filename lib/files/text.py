"""Texts for people: progress lines, sizes, times, lists that end in "and 3 more"."""

import os
import unicodedata


def some(names, most=5):
    """A list of names for a sentence: the first few, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def listed(names, most=4):
    """'a, b, c, d and 3 more', for a sentence."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def printable(name):
    """`name` without characters that would break a printed sentence (line breaks, undecodable
    bytes).
    """
    text = os.fsencode(name).decode("utf-8", "replace")
    return unicodedata.normalize("NFC", "".join(c if c.isprintable() else "?" for c in text))


def gib(size):
    """Bytes in words."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def say(text):
    """A progress line, which the course's runner passes on."""
    print(f"[stage] {text}", flush=True)


def clock(seconds):
    """Seconds as minutes and seconds, or with hours: '1:05', '2:00:00'."""
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    return (
        f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
        if minutes >= 60
        else f"{minutes}:{seconds:02d}"
    )
