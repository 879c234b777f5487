"""The one training loop, for both methods: the same photos, the same recipe, one switch.

    run = train(preset("lora", data="runs/course/data", output="runs/mine"))

Every run of the same data and seed sees the same pictures, noise and timesteps in the same order,
whichever weights train. The switch is in `Step` (`lib.step.methods.trainable`). From the shell:
`python -m lib train settings.json`.
"""

import errno
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from lib.config import Settings
from lib.dataset.imagefolder import Dataset, Item, load_dataset, read_record
from lib.files import BadInput, say, write_json
from lib.memory.ladder import recipes, step_down
from lib.models import Base, load_base, out_of_memory, reclaim
from lib.models.devices import held_threads
from lib.step import Step, save_weights, tuned_parts
from lib.step.quantization import supported_settings
from lib.training.batches import Cached, batches, cache_latents, gather, prior_items, repeated
from lib.training.checkpoints import Checkpoints, recorded_threads, restore
from lib.training.kept_steps import tell_kept
from lib.training.processes import Processes, joined
from lib.training.recipe_choice import (
    PeakMeter,
    choose_recipe,
    dtype_to_train,
    reload_trained_parts,
)
from lib.training.run_folder import (
    create_run_folder,
    data_hash,
    inspect_run_folder,
    lock_run_folder,
)
from lib.training.run_log import READ_EVERY, Clock, Log, NotFinite, Pace, State, metrics
from lib.training.samples import draw_samples, memory_suffices, read_samples, samples_due

MEASURED = "what is measured along the way"  # said where memory does not suffice for a watcher

Watcher = Callable[[State], object]

# What an OSError says when a file cannot be written, and what helps.
UNWRITABLE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO), "free some space"),
    **dict.fromkeys((errno.EROFS, errno.EACCES), "make it writable"),
}


@dataclass(frozen=True)
class Training:
    """What stays the same when memory runs out and a smaller recipe goes on.

    `items` are the pictures of each source, instance images first; `caches` their latents and
    conditions. Of several `processes` the first alone writes, and has `watchers`.
    """

    processes: Processes
    base: Base
    dataset: Dataset
    run: Path
    items: list[list[Item]]
    caches: list[Cached]
    checkpoints: Checkpoints
    state: State
    watchers: list[Watcher]


def train(settings: Settings, base: Base | None = None, watchers: Sequence[Watcher] = ()) -> Path:
    """Train by `settings` and return the run folder. `base`, a fresh base model, is used up.

    Each of `watchers` is called as watcher(state) after every step; see `State`. A run that was
    trained already is returned at once, one that was interrupted goes on from its last checkpoint,
    bit for bit. Ctrl-C ends the training after the current step with a usable result, which the
    same call would take further. When memory runs out, it goes on from the last checkpoint, a rung
    down `lib.memory.ladder`.

    Raises BadInput before anything slow if the settings, the data set, the base or the disk do not
    fit, or another process trains there, and NotFinite when a loss or gradient is no number; what
    was learnt until the last checkpoint is saved then.
    """
    dataset = load_dataset(settings.data)
    with joined(settings) as processes, ExitStack() as stack:
        if processes.first:
            stack.enter_context(lock_run_folder(settings.output))
        run, found = processes.of_first(lambda: inspect_run_folder(settings, dataset))
        if found == "finished":
            say(
                f"{run} has been trained already, by the same settings on the same data: it is"
                " returned as it is"
            )
            # Left where a process was killed at the very end.
            shutil.rmtree(run / "checkpoint", ignore_errors=True)
            return run
        base = base or load_base(settings.base, processes.device)
        check_texts(base, dataset, prior_items(settings, dataset))
        base.side = settings.resolution
        _ = base.fingerprint  # metrics.json needs it, when the base's files may have changed
        recipe = choose_for_all(supported_settings(settings, base.device), base, processes)
        if found == "new":
            processes.of_first(lambda: create_run_folder(run, settings))
        # Sums depend on the threads that they are taken in.
        threads = processes.threads(recorded_threads(run) if found == "interrupted" else None)
        with held_threads(threads):
            training = prepare(settings, base, dataset, run, processes)
            if processes.first:
                training.watchers.extend(watchers)
            if base.device.type == "cuda" and dtype_to_train(recipe):
                reload_trained_parts(base, recipe)
            with ctrl_c_stops(training.state, several=processes.count > 1):
                return run_within_memory(recipe, training)


