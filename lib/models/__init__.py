"""Base models: where they lie, which family they are of, and loading them.

Enters: a name ("pocket"), a folder, a file or a hub name. Leaves: a `Base` that encodes, predicts
and draws; or, without loading anything, the names and shapes of its weights. A new family of models
is one class in `families` (docs/adding-a-family.md).
"""

from typing import TYPE_CHECKING

from lib.files.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lib.models.base import Base, load_base
    from lib.models.base_weights import BaseWeights, open_base_weights
    from lib.models.devices import out_of_memory, reclaim
    from lib.models.families import family_of, preset

__getattr__, __dir__ = lazy_exports(__name__, __file__)
