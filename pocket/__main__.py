"""`make pocket`: train the pocket base and the judge from nothing. Safe to stop: the same command
goes on where it was.

    python -m pocket [vae text unet decoder judge identity measure detail]
        [--work runs/pocket] [--out data] [--steps unet=12000]

Each stage prints its progress and the minutes left, and checkpoints into the work folder; weights
go to `--out` in fp16. A finished stage is prolonged by asking for more steps; `--steps detail=N` is
the number of samples that `detail` draws and judges.
"""

import argparse
from pathlib import Path

STAGES = ("vae", "text", "unet", "decoder", "judge", "identity", "measure", "detail")
STEPS = {
    "vae": 2500,
    "text": 600,
    "unet": 12_000,
    "decoder": 900,
    "judge": 1500,
    "identity": 4000,
    "detail": 4000,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "stages",
        nargs="*",
        metavar="stage",
        help=f"any of {', '.join(STAGES)}; all, in this order, if none is named",
    )
    parser.add_argument("--work", type=Path, default=Path("runs/pocket"))
    parser.add_argument("--out", type=Path, default=Path("data"))
    parser.add_argument("--steps", action="append", default=[], metavar="STAGE=N")
    args = parser.parse_args()
    for name in args.stages:
        if name not in STAGES:
            parser.error(f"there is no stage '{name}': choose from {', '.join(STAGES)}")
    steps = STEPS | {name: int(n) for name, n in (pair.split("=") for pair in args.steps)}
    from . import stages

    for name in args.stages or STAGES:
        getattr(stages, name)(args.work, args.out, steps.get(name))


if __name__ == "__main__":
    main()
