"""The decision guide: what you have and what you want in, a recommendation out, every sentence
beside the measurement that it rests on.

    advise(Needs(memory_gib=8, disk_gib=20, concepts=40, fidelity="either", minutes=120), rows).table()

`rows` are PocketBench's, as in `benchmarks.analysis.effects`. Where no measurement decides, the
advice is "either", and says so.
"""

import math
from collections import namedtuple
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pydantic import Field

from benchmarks.analysis.effects import (
    COSINE,
    COST,
    ENOUGH,
    LORA,
    NOT_MEASURED,
    decide,
    effect,
    number,
)
from benchmarks.analysis.verdicts import LATER, SHAPES, large, shipped_bytes
from lib.config.checked import checked
from lib.config.names import METHOD_NAMES
from lib.config.presets import PRESETS
from lib.config.settings import METHODS
from lib.files.errors import BadInput

Fidelity = Literal["likeness first", "small files first", "either"]


FIDELITY: tuple[str, ...] = get_args(Fidelity)


PUBLISHED = (
    "OFT, arXiv 2306.07280, table 1, on Stable Diffusion 1.5: DINO .614 for all weights, .613 for"
    " LoRA, without intervals"
)


# what a limit is set on -> (the measure, its words, its unit)
COSTS = {
    "memory": ("peak_bytes", "memory of training", "bytes"),
    "disk": ("file_bytes", "the file as shipped", "bytes"),
    "time": ("train_seconds", "time of training", "s"),
}


Sentence = namedtuple("Sentence", "text measurement")


@checked("Need")
class Needs:
    """What the reader has and wants; a wrong type or an impossible value raises BadInput."""

    memory_gib: Annotated[
        float,
        Field(
            ge=0.01,
            le=10_000,
            description="Memory in GiB of the card, or of the computer without one.",
        ),
    ]
    disk_gib: Annotated[
        float,
        Field(
            ge=0.001,
            le=1e6,
            description="Disk space in GiB for all that stays, base model left out.",
        ),
    ]
    concepts: Annotated[
        int, Field(ge=1, le=1_000_000, description="How many subjects are to be learnt.")
    ] = 1
    fidelity: Annotated[Fidelity, Field(description="What matters more.")] = "either"
    minutes: Annotated[
        float,
        Field(
            ge=0.01,
            le=1e6,
            description="Minutes for training all subjects, one after another.",
        ),
    ] = 60.0
    base: Annotated[
        str, Field(description="Base model: pocket, or one that the forecast knows.")
    ] = "pocket"


@dataclass(frozen=True)
class Advice:
    """`choice`: "lora", "dreambooth", "either", or "neither" where both break a limit; `rank` for
    LoRA, None if that is no choice.

    `sentences` are pairs (text, measurement), the recommendation first.
    """

    choice: str
    sentences: tuple
    rank: int | None = None

    def table(self):
        """The sentences as a `lib.plots.figure.Table`."""
        from lib.plots.figure import Table

        return Table(self.sentences, ["advice", "measurement"])


def advise(needs, rows, forecast=None):
    """The `Advice` for `Needs`, from PocketBench's rows and `forecast`: {(base, method): bytes of
    memory}, for bases other than pocket.

    First the limits (memory, disk, time), then what was wanted, then the costs. What was not
    measured decides nothing. Raises BadInput for a base without any figure, a forecast that is no
    number above 0, and as `benchmarks.analysis.effects.effect` does.
    """
    forecast = forecast or {}
    for (base, method), value in forecast.items():
        if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
            raise BadInput(
                f"The forecast for {method} on {base} is {value!r}: give bytes, a number above 0."
            )
    known = {"pocket", *SHAPES, *(base for base, _ in forecast)}
    if needs.base not in known:
        raise BadInput(
            f"Need 'base' is {needs.base!r}, for which there is no figure: known are"
            f" {', '.join(sorted(known))}."
        )
    rows = _ranked(rows)
    rank, about_rank = _rank(needs, rows)
    costs = {
        what: {m: _cost(what, m, needs, rows, forecast, rank) for m in METHODS} for what in COSTS
    }
    limits = [_limit(what, found, needs) for what, found in costs.items()]
    left = [m for m in METHODS if not any(m in broken for broken, _ in limits)]
    said = [sentence for _, sentence in limits]
    if len(left) == 2:
        choice, why = _wanted(needs, rows, costs)
        said += why
    else:
        choice = left[0] if left else "neither"
    if choice in ("lora", "either"):
        said.append(about_rank)
    if needs.concepts > 1:
        said.append(
            Sentence(
                "Several concepts in one picture are not part of this advice.",
                f"claims 7 and 8: {LATER}",
            )
        )
    lora = f"LoRA, rank {rank}"
    first = {
        "neither": (
            "Neither is known to be within your limits: widen the broken one, take fewer concepts"
            " or a smaller base model."
        ),
        "either": f"Either {lora}, or DreamBooth: nothing below decides between them.",
        "lora": f"Take {lora}.",
        "dreambooth": "Take DreamBooth.",
    }[choice]
    return Advice(
        choice,
        (Sentence(first, "the lines below"), *said),
        rank if choice in ("lora", "either") else None,
    )


