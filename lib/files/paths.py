"""Where the project lies, and what files are called."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Pickles run code when they are opened, so that no file with such an ending is.
PICKLE_ENDINGS = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle")
