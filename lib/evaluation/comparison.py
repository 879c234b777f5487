"""Read run folders and put the methods side by side: one table, one summary, one cautious sentence.

Trains nothing. Every row is made from the same prompts and seeds; the base model is the floor and
the real photos are the ceiling of fidelity.

    outcome = compare(["runs/course/lora", "runs/course/dreambooth"])
    print(table(outcome), verdict(outcome), sep="\n\n")          # lib.evaluation.comparison_table
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from lib.config import CONTESTANT_NAMES
from lib.convert.adapter import Adapter, diffusers_tensors, read_adapter
from lib.convert.composition import load_adapters
from lib.convert.exporting import IMPORTED
from lib.convert.interchange import extract
from lib.dataset.captions import Subject
from lib.dataset.captions import prompts as prompt_of
from lib.dataset.imagefolder import Dataset, load_dataset
from lib.evaluation.comparison_table import Comparison, Run
from lib.evaluation.curve import FILE, costs_along, read_curve
from lib.evaluation.drift import prediction_cache, prediction_drift
from lib.evaluation.fidelity import (
    CLASS_SEEDS,
    ClassPrompt,
    EvaluationPlan,
    Row,
    class_protocol,
    class_words,
    evaluate,
    obedience,
    prior_similarity,
    prompt_list,
    protocol,
    real_row,
)
from lib.evaluation.judge import Judge, Picture, load_judge, load_masc
from lib.files import BadInput, read_json
from lib.files.whole_writes import size_of
from lib.models import Base, load_base, open_base_weights
from lib.models.compatibility import check_compatible, check_unchanged
from lib.step import load_run

WEIGHTS = {"lora": "adapter.safetensors", "dreambooth": "unet/diffusion_pytorch_model.safetensors"}

MEASURED = ("seconds_per_step", "train_seconds", "peak_bytes", "file_bytes")

# What is cut from DreamBooth's weights, and at how many times the rank of LoRA's run.
_CUT = {"extracted": 1, "extracted_twice": 2}


def read_run(folder: str | Path) -> Run:
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
            why = (
                "it was imported; in notebook 04 its LoRA can be a row of its own, as `kohya_lora`."
                if (folder / IMPORTED).is_file()
                else "its training did not finish; run it again with the same settings."
            )
            raise BadInput(f"The run folder {folder} has no {name}: {why}")
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
            not isinstance(value, (int, float))
            or isinstance(value, bool)
            or not 0 <= value < math.inf
        ):
            raise BadInput(
                f"{folder / 'metrics.json'} has {key} = {value!r} where a number belongs: the run"
                " is damaged or had a single step; train it again."
            )
    weights = folder / WEIGHTS[method]
    _check_weights(weights)
    return Run(folder, method, settings, metrics, weights)


def _check_weights(path: Path) -> None:
    try:
        with safe_open(path, "pt") as file:
            bad = [key for key in file.keys() if not file.get_tensor(key).isfinite().all()]
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
            f"The weights {path} hold values that are not numbers (in {bad[0]}): the training"
            " diverged; train again with a smaller learning rate."
        )


def same_ground(runs: Sequence[Run]) -> Dataset:
    """The data set that all runs share; raises BadInput if they were trained on different data or
    base models, or one of these was changed since.
    """
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
    base = open_base_weights(runs[0].settings["base"])
    for run in runs:
        check_unchanged(run.folder, base)
    return data[0]


def unlike(runs: Sequence[Run]) -> list[str]:
    """Settings that differ although the comparison wants them equal, as a list of texts such as
    "steps (300, 400)"; and the device, or its threads, for seconds of two are not compared.
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
        "device",
    )
    # Metrics first: a run may have been stopped early.
    values = {key: [str(r.metrics.get(key, r.settings.get(key))) for r in runs] for key in keys}
    return [
        f"{key} ({('; ' if key == 'device' else ', ').join(v)})"  # a device has commas in its name
        for key, v in values.items()
        if len(set(v)) > 1
    ]