def choose_for_all(settings: Settings, base: Base, processes: Processes) -> Settings:
    """The recipe that memory suffices for in every process, each of which takes its part.

    Raises BadInput where there is none.
    """
    if processes.count == 1:
        return choose_recipe(settings, base)
    rungs = [recipe for recipe, _ in recipes(processes.portion(settings), base.device)]
    chosen = choose_recipe(rungs[0], base)
    lowest = rungs[processes.largest(rungs.index(chosen))]
    if lowest.fused_backward:
        raise BadInput(
            "Memory suffices only with weights updated within the backward pass, which several"
            " processes cannot do: launch one process, or train a LoRA."
        )
    passes = max(lowest.accumulate, settings.accumulate)
    return lowest.replace(batch_size=settings.batch_size, accumulate=passes)


def check_texts(base: Base, dataset: Dataset, prior: Sequence[Item]) -> None:
    """Raise BadInput unless the identifier reaches the text encoders in each photo's caption.

    And in none of a prior picture.
    """
    identifier = dataset.subject.identifier
    base.check_words(dataset.subject.class_noun, identifier)
    base.check_captions(dataset.captions, identifier)
    for item in prior:
        if base.sees(identifier, item.caption):
            raise BadInput(
                f"The class image {item.path.name} has the caption {item.caption!r}, which holds"
                f" the identifier {identifier!r}: prepare the data set again, with class images"
                " of the plain class."
            )


def prepare(
    settings: Settings, base: Base, dataset: Dataset, run: Path, processes: Processes
) -> Training:
    """What the loop reads: latents and conditions, encoded once.

    Raises BadInput where memory runs out, or the processes see different data or bases.
    """
    record = read_record(dataset.root) or {}
    checkpoints = Checkpoints(run, settings, record, base, processes.count)
    processes.check_same("settings, photos, base models or devices", checkpoints.about)
    prior = prior_items(settings, dataset)
    say(f"caching the latents of {len(dataset.train)} instance and {len(prior)} class images")
    items = [repeated(some) for some in (dataset.train, prior) if some]
    try:
        caches = [cache_latents(base, some, settings.text_encoder_rate == 0) for some in items]
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise BadInput(
            f"Memory ran out while pictures of {base.resolution} pixels were encoded, before the"
            " first step: free memory that other programs hold, or lower the resolution."
        ) from error
    state = State(settings.steps)
    return Training(processes, base, dataset, run, items, caches, checkpoints, state, [])


def run_within_memory(recipe: Settings, training: Training) -> Path:
    """Run the loop, again with a smaller recipe each time that memory runs out.

    Raises BadInput where no smaller one is left, or the run cannot be written.
    """
    base, state = training.base, training.state
    while True:
        try:
            return run_steps(recipe, training)
        except (OSError, SafetensorError) as error:
            if isinstance(error, OSError) and error.errno not in UNWRITABLE:  # a watcher's own
                raise
            remedy = UNWRITABLE[getattr(error, "errno", errno.ENOSPC)]  # safetensors names none
            raise BadInput(
                f"Run {training.run} cannot be written ({error}): {remedy}, and train again by the"
                " same settings to go on."
            ) from error
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if training.processes.count > 1 and not isinstance(error, MemoryError):
                raise BadInput(
                    f"Memory ran out at step {state.step + 1} in one of several processes, after"
                    " its pass: set optimizer to 'adamw8bit' or weights to 'bf16', or free memory,"
                    " and train again by the same settings to go on."
                ) from error
        # Only here, where the error is gone, is the failed step's memory free for what `step_down`
        # tries out.
        reclaim(base.device)
        lower = step_down(recipe, base.device)
        if lower is None or lower[0].fused_backward and training.processes.count > 1:
            raise BadInput(
                f"Memory ran out at step {state.step + 1}, and no smaller recipe is left: lower"
                f" batch_size ({recipe.batch_size}), or free memory that other programs hold"
                " and train again by the same settings to go on."
            )
        recipe, words = lower
        on_from = "going on from the last checkpoint"
        again = on_from if training.checkpoints.folders() else "beginning anew"
        say(f"memory ran out at step {state.step + 1}: {again} with {words}")
        reload_trained_parts(base, recipe)


