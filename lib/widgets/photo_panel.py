"""The widgets of `panels.photos_panel`: go through the photos of a plan and change what is done
with each.
"""

import copy
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import ImageOps

from lib.dataset.captions import check_caption
from lib.dataset.photo_file import SMALLEST, open_photo
from lib.dataset.photo_tiles import USES, framed
from lib.dataset.preparation import USED_AS
from lib.files import BadInput, printable
from lib.plots import grid
from lib.widgets.showing import Leave

if TYPE_CHECKING:
    from PIL.Image import Image

TILE = 240  # pixels of a photo in the panel
DRAGS = {
    "watched_events": ["mousedown", "mousemove", "mouseup"],
    "prevent_default_action": True,  # a browser would drag the picture away
    "throttle_or_debounce": "throttle",
    "wait": 60,  # milliseconds: the picture is drawn anew for each
}


class PhotosPanel:
    """The widgets of `photos_panel`, laid out in `box`. Whatever is changed stands in the plan's
    dicts at once.

    `proposed`: the plan before any edit, to which there is a way back; by default as it is now.
    """

    def __init__(
        self,
        plan: list[dict[str, Any]],
        folder: str | Path,
        identifier: str = "",
        proposed: list[dict[str, Any]] | None = None,
    ):
        import ipywidgets as w

        self.plan, self.folder, self.identifier = plan, Path(folder).expanduser(), identifier
        self.proposed = proposed or copy.deepcopy(plan)
        self.leave: Leave | None = None  # once it is shown to somebody
        self.loading = False
        self.photo: Image | None = None
        names = [(f"{k + 1}: {printable(e['file'])}", k) for k, e in enumerate(plan)]
        self.choose = w.Dropdown(options=names, value=0, description="photo")
        self.previous, self.next, self.reset, self.default_caption = (
            w.Button(description=d, layout={"width": "max-content", "min_width": "9em"})
            for d in ("Previous", "Next", "As proposed", "Caption as proposed")
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
        # Of fixed widths, so that nothing moves under the pointer; controls go below the picture
        # where both have no room.
        controls = w.VBox(
            [
                self.use,
                self.caption,
                self.default_caption,
                self.message,
                self.left,
                self.top,
                self.side,
                self.reset,
                self.found,
                self.count,
            ],
            layout={"width": "34em", "max_width": "100%"},
        )
        self.picture.layout = {"min_width": f"{2 * TILE + 24}px"}
        pair = w.HBox([self.picture, controls], layout={"flex_flow": "row wrap"})
        self.box = w.VBox([w.HBox([self.previous, self.choose, self.next]), pair])
        self.pressed: tuple[int, int, int, int] | None = None  # where a drag began: pointer, crop
        self.drags = self._watch_drags()
        self.choose.observe(lambda _: self.load(), "value")
        self.previous.on_click(lambda _: self.go(-1))
        self.next.on_click(lambda _: self.go(1))
        self.reset.on_click(lambda _: self.undo())
        self.default_caption.on_click(lambda _: self.undo_caption())
        for widget in (self.use, self.caption, self.left, self.top, self.side):
            widget.observe(self.changed, "value")
        self.load()

    @property
    def entry(self) -> dict[str, Any]:
        """The dict of the photo that is shown."""
        return self.plan[self.choose.value]

    def go(self, step: int) -> None:
        """To the next photo, or the one before; round at the ends."""
        self.choose.value = (self.choose.value + step) % len(self.plan)

    def undo(self) -> None:
        """Back to what was proposed for this photo when the panel opened."""
        self.entry.update(copy.deepcopy(self.proposed[self.choose.value]))
        self.load()

    def undo_caption(self) -> None:
        """Back to the caption that was proposed for this photo, and to nothing else."""
        self.caption.value = self.proposed[self.choose.value]["caption"]

    def load(self) -> None:
        """Show the chosen photo's entry in all widgets."""
        entry, broken = self.entry, not self.entry["width"]
        try:
            self.photo = open_photo(self.folder / entry["file"], size=2 * TILE)[0]
        except BadInput:
            self.photo = None
        self.loading = True  # the widgets follow the entry now, not the entry the widgets
        editing = self.use, self.caption, self.left, self.top, self.side
        for widget in (*editing, self.reset, self.default_caption):
            widget.disabled = broken
        self.use.value, self.caption.value, self.message.value = entry["use"], entry["caption"], ""
        if not broken:
            left, top, right, bottom = entry["crop"]
            wide, high = right - left, bottom - top
            # Of a crop that keeps its photo's aspect; one of a square may be a pixel off.
            self.ratio = 1 if abs(wide - high) < 2 else high / wide
            shorter = min(entry["width"], int(entry["height"] / self.ratio))
            self.side.min, self.side.max = 0, shorter
            self.side.min, self.side.value = min(SMALLEST, shorter), right - left
            self._place(left, top)
        self.loading = False
        self.draw()

    def _place(self, left: int, top: int) -> None:
        """Put the crop at left, top, as far as it fits into the photo."""
        wide, high = self.entry["width"] - self.side.value, self.entry["height"] - self.high
        for slider, value, most in ((self.left, left, wide), (self.top, top, high)):
            slider.max = max(0, most)
            slider.value = min(max(0, value), slider.max)

    def _watch_drags(self) -> Any:
        """What tells of the mouse on the picture, for which ipywidgets has nothing; None where the
        package is not installed, as on Colab, which shows other packages' widgets only when asked.
        """
        try:
            from ipyevents import Event
        except ImportError:
            return None
        drags = Event(source=self.picture, **DRAGS)
        drags.on_dom_event(self.dragged)
        return drags

    def dragged(self, event: dict[str, Any]) -> None:
        """The mouse did something on the picture: pressed on the photo, it takes the crop along."""
        held = event["buttons"] & 1
        if event["type"] == "mousedown":
            on_photo = event["relativeX"] < TILE and self.photo and self.entry["use"] != "out"
            at = event["clientX"], event["clientY"], self.left.value, self.top.value
            self.pressed = at if held and on_photo else None
        elif self.pressed and (held or event["type"] == "mouseup"):
            x, y, left, top = self.pressed
            pixels = max(self.entry["width"], self.entry["height"]) / TILE
            right, down = event["clientX"] - x, event["clientY"] - y
            self.loading = True
            self._place(left + round(pixels * right), top + round(pixels * down))
            self.loading = False
            self.entry["crop"] = self.crop
            self.draw()
        if not held:
            self.pressed = None

    @property
    def crop(self) -> list[int]:
        """What the sliders say: left, top, right and bottom in pixels of the photo."""
        left, top = self.left.value, self.top.value
        return [left, top, left + self.side.value, top + self.high]

    @property
    def high(self) -> int:
        """Pixels of the crop from top to bottom; `side` has those from left to right."""
        return round(self.side.value * self.ratio)

    def changed(self, change: Any) -> None:
        """A widget was changed: so is the entry, if what it says can be used."""
        if self.loading:
            return
        self.loading, self.message.value = True, ""
        try:
            if change["owner"] is self.side:  # grow and shrink about the middle
                # Halved one by one, so that many small steps add up to the large one.
                moved = change["old"] // 2 - change["new"] // 2
                self._place(self.left.value + moved, self.top.value + round(moved * self.ratio))
            name = printable(self.entry["file"])
            caption = check_caption(name, self.caption.value, self.identifier)
            self.entry.update(use=self.use.value, caption=caption)
            if change["owner"] in (self.left, self.top, self.side):
                self.entry["crop"] = self.crop
        except BadInput as error:
            # In this order: who reads the message finds the old caption in its field.
            self.caption.value = self.entry["caption"]
            self.message.value = escape(f"{str(error).rstrip('.')}. The caption stays as it was.")
        finally:
            self.loading = False
        self.draw()

    def draw(self) -> None:
        """The photo with its frame, what was found, and how many are used for what."""
        entry, name = self.entry, printable(self.entry["file"])
        if self.photo is None:
            self.picture.value = escape(f"{name} cannot be opened.")
        else:
            tiles, labels = self._tiles()
            alt = f"{name}, {USES[entry['use']]}"
            move = "Drag the crop, or move it" if self.drags else "Move the crop"
            how = f"{move} by the sliders left and top; side is its size."
            figure = grid([tiles], columns=labels, scale=1, alt=alt, caption=how)
            self.picture.value = figure._repr_html_()
        self.found.value = escape(
            f"This photo is {USED_AS[entry['use']]}. Found:"
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

        if self.leave:
            self.leave(self.picture.value + self.count.value)

    def _tiles(self) -> tuple[list["Image"], list[str]]:
        """The photo with its frame and, if it is used, its crop, as tiles; their labels."""
        entry, photo = self.entry, self.photo
        assert photo is not None, "a photo that cannot be opened has no tiles"
        tiles, labels = [framed(photo, entry, TILE)], ["the photo with its crop"]
        across, down = photo.width / max(1, entry["width"]), photo.height / max(1, entry["height"])
        left, top, right, bottom = entry["crop"]
        start, end = (round(left * across), round(top * down)), (right * across, bottom * down)
        crop = photo.crop((*start, round(end[0]), round(end[1])))
        if entry["use"] != "out" and min(crop.size):
            tiles.append(crop)
            labels.append("the crop")
        return [ImageOps.pad(tile, (TILE, TILE), color="white") for tile in tiles], labels
