"""A comparison as a record, a table, a sentence and a file. Says what was measured, and no more.

`lib.evaluation.comparison.compare` makes it; here it is shown without torch.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from PIL import Image

from lib.config import CONTESTANT_NAMES, METHOD_NAMES
from lib.files import ROOT, read_json, write_json
from lib.plots import Table

Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A finished run as read from its folder.

    settings, metrics: what its JSON files hold. weights: the file that ships.
    """

    folder: Path
    method: str
    settings: dict[str, Any]
    metrics: dict[str, Any]
    weights: Path


@dataclass
class Comparison:
    """What every contestant scored.

    rows: name -> {column: number or None}.
    about: what was compared, and by which judge.
    images, scores: name -> a PIL picture and its scores for each of `asked`.
    asked: (prompt, seed), the same for every row but the real photos'.
    asks: prompt with the class noun -> what it asks to be other than on the photos (place, colour,
    ..., or nothing), of the prompts of data/prompts.
    """

    rows: dict[str, Row]
    about: dict[str, Any]
    images: dict[str, list[Image.Image]] = field(default_factory=dict)
    scores: dict[str, list[Row]] = field(default_factory=dict)
    asked: list[tuple[str, int]] = field(default_factory=list)
    asks: dict[str, str] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)


class Column(NamedTuple):
    """A column of the table: its heading, the format of its cells, and what it means.

    per: what a value is divided by before it is printed. agreement: with people, as published.
    """

    heading: str
    form: str
    meaning: str
    per: int = 1
    agreement: float | None = None

    def cell(self, value: float | None) -> str:
        """A value as text; a dash where there is nothing to measure."""
        return "-" if value is None else self.form.format(value / self.per)


# The order is the table's.
COLUMNS = {
    "seconds_per_step": Column(
        "s/step",
        "{:.3f}",
        "seconds for one training step, median of the run",
    ),
    "train_seconds": Column(
        "training s",
        "{:.0f}",
        "seconds of training, sampling and evaluation left out",
    ),
    "peak_bytes": Column(
        "peak MiB",
        "{:.0f}",
        "bytes at the peak of training (the table: MiB)",
        2**20,
    ),
    "file_bytes": Column(
        "file MiB",
        "{:.2f}",
        "bytes on disk of the weights as shipped (the table: MiB)",
        2**20,
    ),
    "dino": Column(
        "DINO",
        "{:.3f}",
        "mean cosine of the judge's identity encoder, pictures x reference photos; higher is"
        " more alike, 1 at most",
        agreement=0.311,
    ),
    "dino_share": Column(
        "of ceiling",
        "{:.0%}",
        "share of the way from the base model's dino (0) to the real photos' (1)",
    ),
    "clip_i": Column(
        "CLIP-I",
        "{:.3f}",
        "mean cosine of the judge's CLIP, pictures x reference photos",
        agreement=0.135,
    ),
    "dino_subject": Column(
        "DINO, subject",
        "{:.3f}",
        "dino against the photos' subjects alone, on grey; for comparing methods, not with dino",
    ),
    "clip_i_subject": Column(
        "CLIP-I, subject",
        "{:.3f}",
        "clip_i against the photos' subjects alone, on grey",
    ),
    "masc": Column(
        "MaSC",
        "{:.3f}",
        "of the patches of a photo that show its subject, the mean of the largest cosine to any"
        " patch of a picture (SigLIP2); never to be compared with dino",
        agreement=0.471,
    ),
    "clip_t": Column(
        "CLIP-T",
        "{:.3f}",
        "mean plain cosine of picture and prompt (class noun only) in the judge's CLIP",
        agreement=0.327,
    ),
    "clip_t_share": Column(
        "CLIP-T, of photos'",
        "{:.0%}",
        "clip_t as a share of the real photos', with their own captions: a subject that CLIP does"
        " not take for its class lowers both",
    ),
    "place_drawn": Column(
        "place drawn",
        "{:.0%}",
        "share of the pictures whose prompt names a place that the judge's CLIP finds nearer to it"
        " than to seven others",
    ),
    "colour_drawn": Column(
        "colour drawn",
        "{:.0%}",
        "the same, of the pictures whose prompt names a colour for the subject",
    ),
    "pres": Column(
        "PRES - base",
        "{:+.3f}",
        "dino of class pictures against the subject minus the base model's, asked in words that no"
        " class image has; 0 is an untouched prior",
    ),
    "pres_trained": Column(
        "PRES, trained words",
        "{:+.3f}",
        "the same, asked in the class images' own words: what prior preservation was trained on",
    ),
    "obedience": Column(
        "class obeyed",
        "{:.0%}",
        "share of what prompts of the class ask (class, colour, place) that their pictures show, by"
        " the judge's CLIP; the base model's is what there was to lose",
    ),
    "memorising": Column(
        "train - held-out",
        "{:+.3f}",
        "dino against training photos minus dino against held-out photos",
    ),
    "nearest": Column(
        "nearest",
        "{:+.3f}",
        "largest cosine to any training photo, minus what held-out photos have; above 0 is"
        " nearer than true",
    ),
    "drift": Column(
        "drift",
        "{:.3f}",
        "change of what is predicted for class pictures, a share of its mean square; 0 is an"
        " untouched class",
    ),
    "consistency": Column(
        "over seeds",
        "{:.3f}",
        "standard deviation of dino between pictures of one prompt; smaller is more consistent",
    ),
    "seconds_to_half": Column(
        "s to half",
        "{:.0f}",
        "seconds of training to half of the way from the base model's dino to the real photos'",
    ),
    "seconds_to_best": Column(
        "s to best",
        "{:.0f}",
        "seconds of training to the step with the highest dino of the curve",
    ),
    "diversity": Column(
        "diversity",
        "{:.3f}",
        "mean 1 - CLIP cosine between pictures of one prompt (a stand-in for LPIPS)",
    ),
    "lpips": Column(
        "LPIPS",
        "{:.3f}",
        "mean LPIPS between pictures of one prompt, where it can be had; higher is more diverse",
    ),
}


