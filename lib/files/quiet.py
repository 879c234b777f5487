"""Silence for what libraries print of themselves, before they are imported."""

import logging
import os
import warnings

NOISY = r"(bitsandbytes|diffusers|nbclient|nbformat|papermill|peft|torchao|transformers)(\.|$)"


def quieten() -> None:
    """Let no library print what looks like an error and is none, such as what it does without.

    Some say it while they are imported. An environment that asks for more is left as it is.
    """
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=NOISY)
