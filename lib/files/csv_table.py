"""Flat rows of numbers and texts: what they may hold, and as tables, in CSV and in print."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.files.whole_writes import whole_file

WIDEST = 140  # characters of a table that is printed


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """A job or row with the numbers of numpy and torch made Python's.

    Raises ValueError for what a table cannot hold.
    """
    if not isinstance(row, dict) or not all(isinstance(key, str) and key for key in row):
        raise ValueError(f"{row!r} is no dict of values by name")
    row = {key: value.item() if hasattr(value, "item") else value for key, value in row.items()}
    for key, value in row.items():
        if not isinstance(value, int | float | str | None):
            raise ValueError(f"{key} is a {type(value).__name__}, not a number or a text")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{key} is {value}, not a finite number")
    return row


def spread(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """{"lora": {"dino": .8}} as {"lora.dino": .8}; lists and what `units` says are left out."""
    row = {}
    for key, value in values.items():
        if isinstance(value, dict) and key != "units":
            row |= spread(value, f"{before}{key}.")
        elif isinstance(value, int | float | str | None):
            row[before + key] = value
    return row


def write_table(
    path: str | Path, rows: Sequence[Mapping[str, Any]], first: Iterable[str] = ()
) -> None:
    """Write flat dicts as CSV, whole or not at all: the columns `first`, then the others as found.

    None is an empty cell, True is 1. Raises OSError.
    """
    columns = dict.fromkeys([*first, *(key for row in rows for key in row)])
    with (
        whole_file(path) as unfinished,
        open(unfinished, "w", encoding="utf-8", newline="") as file,
    ):
        table = csv.DictWriter(file, list(columns), lineterminator="\n")
        table.writeheader()
        for row in rows:
            table.writerow({k: int(v) if isinstance(v, bool) else v for k, v in row.items()})


def compact(rows: Sequence[Mapping[str, Any]], first: Sequence[str]) -> str:
    """The columns `first` and those numbers that differ between rows, as a text table.

    Columns that would make it wider than `WIDEST` are left out.
    """
    found = dict.fromkeys(key for row in rows for key in row if key not in first)
    columns = [[key, *(row.get(key) for row in rows)] for key in [*first, *found]]
    shown = columns[: len(first)] + [c for c in columns[len(first) :] if _tells(c[1:])]
    texts = [[_cell(value) for value in column] for column in shown]
    for i, column in enumerate(texts):
        width = max(map(len, column))
        texts[i] = [cell.rjust(width) for cell in column]
    while len(texts) > len(first) and sum(len(column[0]) + 2 for column in texts) > WIDEST:
        texts.pop()
    return "\n".join("  ".join(line) for line in zip(*texts))


def _tells(values):
    """Whether a column says something of the rows: a number that differs, or of the only row."""
    numbers = any(isinstance(value, int | float) for value in values)
    return numbers and (len(values) == 1 or len(set(values)) > 1)


def _cell(value):
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