def agreement() -> Table:
    """How far each measure of pictures agrees with people, as published for the encoders of the
    judge "real" (MaSC's paper, arXiv 2605.22469).
    """
    asked = {"clip_t": "is the prompt followed?"}
    rows = [
        [asked.get(name, "is it the subject?"), column.heading, f"{column.agreement:.3f}"]
        for name, column in COLUMNS.items()
        if column.agreement is not None
    ]
    people = ["is it the subject?", "people, one with another", "0.658"]
    caption = "Agreement with people (Krippendorff's alpha: 1 is always, 0 is chance)"
    return Table([people, *rows], ["question", "measure", "alpha"], caption)


def certificate_rows() -> list[list[Any]]:
    """The pocket judge's certificate as rows: test, measured, wanted, what published encoders
    manage (NearID, arXiv 2604.01973).
    """
    found = read_json(ROOT / "data/judge/identity/certificate.json")["held_out"]
    return [
        ["verification AUC: the same subject against any other", found["auc"], "0.98 or more", "-"],
        ["AUC against look-alikes alone", found["auc_lookalikes"], "-", "-"],
        [
            "same subject elsewhere, preferred to a look-alike on the same background (NearID)",
            f"{found['nearid']:.0%}",
            "90 % or more",
            "10 to 31 %",
        ],
        [
            "the same, against a stranger on the same background",
            f"{found['nearid_stranger']:.0%}",
            "-",
            "-",
        ],
        [
            "mean cosine: same, look-alike, stranger",
            ", ".join(f"{found[f'cosine_{k}']:.2f}" for k in ("same", "lookalike", "stranger")),
            "-",
            "-",
        ],
        [
            "subjects and pictures that it had never seen",
            f"{found['identities']}, {found['pictures']:,}",
            "-",
            "-",
        ],
    ]


def table(comparison: Comparison) -> Table:
    """The comparison as a table of texts, without the columns that nothing was measured for."""
    rows, about = comparison.rows, comparison.about
    measured = {
        name: column
        for name, column in COLUMNS.items()
        if any(row.get(name) is not None for row in rows.values())
    }
    return Table(
        [
            [CONTESTANT_NAMES[key], *(col.cell(row.get(name)) for name, col in measured.items())]
            for key, row in rows.items()
        ],
        ["", *(column.heading for column in measured.values())],
        f"Fidelity against {about['reference']};"
        f" {len(about['prompts'])} prompts x {len(about['seeds'])} seeds;"
        f" DINO by {about['dino']['encoder']} ({about['dino']['resize']}),"
        f" CLIP by {about['clip']['encoder']} ({about['clip']['resize']})",
    )


