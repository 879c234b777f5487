"""A verdict on each of 17 claims, from PocketBench's rows: effect, 95 % interval, what may be said.

`rows` are dicts, one a run, as `lib.course.sweeping` writes; `benchmarks.analysis.effects` says how
an effect and its interval come about.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.analysis.effects import (
    BASE,
    BENCH,
    CUT,
    CUT_TWICE,
    FULL,
    LORA,
    MEASURES,
    NOT_MEASURED,
    PARTS,
    RESAMPLES,
    SAME,
    Columns,
    Effect,
    Rows,
    decide,
    effect,
    number,
)
from benchmarks.analysis.shipping import claim_rows
from benchmarks.analysis.study_rows import BUSY, unlike_main
from lib.config.presets import PRESETS
from lib.config.settings import METHODS
from lib.dataset.captions import KINDS
from lib.files.json_file import read_json
from lib.files.text import amount, size_text

SAMPLE_SECONDS = 0.1  # a picture of 8 guided steps (benchmarks/results/pocket.json)
BANDWIDTH = 20e6  # bits a second, of claim 4

# base -> (parameters of its U-Net, parameters of an attention LoRA for each rank): 2 bytes a
# parameter, in fp16 as shipped. For each attention block of width d with text of width c a rank
# takes 14 d + 2 c: c is 768 in Stable Diffusion 1.5, 2048 in SDXL.
SHAPES = {"sd15": (859_520_964, 199_296), "sdxl": (2_567_463_684, 1_451_520)}

FORECAST = BENCH.with_name("forecast.json")

LATER = "measured in notebook 05"
NOT_THERE = "no figure in these rows"
QUARTERS = range(PARTS + 1)

HEADINGS = [
    "claim",
    "in words",
    "measurement",
    "effect of DreamBooth against LoRA (95 % interval)",
    "verdict",
]

CAPTION = (
    "Means over subjects of paired differences, or geometric means of ratios (x). Intervals: 95 %,"
    f" bootstrap over subjects, {RESAMPLES:,} resamples, each by itself; a verdict that would fall"
    f" if all that are judged were to be right at once (Bonferroni) says so. {SAME} Seconds and"
    " memory are of the step as it was when these runs were made, two side by side; runs whose"
    f" step took over {BUSY} times the usual are left out of the seconds. Today's stand in the"
    " README's first table. Your own run is one subject and one seed: no interval, no verdict."
)


class Part(NamedTuple):
    """One measurement of a claim; the last five are as `effect` takes them.

    sign: 1 or -1 is the direction claimed, 0 shows the effect without judging by it.
    """

    label: str
    measure: str
    sign: int = 1
    study: str = "main"
    of: Columns = FULL
    against: Columns = LORA
    pair: tuple[str, ...] = ("seed",)

    def effect(self, rows: Rows) -> Effect:
        """Its `Effect` in PocketBench's rows."""
        return effect(rows, self.measure, self.study, self.of, self.against, self.pair)


def beside(measure: str, against: Columns = LORA) -> list[Part]:
    """The third contestant beside a claim, shown and not judged: DreamBooth cut to a LoRA, of
    LoRA's rank and of twice that.
    """
    other = "LoRA" if against == LORA else "DreamBooth"
    return [
        Part(f"cut to a LoRA of {rank}, against {other}", measure, 0, "main", of, against)
        for rank, of in (("its rank", CUT), ("twice its rank", CUT_TWICE))
    ]


RARE = {"variant": "rare"}
POOR = {"variant": ("duplicates", "one_background")}


OVERFITS = (
    ("memorising", "memorising", 1),
    ("loss gap", "loss_gap", 1),
    ("PRES", "pres", 1),
    ("drift", "drift", 1),
    ("diversity", "diversity", -1),
)


WITHOUT = {
    "without_identifier": "asking without it",
    "common": "a common word",
    "wrong_noun": "a wrong noun",
    "no_noun": "no noun",
}


