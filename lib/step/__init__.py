"""One training step, and the one switch: which weights train (`methods.trainable`).

Enters: a `Base`, a `Settings`, a batch. Leaves: updated weights and their losses. A new optimiser
belongs into `optimizer`, a new loss into `loss`, a new method into `methods`.
"""

from typing import TYPE_CHECKING

from lib.files.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lib.step.loss import diffusion_loss
    from lib.step.methods import trainable, tuned_parts
    from lib.step.run_weights import load_run, save_weights
    from lib.step.training_step import Step

__getattr__, __dir__ = lazy_exports(__name__, __file__)
