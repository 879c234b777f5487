"""Base model, LoRA and DreamBooth side by side: `Models` draws them, `Explorer` is the widgets of
`panels.explorer`.
"""

import threading
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.config import METHOD_NAMES, Settings
from lib.dataset.captions import prompts
from lib.dataset.imagefolder import load_dataset
from lib.files import BadInput
from lib.plots import Figure, grid

if TYPE_CHECKING:
    from PIL.Image import Image

    from lib.models import Base


class Models:
    """The base model and the tuned ones of `runs`, loaded when first drawn with."""

    def __init__(self, runs: Mapping[str, str | Path]):
        unknown = [name for name in runs if name not in METHOD_NAMES]
        if unknown or not runs:
            raise BadInput(
                f"The explorer was given {unknown or 'no runs'}: give run folders by the names"
                f" {' and '.join(METHOD_NAMES)}."
            )
        self.runs = {name: runs[name] for name in METHOD_NAMES if name in runs}
        self.settings = Settings.load(Path(next(iter(runs.values()))) / "settings.json")
        self.loaded: dict[str, Base] = {}
        self.drawn: dict[tuple, Image] = {}

    def prompt(self) -> str:
        """A prompt to begin with: the subject in a place."""
        return prompts(load_dataset(self.settings.data).subject, "in the snow")

    def draw(
        self,
        prompt: str,
        seed: int = 0,
        guidance: float = 4.0,
        adapter_weight: float = 1.0,
        steps: int = 25,
    ) -> Figure:
        """A `Figure` of one picture from each model, from the same noise. Raises BadInput for no
        prompt, a long one or a broken run.
        """
        if not prompt.strip():
            raise BadInput("The prompt is empty: write what the picture shows.")
        base = self.model("base")
        pieces, most = len(base.tokens(prompt)), base.pipe.tokenizer.model_max_length - 2
        if pieces > most:  # what comes after them would be cut off without a word
            raise BadInput(
                f"The prompt falls into {pieces} pieces and '{base.name}' reads {most}: make it"
                " shorter."
            )
        pictures = {"base model": self.picture("base", prompt, seed, guidance, 0.0, steps)}
        for name in self.runs:
            weight = adapter_weight if name == "lora" else None
            label = METHOD_NAMES[name] + ("" if weight is None else f", weight {weight:g}")
            pictures[label] = self.picture(name, prompt, seed, guidance, weight, steps)
        return grid(
            [list(pictures.values())],
            columns=list(pictures),
            caption=f"“{prompt}”, seed {seed}, guidance {guidance:g}",
            scale=4,
        )

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
        from lib.models import load_base
        from lib.step import load_run

        source = self.source(name)
        if source not in self.loaded:
            self.loaded[source] = (
                load_run(self.runs[source])
                if source in self.runs
                else load_base(self.settings.base)
            )
        return self.loaded[source]


class Explorer:
    """The widgets of `explorer`, laid out in `box`; `choices` follow them."""

    def __init__(self, models: Models, choices: dict[str, Any]):
        import ipywidgets as w

        self.models, self.choices, self.lock = models, choices, threading.Lock()
        wide: dict[str, Any] = {
            "style": {"description_width": "8em"},
            "layout": {"width": "40em"},
            "continuous_update": False,
        }
        self.prompt = w.Text(value=choices["prompt"], description="prompt", **wide)
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
            [self.prompt, self.seed, self.guidance, self.weight, self.button, self.picture]
        )
        self.button.on_click(lambda _: self.draw())
        for name, widget in (
            ("prompt", self.prompt),
            ("seed", self.seed),
            ("guidance", self.guidance),
            ("adapter_weight", self.weight),
        ):
            widget.observe(
                lambda change, name=name: self.choices.update({name: change["new"]}), "value"
            )

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
