"""Blocks of 4 and 8 bits: what rounding promises, and what ONNX Runtime makes of the bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qwen_edge.convert.onnx_blocks import (
    BLOCK_SIZES,
    BlockFormat,
    Blocks,
    dequantize_rows,
    joined_zeros,
    quantize_rows,
    signed_levels,
)
from qwen_edge.errors import ConfigError, UnsupportedError

FORMS = [
    BlockFormat(bits=bits, block_size=size, symmetric=symmetric)  # type: ignore[arg-type]
    for bits in (4, 8)
    for size in BLOCK_SIZES
    for symmetric in (True, False)
]
forms = st.sampled_from(FORMS)


@st.composite
def matrices(draw: st.DrawFn) -> NDArray[np.float32]:
    """Rows of weights of all sizes that models have, some all zero, some with one large weight, some of one sign."""
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 200))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = generator.standard_normal((rows, columns)) * 10.0 ** draw(st.integers(-3, 2))
    shape = draw(st.sampled_from(["normal", "zero", "outlier", "positive", "few"]))
    if shape == "zero":
        values[draw(st.integers(0, rows - 1))] = 0
    elif shape == "outlier":
        values[draw(st.integers(0, rows - 1)), draw(st.integers(0, columns - 1))] *= 100
    elif shape == "positive":
        values = np.abs(values)
    elif shape == "few":
        values = np.sign(values)
    return values.astype(np.float32)


def unpacked(packed: NDArray[np.uint8], bits: int) -> NDArray[np.float32]:
    """Return levels, written otherwise than in the module."""
    if bits == 8:
        return packed.astype(np.float32)
    return np.array([[byte % 16, byte // 16] for byte in packed.ravel()], np.float32).reshape(
        *packed.shape[:-1], -1
    )


def per_weight(blocks: Blocks, form: BlockFormat, columns: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return scale and zero point of each weight, float64 [rows, columns]."""
    scales = np.repeat(blocks.scales.astype(np.float64), form.block_size, axis=1)[:, :columns]
    if blocks.zeros is None:
        return scales, np.full_like(scales, form.middle)
    zeros = unpacked(blocks.zeros, form.bits)[:, : blocks.scales.shape[1]]
    return scales, np.repeat(zeros.astype(np.float64), form.block_size, axis=1)[:, :columns]


@settings(deadline=None)
@given(matrices(), forms)
def test_nearest_is_off_by_half_a_step_at_most(rows: NDArray[np.float32], form: BlockFormat) -> None:
    blocks = quantize_rows(rows, form)
    scales, zeros = per_weight(blocks, form, rows.shape[1])
    steps = np.abs(scales)
    found = dequantize_rows(blocks, form, rows.shape[1])
    ends = np.sort([(0 - zeros) * scales, (form.highest - zeros) * scales], axis=0)
    beyond = np.maximum(ends[0] - rows, 0) + np.maximum(rows - ends[1], 0)
    assert (np.abs(found - rows) <= np.maximum(steps * 0.501, beyond) + 1e-30).all()
    # What is beyond the levels is at most one step there: 8 levels below zero, 7 above. F16 adds a thousandth of the
    # largest weight, or half its smallest step.
    assert (beyond <= steps * (1.02 if form.bits == 4 else 1.2) + form.highest * 2.0**-25).all()


def weighted_error(
    rows: NDArray[np.float32], blocks: Blocks, form: BlockFormat, weights: NDArray[np.float32]
) -> NDArray[np.float64]:
    miss = rows.astype(np.float64) - dequantize_rows(blocks, form, rows.shape[1])
    return (np.broadcast_to(weights, rows.shape) * miss**2).sum(axis=1)


@settings(deadline=None)
@given(matrices(), forms, st.booleans(), st.integers(0, 99))
def test_search_is_never_worse_than_nearest_by_its_own_measure(
    rows: NDArray[np.float32], form: BlockFormat, is_measured: bool, seed: int
) -> None:
    columns = rows.shape[1]
    generator = np.random.default_rng(seed)
    importance = generator.random(columns, np.float32) ** 4 if is_measured else None
    weights = importance if importance is not None else np.square(rows)
    nearest, searched = quantize_rows(rows, form), quantize_rows(rows, form, "search", importance)
    # A fitted scale is rounded to F16, by one part in 2,048.
    scales, zeros = per_weight(searched, form, columns)
    levels = unpacked(searched.packed, form.bits).reshape(len(rows), -1)[:, :columns]
    rounding = (np.broadcast_to(weights, rows.shape) * ((levels - zeros) * scales / 2048) ** 2).sum(axis=1)
    floor = 1e-12 * np.square(rows, dtype=np.float64).sum(axis=1)
    limit = weighted_error(rows, nearest, form, weights) * (1 + 1e-4) + rounding + floor
    assert (weighted_error(rows, searched, form, weights) <= limit).all()


