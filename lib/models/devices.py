"""The machine at hand: its name, its memory, what it multiplies fast, the versions of the stack."""

import ctypes
import gc
import math
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

# What arithmetic may run in, by the names that settings have.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

FIRST_TENSOR_CORES = (7, 0)  # Volta; Turing, such as Colab's T4, is 7.5


def fast_arithmetic(device: torch.device) -> str:
    """What the processor multiplies fast: one of `DTYPES`.

    - bf16: CUDA from Ampere on, and x86 with AMX or AVX512-BF16
    - fp16: Volta and Turing, whose tensor cores take nothing else
    - fp32: older cards (Pascal has no tensor cores), and all other processors
    """
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16"
        return "fp16" if torch.cuda.get_device_capability(device) >= FIRST_TENSOR_CORES else "fp32"
    native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16" if device.type == "cpu" and native else "fp32"


def reclaim(device: torch.device) -> None:
    """Give back what nothing refers to any more.

    To Python, and to a card whatever its allocator keeps for later.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def keep_freed_memory() -> None:
    """Let the C library keep up to 512 MiB of freed memory, in blocks below 32 MiB.

    By default most of it goes back to the system, which hands it out again page by page and zeroed:
    a tenth of the pocket base's step. Linux with glibc alone (mallopt(3)).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD
        mallopt(-1, 512 * 2**20)  # M_TRIM_THRESHOLD


def resident_bytes() -> int:
    """Largest resident memory of this process so far, in bytes.

    The operating system's figure, interpreter and libraries included.
    """
    try:  # getrusage's figure is, on Linux, at least that of the process that started this one
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception, or what caused it, says that memory ran out, on a card or the CPU."""
    # The words of the CPU's allocator, of CUDA, of cuBLAS and cuDNN.
    words = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")
    short = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    if short or isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return error.__cause__ is not None and out_of_memory(error.__cause__)


def versions() -> dict[str, str]:
    """What a result must name beside its device: the versions of the stack and of Python."""
    return {name: version(name) for name in ("torch", "diffusers", "transformers", "peft")} | {
        "python": platform.python_version()
    }


def device_name(device: torch.device) -> str:
    """A device in words: the card's name, or the processor's with the threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        model = next(line for line in lines if line.startswith("model name"))
        name = model.partition(":")[2].strip()
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"CPU, {torch.get_num_threads()} threads, {name}"


def free_memory() -> int:
    """Bytes that this machine has left for this process.

    Or that its control group has (a container, a job of a cluster), if that is less.
    """
    import psutil

    free = psutil.virtual_memory().available
    try:
        group = Path("/proc/self/cgroup").read_text("ascii").strip().rpartition("::")[2]
        folder = Path("/sys/fs/cgroup") / group.lstrip("/")
        limit = int((folder / "memory.max").read_text("ascii"))
        used = int((folder / "memory.current").read_text("ascii"))
        lines = (folder / "memory.stat").read_text("ascii").splitlines()
        stat = dict(line.split() for line in lines)
        return min(free, limit - used + int(stat["inactive_file"]))  # cached files give way
    except (OSError, ValueError, KeyError):  # no limit, or none of that kind
        return free


CGROUPS = Path("/sys/fs/cgroup")


def processor_quota(root: Path = CGROUPS, groups: str = "/proc/self/cgroup") -> float:
    """Processors that the control group may use at once, infinity where there is no limit.

    Of version 2 (`cpu.max`, here or in a group above) or 1 (`cpu.cfs_quota_us`).
    """
    try:
        lines = Path(groups).read_text("ascii", "replace").splitlines()
    except OSError:
        return math.inf
    quotas = [math.inf]
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # In a container the group's own path may not be there: its root is the group's.
        own = [controllers, "cpu"] if controllers else [""]
        for folder in (root / name / group.lstrip("/") for name in own):
            inside = (each for each in (folder, *folder.parents) if each.is_relative_to(root))
            quotas += map(_quota_of, inside)
    return min(quotas)


def _quota_of(folder: Path) -> float:
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((folder / n).read_text("ascii") for n in names).split()
            return float(quota) / float(period) if float(quota) > 0 else math.inf
        except (OSError, ValueError):  # none of that kind, or "max": no limit
            continue
    return math.inf


def available_processors() -> float:
    """Processors that this process may use: its affinity and the quota of its control group."""
    if hasattr(os, "sched_getaffinity"):
        return min(len(os.sched_getaffinity(0)), processor_quota())
    return min(os.cpu_count() or 1, processor_quota())


def idle_processors(seconds: float = 0.1) -> float:
    """How many of the processors that this process may run on are idle, for so many `seconds`."""
    import psutil

    busy = psutil.cpu_percent(seconds, percpu=True)
    if hasattr(os, "sched_getaffinity"):
        busy = [busy[k] for k in os.sched_getaffinity(0) if k < len(busy)]
    return sum(1 - share / 100 for share in busy)


def fair_threads() -> int:
    """Threads that make torch fast here and now, at least one.

    As many as processors are idle: a thread more waits in every operation for a processor that
    another program has, and all others wait for it (on two cores, beside one busy program, a step
    of two threads took forty times that of one). `OMP_NUM_THREADS` counts where it is set.
    """
    most = torch.get_num_threads()
    if "OMP_NUM_THREADS" in os.environ or most == 1:
        return most
    given = min(most, math.floor(available_processors()))
    # Something always runs for a moment; a third of a processor is as good as a whole one.
    return max(1, min(given, math.floor(idle_processors() + 1 / 3))) if given > 1 else 1


class Threads:
    """How many threads torch works with on the processor, and who said so.

    `most`: what it had before it was given fewer here, or was given by somebody else since.
    """

    most = 0
    ours = 0
    held = False  # by a training, whose sums depend on the order that threads add in


def use_fair_threads(always: bool = False) -> int:
    """Give torch `fair_threads`, unless a training goes on (or `always`). Returns how many it has.

    If other code changed torch's number of threads since, that is the new upper limit.
    """
    if Threads.held and not always:
        return torch.get_num_threads()
    if torch.get_num_threads() != Threads.ours:
        Threads.most = torch.get_num_threads()
    torch.set_num_threads(Threads.most)
    Threads.ours = fair_threads()
    torch.set_num_threads(Threads.ours)
    return Threads.ours


@contextmanager
def held_threads(count: int | None = None) -> Iterator[None]:
    """Within the block torch keeps `count` threads, or those that are fair as it begins.

    Bits depend on their number: an interrupted training goes on with as many as it had.
    """
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    else:
        use_fair_threads()
    Threads.held, outer = True, Threads.held
    try:
        yield
    finally:
        Threads.held = outer
        if count:
            torch.set_num_threads(before)


def map_side_by_side(
    work: Callable[[Any], Any], items: Sequence[Any], at_once: int
) -> Iterator[Any]:
    """`map(work, items)`, so many at once, each on a thread of its own that torch shares no more.

    For work of many small operations: torch shares each of them out among its threads, and they
    wait for each other as long as they work. What is left at the end, if it is for half of the
    threads or fewer, is done one by one with all of them. Calls of `work` may not change what
    others read.
    """
    left = len(items) % at_once
    apart = len(items) - (left if 2 * left <= at_once else 0)
    if at_once > 1 and apart:
        # One of torch's is what each new thread of Python begins with.
        with held_threads(1), ThreadPoolExecutor(at_once) as pool:
            yield from pool.map(work, items[:apart])
        items = items[apart:]
    yield from map(work, items)
