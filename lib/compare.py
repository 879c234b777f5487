"""Read run folders and put the methods side by side: one table, one summary, one cautious sentence. Trains nothing.

Every row is made from the same prompts and seeds; the base model is the floor and the real photos are the ceiling of fidelity.

    python -m lib.compare runs/course/lora runs/course/dreambooth       # prints the table and the verdict
"""

import html
import json
import math
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path

from .settings import BadInput

WEIGHTS = {"lora": "adapter.safetensors", "dreambooth": "unet/diffusion_pytorch_model.safetensors"}
NAMES = {"base_model": "base model (floor)", "real_photos": "real photos (ceiling)", "lora": "LoRA", "dreambooth": "DreamBooth"}
MEASURED = ("seconds_per_step", "train_seconds", "peak_bytes", "file_bytes")
# column: heading, how to print it, what it means; the order is the table's
COLUMNS = {
    "seconds_per_step": ("s/step", "{:.3f}", "seconds for one training step, mean of the run"),
    "train_seconds": ("training s", "{:.0f}", "seconds of training, sampling and evaluation left out"),
    "peak_bytes": ("peak MiB", lambda v: f"{v / 2**20:.0f}", "bytes at the peak of training (the table: MiB)"),
    "file_bytes": ("file MiB", lambda v: f"{v / 2**20:.2f}", "bytes on disk of the weights as shipped (the table: MiB)"),
    "dino": ("DINO", "{:.3f}", "mean cosine of the judge's identity encoder, pictures x reference photos; higher is more alike, 1 at most"),
    "dino_share": ("of ceiling", "{:.0%}", "share of the way from the base model's dino (0) to the real photos' (1)"),
    "clip_i": ("CLIP-I", "{:.3f}", "mean cosine of the judge's CLIP, pictures x reference photos"),
    "clip_t": ("CLIP-T", "{:.3f}", "mean plain cosine of picture and prompt (class noun only) in the judge's CLIP"),
    "pres": ("PRES - base", "{:+.3f}", "dino of class pictures against the subject minus the base model's; 0 is an untouched prior"),
    "memorising": ("train - held-out", "{:+.3f}", "dino against training photos minus dino against held-out photos"),
    "diversity": ("diversity", "{:.3f}", "mean 1 - CLIP cosine between pictures of one prompt (a stand-in for LPIPS)"),
}


@dataclass(frozen=True)
class Run:
    """A finished run as read from its folder; `metrics` and `settings` are its JSON files, `weights` the file that ships."""

    folder: Path
    method: str
    settings: dict
    metrics: dict
    weights: Path


@dataclass
class Comparison:
    """`rows`: name -> {column: number or None}; `images`: name -> PIL pictures, one for each of `asked` (prompt, seed)."""

    rows: dict
    about: dict
    images: dict = field(default_factory=dict)
    asked: list = field(default_factory=list)
    runs: list = field(default_factory=list)


def _json(folder, name):
    path = Path(folder) / name
    if not path.is_file():
        raise BadInput(f"The run folder {folder} has no {name}: its training did not finish; run it again with the same settings.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path} is damaged and cannot be read ({error}): delete the folder {folder} and train again.") from error


def read_run(folder):
    """The `Run` in `folder`; raises BadInput, with the file and the remedy, if it is missing, incomplete or damaged."""
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput(f"The run folder {folder} does not exist: train first, LoRA with notebook 02 and DreamBooth with notebook 03, or correct the path.")
    settings, metrics = _json(folder, "settings.json"), _json(folder, "metrics.json")
    method = settings.get("method")
    if method not in WEIGHTS:
        raise BadInput(f"{folder / 'settings.json'} names the method {method!r}: this comparison knows {' and '.join(WEIGHTS)}; train again with one of them.")
    for key in MEASURED:
        value = metrics.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise BadInput(f"{folder / 'metrics.json'} has {key} = {value!r} where a number belongs: the run is damaged; train it again.")
    weights = folder / WEIGHTS[method]
    _check_weights(weights)
    return Run(folder, method, settings, metrics, weights)


def _check_weights(path):
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            bad = next((key for key in file.keys() if not file.get_tensor(key).isfinite().all()), None)  # noqa: SIM118
    except FileNotFoundError as error:
        raise BadInput(f"The weights {path} are missing: the training did not finish, or the file was moved; train again or put it back.") from error
    except (SafetensorError, OSError) as error:
        raise BadInput(f"The weights {path} are damaged ({error}): copy the run folder again or train again.") from error
    if bad:
        raise BadInput(f"The weights {path} hold values that are not numbers (in {bad}): the training diverged; train again with a smaller learning rate.")


