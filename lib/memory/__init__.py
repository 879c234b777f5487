"""What a training takes in memory: measured tensor by tensor, and forecast before the fact.

Enters: a `Settings`. Leaves: bytes at the worst moment, by category; the least slow recipe that fits
a card. The forecast runs the real training step on fake tensors, so it needs no weights and no GPU.
"""

from typing import TYPE_CHECKING

from lib.files.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lib.memory.cards import published, which_fits
    from lib.memory.forecasting import forecast
    from lib.memory.tracker import PeakMemory

__getattr__, __dir__ = lazy_exports(__name__, __file__)
