"""The decision guide: what you have and what you want in, a recommendation out, every sentence
beside the measurement that it rests on.

    advise(Needs(memory_gib=8, disk_gib=20, concepts=40, fidelity="either", minutes=120)).table()
    answer(comparison, needs)       # three sentences: which one, at what cost, how sure

It rests on data/results/advice.json, which `python -m benchmarks.analysis` makes of PocketBench's
rows, and on data/results/forecast.json. Where no measurement decides, the advice is "either", and
says so.
"""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import Field

from lib.config import METHOD_NAMES, METHODS, PRESETS
from lib.config.checked import checked
from lib.evaluation.comparison_table import Comparison, weak_methods
from lib.evaluation.results import NOT_MEASURED, read_result
from lib.files import BadInput
from lib.files.text import amount, size_text
from lib.plots import Table

Fidelity = Literal["likeness first", "small files first", "either"]
FIDELITY: tuple[str, ...] = get_args(Fidelity)

PUBLISHED = (
    "OFT, arXiv 2306.07280, table 1, on Stable Diffusion 1.5: DINO .614 for all weights, .613 for"
    " LoRA, without intervals"
)


# What a limit is set on -> the bench's measure of it, and its name in a sentence
COSTS = {
    "memory": ("peak_bytes", "memory of training"),
    "disk": ("file_bytes", "the file as shipped"),
    "time": ("train_seconds", "time of training"),
}

LESS = {
    "memory": "takes less memory",
    "disk": "makes the smaller file",
    "time": "trains in less time",
}

# (base, method) -> bytes at the peak of the smallest recipe
Forecast = dict[tuple[str, str], float]


class Sentence(NamedTuple):
    """One sentence of the advice, and the measurement that it rests on."""

    text: str
    measurement: str


class Decided(NamedTuple):
    """The method that one question decides for, None where it does not, with the reason in a few
    words and the sentence of the advice.
    """

    side: str | None
    reason: str
    sentence: Sentence


class Estimate(NamedTuple):
    """What one training, or its file, costs in bytes or seconds, and where that figure is from."""

    amount: float
    source: str


# what a limit is set on -> method -> its figure, None where nobody knows
Costs = dict[str, dict[str, Estimate | None]]


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
    """A recommendation and the sentences that it rests on, the recommendation first.

    choice: "lora", "dreambooth", "either", or "neither" where both break a limit.
    rank: for LoRA, None if that is no choice. reasons: what decided, such as "takes less memory".
    """

    choice: str
    sentences: tuple[Sentence, ...]
    rank: int | None = None
    reasons: tuple[str, ...] = ()

    def table(self, caption: str = "") -> Table:
        """The sentences beside their measurements."""
        return Table(self.sentences, ["advice", "measurement"], caption)


def advise(
    needs: Needs, measured: dict[str, Any] | None = None, forecast: Forecast | None = None
) -> Advice:
    """The `Advice` for `Needs`: first the limits, then what was wanted, then the costs.

    measured: what advice.json holds. forecast: for bases other than pocket, the forecast that ships
    if none is given. What was not measured decides nothing. Raises BadInput for a base without any
    figure, and for a forecast that is no number above 0.
    """
    measured = measured or read_result("advice")
    if forecast is None:
        # Brings in torch, which all else does without.
        from lib.memory.cards import smallest_recipes

        forecast = smallest_recipes()
    _check(needs, measured, forecast)
    rank, about_rank = _rank(needs, measured)
    costs: Costs = {
        what: {m: _cost(what, m, needs, measured, forecast, rank) for m in METHODS}
        for what in COSTS
    }
    limits = [_limit(what, figures, needs) for what, figures in costs.items()]
    left = [m for m in METHODS if not any(m in broken for broken, _ in limits)]
    sentences = [sentence for _, sentence in limits]
    if len(left) == 2:
        choice, why = _wanted(needs, measured, costs)
        sentences += [found.sentence for found in why]
        reasons = [found.reason for found in why if found.side == choice]
    else:
        choice = left[0] if left else "neither"
        reasons = [f"alone fits your {what}" for what, (no, _) in zip(COSTS, limits) if no]
    if choice in ("lora", "either"):
        sentences.append(about_rank)
    if needs.concepts > 1:
        sentences.append(
            Sentence(
                "Several concepts in one picture are not part of this advice.",
                "claims 7 and 8: measured in notebook 05",
            )
        )
    return Advice(
        choice,
        (Sentence(_recommended(choice, rank), "the lines below"), *sentences),
        rank if choice in ("lora", "either") else None,
        tuple(reasons),
    )


