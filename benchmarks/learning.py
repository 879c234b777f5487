"""Who learns how much in how many seconds: fidelity to held-out photos and the loss on fixed noise, along each contestant's training.

Fidelity is measured off the clock, with the same prompts and seeds for all and each side's weights loaded into our base model; the seconds
are those that the race measured, the start included. Theirs run twice: as documented, and at their best flags with the learning rates that
suit this base. That is the stronger rival: the documented rates are meant for Stable Diffusion.
"""

import shutil
from pathlib import Path

from lib.base import load_base
from lib.curve import seconds_to
from lib.drift import fixed_noise, fixed_noise_loss
from lib.fidelity import evaluate, evaluation_prompts, load_judge, real_row
from lib.methods import at_rest
from lib.samples import SAMPLE_PLACES
from lib.settings import PRESETS, Settings
from lib.train import train

from .contestants import DOCUMENTED, load_result, ours, run, theirs

LEVEL = 0.5  # the set fidelity: this share of the way from the untouched base to the real photos' own score
SEEDS, SAMPLING = (700, 701), {"steps": 15, "guidance": 4.0}
STEPS, EVERY = Settings.steps, 20  # of ours, and of theirs at our rates
AT_MOST = 500  # steps of theirs as documented; their README's 800 for DreamBooth are not waited for


class Scales:
    """Measures a model: dino and clip_t of pictures for held-out photos, and the loss on fixed noise of those photos."""

    def __init__(self, base, dataset):
        self.dataset, self.judge = dataset, load_judge()
        self.prompts = evaluation_prompts(dataset.subject, SAMPLE_PLACES)
        self.fixed = fixed_noise(base, [i.path for i in dataset.test], [i.caption for i in dataset.test])
        self.real = real_row(self.judge, dataset)["dino"]

    def __call__(self, base, step):
        """A point of a curve."""
        with at_rest(base):
            found = evaluate(base, self.dataset, self.judge, self.prompts, SEEDS, **SAMPLING)
            loss = fixed_noise_loss(base, self.fixed)["mean"]
        return {"step": step, "dino": found["dino"], "clip_t": found["clip_t"], "loss_held_out": loss}


def learn(work, field, scripts, cells):
    """{"level", "base", "real", "curves": [{method, who, seconds_to_level, final point, points}]}."""
    base = load_base(str(field.base))
    scales = Scales(base, field.data["small"])
    untouched = scales(base, 0)
    level = untouched["dino"] + LEVEL * (scales.real - untouched["dino"])
    del base
    curves = []
    for method in DOCUMENTED:
        our_rate = PRESETS[method, "pocket"]["learning_rate"]
        curves.append(_ours(work, field, method, scales))
        curves.append(_theirs(work, field, scripts, method, "documented", scales, AT_MOST, None, 100))
        curves.append(_theirs(work, field, scripts, method, "best", scales, STEPS, our_rate, EVERY))
        print([{k: v for k, v in c.items() if k != "points"} | {"last": c["points"][-1]} for c in curves[-3:]], flush=True)
    for curve in curves:
        times = next(c for c in cells if (c["method"], c["photos"], c["who"]) == (curve["method"], "small", curve["timed_as"]))
        first, step = times["first"]["median"], times["step"]["median"]
        points = [untouched | {"seconds": first - step}] + [p | {"seconds": first + (p["step"] - 1) * step} for p in curve["points"]]
        curve |= {"points": points, "seconds_to_level": seconds_to(points, level)}
    return {"level": level, "share": LEVEL, "base": untouched["dino"], "real": scales.real, "pictures": len(SEEDS) * len(SAMPLE_PLACES),
            "curves": curves}


def _ours(work, field, method, scales):
    """Our preset, measured every `EVERY` steps on the live weights."""
    points, base = [], load_base(str(field.base))

    def watch(state):
        if state.step % EVERY == 0:
            points.append(scales(base, state.step))

    train(ours(field, method, "small", "preset", STEPS, Path(work) / f"learn_{method}"), base, watchers=[watch])
    timed, rate = ("preset" if method == "lora" else "like"), PRESETS[method, "pocket"]["learning_rate"]
    return {"method": method, "who": "ours, preset", "timed_as": timed, "rate": rate, "points": points}


def _theirs(work, field, scripts, method, tier, scales, steps, rate, every):
    """Their script, measured on its checkpoints."""
    output = Path(work) / f"learn_{method}_{tier}"
    command, environment = theirs(scripts, field, method, "small", tier, steps, output, rate=rate, every=every)
    run(work, output.name, command, steps, environment)
    points = [scales(load_result(output / f"checkpoint-{at}", load_base(str(field.base))), at) for at in range(every, steps + 1, every)]
    shutil.rmtree(output)
    who = f"theirs, {'as documented' if rate is None else 'best flags at our learning rate'}"
    return {"method": method, "who": who, "timed_as": tier, "rate": rate or DOCUMENTED[method]["rate"], "points": points}
