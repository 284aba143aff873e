"""What a GGUF file says of itself: metadata and the table of tensors, read without the weights.

Written here because the `gguf` package is not among what a device installs, and takes seconds to parse the
vocabulary of a Qwen model into Python objects.

Source: the GGUF specification (ggml/docs/gguf.md); versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from qwen_edge.errors import GGUFError, ModelNotFoundError, UnsupportedError
from qwen_edge.files import reading
from qwen_edge.quant_types import TENSOR_TYPES

Scalar = int | float | bool | str

DEFAULT_ALIGNMENT = 32

_MAGIC = b"GGUF"
# Source: enum gguf_metadata_value_type; format characters of the struct module.
_SCALAR_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4
# The metadata before the vocabulary stays far below this, model card and all.
_PARAMETER_BYTES = 16 << 20

_TYPE_NAMES = {row.ggml_id: row.name for row in TENSOR_TYPES.values()}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of the file.

    Attributes:
        name: As in the file.
        shape: Innermost (row length) first, as GGUF stores it.
        type_name: A key of TENSOR_TYPES.
        offset: Bytes from the start of the tensor data.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int

    @property
    def n_weights(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Bytes of its data, without padding."""
        return self.n_bytes_as(self.type_name)

    def n_bytes_as(self, type_name: str) -> int:
        """Return the bytes that it would take in another type."""
        row = TENSOR_TYPES[type_name]
        return self.n_weights // row.block_weights * row.block_bytes


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """All but the weights.

    Attributes:
        path: The file.
        metadata: Values by key; arrays (the vocabulary) are left out.
        tensors: In the order of the file.
        header_bytes: Length of metadata and tensor table, without the padding that follows.
        size_bytes: Length of the file.
    """

    path: Path
    metadata: dict[str, Scalar]
    tensors: tuple[TensorEntry, ...]
    header_bytes: int
    size_bytes: int

    @property
    def n_weights(self) -> int:
        """Elements of all tensors."""
        return sum(tensor.n_weights for tensor in self.tensors)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors, without padding."""
        return sum(tensor.n_bytes for tensor in self.tensors)


def read_header(path: str | os.PathLike[str]) -> GGUFHeader:
    """Read the header of a GGUF file and check that the file is long enough for the tensors it names.

    Raises:
        ModelNotFoundError: No such file, or a folder.
        GGUFError: Not a GGUF file, damaged, or cut off.
        UnsupportedError: A version or tensor type that is not known here.
    """
    path = Path(path)
    if not path.is_file():
        kind = "a folder, not a GGUF file" if path.is_dir() else "no such file"
        if path.exists() and not path.is_dir():
            kind = "a pipe or a device, not a file"
        raise ModelNotFoundError(
            f"{path}: {kind}",
            hint="A checkpoint becomes a GGUF file by: qwen-edge convert CHECKPOINT -o FILE",
        )
    with reading(path), path.open("rb") as file:
        magic = file.read(len(_MAGIC))
        if magic != _MAGIC:
            begins = f"it begins with {magic.decode('latin-1')!r}, not 'GGUF'" if magic else "it is empty"
            raise GGUFError(
                f"{path} is no GGUF file: {begins}",
                hint="A checkpoint becomes one by: qwen-edge convert CHECKPOINT -o FILE",
            )
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(path, _Cursor(path, data))


def read_parameters(path: Path) -> dict[str, Scalar]:
    """Read the metadata that stands before the vocabulary: the sizes of the model, in no time.

    Converters write them there; of a file in which they stand behind it, they are missing from the answer.

    Raises:
        ModelNotFoundError: No such file.
        GGUFError: The file is damaged or cut off before the vocabulary.
        OSError, ValueError: It cannot be read, or is empty.
    """
    metadata: dict[str, Scalar] = {}
    if not path.is_file():
        raise ModelNotFoundError(f"no file {path}")  # opening a pipe would wait for its writer
    # Not all of it: a file of gigabytes may be more than a limit of the address space allows.
    length = min(path.stat().st_size, _PARAMETER_BYTES)
    with path.open("rb") as file, mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(path, data)
        cursor.take(4 + 8)  # version, number of tensors
        for _ in range(cursor.integer("Q")):
            key, kind = cursor.text(), cursor.integer("I")
            if key.startswith("tokenizer."):
                break
            if (value := cursor.value(key, kind)) is not None:
                metadata[key] = value
    return metadata


class _Cursor:
    """A position in the file that never leaves it."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.position = len(_MAGIC)

    def take(self, n_bytes: int) -> int:
        """Step over n_bytes and return where they begin."""
        start = self.position
        self.position += n_bytes
        if self.position > len(self.data):
            raise GGUFError(
                f"{self.path} is cut off: its header goes on behind byte {len(self.data)}, where the file ends",
                hint="Download or convert it again.",
            )
        return start

    def number(self, code: str) -> Scalar:
        layout = f"<{code}"
        start = self.take(struct.calcsize(layout))
        value: Scalar = struct.unpack_from(layout, self.data, start)[0]
        return value

    def integer(self, code: str) -> int:
        return int(self.number(code))

    def text(self) -> str:
        n_bytes = self.integer("Q")
        start = self.take(n_bytes)
        return self.data[start : start + n_bytes].decode("utf-8", "replace")

    def value(self, key: str, kind: int) -> Scalar | None:
        """Step over a value of the metadata and return it; None for an array."""
        if kind in _SCALAR_FORMATS:
            return self.number(_SCALAR_FORMATS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise self.damaged(f"metadata {key!r} has type {kind}")
        self.skip_array()
        return None

    def skip_array(self) -> None:
        kind, count = self.integer("I"), self.integer("Q")
        if kind in _SCALAR_FORMATS:
            self.take(count * struct.calcsize(f"<{_SCALAR_FORMATS[kind]}"))
        elif kind == _STRING:
            for _ in range(count):
                self.take(self.integer("Q"))
        else:
            raise self.damaged(f"an array of type {kind}")

    def damaged(self, what: str) -> GGUFError:
        return GGUFError(
            f"{self.path} is damaged: {what} near byte {self.position}",
            hint="Download or convert it again.",
        )


def _parse(path: Path, cursor: _Cursor) -> GGUFHeader:
    version = cursor.integer("I")
    if int.from_bytes(version.to_bytes(4, "little"), "big") in (2, 3):
        raise UnsupportedError(
            f"{path} is big-endian; little-endian GGUF files can be read",
            hint="Take the file for little-endian machines, or convert the checkpoint.",
        )
    if version not in (2, 3):
        raise UnsupportedError(
            f"{path} is GGUF version {version}; versions 2 and 3, little-endian, can be read",
            hint="Convert the checkpoint again.",
        )
    n_tensors, n_values = cursor.integer("Q"), cursor.integer("Q")
    metadata: dict[str, Scalar] = {}
    for _ in range(n_values):
        key, kind = cursor.text(), cursor.integer("I")
        if (value := cursor.value(key, kind)) is not None:
            metadata[key] = value
    tensors = tuple(_parse_tensor(cursor) for _ in range(n_tensors))
    names = [tensor.name for tensor in tensors]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise cursor.damaged(f"the tensor {twice!r} stands twice in it")
    header = GGUFHeader(path, metadata, tensors, cursor.position, len(cursor.data))
    _check_length(header)
    return header


def _parse_tensor(cursor: _Cursor) -> TensorEntry:
    name, n_dimensions = cursor.text(), cursor.integer("I")
    if not 0 < n_dimensions <= _MAX_DIMENSIONS:
        raise cursor.damaged(f"tensor {name!r} has {n_dimensions} dimensions")
    shape = tuple(cursor.integer("Q") for _ in range(n_dimensions))
    ggml_id, offset = cursor.integer("I"), cursor.integer("Q")
    type_name = _TYPE_NAMES.get(ggml_id)
    if type_name is None:
        raise UnsupportedError(
            f"tensor {name!r} of {cursor.path} has the ggml type {ggml_id}; known are {', '.join(TENSOR_TYPES)}",
            hint="Convert the checkpoint again to F16 or BF16.",
        )
    if shape[0] % TENSOR_TYPES[type_name].block_weights:
        raise cursor.damaged(f"tensor {name!r} has rows of {shape[0]} in {type_name}")
    return TensorEntry(name, shape, type_name, offset)


def _check_length(header: GGUFHeader) -> None:
    alignment = int(header.metadata.get("general.alignment", DEFAULT_ALIGNMENT))
    data_start = padded(header.header_bytes, alignment)
    stated = max((data_start + tensor.offset + tensor.n_bytes for tensor in header.tensors), default=0)
    if stated > header.size_bytes:
        raise GGUFError(
            f"{header.path} is cut off: its tensors end at byte {stated:,}, the file at {header.size_bytes:,}",
            hint="Download or convert it again.",
        )


def padded(n_bytes: int, alignment: int = DEFAULT_ALIGNMENT) -> int:
    """Return n_bytes rounded up to a multiple of the alignment."""
    return -(-n_bytes // alignment) * alignment