# Number, claim, how it is measured, and its parts; instead of parts, the verdict on what these rows
# cannot decide.
CLAIMS: tuple[tuple[int, str, str, list[Part] | str], ...] = (
    (
        1,
        "LoRA trains faster",
        (
            "seconds: all steps; half of the way from base to real photos (runs that get there),"
            " and the best step, both read off the curve's quarters, on straight lines between them"
        ),
        [
            Part("all steps", "train_seconds"),
            Part("half of the way", "seconds_to_half"),
            Part("the best step", "seconds_to_best"),
        ],
    ),
    (
        2,
        "DreamBooth needs more memory",
        "peak of training, pocket base; beside it Stable Diffusion, forecast",
        [Part("", "peak_bytes")],
    ),
    (
        3,
        "LoRA's file is smaller",
        "bytes as shipped, pocket base; beside it Stable Diffusion, computed",
        [Part("", "file_bytes"), *beside("file_bytes")],
    ),
    (
        4,
        "LoRA is easier to share",
        "upload at 20 Mbit/s, computed; 1 file against 2; tools: notebook 05",
        [Part("", "transfer_seconds")],
    ),
    (
        5,
        "LoRA is quicker to try again",
        f"training and one sample of {SAMPLE_SECONDS} s",
        [Part("", "iteration_seconds")],
    ),
    (
        6,
        "DreamBooth is more faithful",
        (
            "likeness to held-out photos, each method at the lowest of its best rates, equal steps;"
            " beside it on the curve"
        ),
        [
            Part("DINO", "dino"),
            Part("CLIP-I", "clip_i"),
            Part("beside it CLIP-T", "clip_t", 0),
            Part("DINO where a place is asked", "dino_place", 0),
            Part("DINO where a colour is asked", "dino_colour", 0),
            Part("the place is drawn", "place_drawn", 0),
            Part("the colour is drawn", "colour_drawn", 0),
            Part("DINO when the quicker one ends", "dino_equal_time", 0),
            Part("DINO at each one's best point", "dino_best", 0),
            *(
                Part(f"{name} over base, DINO", "dino", 0, "main", of, BASE, ())
                for name, of in (("LoRA", LORA), ("DreamBooth", FULL))
            ),
            *beside("dino", FULL),
        ],
    ),
    (7, "LoRAs combine, checkpoints hardly", "what survives of each of three concepts", LATER),
    (
        8,
        "LoRA is more flexible in production",
        "seconds to switch, concepts a GB, pictures a second",
        LATER,
    ),
    (
        9,
        "LoRA for most, DreamBooth for some",
        "the decision guide (lib/evaluation/advice.py)",
        "depends on your memory, disk, time, concepts, wishes",
    ),
    (
        10,
        "LoRA leaves the base unchanged",
        "hash of the base's weights; adapter off",
        "holds: 0 bits differ, whenever notebook 02 runs",
    ),
    (
        11,
        "DreamBooth binds a rare word to the subject",
        "DINO with a rare word and the right noun, minus DINO with what is named",
        [
            *(
                Part(
                    f"{who}{words}",
                    "dino",
                    sign,
                    "identifier",
                    of | RARE,
                    of | {"variant": variant},
                )
                for who, of, sign in (("", FULL, 1), ("beside it LoRA, ", LORA, 0))
                for variant, words in WITHOUT.items()
            )
        ],
    ),
    (
        12,
        "DreamBooth is more consistent",
        (
            "standard deviation of DINO over pictures of one prompt, and over prompts; smaller is"
            " better"
        ),
        [
            Part("spread over sampling seeds", "consistency", -1),
            Part("spread over prompts", "prompt_spread", -1),
        ],
    ),
    (
        13,
        "DreamBooth overfits and memorises more",
        (
            "at equal steps: train minus held-out DINO (memorising), held-out minus train loss "
            "(loss gap), PRES over base, drift, diversity"
        ),
        [
            *(Part(label, measure, sign) for label, measure, sign in OVERFITS),
            *beside("pres"),
            *(
                Part(
                    f"{label} on careless data",
                    measure,
                    sign,
                    "careless",
                    FULL | POOR,
                    LORA | POOR,
                    ("seed", "variant"),
                )
                for label, measure, sign in (*OVERFITS, ("CLIP-T", "clip_t", -1))
                if measure != "drift"
            ),
            *(
                Part(
                    f"DreamBooth's {label} with {variant.replace('_', ' ')} over good data",
                    measure,
                    sign,
                    "careless",
                    FULL | {"variant": variant},
                    FULL | {"variant": "good"},
                )
                for label, measure, sign in (("loss gap", "loss_gap", 1), ("CLIP-T", "clip_t", -1))
                for variant in POOR["variant"]
            ),
        ],
    ),
    (
        14,
        "DreamBooth takes longer to tune",
        "seconds of one training; beside it the whole sweep of learning rates",
        [
            Part("", "train_seconds"),
            Part("the sweep", "train_seconds", 0, "sweep", pair=("seed", "variant")),
        ],
    ),
    (
        15,
        "LoRA learns subjects of every kind",
        (
            "CLIP-I over base, one subject a kind, and all kinds together (the pocket judge's DINO "
            "reads a subject, not a style, pose or light)"
        ),
        [
            Part("LoRA, all kinds", "clip_i", 1, "kinds", LORA, BASE, ()),
            Part("beside it DreamBooth", "clip_i", 0, "kinds", FULL, BASE, ()),
            *(
                Part(f"LoRA, {kind}", "clip_i", 0, "kinds", LORA | {"subject": kind}, BASE, ())
                for kind in KINDS
            ),
        ],
    ),
    (
        16,
        "LoRA files load in every tool",
        "exported files checked key by key and loaded back",
        LATER,
    ),
    (
        17,
        "DreamBooth for the highest fidelity",
        "DINO at tuned settings, its cost beside it: is there a gap worth it?",
        [
            Part("DINO", "dino"),
            Part("seconds", "seconds_per_step", 0),
            Part("memory", "peak_bytes", 0),
            Part("file", "file_bytes", 0),
            *beside("dino"),
        ],
    ),
)


