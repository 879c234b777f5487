"""The weights of steps along a training, kept to be chosen from afterwards (`Settings.keep`).

Each lies in the run folder as a small run of its own, kept/step_000075, that whatever takes a run
takes: drawing, judging, exporting, merging.
"""

import shutil
from pathlib import Path
from typing import Any

from lib.config import Settings
from lib.files import BadInput, listed, read_json, write_json
from lib.models import Base
from lib.step import save_weights
from lib.step.run_weights import weight_bytes

KEPT = "kept"


def keep_step(base: Base, settings: Settings, step: int) -> None:
    """Write the weights that `base` has at `step` into its run, in place of others if the best are
    kept.
    """
    folder = Path(settings.output).expanduser() / KEPT / f"step_{step:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    settings.save(folder / "settings.json")
    save_weights(base, settings, folder)
    if settings.keep == "best":
        for other in kept_steps(settings.output).values():
            if other != folder:
                shutil.rmtree(other)


def kept_steps(run: str | Path) -> dict[int, Path]:
    """{step: folder} of the weights that a run keeps beside those of its last step."""
    found = sorted((Path(run).expanduser() / KEPT).glob("step_*"))
    return {int(folder.name[5:]): folder for folder in found if weight_bytes(folder)}


def tell_kept(run: Path, measured: dict[str, Any]) -> None:
    """Give each kept step the run's `measured`, which ships beside weights, with its own step."""
    for step, folder in kept_steps(run).items():
        own = {"steps": step, "file_bytes": weight_bytes(folder)}
        write_json(folder / "metrics.json", measured | own)


def at_step(run: str | Path, step: int) -> Path:
    """The folder with a run's weights of `step`: one that it keeps, or itself for its last.

    Raises BadInput, naming the steps that were kept, for any other.
    """
    metrics = Path(run).expanduser() / "metrics.json"
    last = read_json(metrics).get("steps") if metrics.is_file() else None
    found = kept_steps(run) | ({last: Path(run)} if last else {})
    if step not in found:
        kept = listed([str(known) for known in sorted(found)]) or "none"
        raise BadInput(
            f"Run {run} keeps no weights of step {step}, only of {kept}: choose one of those, or"
            " train with the setting keep 'all' (LoRA) or 'best'."
        )
    return found[step]
