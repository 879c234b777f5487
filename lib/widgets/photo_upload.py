"""The widgets of `panels.upload_panel`: photos from one's own machine into a folder of this one."""

from collections.abc import Iterator
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from lib.files import BadInput, listed, printable
from lib.files.paths import fitting_name
from lib.files.whole_writes import unwritable_refused, whole_file

ARCHIVES = (".zip", ".rar", ".7z", ".tar", ".gz", ".tgz")

# What a browser offers to choose: photos, and what says their words.
ACCEPTED = "image/*,.heic,.heif,.hif,.avif,.jp2,.tga,.txt,.caption,.jsonl,.csv,.json"


class UploadPanel:
    """The widgets of `upload_panel`, laid out in `box`.

    `folder` is where the photos are: `subject`, or a new folder beside `into` once something was
    uploaded. An earlier upload is neither mixed with a new one nor used without being named.
    """

    def __init__(self, subject: str, into: str | Path):
        self.subject, self.into = subject, Path(into)
        self.target = _unused(self.into.expanduser())
        self.written: list[str] = []

    # Made when they are asked for: without a front end nobody does, and a notebook keeps the state
    # of each widget that was made.

    @cached_property
    def choose(self) -> Any:
        """The button that files are chosen by."""
        import ipywidgets as w

        button = w.FileUpload(accept=ACCEPTED, multiple=True, description="Upload photos")
        button.observe(self.uploaded, "value")
        return button

    @cached_property
    def message(self) -> Any:
        """The line that says what is used."""
        import ipywidgets as w

        return w.HTML(escape(self._before()))

    @cached_property
    def box(self) -> Any:
        """All of it, to be shown."""
        import ipywidgets as w

        return w.VBox([self.choose, self.message])

    @property
    def folder(self) -> str:
        """Where the photos are."""
        return str(self.target) if self.written else self.subject

    def _before(self) -> str:
        """What is said before anything is uploaded."""
        text = f"Without an upload the photos are those of {self.subject}."
        if self.target != self.into.expanduser():
            text += (
                f" What was uploaded before is in {self.into}: set subject to that to use it again."
            )
        return text

    def uploaded(self, _: Any) -> None:
        """Files came: write them, and say which, and which not."""
        told, names, archives = "", [], []
        try:
            for name, content in _files(self.choose.value):
                if Path(name).suffix.lower() in ARCHIVES:
                    archives.append(printable(name))
                else:
                    names.append(self._write(name, content))
        except BadInput as error:
            told = f" {error}"
        self.written += [name for name in names if name not in self.written]
        if archives:
            told += f" {listed(archives)}: an archive; unpack it and choose the photos in it."
        used = f"{len(self.written)} files are in {self.target}"
        if self.written:
            used += f" and are used in place of {self.subject}. Now run the cells below (again)"
        self.message.value = escape(f"{used}: {listed(self.written) or 'none'}.{told}")

    def _write(self, name: str, content: bytes) -> str:
        """Write one file under its name, or a numbered one where another has that; the name."""
        name = Path(name.replace("\\", "/")).name.lstrip(".") or "photo"
        stem, ending = Path(name).stem, Path(name).suffix
        number, path = 1, self.target / fitting_name(stem, ending)
        while path.exists() and not (path.is_file() and path.read_bytes() == content):
            number += 1
            path = self.target / fitting_name(stem, f" ({number}){ending}")
        with unwritable_refused(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as unfinished:
                unfinished.write_bytes(content)
        return printable(path.name)


def _unused(folder: Path) -> Path:
    """`folder`, or the first of "folder-2", ... that holds nothing."""
    number, found = 1, folder
    while found.is_dir() and any(found.iterdir()):
        number += 1
        found = folder.with_name(f"{folder.name}-{number}")
    return found


def _files(value: Any) -> Iterator[tuple[str, bytes]]:
    """(name, content) of what a FileUpload holds: ipywidgets 8 has a tuple, 7 (Colab's) a dict."""
    if isinstance(value, dict):
        value = [{"name": name} | each for name, each in value.items()]
    for each in value:
        yield str(each["name"]), bytes(each["content"])