def run_steps(settings: Settings, training: Training) -> Path:
    """The loop: from the last checkpoint, or the beginning, to the end."""
    base, state, checkpoints = training.base, training.state, training.checkpoints
    processes = training.processes
    tuned = tuned_parts(base, settings)
    base.offload(tuned)
    with processes.together():
        step = Step(base, settings, share=processes)  # the switch: which weights train
    clock, meter = Clock(base.device), PeakMeter(processes.portion(settings), base.device)
    log = begin(step, training, clock, meter)
    pace = Pace(clock)
    shapes = [[mean.shape[1:] for mean in cache.means] for cache in training.caches]
    # The same for whatever trains; the batches that were seen before an interruption are passed by.
    stream = islice(batches(settings, shapes), step.taken, None)
    train_steps, watchers = step.scheduler.config.num_train_timesteps, training.watchers
    try:
        with log.file:
            while step.taken < settings.steps and not processes.largest(state.stopping):
                batch = next(stream)
                with clock, meter.during(step, batch.noise.numel(), training.caches):
                    numbers = step(*gather(base, training.caches, batch, train_steps))
                log.add(numbers, batch.indices)
                state.step, state.seconds = step.taken, clock.total
                if step.taken % READ_EVERY == 0 or step.taken == settings.steps:
                    log.flush()
                    # One of several processes does not change its threads alone.
                    pace.look(exact=settings.save_every > 0 or processes.count > 1)
                sampled = samples_due(step.taken, settings.sample_every, settings.steps)
                if sampled and processes.first:
                    add_samples(step, training)
                # Those that memory does not suffice for are left out from here on.
                watchers = [
                    w for w in watchers if memory_suffices(MEASURED, step, partial(w, state))
                ]
                base.offload(tuned)
                # Last of all: what was drawn and measured until then is complete.
                if processes.first and checkpoints.due(step.taken, clock):
                    log.flush()
                    checkpoints.write(step, log, clock, meter.peak)
            log.flush()
            if step.taken < settings.steps and processes.first:
                written = checkpoints.every and checkpoints.write(step, log, clock, meter.peak)
                say_stopped(step, training, bool(written))
    except NotFinite as error:
        saved = processes.of_first(lambda: save_last_good(step, training))
        raise NotFinite(f"{error} {saved}") from None
    return finish(step, training, clock, meter)


def begin(step: Step, training: Training, clock: Clock, meter: PeakMeter) -> Log:
    """Take step, clock and meter to where the last checkpoint stands. Returns the log from there.

    Raises BadInput if the disk is too small or the checkpoint of another training, and
    KeyboardInterrupt if the training is to stop before there is any step to save.
    """
    state, checkpoint, rows = training.state, training.checkpoints.read_latest(), []
    training.checkpoints.check_disk_space(step, 2 * sum(w.numel() for w in step.weights))
    if checkpoint:
        restore(step, checkpoint)
        step.taken, rows = checkpoint.state["step"], checkpoint.state["rows"]
        clock.ends, clock.peak = [row["seconds"] for row in rows], checkpoint.state["peak_cuda"]
        meter.resume(checkpoint.state["peak"])
        say(
            f"{step.settings.method}: going on after step {step.taken}, where the training was"
            " interrupted"
        )
    state.step, state.seconds = step.taken, clock.total
    state.losses = [row["loss"] for row in rows]
    state.skipped = sum(row.get("skipped", False) for row in rows)
    for path in (training.run / "samples").glob("step_*_*.png"):
        if training.processes.first and int(path.stem.split("_")[1]) > step.taken:
            path.unlink()  # it will be drawn again
    state.samples = read_samples(training.run)
    if state.stopping and not step.taken:  # Ctrl-C in the step for which memory did not suffice
        raise KeyboardInterrupt
    names = [[item.path.name for item in some] for some in training.items]
    training.processes.check_same("checkpoints", step.taken)
    path = training.run / "log.jsonl" if training.processes.first else Path(os.devnull)
    return Log(path, step.settings, state, clock, names, rows)