def verdicts(rows: Rows, forecast: dict[tuple[str, str], float] | None = None) -> dict[str, Any]:
    """What verdicts.json holds: a row for each claim, with its texts, numbers and intervals.

    forecast: (base, method) -> bytes of memory, as of `read_forecast`. Raises BadInput as `effect`
    does.
    """
    return {
        "columns": HEADINGS,
        "caption": CAPTION,
        "sample_seconds": SAMPLE_SECONDS,
        "upload_bits_per_second": BANDWIDTH,
        "claims": _claims(_derived(rows), forecast or {}),
    }


def _claims(rows: Rows, forecast: dict[tuple[str, str], float]) -> list[dict[str, Any]]:
    """A dict for each claim; `rows` are those of `_derived`."""
    found = {
        claim: [(part, part.effect(rows)) for part in parts]
        for claim, _, _, parts in CLAIMS
        if not isinstance(parts, str)
    }
    judged = sum(
        part.sign != 0 and e.low is not None for parts in found.values() for part, e in parts
    )
    shipped, lines = claim_rows(), []
    for claim, words, measurement, parts in CLAIMS:
        if claim in found:
            text, verdict = _texts(found[claim], rows, judged)
        else:
            text, verdict = shipped.get(claim, ("-", str(parts)))
        if claim in (2, 3):
            text += f"; {_on_stable_diffusion(found[claim][0][0].measure, forecast)}"
        lines.append(
            {
                "claim": claim,
                "words": words,
                "measurement": measurement,
                "effect": text,
                "verdict": verdict,
                "parts": [
                    _part_record(part, e)
                    for part, e in found.get(claim, [])
                    if part.sign or e.subjects  # what stands beside appears when it was measured
                ],
            }
        )
    return lines


def _part_record(part: Part, found: Effect) -> dict[str, Any]:
    """A part of a claim in numbers; `own`: whether the reader's two runs can stand beside it."""
    names = ("value", "low", "high", "subjects", "seeds", "unit")
    return {
        "label": part.label,
        "measure": part.measure,
        "judged": part.sign != 0,
        "own": (part.study, part.of, part.against) == ("main", FULL, LORA),
    } | {name: getattr(found, name) for name in names}


