"""Where the project lies, and what files are called."""

import os
from pathlib import Path

from lib.files.errors import BadInput
from lib.files.text import printable, writable

ROOT = Path(__file__).resolve().parents[2]

# Pickles run code when they are opened, so that no file with such an ending is.
PICKLE_ENDINGS = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle")

LONGEST_NAME = 255  # bytes, on every common disk


def fitting_name(name: str, ending: str) -> str:
    """`name` with an `ending`, cut where both together are too long for a disk."""
    while name and len(os.fsencode(name + ending)) > LONGEST_NAME:
        name = name[:-1]
    return name + ending


def check_path(setting: str, text: str) -> None:
    """Raise BadInput for a path that no disk can hold, or no file of settings.

    That is a name too long, one with a zero byte, one that is not in the system's encoding, or the
    home of a user (~somebody) that there is not.
    """
    if not writable(text):
        raise BadInput(
            f"Setting '{setting}' is {printable(text)}, which is no text in this system's encoding:"
            " write it in plain letters, or set PYTHONUTF8=1."
        )
    longest = max(len(os.fsencode(name)) for name in Path(text).parts or [""])
    if longest > LONGEST_NAME:
        raise BadInput(
            f"Setting '{setting}' has a name of {longest} bytes in it, and a disk takes"
            f" {LONGEST_NAME}: choose a shorter one."
        )
    if "\0" in text:
        raise BadInput(f"Setting '{setting}' has a zero byte in it: write it without.")
    try:
        Path(text).expanduser()
    except RuntimeError as error:
        raise BadInput(
            f"Setting '{setting}' is {printable(text)}, and there is no such user: write the path"
            " whole."
        ) from error
