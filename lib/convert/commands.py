"""Files for other tools, and files from them.

python -m lib.convert.commands export runs/course/lora --to kohya --out robot.safetensors        #
ComfyUI, WebUI, Forge; also diffusers, peft python -m lib.convert.commands export
runs/course/dreambooth --to checkpoint --out robot.safetensors        # one file; or diffusers, a
folder python -m lib.convert.commands merge runs/course/lora other.safetensors=0.6 --to checkpoint
--out both.safetensors python -m lib.convert.commands extract runs/course/dreambooth --rank 16 --to
kohya --out robot_r16.safetensors python -m lib.convert.commands import theirs.safetensors --base
pocket --out runs/theirs python -m lib.convert.commands card runs/course/lora --out card python -m
lib.convert.commands to-kohya runs/course/data --out kohya;  python -m lib.convert.commands
from-kohya kohya --out runs/mine/data
"""

import argparse
import sys
from pathlib import Path

from lib.convert.adapter import read_adapter
from lib.convert.exporting import ADAPTER_FORMS, run_facts
from lib.convert.interchange import export, extract_to, import_lora
from lib.convert.merging import MODEL_FORMS, merge
from lib.convert.model_card import write_card
from lib.convert.verification import check_pictures, is_adapter
from lib.dataset.kohya_folders import from_kohya, to_kohya
from lib.files.errors import BadInput

HELP = {
    "export": "write a run for other tools",
    "merge": "write LoRAs into their base",
    "extract": "a LoRA from a full fine-tune",
    "import": "make a run of somebody's LoRA",
    "card": "write a model card",
    "to-kohya": "data for Kohya's trainer",
    "from-kohya": "data from Kohya's folders",
}


def main(arguments=None):
    """The command line. Returns what `sys.exit` takes: 0, or one sentence, which makes the exit
    code 1.
    """
    parser = argparse.ArgumentParser(
        prog="python -m lib.convert.commands",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    forms = {
        "export": (*ADAPTER_FORMS, "checkpoint"),
        "merge": MODEL_FORMS,
        "extract": ADAPTER_FORMS,
    }
    for name, about in HELP.items():
        command = commands.add_parser(name, help=about, description=about)
        weight = "; FILE=0.6 gives a weight" if name == "merge" else ""
        command.add_argument(
            "source", nargs="+" if name == "merge" else None, help=f"a run, file or folder{weight}"
        )
        command.add_argument("--out", required=True, help="where it goes")
        if name in forms:
            command.add_argument("--to", required=True, choices=forms[name], help="the form")
            command.add_argument("--title", help="the name that tools show (default: the file's)")
        if name not in ("card", "to-kohya", "from-kohya"):
            command.add_argument(
                "--base", help="the base model (default: the one that the source names)"
            )
        if name in ("export", "merge", "extract", "import"):
            command.add_argument(
                "--other-base",
                action="store_true",
                help="use it on another base of the same family",
            )
        if name == "extract":
            command.add_argument("--rank", type=int, default=16)
        if name == "import":
            command.add_argument("--data", help="a data set to judge it by")
        if name == "from-kohya":
            command.add_argument(
                "--resolution",
                type=int,
                default=64,
                help="side of the pictures (default: the pocket base's 64)",
            )
            command.add_argument(
                "--aspect",
                default="square",
                help="square (default), or photo: as the pictures are, in buckets",
            )
    given = parser.parse_args(arguments)
    try:
        for line in _run(given):
            print(line, flush=True)
    except BadInput as error:
        return str(error)
    return 0


def _run(given):
    """Do what the command line asks, yielding lines to print."""
    options = {
        key: value for key, value in vars(given).items() if key in ("base", "title", "other_base")
    }
    if given.command == "card":
        yield f"written: {write_card(given.source, given.out)}"
    elif given.command == "to-kohya":
        yield f"written: {to_kohya(given.source, given.out)}"
    elif given.command == "from-kohya":
        dataset, notes = from_kohya(given.source, given.out, given.resolution, aspect=given.aspect)
        yield from notes
        yield (
            f"{len(dataset.train)} pictures to train on, {len(dataset.test)} held out,"
            f" {len(dataset.class_images)} of the class"
        )
        yield f"written: {dataset.root}"
    elif given.command == "import":
        yield (
            "a run:"
            f" {import_lora(given.source, given.out, given.base, given.data, given.other_base)}"
        )
    elif given.command == "extract":
        done, kept = extract_to(given.source, given.rank, given.to, given.out, **options)
        yield (
            f"rank {given.rank} keeps {kept.of_layers:.1%} of the layers' change (sum of S^2),"
            f" {kept.of_all:.1%} of all weights'"
        )
        yield from (*done.lines(), f"written: {done.path}, {done.bytes:,} bytes")
    elif given.command == "export":
        done = export(given.source, given.to, given.out, **options)
        yield from done.lines()
        yield check_pictures(given.source, done.path, base_of(given.source, given.base))
        yield f"written: {done.path}, {done.bytes:,} bytes, in {done.seconds:.1f} s"
    else:
        names, weights = zip(*map(_weighed, given.source))
        done = merge(names, given.to, given.out, weights=weights, **options)
        yield from done.lines()
        if weights == (1.0,):
            yield check_pictures(names[0], done.path, base_of(names[0], given.base))
        yield f"written: {done.path}, {done.bytes:,} bytes, in {done.seconds:.1f} s"


def base_of(source, base=None):
    """The name of a source's base model: the one given, or the one that the run or the header
    names, or the pocket base.
    """
    known = run_facts(source).get("settings", {}).get("base")
    return (
        base
        or known
        or (is_adapter(source) and read_adapter(source).metadata.get("workbench.base"))
        or "pocket"
    )


def _weighed(text):
    """("file", 0.6) of "file=0.6"; the weight is 1 where none is given."""
    name, equals, number = text.rpartition("=")
    if not equals or Path(text).exists():
        return text, 1.0
    try:
        return name, float(number)
    except ValueError:
        raise BadInput(f"{text} does not end in a weight: write it as {name}=0.6.") from None


if __name__ == "__main__":
    sys.exit(main())
