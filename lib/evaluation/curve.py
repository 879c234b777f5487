"""Curves, not end points: a watcher that measures a run while it trains, off the clock that times
the training.

    base = load_base("pocket")
    curve = Curve(base, load_dataset(settings.data), load_judge(), settings.output)   # step 0
    train(settings, base, watchers=[curve])
    best(curve.points)                                     # or best(read_curve(run)["points"])
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from lib.config import Settings
from lib.dataset.imagefolder import Dataset
from lib.evaluation.drift import fixed_noise, fixed_noise_loss, prediction_cache, prediction_drift
from lib.evaluation.fidelity import (
    EvaluationPlan,
    PromptPairs,
    class_protocol,
    evaluate,
    evaluation_prompts,
    obedience,
    prior_similarity,
)
from lib.evaluation.judge import Judge
from lib.files import BadInput, read_json, write_json
from lib.models.base import Base, evaluation_mode
from lib.training import SAMPLE_PLACES
from lib.training.kept_steps import keep_step

FILE = "curve.json"
HELD_OUT = "held-out photos"

# Seeds apart from those of training's samples (0 onwards), of the final evaluation (1000 onwards)
# and of its class pictures (2000 onwards).
SHORT_PLAN = EvaluationPlan(seeds=(500,), steps=15, class_pictures=4)
CLASS_SEEDS = 2500

Point = dict[str, Any]


def short_plan(prompts: PromptPairs, most_steps: int) -> EvaluationPlan:
    """`SHORT_PLAN` with these prompts, in at most `most_steps` steps of sampling: what is measured
    along the way is drawn no finer than what is shown.
    """
    return replace(SHORT_PLAN, prompts=prompts, steps=min(SHORT_PLAN.steps, most_steps))


class Curve:
    """Measures the live weights of `base` every `every` steps and at the end; `run`/curve.json
    holds all points, whole, after each. Weights are kept as the run's setting `keep` says.

    Make it before training, with the base model that `train(settings, base, watchers=[curve])` then
    uses up: what the untouched base scores is step 0, and its predictions are the cache that drift
    is measured from.

    plan: without prompts those of the places of training's samples. Few prompts: read the points
    against each other, not against a final evaluation.
    points: dicts of step, seconds (of training), measuring (seconds it took), the scores of
    `lib.evaluation.fidelity.evaluate`, pres, drift and obedience of the class in words that no
    class image has (pres and drift relative to step 0 and the base's predictions: 0 is an unchanged
    class; all three None without class pictures), loss_train and loss_held_out (on fixed noise)
    with their lists by timestep bin.
    images: the pictures by step.
    """

    def __init__(
        self,
        base: Base,
        dataset: Dataset,
        judge: Judge,
        run: str | Path,
        every: int = 50,
        plan: EvaluationPlan = SHORT_PLAN,
    ) -> None:
        if every < 1:
            raise BadInput(f"The curve is to be measured every {every} steps: give 1 or more.")
        self.base, self.dataset, self.judge = base, dataset, judge
        self.run, self.every = Path(run).expanduser(), every
        self.prompts = plan.prompts or evaluation_prompts(dataset.subject, SAMPLE_PLACES)
        self.plan = plan.on(base).asking(self.prompts)
        self.points: list[Point] = []
        self.images: dict[int, list[Image.Image]] = {}
        self.asked = class_protocol(dataset.subject, base)[: plan.class_pictures]
        self.photos = {
            name: fixed_noise(base, [i.path for i in items], [i.caption for i in items])
            for name, items in (("loss_train", dataset.train), ("loss_held_out", dataset.test))
            if items
        }
        start = time.perf_counter()
        self.prior, self.cache, drawn = 0.0, None, None
        if self.asked:
            drawn = self._class_pictures()
            self.prior = prior_similarity(judge, dataset, drawn)
            self.cache = prediction_cache(base, [prompt.text for prompt in self.asked], drawn)
        self._measure(0, 0.0, start, drawn)

    def __call__(self, state: Any) -> None:
        """What `train` calls after each step."""
        if len(self.points) == 1 and (self.run / FILE).is_file():
            # The training goes on after an interruption.
            self.points += [p for p in read_curve(self.run)["points"] if 0 < p["step"] < state.step]
        last = state.step >= state.steps or state.stopping
        if (state.step % self.every and not last) or state.step == self.points[-1]["step"]:
            return
        if not (self.run / "settings.json").is_file():
            raise BadInput(
                f"The curve is to be written to {self.run}, which is not the run being trained:"
                " give it the settings' output."
            )
        self._measure(state.step, state.seconds, time.perf_counter())
        write_json(self.run / FILE, self.record())
        keep = read_json(self.run / "settings.json").get("keep", "last")
        newest_is_best = best(self.points) is self.points[-1]
        if keep == "best" and newest_is_best or keep == "all" and not last:
            keep_step(self.base, Settings.load(self.run / "settings.json"), state.step)

    def record(self) -> dict[str, Any]:
        """What curve.json holds: the points, the best step, and what they were measured with."""
        found = best(self.points)
        return {
            "points": self.points,
            "best_step": found and found["step"],
            "best_by": (
                f"highest dino against {HELD_OUT}"
                if found
                else "no photo was held out, so no step can be called the best"
            ),
            "prompts": [list(pair) for pair in self.prompts],
            "seeds": list(self.plan.seeds),
            "class_prompts": [prompt.text for prompt in self.asked],
            **self.plan.sampling,
            **self.judge.describe(),
            "units": {
                "seconds": "s of training steps alone",
                "measuring": "s of measuring, not part of seconds",
            },
        }

    def _class_pictures(self) -> list[Image.Image]:
        """A picture for each prompt of the class."""
        seeds = range(CLASS_SEEDS, CLASS_SEEDS + len(self.asked))
        texts = [prompt.text for prompt in self.asked]
        return self.base.generate(texts, seeds, **self.plan.sampling)

    def _measure(
        self,
        step: int,
        seconds: float,
        start: float,
        drawn: list[Image.Image] | None = None,
    ) -> None:
        """Add a point; `start`: when measuring it began, by `time.perf_counter`; `drawn`: its
        class pictures, where they are there already.
        """
        point: Point = {"step": step, "seconds": seconds}
        with evaluation_mode(self.base):
            point |= evaluate(self.base, self.dataset, self.judge, self.plan)
            self.images[step] = point.pop("images")
            del point["pictures"]
            point |= dict.fromkeys(("pres", "obedience", "drift", "loss_train", "loss_held_out"))
            if self.cache is not None:
                drawn = drawn or self._class_pictures()
                point["pres"] = prior_similarity(self.judge, self.dataset, drawn) - self.prior
                point["obedience"] = obedience(self.judge, drawn, self.asked)
                # At step 0 the base is compared with itself.
                point["drift"] = prediction_drift(self.base, self.cache)["mean"] if step else 0.0
            for name, fixed in self.photos.items():
                loss = fixed_noise_loss(self.base, fixed)
                point |= {name: loss["mean"], f"{name}_bins": loss["bins"]}
        self.points.append(point | {"measuring": time.perf_counter() - start})


def best(points: Sequence[Point]) -> Point | None:
    """The point with the highest dino against held-out photos, the earliest of equals; None where
    no photo was held out.

    It is chosen by the very photos it is then praised with, so its dino flatters a little: for a
    verdict, score that step again on other prompts and seeds. Step 0, the untouched base, takes
    part: where it wins, training did not help.
    """
    fair = [p for p in points if p["reference"] == HELD_OUT]
    return max(fair, key=lambda p: (p["dino"], -p["step"]), default=None)


def seconds_to(points: Sequence[Point], dino: float) -> float | None:
    """Seconds of training until `dino` was first reached, on straight lines between the points;
    None if it never was.
    """
    before = None
    for point in sorted(points, key=lambda p: p["step"]):
        if point["dino"] >= dino:
            if before is None:
                return point["seconds"]
            share = (dino - before["dino"]) / (point["dino"] - before["dino"])
            return before["seconds"] + share * (point["seconds"] - before["seconds"])
        before = point
    return None


def costs_along(points: Sequence[Point], ceiling: float | None = None) -> dict[str, float | None]:
    """What learning took: {"seconds_to_best", "seconds_to_half"}, seconds of training to the best
    step and to half of the way.

    Half of the way lies between the untouched base's dino (step 0) and `ceiling`, the real photos'
    dino. None: not reached or not known.
    """
    top, start = best(points), min(points, key=lambda p: p["step"])
    half = (
        None
        if ceiling is None or top is None
        else seconds_to(points, (start["dino"] + ceiling) / 2)
    )
    fastest = top["seconds"] if top else None
    return {"seconds_to_best": fastest or None, "seconds_to_half": half or None}


def read_curves(runs: Mapping[str, str | Path]) -> dict[str, dict[str, Any]]:
    """{name: what its curve.json holds} for `runs`, name -> run folder; a run without a curve is
    left out, and said.

    Raises BadInput as `read_curve` does, and where two curves were measured with different
    encoders, prompts or seeds.
    """
    found = {name: read_curve(run) for name, run in runs.items() if (Path(run) / FILE).is_file()}
    for run in (run for name, run in runs.items() if name not in found):
        print(
            f"The run {run} was not measured along the way (it has no {FILE}): notebooks 02"
            " and 03 do that."
        )
    for key in ("dino", "clip", "prompts", "seeds", "class_prompts", "steps", "guidance"):
        if len({repr(record.get(key)) for record in found.values()}) > 1:
            raise BadInput(
                f"The curves of {' and '.join(str(runs[name]) for name in found)} differ in {key},"
                " so they don't compare: train both again with the same judge and prompts."
            )
    return found


def read_curve(run: str | Path) -> dict[str, Any]:
    """What `run`/curve.json holds (see `Curve.record`). Raises BadInput if there is none, or a
    point in it is damaged.
    """
    path = Path(run) / FILE
    if not path.is_file():
        raise BadInput(
            f"The run folder {run} has no {FILE}: move it away, and train again with a"
            " `lib.evaluation.curve.Curve` among the watchers."
        )
    record = read_json(path)
    points = record.get("points")
    for point in points if isinstance(points, list) and points else [None]:
        numbers = (
            [point.get(key) for key in ("step", "seconds", "dino")]
            if isinstance(point, dict) and "reference" in point
            else [None]
        )
        if not all(isinstance(v, int | float) and math.isfinite(v) for v in numbers):
            raise BadInput(
                f"{path} is damaged: a point in it lacks step, seconds, dino or reference; train"
                " the run again."
            )
    return record
