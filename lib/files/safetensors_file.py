"""Weight files, read warily and written whole: safetensors only, every tensor by name, one at a
time.

    with open_weights("adapter.safetensors") as file:
        tensors = {name: file.read(name) for name in file.names}
    write_weights("out.safetensors", {"a": ("F16", (2, 3))}, lambda name: tensor, {"title": "..."})

A checkpoint of gigabytes passes through here with one tensor in memory (format:
github.com/huggingface/safetensors, README).
"""

import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import torch

from lib.files.errors import BadInput
from lib.files.paths import PICKLE_ENDINGS
from lib.files.text import first_line, listed, printable, writable
from lib.files.whole_writes import unwritable_refused, whole_file

# A zip archive, as torch.save writes them, and pickle's own protocols.
PICKLE_BEGINNINGS = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")

POINTER = b"version https://git-lfs"

# Too coarse to merge or to measure.
COARSE_TYPES = ("F8", "F6_", "F4")

Shapes = Mapping[str, tuple[str, Iterable[int]]]  # name -> (name of its type, shape)

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

TYPE_NAMES = {dtype: name for name, dtype in TYPES.items()}

# In a header: `write_weights` puts the hash itself in its place, which has 64 characters too.
HASH = "the SHA-256 of all that follows the header".ljust(64, ".")


class open_weights:
    """A safetensors file for reading, one tensor at a time.

    `path`, `metadata` (texts of the header) and `names` (of its tensors) are there at once. Raises
    BadInput for a missing file, a pickle (whatever its name), and a header that the file does not
    bear out.
    """

    def __init__(self, path: str | Path):
        from safetensors import SafetensorError, safe_open

        self.path = path = Path(path).expanduser()
        refuse_pickle(path)
        refuse_pointer(path)
        try:
            self._file = safe_open(path, "pt")
            self.metadata: dict[str, str] = dict(self._file.metadata() or {})
            self.names: list[str] = list(self._file.keys())
            self._infos = {name: self._file.get_slice(name) for name in self.names}
            with open(path, "rb") as file:
                size = int.from_bytes(file.read(8), "little")
                self._start, self._header = 8 + size, json.loads(file.read(size))
        except (SafetensorError, OSError, ValueError) as error:
            raise BadInput(
                f"{path} is no whole safetensors file ({_first_line(error)}): it is cut off, too"
                " long or its header is wrong; copy or download it again."
            ) from None
        coarse = {kind for kind in map(self.dtype, self.names) if kind.startswith(COARSE_TYPES)}
        if coarse:
            raise BadInput(
                f"{path} holds weights in {listed(sorted(coarse), 5)}, too coarse to merge or to"
                " measure: get it in fp16, bf16 or fp32."
            )

    def __enter__(self) -> Self:
        self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from the header."""
        return tuple(self._infos[name].get_shape())

    def dtype(self, name: str) -> str:
        """The safetensors name of its type, such as "F16"."""
        return self._infos[name].get_dtype()

    def read(self, name: str) -> torch.Tensor:
        """The tensor, on the CPU. Raises BadInput if it holds a value that is no number."""
        tensor = self._read(name)
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise BadInput(
                f"{self.path} holds values that are not numbers (in {name}): the training diverged"
                " or the file is damaged; take another file or train again with a smaller learning"
                " rate."
            )
        return tensor

    def _read(self, name):
        if 0 in self.shape(name) or self.dtype(name) not in TYPES:
            return self._file.get_tensor(name)
        return self.first(name).reshape(self.shape(name))

    def first(self, name: str, most: int | None = None) -> torch.Tensor:
        """The first numbers of a tensor, at most so many, in one row on the CPU."""
        # By reading: of a file mapped into memory, as safetensors does, all pages that were read
        # count as this process's memory.
        begin, end = self._header[name]["data_offsets"]
        kind = TYPES[self.dtype(name)]
        data = bytearray(min(end - begin, most * kind.itemsize) if most else end - begin)
        with open(self.path, "rb") as file:
            file.seek(self._start + begin)
            file.readinto(data)
        return torch.frombuffer(data, dtype=kind)


def refuse_pickle(path: str | Path) -> None:
    """Raise BadInput if `path` is missing, or a pickle, which runs code when it is opened.

    Known by its name or its first bytes.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"There is no file {path}: check the path.")
    with open(path, "rb") as file:
        start = file.read(9)
    # A safetensors file begins with the length of its header, which may look like a pickle's first
    # bytes; the next byte is the `{` of its JSON.
    pickled = start.startswith(PICKLE_BEGINNINGS) and start[8:] != b"{"
    if path.suffix.lower() in PICKLE_ENDINGS or pickled:
        raise BadInput(
            f"{path} is a pickle, which can run any code when it is opened, so it is not read: get"
            " the .safetensors file, or let someone who trusts it convert it with torch.load(...,"
            " weights_only=True) and safetensors.torch.save_file."
        )