def _recommended(choice: str, rank: int | None = None) -> str:
    """The recommendation in words, of a LoRA of a certain `rank` or of any."""
    lora = "LoRA" if rank is None else f"LoRA, rank {rank}"
    return {
        "neither": (
            "Neither is known to be within your limits: widen the broken one, take fewer concepts"
            " or a smaller base model."
        ),
        "either": (
            f"Either {lora}{'' if rank is None else ','} or DreamBooth: nothing"
            f" {'measured' if rank is None else 'below'} decides between them."
        ),
        "lora": f"Take {lora}.",
        "dreambooth": "Take DreamBooth.",
    }[choice]


def answer(
    own: Comparison, needs: Needs, measured: dict[str, Any] | None = None
) -> tuple[str, str, str]:
    """Three sentences on a comparison of two runs: which method for this subject, at what cost, and
    how sure that is. They say what `advise` says, and no figure of the own run takes a side.

    needs: their base is not read, for it is the comparison's. measured: what advice.json holds.
    Raises BadInput where the bench's results are missing.
    """
    measured = measured or read_result("advice")
    base = own.about["base"]
    if base != "pocket":
        from lib.memory.forecasting import known_shape  # brings in torch

        base = known_shape(base)
    return _which(own, needs, measured, base), _at_what_cost(own), _how_sure(own, measured, base)


def _which(own: Comparison, needs: Needs, measured: dict[str, Any], base: str) -> str:
    subject = f"'{own.about['identifier']} {own.about['class_noun']}'"
    if base not in ("pocket", *measured["files"]):
        return (
            f"For {subject}, there is no figure that decides between LoRA and DreamBooth on the"
            f" base model {base}."
        )
    found = advise(replace(needs, base=base), measured)
    # Of no rank: what decides was measured at the preset's, and the own run has one of its own.
    first = _recommended(found.choice)
    why = f": it {' and '.join(found.reasons)}." if found.reasons else "."
    return f"For {subject}, {first[0].lower()}{first[1:].removesuffix('.')}{why}"


def _at_what_cost(own: Comparison) -> str:
    """The costs of the own run, both methods' in the same order."""
    each = []
    for method, name in METHOD_NAMES.items():
        row = own.rows[method]
        seconds, peak = row["seconds_per_step"], size_text(row["peak_bytes"])
        each.append(
            f"{name} took {amount(seconds, 's')} a step, {peak} at the peak and a file of"
            f" {size_text(row['file_bytes'])}"
        )
    ranks = [run.settings.get("rank") for run in own.runs if run.method == "lora"]
    rank = f" (LoRA of rank {ranks[0]})" if ranks and ranks[0] else ""
    return f"At this cost in your own run{rank}: {', '.join(each)}."


def _how_sure(own: Comparison, measured: dict[str, Any], base: str) -> str:
    """What many subjects show, and what one cannot."""
    effects = measured["effects"]
    likeness, memory, file = (effects[key] for key in ("dino", "peak_bytes", "file_bytes"))
    side = more_alike(likeness)
    alike = f"{METHOD_NAMES[side]} is more alike" if side else _with_detail(likeness)
    many = "" if likeness["seeds"] == 1 else "s"
    weak, unlike = weak_methods(own), ", ".join(own.about.get("unlike", ()))
    notes = [
        "your own run is one subject and one seed, and decides nothing",
        "" if base == "pocket" else "likeness was not measured on its base model",
        f"not like for like, the runs differ in {unlike}" if unlike else "",
        f"train longer: {weak}" if weak else "",
    ]
    return (
        f"How sure: over {likeness['subjects']} subjects x {likeness['seeds']} seed{many} of the"
        f" small base model DreamBooth's memory is {memory['value']:.2f} times and its file"
        f" {file['value']:.2f} times LoRA's; likeness: {alike}, DINO"
        f" {likeness['text'].rsplit(', ', 1)[0]}; {'; '.join(filter(None, notes))}."
    )


