"""Weight files, read warily and written whole: safetensors only, every tensor by name, one at a
time.

    with open_weights("adapter.safetensors") as file: file.metadata; file.names; file.read("unet.conv_in.lora_A.weight")
    write_weights("out.safetensors", {"a": ("F16", (2, 3))}, lambda name: tensor, {"title": "..."})

A checkpoint of gigabytes passes through here with one tensor in memory (format:
github.com/huggingface/safetensors, README).
"""

import hashlib
import json
import os
import struct
from pathlib import Path

import torch

from lib.files.errors import BadInput
from lib.files.text import some

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle")


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


HASH = "the SHA-256 of all that follows the header".ljust(
    64, "."
)  # in a header: `write_weights` puts the hash itself in its place


class open_weights:
    """A safetensors file for reading: `path`, `metadata` (str -> str), `names`, `shape(name)`,
    `dtype(name)`, `read(name)`.

    Raises BadInput for a missing file, a pickle (whatever its name), and a header that the file
    does not bear out.
    """

    def __init__(self, path):
        from safetensors import SafetensorError, safe_open

        self.path = path = Path(path).expanduser()
        refuse_pickle(path)
        try:
            self._file = safe_open(path, "pt")
            self.metadata = dict(self._file.metadata() or {})
            self.names = list(self._file.keys())
            self._infos = {name: self._file.get_slice(name) for name in self.names}
            raw, self._start, self._header = raw_header(path)
            raw.close()
        except (SafetensorError, OSError, ValueError) as error:
            raise BadInput(
                f"{path} is no whole safetensors file ({_plain(error)}): it is cut off, too long or"
                " its header is wrong; copy or download it again."
            ) from None
        if small := {
            kind for kind in map(self.dtype, self.names) if kind.startswith(("F8", "F6_", "F4"))
        }:
            raise BadInput(
                f"{path} holds weights in {some(small)}, too coarse to merge or to measure: get it"
                " in fp16, bf16 or fp32."
            )

    def __enter__(self):
        self._file.__enter__()
        return self

    def __exit__(self, *error):
        return self._file.__exit__(*error)

    def shape(self, name):
        return tuple(self._infos[name].get_shape())

    def dtype(self, name):
        """The safetensors name of its type, such as "F16"."""
        return self._infos[name].get_dtype()

    def read(self, name):
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
        """By reading: of a file mapped into memory, as safetensors does, all pages that were read
        count as this process's memory.
        """
        begin, end = self._header[name]["data_offsets"]
        if begin == end or self.dtype(name) not in TYPES:
            return self._file.get_tensor(name)
        data = bytearray(end - begin)
        with open(self.path, "rb") as file:
            file.seek(self._start + begin)
            file.readinto(data)
        return torch.frombuffer(data, dtype=TYPES[self.dtype(name)]).reshape(self.shape(name))


def raw_header(path):
    """(the open file, where its tensors begin, the header as JSON) of a safetensors file."""
    file = open(path, "rb")
    size = int.from_bytes(file.read(8), "little")
    return file, 8 + size, json.loads(file.read(size))


def refuse_pickle(path):
    """Raise BadInput if `path` is missing, or a pickle by name or by its first bytes: a pickle runs
    code when it is opened.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"There is no file {path}: check the path.")
    with open(path, "rb") as file:
        start = file.read(2)
    if path.suffix.lower() in PICKLES or start in (
        b"PK",
        b"\x80\x02",
        b"\x80\x03",
        b"\x80\x04",
        b"\x80\x05",
    ):
        raise BadInput(
            f"{path} is a pickle, which can run any code when it is opened, so it is not read: get"
            " the .safetensors file, or let someone who trusts it convert it with torch.load(...,"
            " weights_only=True) and safetensors.torch.save_file."
        )


def write_weights(path, shapes, read, metadata=None, check=False):
    """Write `shapes` (name -> (type name, shape)), each tensor as `read(name)` gives it, in that
    order; whole or not at all.

    Holds one tensor at a time. Texts of `metadata` may hold `HASH`. With `check` every tensor is
    read back before the file takes its place (`check_written`). Returns the SHA-256 of all that
    follows the header, which is what the tools call a model's hash.
    """
    path, offset, header = Path(path), 0, {}
    if metadata:
        header["__metadata__"] = {str(k): str(v) for k, v in metadata.items()}
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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part, digest = path.with_name(f".{path.name}.{os.getpid()}.part"), hashlib.sha256()
        try:
            with open(part, "wb") as file:
                file.write(struct.pack("<Q", len(text)) + text)
                for name, (kind, shape) in shapes.items():
                    tensor = read(name)
                    if tuple(tensor.shape) != tuple(shape):
                        raise ValueError(
                            f"{name} has the shape {tuple(tensor.shape)}, not {tuple(shape)} as"
                            " announced"
                        )
                    data = tensor.detach().to("cpu", TYPES[kind]).contiguous()
                    if data.is_floating_point() and not data.isfinite().all():
                        raise BadInput(
                            f"{name} does not fit into {kind}, its values are too large or no"
                            " numbers: the training diverged."
                        )
                    data = data.reshape(-1).view(torch.uint8).numpy()
                    digest.update(data)
                    file.write(data)
                if (
                    HASH.encode() in text
                ):  # the header comes first and its length is settled, so the hash is filled in at the end
                    file.seek(8)
                    file.write(text.replace(HASH.encode(), digest.hexdigest().encode()))
            if check:
                check_written(part, shapes, digest.hexdigest(), path)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise BadInput(
            f"{path} cannot be written ({error.strerror or error}): free some space or choose"
            " another place."
        ) from None
    return digest.hexdigest()


def check_written(path, shapes, digest, name):
    """Raise BadInput unless the file at `path`, opened anew, holds `shapes`, and its tensors, read
    by name one at a time in that order, hash to `digest`: then each is what was written, for all
    lengths are known. `name`: what the sentence calls the file.
    """
    with open_weights(path) as file:
        found, again = (
            {key: (file.dtype(key), file.shape(key)) for key in file.names},
            hashlib.sha256(),
        )
        same = found == {key: (kind, tuple(shape)) for key, (kind, shape) in shapes.items()}
        for key in shapes if same else ():
            again.update(file.read(key).reshape(-1).view(torch.uint8).numpy())
    if not same or again.hexdigest() != digest:
        raise BadInput(
            f"{name} was not written: read back, it is not what was meant, so the disk or the"
            " memory is at fault; try another disk, and report it if it happens again."
        )


def save_weights_file(path, tensors, metadata=None, check=False):
    """Write tensors from memory, as they are; whole or not at all. `check` and what is returned as
    in `write_weights`.
    """
    shapes = {name: (TYPE_NAMES[t.dtype], tuple(t.shape)) for name, t in tensors.items()}
    return write_weights(path, shapes, tensors.__getitem__, metadata, check)


def _plain(error):
    return str(error).strip().splitlines()[0].removeprefix("Error while deserializing header: ")
