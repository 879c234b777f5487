"""Files for other tools, and files from them.

    python -m lib.ship export runs/course/lora --to kohya --out robot.safetensors        # ComfyUI, WebUI, Forge; also diffusers, peft
    python -m lib.ship export runs/course/dreambooth --to checkpoint --out robot.safetensors        # one file; or diffusers, a folder
    python -m lib.ship merge runs/course/lora other.safetensors=0.6 --to checkpoint --out both.safetensors
    python -m lib.ship extract runs/course/dreambooth --rank 16 --to kohya --out robot_r16.safetensors
    python -m lib.ship import theirs.safetensors --base pocket --out runs/theirs
    python -m lib.ship card runs/course/lora --out card
    python -m lib.ship to-kohya runs/course/data --out kohya;  python -m lib.ship from-kohya kohya --out runs/mine/data
"""

import argparse
import sys
import tempfile
from pathlib import Path

from .adapter import read_adapter, to_diffusers
from .card import write_card
from .compose import use
from .export import FORMS, check_out, export_lora, facts, with_base
from .extract import extract
from .families import Pocket, family_of
from .fit import check_fit
from .kohya_data import from_kohya, to_kohya
from .merge import FORMS as WHOLE
from .merge import merge
from .proof import is_adapter, load_any, same_pictures
from .safefile import save_weights_file
from .settings import LIMITS, BadInput, Settings
from .target import read_target

ROUNDING = 40  # of 255: how far a colour value may move where merged weights were rounded to fp16 (an edge that shifts by a hair)
# Of 255, the mean over all colour values: what is allowed on CUDA, where runs may differ in the last bit and weights are bf16, so that the
# largest says nothing. Measured on the pocket base, on a CPU: 1.0 for a merge in bf16, 1.3 for bf16 against fp32, and 6.6 for an adapter
# at nine tenths of its strength, 31 at half of it.
ON_CUDA = 4
HELP = {"export": "write a run for other tools", "merge": "write LoRAs into their base", "extract": "a LoRA from a full fine-tune",
        "import": "make a run of somebody's LoRA", "card": "write a model card", "to-kohya": "data for Kohya's trainer",
        "from-kohya": "data from Kohya's folders"}


def export(source, to, out, **options):
    """Export a run or an adapter in any form: LoRAs by `export_lora`, DreamBooth runs by `merge`, to which `options` go."""
    if facts(source).get("settings", {}).get("method") == "dreambooth":
        if to not in WHOLE:
            raise BadInput(f"{source} is a DreamBooth run, a whole model: export it to {' or '.join(WHOLE)}, or extract a LoRA from it.")
        return merge(source, to, out, **options)
    if to == "checkpoint":
        return merge(source, to, out, **options)
    return export_lora(source, to, out, **options)


def extract_to(run, rank, to, out, base=None, title=None, progress=None, other_base=False):
    """Extract a LoRA and export it. Returns (`Exported`, what was `Kept`)."""
    check_out(out, folder=to == "peft")
    adapter, kept = extract(run, rank, base, title, progress, other_base)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        save_weights_file(path, *to_diffusers(adapter))
        return export_lora(path, to, out, base or facts(run).get("settings", {}).get("base"), title), kept


def import_lora(source, out, base=None, data=None, other_base=False):
    """Make a run folder in `out` from somebody's LoRA in any form, so that all here that takes a run takes it: load, combine, merge.

    Settings come from its header where it has them. `data`: a data set to judge it by. Returns the folder.
    """
    out = Path(out)
    adapter, target = with_base(source, base)
    check_fit(adapter, target, other_base)
    if out.exists():
        raise BadInput(f"The output {out} exists: choose another folder.")
    said = adapter.metadata
    rank, layer = max(adapter.ranks), next(layer for _, _, layer in adapter)
    said = {"steps": said.get("ss_steps") or said.get("ss_max_train_steps"), "seed": said.get("ss_seed"), "rank": rank,
            "learning_rate": said.get("ss_unet_lr") or said.get("ss_learning_rate"), "alpha": layer.alpha}
    told = {name: _number(name, text) for name, text in said.items()}
    settings = Settings.preset("lora", target.name, data=str(data or "-"), output=str(out), **told)
    save_weights_file(out / "adapter.safetensors", *to_diffusers(adapter))
    settings.save(out / "settings.json")
    return out


def _number(name, text):
    """What a header says of a setting, brought into the setting's limits; None for what is no number."""
    low, high = LIMITS[name]
    try:
        return type(low)(min(max(float(text), low), high)) if text is not None else None
    except ValueError:
        return None


