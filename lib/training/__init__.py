"""The one training loop, for both methods, and the run folder that it leaves.

Enters: a `Settings` and nothing else. Leaves: a run folder (settings.json, log.jsonl, metrics.json,
samples, weights), all that anything after the training reads. Safe to interrupt: the same call goes
on where it was, on the CPU bit for bit.
"""

from typing import TYPE_CHECKING

from lib.files.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lib.training.loop import train
    from lib.training.samples import SAMPLE_PLACES, sample_progress

__getattr__, __dir__ = lazy_exports(__name__, __file__)
