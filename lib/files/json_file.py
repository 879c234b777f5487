"""JSON files: read with one clear sentence when that fails, written whole or not at all."""

import json
from pathlib import Path
from typing import Any

from lib.files.errors import BadInput
from lib.files.text import writable
from lib.files.whole_writes import whole_file


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file. Raises BadInput if there is none."""
    try:
        value = json.loads(Path(path).read_text("utf-8-sig"))  # Windows' editors put a mark first
    except FileNotFoundError:
        raise BadInput(f"There is no file {path}: check the path.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(
            f"{path} cannot be read as JSON ({error}): make it again or restore it."
        ) from None
    if not isinstance(value, dict):
        raise BadInput(
            f"{path} holds a {type(value).__name__}, not settings or results by name: make it again"
            " or restore it."
        )
    return value


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON, whole or not at all; the folders on the way are made.

    Raises OSError, and TypeError for what JSON cannot hold.
    """
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    if not writable(text):  # the name of a file that is not in UTF-8; JSON can hold it escaped
        text = json.dumps(value, indent=1) + "\n"
    with whole_file(path) as unfinished:
        unfinished.write_text(text, "utf-8")
