"""The rows of CSV tables that `lib.files.csv_table` wrote, checked."""

import csv
import math
from pathlib import Path
from typing import Any

from lib.files import BadInput


def read_table(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a CSV table as dicts; an empty cell is None.

    A column of numbers alone gives int and float, any other gives texts. Raises BadInput if the
    file is missing or damaged, a row has more or fewer cells than the heading, or a number is not
    finite.
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
    """Cells as numbers if all are, for a hash of digits only is a text among texts."""
    try:
        values = [_as_number(cell) if cell else None for cell in cells]
    except ValueError:
        return [cell or None for cell in cells]
    if not all(value is None or math.isfinite(value) for value in values):
        raise ValueError(f"column {title} has a number that is not finite")
    return values


def _as_number(cell):
    return int(cell) if cell.lstrip("-").isdecimal() else float(cell)
