"""The course without hands: notebooks in order, one report; sweeps; what every notebook starts with.

Enters: settings of the whole course, or a notebook and a grid of parameters. Leaves: executed
notebooks, report.html, one table.
"""

from typing import TYPE_CHECKING

from lib.files.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lib.course.set_up import start, tell_limits

__getattr__, __dir__ = lazy_exports(__name__, __file__)
