"""What a GGUF file says of itself: metadata and the table of tensors, read without the weights.

A file may be damaged, or made to harm: counts and lengths are checked before anything is done with them, and what passes
here passes llama.cpp's own checks of the format (gguf_init_from_reader in ggml/src/gguf.cpp).

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
# Source: GGML_MAX_DIMS and GGML_MAX_NAME in ggml/include/ggml.h; the format's limit for keys.
_MAX_DIMENSIONS = 4
_MAX_NAME_BYTES = 63
_MAX_KEY_BYTES = 65_535
_MAX_WEIGHTS = 2**63 - 1
# Qwen's, with its vocabulary, has 6 MB. Sparse files have any length and cost nothing.
_MAX_HEADER_BYTES = 128 << 20
# The smallest that one can be: the length of a name, a type, a value; the length of a name, dimensions, type, offset.
_MIN_VALUE_BYTES, _MIN_TENSOR_BYTES = 8 + 4 + 1, 8 + 4 + 8 + 4 + 8
_ALIGNMENT_KEY, _ALIGNMENT_KIND = "general.alignment", 4

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
class ArrayEntry:
    """Where a list of values lies, such as the vocabulary.

    Attributes:
        kind: Type of its items, a number of the format.
        count: Items.
        start: Byte of the file at which the first one begins.
    """

    kind: int
    count: int
    start: int


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """All but the weights.

    Attributes:
        path: The file.
        metadata: Values by key; arrays (the vocabulary) are left out.
        arrays: Where those are, by key.
        tensors: In the order of the file.
        header_bytes: Length of metadata and tensor table, without the padding that follows.
        size_bytes: Length of the file.
    """

    path: Path
    metadata: dict[str, Scalar]
    arrays: dict[str, ArrayEntry]
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
        size_bytes = os.fstat(file.fileno()).st_size
        # Not all of it: a file of gigabytes may be more than a limit of the address space allows.
        mapped_bytes = min(size_bytes, _MAX_HEADER_BYTES)
        with mmap.mmap(file.fileno(), mapped_bytes, access=mmap.ACCESS_READ) as data:
            return _parse(_Cursor(path, data, size_bytes))


def read_texts(header: GGUFHeader, key: str) -> list[bytes]:
    """Return the texts of an array, undecoded; [] where the file has no such array of texts.

    Raises:
        GGUFError: The file has become shorter since its header was read.
        OSError: It cannot be read.
    """
    entry = header.arrays.get(key)
    if entry is None or entry.kind != _STRING:
        return []
    with header.path.open("rb") as file:
        file.seek(entry.start)
        data = file.read(header.header_bytes - entry.start)
    length, texts, position = struct.Struct("<Q").unpack_from, [], 0
    for _ in range(entry.count):
        if position + 8 > len(data):
            raise GGUFError(f"{header.path} changed while it was read", hint="Let nothing write to it.")
        end = position + 8 + length(data, position)[0]
        texts.append(data[position + 8 : end])
        position = end
    return texts


class _Cursor:
    """A position in the header that never leaves it."""

    def __init__(self, path: Path, data: mmap.mmap, size_bytes: int) -> None:
        self.path = path
        self.data = data
        self.size_bytes = size_bytes
        self.position = len(_MAGIC)
        self.end = len(data)

    def take(self, n_bytes: int) -> int:
        """Step over n_bytes and return where they begin."""
        start = self.position
        self.position += n_bytes
        if self.position > self.end:
            raise self.too_short()
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

    def name(self, what: str, max_bytes: int) -> str:
        """Return the name of a value or tensor, which identifies it."""
        n_bytes = self.integer("Q")
        if not 0 < n_bytes <= max_bytes:
            raise self.damaged(f"the name of a {what} of {n_bytes} bytes")
        start = self.take(n_bytes)
        try:
            return self.data[start : start + n_bytes].decode("utf-8")
        except UnicodeDecodeError:
            raise self.damaged(f"the name of a {what} that is no UTF-8") from None

    def value(self) -> tuple[str, Scalar | ArrayEntry]:
        """Return the next key of the metadata with its value, or with the place of its array."""
        key, kind = self.name("value", _MAX_KEY_BYTES), self.integer("I")
        if key == _ALIGNMENT_KEY and kind != _ALIGNMENT_KIND:
            raise self.damaged(f"{_ALIGNMENT_KEY} has type {kind}, expected {_ALIGNMENT_KIND}")
        if kind in _SCALAR_FORMATS:
            return key, self.number(_SCALAR_FORMATS[kind])
        if kind == _STRING:
            return key, self.text()
        if kind == _ARRAY:
            return key, self.skip_array()
        raise self.damaged(f"metadata {key!r} has type {kind}")

    def skip_array(self) -> ArrayEntry:
        kind, count = self.integer("I"), self.integer("Q")
        entry = ArrayEntry(kind, count, self.position)
        if kind in _SCALAR_FORMATS:
            self.take(count * struct.calcsize(f"<{_SCALAR_FORMATS[kind]}"))
        elif kind == _STRING:
            self._skip_texts(count)
        else:
            raise self.damaged(f"an array of type {kind}")
        return entry

    def _skip_texts(self, count: int) -> None:
        if count * 8 > self.end - self.position:
            raise self.too_short()
        # Local names: a vocabulary has 300,000 of them.
        length, data, position, last = struct.Struct("<Q").unpack_from, self.data, self.position, self.end - 8
        for _ in range(count):
            if position > last:
                raise self.too_short()
            position += 8 + length(data, position)[0]
        self.take(position - self.position)

    def damaged(self, what: str) -> GGUFError:
        return GGUFError(
            f"{self.path} is damaged: {what} near byte {self.position}",
            hint="Download or convert it again.",
        )

    def too_short(self) -> GGUFError:
        if self.end < self.size_bytes:
            return self.damaged(f"a header of more than {_MAX_HEADER_BYTES >> 20} MiB")
        return GGUFError(
            f"{self.path} is cut off: its header goes on behind byte {self.size_bytes}, where the file ends",
            hint="Download or convert it again.",
        )


def _parse(cursor: _Cursor) -> GGUFHeader:
    _check_version(cursor.path, cursor.integer("I"))
    n_tensors, n_values = cursor.integer("Q"), cursor.integer("Q")
    if n_tensors * _MIN_TENSOR_BYTES + n_values * _MIN_VALUE_BYTES > cursor.end - cursor.position:
        if max(n_tensors, n_values) > cursor.end:
            raise cursor.damaged(f"counts of {n_tensors:,} tensors and {n_values:,} values")
        raise cursor.too_short()
    metadata: dict[str, Scalar] = {}
    arrays: dict[str, ArrayEntry] = {}
    for _ in range(n_values):
        key, value = cursor.value()
        if key in metadata or key in arrays:
            raise cursor.damaged(f"the value {key!r} stands twice")
        if isinstance(value, ArrayEntry):
            arrays[key] = value
        else:
            metadata[key] = value
    tensors = tuple(_parse_tensor(cursor) for _ in range(n_tensors))
    header = GGUFHeader(cursor.path, metadata, arrays, tensors, cursor.position, cursor.size_bytes)
    _check_tensors(header)
    return header


def _check_version(path: Path, version: int) -> None:
    if version in (2, 3):
        return
    is_big_endian = int.from_bytes(version.to_bytes(4, "little"), "big") in (2, 3)
    found = "big-endian" if is_big_endian else f"GGUF version {version}"
    raise UnsupportedError(
        f"{path} is {found}; versions 2 and 3, little-endian, can be read",
        hint="Convert the checkpoint again.",
    )


def _parse_tensor(cursor: _Cursor) -> TensorEntry:
    name, n_dimensions = cursor.name("tensor", _MAX_NAME_BYTES), cursor.integer("I")
    if not 0 < n_dimensions <= _MAX_DIMENSIONS:
        raise cursor.damaged(f"tensor {name!r} has {n_dimensions} dimensions")
    shape = tuple(cursor.integer("Q") for _ in range(n_dimensions))
    if not 0 < math.prod(shape) <= _MAX_WEIGHTS:
        raise cursor.damaged(f"tensor {name!r} has shape {shape}")
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


def _check_tensors(header: GGUFHeader) -> None:
    """Check that the tensors follow one another without hole or overlap, and that the file holds them."""
    alignment = int(header.metadata.get(_ALIGNMENT_KEY, DEFAULT_ALIGNMENT))
    if alignment.bit_count() != 1:
        raise GGUFError(
            f"{header.path} is damaged: {_ALIGNMENT_KEY} is {alignment}, expected a power of 2",
            hint="Download or convert it again.",
        )
    names: set[str] = set()
    expected = end = 0
    for tensor in header.tensors:
        if tensor.name in names:
            what = f"the tensor {tensor.name!r} stands twice"
        elif tensor.offset != expected:
            what = f"the tensor {tensor.name!r} begins at byte {tensor.offset:,} of the data, expected {expected:,}"
        else:
            names.add(tensor.name)
            end = expected + tensor.n_bytes
            expected = padded(end, alignment)
            continue
        raise GGUFError(f"{header.path} is damaged: {what}", hint="Download or convert it again.")
    stated = padded(header.header_bytes, alignment) + end if header.tensors else 0
    if stated > header.size_bytes:
        raise GGUFError(
            f"{header.path} is cut off: its tensors end at byte {stated:,}, the file at {header.size_bytes:,}",
            hint="Download or convert it again.",
        )


def padded(n_bytes: int, alignment: int = DEFAULT_ALIGNMENT) -> int:
    """Return n_bytes rounded up to a multiple of the alignment."""
    return -(-n_bytes // alignment) * alignment
