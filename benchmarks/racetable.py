"""The race (`benchmarks/race.py`) as Markdown."""

from lib.config.names import METHOD_NAMES

from .sections import spread

UNMEASURED = "Not measured on this version yet: `make race SCRIPTS=path/to/examples/dreambooth`.\n"
WHO = {
    "like": "ours, adapter as theirs",
    "preset": "ours, course's recipe",
    "lean": "ours, less memory",
    "thrifty": "ours, least memory",
    "documented": "theirs, as documented",
    "launched": "theirs, by accelerate launch",
    "best": "theirs, best flags",
    "inductor": "theirs, inductor",
    "workers": "theirs, inductor, data workers",
}
PHOTOS = {"small": "64 pixels", "large": "2.1 megapixels"}


def mib_cell(size: float | None) -> str:
    """Bytes as whole MiB, for a table's cell; a dash for what was not measured."""
    return f"{size / 2**20:.0f}" if size else "-"


def who(cell):
    """A contestant's name; DreamBooth has no adapter, so its "like" is the course's recipe."""
    return WHO["preset" if (cell["method"], cell["who"]) == ("dreambooth", "like") else cell["who"]]


def failure(cell):
    """Why a contestant did not run, as a cell."""
    return f"does not run here: {cell['failed'].split(chr(10))[0].replace('|', '/')[:140]}"


def figures(found):
    """The race as Markdown; None is a race that was not run."""
    if found is None:
        return UNMEASURED
    rounds = max(c["step"]["rounds"] for c in found["cells"] if "step" in c)
    lines = [
        (
            f"Measured on {found['device']}, torch {found['versions']['torch']}, diffusers"
            f" {found['versions']['diffusers']}: median (smallest to largest) of {rounds} rounds"
            " turn about; of least memory and inductor, one. Seconds for 500 steps are"
            " extrapolated: the start, 499 steady steps and the end; ours include preparing the"
            " photos, once. *Adapter as theirs*: rank 4, on attention. *Less memory*: LoRA has"
            " the adapter as theirs and computes its largest transformers again on the way back"
            " (the same numbers, in more time); DreamBooth keeps its"
            " weights in bf16. *Least memory*: all that the ladder of recipes has."
        ),
        "",
        (
            "| | photos | steps a second | seconds to the end of step 1 | seconds of 500 steps |"
            " bytes of the step, MiB | resident, MiB |"
        ),
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for c in found["cells"]:
        name = f"{METHOD_NAMES[c['method']]}: {who(c)} | {PHOTOS[c['photos']]}"
        if "failed" in c:
            lines.append(f"| {name} | {failure(c)} | | | | |")
        else:
            lines.append(
                f"| {name} | {spread(c['steps_per_second'])} | {spread(c['first'], 1)} |"
                f" {c['whole']['median']:.0f} | {mib_cell(c['peak_bytes'])} |"
                f" {mib_cell(c['resident_bytes'])} |"
            )
    lines += [
        "",
        (
            "Ours over theirs, in the same round (more is better for steps a second, less for the"
            " rest):"
        ),
        "",
        "| | photos | steps a second | seconds to step 1 | bytes of the step |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for r in found["ratios"]:
        peak = f"{r['peak_bytes']:.2f}" if r["peak_bytes"] else "-"
        pair = (
            f"{METHOD_NAMES[r['method']]}: {who({'method': r['method'], 'who': r['ours']})} /"
            f" {WHO[r['theirs']]}"
        )
        lines.append(
            f"| {pair} | {PHOTOS[r['photos']]} | {spread(r['steps_per_second'])} |"
            f" {spread(r['first'])} | {peak} |"
        )
    flags = [
        f"{METHOD_NAMES[b['method']]}, {PHOTOS[b['photos']]}: {b['workers']} data"
        f" workers{', 8-bit Adam' * b['eight_bit']}"
        for b in found["best"]
    ]
    lines += ["", f"The fastest of their flags here: {'; '.join(flags)}."]
    if "trained" in found:
        lines += trained(found["trained"])
    if "learning" in found:
        lines += learning(found["learning"])
    lines += ["", f"In their favour: {'; '.join(found['in_their_favour'])}."]
    return "\n".join(lines) + "\n"


def trained(found):
    """Lines on whole trainings by one recipe."""
    lines = [
        "",
        (
            "Trained to the end, one after the other, ours too by their documented recipe and"
            " learning rate, 500 steps, the photos prepared beforehand; losses on noise that is the"
            " same for all:"
        ),
        "",
        (
            "| | seconds, start to exit | as estimated above | loss, training photos | loss,"
            " held-out photos |"
        ),
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for run in found:
        name = "ours, their recipe" if run["who"] == "like" else WHO[run["who"]]
        lines.append(
            f"| {METHOD_NAMES[run['method']]}: {name} |"
            f" {run['seconds']:.0f} | {run['estimate']:.0f} |"
            f" {run['loss_train']:.3f} | {run['loss_held_out']:.3f} |"
        )
    return lines


def learning(found):
    """Lines on who learns how much in how many seconds."""
    lines = [
        "",
        (
            f"Fidelity is the mean DINO-type cosine of {found['pictures']} pictures with the"
            f" held-out photos: {found['base']:.3f} for the untouched base, {found['real']:.3f}"
            f" among real photos; the set level is {found['level']:.3f}, {found['share']:.0%} of"
            " the way. Losses are on noise that is the same for all: on the training photos, the"
            " lower the more was learnt; on held-out photos they fall, and rise again where a"
            " training goes on past its best. One seed, with the presets of that time (rate and"
            " steps in the table); those of today are under [PocketBench](#pocketbench)."
        ),
        "",
        (
            "| | learning rate | seconds to the level | steps | fidelity at the end | CLIP-T |"
            " loss, training photos | held-out, lowest (at step) | held-out, at the end |"
        ),
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for c in found["curves"]:
        last, lowest = c["points"][-1], min(c["points"], key=lambda point: point["loss_held_out"])
        reached = (
            f"{c['seconds_to_level']:.0f}"
            if c["seconds_to_level"] is not None
            else f"not in {last['seconds']:.0f}"
        )
        lines.append(
            f"| {METHOD_NAMES[c['method']]}: {c['who']} |"
            f" {c['rate']:g} | {reached} | {last['step']} |"
            f" {last['dino']:.3f} | {last['clip_t']:.3f} | {last['loss_train']:.3f} |"
            f" {lowest['loss_held_out']:.3f} ({lowest['step']}) | {last['loss_held_out']:.3f} |"
        )
    return lines
