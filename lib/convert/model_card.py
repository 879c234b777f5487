"""The model card of a run: Markdown for a hub page.

What it is, pictures, settings, measurements, how to use it, licence and consent.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from lib.config import MEASURE_NAMES, METHOD_NAMES
from lib.convert.exporting import Facts, public_name, run_facts
from lib.files import BadInput, read_json

# The settings that a card shows.
SHOWN = (
    "method",
    "base",
    "steps",
    "learning_rate",
    "rank",
    "alpha",
    "targets",
    "batch_size",
    "prior_weight",
    "seed",
    "precision",
)

# What of a run's figures a card shows, and how. DINO is against photos that the run never saw.
MEASURE_FORMS = {
    "seconds_per_step": "{:.3f}",
    "train_seconds": "{:.0f}",
    "file_bytes": "{:,}",
    "dino": "{:.3f}",
    "clip_i": "{:.3f}",
    "clip_t": "{:.3f}",
    "memorising": "{:.3f}",
    "pres": "{:.3f}",
}

CARD_NAMES = MEASURE_NAMES | {"dino": "DINO to held-out photos", "file_bytes": "bytes as shipped"}

CONSENT = (
    "Share this only if every person that it can draw agreed to the training and to the sharing,"
    " and use it for no picture of them that they would not agree to. Products, characters and"
    " styles of others stay theirs."
)

USE = {
    "lora": [
        "- ComfyUI, WebUI, Forge: the Kohya file, in `models/loras` (WebUI and Forge:"
        " `models/Lora`).",
        "- diffusers: `pipe.load_lora_weights(folder, weight_name=file)`.",
    ],
    "dreambooth": [
        "- WebUI, ComfyUI, Forge: the single file, with the checkpoints. diffusers:"
        " `from_single_file`, or the folder."
    ],
}


def write_card(run: str | Path, out: str | Path, files: Sequence[str | Path] = ()) -> Path:
    """Write `out`/README.md and `out`/pictures for a run folder. Returns the path of the card.

    `files`: what is shipped beside it. Scores come from the course's summary.json beside the run;
    without it the card says that none were taken. Raises BadInput if `run` is no run folder, or
    `out` has a README.md that is no card.
    """
    run, out = Path(run).expanduser(), Path(out).expanduser()
    facts = run_facts(run)
    if "settings" not in facts:
        raise BadInput(
            f"{run} is no run folder (no settings.json): a card needs to know how it was trained."
        )
    card = out / "README.md"
    if card.is_file() and CONSENT not in card.read_text("utf-8", "replace"):
        raise BadInput(f"{card} exists and is no card made here: choose another folder.")
    facts["settings"]["base"] = public_name(facts["settings"]["base"], named=True)
    settings = facts["settings"]
    method = settings["method"]
    licence = facts.get("subject", {}).get("license") or (
        "not given by the photos' owner: ask before you share this"
    )
    pictures = _copy_last_samples(run, out / "pictures")
    summary = run.parent / "summary.json"  # of the course's own two runs
    scores = read_json(summary) if run.name == method and summary.is_file() else {}
    lines = [
        *_heading(facts, run.name),
        *(f"![A sample at the end of training](pictures/{name})" for name in pictures),
        *([] if pictures else ["*No samples were drawn in training.*"]),
        *["", "## Use", ""],
        *(f"- `{Path(file).name}`" for file in files),
        *USE[method],
        *["", "## Trained with", "", "| setting | value |", "| --- | --- |"],
        *(f"| {key} | {settings[key]} |" for key in SHOWN if key in settings),
        f"| photos | {facts.get('images', 'unknown')} |",
        f"| class images | {facts.get('class_images', 'unknown')} |",
        *_measurements(facts.get("metrics", {}), scores.get(method, {}), scores.get("about", {})),
        *["", "## Licence and consent", ""],
        f"Licence: {licence}. The base model's licence holds as well. {CONSENT}",
        "",
    ]
    card.write_text("\n".join(lines), "utf-8")
    return card


def _copy_last_samples(run: Path, folder: Path) -> list[str]:
    """Copy the samples of the last step. Returns their names."""
    samples = sorted((run / "samples").glob("step_*_*.png"))
    steps = [int(path.name.split("_")[1]) for path in samples]
    last = [path for path, step in zip(samples, steps) if step == max(steps)]
    folder.mkdir(parents=True, exist_ok=True)
    for path in last:
        shutil.copyfile(path, folder / path.name)
    return [path.name for path in last]


def _heading(facts: Facts, name: str) -> list[str]:
    settings, subject = facts["settings"], facts.get("subject", {})
    method, base = settings["method"], settings["base"]
    words = f"{subject.get('identifier', '')} {subject.get('class_noun', '')}".strip()
    every_weight = " (every weight of the U-Net)" if method == "dreambooth" else ""
    prompt_word = f", for the prompt word **{words}**" if words else ""
    return [
        "---",
        f"base_model: {base}",
        "library_name: diffusers",
        f"license: {(subject.get('license') or 'unknown').lower()}",
        f"tags: [text-to-image, stable-diffusion, {method}]",
        "---",
        "",
        f"# {words or name}, {METHOD_NAMES[method]}",
        "",
        f"{METHOD_NAMES[method]}{every_weight} on `{base}`{prompt_word}.",
        "",
    ]


def _measurements(metrics: Facts, scores: Facts, about: Facts) -> list[str]:
    found = metrics | scores
    judged = f"Scores by the judge `{about.get('judge')}`, one subject and one seed."
    return [
        *["", "## Measured", "", "| measure | value |", "| --- | ---: |"],
        *(
            f"| {CARD_NAMES[key]} | {form.format(found[key])} |"
            for key, form in MEASURE_FORMS.items()
            if found.get(key) is not None
        ),
        "",
        judged if scores else "*Fidelity was not measured.*",
        f"On {metrics['device']}." if metrics.get("device") else "",
    ]
