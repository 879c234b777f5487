"""Frozen records whose values are checked, with one clear sentence for each mistake.

    @checked("Setting")
    class Settings:
        rank: Annotated[int, Field(ge=1, le=256, description="Size of the adapter.")] = 16

    described(Settings)["rank"].limits      # (1, 256)
    Settings(rank=0)                        # BadInput: Setting 'rank' is 0, outside 1 to 256: ...

pydantic checks types, limits and choices; this module alone knows its errors. Rules between fields
stand in the record's own `__post_init__`, which raises BadInput itself.
"""

import difflib
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar, dataclass_transform, get_args, get_origin

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass

from lib.files import BadInput

Record = TypeVar("Record")

# A whole number is taken for a float and becomes one; nothing else is converted.
RULES = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

TYPE_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "True or False",
    list[int]: "a list of whole numbers",
    list[str]: "a list of texts",
}

UNKNOWN = ("unexpected_keyword_argument",)
MISSING = ("missing",)
WRONG_TYPE = ("int_type", "float_type", "string_type", "bool_type", "list_type")
OUTSIDE = ("finite_number", "greater_than_equal", "less_than_equal")
NO_CHOICE = ("literal_error",)
FIRST_TOLD = (UNKNOWN, MISSING, WRONG_TYPE, OUTSIDE, NO_CHOICE)  # where there are several mistakes


class Described(NamedTuple):
    """What is known of one field.

    limits: (lowest, highest), both allowed; infinite where there are none. choices: empty where any
    value of the `kind` will do.
    """

    kind: type
    default: Any
    limits: tuple[float, float]
    choices: tuple[str, ...]
    description: str


@dataclass_transform(frozen_default=True)
def checked(what: str) -> Callable[[type[Record]], type[Record]]:
    """A class decorator: a frozen dataclass, checked by pydantic, that raises BadInput.

    what: what the sentences call a field, such as "Setting".
    """

    def decorate(cls: type[Record]) -> type[Record]:
        record: Any = dataclass(frozen=True, config=RULES)(cls)
        build = record.__init__

        @functools.wraps(build)
        def __init__(self, /, *values, **named):
            try:
                build(self, *values, **named)
            except ValidationError as error:
                raise _bad_input(error, record, what) from None

        record.__init__ = __init__
        return record

    return decorate


@functools.cache
def described(record: type) -> dict[str, Described]:
    """What is known of each field of a `checked` class, by name."""
    return {name: _describe(field) for name, field in record.__pydantic_fields__.items()}


def _describe(field):
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    low = [limit.ge for limit in field.metadata if hasattr(limit, "ge")]
    high = [limit.le for limit in field.metadata if hasattr(limit, "le")]
    return Described(
        kind=str if choices else field.annotation,
        default=field.default,
        limits=(low[0] if low else -math.inf, high[0] if high else math.inf),
        choices=choices,
        description=field.description or "",
    )


def _bad_input(error, record, what):
    """The BadInput to raise in place of pydantic's `error`; `error` itself where code is wrong."""
    mistakes = error.errors(include_url=False)
    for mistake in mistakes:
        own = mistake.get("ctx", {}).get("error")
        if isinstance(own, BadInput):  # raised by the record's own __post_init__
            return own
    told = (each for kinds in FIRST_TOLD for each in mistakes if each["type"] in kinds)
    first = next(told, None)
    return BadInput(_sentence(first, record, what)) if first else error


def _sentence(mistake, record, what):
    kind, place, value = mistake["type"], mistake["loc"][0], mistake["input"]
    known = list(described(record))
    name = known[place] if isinstance(place, int) else place
    if kind in UNKNOWN:
        word = what.lower()
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"known {word}s are {', '.join(known)}."
        return f"There is no {word} '{name}': {hint}"
    if kind in MISSING:
        return f"{what} '{name}' is missing: give it a value."
    field = described(record)[name]
    if kind in WRONG_TYPE or kind in NO_CHOICE and not isinstance(value, str):
        says = "but it is" if len(mistake["loc"]) == 1 else "but in it is"
        return (
            f"{what} '{name}' must be {TYPE_WORDS[field.kind]}, {says} {value!r}"
            f" ({type(value).__name__}): write it as one."
        )
    if kind in OUTSIDE:
        low, high = field.limits
        return (
            f"{what} '{name}' is {field.kind(value)}, outside {low} to {high}: choose a value in"
            " that range."
        )
    return f"{what} '{name}' is {value!r}: it must be one of {', '.join(field.choices)}."
