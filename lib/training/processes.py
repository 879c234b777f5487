"""One training in several processes, one a card: `accelerate launch -m lib train settings.json`.

Data-parallel: every process has all weights and takes its rows of the same batch; gradients are
added up before the one clipping and update, so that what comes of it is what one process makes of
the whole batch, to rounding. Written with torch's collectives and no DistributedDataParallel, which
would put a wrapper between PEFT's names and ours and adds up within each of several backward
passes. Only the first process writes, draws and measures.
"""

import atexit
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from lib.config import Settings
from lib.files import BadInput
from lib.models import out_of_memory
from lib.models.devices import fair_threads
from lib.step.training_step import Share

T = TypeVar("T")

# What `accelerate launch` and `torchrun` tell each process.
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

# What accelerate's configuration may ask for and this loop does not do.
OTHER_TRAINERS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}

BUCKET = 2**23  # numbers that are added up at once: 32 MiB
PATIENCE = timedelta(hours=12)  # the first process draws and measures while the others wait

ENDED = (
    "Another process of this training has ended, so all do: look at what it said, and train again"
    " by the same settings in as many processes to go on from the last checkpoint."
)

PARTED = (
    "An earlier training of these processes ended with an error, after which they are not connected"
    " any more: launch them again for the next one."
)

FINE, SHORT_OF_MEMORY, FAILED = range(3)


class Connection:
    """What the processes of a launch are to each other, from its first training to its end."""

    trainings = 0
    parted = False  # by an error