def means_by_asked(
    pictures: Sequence[Row], asks: Mapping[str, str], score: str
) -> dict[str, float]:
    """{what is asked: mean of a score over the pictures whose prompt asks for it}.

    pictures: as `lib.evaluation.fidelity.score` scores them. asks: as of `Comparison`; prompts
    that it does not have ask for "something else".
    """
    groups: dict[str, list[float]] = {}
    for picture in pictures:
        kind = asks.get(picture["prompt"], "something else")
        groups.setdefault(kind, []).append(picture[score])
    return {kind: mean(values) for kind, values in groups.items()}


def by_what_is_asked(comparison: Comparison) -> Table:
    """Every contestant's likeness and obedience apart by what the prompts ask to be other than on
    the photos: one mean over all hides that a subject drawn in the colour asked for is less like
    its photos, and is right.
    """
    names, heads, rows = ("dino", "clip_t"), [], []
    for key, pictures in comparison.scores.items():  # of the same prompts, so in the same order
        found = {name: means_by_asked(pictures, comparison.asks, name) for name in names}
        heads = [f"{COLUMNS[name].heading}: {kind}" for name in names for kind in found[name]]
        cells = [COLUMNS[name].cell(value) for name in names for value in found[name].values()]
        rows.append([CONTESTANT_NAMES[key], *cells])
    return Table(rows, ["", *heads], "By what a prompt asks to be other than on the photos")


def verdict(comparison: Comparison) -> str:
    """What was measured, in plain words, and why it decides nothing in general: one subject and one
    training seed have no interval.
    """
    rows, text = comparison.rows, ""
    if all(method in rows for method in METHOD_NAMES):
        text = f"Measured in this run, LoRA first: {', '.join(_measured(rows))}. "
    weak = weak_methods(comparison)
    if weak:
        text += f"{weak}. "
    if comparison.about.get("unlike"):
        text += f"Not like for like: the runs differ in {', '.join(comparison.about['unlike'])}. "
    return (
        text
        + "This is one subject and one training seed, so the differences have no interval and do"
        " not say which method is better in general."
    )


def weak_methods(comparison: Comparison) -> str:
    """Which methods learnt nothing of the subject, in words; empty where none did so."""
    rows = comparison.rows
    floor = rows.get("base_model", {}).get("dino")  # none where nothing has been judged yet
    weak = [
        name
        for method, name in METHOD_NAMES.items()
        if floor is not None and method in rows and rows[method]["dino"] <= floor
    ]
    if not weak:
        return ""
    names = " and ".join(weak)
    return f"{names} did not come closer to the subject than the untouched base model"


def _measured(rows: dict[str, Row]) -> list[str]:
    """Both methods' costs and scores, one text each, LoRA first."""
    lora, full = rows["lora"], rows["dreambooth"]
    texts = [
        words.format(lora[key] / per, full[key] / per)
        for key, words, per in (
            ("seconds_per_step", "LoRA took {:.3f} s a step against {:.3f}", 1),
            ("peak_bytes", "a peak of {:.0f} MiB against {:.0f}", 2**20),
            ("file_bytes", "a file of {:.2f} MiB against {:.2f}", 2**20),
            ("dino", "DINO {:.3f} against {:.3f}", 1),
            ("clip_t", "CLIP-T {:.3f} against {:.3f}", 1),
        )
    ]
    floor, ceiling = rows["base_model"]["dino"], rows["real_photos"]["dino"]
    return [*texts, f"with the base model at DINO {floor:.3f} and real photos at {ceiling:.3f}"]


def write_summary(
    path: str | Path, comparison: Comparison, answer: Sequence[str] = ()
) -> dict[str, Any]:
    """Write `summary.json` (rows by name, units beside them, versions, device, verdict, and the
    sentences of `lib.evaluation.advice.answer`) whole or not at all; returns the dict.
    """
    from lib.models.devices import versions  # brings in torch

    trained = {
        r.method: (
            {key: r.metrics.get(key) for key in ("versions", "device", "peak_measured_by")}
            | {"settings": r.settings}
        )
        for r in comparison.runs
    }
    devices = sorted({str(r.metrics.get("device")) for r in comparison.runs})
    summary = {
        **comparison.rows,
        "units": {key: column.meaning for key, column in COLUMNS.items()},
        "about": comparison.about,
        "trained": trained,
        "versions": versions(),
        "device": devices[0] if len(devices) == 1 else devices,
        "verdict": verdict(comparison),
        "answer": list(answer),
    }
    json.dumps(summary, allow_nan=False)  # raises ValueError before anything is written
    write_json(path, summary)
    return summary
