"""Blocks of 4 and 8 bit weights as ONNX Runtime's MatMulNBits and GatherBlockQuantized read them.

A row is cut into blocks; weight = (level - zero point) * scale of its block. Levels of 4 bits are packed two a byte, the
first in the low half. Without zero points the middle level, 8 or 128, is zero.

Source: ONNX Runtime, docs/ContribOperators.md, "com.microsoft.MatMulNBits" and "com.microsoft.GatherBlockQuantized".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qwen_edge.errors import ConfigError, UnsupportedError

BLOCK_SIZES = (32, 64, 128)
Rounding = Literal["nearest", "search"]
ROUNDINGS: tuple[Rounding, ...] = ("nearest", "search")

# How much further or less far than to its largest weight a block's levels may reach when scales are searched.
# Source: make_qx_quants in llama.cpp's ggml-quants.c tries 8 +- 0.9 levels in steps of a tenth.
_STRETCHES = np.arange(-9, 10) / 10
# The same for a range with a zero point, as shares of the range.
_SHRINKS = np.linspace(0.7, 1.0, 13)

Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockFormat:
    """How a matrix is cut into blocks of few bits.

    Attributes:
        bits: 4 or 8.
        block_size: Weights that share a scale: 32, 64 or 128.
        symmetric: Zero is the middle level; otherwise each block has a zero point.
    """

    bits: Literal[4, 8]
    block_size: int = 32
    symmetric: bool = True

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise ConfigError(f"bits must be 4 or 8 (not {self.bits!r})")
        if self.block_size not in BLOCK_SIZES:
            allowed = ", ".join(map(str, BLOCK_SIZES))
            raise ConfigError(f"the block size must be one of {allowed} (not {self.block_size!r})")

    @property
    def middle(self) -> int:
        """The level that means zero where there are no zero points."""
        return 1 << (self.bits - 1)

    @property
    def highest(self) -> int:
        """The highest level; the lowest is 0."""
        return (1 << self.bits) - 1

    def blocks(self, columns: int) -> int:
        """Return the blocks of a row; the last one is filled with zeros."""
        return -(-columns // self.block_size)

    def packed_shape(self, rows: int, columns: int) -> tuple[int, int, int]:
        """Return the shape of the levels: rows, blocks, bytes of a block."""
        return rows, self.blocks(columns), self.block_size * self.bits // 8

    def zeros_shape(self, rows: int, columns: int) -> tuple[int, int]:
        """Return the shape of the zero points: rows, bytes."""
        return rows, -(-self.blocks(columns) * self.bits // 8)

    def bits_per_weight(self, columns: int) -> float:
        """Return what a weight takes on disk, scales (F16) and zero points included."""
        row_bytes = self.packed_shape(1, columns)[1] * (self.block_size * self.bits // 8 + 2)
        if not self.symmetric:
            row_bytes += self.zeros_shape(1, columns)[1]
        return row_bytes * 8 / columns


@dataclass(frozen=True, slots=True)
class Blocks:
    """Rows in blocks.

    Attributes:
        packed: Levels: uint8 [rows, blocks, block_size * bits / 8].
        scales: float16 [rows, blocks].
        zeros: Zero points, packed as levels are: uint8 [rows, ceil(blocks * bits / 8)]; None in a symmetric format.
    """

    packed: NDArray[np.uint8]
    scales: NDArray[np.float16]
    zeros: NDArray[np.uint8] | None


def quantize_rows(
    rows: Array, form: BlockFormat, rounding: Rounding = "nearest", importance: Array | None = None
) -> Blocks:
    """Bring weights into blocks.

    Args:
        rows: float32 [n, columns].
        form: Bits and block size.
        rounding: "nearest" spans each block's range and rounds; "search" tries ranges around it, fits the scale to the
            levels by least squares and keeps the best: smaller error, several times as long.
        importance: For "search", what an error in each column costs: float32 [columns], such as the mean square of its
            inputs. None weighs an error by the square of its weight, as llama.cpp does.

    Raises:
        UnsupportedError: A weight is so large that its block's scale is beyond F16.
    """
    blocks = _in_blocks(rows, form)
    _check_reach(blocks, form)
    if rounding == "nearest":
        levels, zeros, scales = (_nearest if form.symmetric else _nearest_with_zero)(blocks, form)
    else:
        weights = np.square(blocks) if importance is None else _in_blocks(importance[np.newaxis], form)
        levels, zeros, scales = (_search if form.symmetric else _search_with_zero)(blocks, form, weights)
    packed_zeros = None if form.symmetric else _pack(zeros[:, :, 0], form.bits)
    return Blocks(_pack(levels, form.bits), scales[:, :, 0], packed_zeros)


def dequantize_rows(blocks: Blocks, form: BlockFormat, columns: int) -> Array:
    """Return the weights that blocks stand for: float32 [n, columns]."""
    levels = _unpack(blocks.packed, form.bits).astype(np.float32)
    zeros: Array | np.float32 = np.float32(form.middle)
    if blocks.zeros is not None:
        zeros = _unpack(blocks.zeros, form.bits)[:, : blocks.scales.shape[1], np.newaxis].astype(np.float32)
    values = (levels - zeros) * blocks.scales[:, :, np.newaxis].astype(np.float32)
    result: Array = values.reshape(len(values), -1)[:, :columns]
    return result


def signed_levels(packed: NDArray[np.uint8], form: BlockFormat) -> NDArray[np.uint8]:
    """Return levels as two's complement around the middle, where the format is symmetric: what ONNX calls INT4, INT8."""
    if not form.symmetric:
        return packed
    return packed ^ np.uint8(0x88 if form.bits == 4 else 0x80)


