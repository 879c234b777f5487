"""The editor of `settings`, and a watcher that draws the training live."""

import os
import time
from html import escape
from typing import TYPE_CHECKING, Any

from lib.config import Settings, described
from lib.files import BadInput
from lib.plots import charts
from lib.plots.figure import number
from lib.training import SAMPLE_PLACES, sample_progress

if TYPE_CHECKING:
    from lib.training.loop import State

# What one changes first, with the reason for its value.
REASONS = {
    "steps": (
        "How long it trains. Too few and the subject is missing, too many and only its photos are"
        " left: look at the samples."
    ),
    "learning_rate": (
        "How far a step goes. The preset is the best of a sweep; an adapter takes several times the"
        " rate of all weights."
    ),
    "rank": (
        "How many directions the adapter has in a layer: more hold more, in a larger file. Alpha"
        " follows, so that the scale stays."
    ),
    "batch_size": (
        "Instance pictures a step, and as many of the class. More means a calmer and slower step."
    ),
    "prior_weight": (
        "How much the class images count. 0 leaves them out, and the class may turn into the"
        " subject."
    ),
    "seed": "Where all randomness starts. Another seed shows how much of a result is luck.",
}


def headless() -> bool:
    """True where no one can press a button: outside a notebook, under papermill or nbconvert, or
    with WORKBENCH_HEADLESS=1 (0: False).
    """
    asked = os.environ.get("WORKBENCH_HEADLESS", "")
    if asked in ("0", "1"):
        return asked == "1"
    try:
        from IPython import get_ipython

        # Runners of whole notebooks say that nobody is there to answer an input(); front ends say
        # that somebody is.
        return not get_ipython().get_parent()["content"]["allow_stdin"]
    except (ImportError, AttributeError, KeyError, TypeError):
        return True


def show(widget: Any) -> None:
    """Show a widget below the cell."""
    from IPython.display import display

    display(widget)


class TrainingPanel:
    """The editor of `settings`, and a watcher that draws the training; see `training_panel`."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.state: "State | None" = None  # of the training that is watched
        self.box: Any = None
        self.fields: dict[str, Any] = {}
        self.drawn, self.pause = 0.0, 1.0  # when it was drawn last, and seconds until it may again
        self.shown = 0  # steps with samples that are on the screen

    def editor(self) -> Any:
        """A box with a field for each of `REASONS`; a value that is refused leaves the settings as
        they were and says why.
        """
        import ipywidgets as w

        names = [name for name in REASONS if name != "rank" or self.settings.method == "lora"]
        self.message = w.HTML()
        for name in names:
            value = getattr(self.settings, name)
            self.fields[name] = (w.IntText if isinstance(value, int) else w.FloatText)(
                value=value,
                description=name,
                tooltip=described(Settings)[name].description,
                continuous_update=False,
                style={"description_width": "8em"},
                layout={"width": "16em"},
            )
            self.fields[name].observe(
                lambda change, name=name: self.edit(name, change["new"]), "value"
            )
        lines = [w.HBox([self.fields[name], w.HTML(escape(REASONS[name]))]) for name in names]
        return w.VBox([*lines, self.message])

    def edit(self, name: str, value: float) -> None:
        """Make new settings with the field `name` changed."""
        if value == getattr(self.settings, name):
            return
        changes = {name: value}
        if name == "rank":
            changes["alpha"] = self.settings.alpha / self.settings.rank * value
        if name == "steps" and self.settings.sample_every:
            # As many samples as before; a short run would be left without any.
            every = self.settings.sample_every * value // self.settings.steps
            changes["sample_every"] = max(1, every)
        try:
            self.settings = self.settings.replace(**changes)
            self.message.value = escape(f"{name} is {number(value)} now.")
        except BadInput as error:
            self.fields[name].value = getattr(self.settings, name)
            self.message.value = escape(str(error))

    def __call__(self, state: "State") -> None:
        """Called by `train` after each step: draw now and then, and let a reader stop."""
        if self.state is not state:
            if headless():
                return
            self.begin(state)
        over, new = state.stopping or state.step >= state.steps, len(state.samples) > self.shown
        if over or new or time.monotonic() - self.drawn > self.pause:
            self.draw(over)
        if over:  # nothing to press any more
            self.stop_button.disabled, self.bar.bar_style = True, "success"

    def begin(self, state: "State") -> None:
        """Show the live figure below the cell that trains."""
        import ipywidgets as w

        self.state, self.shown, self.drawn = state, 0, 0.0
        tip = "End after this step and keep what was learnt; interrupting the kernel does the same"
        self.stop_button = w.Button(description="Stop here", icon="stop", tooltip=tip)
        self.stop_button.on_click(lambda _: self.stop())
        self.bar = w.IntProgress(min=0, max=state.steps, description="step")
        self.status, self.loss, self.samples = w.HTML(), w.HTML(), w.HTML()
        self.box = w.VBox(
            [w.HBox([self.stop_button, self.bar, self.status]), self.samples, self.loss]
        )  # the samples tell more
        show(self.box)
        # ipykernel 7.4 hands a click to the shell that made the button, which is busy training; it
        # is to go where the front end sent it.
        if hasattr(self.stop_button.comm, "_reply_subshell_for"):
            self.stop_button.comm._reply_subshell_for = lambda _, sent_to: sent_to

    def stop(self) -> None:
        """What the stop button does."""
        self.stop_button.disabled, self.status.value = True, "stopping after this step"
        # Last, for a click comes in another thread, and what `draw` says of the end must stay.
        if self.state is not None:
            self.state.stop()

    def draw(self, over: bool = False) -> None:
        """Bring the live figure up to date. Takes at most a tenth of the time."""
        state, began = self.state, time.monotonic()
        assert state is not None, "begin comes first"
        self.bar.value = state.step
        left = state.seconds / max(1, state.step) * (state.steps - state.step)
        how = f"about {left:.0f} s left"
        if state.step >= state.steps:
            how = "done"
        elif over:
            how = "stopped; what was learnt is kept"
        self.status.value = escape(f"step {state.step} of {state.steps}, {how}")
        if state.losses:
            figure = charts.curves(
                {"loss": state.losses},
                smooth=20,
                caption="The loss: faint each step, bold the mean of 20",
            )
            self.loss.value = figure._repr_html_().replace(
                "<details open>", "<details>"
            )  # the numbers would push it off the screen
        if len(state.samples) > self.shown:
            self.shown = len(state.samples)
            places = [place or "no place" for place in SAMPLE_PLACES][: len(state.samples[-1][1])]
            self.samples.value = sample_progress(
                state.samples, places, most=3, caption="The subject, from the same seeds"
            )._repr_html_()
        self.drawn = time.monotonic()
        self.pause = max(1.0, 9 * (self.drawn - began))
