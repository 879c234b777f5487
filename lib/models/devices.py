"""The machine at hand: its name, its memory, what it multiplies fast, the versions of the stack."""

import ctypes
import gc
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import torch


def has_fast_bf16(device):
    """True where the processor multiplies bf16 natively: CUDA from Ampere on, x86 with AMX or
    AVX512-BF16.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (
        torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    )


def reclaim(device):
    """Give back what nothing refers to any more: to Python, and to a card whatever its allocator
    keeps for later.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def keep_freed_memory():
    """Let the C library keep up to 512 MiB of freed memory for the next step, in blocks below 32
    MiB. By default most of it goes back to the system, which hands it out again page by page and
    zeroed: a tenth of the pocket base's step. Linux with glibc alone (mallopt(3)).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD
        mallopt(-1, 512 * 2**20)  # M_TRIM_THRESHOLD


def resident_bytes():
    """Largest resident memory of this process so far, in bytes: the operating system's figure,
    interpreter and libraries included.
    """
    import resource

    try:  # getrusage's figure is, on Linux, at least that of the process that started this one
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def out_of_memory(error):
    """Whether an exception, or what caused it, says that memory ran out, on a card or on the CPU."""
    import torch

    words = (
        "DefaultCPUAllocator",
        "out of memory",
        "ALLOC_FAILED",
    )  # of the CPU's allocator, of CUDA, of cuBLAS and cuDNN
    short = isinstance(error, RuntimeError) and any(w in str(error) for w in words)
    if short or isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return error.__cause__ is not None and out_of_memory(error.__cause__)


def versions():
    """What a result must name beside its device: the versions of the stack and of Python."""
    return {name: version(name) for name in ("torch", "diffusers", "transformers", "peft")} | {
        "python": platform.python_version()
    }


def device_name(device):
    """A device in words: the card's name, or the processor's with the threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        name = next(
            line.partition(":")[2].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"CPU, {torch.get_num_threads()} threads, {name}"


def free_memory():
    """Bytes that this machine has left, or this process's control group (a container, a job of a
    cluster), if that is less.
    """
    import psutil

    free = psutil.virtual_memory().available
    try:
        group = Path("/proc/self/cgroup").read_text("ascii").strip().rpartition("::")[2]
        folder = Path("/sys/fs/cgroup") / group.lstrip("/")
        limit, used = (
            int((folder / f"memory.{name}").read_text("ascii")) for name in ("max", "current")
        )
        stat = dict(
            line.split() for line in (folder / "memory.stat").read_text("ascii").splitlines()
        )
        return min(free, limit - used + int(stat["inactive_file"]))  # cached files give way
    except (OSError, ValueError, KeyError):  # no limit, or none of that kind
        return free
