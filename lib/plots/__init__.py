"""Charts, tables and grids of pictures that read without colour.

Enters: numbers and pictures. Leaves: a `Figure` (a picture, what it shows in words, its numbers as
a table) or a `Table`. Nothing here knows a model or a run.
"""

from typing import TYPE_CHECKING

from lib.files.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lib.plots.figure import Figure, Paragraphs, Table, as_table
    from lib.plots.image_grid import grid

__getattr__, __dir__ = lazy_exports(__name__, __file__)
