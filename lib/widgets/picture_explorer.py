"""Base model, LoRA and DreamBooth side by side: `Models` draws them, `Explorer` is the widgets of
`panels.explorer`.
"""

import threading
from collections.abc import Mapping
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.config import CONTESTANT_NAMES, METHOD_NAMES, Settings
from lib.dataset.captions import plain_word, prompts, unknown_words
from lib.dataset.imagefolder import Dataset, load_dataset
from lib.files import BadInput
from lib.plots import Figure, grid
from lib.widgets.showing import Leave

if TYPE_CHECKING:
    from PIL.Image import Image

    from lib.models import Base

NAMES = {**METHOD_NAMES, "extracted": CONTESTANT_NAMES["extracted"]}


class Models:
    """The base model and the tuned ones of `runs`, loaded when first drawn with."""

    def __init__(self, runs: Mapping[str, str | Path]):
        unknown = [name for name in runs if name not in NAMES]
        if unknown or not set(runs) & METHOD_NAMES.keys():
            raise BadInput(
                f"The explorer was given {unknown or 'no runs'}: give run folders by the names"
                f" {' and '.join(METHOD_NAMES)}."
            )
        self.runs = {name: runs[name] for name in NAMES if name in runs}
        self.settings = Settings.load(Path(next(iter(self.runs.values()))) / "settings.json")
        self.loaded: dict[str, Base] = {}
        self.drawn: dict[tuple, Image] = {}

    @cached_property
    def dataset(self) -> Dataset:
        """What the runs were trained on."""
        return load_dataset(self.settings.data)

    def prompt(self) -> str:
        """A prompt to begin with: the subject in a place."""
        return prompts(self.dataset.subject, "in the snow")

    def unknown(self, prompt: str) -> list[str]:
        """The words of `prompt` that the base model has never read, nor the runs in a caption."""
        if self.settings.base != "pocket":  # others have read everyday English
            return []
        return unknown_words(prompt, [item.caption for item in self.dataset.train])

    def draw(
        self,
        prompt: str,
        seed: int = 0,
        guidance: float = 0.0,
        adapter_weight: float = 1.0,
        steps: int = 0,
    ) -> Figure:
        """A `Figure` of one picture from each model, from the same noise. Raises BadInput for no
        prompt, a long one or a broken run.
        """
        if not prompt.strip():
            raise BadInput("The prompt is empty: write what the picture shows.")
        base, guidance = self.model("base"), guidance or self.settings.guidance
        pieces, most = len(base.tokens(prompt)), base.pipe.tokenizer.model_max_length - 2
        if pieces > most:  # what comes after them would be cut off without a word
            raise BadInput(
                f"The prompt falls into {pieces} pieces and '{base.name}' reads {most}: make it"
                " shorter."
            )
        pictures = {"base model": self.picture("base", prompt, seed, guidance, 0.0, steps)}
        for name in self.runs:
            weight = adapter_weight if name == "lora" else None
            label = NAMES[name] + ("" if weight is None else f", weight {weight:g}")
            pictures[label] = self.picture(name, prompt, seed, guidance, weight, steps)
        return grid(
            [list(pictures.values())],
            columns=list(pictures),
            caption=f"“{prompt}”, seed {seed}, guidance {guidance:g}{self.remark(prompt)}",
            scale=4,
        )

    def remark(self, prompt: str) -> str:
        """What is to be known of the words of `prompt`; nothing where all are known."""
        unknown = self.unknown(prompt)
        if not unknown:
            return ""
        words = " and ".join(f"“{word}”" for word in unknown)
        return f". The base model has never read {words}: it draws nothing certain for that"

    def picture(
        self, name: str, prompt: str, seed: int, guidance: float, weight: float | None, steps: int
    ) -> "Image":
        """One PIL image; what was drawn before is not drawn again."""
        key = name, prompt, seed, guidance, weight, steps
        if key not in self.drawn:
            weight = weight if self.source(name) == "lora" else None
            [self.drawn[key]] = self.model(name).generate([prompt], [seed], steps, guidance, weight)
        return self.drawn[key]

    def source(self, name: str) -> str:
        """Which model draws for `name`: without its adapter the LoRA model is the base, so that is
        not loaded twice.
        """
        return "lora" if name == "base" and "lora" in self.runs else name

    def model(self, name: str) -> "Base":
        """The `Base` that draws for `name`, loaded once."""
        from lib.convert.composition import load_adapters
        from lib.models import load_base
        from lib.step import load_run

        source = self.source(name)
        if source not in self.loaded:
            if source in METHOD_NAMES:
                base = load_run(self.runs[source])
            else:
                base = load_base(self.settings.base)
            if source == "extracted":
                load_adapters(base, {source: str(self.runs[source])})
            self.loaded[source] = base
        return self.loaded[source]


class Explorer:
    """The widgets of `explorer`, laid out in `box`; `choices` follow them."""

    def __init__(self, models: Models, choices: dict[str, Any]):
        import ipywidgets as w

        self.models, self.choices, self.lock = models, choices, threading.Lock()
        self.leave: Leave | None = None  # once it is shown to somebody
        wide: dict[str, Any] = {
            "style": {"description_width": "8em"},
            "layout": {"width": "40em", "max_width": "98%"},
        }
        self.prompt = w.Text(value=choices["prompt"], description="prompt", **wide)
        wide["continuous_update"] = False
        self.words = w.HTML()
        self.seed = w.BoundedIntText(
            value=choices["seed"], min=0, max=2**31 - 1, description="seed", style=wide["style"]
        )
        self.guidance = w.FloatSlider(
            value=choices["guidance"], min=0, max=15, step=0.5, description="guidance", **wide
        )
        self.weight = w.FloatSlider(
            value=choices["adapter_weight"],
            min=0,
            max=2,
            step=0.05,
            description="adapter weight",
            **wide,
        )
        self.weight.disabled = "lora" not in models.runs
        self.button, self.picture = w.Button(description="Draw", icon="paint-brush"), w.HTML()
        self.box = w.VBox(
            [
                *(self.prompt, self.words, self.seed, self.guidance, self.weight),
                *(self.button, self.picture),
            ]
        )
        self.button.on_click(lambda _: self.draw())
        self.prompt.on_msg(self.heard)
        self.prompt.observe(lambda _: self.mark(), "value")
        self.mark()
        for name, widget in (
            ("prompt", self.prompt),
            ("seed", self.seed),
            ("guidance", self.guidance),
            ("adapter_weight", self.weight),
        ):
            widget.observe(
                lambda change, name=name: self.choices.update({name: change["new"]}), "value"
            )

    def heard(self, _: Any, content: dict[str, Any], __: Any) -> None:
        """A message of the prompt's field: Enter draws."""
        if content.get("event") == "submit":
            self.draw()

    def mark(self) -> None:
        """The prompt's words below it, with those marked that the base does not know."""
        unknown = self.models.unknown(self.prompt.value)
        shown = [
            f"<mark>{escape(word)}</mark>" if plain_word(word) in unknown else escape(word)
            for word in self.prompt.value.split()
        ]
        said = f"{' '.join(shown)}: marked words are unknown to the base model"
        self.words.value = said if unknown else ""

    def draw(self) -> None:
        """Draw by the choices, or say why that cannot be."""
        self.button.disabled, self.button.description = True, "Drawing …"
        with self.lock:
            try:
                self.picture.value = self.models.draw(**self.choices)._repr_html_()
            except BadInput as error:
                self.picture.value = f"<p>{escape(str(error))}</p>"
            finally:
                self.button.disabled, self.button.description = False, "Draw"
        if self.leave:
            self.leave(self.picture.value)