def same_ground(runs):
    """The data set that all runs share; raises BadInput if they were trained on different data or base models."""
    from .photos import load_dataset

    data = [load_dataset(run.settings["data"]) for run in runs]
    for run, dataset in zip(runs[1:], data[1:]):
        for what, ours, theirs in (("base model", run.settings.get("base"), runs[0].settings.get("base")), ("data", _content(dataset), _content(data[0]))):
            if ours != theirs:
                raise BadInput(f"The runs {runs[0].folder} and {run.folder} were trained on different {what}, so their scores cannot be compared: "
                               f"train both with the same `{'base' if what == 'base model' else 'data'}`.")
    return data[0]


def _content(dataset):
    return [(item.caption, item.path.read_bytes()) for part in (dataset.train, dataset.test) for item in part]


def unlike(runs):
    """Settings that differ although the comparison wants them equal, as a list of texts such as "steps (300, 400)"."""
    keys = ("steps", "seed", "batch_size", "prior_weight", "resolution", "precision")
    return [f"{key} ({', '.join(str(r.settings.get(key)) for r in runs)})" for key in keys if len({str(r.settings.get(key)) for r in runs}) > 1]


def compare(folders, judge=None, prompts=None, seeds=(1000, 1001), class_pictures=8, steps=25, guidance=4.0, progress=None):
    """Evaluate the base model, the real photos and every run in `folders` on the same prompts and seeds; a `Comparison`.

    `progress` is called with one line of text before each part. `class_pictures` 0 leaves PRES out. Raises BadInput as
    `read_run` and `same_ground` do.
    """
    from .base import load_base
    from .fidelity import evaluate, evaluation_prompts, load_judge, prior_similarity, real_row
    from .methods import load_run
    from .photos import prompts as wording

    runs, say = [read_run(folder) for folder in folders], progress or (lambda line: None)
    if not runs or len({r.method for r in runs}) < len(runs):
        raise BadInput("The comparison takes one run folder for each method: give one of LoRA, one of DreamBooth.")
    dataset, judge = same_ground(runs), judge or load_judge()
    prompts = prompts or evaluation_prompts(dataset.subject)
    name, class_prompt = runs[0].settings["base"], wording(dataset.subject, with_identifier=False)
    result = Comparison({}, {}, runs=runs)
    for key, run in [("base_model", None)] + [(r.method, r) for r in runs]:
        say(f"{NAMES[key]}: {len(prompts) * len(seeds)} pictures of {len(prompts)} prompts")
        base = load_base(name)  # afresh each time, so that nothing of one run can stay in the next
        base = load_run(run.folder, base) if run else base
        row = evaluate(base, dataset, judge, prompts, seeds, steps=steps, guidance=guidance)
        result.images[key], scored, reference = row.pop("images"), row.pop("pictures"), row.pop("reference")
        result.asked = [(s["asked"], s["seed"]) for s in scored]
        if class_pictures:
            row["pres"] = prior_similarity(base, dataset, judge, class_prompt, range(2000, 2000 + class_pictures), steps=steps, guidance=guidance)
        result.rows[key] = row | ({k: run.metrics[k] for k in MEASURED} if run else {})
        if key == "base_model":
            result.rows["real_photos"] = real_row(judge, dataset)
    add_shares(result.rows)
    subject = dataset.subject
    result.about = {"class_noun": subject.class_noun, "identifier": subject.identifier, "kind": subject.kind, "base": name,
                    "reference": reference, "photos": {"train": len(dataset.train), "held_out": len(dataset.test)}, **judge.describe(),
                    "prompts": [p for p, _ in prompts], "seeds": list(seeds), "steps": steps, "guidance": guidance, "unlike": unlike(runs)}
    return result


def add_shares(rows):
    """Add `dino_share` and `clip_i_share` (0 at the base model, 1 at the real photos; None without room between) and make `pres` relative."""
    floor, ceiling = rows["base_model"], rows["real_photos"]
    prior = floor.get("pres")
    for row in rows.values():
        for key in ("dino", "clip_i"):
            room = ceiling[key] - floor[key]
            row[f"{key}_share"] = (row[key] - floor[key]) / room if room > 0 else None
        if prior is not None and row.get("pres") is not None:
            row["pres"] -= prior


