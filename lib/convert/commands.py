"""What the commands `export`, `import`, `merge`, `extract` and `compose` do, line by line.

Each function yields the lines that `python -m lib` prints, and raises BadInput as what it calls
does.
"""

import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from lib.convert.adapter import diffusers_tensors, read_adapter
from lib.convert.composition import mix
from lib.convert.exporting import export_lora, run_facts
from lib.convert.interchange import export, extract_to, import_lora
from lib.convert.merging import merge
from lib.convert.verification import check_pictures, is_adapter
from lib.files.errors import BadInput
from lib.files.safetensors_file import save_weights_file


def exporting(
    source: str, to: str, out: str, base: str | None = None, **options: str | bool | None
) -> Iterator[str]:
    """Write a run or an adapter in the form `to`, and prove that it draws the same pictures."""
    done = export(source, to, out, base=base, **options)
    yield from done.lines()
    yield check_pictures(source, done.path, base_of(source, base))
    yield f"written: {done.path}, {done.bytes:,} bytes, in {done.seconds:.1f} s"


def importing(
    source: str, out: str, base: str | None, data: str | None, other_base: bool
) -> Iterator[str]:
    """Make a run folder of somebody's LoRA."""
    yield f"a run: {import_lora(source, out, base, data, other_base)}"


def merging(
    sources: Sequence[str], to: str, out: str, base: str | None = None, **options: str | bool | None
) -> Iterator[str]:
    """Write LoRAs, each with its weight, into their base; one at full strength is proved too."""
    names, weights = zip(*map(_with_weight, sources))
    done = merge(names, to, out, weights=weights, base=base, **options)
    yield from done.lines()
    if weights == (1.0,):
        yield check_pictures(names[0], done.path, base_of(names[0], base))
    yield f"written: {done.path}, {done.bytes:,} bytes, in {done.seconds:.1f} s"


def extracting(
    source: str, to: str, out: str, rank: int, **options: str | bool | None
) -> Iterator[str]:
    """Cut a LoRA of `rank` out of a DreamBooth run."""
    done, kept = extract_to(source, rank, to, out, **options)
    yield (
        f"rank {rank} keeps {kept.of_layers:.1%} of the layers' change (sum of S^2),"
        f" {kept.of_all:.1%} of all weights'"
    )
    yield from done.lines()
    yield f"written: {done.path}, {done.bytes:,} bytes"


def composing(
    sources: Sequence[str], to: str, out: str, how: str, base: str | None, title: str | None
) -> Iterator[str]:
    """Put LoRAs, each with its weight, into one; `how` is a key of `composition.MIXES`."""
    named = [_with_weight(source) for source in sources]
    base = base or base_of(named[0][0])
    labels = [f"{n}_{_label(path)}" for n, (path, _) in enumerate(named, 1)]
    adapters = {label: path for label, (path, _) in zip(labels, named)}
    weights = {label: weight for label, (_, weight) in zip(labels, named)}
    mixed = mix(adapters, how, weights, base)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        save_weights_file(path, *diffusers_tensors(mixed))
        done = export_lora(path, to, out, base, title)
    yield f"{mixed.source}: rank {', '.join(map(str, sorted(mixed.ranks)))}"
    yield from done.lines()
    yield f"written: {done.path}, {done.bytes:,} bytes, in {done.seconds:.1f} s"


def base_of(source: str, base: str | None = None) -> str:
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


def _label(path: str) -> str:
    """A file's or folder's name, in the letters that an adapter's name may have."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", Path(path).stem)[:30]


def _with_weight(text: str) -> tuple[str, float]:
    """("file", 0.6) of "file=0.6"; the weight is 1 where none is given."""
    name, equals, number = text.rpartition("=")
    if not equals or Path(text).exists():
        return text, 1.0
    try:
        return name, float(number)
    except ValueError:
        raise BadInput(f"{text} does not end in a weight: write it as {name}=0.6.") from None
