"""The widgets of `panels.upload_panel`: photos from one's own machine into a folder of this one."""

from collections.abc import Iterator
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from lib.dataset.folder_scan import ARCHIVES
from lib.files import BadInput, listed, printable
from lib.files.paths import fitting_name
from lib.files.whole_writes import unwritable_refused, whole_file
from lib.widgets.showing import Leave, answer_at_once, show
from lib.widgets.start_button import StartButton

# What a browser offers to choose: photos, and what says their words.
ACCEPTED = "image/*,.heic,.heif,.hif,.avif,.jp2,.tga,.txt,.caption,.jsonl,.csv,.json"


class UploadPanel:
    """The widgets of `upload_panel`, laid out in `box`.

    `folder` is where the photos are: `subject`, or a new folder beside `into` once something was
    uploaded. An earlier upload is neither mixed with a new one nor used without being named.
    With a `start` there are a field for the class noun and a button of that name, for which `wait`
    waits.
    """

    def __init__(self, subject: str, into: str | Path, class_noun: str = "", start: str = ""):
        self.subject, self.into, self.given_noun = subject, Path(into), class_noun
        self.target = _unused(self.into.expanduser())
        self.written: list[str] = []
        self.start = StartButton(start)
        self.leave: Leave | None = None  # once it is shown to somebody

    # Made when they are asked for: without a front end nobody does, and a notebook keeps the state
    # of each widget that was made.

    @cached_property
    def choose(self) -> Any:
        """The button that files are chosen by."""
        import ipywidgets as w

        button = w.FileUpload(accept=ACCEPTED, multiple=True, description="Upload photos")
        button.layout.width = "max-content"  # it counts the files behind its name
        button.observe(self.uploaded, "value")
        answer_at_once(button)
        return button

    @cached_property
    def noun(self) -> Any:
        """The field for what kind of thing is on the photos."""
        import ipywidgets as w

        field = w.Text(value=self.given_noun, description="this is a", placeholder="toy")
        field.observe(lambda _: self.start.hold(), "value")
        answer_at_once(field)
        return field

    @cached_property
    def message(self) -> Any:
        """The line that says what is used."""
        import ipywidgets as w

        return w.HTML(escape(self._before()))

    @cached_property
    def box(self) -> Any:
        """All of it, to be shown."""
        import ipywidgets as w

        more = [self.noun, self.start.box] if self.start.words else []
        return w.VBox([self.choose, self.message, *more])

    @property
    def class_noun(self) -> str:
        """What kind of thing is on the photos; empty for what their folder says."""
        return self.noun.value.strip() if self.leave and self.start.words else self.given_noun

    @class_noun.setter
    def class_noun(self, given: str) -> None:
        self.given_noun = given
        if self.leave:
            self.noun.value = given

    def show(self) -> None:
        """Show it below the cell."""
        self.leave = show(self.box)

    def wait(self) -> None:
        """Return when the button is pressed, or nobody did anything for a while; at once where it
        is not shown.
        """
        if self.leave:
            self.start.wait()
            self.leave(self.message.value)

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
        self.start.hold()
        told, names, archives = "", [], []
        try:
            for name, content in _files(self.choose.value):
                if Path(name).suffix.lower() in ARCHIVES:
                    archives.append(printable(name))
                else:
                    names.append(self._write(name, content))
        except BadInput as error:
            told = f" {error}"
        self.written = list(dict.fromkeys([*self.written, *names]))
        if archives:
            told += f" {listed(archives)}: an archive; unpack it and choose the photos in it."
        used = f"{len(self.written)} files are in {self.target}"
        if self.written:
            used += f" and are used in place of {self.subject}. Now {self._next()}"
        self.message.value = escape(f"{used}: {listed(self.written) or 'none'}.{told}")

    def _next(self) -> str:
        """What somebody has to do then."""
        if not self.start.words or self.start.pressed.is_set():
            return "run the cells below (again)"
        return f"say what they show, and press '{self.start.words}'"

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