def test_search_gains_where_weights_are_normal() -> None:
    rows = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    one = np.ones(256, np.float32)
    for symmetric in (True, False):
        form = BlockFormat(bits=4, symmetric=symmetric)
        before = weighted_error(rows, quantize_rows(rows, form), form, one).sum()
        after = weighted_error(rows, quantize_rows(rows, form, "search", one), form, one).sum()
        assert after < 0.95 * before


def test_importance_decides_which_columns_are_close() -> None:
    rows = np.random.default_rng(1).standard_normal((64, 256)).astype(np.float32)
    importance = np.where(np.arange(256) % 4 == 0, 100, 1).astype(np.float32)
    form = BlockFormat(bits=4)
    plain = dequantize_rows(quantize_rows(rows, form, "search", np.ones(256, np.float32)), form, 256)
    weighed = dequantize_rows(quantize_rows(rows, form, "search", importance), form, 256)
    misses = [np.square(found - rows).mean(axis=0) for found in (plain, weighed)]
    assert misses[1][::4].mean() < 0.8 * misses[0][::4].mean()
    assert misses[1].mean() > misses[0].mean(), "what is not important pays for it"


@settings(deadline=None)
@given(matrices(), forms, st.sampled_from(["nearest", "search"]))
def test_shapes_and_bits_are_as_told(rows: NDArray[np.float32], form: BlockFormat, rounding: Any) -> None:
    n, columns = rows.shape
    blocks = quantize_rows(rows, form, rounding)
    assert blocks.packed.shape == form.packed_shape(n, columns)
    assert (blocks.zeros is None) == form.symmetric
    arrays = [blocks.packed, blocks.scales]
    if blocks.zeros is not None:
        assert blocks.zeros.shape == form.zeros_shape(n, columns)
        arrays.append(blocks.zeros)
    assert sum(each.nbytes for each in arrays) * 8 / rows.size == pytest.approx(form.bits_per_weight(columns))
    # What fills the last block stands for zero, so that a kernel may multiply it.
    filled = dequantize_rows(blocks, form, form.blocks(columns) * form.block_size)
    assert not filled[:, columns:].any()


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 40), st.sampled_from([4, 8]), st.integers(0, 2**32 - 1))
def test_zero_points_without_gaps(n_rows: int, n_blocks: int, bits: Any, seed: int) -> None:
    rows = np.random.default_rng(seed).standard_normal((n_rows, n_blocks * 32)).astype(np.float32)
    form = BlockFormat(bits=bits, symmetric=False)
    blocks = quantize_rows(rows, form)
    assert blocks.zeros is not None
    each = unpacked(blocks.zeros, bits)[:, :n_blocks].ravel()
    joined = joined_zeros(blocks.zeros, form, n_blocks)
    assert len(joined) == -(-n_rows * n_blocks * bits // 8)
    np.testing.assert_array_equal(unpacked(joined, bits)[: len(each)], each)


@pytest.mark.parametrize("bits", [4, 8])
def test_signed_levels_are_the_same_around_zero(bits: Any) -> None:
    packed = np.arange(256, dtype=np.uint8)
    form = BlockFormat(bits=bits)
    signed = unpacked(signed_levels(packed, form), bits)
    as_signed = np.where(signed >= form.middle, signed - 2**bits, signed)
    np.testing.assert_array_equal(as_signed, unpacked(packed, bits) - form.middle)
    asymmetric = BlockFormat(bits=bits, symmetric=False)
    np.testing.assert_array_equal(signed_levels(packed, asymmetric), packed)


@pytest.mark.parametrize("rounding", ["nearest", "search"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_zeros_stay_zeros(form: BlockFormat, rounding: Any) -> None:
    rows = np.zeros((3, 130), np.float32)
    assert not dequantize_rows(quantize_rows(rows, form, rounding), form, 130).any()
    importance = np.zeros(130, np.float32)
    assert np.isfinite(dequantize_rows(quantize_rows(rows + 1, form, rounding, importance), form, 130)).all()


@pytest.mark.parametrize("rounding", ["nearest", "search"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_huge_weight_is_kept_or_refused(form: BlockFormat, rounding: Any) -> None:
    rows = np.full((2, 128), 0.01, np.float32)
    reach = form.middle if form.symmetric else form.highest
    rows[1, 70] = np.float32(65000) * reach
    found = dequantize_rows(quantize_rows(rows, form, rounding), form, 128)
    assert found[1, 70] == pytest.approx(rows[1, 70], rel=0.08 if form.bits == 4 else 0.01)
    np.testing.assert_allclose(found[0], rows[0], rtol=0.08)
    rows[1, 70] = np.float32(66000) * reach
    with pytest.raises(UnsupportedError, match="beyond the largest F16"):
        quantize_rows(rows, form, rounding)
    with pytest.raises(UnsupportedError, match="beyond the largest F16"):
        quantize_rows(np.array([[-3e38, 3e38]], np.float32), form, rounding)


@pytest.mark.parametrize("wrong", [{"bits": 3}, {"bits": 4, "block_size": 16}, {"bits": 4, "block_size": 48}])
def test_other_formats_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        BlockFormat(**wrong)
