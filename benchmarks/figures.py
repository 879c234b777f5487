"""The bench's figures (data/results/bench_*.png) and the sections of docs/results.md, from
data/results/pocketbench.csv and shipping.csv alone.

python -m benchmarks.figures
"""

import sys
from statistics import median

from benchmarks import learning_rates
from benchmarks.analysis import bench_figures, shipping, study_figures
from benchmarks.analysis.effects import BENCH, ENOUGH, RESAMPLES, SAME, effect, shown
from benchmarks.analysis.study_rows import BUSY, read_bench, size, steps
from benchmarks.sections import RESULTS_PAGE, into_file
from benchmarks.studies import studies
from lib.config.names import METHOD_NAMES
from lib.config.settings import METHODS
from lib.files.errors import BadInput
from lib.plots import charts
from lib.plots.figure import as_table
from pocket.subjects import bench_subjects

ROOT = BENCH.parents[2]
SHOWN = ("pareto", "scores")  # as pictures too; of the others the page has the numbers and a link
MEANT = (
    "Train - held-out: DINO to the photos trained on minus DINO to held-out ones. Nearest photo:"
    " largest DINO to one training photo, minus what held-out photos have. Losses are of noise that"
    " is the same for all; the loss gap is held-out minus training. PRES - base: DINO of the plain"
    " class to the subject, minus the base's. Drift: change of what is predicted for the plain"
    " class, in eight places. Diversity: 1 - cosine of CLIP between pictures of one prompt, which"
    " stands in for LPIPS. Consistency: standard deviation of DINO over pictures of one prompt;"
    " spread over prompts: that of the prompts' means. New places: the seven prompts that name no"
    " place of the training photos."
)
NOTES = {
    "recipes": (
        "All but the plain one run at precision auto, which is bf16 arithmetic on this device."
        " Gradient checkpointing alone is not run: it gives the same numbers bit for bit"
        " (`tests/step/test_low_memory.py`); where it stands above it is one of several changes."
    ),
    "text_encoder": (
        "The U-Net trains at the preset's rate throughout. The text encoder trains by the same"
        " method: LoRA beside its attention, DreamBooth all of its weights."
    ),
}


def rates(rows):
    """What each learning rate is worth: the mean of likeness and obedience by which it is chosen,
    the best ringed.
    """
    found = {name: points for name, points in learning_rates.curves(rows).items() if points}
    if not found:
        return None
    best = {METHOD_NAMES[m]: f"{learning_rates.best(points):g}" for m, points in found.items()}
    ends = {
        METHOD_NAMES[m]: [f"{points[k]['learning_rate']:g}" for k in (0, -1)]
        for m, points in found.items()
    }
    chosen = ", ".join(
        f"{n} {r}{' (at the end of what was tried)' * (r in ends[n])}" for n, r in best.items()
    )
    lines = {
        METHOD_NAMES[m]: [
            (f"{p['learning_rate']:g}", p["learning_rate"], p["both"]) for p in points
        ]
        for m, points in found.items()
    }
    sets = len({(r["subject"], r["variant"]) for r in rows if r.get("study") == "rate"})
    about = (
        f"Each method's learning rate, {size(rows, 'rate')}, {sets} photo sets; chosen: {chosen};"
        " neighbours are not told apart"
    )
    figure = charts.points(
        lines, "learning rate", "likeness and obedience", about, log_x=True, mark=best
    )
    columns = ("learning_rate", "likeness", "obedience", "both", "dino", "clip_t")
    body = [
        [METHOD_NAMES[m], *(p[c] for c in columns)] for m, points in found.items() for p in points
    ]
    figure.table = as_table(
        body,
        ["", "learning rate", "likeness", "obedience", "both (harmonic mean)", "DINO", "CLIP-T"],
    )
    return figure


def figures(rows):
    """name -> `Figure`, those that the rows have runs for."""
    made = {name: make(rows) for name, make in (study_figures.FIGURES | {"rates": rates}).items()}
    return {name: figure for name, figure in made.items() if figure}


def planned():
    """How many runs the whole bench makes: 30 subjects and 3 seeds, those that several studies ask
    for once.
    """
    plan = studies([subject.name for subject in bench_subjects(30)], 3)
    return len({tuple(sorted(job.items())) for jobs in plan.values() for job in jobs})


def file(name):
    """Where a figure's picture lies, from docs/results.md."""
    return f"../data/results/bench_{name}.png"


def _copies(rows):
    """What plain copies of the training photos would score: what the measures of memorising could
    show at most.
    """
    found = {
        m: effect(rows, f"{m}_copies", "again", {"method": "lora"}, None, ())
        for m in ("memorising", "nearest")
    }
    if not all(e.subjects for e in found.values()):
        return ""
    one, other = (shown(e.value, e.unit) for e in found.values())
    return (
        f" Plain copies of the training photos would score {one} in train - held-out and {other} in"
        " nearest photo: this judge was made to read a subject in any place, so it hardly sees"
        " copying, and the loss gap is the measure to read."
    )


