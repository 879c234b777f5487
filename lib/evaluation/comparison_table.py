"""The comparison as a table, a sentence and a file. Says what was measured, and no more.

`comparison` is everywhere the `Comparison` that `lib.evaluation.comparison.compare` returns.
"""

import html
import json

from lib.config.names import CONTESTANT_NAMES
from lib.files.json_file import read_json, write_json
from lib.files.paths import ROOT

CERTIFICATE = ROOT / "data" / "judge" / "identity" / "certificate.json"


# column: heading, how to print it, what it means; the order is the table's
COLUMNS = {
    "seconds_per_step": ("s/step", "{:.3f}", "seconds for one training step, median of the run"),
    "train_seconds": (
        "training s",
        "{:.0f}",
        "seconds of training, sampling and evaluation left out",
    ),
    "peak_bytes": (
        "peak MiB",
        lambda v: f"{v / 2**20:.0f}",
        "bytes at the peak of training (the table: MiB)",
    ),
    "file_bytes": (
        "file MiB",
        lambda v: f"{v / 2**20:.2f}",
        "bytes on disk of the weights as shipped (the table: MiB)",
    ),
    "dino": (
        "DINO",
        "{:.3f}",
        (
            "mean cosine of the judge's identity encoder, pictures x reference photos; higher is"
            " more alike, 1 at most"
        ),
    ),
    "dino_share": (
        "of ceiling",
        "{:.0%}",
        "share of the way from the base model's dino (0) to the real photos' (1)",
    ),
    "clip_i": ("CLIP-I", "{:.3f}", "mean cosine of the judge's CLIP, pictures x reference photos"),
    "dino_subject": (
        "DINO, subject",
        "{:.3f}",
        "dino against the photos' subjects alone, on grey; for comparing methods, not with dino",
    ),
    "clip_i_subject": (
        "CLIP-I, subject",
        "{:.3f}",
        "clip_i against the photos' subjects alone, on grey",
    ),
    "clip_t": (
        "CLIP-T",
        "{:.3f}",
        "mean plain cosine of picture and prompt (class noun only) in the judge's CLIP",
    ),
    "pres": (
        "PRES - base",
        "{:+.3f}",
        (
            "dino of class pictures against the subject minus the base model's; 0 is an untouched"
            " prior"
        ),
    ),
    "memorising": (
        "train - held-out",
        "{:+.3f}",
        "dino against training photos minus dino against held-out photos",
    ),
    "nearest": (
        "nearest",
        "{:+.3f}",
        (
            "largest cosine to any training photo, minus what held-out photos have; above 0 is"
            " nearer than true"
        ),
    ),
    "drift": (
        "drift",
        "{:.3f}",
        (
            "change of what is predicted for class pictures, a share of its mean square; 0 is an"
            " untouched class"
        ),
    ),
    "consistency": (
        "over seeds",
        "{:.3f}",
        "standard deviation of dino between pictures of one prompt; smaller is more consistent",
    ),
    "seconds_to_half": (
        "s to half",
        "{:.0f}",
        "seconds of training to half of the way from the base model's dino to the real photos'",
    ),
    "seconds_to_best": (
        "s to best",
        "{:.0f}",
        "seconds of training to the step with the highest dino of the curve",
    ),
    "diversity": (
        "diversity",
        "{:.3f}",
        "mean 1 - CLIP cosine between pictures of one prompt (a stand-in for LPIPS)",
    ),
    "lpips": (
        "LPIPS",
        "{:.3f}",
        "mean LPIPS between pictures of one prompt, where it can be had; higher is more diverse",
    ),
}


def certificate_rows(path=CERTIFICATE):
    """The pocket judge's certificate as rows: test, measured, wanted, what published encoders
    manage (NearID, arXiv 2604.01973).
    """
    found = read_json(path)["held_out"]
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


