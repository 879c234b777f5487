"""Cards by name: the memory that is really there, and what their arithmetic is fast in.

    card_named("Tesla T4")      # Card("T4", 14.7, "fp16"), as nvidia-smi and torch call it
    card_at_hand()              # the one in this machine, with its driver's own figure of memory

The figures are what torch reports as a card's total in users' reports of torch.OutOfMemoryError on
GitHub: less than a card is sold with, as ECC and the driver keep some. They differ by driver: a
T4's from 14.56 to 14.76. So the driver's figure wins where there is one.
"""

import os
import re
import shutil
import subprocess
from typing import NamedTuple

import torch

from lib.files import BadInput
from lib.models.devices import fast_arithmetic


class Card(NamedTuple):
    """A card: GiB of memory, and what it is fast in, as `lib.models.devices.fast_arithmetic` has
    it."""

    name: str
    gib: float
    fast: str = "bf16"


# By name, then by memory. Ampere and what came after multiply bf16, Turing fp16 alone; Pascal has
# no tensor cores.
KNOWN_CARDS = (
    Card("RTX 2060", 5.79, "fp16"),
    Card("T4", 14.7, "fp16"),
    Card("P100", 15.9, "fp32"),
    Card("RTX 3060", 11.75),
    Card("RTX 3090", 23.69),
    Card("RTX 4090", 23.64),
    Card("RTX 5090", 31.36),
    Card("L4", 22.0),
    Card("A100 40GB", 39.4),
    Card("A100", 79.1),
    Card("H200", 139.0),
)

MAKERS = {"nvidia", "geforce", "tesla", "gpu"}
FORMS = (
    r"pcie|sxm\d?|hbm\d\w?|\d+gb|gb|\d+"  # how it is built in; memory, which tells no other card
)

APPLE = (
    "Apple's GPU shares the machine's memory and is not used here: a training there runs on the"
    " processor, in fp32, and takes what the forecast says with --device cpu."
)


def card_named(name: str) -> Card | None:
    """The known card that a driver or a user calls `name`; None for another one.

    "NVIDIA A100-SXM4-40GB" is an A100 of 40 GB, and "RTX 3060 Ti" no RTX 3060. Raises BadInput for
    Apple's, which does not train here.
    """
    words = [w for w in re.split(r"[\s\-_]+", name.lower()) if w and w not in MAKERS]
    if re.fullmatch(r"apple.*|m[1-9]", " ".join(words)):
        raise BadInput(APPLE)
    found = None
    for card in KNOWN_CARDS:
        known = card.name.lower().split()
        rest = [w for w in words if w not in known]
        if set(known) <= set(words) and all(re.fullmatch(FORMS, w) for w in rest):
            found = max(found or card, card, key=lambda c: len(c.name))
    return found


def card_at_hand() -> Card | None:
    """The card in this machine: its name's row, with its driver's own figure; None without one.

    Also where PyTorch cannot use it, as nvidia-smi says then.
    """
    if torch.cuda.is_available():
        about = torch.cuda.get_device_properties(0)
        fast = fast_arithmetic(torch.device("cuda"))
        return Card(about.name, about.total_memory / 2**30, fast)
    command = ["nvidia-smi", "--query-gpu=name,memory.total,memory.reserved"]
    try:
        said = subprocess.run(
            [*command, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.splitlines()[0]
        name, total, *reserved = (value.strip() for value in said.split(","))
        kept = float(reserved[0]) if reserved and reserved[0].replace(".", "").isdigit() else 0.0
        known = card_named(name)
        return Card(name, (float(total) - kept) / 2**10, known.fast if known else "bf16")
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return None


def unused_card() -> str:
    """A sentence on an accelerator of this machine that is not used here, or ""."""
    if torch.cuda.is_available() or "CUDA_VISIBLE_DEVICES" in os.environ:  # used, or hidden
        return ""
    if torch.backends.mps.is_available():
        return APPLE
    card = card_at_hand() if shutil.which("nvidia-smi") else None
    if card is None:
        return ""
    return (
        f"PyTorch cannot use this machine's card ({card.name}), and the processor runs instead:"
        " install a PyTorch with CUDA, see docs/gpu-and-colab.md."
    )
