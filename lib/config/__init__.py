"""One run's recipe, checked before anything loads.

Enters: values by name, or settings.json. Leaves: a frozen `Settings`. Presets say what each method
starts from on each family of base models, and why.
"""

from typing import TYPE_CHECKING

from lib.files.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lib.config.checked import described
    from lib.config.names import CONTESTANT_NAMES, MEASURE_NAMES, METHOD_NAMES
    from lib.config.picture_sizes import bucket
    from lib.config.presets import PRESETS
    from lib.config.settings import METHODS, Settings

__getattr__, __dir__ = lazy_exports(__name__, __file__)
