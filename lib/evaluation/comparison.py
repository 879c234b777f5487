"""Read run folders and put the methods side by side: one table, one summary, one cautious sentence.
Trains nothing.

Every row is made from the same prompts and seeds; the base model is the floor and the real photos
are the ceiling of fidelity.

    python -m lib compare runs/course/lora runs/course/dreambooth       # prints the table and the verdict
"""

import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from lib.config.names import CONTESTANT_NAMES
from lib.evaluation.fidelity import protocol
from lib.files.errors import BadInput
from lib.files.json_file import read_json

WEIGHTS = {"lora": "adapter.safetensors", "dreambooth": "unet/diffusion_pytorch_model.safetensors"}


MEASURED = ("seconds_per_step", "train_seconds", "peak_bytes", "file_bytes")


@dataclass(frozen=True)
class Run:
    """A finished run as read from its folder; `metrics` and `settings` are its JSON files,
    `weights` the file that ships.
    """

    folder: Path
    method: str
    settings: dict
    metrics: dict
    weights: Path


@dataclass
class Comparison:
    """`rows`: name -> {column: number or None}; `images` and `scores`: name -> a PIL picture and
    its scores for each of `asked`.

    `asked` holds (prompt, seed), the same for every row but the real photos'; `about` says what was
    compared, and by which judge.
    """

    rows: dict
    about: dict
    images: dict = field(default_factory=dict)
    scores: dict = field(default_factory=dict)
    asked: list = field(default_factory=list)
    runs: list = field(default_factory=list)


