"""The model card of a run: what it is, pictures, settings, measurements, how to use it, licence and
consent. Markdown for a hub page.
"""

import shutil
from pathlib import Path

from lib.config.names import MEASURE_NAMES
from lib.convert.exporting import run_facts
from lib.files.errors import BadInput
from lib.files.json_file import read_json

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


def write_card(run, out, files=(), title=None, summary=None):
    """Write `out`/README.md and `out`/pictures for a run folder; `files`: what is shipped beside
    it. Returns the path of the card.

    Scores come from the course's summary.json (`summary`, or the one beside the run); without it
    the card says that none were taken.
    """
    run, out = Path(run), Path(out)
    known = run_facts(run)
    if "settings" not in known:
        raise BadInput(
            f"{run} is no run folder (no settings.json): a card needs to know how it was trained."
        )
    if (out / "README.md").is_file() and CONSENT not in (out / "README.md").read_text(
        "utf-8", "replace"
    ):
        raise BadInput(
            f"{out / 'README.md'} exists and is no card made here: choose another folder."
        )
    settings, subject, metrics = (
        known["settings"],
        known.get("subject", {}),
        known.get("metrics", {}),
    )
    path = Path(summary) if summary else run.parent / "summary.json"
    mine = (
        summary or run.name == settings["method"]
    )  # the summary beside runs is of the course's own two
    found = read_json(path) if mine and path.is_file() else {}
    scores, about = found.get(settings["method"], {}), found.get("about", {})
    words = f"{subject.get('identifier', '')} {subject.get('class_noun', '')}".strip()
    method = {"lora": "LoRA", "dreambooth": "DreamBooth (every weight of the U-Net)"}[
        settings["method"]
    ]
    title = (
        title or f"{words or run.name}, {'LoRA' if settings['method'] == 'lora' else 'DreamBooth'}"
    )
    samples = sorted((run / "samples").glob("step_*.png"))
    last = (
        [p for p in samples if p.name.split("_")[1] == samples[-1].name.split("_")[1]]
        if samples
        else []
    )
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    for picture in last:
        shutil.copyfile(picture, out / "pictures" / picture.name)
    licence = subject.get("license") or "not given by the photos' owner: ask before you share this"
    tags = f"tags: [text-to-image, stable-diffusion, {settings['method']}]"
    lines = [
        "---",
        f"base_model: {settings['base']}",
        "library_name: diffusers",
        f"license: {(subject.get('license') or 'unknown').lower()}",
        tags,
        "---",
        "",
        f"# {title}",
        "",
        f"{method} on `{settings['base']}`"
        + (f", for the prompt word **{words}**." if words else "."),
        "",
    ]
    lines += [f"![A sample at the end of training](pictures/{p.name})" for p in last] or [
        "*No samples were drawn in training.*"
    ]
    lines += ["", "## Use", "", *(f"- `{Path(f).name}`" for f in files)]
    if settings["method"] == "lora":
        lines += [
            "- ComfyUI, WebUI, Forge: the Kohya file, in `models/loras` (WebUI: `models/Lora`)."
        ]
        lines += ["- diffusers: `pipe.load_lora_weights(folder, weight_name=file)`."]
    else:
        lines += [
            "- WebUI, ComfyUI, Forge: the single file, with the checkpoints. diffusers:"
            " `from_single_file`, or the folder."
        ]
    lines += ["", "## Trained with", "", "| setting | value |", "| --- | --- |"]
    lines += [f"| {key} | {settings[key]} |" for key in SHOWN if key in settings]
    lines += [
        f"| photos | {known.get('images', 'unknown')} |",
        f"| class images | {known.get('class_images', 'unknown')} |",
    ]
    found = metrics | scores
    rows = [
        (CARD_NAMES[key], form.format(found[key]))
        for key, form in MEASURE_FORMS.items()
        if found.get(key) is not None
    ]
    lines += [
        "",
        "## Measured",
        "",
        "| measure | value |",
        "| --- | ---: |",
        *(f"| {name} | {value} |" for name, value in rows),
    ]
    judge = about.get("judge")
    lines += [
        "",
        (
            f"Scores by the judge `{judge}`, one subject and one seed."
            if scores
            else "*Fidelity was not measured.*"
        ),
        f"On {metrics['device']}." if metrics.get("device") else "",
        "",
        "## Licence and consent",
        "",
        f"Licence: {licence}. The base model's licence holds as well. {CONSENT}",
        "",
    ]
    (out / "README.md").write_text("\n".join(lines), "utf-8")
    return out / "README.md"
