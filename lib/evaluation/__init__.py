"""What a run is worth: likeness, obedience, forgetting, memorising, costs; and what to choose.

Enters: run folders. Leaves: scores beside a floor (the base) and a ceiling (the real photos),
curves along the training, one comparison, and advice from what was measured on many subjects. A new
measure belongs into `fidelity` (of pictures) or `drift` (of predictions).
"""

from typing import TYPE_CHECKING

from lib.files.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lib.evaluation.comparison import choose_judge
    from lib.evaluation.fidelity import similarity

__getattr__, __dir__ = lazy_exports(__name__, __file__)
