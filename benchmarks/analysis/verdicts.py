"""A verdict on each claim of shared/claims.md, from PocketBench's rows: the effect, its 95 %
interval, and what may be said.

    python -m benchmarks.analysis.verdicts data/results/pocketbench.csv       # prints the table

`rows` are dicts, one a run, as `lib.course.sweeping` writes; `benchmarks.analysis.effects` says how
an effect and its interval come about.
"""

from collections import defaultdict, namedtuple

import numpy as np

from benchmarks.analysis.effects import (
    BASE,
    BENCH,
    FULL,
    LORA,
    MEASURES,
    NOT_MEASURED,
    PARTS,
    RESAMPLES,
    SAME,
    decide,
    effect,
    number,
    shown,
)
from benchmarks.analysis.study_rows import BUSY, read_bench
from lib.config.presets import PRESETS
from lib.dataset.captions import KINDS
from lib.files.errors import BadInput
from lib.files.json_file import read_json

SAMPLE_SECONDS, BANDWIDTH = (
    0.2,
    20e6,
)  # a picture of 25 guided steps (benchmarks/results/pocket.json); bits a second, of claim 4


# base -> (parameters of its U-Net, parameters of an attention LoRA for each rank): 2 bytes a
# parameter, in fp16 as shipped. For each attention block of width d with text of width c a rank
# takes 14 d + 2 c: c is 768 in Stable Diffusion 1.5, 2048 in SDXL.
SHAPES = {"sd15": (859_520_964, 199_296), "sdxl": (2_567_463_684, 1_451_520)}


FORECAST = BENCH.with_name("forecast.json")


LATER, NOT_THERE = "measured in notebook 05", "no figure in these rows"


HEADINGS = [
    "claim",
    "in words",
    "measurement",
    "effect of DreamBooth against LoRA (95 % interval)",
    "verdict",
    "your own run",
]


CAPTION = (
    "Means over subjects of paired differences, or geometric means of ratios (x). Intervals: 95 %,"
    f" bootstrap over subjects, {RESAMPLES:,} resamples, each by itself; a verdict that would fall"
    f" if all that are judged were to be right at once (Bonferroni) says so. {SAME} Seconds and"
    " memory are of the step as it was when these runs were made, two side by side; runs whose"
    f" step took over {BUSY} times the usual are left out of the seconds. Today's stand in the"
    " README's first table. Your own run is one subject and one seed: no interval, no verdict."
)


# One measurement of a claim: `sign` 1 or -1 is the direction claimed, 0 shows the effect without
# judging by it.
Part = namedtuple(
    "Part", "label measure sign study of against pair", defaults=(1, "main", FULL, LORA, ("seed",))
)


RARE, POOR = {"variant": "rare"}, {"variant": ("duplicates", "one_background")}


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
CLAIMS = (
    (
        1,
        "LoRA trains faster",
        (
            "seconds: a step; half of the way from base to real photos (runs that get there), and"
            " the best step, both read off the curve's quarters, on straight lines between them"
        ),
        [
            Part("a step", "seconds_per_step"),
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
        [Part("", "file_bytes")],
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
            "likeness to held-out photos, each method at its own best rate, equal steps; beside it"
            " on the curve"
        ),
        [
            Part("DINO", "dino"),
            Part("CLIP-I", "clip_i"),
            Part("beside it CLIP-T", "clip_t", 0),
            Part("DINO when the quicker one ends", "dino_equal_time", 0),
            Part("DINO at each one's best point", "dino_best", 0),
            *(
                Part(f"{name} over base, DINO", "dino", 0, "main", of, BASE, ())
                for name, of in (("LoRA", LORA), ("DreamBooth", FULL))
            ),
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
        ],
    ),
)


