"""A Chromium for tests: the system's (Debian's package `chromium`, Chrome) or the one that
`playwright install chromium` fetched. Who imports this is skipped where either it or the extra
`browser` is missing.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser`")

SYSTEM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)


@contextmanager
def chromium() -> Iterator:
    """A browser without a window."""
    with playwright.sync_playwright() as play:
        if not SYSTEM and not Path(play.chromium.executable_path).exists():
            pytest.skip("there is no Chromium here")
        made = play.chromium.launch(executable_path=SYSTEM or None, args=["--no-sandbox"])
        yield made
        made.close()
