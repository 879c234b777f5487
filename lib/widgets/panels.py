"""Widgets for a notebook. Each is one cell, edits what could be typed instead, and without a front
end returns its input and shows nothing.

    uploads = upload_panel("data/subjects/character", "runs/mine/photos")   # then uploads.folder
    edits = photos_panel(edits, folder, "zwx")  # the list of dicts of photos.plan
    panel = training_panel(settings)            # then run = panel.train()
    choices = explorer({"lora": run, "dreambooth": run})

WORKBENCH_HEADLESS=1 switches them off and 0 on; otherwise they look whether somebody can press a
button.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib.config import Settings
from lib.widgets.photo_panel import PhotosPanel
from lib.widgets.photo_upload import UploadPanel
from lib.widgets.picture_explorer import Explorer, Models
from lib.widgets.showing import headless, show
from lib.widgets.training_controls import TrainingPanel

# Of this Python, so that a cell that runs again forgets nothing: what was uploaded, and what was
# proposed for a plan before it was edited.
UPLOADS: list[UploadPanel] = []
PROPOSED: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]] = []


def upload_panel(
    subject: str, into: str | Path, class_noun: str = "", start: str = ""
) -> UploadPanel:
    """Upload photos from one's own machine to the folder `into`, or one of a number behind it if
    that holds something, to be used in place of those in `subject`.

    The photos are in the panel's `folder` then, which is `subject` until something is uploaded.
    With `start`, the text of a button, the panel asks for the `class_noun` too, and its `wait()`
    waits for the button. Called again, it is the same panel.
    """
    known = (each for each in UPLOADS if (each.subject, each.into) == (subject, Path(into)))
    panel = next(known, None) or UploadPanel(subject, into, class_noun, start)
    if panel not in UPLOADS:
        UPLOADS.append(panel)
    elif class_noun:
        panel.class_noun = class_noun
    if not headless():
        panel.show()
    return panel


def photos_panel(
    plan: list[dict[str, Any]], folder: str | Path, identifier: str = ""
) -> list[dict[str, Any]]:
    """Go through the photos of a `plan` (of `lib.dataset.preparation.plan`) in `folder`: move the
    crop, edit the caption, which must hold the `identifier`, train on, hold out, leave out.

    Edits the list's own dicts and returns the list. Called again with that list, it still knows
    what was proposed at first.
    """
    if headless() or not plan:
        return plan
    known = next((proposed for edited, proposed in PROPOSED if edited is plan), None)
    if known is None:
        known = copy.deepcopy(plan)
        PROPOSED.append((plan, known))
    panel = PhotosPanel(plan, folder, identifier, known)
    panel.leave = show(panel.box)
    panel.draw()
    return plan


def training_panel(settings: Settings, edit: bool = True) -> TrainingPanel:
    """A panel to change the settings that matter, and a watcher that shows loss and samples live,
    with a stop button.

    Its `settings` are the ones to train by: `panel.train()`, which waits for its button, or
    `train(panel.settings, watchers=[panel])`. `edit=False` leaves out the editor.
    """
    panel = TrainingPanel(settings)
    if edit and not headless():
        show(panel.editor())
    return panel


def explorer(
    runs: Mapping[str, str | Path],
    prompt: str | None = None,
    seed: int = 0,
    guidance: float = 0.0,
    adapter_weight: float = 1.0,
    steps: int = 0,
) -> dict[str, Any]:
    """Base model, LoRA and DreamBooth side by side for a prompt, seed, guidance scale and adapter
    weight of one's own choice.

    `runs`: {"lora": run folder, "dreambooth": run folder, "extracted": a LoRA's file}, one or more,
    at least one of them a run. Guidance 0 is that of the first run's samples. Returns the choices
    as a dict, which the widgets edit; `Models(runs).draw(**choices)` draws the same picture without
    them.
    """
    models = Models(runs)
    choices = {
        "prompt": prompt or models.prompt(),
        "seed": seed,
        "guidance": float(guidance or models.settings.guidance),
        "adapter_weight": float(adapter_weight),
        "steps": steps,
    }
    if not headless():
        panel = Explorer(models, choices)
        panel.leave = show(panel.box)
    return choices