def cells(comparison):
    """The table as (headings, rows of texts); a dash where there is nothing to measure."""
    columns = [
        c for c in COLUMNS if any(row.get(c) is not None for row in comparison.rows.values())
    ]

    def text(column, value):
        form = COLUMNS[column][1]
        return "-" if value is None else form(value) if callable(form) else form.format(value)

    rows = [
        [CONTESTANT_NAMES[name]] + [text(c, row.get(c)) for c in columns]
        for name, row in comparison.rows.items()
    ]
    return ["", *(COLUMNS[c][0] for c in columns)], rows


def table(comparison, form="text"):
    """The comparison as a "text", "markdown" or "html" table."""
    head, rows = cells(comparison)
    if form == "markdown":
        return "\n".join(
            "| " + " | ".join(line) + " |"
            for line in [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
        )
    if form == "html":
        top = "".join(f'<th scope="col">{html.escape(h)}</th>' for h in head)
        body = "".join(
            f'<tr><th scope="row">{html.escape(name)}</th>'
            + "".join(f"<td>{html.escape(c)}</td>" for c in rest)
            + "</tr>"
            for name, *rest in rows
        )
        return f"<table><caption>{html.escape(caption(comparison))}</caption><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    widths = [max(len(line[i]) for line in [head, *rows]) for i in range(len(head))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(line[1:], widths[1:])])
        for line in [head, *rows]
    )


def caption(comparison):
    """What the scores are, in one line: reference, prompts, seeds, encoders."""
    a = comparison.about
    return (
        f"Fidelity against {a['reference']}; {len(a['prompts'])} prompts x {len(a['seeds'])} seeds;"
        f" DINO by {a['dino']['encoder']} ({a['dino']['resize']}), CLIP by {a['clip']['encoder']}"
        f" ({a['clip']['resize']})"
    )


def verdict(comparison):
    """What was measured, in plain words, and why it decides nothing in general: one subject and one
    training seed have no interval.
    """
    rows, found = comparison.rows, []
    if "lora" in rows and "dreambooth" in rows:
        lora, full = rows["lora"], rows["dreambooth"]
        for key, words, digits in (
            ("seconds_per_step", "{:.3f} s a step against {:.3f}", 1),
            ("peak_bytes", "a peak of {:.0f} MiB against {:.0f}", 2**20),
            ("file_bytes", "a file of {:.2f} MiB against {:.2f}", 2**20),
            ("dino", "DINO {:.3f} against {:.3f}", 1),
            ("clip_t", "CLIP-T {:.3f} against {:.3f}", 1),
        ):
            found.append(words.format(lora[key] / digits, full[key] / digits))
        found = [
            "LoRA took " + found[0],
            *found[1:],
            (
                f"with the base model at DINO {rows['base_model']['dino']:.3f} "
                f"and real photos at {rows['real_photos']['dino']:.3f}"
            ),
        ]
    weak = [
        CONTESTANT_NAMES[m]
        for m in ("lora", "dreambooth")
        if m in rows and rows[m]["dino"] <= rows["base_model"]["dino"]
    ]
    text = f"Measured in this run, LoRA first: {', '.join(found)}. " if found else ""
    if weak:
        text += (
            f"{' and '.join(weak)} did not come closer to the subject than the untouched base"
            " model. "
        )
    if comparison.about.get("unlike"):
        text += f"Not like for like: the runs differ in {', '.join(comparison.about['unlike'])}. "
    return (
        text
        + "This is one subject and one training seed, so the differences have no interval and do"
        " not say which method is better in general."
    )


def write_summary(path, comparison):
    """Write `summary.json` (rows by name, units beside them, versions, device, verdict) whole or
    not at all; returns the dict.
    """
    from lib.models.devices import versions

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
        "units": {key: meaning for key, (_, _, meaning) in COLUMNS.items()},
        "about": comparison.about,
        "trained": trained,
        "versions": versions(),
        "device": devices[0] if len(devices) == 1 else devices,
        "verdict": verdict(comparison),
    }
    json.dumps(summary, allow_nan=False)  # raises ValueError before anything is written
    write_json(path, summary)
    return summary
