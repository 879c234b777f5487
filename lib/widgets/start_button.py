"""A button that a cell waits for, so that "run all" leaves time to look and to change something."""

import threading
import time
from functools import cached_property
from html import escape
from typing import Any

from lib.files import say
from lib.widgets.showing import answer_at_once

PATIENCE = 30.0  # seconds that a cell waits for somebody who does nothing


class StartButton:
    """The button `words`, with a line beside it, laid out in `box`.

    `wait` returns when it is pressed, or after `PATIENCE` seconds in which nobody did anything: not
    every front end passes a click on while a cell runs, and nobody may be kept waiting for one that
    cannot come. Pressed before, it is not waited for, and no more after the first time.
    """

    def __init__(self, words: str):
        self.words, self.pressed = words, threading.Event()
        self.waiting = self.held = False

    @cached_property
    def button(self) -> Any:
        import ipywidgets as w

        button = w.Button(description=self.words, icon="play", button_style="primary")
        button.layout.width = "max-content"  # whatever its words are
        button.on_click(lambda _: self.press())
        answer_at_once(button)
        return button

    @cached_property
    def message(self) -> Any:
        import ipywidgets as w

        return w.HTML()

    @cached_property
    def box(self) -> Any:
        import ipywidgets as w

        return w.HBox([self.button, self.message], layout={"flex_flow": "row wrap"})

    def press(self) -> None:
        """What the button does."""
        if not self.waiting:
            self.tell("Now run the cells below.")
        self.pressed.set()

    def hold(self) -> None:
        """Somebody changed something: wait for the button, however long it takes.

        Only a change that came while the cell waited says that a click can come too.
        """
        self.held = self.waiting

    def tell(self, text: str) -> None:
        """Say something beside the button."""
        self.message.value = escape(text)

    def wait(self) -> None:
        """Return when the button is pressed, or nobody did anything for a while."""
        end, said = time.monotonic() + PATIENCE, ""
        if not self.pressed.is_set():
            say(f"waiting for the button '{self.words}', {PATIENCE:.0f} seconds at most")
        self.waiting = True
        try:
            while not self.pressed.wait(0.1) and (self.held or time.monotonic() < end):
                left = f"It begins by itself in {end - time.monotonic():.0f} s."
                text = "Press it when you are ready." if self.held else left
                if text != said:
                    self.tell(text)
                said = text
        finally:
            self.waiting = self.held = False
        self.pressed.set()
        self.tell("")