def _cell(rows):
    """Seconds that a cell takes, both methods trained, drawn and scored, of one core; 0 where no
    row says so.
    """
    seconds = [
        [
            r["cell_seconds"]
            for r in rows
            if r.get("cell_seconds") and r["method"] == m and r["study"] == "again"
        ]
        for m in METHODS
    ]
    return sum(map(median, seconds)) if all(seconds) else 0


def section(rows, made):
    """The section of docs/results.md as Markdown: what was run, the main table, and every figure's numbers."""
    devices = ", ".join(sorted({row["device"] for row in rows if row.get("device")}))
    stack = ", ".join(sorted({f"torch {row['torch']}" for row in rows if row.get("torch")}))
    runs, whole = len({row.get("settings_hash") or id(row) for row in rows}), planned()
    main, lines = (
        bench_figures.main_table(rows),
        ["The main comparison has not been run yet: `make pocketbench`."],
    )
    if main.rows:
        seconds = _cell(rows)
        cell = (
            f" To train both methods, draw 2 x 100 pictures and score them takes {seconds:.0f} s of"
            " one core."
            if seconds
            else ""
        )
        hours = (
            f" (about {whole * seconds / len(METHODS) / 2 / 3600:.0f} hours on two cores)"
            if seconds
            else ""
        )
        lines = [
            (
                f"{size(rows)} in the main comparison. {runs:,} runs in all, of the {whole:,} that"
                f" `make pocketbench` makes with 30 subjects and 3 seeds{hours}; {steps(rows)}"
                f" steps each ({devices}; {stack}), each method at the best of the learning rates"
                " that were tried, whose neighbours are not told apart. Subjects are such that"
                " neither base nor judge has met. Each run is scored on 4 pictures of 25 prompts:"
                " eight places in three wordings, and no place; 18 of them name places of the"
                " training photos, six word for word as captioned. DINO and CLIP-I are the pocket"
                " judge's, its identity encoder and its CLIP at 64 pixels"
                " (`data/judge/README.md`): not to be held against published ones."
            ),
            "",
            (
                "Means over subjects (of costs geometric) of means over seeds; differences are"
                " paired by subject and seed. Intervals: 95 %, bootstrap over subjects,"
                f" {RESAMPLES:,} resamples, none below {ENOUGH}, each by itself. {SAME} Intervals"
                " speak of other subjects, not of other prompts or another judge; by those of"
                " single methods, in the charts, two methods can't be compared. Seconds and memory"
                " are of the step as it was when these runs were made, two trainings side by side"
                f" on a thread each, without runs whose step took over {BUSY} times the usual;"
                f" those of today's step, a training alone, are in the first table.{cell} Rows:"
                " `data/results/pocketbench.csv`."
            ),
            "",
            main.markdown(),
            "",
            MEANT + _copies(rows),
        ]
    for name, figure in made.items():
        lines += [
            "",
            f"**{figure.caption}**" + ("" if name in SHOWN else f" ([figure]({file(name)}))"),
            "",
        ]
        if name in SHOWN:
            lines += [f"![{figure.alt}]({file(name)})", ""]
        if name not in ("scores", "costs"):  # whose numbers are the main table's
            lines += [figure.table.markdown(), *(["", NOTES[name]] if name in NOTES else [])]
    missing = [
        study for study in studies(["-"], 1) if not any(row.get("study") == study for row in rows)
    ]
    if missing:
        lines += ["", f"Not run yet: {', '.join(missing)} (`make pocketbench`)."]
    return "\n".join(lines) + "\n"


def shipping_section(figure):
    """The section of docs/results.md on combining, extracting and switching; `figure` is
    `benchmarks.analysis.shipping.extraction`'s, or None.
    """
    lines, headings, note = shipping.summary_rows()
    if not lines:
        return f"{note}\n"
    asked = (
        "What survives of a concept, asked for by itself while three share a model: 0 as the base"
        " draws it, 1 as when it is alone"
    )
    said = [
        f"Claim {number}: {effect}. **{verdict}**"
        for number, (effect, verdict) in sorted(shipping.claim_rows().items())
    ]
    text = [f"**{asked}** ({note}).", "", as_table(lines, headings).markdown(), ""]
    if figure:
        text += [
            f"**{figure.caption}**",
            "",
            f"![{figure.alt}]({file('extraction')})",
            "",
            figure.table.markdown(),
            "",
        ]
    return "\n".join(text + ["\n\n".join(said)]) + "\n"


def main():
    rows = read_bench()
    if not rows:
        return 1
    made, cut = figures(rows), shipping.extraction()
    if cut:
        cut.save(RESULTS_PAGE.parent / file("extraction"))
    into_file(RESULTS_PAGE, "ship", shipping_section(cut))
    for name, figure in made.items():
        figure.save(RESULTS_PAGE.parent / file(name))
    text = section(rows, made)
    into_file(RESULTS_PAGE, "pocketbench", text)
    print(text)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BadInput as error:
        sys.exit(str(error))
