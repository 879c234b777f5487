"""The editor of `settings`, and a watcher that draws the training live."""

import contextvars
import threading
import time
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.config import METHOD_NAMES, Settings, described
from lib.files import BadInput, say
from lib.plots import charts
from lib.plots.figure import number
from lib.training import SAMPLE_PLACES, sample_progress
from lib.widgets.showing import Leave, answer_at_once, headless, show
from lib.widgets.start_button import StartButton

if TYPE_CHECKING:
    from lib.models import Base
    from lib.training.loop import State, Watcher

# More watchers of a training, from its settings and the base model that it will use up.
Watchers = Callable[[Settings, "Base"], Sequence["Watcher"]]

# What one changes first, with the reason for its value.
REASONS = {
    "steps": (
        "How long it trains. Too few and the subject is missing, too many and only its photos are"
        " left: look at the samples."
    ),
    "learning_rate": (
        "How far a step goes. On the pocket base the preset is the lowest of a sweep's best, on"
        " others the usual value. An adapter takes a higher rate than all weights do."
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


class TrainingPanel:
    """The editor of `settings`, and a watcher that draws the training; see `training_panel`.

    model: the base model of the last `train`, with what was learnt.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.model: "Base | None" = None
        self.watchers: Watchers | None = None
        self.start = StartButton("Train")
        self.training = self.resuming = False
        self.going: threading.Thread | None = None  # the training that the button went on with
        self.state: "State | None" = None  # of the training that is watched
        self.box: Any = None
        self.leave: Leave | None = None
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
            answer_at_once(self.fields[name])
        narrow: Any = {"flex_flow": "row wrap"}  # a reason goes below its field where both are wide
        lines = [
            w.HBox([self.fields[name], w.HTML(escape(REASONS[name]))], layout=narrow)
            for name in names
        ]
        return w.VBox([*lines, self.message, self.start.box])

    def edit(self, name: str, value: float) -> None:
        """Make new settings with the field `name` changed, unless a training runs by them."""
        now = getattr(self.settings, name)
        if value == now:
            return
        if self.training:
            self.fields[name].value = now
            self.message.value = escape(
                f"{name} stays {number(now)}, for a training runs by it: stop it or wait for its"
                " end, change the field, and run the cell below again."
            )
            return
        self.start.hold()
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

    def train(self, watchers: Watchers | None = None) -> Path:
        """Wait for the button, where somebody can press it, train by the settings on a base model
        loaded afresh, and return the run folder.

        Raises as `lib.training.train` does. May be called again, any time: a run that was stopped
        goes on, one by the same settings that is finished is returned.
        """
        if self.fields:
            self.start.wait()
        if self.going:
            self.going.join()
        self.watchers = watchers
        return self._train()

    def _train(self) -> Path:
        from lib.models import load_base
        from lib.training import train

        self.training = True
        try:
            say(f"loading the base model '{self.settings.base}'")
            self.model = load_base(self.settings.base)
            more: Sequence[Watcher] = ()
            if self.watchers:
                say("measuring the base model before any step")
                more = self.watchers(self.settings, self.model)
            run = train(self.settings, self.model, watchers=[self, *more])
            if self.state and self.state.stopping:  # maybe after this watcher saw the last step
                self.draw(over=True)
                self.end(self.state)
            return run
        finally:
            self.training = False

    def __call__(self, state: "State") -> None:
        """Called by `train` after each step: draw now and then, and let a reader stop."""
        if self.state is not state:
            if headless() and not self.resuming:
                return
            self.begin(state)
        over, new = state.stopping or state.step >= state.steps, len(state.samples) > self.shown
        if over or new or time.monotonic() - self.drawn > self.pause:
            self.draw(over)
        if over:
            self.end(state)

    def end(self, state: "State") -> None:
        """Nothing is to be stopped any more; what was cut short can go on."""
        self.stop_button.disabled, self.bar.bar_style = True, "success"
        if state.step < state.steps and self.model:
            self.go_on_button.disabled = False
        if self.leave:
            self.leave(f"<p>{self.status.value}</p>{self.samples.value}{self.loss.value}")

    def go_on(self) -> None:
        """What the button to go on does: the training, from where it was stopped.

        In a thread of its own: clicks come one after the other, and the one that stops it must not
        wait for its end.
        """
        if self.training:
            return
        self.go_on_button.disabled, self.training, self.resuming = True, True, True
        self.status.value = "going on: the base model is loaded"
        context = contextvars.copy_context()  # by it the notebook knows where outputs belong
        self.going = threading.Thread(target=context.run, args=(self._go_on,), daemon=True)
        self.going.start()

    def _go_on(self) -> None:
        try:
            self._train()
            self.status.value += ". Run the cells below again"
        except Exception as error:  # in a thread of its own nobody else tells it
            self.status.value = escape(str(error) or type(error).__name__)
            self.go_on_button.disabled = False
        finally:
            self.training = self.resuming = False

    def begin(self, state: "State") -> None:
        """Show the live figure below the cell that trains, or go on in the one that is there."""
        import ipywidgets as w

        self.state, self.shown, self.drawn = state, 0, 0.0
        if self.resuming:
            self.stop_button.disabled, self.bar.bar_style = False, ""
            return
        tip = "End after this step and keep what was learnt; interrupting the kernel does the same"
        self.stop_button = w.Button(description="Stop here", icon="stop", tooltip=tip)
        self.stop_button.on_click(lambda _: self.stop())
        tip = "Train on from where it was stopped"
        self.go_on_button = w.Button(description="Go on", icon="play", tooltip=tip, disabled=True)
        self.go_on_button.on_click(lambda _: self.go_on())
        self.bar = w.IntProgress(min=0, max=state.steps, description="step")
        self.status, self.loss, self.samples = w.HTML(), w.HTML(), w.HTML()
        self.box = w.VBox(
            [
                w.HBox(
                    [self.stop_button, self.go_on_button, self.bar, self.status],
                    layout={"flex_flow": "row wrap"},
                ),
                self.samples,  # they tell more than the loss
                self.loss,
            ]
        )
        self.leave = show(self.box)
        answer_at_once(self.stop_button)
        answer_at_once(self.go_on_button)

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
        name = METHOD_NAMES[self.settings.method]  # a notebook may train both
        self.status.value = escape(f"{name}: step {state.step} of {state.steps}, {how}")
        if state.losses:
            figure = charts.curves(
                {name: state.losses},
                smooth=20,
                caption="The loss: faint each step, bold the mean of 20",
            )
            self.loss.value = figure._repr_html_()
        if len(state.samples) > self.shown:
            self.shown = len(state.samples)
            places = [place or "no place" for place in SAMPLE_PLACES][: len(state.samples[-1][1])]
            self.samples.value = sample_progress(
                state.samples, places, most=3, caption="The subject, from the same seeds"
            )._repr_html_()
        self.drawn = time.monotonic()
        self.pause = max(1.0, 9 * (self.drawn - began))