@dataclass(frozen=True)
class Processes(Share):
    """The processes of a training, as one of them sees them: `rank` of `count`, from 0."""

    @property
    def device(self) -> str | None:
        """What accelerate's configuration asks for: "cpu", or None for the best one there is."""
        return "cpu" if os.environ.get("ACCELERATE_USE_CPU") == "true" else None

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def _call(self, collective: Callable[..., Any], *inputs: Any, **options: Any) -> None:
        try:
            collective(*inputs, **options)
        except RuntimeError:  # a connection that broke, whatever the backend says of it
            raise BadInput(ENDED) from None

    def largest(self, number: int) -> int:
        """The largest of what the processes say."""
        if self.count == 1:
            return number
        told = torch.tensor(int(number))
        self._call(dist.all_reduce, told, op=dist.ReduceOp.MAX)
        return int(told)

    def of_first(self, work: Callable[[], T]) -> T:
        """What the first process makes, for all."""
        made: list[Any] = [work() if self.first else None]
        if self.count > 1:
            self._call(dist.broadcast_object_list, made)
        return made[0]

    def of_each(self, mine: T) -> list[T]:
        """What each process has, in their order."""
        if self.count == 1:
            return [mine]
        found: list[Any] = [None] * self.count
        self._call(dist.all_gather_object, found, mine)
        return found

    def check_same(self, what: str, mine: object) -> None:
        """Raise BadInput unless all processes have the same, called `what`."""
        found = self.of_each(mine)
        if any(other != found[0] for other in found):
            raise BadInput(
                f"The {self.count} processes of this training see different {what}: give all of"
                " them the same folders and the same versions."
            )

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Sum tensors over all processes, in place, in fp32."""
        bucket: list[torch.Tensor] = []
        for k, tensor in enumerate(tensors):
            bucket.append(tensor)
            if sum(t.numel() for t in bucket) >= BUCKET or k == len(tensors) - 1:
                flat = torch.cat([t.reshape(-1).float() for t in bucket])
                self._call(dist.all_reduce, flat)
                for t, part in zip(bucket, flat.split([t.numel() for t in bucket])):
                    t.copy_(part.view(t.shape))
                bucket = []

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is done within ends in all processes or in none.

        Raises MemoryError where memory ran out in one, and BadInput where another one failed.
        """
        if self.count == 1:
            yield
            return
        mine, error = FINE, None
        try:
            yield
        except Exception as raised:
            mine, error = SHORT_OF_MEMORY if out_of_memory(raised) else FAILED, raised
        worst = self.largest(mine)
        if worst == SHORT_OF_MEMORY:
            raise MemoryError("out of memory in one of the processes") from error
        if error:
            raise error
        if worst == FAILED:
            raise BadInput(ENDED)

    def threads(self, recorded: int | None) -> int | None:
        """How many threads each process sums with: all with the same, so that a resume is exact.

        Those that an interrupted run was trained with, or the fewest that are fair in any of them;
        None where one process decides for itself.
        """
        if self.count == 1:
            return recorded
        return -self.largest(-(recorded or fair_threads()))

    def portion(self, settings: Settings) -> Settings:
        """The recipe of the largest part that a process takes of a batch."""
        rows = -(-settings.batch_size // self.count)
        return settings.replace(batch_size=rows, accumulate=min(settings.accumulate, rows))


@contextmanager
def joined(settings: Settings) -> Iterator[Processes]:
    """The processes that were launched, connected within the block.

    They stay so for the next training of the same launch: at a second meeting they would find what
    their launcher remembers of the first, and wait for ever. Raises BadInput, before anything is
    loaded, for what several cannot do. Where all of them fail, one says so, and the others end with
    exit code 1.
    """
    told = os.environ
    count = int(told["WORLD_SIZE"]) if all(name in told for name in LAUNCHED) else 1
    rank = int(told["RANK"]) if count > 1 else 0
    if rank:  # what they have to tell the first one tells, to the very end
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    try:
        check_launch(settings, count, told)
    except BadInput:
        if rank:
            raise SystemExit(1) from None
        raise
    if count == 1:
        yield Processes()
        return
    if Connection.parted:
        raise BadInput(PARTED)
    cards = torch.cuda.is_available() and told.get("ACCELERATE_USE_CPU") != "true"
    if cards:
        torch.cuda.set_device(int(told["LOCAL_RANK"]))
    if not dist.is_initialized():
        # flags and objects go by way of the CPU, so that no step waits for a card
        dist.init_process_group("cpu:gloo,cuda:nccl" if cards else "gloo", timeout=PATIENCE)
        atexit.register(_part)
    Connection.trainings += 1
    try:
        yield Processes(rank, count)
    except BaseException as error:
        if str(error) == ENDED:  # whoever knows more tells it first
            time.sleep(1)
        silent = isinstance(error, Exception) and not _first_to_tell()
        Connection.parted = True
        _part()  # the others may wait for this one
        if silent:
            raise SystemExit(1) from None
        raise


def _part() -> None:
    with suppress(RuntimeError, AssertionError, ValueError):  # parted already
        dist.destroy_process_group()


def check_launch(settings: Settings, count: int, told: Mapping[str, str]) -> None:
    """Raise BadInput for what `count` processes cannot do, or accelerate should do otherwise."""
    for name, trainer in OTHER_TRAINERS.items():
        if told.get(name) == "true":
            raise BadInput(
                f"accelerate's configuration asks for {trainer}, and this training gives each"
                " process all weights: launch it with --multi_gpu or --cpu, or by a configuration"
                f" without {trainer}."
            )
    for setting, name, plain in (
        ("precision", "ACCELERATE_MIXED_PRECISION", "no"),
        ("accumulate", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1"),
    ):
        ours, theirs = str(getattr(settings, setting)), told.get(name, plain)
        if theirs not in (plain, ours):
            raise BadInput(
                f"accelerate's configuration says {theirs} where setting '{setting}' says {ours},"
                f" which is what counts: set {setting} in the settings, and {plain} there."
            )
    if count == 1:
        return
    cards = torch.cuda.device_count() if told.get("ACCELERATE_USE_CPU") != "true" else 0
    local = int(told.get("LOCAL_WORLD_SIZE", count))
    rules = (
        (
            count > settings.batch_size,
            f"{count} processes would share a batch of {settings.batch_size} pictures, of which"
            " each takes one or more: launch fewer, or raise batch_size.",
        ),
        (
            settings.fused_backward,
            "Setting 'fused_backward' updates within the backward pass, and several processes add"
            " up their gradients after it: set it to False, or launch one process.",
        ),
        (
            settings.dropout > 0,
            f"Setting 'dropout' is {settings.dropout}, and several processes would all leave out"
            " the same: set it to 0, or launch one process.",
        ),
        (
            0 < cards < local,
            f"{local} processes were launched on a machine with {cards} cards, of which each takes"
            " one: launch as many as there are cards.",
        ),
    )
    for broken, sentence in rules:
        if broken:
            raise BadInput(sentence)


def _first_to_tell() -> bool:
    """Whether no other process has told yet why all end."""
    try:
        store = dist.distributed_c10d._get_default_store()
        return store.add(f"told in {Connection.trainings}", 1) == 1
    except (RuntimeError, ValueError):  # it went with the process that held it
        return True
