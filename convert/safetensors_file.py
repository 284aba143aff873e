"""One safetensors file: its header, checked, and its tensors, read in bounded pieces.

The `safetensors` package maps the whole file and hands out whole tensors; pages once touched count as this
process's memory, so its peak is the size of the checkpoint. The header is small and simple, and reading it here
also lets each defect be named.

Source: the format description in the safetensors repository (README, "Format").
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_edge.convert.json_files import parse_object, shorten
from qwen_edge.errors import CheckpointError, UnsupportedError
from qwen_edge.files import reading

# Bytes an element; other types exist (FP8, integers) and are no plain weights.
ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4}

_LENGTH_BYTES = 8
# The limit that the reference implementation sets.
_MAX_HEADER_BYTES = 100_000_000
_MAX_DIMENSIONS = 8
_REFETCH = "Fetch the file again, or compare its size and SHA-256 with the hub's."


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies.

    Attributes:
        name: Its name in the checkpoint.
        dtype: "BF16", "F16", "F32", or another name of the format, which `check_convertible` refuses.
        shape: Rows first, as in the checkpoint.
        path: The file.
        offset: Of its first byte, from the start of the file.
        n_bytes: Its length.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    n_bytes: int

    @property
    def n_elements(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    def check_convertible(self) -> None:
        """Check that the type is one that can be converted.

        Raises:
            UnsupportedError: It is not BF16, F16 or F32.
        """
        if self.dtype not in ITEM_BYTES:
            raise UnsupportedError(
                f"{self.name!r} in {self.path} is stored as {self.dtype}; supported are {', '.join(ITEM_BYTES)}",
                hint="Take the checkpoint that was published at original precision.",
            )

    def read_pieces(self, piece_bytes: int) -> Generator[bytes, None, None]:
        """Yield the tensor's bytes in order, at most `piece_bytes` at a time.

        Raises:
            CheckpointError: The file ends early (it was complete when its header was read).
            OSError: It cannot be read.
        """
        with reading(self.path), self.path.open("rb") as file:
            file.seek(self.offset)
            left = self.n_bytes
            while left:
                piece = file.read(min(piece_bytes, left))
                if len(piece) < min(piece_bytes, left):
                    raise CheckpointError(
                        f"{self.path} ends {left} bytes before the end of {self.name!r}: it changed while it was read",
                        hint="Let nothing write to the checkpoint, and start again.",
                    )
                left -= len(piece)
                yield piece


def read_header(path: Path) -> list[TensorEntry]:
    """Read the header of a safetensors file and check it against the file's size.

    Returns:
        The tensors in the order of their bytes.

    Raises:
        CheckpointError: Not a safetensors file, truncated, or a header that contradicts itself.
        ReadError: It cannot be read.
    """
    file_bytes = path.stat().st_size
    with reading(path), path.open("rb") as file:
        prefix = file.read(_LENGTH_BYTES)
        header_bytes = int.from_bytes(prefix, "little")
        if len(prefix) < _LENGTH_BYTES or header_bytes > min(file_bytes - _LENGTH_BYTES, _MAX_HEADER_BYTES):
            raise CheckpointError(
                f"{path} is not a safetensors file, or is cut off inside its header: "
                f"{file_bytes} bytes, header length {header_bytes}",
                hint=_REFETCH,
            )
        header = parse_object(file.read(header_bytes), f"{path} (header)")
    header.pop("__metadata__", None)
    data_start = _LENGTH_BYTES + header_bytes
    entries = [_entry(name, value, path, data_start) for name, value in header.items()]
    entries.sort(key=lambda entry: (entry.offset, entry.n_bytes))
    _check_coverage(entries, path, data_start, file_bytes)
    return entries


def _entry(name: str, value: Any, path: Path, data_start: int) -> TensorEntry:
    def wrong(what: str) -> CheckpointError:
        return CheckpointError(f"{path} (header): {name!r} {what}", hint=_REFETCH)

    if any("\ud800" <= char <= "\udfff" for char in name):
        raise wrong("is no Unicode text")
    if not isinstance(value, dict) or not {"dtype", "shape", "data_offsets"} <= value.keys():
        raise wrong(f"is {shorten(value)}, expected an object with dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str):
        raise wrong(f"has dtype {shorten(dtype)}, expected a name such as BF16")
    if not _is_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise wrong(f"has shape {shorten(shape)}, expected a list of at most {_MAX_DIMENSIONS} sizes")
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise wrong(f"has data_offsets {shorten(offsets)}, expected [begin, end]")
    begin, end = offsets
    if dtype in ITEM_BYTES and end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise wrong(
            f"spans {end - begin} bytes, but {dtype} of shape {shape} takes {math.prod(shape) * ITEM_BYTES[dtype]}"
        )
    return TensorEntry(name, dtype, tuple(shape), path, data_start + begin, end - begin)


def _check_coverage(entries: list[TensorEntry], path: Path, data_start: int, file_bytes: int) -> None:
    """Check that the tensors fill the file without hole or overlap, as the format demands."""
    position = data_start
    for entry in entries:
        if entry.offset != position:
            raise CheckpointError(
                f"{path} (header): {entry.name!r} begins at byte {entry.offset}, expected {position}: "
                f"tensors {'overlap' if entry.offset < position else 'leave a hole'}",
                hint=_REFETCH,
            )
        position += entry.n_bytes
    if position != file_bytes:
        what = "is truncated" if file_bytes < position else "has bytes that no tensor claims"
        cut = next((entry.name for entry in entries if entry.offset + entry.n_bytes > file_bytes), None)
        raise CheckpointError(
            f"{path} {what}: its header describes {position} bytes, the file has {file_bytes}"
            + (f"; the first incomplete tensor is {cut!r}" if cut is not None else ""),
            hint=_REFETCH,
        )


def _is_sizes(value: Any) -> bool:
    """Tell whether a JSON value is a list of integers that are sizes (below 2^63)."""
    return isinstance(value, list) and all(
        isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 2**63 for item in value
    )