def _derived(rows: Rows) -> Rows:
    """Copies of the rows, checked, with costs computed from others; and every whole sweep of
    learning rates as a row of its own.
    """
    rows = [dict(row) for row in rows]
    for row in rows:
        for key in [key for key in row if key in MEASURES or isinstance(row[key], float)]:
            number(row, key)
        train, size = row.get("train_seconds"), row.get("file_bytes")
        row["iteration_seconds"] = train and train + SAMPLE_SECONDS
        row["transfer_seconds"] = size and size * 8 / BANDWIDTH
    _read_off_the_curves(rows)
    return rows + _sweeps(rows)


def _read_off_the_curves(rows: Rows) -> None:
    """Add to each run what its DINO at each quarter tells: its best point, and (in the main study)
    where it stood when the quicker of the two trainings ended.
    """
    paths = defaultdict(list)
    for row in rows:
        train, path = row.get("train_seconds"), _path(row)
        if train and path:
            # Its first best point; None for step 0, where training did not help.
            row["seconds_to_best"] = train * path.index(max(path)) / PARTS or None
            row["dino_best"] = max(path)
            pair = row.get("study"), row["subject"], row.get("seed"), row.get("device")
            paths[pair].append((row, path))
    for (study, *_), pair in paths.items():
        end = min(row["train_seconds"] for row, _ in pair)
        for row, path in pair if study == "main" else ():
            at = PARTS * end / row["train_seconds"]
            row["dino_equal_time"] = float(np.interp(at, QUARTERS, path))


def _path(row: dict[str, Any]) -> list[float]:
    """A run's DINO at each quarter of its training; nothing where it was not measured."""
    path = [row.get(f"dino_{k}_of_{PARTS}") for k in QUARTERS]
    return [value for value in path if value is not None] if None not in path else []


def _sweeps(rows: Rows) -> Rows:
    """One row for each whole sweep of learning rates, with the seconds of all its trainings."""
    sweeps = defaultdict(list)
    for row in rows:
        if row.get("study") == "rate" and row.get("train_seconds"):
            names = ("method", "subject", "variant", "seed", "device")
            sweeps[tuple(row.get(name) for name in names)].append(row)
    longest: dict[str, int] = {}
    for (method, *_), runs in sweeps.items():
        longest[method] = max(longest.get(method, 0), len(runs))
    return [
        runs[0] | {"study": "sweep", "train_seconds": sum(run["train_seconds"] for run in runs)}
        for (method, *_), runs in sweeps.items()
        if len(runs) == longest[method]  # unfinished sweeps are shorter by chance
    ]


def _judge(found: Effect, sign: int, count: int) -> tuple[str, str]:
    """`decide`'s (verdict, detail), with a word more where the verdict would fall if all `count`
    judged were to be right at once.
    """
    kind, detail = decide(found, sign)
    decided = kind in ("holds", "does not hold", "no difference")
    if decided and decide(found.beside(count), sign)[0] != kind:
        more = f"by itself, not with all {count} at once"
        detail = f"{detail}; {more}" if detail else more
    return kind, detail


def _never(rows: Rows, part: Part) -> str:
    """How many runs never got to where `seconds_to_half` is read, as text: pairs with one of them
    are missing from its ratio.
    """
    if part.measure != "seconds_to_half":
        return ""
    counts = []
    for name, where in (("LoRA", part.against), ("DreamBooth", part.of)):
        runs = [
            row.get(part.measure)
            for row in rows
            if row.get("study") == part.study
            and where.items() <= row.items()
            and row.get("train_seconds")
        ]
        counts.append(f"{name} {runs.count(None)} of {len(runs)}")
    return f", never got there: {', '.join(counts)}"


def _texts(found: list[tuple[Part, Effect]], rows: Rows, count: int) -> tuple[str, str]:
    """(effects, verdict) of a claim as texts.

    count: the comparisons that are judged in the whole table.
    """
    effects = "; ".join(_effect_text(part, e, rows) for part, e in found if e.subjects)
    groups = defaultdict(list)
    for part, e in found:
        if part.sign:
            kind = (NOT_THERE, "") if _is_missing(part, rows) else _judge(e, part.sign, count)
            groups[kind].append(part.label)
    if not effects and len(groups) == 1:
        effects = "-"
    return effects, _verdict_text(groups)