def _ranked(rows):
    """The rows, with the main study's LoRA runs copied into the study of ranks where that has none
    of their rank.
    """
    runs = [row for row in rows if row.get("method") == "lora" and row.get("rank") is not None]
    there = {row["rank"] for row in runs if row.get("study") == "rank"}
    return [
        *rows,
        *(
            row | {"study": "rank"}
            for row in runs
            if row.get("study") == "main" and row["rank"] not in there
        ),
    ]


def _rank(needs, rows):
    """(rank, sentence): the smallest rank that is shown to be as alike as the best, else the
    preset's.
    """
    preset = PRESETS["lora", "pocket" if needs.base == "pocket" else "sd1"]["rank"]
    ranks = sorted(
        {
            int(row["rank"])
            for row in rows
            if row.get("study") == "rank" and row.get("method") == "lora"
        }
    )

    def against(one, other):
        return effect(rows, "dino", "rank", LORA | {"rank": one}, LORA | {"rank": other})

    best = ranks[0] if ranks else None
    for rank in ranks[1:]:
        best = rank if (against(rank, best).value or 0) > 0 else best
    for rank in ranks if needs.base == "pocket" else ():
        behind = against(best, rank)
        if rank != best and behind.subjects >= ENOUGH and behind.high < COSINE:
            return rank, Sentence(
                f"Rank {rank} is enough: its DINO is less than {COSINE} below that of rank {best},"
                f" the best of {', '.join(map(str, ranks))}.",
                f"DINO, rank {best} minus rank {rank}: {behind.text()}",
            )
        if rank == best and len(ranks) > 1 and behind.subjects >= ENOUGH:
            return rank, Sentence(
                f"Rank {rank} is the best of {', '.join(map(str, ranks))}, and no smaller one is"
                " shown to be as good.",
                f"DINO of rank {rank}, mean {behind.of:.3f}",
            )
    return preset, Sentence(
        f"Rank {preset} is the preset's: ranks were not compared on {ENOUGH} subjects of this"
        " base.",
        "PRESETS, lib/config/settings.py",
    )


def _cost(what, method, needs, rows, forecast, rank):
    """(amount, measurement): the bytes or seconds of one training with a method, or of its file;
    None where nobody knows.
    """
    if needs.base != "pocket":
        if what == "memory" and (needs.base, method) in forecast:
            return forecast[needs.base, method], f"forecast for {needs.base}"
        if what == "disk" and needs.base in SHAPES:
            return (
                shipped_bytes(needs.base, method, rank),
                f"computed for {needs.base}, 2 bytes a parameter",
            )
        return None
    measure, _, unit = COSTS[what]
    runs = [row for row in rows if row.get("method") == method and number(row, measure) is not None]
    ranked = [row for row in runs if row.get("study") == "rank" and row.get("rank") == rank]
    runs = ranked or [row for row in runs if row.get("study") == "main"]
    if not runs:
        return None
    found = [row[measure] for row in runs]
    devices = ", ".join(sorted({str(row.get("device")) for row in runs}))
    if unit == "s":
        return sum(found) / len(found), f"{measure}, mean of {len(found)} runs on {devices}"
    note = " (tensors, without Python and its libraries)" if what == "memory" else ""
    return (
        max(found),
        f"{measure}, largest of {len(found)} runs{note}",
    )  # what has to fit has to fit at its largest