def read_run(folder):
    """The `Run` in `folder`; raises BadInput, with the file and the remedy, if it is missing,
    incomplete or damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput(
            f"The run folder {folder} does not exist: train first, LoRA with notebook 02 and"
            " DreamBooth with notebook 03, or correct the path."
        )
    for name in ("settings.json", "metrics.json"):
        if not (folder / name).is_file():
            raise BadInput(
                f"The run folder {folder} has no {name}: its training did not finish; run it again"
                " with the same settings."
            )
    settings, metrics = read_json(folder / "settings.json"), read_json(folder / "metrics.json")
    method = settings.get("method")
    if method not in WEIGHTS:
        raise BadInput(
            f"{folder / 'settings.json'} names the method {method!r}: this comparison knows "
            f"{' and '.join(WEIGHTS)}; train again with one of them."
        )
    for key in MEASURED:
        value = metrics.get(key)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
            or value < 0
        ):
            raise BadInput(
                f"{folder / 'metrics.json'} has {key} = {value!r} where a number belongs: the run"
                " is damaged or had a single step; train it again."
            )
    weights = folder / WEIGHTS[method]
    _check_weights(weights)
    return Run(folder, method, settings, metrics, weights)


def _check_weights(path):
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            bad = next(
                (key for key in file.keys() if not file.get_tensor(key).isfinite().all()), None
            )  # noqa: SIM118
    except FileNotFoundError as error:
        raise BadInput(
            f"The weights {path} are missing: the training did not finish, or the file was moved; "
            "train again or put it back."
        ) from error
    except (SafetensorError, OSError) as error:
        raise BadInput(
            f"The weights {path} are damaged ({error}): copy the run folder again or train again."
        ) from error
    if bad:
        raise BadInput(
            f"The weights {path} hold values that are not numbers (in {bad}): the training"
            " diverged; train again with a smaller learning rate."
        )


def same_ground(runs):
    """The data set that all runs share; raises BadInput if they were trained on different data or
    base models, or it was changed since.
    """
    from lib.dataset.imagefolder import load_dataset

    data = [load_dataset(run.settings["data"]) for run in runs]
    records = [(dataset.root / "dataset.json").read_bytes() for dataset in data]
    for run, record in zip(runs, records):
        if run.metrics.get("data_sha256") not in (None, hashlib.sha256(record).hexdigest()):
            raise BadInput(
                f"The data set {run.settings['data']} was changed after {run.folder} was trained on"
                " it: train that run again."
            )
        for what, ours, theirs in (
            ("base model", run.settings.get("base"), runs[0].settings.get("base")),
            ("data", json.loads(record)["files"], json.loads(records[0])["files"]),
        ):
            if ours != theirs:
                raise BadInput(
                    f"The runs {runs[0].folder} and {run.folder} were trained on different {what},"
                    " so their scores cannot be compared: train both with the same"
                    f" `{what.split()[0]}`."
                )
    return data[0]


def unlike(runs):
    """Settings that differ although the comparison wants them equal, as a list of texts such as
    "steps (300, 400)".
    """
    keys = (
        "steps",
        "seed",
        "batch_size",
        "prior_weight",
        "snr_gamma",
        "clip",
        "warmup",
        "cooldown",
        "precision",
    )
    # Metrics first: a run may have been stopped early.
    values = {key: [str(r.metrics.get(key, r.settings.get(key))) for r in runs] for key in keys}
    return [f"{key} ({', '.join(v)})" for key, v in values.items() if len(set(v)) > 1]


def choose_judge(name="", base="pocket"):
    """The `Judge` called `name`; without a name the pocket judge for the pocket base, and DINO with
    CLIP for any other.

    Where those are not on this machine and were not asked for by name, it says how to get them, and
    the pocket judge scores meanwhile: its figures name it, and stand in no column with another
    judge's.
    """
    from lib.evaluation.judge import load_judge

    try:
        return load_judge(name or ("pocket" if base == "pocket" else "real"))
    except BadInput as error:
        if name or base == "pocket":
            raise
        print(
            f"{error} Meanwhile the pocket judge scores; it has only ever seen drawings, so read"
            " its figures with care."
        )
        return load_judge("pocket")


def compare(
    folders,
    judge=None,
    prompts=None,
    seeds=(1000, 1001),
    class_pictures=8,
    steps=25,
    guidance=4.0,
    progress=None,
    masks=None,
    other=None,
):
    """Evaluate the base model, the real photos and every run in `folders` on the same prompts and
    seeds; a `Comparison`.

    `judge` is a `Judge`, or the name of one for `choose_judge`; `prompts` are those of `protocol`
    unless given. `progress` is called with one line of text before each part. `class_pictures` 0
    leaves PRES and drift out. `masks`: a folder with a mask for every photo that is scored against,
    named as in the data set (test/000.png), for scores of the subject alone beside those of the
    whole picture (see `lib.evaluation.fidelity.evaluate`). `other`: a LoRA from elsewhere, such as
    Kohya's trainer (a file or folder as of `read_adapter`), that becomes a row of its own,
    "kohya_lora", without costs of training. Raises BadInput as `read_run`, `same_ground`,
    `read_adapter`, `check_fit`, `evaluate` and `read_curve` do.
    """
    from lib.convert.adapter import read_adapter
    from lib.convert.composition import load_adapters
    from lib.dataset.captions import prompts as wording
    from lib.evaluation.curve import FILE, costs_along, read_curve
    from lib.evaluation.drift import prediction_cache, prediction_drift
    from lib.evaluation.fidelity import evaluate, prior_similarity, real_row
    from lib.files.whole_writes import size_of
    from lib.models.base import load_base
    from lib.models.base_weights import read_target
    from lib.models.compatibility import check_fit
    from lib.step.run_weights import load_run

    runs, say = [read_run(folder) for folder in folders], progress or (lambda line: None)
    if not runs or len({r.method for r in runs}) < len(runs):
        raise BadInput(
            "The comparison takes one run folder for each method: give one of LoRA, one of"
            " DreamBooth."
        )
    dataset = same_ground(runs)
    if other:
        target = read_target(runs[0].settings["base"])
        check_fit(adapter := read_adapter(other, target.layers), target)
    if judge is None or isinstance(judge, str):
        judge = choose_judge(judge, runs[0].settings["base"])
    name, class_prompt = runs[0].settings["base"], wording(dataset.subject, with_identifier=False)
    result, sampling = Comparison({}, {}, runs=runs), {"steps": steps, "guidance": guidance}
    masks = masks and {
        path.relative_to(masks).as_posix(): path for path in Path(masks).rglob("*.png")
    }
    if masks == {}:
        raise BadInput(
            "The folder of masks holds no .png file: give one for each photo that is scored"
            " against, such as test/000.png."
        )
    for key, run in [
        ("base_model", None),
        *((r.method, r) for r in runs),
        *[("kohya_lora", None)] * bool(other),
    ]:
        base = load_base(name)  # afresh each time, so that nothing of one run can stay in the next
        base.side = runs[0].settings.get("resolution", 0)
        if run:
            base = load_run(run.folder, base)
        elif key == "kohya_lora":
            load_adapters(base, {key: adapter})
            say(_words(adapter, dataset.subject))
        else:
            prompts = prompts or protocol(dataset.subject, base)
            kept = class_pictures and prediction_cache(
                base, [class_prompt] * class_pictures, **sampling
            )
        say(
            f"{CONTESTANT_NAMES[key]}: {len(prompts) * len(seeds)} pictures of {len(prompts)} prompts"
        )
        row = evaluate(base.only_draw(), dataset, judge, prompts, seeds, **sampling, masks=masks)
        result.images[key], result.scores[key], reference = (
            row.pop("images"),
            row.pop("pictures"),
            row.pop("reference"),
        )
        result.asked = [(s["asked"], s["seed"]) for s in result.scores[key]]
        if class_pictures:
            row |= {
                "pres": prior_similarity(
                    base,
                    dataset,
                    judge,
                    class_prompt,
                    range(2000, 2000 + class_pictures),
                    **sampling,
                ),
                "drift": prediction_drift(base, kept)["mean"],
            }
        if run:
            row |= {k: run.metrics[k] for k in MEASURED}
            if (run.folder / FILE).is_file():
                curve = read_curve(run.folder)
                if curve.get("dino") == judge.describe()["dino"]:
                    row |= costs_along(curve["points"], result.rows["real_photos"]["dino"])
                else:
                    say(
                        f"{CONTESTANT_NAMES[key]}: another encoder measured its curve, so neither its best"
                        " step nor half of the way is read off it"
                    )
        elif key == "kohya_lora":
            row["file_bytes"] = size_of(Path(other).expanduser())
        result.rows[key] = row
        if key == "base_model":
            result.rows["real_photos"] = real_row(judge, dataset, masks)
    add_shares(result.rows)
    subject = dataset.subject
    result.about = {
        "class_noun": subject.class_noun,
        "identifier": subject.identifier,
        "kind": subject.kind,
        "base": name,
        "reference": reference,
        "photos": {"train": len(dataset.train), "held_out": len(dataset.test)},
        **judge.describe(),
        "prompts": [p for p, _ in prompts],
        "seeds": list(seeds),
        **sampling,
        "unlike": unlike(runs),
    }
    return result


def _words(adapter, subject):
    """A line on the words that a LoRA from elsewhere was trained with, by its header, beside those
    that it is asked with.
    """
    folders = re.findall(
        r'"\d+_([^"]+)":', adapter.metadata.get("ss_dataset_dirs", "")
    )  # Kohya's: {"10_zwx robot": ...}
    words = adapter.metadata.get("modelspec.trigger_phrase") or ", ".join(folders)
    said = (
        f"trained with '{words}', says its header"
        if words
        else "its header does not say with which words it was trained"
    )
    return f"{adapter.source}: {said}; it is asked for '{subject.identifier} {subject.class_noun}'"


def add_shares(rows):
    """Add `dino_share` and `clip_i_share`, 0 at the base model and 1 at the real photos (None
    without room); make `pres` relative.
    """
    floor, ceiling = rows["base_model"], rows["real_photos"]
    prior = floor.get("pres")
    for row in rows.values():
        for key in ("dino", "clip_i"):
            room = ceiling[key] - floor[key]
            row[f"{key}_share"] = (row[key] - floor[key]) / room if room > 0 else None
        if prior is not None and row.get("pres") is not None:
            row["pres"] -= prior
