"""Each method's best learning rate on the pocket base, found by the same sweep.  Writes data/results/learning_rates.json.

    python -m benchmarks.learning_rates [--steps 200] [--subjects character product] [--seeds 0]

Every run already in the results file is skipped, so the sweep can be stopped and continued, and widened by asking for more.
A rate's score is DINO against held-out photos, mean over subjects and seeds; the presets in lib/settings.py name the best.
"""

import argparse
import tempfile
from pathlib import Path

from lib.base import ROOT, load_base
from lib.fidelity import evaluate, evaluation_prompts, load_judge
from lib.lesson import draw_class_images
from lib.methods import load_run
from lib.photos import prepare
from lib.settings import Settings, read_json, write_json
from lib.train import train

RESULTS = ROOT / "data" / "results" / "learning_rates.json"
RATES = {"lora": (5e-4, 1e-3, 2e-3, 4e-3, 8e-3), "dreambooth": (1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3)}
PLACES = ("at night", "in the snow", "in space", "in a room")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--subjects", nargs="+", default=["character", "product"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    args = parser.parse_args()
    rows = read_json(RESULTS)["runs"] if RESULTS.is_file() else []
    judge = load_judge()
    with tempfile.TemporaryDirectory() as work:
        for subject in args.subjects:
            data = draw_class_images(load_base(), prepare(ROOT / "data" / "subjects" / subject, Path(work) / subject))
            for seed in args.seeds:
                for method, rates in RATES.items():
                    for rate in rates:
                        key = {"subject": subject, "method": method, "learning_rate": rate, "seed": seed, "steps": args.steps}
                        if any(key.items() <= row.items() for row in rows):
                            continue
                        settings = Settings.preset(
                            method,
                            data=str(data.root),
                            output=str(Path(work) / "run"),
                            learning_rate=rate,
                            seed=seed,
                            steps=args.steps,
                            sample_every=0,
                        )
                        base = load_run(train(settings), load_base())
                        found = evaluate(base, data, judge, evaluation_prompts(data.subject, PLACES), seeds=(1000, 1001))
                        rows.append(key | {name: round(found[name], 4) for name in ("dino", "clip_i", "clip_t", "dino_train", "diversity")})
                        print({k: rows[-1][k] for k in ("subject", "method", "learning_rate", "dino", "clip_t")}, flush=True)
                        write_json(RESULTS, {"pocket": curves(rows), "runs": rows})


def curves(rows):
    """{method: [{learning_rate, dino, clip_t, runs}]}: means over subjects and seeds, in order of the rate."""
    result = {}
    for method in RATES:
        mine = [r for r in rows if r["method"] == method]
        result[method] = [
            {"learning_rate": rate, "runs": len(group), **{k: round(sum(r[k] for r in group) / len(group), 4) for k in ("dino", "clip_t")}}
            for rate in sorted({r["learning_rate"] for r in mine})
            for group in [[r for r in mine if r["learning_rate"] == rate]]
        ]
    return result


if __name__ == "__main__":
    main()