def _derived(rows):
    """Copies of the rows, checked, with costs computed from others; and every whole sweep of
    learning rates as a row of its own.
    """
    rows, sweeps, paths = [dict(row) for row in rows], defaultdict(list), defaultdict(list)
    for row in rows:
        for key in [key for key in row if key in MEASURES or isinstance(row[key], float)]:
            number(row, key)
        train, size = row.get("train_seconds"), row.get("file_bytes")
        row |= {
            "iteration_seconds": train and train + SAMPLE_SECONDS,
            "transfer_seconds": size and size * 8 / BANDWIDTH,
        }
        path = [row.get(f"dino_{k}_of_{PARTS}") for k in range(PARTS + 1)]
        if (
            train and None not in path
        ):  # its first best point; None for step 0, where training did not help
            row |= {
                "seconds_to_best": train * path.index(max(path)) / PARTS or None,
                "dino_best": max(path),
            }
            paths[row.get("study"), row["subject"], row.get("seed"), row.get("device")].append(
                (row, path)
            )
        if row.get("study") == "rate" and train:
            sweeps[
                row["method"],
                row["subject"],
                row.get("variant"),
                row.get("seed"),
                row.get("device"),
            ].append(row)
    for (study, *_), pair in paths.items():
        end = min(row["train_seconds"] for row, _ in pair)
        for row, path in pair if study == "main" else ():
            row["dino_equal_time"] = float(
                np.interp(PARTS * end / row["train_seconds"], range(PARTS + 1), path)
            )
    for (method, *_), runs in sweeps.items():
        if len(runs) == max(
            len(others) for key, others in sweeps.items() if key[0] == method
        ):  # unfinished sweeps are shorter by chance
            rows.append(
                runs[0]
                | {
                    "study": "sweep",
                    "train_seconds": sum(run["train_seconds"] for run in runs),
                }
            )
    return rows


def _judge(e, sign, count):
    """`decide`'s (verdict, detail), with a word more where the verdict would fall if all `count`
    judged were to be right at once.
    """
    kind, detail = decide(e, sign)
    falls = (
        kind in ("holds", "does not hold", "no difference")
        and decide(e.beside(count), sign)[0] != kind
    )
    return kind, "; ".join(
        filter(None, [detail, f"by itself, not with all {count} at once" * falls])
    )


def _never(rows, part):
    """How many runs never got to where `seconds_to_half` is read, as text: pairs with one of them
    are missing from its ratio.
    """
    counts = {}
    for name, where in (
        (("LoRA", part.against), ("DreamBooth", part.of))
        if part.measure == "seconds_to_half"
        else ()
    ):
        timed = [
            row
            for row in rows
            if row.get("study") == part.study
            and where.items() <= row.items()
            and row.get("train_seconds")
        ]
        runs = [row.get(part.measure) for row in timed]
        counts[name] = f"{name} {runs.count(None)} of {len(runs)}"
    return f", never got there: {', '.join(counts.values())}" if counts else ""


def _said(found, rows, count):
    """(effects, verdict) as text of [(part, effect)]: a claim that holds for some of its parts
    depends on what is measured.

    `count`: the comparisons that are judged in the whole table.
    """
    groups, texts = defaultdict(list), []
    for part, e in found:
        if part.sign:
            study = [row for row in rows if row.get("study") == part.study]
            never = study and all(row.get(part.measure) is None for row in study)
            groups[(NOT_THERE, "") if never else _judge(e, part.sign, count)].append(part.label)
        if e.subjects:
            costs = (
                f", LoRA {shown(e.against, e.unit)}, DreamBooth {shown(e.of, e.unit)}"
                if e.kind == "ratio"
                else ""
            )
            texts.append(f"{part.label} {e.text()}{costs}{_never(rows, part)}".strip())
    if len(groups) == 1:
        ((kind, detail),) = groups
        return "; ".join(texts) or "-", f"{kind} ({detail})" if detail else kind
    missing, kinds = groups.pop((NOT_MEASURED, ""), ()), {kind for kind, _ in groups}
    verdict = "; ".join(
        f"{kind} for {', '.join(labels)}{detail and f' ({detail})'}"
        for (kind, detail), labels in groups.items()
    )
    depends = (
        "depends on the measure: "
        if "holds" in kinds and kinds & {"does not hold", "no difference", "no difference found"}
        else ""
    )
    return "; ".join(texts), depends + verdict + (
        f"; not measured yet for {', '.join(missing)}: make pocketbench" if missing else ""
    )


def shipped_bytes(base, method, rank):
    """Bytes of the weights as shipped, in fp16, for a base of `SHAPES`: a U-Net, or an attention
    LoRA of `rank`. Computed.
    """
    whole, each = SHAPES[base]
    return 2 * (each * rank if method == "lora" else whole)


