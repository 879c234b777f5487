"""Adapters and checkpoints to and from other tools.

Enters: a run folder, a LoRA file in any known form, a base model. Leaves: files that ComfyUI,
WebUI, Forge, Kohya's tools, diffusers and PEFT load, each key checked against its scheme and read
back by a library that is not ours. A new export format belongs into `adapter` (its tensors),
`readers` (its scheme) and `exporting`.
"""

from typing import TYPE_CHECKING

from lib.files.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lib.convert.adapter import read_adapter
    from lib.convert.interchange import export, extract, library_loader
    from lib.convert.merging import merge
    from lib.convert.model_card import write_card

__getattr__, __dir__ = lazy_exports(__name__, __file__)
