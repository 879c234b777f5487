"""JSON files: read with one clear sentence when that fails, written whole or not at all."""

import json
import os
from pathlib import Path

from lib.files.errors import BadInput


def read_json(path):
    """The object in a JSON file. Raises BadInput if there is none."""
    try:
        value = json.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise BadInput(f"There is no file {path}: check the path.") from None
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{path} cannot be read as JSON ({error}): make it again or restore it."
        ) from None
    if not isinstance(value, dict):
        raise BadInput(
            f"{path} holds a {type(value).__name__}, not settings or results by name: make it again"
            " or restore it."
        )
    return value


def write_json(path, value):
    """Write JSON through a temporary name, so that the file is there whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")
    os.replace(part, path)