def prove(source, out, base, cuda=None):
    """Draw the same prompts and seeds with `source` and with the written `out` on `base`; say how far apart the pictures are.

    Adapters must draw the same to the last bit, merged models but for rounding, and both on average where `cuda` (by default: where there
    is a GPU). On a processor only the pocket base is drawn: larger ones take minutes, and were read back tensor by tensor. Raises BadInput
    if the pictures differ by more.
    """
    import numpy as np
    import torch

    cuda = torch.cuda.is_available() if cuda is None else cuda
    if family_of(base) is not Pocket and not cuda:
        return "pictures: not drawn, for on a processor this base takes minutes (every tensor was read back)"
    ours, allowed = load_any(source), 0
    if is_adapter(source):
        adapter = read_adapter(source, read_target(base).layers)
        uneven = len({layer.alpha for _, _, layer in adapter}) > 1  # then `one_alpha` rounds once more
        ours, allowed = (lambda model: use(model, {"source": adapter}, other_base=True)), ROUNDING if uneven or not is_adapter(out) else 0
    kind, measure, allowed = ("mean", np.mean, ON_CUDA) if cuda else ("largest", np.max, allowed)
    apart = same_pictures(base, ours, load_any(out), measure=measure)
    said = f"{kind} difference {round(apart, 2)} of 255"
    if apart > allowed:
        raise BadInput(f"{out} does not draw what {source} draws ({said}, {allowed} allowed): an error of the export, please report it.")
    return f"pictures: the same for the same seeds{', but for rounding' if apart else ''} ({said})"


def main(arguments=None):
    """The command line. Returns what `sys.exit` takes: 0, or one sentence, which makes the exit code 1."""
    parser = argparse.ArgumentParser(prog="python -m lib.ship", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    forms = {"export": (*FORMS, "checkpoint"), "merge": WHOLE, "extract": FORMS}
    for name, about in HELP.items():
        command = commands.add_parser(name, help=about, description=about)
        weight = "; FILE=0.6 gives a weight" if name == "merge" else ""
        command.add_argument("source", nargs="+" if name == "merge" else None, help=f"a run, file or folder{weight}")
        command.add_argument("--out", required=True, help="where it goes")
        if name in forms:
            command.add_argument("--to", required=True, choices=forms[name], help="the form")
            command.add_argument("--title", help="the name that tools show (default: the file's)")
        if name not in ("card", "to-kohya", "from-kohya"):
            command.add_argument("--base", help="the base model (default: the one that the source names)")
        if name in ("export", "merge", "extract", "import"):
            command.add_argument("--other-base", action="store_true", help="use it on another base of the same family")
        if name == "extract":
            command.add_argument("--rank", type=int, default=16)
        if name == "import":
            command.add_argument("--data", help="a data set to judge it by")
        if name == "from-kohya":
            command.add_argument("--resolution", type=int, default=64, help="side of the pictures (default: the pocket base's 64)")
            command.add_argument("--aspect", default="square", help="square (default), or photo: as the pictures are, in buckets")
    given = parser.parse_args(arguments)
    try:
        for line in _run(given):
            print(line, flush=True)
    except BadInput as error:
        return str(error)
    return 0


def _run(given):
    """Do what the command line asks, yielding lines to print."""
    options = {key: value for key, value in vars(given).items() if key in ("base", "title", "other_base")}
    if given.command == "card":
        yield f"written: {write_card(given.source, given.out)}"
    elif given.command == "to-kohya":
        yield f"written: {to_kohya(given.source, given.out)}"
    elif given.command == "from-kohya":
        dataset, notes = from_kohya(given.source, given.out, given.resolution, aspect=given.aspect)
        yield from notes
        yield f"{len(dataset.train)} pictures to train on, {len(dataset.test)} held out, {len(dataset.class_images)} of the class"
        yield f"written: {dataset.root}"
    elif given.command == "import":
        yield f"a run: {import_lora(given.source, given.out, given.base, given.data, given.other_base)}"
    elif given.command == "extract":
        done, kept = extract_to(given.source, given.rank, given.to, given.out, **options)
        yield f"rank {given.rank} keeps {kept.of_layers:.1%} of the layers' change (sum of S^2), {kept.of_all:.1%} of all weights'"
        yield from (*done.lines(), f"written: {done.path}, {done.bytes:,} bytes")
    elif given.command == "export":
        done = export(given.source, given.to, given.out, **options)
        yield from done.lines()
        yield prove(given.source, done.path, base_of(given.source, given.base))
        yield f"written: {done.path}, {done.bytes:,} bytes, in {done.seconds:.1f} s"
    else:
        names, weights = zip(*map(_weighed, given.source))
        done = merge(names, given.to, given.out, weights=weights, **options)
        yield from done.lines()
        if weights == (1.0,):
            yield prove(names[0], done.path, base_of(names[0], given.base))
        yield f"written: {done.path}, {done.bytes:,} bytes, in {done.seconds:.1f} s"


def base_of(source, base=None):
    """The name of a source's base model: the one given, or the one that the run or the header names, or the pocket base."""
    known = facts(source).get("settings", {}).get("base")
    return base or known or (is_adapter(source) and read_adapter(source).metadata.get("workbench.base")) or "pocket"


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