def joined_zeros(zeros: NDArray[np.uint8], form: BlockFormat, n_blocks: int) -> NDArray[np.uint8]:
    """Return packed zero points without what fills a row's last byte: uint8 [ceil(rows * n_blocks * bits / 8)]."""
    return _pack(_unpack(zeros, form.bits)[:, :n_blocks].reshape(-1), form.bits)


def _in_blocks(rows: Array, form: BlockFormat) -> Array:
    """Return float32 [n, blocks, block_size], filled up with zeros."""
    n, columns = rows.shape
    missing = form.blocks(columns) * form.block_size - columns
    if missing:
        rows = np.pad(rows, ((0, 0), (0, missing)))
    return rows.reshape(n, -1, form.block_size)


def _check_reach(blocks: Array, form: BlockFormat) -> None:
    low, high = _range(blocks)
    # In float64, where the range of two float32 numbers is finite.
    scales = (high.astype(np.float64) - low) / form.highest
    if form.symmetric:
        scales = np.maximum(high, -low) / form.middle
    if scales.size and scales.max() > np.finfo(np.float16).max:
        raise UnsupportedError(
            f"a block with a weight of {np.abs(blocks).max():.4g} needs a scale of {scales.max():.4g}, "
            "beyond the largest F16 value, 65504",
            hint="Export with --weights f32.",
        )


def _nearest(blocks: Array, form: BlockFormat) -> tuple[Array, Array, NDArray[np.float16]]:
    scales = _stored(_extreme(blocks) / np.float32(-form.middle))
    return _levels(blocks, scales, form.middle, form), np.empty(0, np.float32), scales


def _nearest_with_zero(blocks: Array, form: BlockFormat) -> tuple[Array, Array, NDArray[np.float16]]:
    low, high = _range(blocks)
    scales = _stored((high - low) / np.float32(form.highest))
    zeros = _zero_points(low, scales, form)
    return _levels(blocks, scales, zeros, form), zeros, scales


def _search(blocks: Array, form: BlockFormat, weights: Array) -> tuple[Array, Array, NDArray[np.float16]]:
    extreme = _extreme(blocks)
    best = _Best(blocks, weights)
    for stretch in _STRETCHES:
        best.offer(extreme / np.float32(-(form.middle + stretch)), form.middle, form)
    return best.levels, np.empty(0, np.float32), best.scales


