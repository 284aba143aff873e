"""The weights of an ONNX model: one file beside the graph, laid out first and written in passes over the checkpoint.

An initializer in the graph says where its bytes lie, so the graph can be written before them. Two initializers may name
the same bytes under different shapes: that is how a tied embedding is stored once.

Source: ONNX, docs/ExternalData.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from qwen_edge.convert.onnx_blocks import BlockFormat, Rounding, joined_zeros, quantize_rows, signed_levels
from qwen_edge.convert.rows import row_slices
from qwen_edge.convert.tensor_source import TensorSource
from qwen_edge.errors import MissingExtraError, UnsupportedError

try:
    from onnx import TensorProto
except ImportError as error:
    raise MissingExtraError("onnx", "convert", "writing an ONNX model") from error

DATA_NAME = "model.onnx.data"
# So that a reader can map large tensors by themselves: a page, and a cache line for small ones.
_PAGE_BYTES, _LINE_BYTES = 4096, 64
_LARGE_BYTES = 1 << 20
# Rows that are read at a time: quantizing takes about ten times as much memory.
_SLICE_BYTES = 4 << 20

# (bits, symmetric) -> type of levels in a plain graph.
_PLAIN_TYPES = {
    (4, True): TensorProto.INT4,
    (4, False): TensorProto.UINT4,
    (8, True): TensorProto.INT8,
    (8, False): TensorProto.UINT8,
}
_ITEM_BYTES = {TensorProto.FLOAT: 4, TensorProto.FLOAT16: 2, TensorProto.UINT8: 1}


class Region:
    """Bytes of the data file that an initializer stands for."""

    def __init__(self, data_type: int, shape: Sequence[int], offset: int, n_bytes: int) -> None:
        self.data_type = data_type
        self.shape = tuple(shape)
        self.offset = offset
        self.n_bytes = n_bytes

    def initializer(self, name: str) -> TensorProto:
        """Return the tensor of a graph that points here."""
        tensor = TensorProto(name=name, data_type=self.data_type, dims=self.shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", DATA_NAME), ("offset", self.offset), ("length", self.n_bytes)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    def reshaped(self, data_type: int, shape: Sequence[int]) -> Region:
        """Return the same bytes as a tensor of another type or shape."""
        return Region(data_type, shape, self.offset, self.n_bytes)


class DataFile:
    """The layout of the data file, and the passes that fill it."""

    def __init__(self) -> None:
        self.n_bytes = 0
        self._passes: list[Callable[[BinaryIO, Callable[[int], None]], None]] = []

    def reserve(self, data_type: int, shape: Sequence[int], n_bytes: int | None = None) -> Region:
        """Set bytes aside.

        Args:
            data_type: Of TensorProto.
            shape: Of the tensor.
            n_bytes: Its length, for a type of less than a byte.
        """
        if n_bytes is None:
            n_bytes = math.prod(shape) * _ITEM_BYTES[data_type]
        alignment = _PAGE_BYTES if n_bytes >= _LARGE_BYTES else _LINE_BYTES
        offset = -(-self.n_bytes // alignment) * alignment
        self.n_bytes = offset + n_bytes
        return Region(data_type, shape, offset, n_bytes)

    def add_array(self, values: NDArray[np.float32]) -> Region:
        """Set a float32 array aside and keep it until it is written."""
        region = self.reserve(TensorProto.FLOAT, values.shape)

        def fill(file: BinaryIO, done: Callable[[int], None]) -> None:
            file.seek(region.offset)
            file.write(np.ascontiguousarray(values, "<f4").data)
            done(region.n_bytes)

        self._passes.append(fill)
        return region

    def add_floats(self, sources: Sequence[TensorSource], *, is_half: bool) -> Region:
        """Set matrices of equal width, one below the other, or vectors aside as F16 or F32.

        Raises:
            UnsupportedError: When written: a weight is beyond F16's range.
        """
        shape = _stacked(sources)
        region = self.reserve(TensorProto.FLOAT16 if is_half else TensorProto.FLOAT, shape)

        def fill(file: BinaryIO, done: Callable[[int], None]) -> None:
            file.seek(region.offset)
            for source in sources:
                for _, rows in row_slices(source, _SLICE_BYTES):
                    stored = _half(rows, source) if is_half else rows.astype("<f4", copy=False)
                    written = file.write(stored.data)
                    done(written)

        self._passes.append(fill)
        return region

    def add_blocks(
        self,
        sources: Sequence[TensorSource],
        form: BlockFormat,
        rounding: Rounding,
        importance: NDArray[np.float32] | None,
        *,
        is_plain: bool = False,
    ) -> tuple[Region, Region, Region | None]:
        """Set matrices of equal width, one below the other, aside as blocks of few bits.

        Args:
            sources: The matrices.
            form: Bits and block size.
            rounding: How levels are chosen.
            importance: See quantize_rows().
            is_plain: As DequantizeLinear of the ONNX standard reads them, instead of MatMulNBits: levels and zero points
                are tensors of 4 or 8 bit numbers, signed in a symmetric format.

        Returns:
            Levels, scales (F16) and, in a format that has them, zero points.
        """
        n_rows, columns = _stacked(sources)
        if is_plain:
            levels, scales, zeros = self._reserve_plain(form, n_rows, columns)
        else:
            levels = self.reserve(TensorProto.UINT8, form.packed_shape(n_rows, columns))
            scales = self.reserve(TensorProto.FLOAT16, (n_rows, form.blocks(columns)))
            zeros = (
                None if form.symmetric else self.reserve(TensorProto.UINT8, form.zeros_shape(n_rows, columns))
            )

        def fill(file: BinaryIO, done: Callable[[int], None]) -> None:
            cursors = [levels.offset, scales.offset, zeros.offset if zeros is not None else 0]

            def put(index: int, array: NDArray[np.uint8] | NDArray[np.float16]) -> None:
                file.seek(cursors[index])
                file.write(np.ascontiguousarray(array).data)
                cursors[index] += array.nbytes
                done(array.nbytes)

            # Rows of zero points may end within a byte in a tensor of 4-bit numbers, so these are packed at the end.
            zero_rows: list[NDArray[np.uint8]] = []
            for source in sources:
                for _, rows in row_slices(source, _SLICE_BYTES):
                    blocks = quantize_rows(rows, form, rounding, importance)
                    put(0, signed_levels(blocks.packed, form) if is_plain else blocks.packed)
                    put(1, blocks.scales)
                    if blocks.zeros is not None and not is_plain:
                        put(2, blocks.zeros)
                    elif blocks.zeros is not None:
                        zero_rows.append(blocks.zeros)
            if zero_rows:
                put(2, joined_zeros(np.concatenate(zero_rows), form, form.blocks(columns)))

        self._passes.append(fill)
        return levels, scales, zeros

    def _reserve_plain(
        self, form: BlockFormat, n_rows: int, columns: int
    ) -> tuple[Region, Region, Region | None]:
        n_blocks = form.blocks(columns)
        kind = _PLAIN_TYPES[form.bits, form.symmetric]
        count = n_rows * n_blocks * form.block_size
        levels = self.reserve(kind, (n_rows, n_blocks * form.block_size), count * form.bits // 8)
        scales = self.reserve(TensorProto.FLOAT16, (n_rows, n_blocks))
        if form.symmetric:
            return levels, scales, None
        return levels, scales, self.reserve(kind, (n_rows, n_blocks), -(-n_rows * n_blocks * form.bits // 8))

    def write(self, path: Path, progress: Callable[[int, int], None] | None = None) -> None:
        """Write the file.

        Args:
            path: Where; it is made anew.
            progress: Called with (done_bytes, total_bytes).

        Raises:
            CheckpointError, UnsupportedError: A weight is no number, or beyond the type.
            OSError: A file cannot be read or written.
        """
        done_bytes = 0

        def done(count: int) -> None:
            nonlocal done_bytes
            done_bytes += count
            if progress is not None:
                progress(done_bytes, self.n_bytes)

        with path.open("wb") as file:
            for fill in self._passes:
                fill(file, done)
            file.truncate(self.n_bytes)


def _stacked(sources: Sequence[TensorSource]) -> tuple[int, ...]:
    """Return the shape of tensors one below the other."""
    first = sources[0].shape
    return (sum(source.shape[0] for source in sources), *first[1:])


def _half(rows: NDArray[np.float32], source: TensorSource) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = rows.astype("<f2")
    if not np.isfinite(half).all():
        raise UnsupportedError(
            f"{source.name!r} holds a weight of {np.abs(rows).max():.4g}, beyond the largest F16 value, 65504",
            hint="Export with --weights f32, or with int8 or int4 weights.",
        )
    return half
