"""Checkpoints: all that a training needs to go on after an interruption as if there had been none.
safetensors and JSON only.

    <run>/checkpoint/step_000050/  weights.safetensors     the weights that train, as they are (fp32 or bf16)
                                   optimizer.safetensors   moments, and all random states
                                   state.json              step, log so far, what it belongs to, SHA-256 of the two files and of itself

A checkpoint is written under a temporary name and renamed, and the last two are kept: whatever
happens, a whole one is there. The data position is the number of steps, since pictures, noise and
timesteps follow from the seed alone. Once the run is finished they go.
"""

import hashlib
import json
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lib.files.errors import BadInput
from lib.files.json_file import read_json, write_json
from lib.files.text import gib, say
from lib.training.run_folder import NO_EFFECT_ON_WEIGHTS

FORMAT = "lora-dreambooth-workbench checkpoint, version 3"


CHECKPOINTS_HELD = 2


WRITING_SHARE = 0.04  # of the training's time that writing them may take


class Checkpoints:
    """The checkpoints of the run folder `run`, which trains by `settings` on the data set with the
    `record` of its dataset.json from the `Base` `base`.
    """

    def __init__(self, run, settings, record, base):
        self.folder, self.every = Path(run) / "checkpoint", settings.save_every
        self.about = {
            "format": FORMAT,
            "settings": {
                name: value
                for name, value in asdict(settings).items()
                if name not in NO_EFFECT_ON_WEIGHTS
            },
            "device": f"{base.device.type} in {str(base.pipe.unet.dtype).removeprefix('torch.')}",
            "base": weights_hash(base),
            "files": record["files"],
            "subject": record["subject"],
        }
        self.cost, self.written, self.last, self.damaged = 0.0, 0.0, None, []

    def check_room(self, step, shipped):
        """Raise BadInput if the disk has no room for the checkpoints of `step` and `shipped` bytes
        of weights, before the first step.
        """
        weights = sum(w.numel() * w.element_size() for w in step.weights)
        moments = sum(w.numel() for w in step.weights) * (
            2 if step.settings.optimizer == "adamw8bit" else 8
        )
        there = (
            sum(f.stat().st_size for f in self.folder.rglob("*") if f.is_file())
            if self.folder.is_dir()
            else 0
        )
        needed = (CHECKPOINTS_HELD + 1) * (weights + moments) * bool(self.every) + shipped - there
        free = shutil.disk_usage(self.folder.parent).free
        if needed > free:
            raise BadInput(
                f"The disk of {self.folder.parent} has {gib(free)} left, and the run takes up to"
                f" {gib(needed)}{' with its checkpoints, which save_every 0 leaves out' * bool(self.every)}:"
                " free some space or choose another output."
            )

    def due(self, step, clock):
        """Whether to write one after this many steps: every `save_every`, but not so often that it
        takes more than `WRITING_SHARE` of the time.
        """
        return (
            bool(self.every)
            and step % self.every == 0
            and clock.total - self.written >= self.cost / WRITING_SHARE
        )

    def write(self, step, log, clock, peak):
        """Write a checkpoint of the `Step` and its `Log`. Returns whether it is there; where the
        disk cannot take it, that is said.
        """
        if self.last == step.taken:  # there already
            return True
        began = time.perf_counter()
        target = self.folder / f"step_{step.taken:06d}"
        part = self.folder / f".{target.name}.{os.getpid()}.part"
        try:
            part.mkdir(parents=True, exist_ok=True)
            # To the CPU first: there, what is made contiguous takes nothing of the card.
            weights = {name: p.detach().cpu().contiguous() for name, p in step.named_weights()}
            files = {}
            for name, tensors in (
                ("weights", weights),
                ("optimizer", step.optimizer.tensors() | random_states()),
            ):
                save_file(tensors, part / f"{name}.safetensors")
                with open(part / f"{name}.safetensors", "rb") as file:
                    files[f"{name}.safetensors"] = hashlib.file_digest(file, "sha256").hexdigest()
            state = self.about | {
                "step": step.taken,
                "rows": log.rows,
                "peak": peak,
                "peak_cuda": clock.peak,
                "sha256": files,
            }
            write_json(part / "state.json", state | {"own": digest(state)})
            for old in (target, *self.damaged):  # one of which may be of this very step
                shutil.rmtree(old, ignore_errors=True)
            os.replace(part, target)
            self.last, self.damaged = step.taken, []
        except (OSError, SafetensorError) as error:
            shutil.rmtree(part, ignore_errors=True)
            say(
                f"no checkpoint could be written at step {step.taken}"
                f" ({str(error).splitlines()[0]}): free some space"
            )
        for old in self.all()[CHECKPOINTS_HELD:]:
            shutil.rmtree(old, ignore_errors=True)
        self.cost, self.written = time.perf_counter() - began, clock.total
        return self.last == step.taken

    def all(self):
        """The folders of whole checkpoints, newest first."""
        return sorted(self.folder.glob("step_*"), reverse=True) if self.folder.is_dir() else []

    def latest(self):
        """(state, weights, optimizer tensors) of the newest checkpoint that is not damaged, on the
        CPU; None if there is none at all.

        Raises BadInput if all are damaged, or belong to other settings, another kind of device,
        another base model or to photos that have changed since, saying which.
        """
        for part in self.folder.glob(".step_*"):  # a process was killed while it wrote that
            shutil.rmtree(part, ignore_errors=True)
        found = self.all()
        for folder in found:
            try:
                state = read_json(folder / "state.json")
                if state.get("format") != FORMAT:
                    raise BadInput(f"{folder / 'state.json'} is not of this version")
                if digest(state) != state["own"]:
                    raise BadInput("state.json is not as it was written")
                for name, written in state["sha256"].items():
                    with open(folder / name, "rb") as file:
                        if hashlib.file_digest(file, "sha256").hexdigest() != written:
                            raise BadInput(f"{name} is not as it was written")
                tensors = [
                    load_file(folder / f"{name}.safetensors") for name in ("weights", "optimizer")
                ]
            except (
                OSError,
                KeyError,
                TypeError,
                AttributeError,
                SafetensorError,
                BadInput,
            ) as error:
                reason = str(error).splitlines()[0]
                say(f"checkpoint {folder.name} is damaged ({reason}): trying the one before")
                self.damaged.append(folder)
                continue
            self._check_owner(state)
            self.last = state["step"]
            return state, *tensors
        if found:
            raise BadInput(
                f"No checkpoint in {self.folder} can be used ({reason}): delete that folder, and"
                " the training begins anew."
            )
        return None

    def _check_owner(self, state):
        mine = self.about
        other = [
            name for name, value in mine["settings"].items() if state["settings"].get(name) != value
        ]
        other += ["the subject's words"] * (state["subject"] != mine["subject"])
        if other:
            raise BadInput(
                f"The checkpoint in {self.folder} is of another training, by"
                f" {', '.join(other[:3])}: delete that folder to begin anew."
            )
        if state["device"] != mine["device"]:
            raise BadInput(
                f"The training in {self.folder.parent} was interrupted at step {state['step']} on"
                f" {state['device']}, and {mine['device']} draws other random numbers: go on there,"
                f" or delete {self.folder} to begin anew."
            )
        if state["base"] != mine["base"]:
            raise BadInput(
                f"The training in {self.folder.parent} was interrupted at step {state['step']}, and"
                f" its base model has changed since: bring that back, or delete {self.folder} to"
                " begin anew."
            )
        old, new = state["files"], mine["files"]
        words = [
            f"{n} is {'gone' if n not in new else 'new' if n not in old else 'another'}"
            for n in sorted(old | new)
        ]
        changed = [w for w, n in zip(words, sorted(old | new)) if old.get(n) != new.get(n)]
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise BadInput(
                f"The training in {self.folder.parent} was interrupted at step {state['step']}, and"
                f" its pictures have changed since ({', '.join(changed[:3])}{more}): put them back,"
                f" or delete {self.folder} to begin anew."
            )

    def clear(self):
        """Delete them: the run is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)


def digest(state):
    """SHA-256 of what state.json says, but for this."""
    said = {name: value for name, value in state.items() if name != "own"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def resume(step, weights, optimizer):
    """Put weights, moments and random states of a checkpoint into a fresh `Step`. Raises BadInput
    if they are of other weights.
    """
    mine = dict(step.named_weights())
    if {n: t.shape for n, t in weights.items()} != {n: p.shape for n, p in mine.items()}:
        raise BadInput(
            "The checkpoint is of other weights than these settings train: delete the checkpoint"
            " folder to begin anew."
        )
    with torch.no_grad():
        for name, p in mine.items():
            p.copy_(weights[name])
    step.optimizer.load(optimizer)
    torch.set_rng_state(optimizer["random.cpu"])
    if "random.cuda" in optimizer and torch.cuda.is_available():
        torch.cuda.set_rng_state(optimizer["random.cuda"])


def random_states():
    """torch's own random states; nothing else in a training draws from any other."""
    found = {"random.cpu": torch.get_rng_state()}
    return (
        found | {"random.cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else found
    )


def weights_hash(base):
    """A hash that tells base models apart without reading all of one: names, shapes and the first
    numbers of every weight of all parts, as they are in memory. `Base.fingerprint` is of the
    U-Net's files alone, and the same for another form of the same model.
    """
    base.wake()
    total = hashlib.sha256()
    for part in (base.pipe.unet, base.pipe.vae, *base.text_encoders.values()):
        for name, weight in part.named_parameters():
            total.update(
                f"{name} {tuple(weight.shape)}".encode()
                + weight.detach().flatten()[:16].float().cpu().numpy().tobytes()
            )
    return total.hexdigest()
