"""Panels for notebooks: they only edit `Settings` and plans, or read runs.

Enters: what could be typed instead. Leaves: the same, edited by hand. Without somebody to press a
button they return their input and show nothing.
"""

from typing import TYPE_CHECKING

from lib.files.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lib.widgets.panels import explorer, photos_panel, training_panel, upload_panel
    from lib.widgets.prediction import predict

__getattr__, __dir__ = lazy_exports(__name__, __file__)