def _limit(what, found, needs):
    """(methods that are not known to keep a limit that matters, sentence)."""
    times, unit = 1 if what == "memory" else needs.concepts, COSTS[what][2]
    room = (
        needs.minutes * 60
        if what == "time"
        else 2**30 * (needs.memory_gib if what == "memory" else needs.disk_gib)
    )
    known = {m: (cost[0] * times, cost[1]) for m, cost in found.items() if cost}
    if not known:
        return set(), Sentence(
            f"{what.capitalize()} decides nothing: there is no figure for {needs.base}.",
            _unmeasured(needs),
        )
    broken = {m for m, (amount, _) in known.items() if amount > room}
    each = [
        f"{METHOD_NAMES[m]} takes {_amount(amount, unit)}, which"
        f" {'does not fit' if m in broken else 'fits'}"
        for m, (amount, _) in known.items()
    ]
    each += [f"{METHOD_NAMES[m]} is not known" for m in METHODS if m not in known]
    # Where one method is too much, another that nobody has a figure for is no way out.
    broken |= {m for m in METHODS if m not in known} if broken else set()
    many = f" for {times} concepts" if times > 1 else ""
    return broken, Sentence(
        f"{what.capitalize()}{many}, of your {_amount(room, unit)}: {'; '.join(each)}.",
        "; ".join(f"{METHOD_NAMES[m]}: {source}" for m, (_, source) in known.items()),
    )


def _unmeasured(needs):
    return NOT_MEASURED if needs.base == "pocket" else "none"


def _amount(value, unit):
    return f"{value / 60:,.1f} minutes" if unit == "s" else large(value)


def _wanted(needs, rows, costs):
    """(choice, sentences) where both methods are within the limits."""
    if needs.fidelity == "small files first":
        side, sentence = _cheaper("disk", needs, rows, costs)
        return side or "either", [sentence]
    found = [_cheaper(what, needs, rows, costs) for what in COSTS]
    sides, said = {side for side, _ in found if side}, [sentence for _, sentence in found]
    cheaper = sides.pop() if len(sides) == 1 else "either"
    if needs.fidelity == "either":
        return cheaper, said
    likeness = effect(rows, "dino")
    (kind, detail), text = decide(likeness), f"DINO, DreamBooth minus LoRA: {likeness.text()}"
    if needs.base != "pocket":
        return "either", [
            Sentence(
                f"Likeness decides nothing: it was not measured on {needs.base}. Train both ways on"
                " it to know.",
                f"on the pocket base: {text}; {PUBLISHED}",
            )
        ]
    if kind in ("holds", "does not hold"):
        side = "dreambooth" if kind == "holds" else "lora"
        return side, [
            Sentence(f"Likeness: {METHOD_NAMES[side]} draws the subject more alike.", text)
        ]
    sentence = Sentence(
        f"Likeness decides nothing: {kind}{f' ({detail})' if detail else ''}.", text
    )
    # Only where likeness is known to be the same may costs decide in its place.
    return (cheaper, [sentence, *said]) if kind == "no difference" else ("either", [sentence])


def _cheaper(what, needs, rows, costs):
    """(the method that takes less, or None where that is not known, sentence)."""
    measure, words, _ = COSTS[what]
    if needs.base == "pocket":
        ratio = effect(rows, measure)
        (kind, detail), text = decide(ratio), f"{measure}, DreamBooth / LoRA: {ratio.text()}"
        side = {"holds": "lora", "does not hold": "dreambooth"}.get(kind)
        kind = f"{kind}{f' ({detail})' if detail else ''}"
    else:
        lora, full = (costs[what][m] for m in METHODS)
        ratio = full[0] / lora[0] if lora and full else 1
        side = "lora" if ratio > 1 + COST else "dreambooth" if ratio < 1 / (1 + COST) else None
        kind, text = "not known", _unmeasured(needs)
        if lora and full:
            kind, text = (
                f"the same within {COST:.0%}",
                f"DreamBooth / LoRA: x {ratio:.2f}; {lora[1]}",
            )
    if side:
        return side, Sentence(f"{METHOD_NAMES[side]} takes less: {words}.", text)
    return None, Sentence(f"Not decided by {words}: {kind}.", text)