def _search_with_zero(
    blocks: Array, form: BlockFormat, weights: Array
) -> tuple[Array, Array, NDArray[np.float16]]:
    low, high = _range(blocks)
    best = _Best(blocks, weights)
    for shrink in _SHRINKS:
        scales = (high - low) * np.float32(shrink / form.highest)
        best.offer(scales, _zero_points(low * np.float32(shrink), _stored(scales), form), form)
    return best.levels, best.zeros, best.scales


class _Best:
    """The best levels so far of each block, by weighted squared error."""

    def __init__(self, blocks: Array, weights: Array) -> None:
        # An error where no weight says anything must cost something, or a block of zeros would have no best.
        self._weights = weights + np.float32(1e-12)
        self._blocks = blocks
        self._error = np.full((*blocks.shape[:2], 1), np.inf, np.float32)
        self.levels = np.zeros_like(blocks)
        self.zeros = np.zeros_like(self._error)
        self.scales = np.zeros(self._error.shape, np.float16)

    def offer(self, scales: Array, zeros: Array | int, form: BlockFormat) -> None:
        """Try scales: fit them to the levels that they give, and keep what is better than before."""
        levels = _levels(self._blocks, _stored(scales), zeros, form)
        signed = levels - zeros
        weighted = self._weights * signed
        square = (weighted * signed).sum(axis=2, keepdims=True)
        fitted = _stored(
            np.divide(
                (weighted * self._blocks).sum(axis=2, keepdims=True),
                square,
                out=np.zeros_like(square),
                where=square > 0,
            )
        )
        miss = self._blocks - signed * fitted.astype(np.float32)
        error = (self._weights * miss * miss).sum(axis=2, keepdims=True)
        better = error < self._error
        np.copyto(self.levels, levels, where=better)
        np.copyto(self.zeros, np.float32(zeros), where=better)
        np.copyto(self.scales, fitted, where=better)
        np.copyto(self._error, error, where=better)


def _extreme(blocks: Array) -> Array:
    """Return the weight of largest magnitude of each block, with its sign: float32 [n, blocks, 1]."""
    index = np.abs(blocks).argmax(axis=2, keepdims=True)
    extreme: Array = np.take_along_axis(blocks, index, axis=2)
    return extreme


def _range(blocks: Array) -> tuple[Array, Array]:
    """Return the lowest and highest weight of each block, zero included: float32 [n, blocks, 1] each."""
    low = np.minimum(blocks.min(axis=2, keepdims=True), np.float32(0))
    return low, np.maximum(blocks.max(axis=2, keepdims=True), np.float32(0))


def _zero_points(low: Array, scales: NDArray[np.float16], form: BlockFormat) -> Array:
    points: Array = np.rint(-low * _inverse(scales))
    np.clip(points, 0, form.highest, out=points)
    return points


def _stored(scales: Array) -> NDArray[np.float16]:
    """Round scales to what the file holds; a candidate of the search may be beyond it, and is then never the best."""
    with np.errstate(over="ignore"):
        return scales.astype(np.float16)


def _inverse(scales: NDArray[np.float16]) -> Array:
    wide = scales.astype(np.float32)
    result: Array = np.divide(np.float32(1), wide, out=np.zeros_like(wide), where=wide != 0)
    return result


def _levels(blocks: Array, scales: NDArray[np.float16], zeros: Array | int, form: BlockFormat) -> Array:
    """Return the level nearest to each weight: float32 of the blocks' shape, whole numbers."""
    levels = blocks * _inverse(scales)
    np.rint(levels, out=levels)
    levels += zeros
    np.clip(levels, 0, form.highest, out=levels)
    return levels


def _pack(levels: Array | NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Pack whole numbers along the last axis."""
    whole = levels.astype(np.uint8)
    if bits == 8:
        return whole
    if whole.shape[-1] % 2:
        whole = np.concatenate([whole, np.zeros((*whole.shape[:-1], 1), np.uint8)], axis=-1)
    packed: NDArray[np.uint8] = whole[..., 0::2] | (whole[..., 1::2] << np.uint8(4))
    return packed


def _unpack(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
