"""The race on a card (`benchmarks/cuda_race.py`) as Markdown."""

from itertools import product

from lib.config.names import METHOD_NAMES

from .racetable import WHO, failure, who
from .sections import spread

UNMEASURED = "Not measured on this version yet: `python -m benchmarks.cuda_race --scripts DIR`.\n"
TITLES = {"sd15": "SD 1.5, 512 pixels", "sdxl": "SDXL, 1024 pixels"}


def figures(found):
    """The race as Markdown; None is one that was not run."""
    if found is None:
        return UNMEASURED
    m = found["machine"]
    lines = [
        (
            f"On {found['device']}, torch {found['versions']['torch']}, diffusers"
            f" {found['versions']['diffusers']}: {m['bf16'] / 1e12:.0f} TFLOP a second in bf16,"
            f" {m['bandwidth'] / 1e12:.1f} TB a second. Median (smallest to largest) of turns of"
            f" {found['steps']} steps; one class image joins each instance image."
        ),
        "",
        (
            "| | batch | steps a second | ours over theirs | share of the floor | GiB allocated |"
            " GiB reserved |"
        ),
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in found["rows"]:
        name = f"{TITLES[r['base']]}, {METHOD_NAMES[r['method']]}: {who(r)}"
        if "failed" in r:
            lines.append(f"| {name} | {r['batch']} | {failure(r)} | | | | |")
            continue
        over, share = (
            ("ours" in r and spread(r["ours"])) or "",
            f"{r['floor']:.0%}" if "floor" in r else "",
        )
        sizes = [
            f"{r[name] / 2**30:.1f}" if r[name] else "-"
            for name in ("peak_bytes", "reserved_bytes")
        ]
        lines.append(
            f"| {name} | {r['batch']} | {spread(r['steps_per_second'])} | {over} | {share} |"
            f" {' | '.join(sizes)} |"
        )
    return "\n".join(lines) + "\n"


def headline(found):
    """One sentence a field and method on ours against theirs, for the project's README; None is a
    race that was not run.
    """
    if found is None:
        return UNMEASURED
    ran, words = [r for r in found["rows"] if "failed" not in r], []
    for mine in (r for r in ran if r["who"] == "like"):
        rivals = [
            r
            for r in ran
            if all(r[k] == mine[k] for k in ("base", "batch", "method")) and "ours" in r
        ]
        over = ", ".join(
            f"{r['ours']['median']:.1f} times {WHO[r['who']].replace(',', '')}" for r in rivals
        )
        where = f"{TITLES[mine['base']]}, batch {mine['batch']}, {METHOD_NAMES[mine['method']]}"
        words.append(f"{where}: {mine['steps_per_second']['median']:.1f} steps a second, {over}")
    return f"On {found['device']}, random weights: {'; '.join(words)}. {missing(ran)}\n"


def missing(ran):
    """A sentence on what is wanted (SD 1.5 at batch 1 and 4, SDXL at 1) and has not been measured
    yet; "" where all has.
    """
    there, words = (
        {tuple(row[name] for name in ("base", "batch", "method", "who")) for row in ran},
        [],
    )
    for (base, batch), method in product((("sd15", 1), ("sd15", 4), ("sdxl", 1)), METHOD_NAMES):
        tiers = {"as documented": ("documented",), "inductor": ("inductor", "workers")}
        lacks = [
            tier
            for tier, names in tiers.items()
            if not any((base, batch, method, name) in there for name in names)
        ]
        if lacks and (base, method) != ("sdxl", "dreambooth"):  # for which they have no script
            words.append(
                f"{TITLES[base].partition(',')[0]}, batch {batch}, {METHOD_NAMES[method]} against theirs"
                f" {' and '.join(lacks)}"
            )
    return f"Not measured yet: {'; '.join(words)}." if words else ""