def _check(needs: Needs, measured: dict[str, Any], forecast: Forecast) -> None:
    """Raise BadInput for a forecast that is no number above 0, or a base without any figure."""
    for (base, method), value in forecast.items():
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise BadInput(
                f"The forecast for {method} on {base} is {value!r}: give bytes, a number above 0."
            )
    known = {"pocket", *measured["files"], *(base for base, _ in forecast)}
    if needs.base not in known:
        raise BadInput(
            f"Need 'base' is {needs.base!r}, for which there is no figure: known are"
            f" {', '.join(sorted(known))}."
        )


def _rank(needs: Needs, measured: dict[str, Any]) -> tuple[int, Sentence]:
    """The smallest rank that is shown to be as alike as the best, else the preset's."""
    preset = PRESETS["lora", "pocket" if needs.base == "pocket" else "sd1"]["rank"]
    best, ranks = measured["best_rank"], measured["ranks"]
    listed = ", ".join(str(each["rank"]) for each in ranks)
    for each in ranks if needs.base == "pocket" else ():
        rank, behind = each["rank"], each["best_minus_this"]
        if behind["high"] is None:  # too few subjects
            continue
        if rank != best and behind["high"] < behind["margin"]:
            return rank, Sentence(
                f"Rank {rank} is enough: its DINO is less than {behind['margin']} below that of"
                f" rank {best}, the best of {listed}.",
                f"DINO, rank {best} minus rank {rank}: {behind['text']}",
            )
        if rank == best and len(ranks) > 1:
            smaller = [
                f"; minus rank {other['rank']}: {other['best_minus_this']['text']}"
                for other in ranks
                if other["rank"] < best
            ]
            return rank, Sentence(
                f"Rank {rank} is the best of {listed}, and no smaller one is shown to be as good.",
                f"DINO of rank {rank}, mean {behind['of']:.3f}{''.join(smaller[-1:])}",
            )
    return preset, Sentence(
        f"Rank {preset} is the preset's: ranks were not compared on {measured['enough']} subjects"
        " of this base.",
        "PRESETS, lib/config/presets.py",
    )


def _cost(
    what: str,
    method: str,
    needs: Needs,
    measured: dict[str, Any],
    forecast: Forecast,
    rank: int,
) -> Estimate | None:
    """What one training by a method, or its file, costs; None where nobody knows.

    It was measured on the pocket base. On another, memory is forecast and a file's bytes computed.
    """
    base = needs.base
    measure, _ = COSTS[what]
    if base == "pocket":
        levels = measured["costs"][measure][method]
        found = levels.get(f"rank {rank}", levels.get("main"))
        if found and what == "time":
            source = f"{measure}, mean of {found['runs']} runs on {found['devices']}"
            return Estimate(found["mean"], source)
        note = " (tensors, without Python and its libraries)" if what == "memory" else ""
        # What has to fit has to fit at its largest.
        return found and Estimate(
            found["largest"], f"{measure}, largest of {found['runs']} runs{note}"
        )
    if what == "memory" and (base, method) in forecast:
        return Estimate(forecast[base, method], f"forecast for {base}")
    if what == "disk" and base in measured["files"]:
        sizes = measured["files"][base]
        size = sizes["lora_a_rank"] * rank if method == "lora" else sizes["dreambooth"]
        return Estimate(size, f"computed for {base}, 2 bytes a parameter")
    return None


def _limit(
    what: str, figures: dict[str, Estimate | None], needs: Needs
) -> tuple[set[str], Sentence]:
    """The methods that are not known to keep a limit that matters, and a sentence on it."""
    times = 1 if what == "memory" else needs.concepts
    most = {
        "memory": needs.memory_gib * 2**30,
        "disk": needs.disk_gib * 2**30,
        "time": needs.minutes * 60,
    }[what]
    yours = f"your {_amount(most, what)}"
    if what == "memory" and needs.base != "pocket":  # which trains on the processor
        from lib.memory.cards import usable_bytes  # late: brings in torch

        most = max(0, usable_bytes(needs.memory_gib))  # not all of a card is to be had
        yours = f"the {_amount(most, what)} to be had on a card of {needs.memory_gib:g} GB"
    known = {m: Estimate(f.amount * times, f.source) for m, f in figures.items() if f}
    if not known:
        return set(), Sentence(
            f"{what.capitalize()} decides nothing: there is no figure for {needs.base}.",
            _unmeasured(needs),
        )
    broken = {m for m, figure in known.items() if figure.amount > most}
    each = [
        f"{METHOD_NAMES[m]} takes {_amount(figure.amount, what)}, which"
        f" {'does not fit' if m in broken else 'fits'}"
        for m, figure in known.items()
    ]
    each += [f"{METHOD_NAMES[m]} is not known" for m in METHODS if m not in known]
    # Where one method is too much, another that nobody has a figure for is no way out.
    broken |= {m for m in METHODS if m not in known} if broken else set()
    many = f" for {times} concepts" if times > 1 else ""
    return broken, Sentence(
        f"{what.capitalize()}{many}, of {yours}: {'; '.join(each)}.",
        "; ".join(f"{METHOD_NAMES[m]}: {figure.source}" for m, figure in known.items()),
    )


