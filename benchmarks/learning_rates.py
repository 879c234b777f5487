"""Which learning rate is each method's own: PocketBench's study "rate" read as one curve a method,
the best rate named.

    python -m benchmarks.pocketbench --studies rate

runs the sweep and writes data/results/learning_rates.json.

Rates are tuned on the example subjects and on three that stand behind the bench's, and used on the
bench's, which are others: no method is tuned on what it is tested with.
"""

from collections import defaultdict

import numpy as np

from lib.config.settings import METHODS
from lib.files.paths import ROOT

RESULTS = ROOT / "data" / "results" / "learning_rates.json"
RATES = {
    "lora": (1e-3, 2.8e-3, 4e-3, 5.6e-3, 1e-2),
    "dreambooth": (4e-4, 8e-4, 1.2e-3, 1.6e-3, 4e-3),
}
# {steps of a training: the rates that are tried at that length}.
LENGTHS = {
    100: {"lora": (4e-3, 5.6e-3), "dreambooth": (1.2e-3, 1.6e-3)},
    150: {"lora": (2.8e-3, 4e-3, 5.6e-3), "dreambooth": (8e-4, 1.2e-3, 1.6e-3)},
    300: {"lora": (2.8e-3,), "dreambooth": (8e-4,)},
}
EXAMPLES = ("character", "product", "clothing")
# The bench's subjects are the first of `pocket.subjects.bench_subjects`; these are behind them.
TESTED = 30
BEHIND = ("30-rocket", "31-house", "32-teapot")
SEEDS = 2


def sets_of(subjects):
    """(subject, variant) of photo sets: each subject with captions that name the place, and with
    ones that don't, as most people's photos come.
    """
    return [(subject, variant) for variant in ("good", "uncaptioned") for subject in subjects]


def both(likeness, obedience):
    """Harmonic mean of two shares (0 where either is not above 0): high only where the subject is
    learned *and* the prompt is followed.

    Likeness alone prefers rates at which every prompt gives the training photos again. As F1 weighs
    precision and recall (van Rijsbergen 1979, chapter 7).
    """
    return (
        2 * likeness * obedience / (likeness + obedience) if likeness > 0 and obedience > 0 else 0.0
    )


def curves(rows, study="rate", steps=None):
    """{method: [{learning_rate, both, error, likeness, obedience, dino, clip_t, runs}]} of a
    study's rows, in order of the rate; `steps` takes the trainings of that length alone.

    likeness: share of the way in DINO from the base model (0) to the real photos (1); obedience:
    CLIP-T as a share of the real photos' with their own captions, 1 at most, for a subject that
    CLIP hardly takes for its class lowers both. Both are means over subjects of means over seeds,
    and `both` joins them; error is the standard error of such a mean. Rows of before the photos'
    CLIP-T was measured are held against the base's.
    """
    rows = [row for row in rows if row["study"] == study]
    base, result = (
        {(row["subject"], row["variant"]): row for row in rows if row["method"] == "base"},
        {},
    )
    for method in METHODS:
        groups = defaultdict(lambda: defaultdict(list))
        for row in rows:
            subject = row["subject"], row["variant"]
            if row["method"] == method and subject in base and steps in (None, row.get("steps")):
                floor = base[subject]
                likeness = (row["dino"] - floor["dino"]) / (floor["dino_real"] - floor["dino"])
                followed = row["clip_t"] / (floor.get("clip_t_real") or floor["clip_t"])
                scores = (likeness, min(followed, 1.0), row["dino"], row["clip_t"])
                groups[row["learning_rate"]][subject].append(scores)
        result[method] = []
        for rate, subjects in sorted(groups.items()):
            each = [np.mean(runs, axis=0) for runs in subjects.values()]
            mean, joined = np.mean(each, axis=0), [both(*map(float, one[:2])) for one in each]
            error = np.std(joined, ddof=1) / len(joined) ** 0.5 if len(joined) > 1 else 0.0
            named = dict(
                zip(("likeness", "obedience", "dino", "clip_t"), (round(float(v), 4) for v in mean))
            )
            runs = sum(map(len, subjects.values()))
            result[method].append(
                {
                    "learning_rate": rate,
                    "both": round(both(*map(float, mean[:2])), 4),
                    "error": round(float(error), 4),
                    **named,
                    "runs": runs,
                }
            )
    return result


def best(points):
    """The lowest rate of a method's curve whose `both` lies within one standard error of the
    highest: of rates that are not told apart the gentlest, which forgets least (as the
    one-standard-error rule takes the simplest model; Breiman et al. 1984, section 3.4.3).
    """
    top = max(points, key=lambda point: point["both"])
    near = [p["learning_rate"] for p in points if p["both"] >= top["both"] - top["error"]]
    return min(near)
