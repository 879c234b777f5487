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
    while len(os.fsencode(name + ending)) > LONGEST_NAME:
        name = name[:-1]
    return name + ending


def home_path(path: str | os.PathLike) -> Path:
    """`path`, with the folder of a user where it begins with ~.

    Raises BadInput where this machine knows no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise BadInput(
            f"{printable(path)} begins with a user whom this machine does not know: write the whole"
            " path."
        ) from None


def real_path(path: str | os.PathLike) -> Path:
    """`path` from the disk's root, without links; links in a circle stay, and cannot be opened."""
    return Path(os.path.realpath(home_path(path)))


def check_path(setting: str, text: str) -> None:
    """Raise BadInput for a path that no disk can hold, or no file of settings.

    That is a name too long, one with a zero byte, one that is not in the system's encoding, or one
    in the folder of a user who is not there.
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
    home_path(text)
