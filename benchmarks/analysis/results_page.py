"""The bench's sections of docs/results.md: what was run, the main table, every figure's numbers."""

from statistics import median

from benchmarks.analysis import bench_figures, shipping
from benchmarks.analysis.effects import ENOUGH, RESAMPLES, SAME, Rows, effect
from benchmarks.analysis.study_rows import BUSY, size, steps
from benchmarks.sections import RESULTS_PAGE, into_file
from benchmarks.studies import studies
from lib.config.settings import METHODS
from lib.files.text import amount
from lib.plots.figure import Figure, as_table
from pocket.subjects import bench_subjects

SHOWN = ("pareto", "scores")  # as pictures too; of the others the page has the numbers and a link
MEANT = (
    "Train - held-out: DINO to the photos trained on minus DINO to held-out ones. Nearest photo:"
    " largest DINO to one training photo, minus what held-out photos have. Losses are of noise that"
    " is the same for all; the loss gap is held-out minus training. PRES - base: DINO of pictures"
    " of the class to the subject, minus the base's; drift: change of what is predicted for the"
    " class; both asked in eight prompts in words that no class image has. Place drawn, colour"
    " drawn: of the pictures whose prompt names one, the share that the judge's CLIP finds nearer"
    " to it than to seven others. Diversity: 1 - cosine of CLIP between pictures of one prompt,"
    " which stands in for LPIPS. Consistency: standard deviation of DINO over pictures of one"
    " prompt; spread over prompts: that of the prompts' means, without those that ask for a colour."
    " New places: the prompts that name no place of the training photos and ask for no colour."
)
NOTES = {
    "precision": (
        "Precision auto is bf16 arithmetic on this device; on a T4 it is fp16, here run on the"
        " processor with the same dynamic scale of the loss, and sums in fp32 within a convolution,"
        " as tensor cores have them (`benchmarks/half_convolution.py`)."
    ),
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


def planned() -> int:
    """How many runs the whole bench makes: 30 subjects and 3 seeds, those that several studies ask
    for once.
    """
    plan = studies([subject.name for subject in bench_subjects(30)], 3)
    return len({tuple(sorted(job.items())) for jobs in plan.values() for job in jobs})


def file(name: str) -> str:
    """Where a figure's picture lies, from docs/results.md."""
    return f"../data/results/bench_{name}.png"


def _copies(rows: Rows) -> str:
    """What plain copies of the training photos would score: what the measures of memorising could
    show at most.
    """
    found = {
        m: effect(rows, f"{m}_copies", "main", {"method": "lora"}, None, ())
        for m in ("memorising", "nearest")
    }
    texts = [amount(e.value, e.unit) for e in found.values() if e.value is not None]
    if len(texts) < len(found):
        return ""
    one, other = texts
    return (
        f" Plain copies of the training photos would score {one} in train - held-out and {other} in"
        " nearest photo: this judge was made to read a subject in any place, so it hardly sees"
        " copying, and the loss gap is the measure to read."
    )


def _cell(rows: Rows) -> float:
    """Seconds that a cell takes, both methods trained, drawn and scored, of one core; 0 where no
    row says so.
    """
    seconds = [
        [
            r["cell_seconds"]
            for r in rows
            if r.get("cell_seconds") and r["method"] == m and r["study"] == "main"
        ]
        for m in METHODS
    ]
    return sum(map(median, seconds)) if all(seconds) else 0


def section(rows: Rows, made: dict[str, Figure]) -> str:
    """The section as Markdown: what was run, the main table, and every figure's numbers."""
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
                f" steps each ({devices}; {stack}), each method at the lowest of the best"
                " learning rates, which are not told apart. Subjects are such that"
                " neither base nor judge has met. Each run is scored on 4 pictures of 25 prompts:"
                " no place, eight places in two wordings, and eight colours in four of the places,"
                " the same that notebook 04 asks. DINO and CLIP-I are the pocket"
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
            lines += [_numbers(figure), *(["", NOTES[name]] if name in NOTES else [])]
    missing = [
        study for study in studies(["-"], 1) if not any(row.get("study") == study for row in rows)
    ]
    if missing:
        lines += ["", f"Not run yet: {', '.join(missing)} (`make pocketbench`)."]
    return "\n".join(lines) + "\n"


def _numbers(figure: Figure) -> str:
    """A figure's table as Markdown."""
    return figure.table.markdown() if figure.table else ""


def shipping_section(figure: Figure | None) -> str:
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
            _numbers(figure),
            "",
        ]
    return "\n".join(text + ["\n\n".join(said)]) + "\n"


def write_page(rows: Rows, figures: dict[str, Figure], extracted: Figure | None) -> None:
    """Write both sections into docs/results.md.

    figures: name -> picture with its table, as of `benchmarks.analysis.study_figures.figures`.
    extracted: the picture of extracted LoRAs, None where they were not measured.
    """
    into_file(RESULTS_PAGE, "ship", shipping_section(extracted))
    into_file(RESULTS_PAGE, "pocketbench", section(rows, figures))
