"""The one training loop, for both methods. `python -m lib train settings.json` runs it from
the shell.

Every run of the same data and seed sees the same pictures, noise and timesteps in the same order,
whichever weights train.
"""

import errno
import shutil
import signal
import threading
from contextlib import contextmanager

from safetensors import SafetensorError

from lib.dataset.imagefolder import load_dataset, read_record
from lib.files.errors import BadInput
from lib.files.json_file import write_json
from lib.files.text import say
from lib.memory.ladder import step_down
from lib.models.base import load_base
from lib.models.devices import out_of_memory, reclaim
from lib.step.methods import tuned_parts
from lib.step.quantization import settle
from lib.step.run_weights import save_weights
from lib.step.training_step import Step
from lib.training.batches import batches, cache_latents, gather
from lib.training.checkpoints import Checkpoints, resume
from lib.training.recipe_choice import PeakMeter, choose_recipe, exact, reload_trained
from lib.training.run_folder import (
    data_hash,
    inspect_run_folder,
    lock_run_folder,
    make_ready,
    prior_items,
)
from lib.training.run_log import READ_EVERY, Clock, Log, NotFinite, metrics
from lib.training.samples import draw, fits, read_samples

# What an OSError says when a file cannot be written, and what helps.
UNWRITABLE = dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO), "free some space")


UNWRITABLE |= dict.fromkeys((errno.EROFS, errno.EACCES), "make it writable")


class State:
    """What a watcher sees after each step: `step`, `steps`, `losses` (so far), `seconds` of
    training, `samples` [(step, images)].
    """

    def __init__(self, steps):
        self.steps, self.step, self.seconds, self.losses, self.samples = steps, 0, 0.0, [], []
        self.stopping, self.draws = (
            False,
            True,
        )  # to end after this step; to draw samples, until memory does not suffice for that

    def resume(self, step, seconds, rows, run):
        """Stand where a checkpoint stands, with its losses and the samples drawn until then."""
        self.step, self.seconds, self.losses, self.samples = (
            step,
            seconds,
            [row["loss"] for row in rows],
            read_samples(step, run),
        )

    def stop(self):
        """End the training after this step; what was learnt is saved and usable."""
        self.stopping = True


