"""The widgets of `panels.photos_panel`: go through the photos of a plan and change what is done
with each.
"""

import copy
from html import escape
from pathlib import Path

from PIL import ImageOps

from lib.dataset.captions import check_caption
from lib.dataset.contact_sheet import USES, framed
from lib.dataset.photo_file import SMALLEST, open_photo
from lib.files.errors import BadInput
from lib.files.text import printable
from lib.plots.image_grid import grid

TILE = 240  # pixels of a photo in the panel


TOLD = {
    "train": "trained on",
    "test": "held out",
    "out": "left out",
}  # which button is on, in words beside its shade


class PhotosPanel:
    """The widgets of `photos_panel`, laid out in `box`. Whatever is changed stands in the plan's
    dicts at once.
    """

    def __init__(self, plan, folder):
        import ipywidgets as w

        self.plan, self.folder, self.proposed, self.loading = (
            plan,
            Path(folder).expanduser(),
            copy.deepcopy(plan),
            False,
        )
        names = [(f"{k + 1}: {printable(e['file'])}", k) for k, e in enumerate(plan)]
        self.choose = w.Dropdown(options=names, value=0, description="photo")
        self.previous, self.next, self.reset = (
            w.Button(description=d) for d in ("Previous", "Next", "As proposed")
        )
        # Not radio buttons or a list: they need arrow keys, which JupyterLab takes for itself. Each
        # of these is reached by Tab.
        self.use = w.ToggleButtons(
            options=[("train on it", "train"), ("hold it out", "test"), ("leave it out", "out")],
            description="use",
        )
        self.use.style.button_width = "8em"  # all three in a line
        self.caption = w.Text(
            description="caption", continuous_update=False, layout={"width": "95%"}
        )
        self.left, self.top, self.side = (
            w.IntSlider(description=d, max=1, continuous_update=False)
            for d in ("left", "top", "side")
        )
        self.picture, self.found, self.message, self.count = w.HTML(), w.HTML(), w.HTML(), w.HTML()
        controls = w.VBox(
            [
                self.use,
                self.caption,
                self.message,
                self.left,
                self.top,
                self.side,
                self.reset,
                self.found,
                self.count,
            ]
        )
        # Of fixed widths, so that nothing moves under the pointer; controls go below the picture
        # where both have no room.
        controls.layout, self.picture.layout = (
            {"width": "34em"},
            {"min_width": f"{2 * TILE + 24}px"},
        )
        pair = w.HBox([self.picture, controls], layout={"flex_flow": "row wrap"})
        self.box = w.VBox([w.HBox([self.previous, self.choose, self.next]), pair])
        self.choose.observe(lambda _: self.load(), "value")
        self.previous.on_click(lambda _: self.go(-1))
        self.next.on_click(lambda _: self.go(1))
        self.reset.on_click(lambda _: self.undo())
        for widget in (self.use, self.caption, self.left, self.top, self.side):
            widget.observe(self.changed, "value")
        self.load()

    @property
    def entry(self):
        """The dict of the photo that is shown."""
        return self.plan[self.choose.value]

    def go(self, step):
        """To the next photo, or the one before; round at the ends."""
        self.choose.value = (self.choose.value + step) % len(self.plan)

    def undo(self):
        """Back to what was proposed for this photo when the panel opened."""
        self.entry.update(copy.deepcopy(self.proposed[self.choose.value]))
        self.load()

    def load(self):
        """Show the chosen photo's entry in all widgets."""
        entry, broken = self.entry, not self.entry["width"]
        try:
            self.photo = open_photo(self.folder / entry["file"], size=2 * TILE)[0]
        except BadInput:
            self.photo = None
        self.loading = True  # the widgets follow the entry now, not the entry the widgets
        for widget in (self.use, self.caption, self.left, self.top, self.side, self.reset):
            widget.disabled = broken
        self.use.value, self.caption.value, self.message.value = entry["use"], entry["caption"], ""
        if not broken:
            left, top, right, bottom = entry["crop"]
            wide, high = right - left, bottom - top
            self.ratio = (
                1 if abs(wide - high) < 2 else high / wide
            )  # of a crop that keeps its photo's aspect
            shorter = min(entry["width"], int(entry["height"] / self.ratio))
            self.side.min, self.side.max = 0, shorter
            self.side.min, self.side.value = min(SMALLEST, shorter), right - left
            self._place(left, top)
        self.loading = False
        self.draw()

    def _place(self, left, top):
        """Put the crop at left, top, as far as it fits into the photo."""
        wide, high = self.entry["width"] - self.side.value, self.entry["height"] - self.high
        for slider, value, room in ((self.left, left, wide), (self.top, top, high)):
            slider.max = max(0, room)
            slider.value = min(max(0, value), slider.max)

    @property
    def high(self):
        """Pixels of the crop from top to bottom; `side` has those from left to right."""
        return round(self.side.value * self.ratio)

    def changed(self, change):
        """A widget was changed: so is the entry, if what it says can be used."""
        if self.loading:
            return
        self.loading, self.message.value = True, ""
        try:
            if change["owner"] is self.side:  # grow and shrink about the middle
                moved = (
                    change["old"] // 2 - change["new"] // 2
                )  # so, many small steps add up to the large one
                self._place(self.left.value + moved, self.top.value + round(moved * self.ratio))
            crop = [
                self.left.value,
                self.top.value,
                self.left.value + self.side.value,
                self.top.value + self.high,
            ]
            self.entry.update(
                use=self.use.value, caption=check_caption(self.entry["file"], self.caption.value)
            )
            if change["owner"] in (self.left, self.top, self.side):
                self.entry["crop"] = crop
        except BadInput as error:
            self.message.value = escape(f"{str(error).rstrip('.')}. The caption stays as it was.")
            self.caption.value = self.entry["caption"]
        finally:
            self.loading = False
        self.draw()

    def draw(self):
        """The photo with its frame, what was found, and how many are used for what."""
        entry, name = self.entry, printable(self.entry["file"])
        if self.photo is None:
            self.picture.value = escape(f"{name} cannot be opened.")
        else:
            width, height = (
                self.photo.width / max(1, entry["width"]),
                self.photo.height / max(1, entry["height"]),
            )
            left, top, right, bottom = entry["crop"]
            cut = self.photo.crop(
                (
                    round(left * width),
                    round(top * height),
                    round(right * width),
                    round(bottom * height),
                )
            )
            tiles = [framed(self.photo, entry, TILE)] + (
                [cut] if entry["use"] != "out" and min(cut.size) else []
            )
            labels = ["the photo with its crop", "the crop"][: len(tiles)]
            tiles = [[ImageOps.pad(tile, (TILE, TILE), color="white") for tile in tiles]]
            self.picture.value = grid(
                tiles, columns=labels, scale=1, alt=f"{name}, {USES[entry['use']]}"
            )._repr_html_()
        self.found.value = escape(
            f"This photo is {TOLD[entry['use']]}. Found:"
            f" {'; '.join(entry['findings']) or 'nothing to mend'}."
        )
        uses = [e["use"] for e in self.plan]
        counts = (
            f"{uses.count('train')} to train on, {uses.count('test')} held out, {uses.count('out')}"
            " left out."
        )
        few = " At least 2 to train on are needed." if uses.count("train") < 2 else ""
        self.count.value = escape(
            f"{counts}{few} The data set follows when the next cell runs, again if it has run."
        )
