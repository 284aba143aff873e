"""Weights as float32, whole or some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from qwen_edge.convert.dtypes import decode
from qwen_edge.convert.safetensors_file import ITEM_BYTES
from qwen_edge.convert.tensor_source import TensorSource
from qwen_edge.errors import CheckpointError

_SLICE_BYTES = 32 << 20
# Words of a stored number, and the bits that are all set where it is infinite or no number. Source: IEEE 754.
_EXPONENTS: dict[str, tuple[str, int]] = {
    "BF16": ("<u2", 0x7F80),
    "F16": ("<u2", 0x7C00),
    "F32": ("<u4", 0x7F800000),
}


def read_tensor(entry: TensorSource) -> NDArray[np.float32]:
    """Read a whole tensor as float32.

    Raises:
        CheckpointError: A value is infinite or no number, or the file is damaged.
        OSError: It cannot be read.
    """
    values = np.empty(entry.n_elements, np.float32)
    done = 0
    for piece in entry.read_pieces(_SLICE_BYTES):
        part = decode(piece, entry.dtype)
        values[done : done + len(part)] = part
        done += len(part)
    _check_finite(values, entry)
    return values.reshape(entry.shape)


def row_slices(
    entry: TensorSource, slice_bytes: int = _SLICE_BYTES
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield (number of the first row, float32 [rows, columns]) over a matrix; a vector is one row.

    Args:
        entry: A matrix or a vector.
        slice_bytes: Most bytes to read at a time; at least one row is.

    Raises:
        CheckpointError, OSError: As read_tensor().
    """
    columns = entry.shape[-1]
    row_bytes = columns * ITEM_BYTES[entry.dtype]
    first = 0
    for piece in entry.read_pieces(max(1, slice_bytes // row_bytes) * row_bytes):
        rows = decode(piece, entry.dtype).reshape(-1, columns)
        _check_finite(rows, entry)
        yield first, rows
        first += len(rows)


def check_finite_piece(piece: bytes, entry: TensorSource) -> None:
    """Check a piece of a tensor as it is stored, without making numbers of it.

    Raises:
        CheckpointError: A value is infinite or no number.
    """
    words, exponent = _EXPONENTS[entry.dtype]
    if ((np.frombuffer(piece, words) & exponent) == exponent).any():
        raise _not_finite_error(entry)


def _check_finite(values: NDArray[np.float32], entry: TensorSource) -> None:
    if not np.isfinite(values).all():
        raise _not_finite_error(entry)


def _not_finite_error(entry: TensorSource) -> CheckpointError:
    return CheckpointError(
        f"{entry.name!r} in {entry.path} holds a value that is infinite or no number",
        hint="Fetch the file again, or compare its SHA-256 with the hub's; if it stays so, the model is broken.",
    )
