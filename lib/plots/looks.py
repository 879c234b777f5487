"""What each contestant looks like, in every chart of the course: a colour, a line, a marker and a
hatch of its own, so that nobody learns the legend twice.
"""

from collections.abc import Collection
from typing import NamedTuple

from lib.config import CONTESTANT_NAMES


class Look(NamedTuple):
    """How matplotlib draws one series; any of the four tells it from the others."""

    color: str
    style: str | tuple[int, tuple[int, ...]]
    marker: str
    hatch: str


# Okabe and Ito's colours, and below it Tol's, which the colour-blind can tell apart.
LOOKS = (
    Look("#0072B2", "-", "o", ""),
    Look("#D55E00", "--", "s", "///"),
    Look("#000000", ":", "^", "..."),
    Look("#009E73", "-.", "D", "xxx"),
    Look("#CC79A7", (0, (6, 1)), "v", "\\\\\\"),
    Look("#56B4E9", (0, (1, 1)), "X", "++"),
)

# Of series that are no contestants, such as two measures, or photos trained on and held out: none
# of them is to be taken for a method.
OTHER_LOOKS = (
    Look("#333333", (0, (9, 1)), "P", "|||"),
    Look("#882255", (0, (3, 2)), "*", "oo"),
    Look("#8A8A8A", (0, (5, 1, 1, 1)), "p", "---"),
    Look("#332288", (0, (2, 2)), "h", "**"),
    Look("#999933", (0, (5, 1, 1, 1, 1, 1)), "<", "OO"),
    Look("#44AA99", (0, (1, 3)), ">", "||--"),
)

PLAIN = Look("#555555", "-", "o", "")

# The same contestants by the shorter names that charts give them.
_SHORT = {
    "base": "base_model",
    "base model": "base_model",
    "real photos": "real_photos",
    "extracted": "extracted",
}
_ORDER = ("lora", "dreambooth", "base_model", "real_photos", "extracted", "extracted_twice")
_OWN = {CONTESTANT_NAMES[key]: look for key, look in zip(_ORDER, LOOKS)}
_OWN |= {short: _OWN[CONTESTANT_NAMES[key]] for short, key in _SHORT.items()}


def own_look(name: str) -> Look:
    """The look of the contestant `name`; `PLAIN` for what is none."""
    return _OWN.get(name, PLAIN)


def looks(names: Collection[str]) -> dict[str, Look]:
    """A look for each series of a chart: contestants have their own, others those of `OTHER_LOOKS`,
    in order (again from the first where there are more than six).
    """
    others = [name for name in names if name not in _OWN]
    given = {name: OTHER_LOOKS[k % len(OTHER_LOOKS)] for k, name in enumerate(others)}
    return {name: _OWN.get(name) or given[name] for name in names}
