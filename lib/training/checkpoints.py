"""Checkpoints: all that a training needs to go on after an interruption as if there had been none.

safetensors and JSON only. <run>/checkpoint/step_000050/ holds

- weights.safetensors: the weights that train, as they are (fp32 or bf16)
- optimizer.safetensors: moments, and all random states
- state.json: step, log so far, what it belongs to, SHA-256 of the two files and of itself

A checkpoint is written under a temporary name and renamed, and the last two stay: whatever happens,
a complete one is there. The data position is the number of steps, since pictures, noise and
timesteps follow from the seed alone. Once the run is finished they go.
"""

import hashlib
import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lib.config import Settings
from lib.files import BadInput, listed, read_json, say, whole_folder, write_json
from lib.files.text import first_line, rough_size
from lib.files.whole_writes import file_hash, size_of
from lib.models import Base
from lib.step import Step
from lib.training.run_folder import NO_EFFECT_ON_WEIGHTS, OLDER_SETTINGS
from lib.training.run_log import Clock, Log

FORMAT = "lora-dreambooth-workbench checkpoint, version 3"

HELD_AT_ONCE = 2  # the newest, and the one before, in case the newest is damaged

WRITING_SHARE = 0.04  # of the training's time that writing them may take

# What reading a damaged checkpoint may raise.
DAMAGED = (OSError, KeyError, TypeError, AttributeError, SafetensorError, BadInput)


def recorded_threads(run: Path) -> int | None:
    """The threads that the last checkpoint of a run was made with, None where nothing says so."""
    for folder in sorted((run / "checkpoint").glob("step_*"), reverse=True):
        try:
            return int(read_json(folder / "state.json")["threads"])
        except DAMAGED:  # or older
            continue
    return None


class Checkpoint(NamedTuple):
    """A checkpoint that was read, on the CPU: state.json, weights, and the optimizer's tensors."""

    state: dict[str, Any]
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]


class Checkpoints:
    """The checkpoints of the run folder `run`.

    It trains by `settings` on the data set with the `record` of its dataset.json, from `base`, in
    so many `processes`.
    """

    def __init__(
        self, run: Path, settings: Settings, record: dict[str, Any], base: Base, processes: int = 1
    ) -> None:
        self.folder, self.every = Path(run) / "checkpoint", settings.save_every
        recipe = asdict(settings).items()
        dtype = str(base.stored_denoiser.dtype).removeprefix("torch.")
        self.about = {
            "format": FORMAT,
            "settings": {name: v for name, v in recipe if name not in NO_EFFECT_ON_WEIGHTS},
            "device": f"{base.device.type} in {dtype}",
            "base": weights_hash(base),
            "processes": processes,
            "files": record["files"],
            "subject": record["subject"],
        }
        self.cost, self.written = 0.0, 0.0  # seconds of writing the last; of training until then
        self.last: int | None = None  # the step of the newest complete one
        self.damaged: list[Path] = []

    def check_disk_space(self, step: Step, shipped: int) -> None:
        """Raise BadInput, before the first step, if the disk is too small.

        It takes the checkpoints of `step` and `shipped` bytes of weights.
        """
        numbers = sum(w.numel() for w in step.weights)
        weights = sum(w.numel() * w.element_size() for w in step.weights)
        moments = numbers * (2 if step.settings.optimizer == "adamw8bit" else 8)
        checkpoints = (HELD_AT_ONCE + 1) * (weights + moments) if self.every else 0
        needed = checkpoints + shipped - size_of(self.folder)
        free = shutil.disk_usage(self.folder.parent).free
        if needed > free:
            without = " with its checkpoints, which save_every 0 leaves out" if self.every else ""
            raise BadInput(
                f"The disk of {self.folder.parent} has {rough_size(free)} left, and the run takes"
                f" up to {rough_size(needed)}{without}: free some space or choose another output."
            )

    def due(self, step: int, clock: Clock) -> bool:
        """Whether to write one after this many steps.

        Every `save_every`, but not so often that it takes more than `WRITING_SHARE` of the time.
        """
        if not self.every or step % self.every:
            return False
        return clock.total - self.written >= self.cost / WRITING_SHARE

    def write(self, step: Step, log: Log, clock: Clock, peak: dict[str, int] | None) -> bool:
        """Write a checkpoint of the `Step` and its `Log`. Returns whether it is there.

        Where the disk cannot take it, that is said.
        """
        if self.last == step.taken:  # there already
            return True
        began = time.perf_counter()
        target = self.folder / f"step_{step.taken:06d}"
        try:
            with whole_folder(target) as unfinished:
                state = self.about | {
                    "step": step.taken,
                    "rows": log.rows,
                    "peak": peak,
                    "peak_cuda": clock.peak,
                    "threads": torch.get_num_threads(),
                    "sha256": _save_tensors(step, unfinished),
                }
                write_json(unfinished / "state.json", state | {"own": digest(state)})
                for old in (target, *self.damaged):  # one of which may be of this very step
                    shutil.rmtree(old, ignore_errors=True)
            self.last, self.damaged = step.taken, []
        except (OSError, SafetensorError) as error:
            say(
                f"no checkpoint could be written at step {step.taken}"
                f" ({first_line(error)}): free some space"
            )
        for old in self.folders()[HELD_AT_ONCE:]:
            shutil.rmtree(old, ignore_errors=True)
        self.cost, self.written = time.perf_counter() - began, clock.total
        return self.last == step.taken

    def folders(self) -> list[Path]:
        """The folders of complete checkpoints, newest first."""
        return sorted(self.folder.glob("step_*"), reverse=True) if self.folder.is_dir() else []

    def read_latest(self) -> Checkpoint | None:
        """The newest checkpoint that is not damaged; None if there is none at all.

        Raises BadInput if all are damaged, or belong to other settings, another kind of device,
        another base model or to photos that have changed since, saying which.
        """
        for part in self.folder.glob(".step_*"):  # a process was killed while it wrote that
            shutil.rmtree(part, ignore_errors=True)
        reason = ""
        for folder in self.folders():
            try:
                found = _read(folder)
            except DAMAGED as error:
                reason = first_line(error)
                say(f"checkpoint {folder.name} is damaged ({reason}): trying the one before")
                self.damaged.append(folder)
                continue
            self._check_owner(found.state)
            self.last = found.state["step"]
            return found
        if reason:
            raise BadInput(
                f"No checkpoint in {self.folder} can be used ({reason}): delete that folder, and"
                " the training begins anew."
            )
        return None

    def _check_owner(self, state: dict[str, Any]) -> None:
        """Raise BadInput if the checkpoint of `state` is of another training."""
        mine, theirs = self.about, OLDER_SETTINGS | state["settings"]
        other = [n for n, value in mine["settings"].items() if theirs.get(n) != value]
        if state["subject"] != mine["subject"]:
            other.append("the subject's words")
        if other:
            raise BadInput(
                f"The checkpoint in {self.folder} is of another training, by"
                f" {', '.join(other[:3])}: delete that folder to begin anew."
            )
        interrupted = (
            f"The training in {self.folder.parent} was interrupted at step {state['step']}"
        )
        if state["device"] != mine["device"]:
            raise BadInput(
                f"{interrupted} on {state['device']}, and {mine['device']} draws other random"
                f" numbers: go on there, or delete {self.folder} to begin anew."
            )
        if (count := state.get("processes", 1)) != mine["processes"]:
            raise BadInput(
                f"{interrupted} in {count} process{'es' * (count > 1)}, and {mine['processes']}"
                f" add up in another order: go on in {count}, or delete {self.folder} to begin"
                " anew."
            )
        if state["base"] != mine["base"]:
            raise BadInput(
                f"{interrupted}, and its base model has changed since: bring that back, or delete"
                f" {self.folder} to begin anew."
            )
        old, new = state["files"], mine["files"]
        if changed := [name for name in sorted(old | new) if old.get(name) != new.get(name)]:
            words = (
                f"{name} is {'gone' if name not in new else 'another' if name in old else 'new'}"
                for name in changed
            )
            raise BadInput(
                f"{interrupted}, and its pictures have changed since"
                f" ({listed(words, 3)}): put them back, or delete {self.folder} to"
                " begin anew."
            )