def costs_alone(runs: Sequence[Run]) -> Comparison:
    """The comparison before anything is drawn or judged: what each of `runs` cost.

    Raises BadInput as `same_ground` does.
    """
    subject = same_ground(runs).subject
    about = {
        "base": runs[0].settings["base"],
        "identifier": subject.identifier,
        "class_noun": subject.class_noun,
    }
    rows = {run.method: {key: run.metrics[key] for key in MEASURED} for run in runs}
    return Comparison(rows, about, runs=list(runs))


def choose_judge(name: str | None = "", base: str = "pocket", masc: str = "") -> Judge:
    """The `Judge` called `name`; without a name the pocket judge for the pocket base, and DINO with
    CLIP for any other. With `masc`, the folder or hub name of a SigLIP2, MaSC beside them.

    Where those are not on this machine and were not asked for by name, it says how to get them, and
    the pocket judge scores meanwhile: its figures name it, and stand in no column with another
    judge's. Raises BadInput as `load_judge` and `load_masc` do.
    """
    if masc:
        return replace(choose_judge(name, base), masc=load_masc(masc), masc_name=masc)
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
    folders: Sequence[str | Path],
    judge: Judge | str | None = None,
    plan: EvaluationPlan = EvaluationPlan(),
    masks: str | Path | None = None,
    other: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Evaluate the base model, the real photos and every run on the same prompts and seeds.

    Where both methods are there, DreamBooth's run is also cut to a LoRA, at the rank of LoRA's run
    and at twice that: rows "extracted" and "extracted_twice", with DreamBooth's costs of training.

    folders: run folders, one of each method.
    judge: a `Judge`, or the name of one for `choose_judge`.
    plan: without prompts those of `protocol`.
    masks: a folder with a mask for every photo that is scored against, named as in the data set
    (test/000.png), for scores of the subject alone beside those of the whole picture (see
    `lib.evaluation.fidelity.evaluate`).
    other: a LoRA from elsewhere, such as Kohya's trainer (a file or folder as of `read_adapter`),
    that becomes a row of its own, "kohya_lora", without costs of training.
    progress: called with one line of text before each part.

    Raises BadInput as `read_run`, `same_ground`, `read_adapter`, `check_compatible`, `evaluate` and
    `read_curve` do.
    """
    say = progress or (lambda line: None)
    runs = [read_run(folder) for folder in folders]
    if not runs or len({run.method for run in runs}) < len(runs):
        raise BadInput(
            "The comparison takes one run folder for each method: give one of LoRA, one of"
            " DreamBooth."
        )
    dataset = same_ground(runs)
    subject, base_name = dataset.subject, runs[0].settings["base"]
    adapters = _extracted(runs)
    sizes = {name: len(save(*diffusers_tensors(a))) for name, a in adapters.items()}
    if other:
        adapters["kohya_lora"] = _read_other(other, base_name)
        sizes["kohya_lora"] = size_of(Path(other).expanduser())
    if judge is None or isinstance(judge, str):
        judge = choose_judge(judge, base_name)
    mask_files = _mask_files(masks) if masks else None
    rows = {"base_model": {}, "real_photos": real_row(judge, dataset, mask_files)}
    result = Comparison(rows, {}, runs=runs)
    asked_of_class: list[ClassPrompt] = []
    predictions, reference = None, ""
    if other:
        say(_words(adapters["kohya_lora"], subject))
    for key, base in _contestants(runs, adapters):
        if key == "base_model":  # the first, and untouched: drift is measured from it
            plan = plan.on(base)
            plan = plan if plan.prompts else plan.asking(protocol(subject, base))
            if plan.class_pictures:
                asked_of_class = list(
                    islice(cycle(class_protocol(subject, base)), plan.class_pictures)
                )
                texts = [asked.text for asked in asked_of_class]
                predictions = prediction_cache(base, texts, **plan.sampling)
        pairs = plan.prompts or ()
        count = f"{len(pairs) * len(plan.seeds)} pictures of {len(pairs)} prompts"
        say(f"{CONTESTANT_NAMES[key]}: {count}")
        row = evaluate(base.cast_for_sampling(), dataset, judge, plan, mask_files)
        row |= drawn_as_asked(judge, row["images"], [p["prompt"] for p in row["pictures"]], base)
        if predictions is not None:
            row |= class_scores(base, dataset, judge, asked_of_class, plan)
            row["drift"] = prediction_drift(base, predictions)["mean"]
        result.images[key] = row.pop("images")
        result.scores[key] = row.pop("pictures")
        reference = row.pop("reference")
        rows[key] = row
    for run in runs:
        costs = _costs(run, judge, rows["real_photos"]["dino"], say)
        cut = _CUT if run.method == "dreambooth" else {}
        for name in [run.method, *(name for name in cut if name in adapters)]:
            rows[name] |= costs
    for name, size in sizes.items():
        rows[name]["file_bytes"] = size
    result.asked = [(s["asked"], s["seed"]) for s in result.scores["base_model"]]
    for which in ("course", "full"):
        result.asks |= {p["class_prompt"]: p["asks"] for p in prompt_list(subject, base, which)}
    add_shares(rows)
    result.about = {
        "class_noun": subject.class_noun,
        "identifier": subject.identifier,
        "kind": subject.kind,
        "base": base_name,
        "reference": reference,
        "photos": {"train": len(dataset.train), "held_out": len(dataset.test)},
        **judge.describe(),
        "prompts": [asked for asked, _ in plan.prompts or ()],
        "class_prompts": [asked.text for asked in asked_of_class],
        "seeds": list(plan.seeds),
        **plan.sampling,
        "unlike": unlike(runs),
    }
    return result


def _extracted(runs: Sequence[Run]) -> dict[str, Adapter]:
    """{its name in the table: the LoRA cut from DreamBooth's run}, if there is a rank to cut to."""
    by_method = {run.method: run for run in runs}
    if not {"lora", "dreambooth"} <= by_method.keys():
        return {}
    rank = by_method["lora"].settings["rank"]
    folder = by_method["dreambooth"].folder
    return {name: extract(folder, times * rank)[0] for name, times in _CUT.items()}


def _read_other(other: str | Path, base: str) -> Adapter:
    """The LoRA from elsewhere; raises BadInput where it does not fit the base model."""
    target = open_base_weights(base)
    adapter = read_adapter(other, target.layers)
    check_compatible(adapter, target)
    return adapter


def _mask_files(folder: str | Path) -> dict[str, Path]:
    """The masks in a folder by their names in it; raises BadInput without any."""
    masks = {path.relative_to(folder).as_posix(): path for path in Path(folder).rglob("*.png")}
    if not masks:
        raise BadInput(
            "The folder of masks holds no .png file: give one for each photo that is scored"
            " against, such as test/000.png."
        )
    return masks


def _contestants(runs: list[Run], adapters: Mapping[str, Adapter]) -> Iterator[tuple[str, Base]]:
    """(its name in the table, a base model with its weights in) of the base model, each run, and
    each of `adapters`.

    Each is loaded afresh, so that nothing of one can stay in the next, and only when the one before
    has been scored.
    """
    settings = runs[0].settings

    def load() -> Base:
        base = load_base(settings["base"])
        base.side = settings.get("resolution", 0)
        return base

    yield "base_model", load()
    for run in runs:
        yield run.method, load_run(run.folder, load())
    for name, adapter in adapters.items():
        yield name, load_adapters(load(), {name: adapter})


def _costs(run: Run, judge: Judge, ceiling: float, say: Callable[[str], None]) -> Row:
    """What a run cost: its metrics, and read off its curve the seconds to its best step and to half
    of the way to `ceiling`, the real photos' dino.
    """
    costs = {key: run.metrics[key] for key in MEASURED}
    if not (run.folder / FILE).is_file():
        return costs
    curve = read_curve(run.folder)
    if curve.get("dino") != judge.describe()["dino"]:
        say(
            f"{CONTESTANT_NAMES[run.method]}: another encoder measured its curve, so neither its"
            " best step nor half of the way is read off it"
        )
        return costs
    return costs | costs_along(curve["points"], ceiling)


def _words(adapter: Adapter, subject: Subject) -> str:
    """A line on the words that a LoRA from elsewhere was trained with, by its header, beside those
    that it is asked with.
    """
    # Kohya's: {"10_zwx robot": ...}
    folders = re.findall(r'"\d+_([^"]+)":', adapter.metadata.get("ss_dataset_dirs", ""))
    words = adapter.metadata.get("modelspec.trigger_phrase") or ", ".join(folders)
    trained = (
        f"trained with '{words}', says its header"
        if words
        else "its header does not say with which words it was trained"
    )
    return (
        f"{adapter.source}: {trained}; it is asked for '{subject.identifier} {subject.class_noun}'"
    )


def class_scores(
    base: Base,
    dataset: Dataset,
    judge: Judge,
    asked: Sequence[ClassPrompt],
    plan: EvaluationPlan,
) -> Row:
    """What a model still makes of the class: {"pres", "obedience"} of one picture for each of
    `asked`, and "pres_trained" of as many in the class images' own words ("a robot").

    Both PRES are absolute; a class that is kept in its trained words alone is lost in all others,
    which only `pres` and `obedience` see.
    """
    seeds = list(range(CLASS_SEEDS, CLASS_SEEDS + len(asked)))
    drawn = base.generate([prompt.text for prompt in asked], seeds, **plan.sampling)
    plain = prompt_of(dataset.subject, with_identifier=False)
    trained = base.generate([plain] * len(asked), seeds, **plan.sampling)
    return {
        "pres": prior_similarity(judge, dataset, drawn),
        "obedience": obedience(judge, drawn, asked),
        "pres_trained": prior_similarity(judge, dataset, trained),
    }


def drawn_as_asked(
    judge: Judge, images: Sequence[Picture], prompts: Sequence[str], base: Base
) -> dict[str, float]:
    """{"place_drawn", "colour_drawn"}: of the pictures whose prompt names a place, or a colour, the
    share that shows it (`obedience`, by that word alone). Chance is 1 in 8.

    prompts: one for each of `images`, with the class noun only. A prompt names a place or a colour
    if one of the words of data/prompts for `base` stands in it; what no prompt names is left out.
    """
    found, known = {}, class_words(base)
    for name in ("place", "colour"):
        words, shown, asked = known[name], [], []
        for image, text in zip(images, prompts):
            named = next((word for word in words if f" {word} " in f" {text} "), None)
            if named:
                others = [text.replace(named, word) for word in words if word != named]
                asked.append(ClassPrompt(text, {name: others}))
                shown.append(image)
        if shown:
            found[f"{name}_drawn"] = obedience(judge, shown, asked)
    return found


def add_shares(rows: dict[str, Row]) -> None:
    """Add `dino_share` and `clip_i_share`, 0 at the base model and 1 at the real photos (None
    where these score no higher), and `clip_t_share`, of what the real photos score with their own
    captions; make `pres` and `pres_trained` relative to the base model's.
    """
    floor, ceiling = rows["base_model"], rows["real_photos"]
    priors = {key: floor[key] for key in ("pres", "pres_trained") if floor.get(key) is not None}
    for row in rows.values():
        for key in ("dino", "clip_i"):
            distance = ceiling[key] - floor[key]
            row[f"{key}_share"] = (row[key] - floor[key]) / distance if distance > 0 else None
        if row.get("clip_t") is not None and (ceiling.get("clip_t") or 0) > 0:
            row["clip_t_share"] = row["clip_t"] / ceiling["clip_t"]
        row |= {key: row[key] - prior for key, prior in priors.items() if key in row}