def _effect_text(part: Part, found: Effect, rows: Rows) -> str:
    """An effect with its interval; of a cost also what each method takes."""
    costs = ""
    if found.of is not None and found.against is not None and found.kind == "ratio":
        lora, full = amount(found.against, found.unit), amount(found.of, found.unit)
        costs = f", LoRA {lora}, DreamBooth {full}"
    unlike = unlike_main(rows, part.study)
    return f"{part.label} {found.text()}{costs}{_never(rows, part)} {unlike}".strip()


def _is_missing(part: Part, rows: Rows) -> bool:
    """Whether a study was run, and none of its rows holds this measure."""
    study = [row for row in rows if row.get("study") == part.study]
    return bool(study) and all(row.get(part.measure) is None for row in study)


def _verdict_text(groups: dict[tuple[str, str], list[str]]) -> str:
    """One verdict of {(verdict, detail): labels of the parts}: a claim that holds for some of its
    parts depends on what is measured.
    """
    if len(groups) == 1:
        ((kind, detail),) = groups
        return f"{kind} ({detail})" if detail else kind
    missing = groups.pop((NOT_MEASURED, ""), [])
    kinds = {kind for kind, _ in groups}
    verdict = "; ".join(
        f"{kind} for {', '.join(labels)}{detail and f' ({detail})'}"
        for (kind, detail), labels in groups.items()
    )
    if "holds" in kinds and kinds & {"does not hold", "no difference", "no difference found"}:
        verdict = f"depends on the measure: {verdict}"
    if missing:
        verdict += f"; not measured yet for {', '.join(missing)}: make pocketbench"
    return verdict


def shipped_bytes(base: str, method: str, rank: int) -> int:
    """Bytes of the weights as shipped, in fp16, for a base of `SHAPES`: a U-Net, or an attention
    LoRA of `rank`. Computed.
    """
    unet, each_rank = SHAPES[base]
    return 2 * (each_rank * rank if method == "lora" else unet)


def read_forecast(path: Path = FORECAST) -> dict[tuple[str, str], float]:
    """{(base, method): bytes at the peak} of the smallest recipe of training; where no forecast was
    made: none, and a line that says so.
    """
    if not path.is_file():
        print(f"There is no forecast of memory for Stable Diffusion here ({path} is missing).")
        return {}
    # Brings in torch, which the other numbers do not need.
    from lib.memory.cards import smallest_recipes

    return smallest_recipes(read_json(path)["rows"])


def _on_stable_diffusion(measure: str, forecast: dict[tuple[str, str], float]) -> str:
    """What a cost is on Stable Diffusion, as text: memory by forecast, a file's bytes computed."""
    is_memory, rank, texts = measure == "peak_bytes", PRESETS["lora", "sd1"]["rank"], []
    for base in SHAPES:
        lora, full = (
            forecast.get((base, m)) if is_memory else shipped_bytes(base, m, rank) for m in METHODS
        )
        if lora is not None and full is not None:
            cards = f", cards of {_card(lora)} and {_card(full)}" if is_memory else ""
            sides = f"LoRA {size_text(lora)}, DreamBooth {size_text(full)}"
            texts.append(f"{base} {sides} (x {full / lora:.3g}{cards})")
    how = "forecast, smallest recipe" if is_memory else f"computed, rank {rank}, fp16"
    return f"{how}: {', '.join(texts)}" if texts else "Stable Diffusion: no forecast here yet"


def _card(peak: float) -> str:
    """The smallest common card on which a peak of so many bytes fits, such as "6 GB"."""
    from lib.memory.cards import CARDS, usable_bytes  # brings in torch

    return next(
        (f"{card} GB" for card in CARDS if peak <= usable_bytes(card)), f"more than {CARDS[-1]} GB"
    )