def refuse_name(path: str | Path) -> None:
    """Raise BadInput for a name in another encoding, by which safetensors opens no file."""
    if not writable(str(path)):
        raise BadInput(
            f"{printable(path)} is no text in UTF-8, and safetensors opens no file by such a name:"
            " rename it in plain letters."
        )


def refuse_pointer(path: str | Path) -> None:
    """Raise BadInput for git-lfs' pointer, which `git clone` without git-lfs leaves for a file."""
    refuse_name(path)
    with open(path, "rb") as file:
        start = file.read(len(POINTER))
    if start == POINTER:
        raise BadInput(
            f"{path} is git-lfs' pointer to a file and not the file: run `git lfs install` and `git"
            " lfs pull` in its folder, or download it by itself."
        )


def write_weights(
    path: str | Path,
    shapes: Shapes,
    read: Callable[[str], torch.Tensor],
    metadata: Mapping[str, Any] | None = None,
    check: bool = False,
) -> str:
    """Write `shapes`, each tensor as `read(name)` gives it, in that order; whole or not at all.

    Holds one tensor at a time. Texts of `metadata` may hold `HASH`. With `check` every tensor is
    read back before the file takes its place (`check_written`). Returns the SHA-256 of all that
    follows the header, which is what the tools call a model's hash. Raises BadInput where nothing
    can be written, and for values that the type cannot hold.
    """
    path, offset, header = Path(path), 0, {}
    if metadata:
        # A title may be a file's name in another encoding, which no reader of JSON takes.
        header["__metadata__"] = {
            str(k): str(v).encode("utf-8", "replace").decode() for k, v in metadata.items()
        }
    for name, (kind, shape) in shapes.items():
        size = torch.Size(shape).numel() * TYPES[kind].itemsize
        header[name] = {
            "dtype": kind,
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with unwritable_refused(path), whole_file(path) as unfinished:
        digest = _write_tensors(unfinished, text, shapes, read)
        if check:
            check_written(unfinished, shapes, digest, path)
    return digest


def _write_tensors(path, header, shapes, read):
    """Write the file; `header` is its JSON in bytes. Returns the SHA-256 of what follows it."""
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for name, (kind, shape) in shapes.items():
            data = _as_bytes(name, read(name), kind, shape)
            digest.update(data)
            file.write(data)
        if HASH.encode() in header:
            # The header comes first and its length is settled, so the hash is filled in at the end.
            file.seek(8)
            file.write(header.replace(HASH.encode(), digest.hexdigest().encode()))
    return digest.hexdigest()


def _as_bytes(name, tensor, kind, shape):
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(
            f"{name} has the shape {tuple(tensor.shape)}, not {tuple(shape)} as announced"
        )
    data = tensor.detach().to("cpu", TYPES[kind]).contiguous()
    if data.is_floating_point() and not data.isfinite().all():
        raise BadInput(
            f"{name} does not fit into {kind}, its values are too large or no numbers: the training"
            " diverged."
        )
    return _raw(data)


def _raw(tensor: torch.Tensor) -> Any:
    """The bytes of a tensor on the CPU, not copied."""
    return tensor.reshape(-1).view(torch.uint8).numpy()


def check_written(path: Path, shapes: Shapes, digest: str, name: str | Path) -> None:
    """Raise BadInput unless the file at `path`, opened anew, is what was written.

    It holds `shapes`, and its tensors, read by name one at a time in that order, hash to `digest`:
    then each is what was written, for all lengths are known. name: what the sentence calls the
    file.
    """
    again = hashlib.sha256()
    with open_weights(path) as file:
        found = {key: (file.dtype(key), file.shape(key)) for key in file.names}
        same = found == {key: (kind, tuple(shape)) for key, (kind, shape) in shapes.items()}
        for key in shapes if same else ():
            again.update(_raw(file.read(key)))
    if not same or again.hexdigest() != digest:
        raise BadInput(
            f"{name} was not written: read back, it is not what was meant, so the disk or the"
            " memory is at fault; try another disk, and report it if it happens again."
        )


def save_weights_file(
    path: str | Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, Any] | None = None,
    check: bool = False,
) -> str:
    """Write tensors from memory, as they are; otherwise as `write_weights`."""
    shapes = {name: (TYPE_NAMES[t.dtype], tuple(t.shape)) for name, t in tensors.items()}
    return write_weights(path, shapes, tensors.__getitem__, metadata, check)


def _first_line(error):
    return first_line(error).removeprefix("Error while deserializing header: ")