def restore(step: Step, checkpoint: Checkpoint) -> None:
    """Put weights, moments and random states of a checkpoint into a fresh `Step`.

    Raises BadInput if they are of other weights.
    """
    _, weights, optimizer = checkpoint
    mine = dict(step.named_weights())
    if {n: t.shape for n, t in weights.items()} != {n: p.shape for n, p in mine.items()}:
        raise BadInput(
            "The checkpoint is of other weights than these settings train: delete the checkpoint"
            " folder to begin anew."
        )
    with torch.no_grad():
        for name, p in mine.items():
            p.copy_(weights[name])
    step.optimizer.load_state_dict(optimizer)
    torch.set_rng_state(optimizer["random.cpu"])
    if "random.cuda" in optimizer and torch.cuda.is_available():
        torch.cuda.set_rng_state(optimizer["random.cuda"])


def digest(state: dict[str, Any]) -> str:
    """SHA-256 of what state.json says, but for this."""
    content = {name: value for name, value in state.items() if name != "own"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def weights_hash(base: Base) -> str:
    """A hash that tells base models apart without reading all of one.

    It is of names, shapes and the first numbers of every weight of all parts, as they are in
    memory. `Base.fingerprint` is of the U-Net's files alone, and the same for another form of the
    same model.
    """
    base.reload()
    total = hashlib.sha256()
    for part in (base.stored_denoiser, base.pipe.vae, *base.text_encoders.values()):
        for name, weight in part.named_parameters():
            first = weight.detach().flatten()[:16].float().cpu().numpy()
            total.update(f"{name} {tuple(weight.shape)}".encode() + first.tobytes())
    return total.hexdigest()


def _save_tensors(step: Step, folder: Path) -> dict[str, str]:
    """Write the two files of tensors. Returns the SHA-256 of each, by its name."""
    # To the CPU first: there, what is made contiguous takes nothing of the card.
    weights = {name: p.detach().cpu().contiguous() for name, p in step.named_weights()}
    # torch's own random states: nothing else in a training draws from any other.
    optimizer = step.optimizer.state_dict() | {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        optimizer["random.cuda"] = torch.cuda.get_rng_state()
    save_file(weights, folder / "weights.safetensors")
    save_file(optimizer, folder / "optimizer.safetensors")
    files = "weights.safetensors", "optimizer.safetensors"
    return {name: file_hash(folder / name) for name in files}


def _read(folder: Path) -> Checkpoint:
    """The checkpoint in a folder. Raises one of `DAMAGED` if it is not as it was written."""
    state = read_json(folder / "state.json")
    if state.get("format") != FORMAT:
        raise BadInput(f"{folder / 'state.json'} is not of this version")
    if digest(state) != state["own"]:
        raise BadInput("state.json is not as it was written")
    for name, written in state["sha256"].items():
        if file_hash(folder / name) != written:
            raise BadInput(f"{name} is not as it was written")
    return Checkpoint(
        state,
        load_file(folder / "weights.safetensors"),
        load_file(folder / "optimizer.safetensors"),
    )
