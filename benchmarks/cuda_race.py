"""Our two trainings against diffusers' DreamBooth scripts on a card: Stable Diffusion 1.5's and
XL's shapes with random weights.

    python -m benchmarks.cuda_race --scripts DIR [--fields sd15:1 sd15:4 sdxl:1] [--rounds 3] [--steps 20]

DIR as in `benchmarks/race.py`, with train_dreambooth_lora_sdxl.py. A field is a base and a batch
size; one class image joins each instance image. As many contestants as the card has room for start
at once, make ready (inductor compiles for minutes), and then take their timed steps in turn, one at
a time on the card, `--steps` each a round. So a table takes minutes, and starts are not compared:
the race on the CPU does that. Results go to benchmarks/results/cuda_race.json and the README beside
this file.

The floor of our step is its arithmetic at the card's measured matrix rate, and for the update, at
its measured bandwidth, 28 bytes a number that trains (weight, gradient and two moments read, three
written).

Predictions, written before the first measurement (H200): 2.5 times the documented tier for both
methods at batch 1, since theirs is bound by launches and encodes pictures and text in each step,
and ours starts a step as one graph; 2 at batch 4; 1.3 times inductor for LoRA, which fuses what
ours runs apart, 1.5 for DreamBooth; SDXL 1.6 times the documented tier, being arithmetic; a quarter
of the floor.
"""

import argparse
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from lib.files.errors import BadInput
from lib.files.json_file import write_json
from lib.files.paths import ROOT
from lib.memory.fake_tensors import fake_device
from lib.memory.forecasting import forecast, hollow_base, hollow_inputs, plan, side
from lib.models.pipeline import quiet
from lib.step.training_step import Step

from . import contestants, sections
from .contestants import SCRIPTS, SDXL, lay_out, ours, theirs
from .cudatable import figures, headline
from .floor import machine
from .race import check, facts
from .random_base import PIPELINES, build
from .sections import OWN_README, into_file, middle
from .watched import SHORT

RESULTS = ROOT / "benchmarks" / "results" / "cuda_race.json"
FIELDS = [("sd15", 1), ("sd15", 4), ("sdxl", 1)]
CONTESTANTS = ("like", "thrifty", "documented", "inductor", "workers")
# processes of their data loader at best flags, but for their SD LoRA script: on CUDA it cannot pass
# embeddings to them
WORKERS = 4
PATIENCE = 420  # seconds until a contestant that is not ready, or ends no turn, is left out
UPDATE = 28  # bytes a number that trains
THEIRS, CONTEXT, ROOM = (
    1.35,
    2**29,
    0.9,
)  # of our bytes what theirs take, about; a process's own on the card; share of a card to fill


class Painter:
    """Draws smooth noise where a base model would draw class images: nobody looks at these."""

    def __init__(self, folder):
        self.name = str(folder)

    def generate(self, prompts, seeds, size=(512, 512), progress=None):
        """One picture per prompt and seed."""
        return [
            Image.effect_noise((16, 16), 80).convert("RGB").resize(size, Image.Resampling.BICUBIC)
            for _ in seeds
        ]


class Contestant(NamedTuple):
    """Who races: a base with a batch size, by a method."""

    base: str
    batch: int
    method: str
    who: str

    @property
    def name(self):
        """For its files."""
        return "_".join(map(str, self))

    @property
    def is_ours(self):
        """Whether it is one of `contestants.RECIPES`."""
        return self.who in contestants.RECIPES[self.method]

    def settings(self):
        """Ours, or what is as large as theirs."""
        recipe = contestants.RECIPES[self.method].get(
            self.who, contestants.LIKE if self.method == "lora" else {}
        )
        return plan(self.method, self.base, batch_size=self.batch, **recipe)

    def command(self, work, field, scripts, steps):
        """Its program and environment."""
        size = {"resolution": side(self.settings()), "batch": self.batch}
        if not self.is_ours:
            if (self.base, self.method, self.who) == ("sd15", "lora", "inductor"):
                field = replace(field, best={(self.method, "small"): (0, False)})
            return theirs(
                scripts, field, self.method, "small", self.who, steps, work / self.name, **size
            )
        path = work / f"{self.name}_settings.json"
        ours(
            field, self.method, "small", self.who, steps, work / self.name, batch_size=self.batch
        ).save(path)
        return ["lib", "train", path], {}


def entries(fields, who=CONTESTANTS):
    """[the contestants of a field and method] for each. diffusers has no script that trains all of
    SDXL, and only for its SD LoRA script is "workers" not what "inductor" is.
    """
    groups = []
    for base, batch in fields:
        for method in SCRIPTS:
            group = [Contestant(base, batch, method, one) for one in who]
            groups.append(
                [c for c in group if c.who != "workers" or (base, method) == ("sd15", "lora")]
            )
    return [group for group in groups if group[0][::2] != ("sdxl", "dreambooth")]


def heats(groups, room):
    """The groups, put together as long as they take no more than `room` bytes at once: rivals share
    a heat.
    """
    found, left = [], 0
    for group in groups:
        size = sum(
            forecast(c.settings()).bytes * (1 if c.is_ours else THEIRS) + CONTEXT for c in group
        )
        if not found or size > left:
            found, left = [*found, []], room
        found[-1] += group
        left -= size
    return found