def train(settings, base=None, watchers=()):
    """Train by `settings` and return the run folder. `base`, a fresh base model, is used up if
    given.

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
    with lock_run_folder(settings.output):
        run, state = inspect_run_folder(settings, dataset)
        if state == "finished":
            say(
                f"{run} has been trained already, by the same settings on the same data: it is"
                " returned as it is"
            )
            shutil.rmtree(
                run / "checkpoint", ignore_errors=True
            )  # left where a process was killed at the very end
            return run
        return fit(
            settings, base or load_base(settings.base), dataset, run, state == "new", watchers
        )


def fit(settings, base, dataset, run, new, watchers):
    """Prepare what the loop reads, and run it; where memory runs out, again with a smaller recipe."""
    base.check_words(dataset.subject.class_noun, dataset.subject.identifier)
    base.side = settings.resolution
    # noqa: B018 (kept once read: metrics.json needs it, when the base's files may have gone or
    # changed)
    base.fingerprint
    recipe = choose_recipe(settle(settings, base.device), base)
    if new:
        make_ready(run, settings)
    checkpoints = Checkpoints(run, settings, read_record(dataset.root), base)
    held = prior_items(settings, dataset)
    say(f"caching the latents of {len(dataset.train)} instance and {len(held)} class images")
    try:
        sources = [
            (items, cache_latents(base, items, settings.text_encoder_rate == 0))
            for items in (dataset.train, held)
            if items
        ]
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise BadInput(
            f"Memory ran out while pictures of {base.resolution} pixels were encoded, before the"
            " first step: free memory that other programs hold, or lower the resolution."
        ) from error
    state = State(settings.steps)
    if base.device.type == "cuda" and exact(recipe):
        reload_trained(base, recipe)
    with ctrl_c_stops(state):
        while True:
            try:
                return run_steps(recipe, base, dataset, run, sources, checkpoints, state, watchers)
            except (OSError, SafetensorError) as error:
                if isinstance(error, OSError) and error.errno not in UNWRITABLE:  # a watcher's own
                    raise
                remedy = UNWRITABLE[getattr(error, "errno", errno.ENOSPC)]  # safetensors names none
                reason = f"Run {run} cannot be written ({error})"
                raise BadInput(
                    f"{reason}: {remedy}, and train again by the same settings to go on."
                ) from error
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
            reclaim(
                base.device
            )  # only here, where the error is gone, is the failed step's memory free for what `step_down` tries out
            lower = step_down(recipe, base.device)
            if lower is None:
                raise BadInput(
                    f"Memory ran out at step {state.step + 1}, and no smaller recipe is left: lower"
                    f" batch_size ({recipe.batch_size}), or free memory that other programs hold"
                    " and train again by the same settings to go on."
                )
            recipe, words = lower
            again = "going on from the last checkpoint" if checkpoints.all() else "beginning anew"
            say(f"memory ran out at step {state.step + 1}: {again} with {words}")
            reload_trained(base, recipe)


def run_steps(settings, base, dataset, run, sources, checkpoints, state, watchers):
    """The loop: from the last checkpoint, or the beginning, to the end. `sources` are (items, their
    cache), the photos first.
    """
    tuned = tuned_parts(base, settings)
    base.rest(tuned)
    items, sources = zip(*sources)
    step, kept = Step(base, settings), checkpoints.latest()
    checkpoints.check_room(step, 2 * sum(w.numel() for w in step.weights))
    clock, meter, rows = Clock(base.device), PeakMeter(settings, base.device), []
    if kept:
        record, weights, moments = kept
        resume(step, weights, moments)
        step.taken, rows = record["step"], record["rows"]
        clock.resume(rows, record["peak_cuda"])
        meter.resume(record["peak"])
        say(
            f"{settings.method}: going on after step {step.taken}, where the training was"
            " interrupted"
        )
    state.resume(step.taken, clock.total, rows, run)
    if (
        state.stopping and not step.taken
    ):  # Ctrl-C in the very step for which memory did not suffice
        raise KeyboardInterrupt
    stream = batches(settings, [[mean.shape[1:] for mean in s[0]] for s in sources])
    for _ in range(step.taken):
        next(stream)
    try:
        with Log(
            run / "log.jsonl",
            settings,
            state,
            clock,
            [[i.path.name for i in some] for some in items],
            rows,
        ) as log:
            while step.taken < settings.steps and not state.stopping:
                batch = next(stream)
                with clock, meter.during(step, batch[1].numel(), sources):
                    numbers = step(
                        *gather(base, sources, batch, step.scheduler.config.num_train_timesteps)
                    )
                log.add(numbers, batch[0])
                state.step, state.seconds = step.taken, clock.total
                if step.taken % READ_EVERY == 0 or step.taken == settings.steps:
                    log.flush()
                if settings.sample_every and step.taken % settings.sample_every == 0:
                    draw(base, dataset, step, run, state)
                watchers = [
                    w
                    for w in watchers
                    if fits(base, step, "what is measured along the way", lambda w=w: w(state))
                ]
                base.rest(tuned)
                if checkpoints.due(
                    step.taken, clock
                ):  # last of all: what was drawn and measured until then is whole
                    log.flush()
                    checkpoints.write(step, log, clock, meter.peak)
            log.flush()
            if step.taken < settings.steps:
                here = settings.save_every and checkpoints.write(step, log, clock, meter.peak)
                words = (
                    "go on from here"
                    if here
                    else "go on from the last checkpoint"
                    if checkpoints.all()
                    else "begin anew"
                )
                say(
                    f"{settings.method}: stopped after step {step.taken}; the same settings would"
                    f" {words}"
                )
                if (
                    settings.sample_every and not state.samples
                ):  # stopped before the first were due: something to look at all the same
                    draw(base, dataset, step, run, state)
    except NotFinite as error:
        raise NotFinite(f"{error} {back_to_last_good(step, checkpoints, run)}") from None
    step.close()
    file_bytes, trained = save_weights(base, settings, run), sum(w.numel() for w in step.weights)
    about = {
        "data_sha256": data_hash(dataset),
        "family": base.family.name,
        "base_fingerprint": base.fingerprint,
    }
    write_json(
        run / "metrics.json",
        about | metrics(settings, state, clock, meter.peak, trained, file_bytes, base.device),
    )
    if step.taken == settings.steps:
        checkpoints.clear()
    return run


def back_to_last_good(step, checkpoints, run):
    """Save the weights of the last checkpoint, as a run ships them. Returns a sentence on that."""
    (run / "metrics.json").unlink(missing_ok=True)  # of an earlier stop
    try:
        kept = checkpoints.latest()
    except BadInput as error:
        return str(error)
    if not kept:
        return "There is no checkpoint yet from which anything could be saved."
    resume(step, *kept[1:])
    step.close()
    save_weights(step.base, step.settings, run)
    return f"What was learnt until step {kept[0]['step']} is saved in {run}."


@contextmanager
def ctrl_c_stops(state):
    """Let Ctrl-C (a notebook's stop button) end the training after the current step; a second one,
    or one before any step, at once.
    """

    def stop(*_):
        if state.stopping or not state.step:
            raise KeyboardInterrupt
        state.stop()

    if (
        threading.current_thread() is not threading.main_thread()
    ):  # Python hands signals to the main thread alone
        yield
        return
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)