def cells(comparison):
    """The table as (headings, rows of texts); a dash where there is nothing to measure."""
    columns = [c for c in COLUMNS if any(row.get(c) is not None for row in comparison.rows.values())]

    def text(column, value):
        form = COLUMNS[column][1]
        return "-" if value is None else form(value) if callable(form) else form.format(value)

    rows = [[NAMES[name]] + [text(c, row.get(c)) for c in columns] for name, row in comparison.rows.items()]
    return ["", *(COLUMNS[c][0] for c in columns)], rows


def table(comparison, form="text"):
    """The comparison as a "text", "markdown" or "html" table."""
    head, rows = cells(comparison)
    if form == "markdown":
        return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] + ["---:"] * (len(head) - 1), *rows])
    if form == "html":
        top = "".join(f'<th scope="col">{html.escape(h)}</th>' for h in head)
        body = "".join(f'<tr><th scope="row">{html.escape(r[0])}</th>' + "".join(f"<td>{html.escape(c)}</td>" for c in r[1:]) + "</tr>" for r in rows)
        return f"<table><caption>{html.escape(caption(comparison))}</caption><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    widths = [max(len(line[i]) for line in [head, *rows]) for i in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))).rstrip() for line in [head, *rows])


def caption(comparison):
    """What the scores are, in one line: reference, prompts, seeds, encoders."""
    a = comparison.about
    return (f"Fidelity against {a['reference']}; {len(a['prompts'])} prompts x {len(a['seeds'])} seeds; DINO by {a['dino']['encoder']} "
            f"({a['dino']['resize']}), CLIP by {a['clip']['encoder']} ({a['clip']['resize']})")


def verdict(comparison):
    """What was measured, in plain words, and why it decides nothing in general: one subject and one training seed have no interval."""
    rows, found = comparison.rows, []
    if "lora" in rows and "dreambooth" in rows:
        lora, full = rows["lora"], rows["dreambooth"]
        for key, words, digits in (("seconds_per_step", "{:.3f} s a step against {:.3f}", 1), ("peak_bytes", "a peak of {:.0f} MiB against {:.0f}", 2**20),
                                   ("file_bytes", "a file of {:.2f} MiB against {:.2f}", 2**20), ("dino", "DINO {:.3f} against {:.3f}", 1),
                                   ("clip_t", "CLIP-T {:.3f} against {:.3f}", 1)):
            found.append(words.format(lora[key] / digits, full[key] / digits))
        found = ["LoRA took " + found[0], *found[1:], f"with the base model at DINO {rows['base_model']['dino']:.3f} and real photos at {rows['real_photos']['dino']:.3f}"]
    weak = [NAMES[m] for m in ("lora", "dreambooth") if m in rows and rows[m]["dino"] <= rows["base_model"]["dino"]]
    text = f"Measured in this run, LoRA first: {', '.join(found)}. " if found else ""
    if weak:
        text += f"{' and '.join(weak)} did not come closer to the subject than the untouched base model. "
    if comparison.about.get("unlike"):
        text += f"Not like for like: the runs differ in {', '.join(comparison.about['unlike'])}. "
    return text + "This is one subject and one training seed, so the differences have no interval and do not say which method is better in general."


def write_summary(path, comparison):
    """Write `summary.json` (rows by name, units beside them, versions, device, verdict) whole or not at all; returns the dict."""
    import diffusers
    import peft
    import torch
    import transformers

    versions = {m.__name__: m.__version__ for m in (torch, diffusers, transformers, peft)} | {"python": platform.python_version()}
    trained = {r.method: {"versions": r.metrics.get("versions"), "device": r.metrics.get("device"), "settings": r.settings} for r in comparison.runs}
    devices = sorted({str(r.metrics.get("device")) for r in comparison.runs})
    summary = {**comparison.rows, "units": {key: meaning for key, (_, _, meaning) in COLUMNS.items()}, "about": comparison.about, "trained": trained,
               "versions": versions, "device": devices[0] if len(devices) == 1 else devices, "verdict": verdict(comparison)}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(summary, indent=1, allow_nan=False, default=str) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
    return summary


if __name__ == "__main__":
    import sys

    try:
        outcome = compare(sys.argv[1:], progress=print)
        print(table(outcome), caption(outcome), verdict(outcome), sep="\n\n")
    except BadInput as error:
        sys.exit(str(error))
