"""Widgets for a notebook. Each is one cell, edits what could be typed instead, and without a front
end returns its input and shows nothing.

    uploads = upload_panel("data/subjects/character", "runs/mine/photos")   # then uploads.folder
    edits = photos_panel(edits, folder, "zwx")  # the list of dicts of photos.plan
    panel = training_panel(settings)            # then train(panel.settings, watchers=[panel])
    choices = explorer({"lora": run, "dreambooth": run})

WORKBENCH_HEADLESS=1 switches them off and 0 on; otherwise they look whether somebody can press a
button.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib.config import Settings
from lib.widgets.photo_panel import PhotosPanel
from lib.widgets.photo_upload import UploadPanel
from lib.widgets.picture_explorer import Explorer, Models
from lib.widgets.training_controls import TrainingPanel, headless, show

UPLOADS: list[UploadPanel] = []  # of this Python, so that a cell that runs again forgets nothing


def upload_panel(subject: str, into: str | Path) -> UploadPanel:
    """Upload photos from one's own machine to the folder `into`, or one of a number behind it if
    that holds something, to be used in place of those in `subject`.

    The photos are in the panel's `folder` then, which is `subject` until something is uploaded.
    Called again, it is the same panel.
    """
    known = (each for each in UPLOADS if (each.subject, each.into) == (subject, Path(into)))
    panel = next(known, None) or UploadPanel(subject, into)
    if panel not in UPLOADS:
        UPLOADS.append(panel)
    if not headless():
        show(panel.box)
    return panel


def photos_panel(
    plan: list[dict[str, Any]], folder: str | Path, identifier: str = ""
) -> list[dict[str, Any]]:
    """Go through the photos of a `plan` (of `lib.dataset.preparation.plan`) in `folder`: move the
    crop, edit the caption, which must hold the `identifier`, train on, hold out, leave out.

    Edits the list's own dicts and returns the list.
    """
    if not headless() and plan:
        show(PhotosPanel(plan, folder, identifier).box)
    return plan


def training_panel(settings: Settings, edit: bool = True) -> TrainingPanel:
    """A panel to change the settings that matter, and a watcher that shows loss and samples live,
    with a stop button.

    Its `settings` are the ones to train by: `train(panel.settings, watchers=[panel])`. `edit=False`
    leaves out the editor.
    """
    panel = TrainingPanel(settings)
    if edit and not headless():
        show(panel.editor())
    return panel


def explorer(
    runs: Mapping[str, str | Path],
    prompt: str | None = None,
    seed: int = 0,
    guidance: float = 4.0,
    adapter_weight: float = 1.0,
    steps: int = 25,
) -> dict[str, Any]:
    """Base model, LoRA and DreamBooth side by side for a prompt, seed, guidance scale and adapter
    weight of one's own choice.

    `runs`: {"lora": run folder, "dreambooth": run folder}, either or both. Returns the choices as a
    dict, which the widgets edit; `Models(runs).draw(**choices)` draws the same picture without
    them.
    """
    models = Models(runs)
    choices = {
        "prompt": prompt or models.prompt(),
        "seed": seed,
        "guidance": float(guidance),
        "adapter_weight": float(adapter_weight),
        "steps": steps,
    }
    if not headless():
        show(Explorer(models, choices).box)
    return choices