def read_forecast(path=FORECAST):
    """{(base, method): bytes at the peak} of the smallest recipe of training; where no forecast was
    made: none, and a line that says so.
    """
    if not path.is_file():
        print(f"There is no forecast of memory for Stable Diffusion here ({path} is missing).")
        return {}
    from lib.memory.cards import for_guide

    return for_guide(read_json(path)["rows"])


def _beyond(measure, forecast):
    """What a cost is on Stable Diffusion, as text: memory by forecast, a file's bytes computed;
    nothing for other measures.
    """
    texts, rank = (
        [],
        next(
            preset["rank"]
            for (method, family), preset in PRESETS.items()
            if method == "lora" and family != "pocket"
        ),
    )
    for base in SHAPES:
        both = [
            forecast.get((base, m)) if measure == "peak_bytes" else shipped_bytes(base, m, rank)
            for m in ("lora", "dreambooth")
        ]
        if None not in both:
            cards = (
                f", cards of {_card(both[0])} and {_card(both[1])}"
                if measure == "peak_bytes"
                else ""
            )
            texts.append(
                f"{base} LoRA {large(both[0])}, DreamBooth {large(both[1])} (x"
                f" {both[1] / both[0]:.3g}{cards})"
            )
    how = "forecast, smallest recipe" if measure == "peak_bytes" else f"computed, rank {rank}, fp16"
    return f"{how}: {', '.join(texts)}" if texts else "Stable Diffusion: no forecast here yet"


def _card(peak):
    """The smallest common card on which a peak of so many bytes fits, such as "6 GB"."""
    from lib.memory.cards import CARDS, usable

    return next(
        (f"{card} GB" for card in CARDS if peak <= usable(card)), f"more than {CARDS[-1]} GB"
    )


def large(value):
    """Bytes as text in GiB, or in MiB below half of one."""
    return f"{value / 2**30:.3g} GiB" if value >= 2**29 else shown(value, "bytes")


def verdict_table(rows, own=None, forecast=None):
    """The 17 claims as rows of text under `HEADINGS`; `own`: the `Comparison` of the reader's own
    run.

    `forecast`: {(base, method): bytes of memory}, as of `read_forecast`. Raises BadInput as
    `effect` does.
    """
    from benchmarks.analysis.shipping import claim_rows

    rows, lines, shipped = _derived(rows), [], claim_rows()
    mine = own and [
        _derived([{"study": "your own", "method": m} | own.rows.get(m, {})])[0]
        for m in ("lora", "dreambooth")
    ]
    measured = {count: parts for count, *_, parts in CLAIMS if not isinstance(parts, str)}
    found = {
        count: [(part, effect(rows, part.measure, *part[3:])) for part in parts]
        for count, parts in measured.items()
    }
    judged = sum(
        part.sign != 0 and e.low is not None for some in found.values() for part, e in some
    )
    for count, claim, how, parts in CLAIMS:
        run, (effects, verdict) = [], shipped.get(count, ("-", parts))
        if count in found:
            effects, verdict = _said(found[count], rows, judged)
            for part in parts if mine else ():
                lora, full = (row.get(part.measure) for row in mine)
                if part[3:6] == ("main", FULL, LORA) and None not in (lora, full):
                    unit = MEASURES[part.measure][1]
                    judge = own.about.get(
                        "clip" if part.measure.startswith(("clip", "diversity")) else "dino"
                    )
                    by = f" (by {judge['encoder']})" if judge and unit == "cosine" else ""
                    run.append(
                        f"{part.label} LoRA {shown(lora, unit)}, DreamBooth {shown(full, unit)}{by}".strip()
                    )
        if count in (2, 3):
            effects += f"; {_beyond(parts[0].measure, forecast or {})}"
        lines.append([str(count), claim, how, effects, verdict, "; ".join(run) or "-"])
    return lines


if __name__ == "__main__":
    import sys

    try:
        rows = verdict_table(read_bench((sys.argv[1:] or [BENCH])[0]), None, read_forecast())
        print(
            *(f"| {' | '.join(line)} |" for line in (HEADINGS, ["---"] * len(HEADINGS), *rows)),
            "",
            CAPTION,
            sep="\n",
        )
    except BadInput as error:
        sys.exit(str(error))