def add_samples(step: Step, training: Training) -> None:
    """Draw samples and add them to the state's, as long as memory suffices for that."""
    state = training.state

    def draw() -> None:
        images = draw_samples(step, training.dataset.subject, training.run)
        state.samples.append((step.taken, images))

    if state.drawing:
        state.drawing = memory_suffices("samples", step, draw)


def say_stopped(step: Step, training: Training, written: bool) -> None:
    """Say from where the training would go on; `written`: there is a checkpoint of this step."""
    if written:
        would = "go on from here"
    elif training.checkpoints.folders():
        would = "go on from the last checkpoint"
    else:
        would = "begin anew"
    settings = step.settings
    say(f"{settings.method}: stopped after step {step.taken}; the same settings would {would}")
    # Stopped before the first samples were due: something to look at all the same.
    if settings.sample_every and not training.state.samples:
        add_samples(step, training)


def finish(step: Step, training: Training, clock: Clock, meter: PeakMeter) -> Path:
    """Save the weights and what was measured. Returns the run folder."""
    base, run, settings = training.base, training.run, step.settings
    step.close()
    if not training.processes.first:
        return run
    measured = {
        "data_sha256": data_hash(training.dataset),
        "family": base.family.name,
        "base_fingerprint": base.fingerprint,
        "file_bytes": save_weights(base, settings, run),
        "trainable_parameters": sum(w.numel() for w in step.weights),
        "processes": training.processes.count,
    }
    if step.scale:
        measured["skipped_steps"] = training.state.skipped
        say(
            f"{settings.method}: fp16, of {step.taken} steps {training.state.skipped} were skipped,"
            " whose gradient was too large for it"
        )
    measured |= metrics(settings, training.state, clock, meter.peak, base.device)
    write_json(run / "metrics.json", measured)
    tell_kept(run, measured)
    if step.taken == settings.steps:
        shutil.rmtree(training.checkpoints.folder, ignore_errors=True)
    return run


def save_last_good(step: Step, training: Training) -> str:
    """Save the weights of the last checkpoint, as a run ships them. Returns a sentence on that."""
    run = training.run
    (run / "metrics.json").unlink(missing_ok=True)  # of an earlier stop
    try:
        checkpoint = training.checkpoints.read_latest()
    except BadInput as error:
        return str(error)
    if not checkpoint:
        return "There is no checkpoint yet from which anything could be saved."
    restore(step, checkpoint)
    step.close()
    save_weights(step.base, step.settings, run)
    return f"What was learnt until step {checkpoint.state['step']} is saved in {run}."


@contextmanager
def ctrl_c_stops(state: State, several: bool = False) -> Iterator[None]:
    """Let Ctrl-C (a notebook's stop button) end the training after the current step.

    A second one, or one before any step, ends it at once. `several` processes end after the step
    too when their launcher is stopped, which tells each of them to terminate.
    """

    def stop(*_: Any) -> None:
        if state.stopping or not state.step:
            raise KeyboardInterrupt
        state.stop()

    # Python hands signals to the main thread alone.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signal.SIGINT: signal.signal(signal.SIGINT, stop)}
    if several:
        before[signal.SIGTERM] = signal.signal(signal.SIGTERM, lambda *_: state.stop())
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