def together(work, grounds, scripts, heat, rounds, size):
    """{contestant: what it found, with "steps" (seconds a step, one a round), or a sentence why it
    did not run}, timed turn about.
    """
    running, found, steps = {}, {}, SHORT + rounds * size
    for one in heat:
        program, environment = one.command(work, grounds[one.base].result(), scripts, steps)
        turns = {"BENCHMARK_TURNS": f"{work / one.name}:{size}"}
        running[one] = contestants.begin(work, one.name, program, steps, environment | turns)
    for one, process in running.items():
        reached(work / f"{one.name}.0.ready", process)
    for k in range(rounds):
        for one in heat[k % len(heat) :] + heat[: k % len(heat)]:
            (work / f"{one.name}.{k}.go").touch()
            reached(work / f"{one.name}.{k + 1}.ready", running[one])
    for one, process in running.items():
        try:
            result = contestants.end(work, one.name, process)
        except BadInput as error:
            found[one] = str(error)
            continue
        ends, begins = result["ends"], result["begins"]
        found[one] = result | {
            "steps": [(ends[SHORT + (k + 1) * size - 1] - begins[k]) / size for k in range(rounds)]
        }
    return found


def reached(path, process):
    """Wait until there is `path`, or its process ended; after `PATIENCE` end it, for it would run
    beside the others' turns.
    """
    limit = time.time() + PATIENCE
    while not path.exists() and process.poll() is None:
        if time.time() > limit:
            process.kill()
        time.sleep(0.01)


def floor(settings, rates):
    """Seconds of a step's arithmetic and of its update's bytes at a card's `rates`
    (`benchmarks.floor.machine`).
    """
    with fake_device("cuda"):
        base = hollow_base(settings.base)
        inputs, _ = hollow_inputs(base, settings)
        step = Step(base, settings)
        with FlopCounterMode(display=False) as counted:
            step(*inputs)
    update = UPDATE * sum(w.numel() for w in step.weights)
    return counted.get_total_flops() / rates["bf16"] + update / rates["bandwidth"]


def rows(found):
    """A row of the result for each contestant: rates and bytes, and what ours ("like") is of it in
    the same round.
    """
    for one, result in found.items():
        row = one._asdict()
        if isinstance(result, str):
            yield row | {"failed": result}
            continue
        row |= {
            "steps_per_second": middle([1 / s for s in result["steps"]]),
            "peak_bytes": result["peak_bytes"],
            "reserved_bytes": result["peak_by_category"]["reserved"],
        }
        mine = found.get(one._replace(who="like"), "it did not race")
        if not one.is_ours and not isinstance(mine, str):
            row["ours"] = middle([b / a for a, b in zip(mine["steps"], result["steps"])])
        yield row


def contestant(row):
    """Whose row of the result it is."""
    return Contestant(*(row[name] for name in Contestant._fields))


def with_floors(found):
    """The result with "floor" in the rows of ours: the share of a step that is the floor."""
    for row in found["rows"]:
        one = contestant(row)
        if one.is_ours and "failed" not in row:
            row["floor"] = (
                floor(one.settings(), found["machine"]) * row["steps_per_second"]["median"]
            )
    return found


def ground(work, base):
    """The `Field` of a base, in a folder."""
    work.mkdir(parents=True, exist_ok=True)
    folder = build(base, work / "base", dtype=torch.float32 if base == "sd15" else torch.bfloat16)
    field = lay_out(work, Painter(folder), side(plan("lora", base)), kinds=("small",))
    field.best.update({(method, "small"): (WORKERS, False) for method in SCRIPTS})
    return field


def field_of(text):
    """(base, batch size) of BASE:BATCH; argparse tells what is none."""
    base, _, batch = text.partition(":")
    if base not in PIPELINES or not batch.isdigit() or not int(batch):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no base and batch size, such as sd15:4 or sdxl:1"
        )
    return base, int(batch)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scripts", required=True, type=Path)
    parser.add_argument("--fields", nargs="+", type=field_of, default=FIELDS, metavar="BASE:BATCH")
    parser.add_argument("--who", nargs="+", default=CONTESTANTS, choices=CONTESTANTS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="of a turn")
    parser.add_argument(
        "--keep", type=Path, help="folder for runs and logs instead of a temporary one"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    try:
        check(args.scripts, (*SCRIPTS.values(), SDXL))
        if not torch.cuda.is_available():
            raise BadInput("No CUDA device is at hand: run this command on a machine with one.")
        if "sdxl" in dict(args.fields) and find_spec("torchvision") is None:
            raise BadInput("Their SDXL script needs torchvision itself: install it first.")
    except BadInput as error:
        raise SystemExit(str(error)) from None
    quiet()
    found = facts(args.scripts, "cuda") | {
        "machine": machine(torch.device("cuda")),
        "steps": args.steps,
    }
    found["rows"] = sections.rows_before(args.output, found, "device", "versions", "steps")
    torch.cuda.empty_cache()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.keep or Path(temporary)
        with ThreadPoolExecutor(
            1
        ) as aside:  # grounds are laid out while the first contestants make ready
            grounds = {base: aside.submit(ground, work / base, base) for base in dict(args.fields)}
            for heat in heats(entries(args.fields, args.who), ROOM * torch.cuda.mem_get_info()[1]):
                seen = together(work, grounds, args.scripts, heat, args.rounds, args.steps)
                found["rows"] = [
                    row for row in found["rows"] if contestant(row) not in seen
                ] + list(rows(seen))
                write_json(args.output, found)
    write_json(args.output, with_floors(found))
    if args.output == RESULTS:
        into_file(OWN_README, "cuda race", figures(found))
        into_file(sections.RESULTS_PAGE, "card", headline(found))
    print(figures(found))


if __name__ == "__main__":
    main()
