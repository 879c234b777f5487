"""LoRA and DreamBooth, side by side: the page that notebooks and users import from.

    from lib import load_run, preset, train

    settings = preset("lora", data="runs/course/data", output="runs/mine", steps=100)
    run = train(settings)                       # a run folder: settings, log, metrics, weights
    base = load_run(run)                        # a base model with the run's weights in it
    base.generate(["a zwx robot in the snow"], seeds=[0])

One recipe is a `Settings`; one training is a run folder; the two methods differ in one visible
place, `lib.step.methods.trainable`. What is not on this page is in one of the rooms: `lib.dataset`,
`lib.training`, `lib.evaluation`, `lib.convert`, `lib.plots`, `lib.widgets`. Every name is imported
when it is first asked for, so that this page costs nothing. The command line: `python -m lib`.
"""

from typing import TYPE_CHECKING

from lib.files.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lib.config.settings import Settings
    from lib.course.set_up import start, tell_limits
    from lib.course.sweeping import grid, sweep_notebook
    from lib.dataset.captions import prompts
    from lib.dataset.preparation import open_or_prepare
    from lib.files.errors import BadInput
    from lib.files.json_file import read_json, write_json
    from lib.files.paths import ROOT
    from lib.memory.cards import published, which_fits
    from lib.models.base import load_base
    from lib.models.families import preset
    from lib.step.methods import trainable
    from lib.step.run_weights import load_run
    from lib.training.loop import train

__getattr__, __dir__ = lazy_exports(__name__, __file__)