def _unmeasured(needs: Needs) -> str:
    return NOT_MEASURED if needs.base == "pocket" else "none"


def _amount(value: float, what: str) -> str:
    return f"{value / 60:,.1f} minutes" if what == "time" else size_text(value)


def _wanted(needs: Needs, measured: dict[str, Any], costs: Costs) -> tuple[str, list[Decided]]:
    """The choice and what was asked for it, where both methods are within the limits."""
    if needs.fidelity == "small files first":
        found = _cheaper("disk", needs, measured, costs)
        return found.side or "either", [found]
    why = [_cheaper(what, needs, measured, costs) for what in COSTS]
    sides = {found.side for found in why if found.side}
    cheaper = sides.pop() if len(sides) == 1 else "either"
    if needs.fidelity == "either":
        return cheaper, why
    likeness = measured["effects"]["dino"]
    found = _likeness(needs, likeness)
    if found.side:
        return found.side, [found]
    # Only where likeness is known to be the same may costs decide in its place.
    same = needs.base == "pocket" and likeness["verdict"] == "no difference"
    return (cheaper, [found, *why]) if same else ("either", [found])


def _likeness(needs: Needs, likeness: dict[str, Any]) -> Decided:
    """The method that draws the subject more alike, by the effect `likeness` of the bench."""
    text = f"DINO, DreamBooth minus LoRA: {likeness['text']}"
    if needs.base != "pocket":
        sentence = Sentence(
            f"Likeness decides nothing: it was not measured on {needs.base}. Train both ways on"
            " it to know.",
            f"on the pocket base: {text}; {PUBLISHED}",
        )
        return Decided(None, "", sentence)
    side = more_alike(likeness)
    if side:
        words = "draws the subject more alike"
        return Decided(side, words, Sentence(f"Likeness: {METHOD_NAMES[side]} {words}.", text))
    return Decided(None, "", Sentence(f"Likeness decides nothing: {_with_detail(likeness)}.", text))


def more_alike(likeness: dict[str, Any]) -> str | None:
    """The method that draws the subject more alike, None where that is not shown."""
    return {"holds": "dreambooth", "does not hold": "lora"}.get(likeness["verdict"])


def _with_detail(effect: dict[str, Any]) -> str:
    """What an effect allows to say of itself, such as "no difference (the same within 5%)"."""
    return effect["verdict"] + (f" ({effect['detail']})" if effect["detail"] else "")


def _cheaper(what: str, needs: Needs, measured: dict[str, Any], costs: Costs) -> Decided:
    """The method that takes less, None where that is not known."""
    measure, words = COSTS[what]
    effect = measured["effects"][measure]
    lora, full = (costs[what][m] for m in METHODS)
    if needs.base == "pocket":
        side = {"holds": "lora", "does not hold": "dreambooth"}.get(effect["verdict"])
        lora_then = f"LoRA, rank {PRESETS['lora', 'pocket']['rank']}"  # in the bench's main part
        kind, text = _with_detail(effect), f"{measure}, DreamBooth / {lora_then}: {effect['text']}"
    elif lora and full:
        ratio, same = full.amount / lora.amount, effect["margin"]
        side = "lora" if ratio > 1 + same else "dreambooth" if ratio < 1 / (1 + same) else None
        kind = f"the same within {same:.0%}"
        text = f"DreamBooth / LoRA: x {ratio:.2f}; {lora.source}"
    else:
        side, kind, text = None, "not known", _unmeasured(needs)
    if side:
        sentence = Sentence(f"{METHOD_NAMES[side]} takes less: {words}.", text)
        return Decided(side, LESS[what], sentence)
    return Decided(None, "", Sentence(f"Not decided by {words}: {kind}.", text))
