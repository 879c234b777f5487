"""Flat rows of numbers and texts: what they may hold, and as CSV tables on disk."""

import csv
import math
import os
from pathlib import Path

from lib.files.errors import BadInput


def flat(row):
    """A job or row with the numbers of numpy and torch made Python's. Raises ValueError for what a
    table cannot hold.
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


def spread(values, before=""):
    """{"lora": {"dino": .8}} as {"lora.dino": .8}; lists and what `units` says are left out."""
    row = {}
    for key, value in values.items():
        if isinstance(value, dict) and key != "units":
            row |= spread(value, f"{before}{key}.")
        elif isinstance(value, int | float | str | None):
            row[before + key] = value
    return row


def write_table(path, rows, first=()):
    """Write flat dicts as CSV, whole or not at all: the columns `first`, then the rest as they
    come. None is an empty cell, True is 1.
    """
    part = Path(path).with_name(f"{Path(path).name}.{os.getpid()}.part")
    with open(part, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(
            file,
            dict.fromkeys([*first, *(key for row in rows for key in row)]),
            lineterminator="\n",
        )
        table.writeheader()
        table.writerows(
            {key: int(value) if isinstance(value, bool) else value for key, value in row.items()}
            for row in rows
        )
    os.replace(part, path)


def read_table(path):
    """The rows of a CSV table as dicts. A column of numbers alone gives int and float, any other
    gives texts; an empty cell is None.

    Raises BadInput if the file is missing or damaged, a row has more or fewer cells than the
    heading, or a number is not finite.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, strict=True)
            (_, heading), *rows = [(lines.line_num, line) for line in lines if line] or [(1, [""])]
        if not all(heading) or len(set(heading)) < len(heading):
            raise ValueError("its first line is no list of different column names")
        for number, line in rows:
            if len(line) != len(heading):
                raise ValueError(f"line {number} has {len(line)} cells, not {len(heading)}")
        columns = [_column(*column) for column in zip(heading, *(line for _, line in rows))]
    except OSError as error:
        raise BadInput(
            f"The table {path} cannot be read ({error.strerror}): check the path."
        ) from None
    except (ValueError, csv.Error) as error:
        raise BadInput(
            f"The table {path} is damaged ({error}): make it again or restore it."
        ) from None
    return [dict(zip(heading, row)) for row in zip(*columns)]


def _column(title, *cells):
    """Cells as numbers if all are: by column, because a hash of digits only is a text among texts."""
    try:
        values = [
            (int(cell) if cell.lstrip("-").isdecimal() else float(cell)) if cell else None
            for cell in cells
        ]
    except ValueError:
        return [cell or None for cell in cells]
    if not all(value is None or math.isfinite(value) for value in values):
        raise ValueError(f"column {title} has a number that is not finite")
    return values


def compact(rows, first):
    """The columns `first` and those numbers that differ between rows, as a text table of at most
    140 characters' width.
    """
    measured = dict.fromkeys(
        key
        for row in rows
        for key, value in row.items()
        if isinstance(value, int | float) and key not in first
    )
    columns = []
    for key in [
        *first,
        *(key for key in measured if len(rows) == 1 or len({row.get(key) for row in rows}) > 1),
    ]:
        values = [row.get(key) for row in rows]
        cells = [
            key,
            *("-" if v is None else f"{v:.4g}" if isinstance(v, float) else str(v) for v in values),
        ]
        columns.append([cell.rjust(max(map(len, cells))) for cell in cells])
    while len(columns) > len(first) and sum(len(column[0]) + 2 for column in columns) > 140:
        columns.pop()
    return "\n".join("  ".join(line) for line in zip(*columns))
