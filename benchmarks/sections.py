"""The sections of docs/results.md and of benchmarks/README.md that commands write, each between two marks: what is printed there
is what was measured, as medians with their spread.
"""

import os
import re
import statistics

from lib.files.errors import BadInput
from lib.files.json_file import read_json
from lib.files.paths import ROOT

README = ROOT / "README.md"
RESULTS_PAGE = ROOT / "docs" / "results.md"
OWN_README = ROOT / "benchmarks" / "README.md"


def middle(values):
    """Median with the smallest and largest of a list of numbers."""
    return {
        "median": statistics.median(values),
        "smallest": min(values),
        "largest": max(values),
        "rounds": len(values),
    }


def spread(value, digits=2):
    """What `middle` gives, in words: median (smallest to largest)."""
    return (
        f"{value['median']:.{digits}f} ({value['smallest']:.{digits}f} to"
        f" {value['largest']:.{digits}f})"
    )


def read(path):
    """A result's JSON, or None where nothing was measured yet."""
    return read_json(path) if path.is_file() else None


def rows_before(path, found, *same):
    """The rows that the result `path` holds, where it agrees with `found` in what is named `same`:
    what is not measured again stays.
    """
    old = read(path) or {"rows": []}
    return old["rows"] if all(old.get(name) == found[name] for name in same) else []


def section(path, name):
    """What stands in `path` between the marks of section `name`, or None without them."""
    found = _marks(name).search(path.read_text("utf-8"))
    return found and found[2]


def into_file(path, name, text):
    """Write `text` between the marks of section `name` in `path`; the file is there whole at all
    times.
    """
    if section(path, name) is None:
        raise BadInput(
            f"{path} has no section '{name}' to write to: put '<!-- figures: {name} -->' and '<!--"
            f" end of {name} -->' there."
        )
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(
        _marks(name).sub(lambda m: m[1] + text + m[3], path.read_text("utf-8")), "utf-8"
    )
    os.replace(part, path)


def _marks(name):
    return re.compile(rf"(<!-- figures: {name} -->\n)(.*?)(<!-- end of {name} -->)", re.S)
