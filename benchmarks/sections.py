"""The sections of a README that commands write, each between two marks: what is printed there is what was measured."""

import os
import re

from lib.base import ROOT
from lib.settings import read_json

README = ROOT / "README.md"


def read(path):
    """A result's JSON, or None where nothing was measured yet."""
    return read_json(path) if path.is_file() else None


def section(path, name):
    """What stands in `path` between the marks of section `name`, or None without them."""
    found = _marks(name).search(path.read_text("utf-8"))
    return found and found[2]


def into_file(path, name, text):
    """Write `text` between the marks of section `name` in `path`; the file is there whole at all times."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(_marks(name).sub(lambda m: m[1] + text + m[3], path.read_text("utf-8")), "utf-8")
    os.replace(part, path)


def _marks(name):
    return re.compile(rf"(<!-- figures: {name} -->\n)(.*?)(<!-- end of {name} -->)", re.S)
