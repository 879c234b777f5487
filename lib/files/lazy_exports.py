"""Names that a package offers, imported when they are first asked for.

Importing torch or diffusers takes seconds, so a package must not import all of its modules only
because one of them is needed. The names are written once, as plain imports under
`if TYPE_CHECKING:`, which type checkers read and Python skips:

    if TYPE_CHECKING:
        from lib.dataset.folder_scan import report, scan

    __getattr__, __dir__ = lazy_exports(__name__, __file__)

Only the standard library is used, since notebooks import `lib` before its packages are installed.
"""

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def lazy_exports(package: str, source: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` (PEP 562) of a package, from the imports in its `__init__`.

    package: the package's name. source: the path of its `__init__.py`. Raises AttributeError, as
    any module does, for a name that is not offered.
    """
    owners = offered(source)

    def get(name: str) -> Any:
        if name not in owners:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(owners[name]), name)
        setattr(import_module(package), name, value)  # asked for once
        return value

    def names() -> list[str]:
        return sorted(owners)

    return get, names


def offered(source: str) -> dict[str, str]:
    """{name: module that defines it} of the imports under `if TYPE_CHECKING:` in a file."""
    tree = ast.parse(Path(source).read_text("utf-8"))
    return {
        name.name: statement.module or ""
        for block in tree.body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for name in statement.names
    }
