from __future__ import annotations

import gguf
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_edge.convert.dtypes import OutputType, encode, stored_type
from qwen_edge.errors import UnsupportedError

# A loaded machine is no failure.
patiently = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

ALL_16_BITS = np.arange(2**16, dtype=np.uint16)
with np.errstate(invalid="ignore"):  # of signalling NaN, on ARM
    ALL_F16_AS_F32 = ALL_16_BITS.view(np.float16).astype(np.float32)
BF16, F16 = gguf.GGMLQuantizationType.BF16, gguf.GGMLQuantizationType.F16


@patiently
@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=64))
def test_bf16_rounds_like_gguf_for_any_bits(bits: list[int]) -> None:
    values = np.array(bits, dtype=np.uint32).view(np.float32)
    assert encode(values.tobytes(), "F32", "bf16") == gguf.quants.quantize(values, BF16).tobytes()


@patiently
@given(values=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=64))
def test_bf16_rounds_like_ml_dtypes(values: list[float]) -> None:
    array = np.array(values, dtype=np.float32)
    assert encode(array.tobytes(), "F32", "bf16") == array.astype(ml_dtypes.bfloat16).tobytes()


def test_bf16_ties_go_to_even() -> None:
    # Halfway between two neighbours, and one bit to either side of it.
    bits = np.array([0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001], dtype=np.uint32)
    assert np.frombuffer(encode(bits.tobytes(), "F32", "bf16"), np.uint16).tolist() == [
        0x3F80,
        0x3F82,
        0x3F80,
        0x3F81,
    ]


@patiently
@given(values=st.lists(st.floats(-65504, 65504, width=32), min_size=1, max_size=64))
def test_f16_rounds_like_gguf(values: list[float]) -> None:
    array = np.array(values, dtype=np.float32)
    assert encode(array.tobytes(), "F32", "f16") == gguf.quants.quantize(array, F16).tobytes()


def test_every_bf16_widens_to_f32() -> None:
    expected = ALL_16_BITS.view(ml_dtypes.bfloat16).astype(np.float32)
    found = np.frombuffer(encode(ALL_16_BITS.tobytes(), "BF16", "f32"), np.float32)
    assert np.array_equal(found, expected, equal_nan=True)


def test_every_f16_widens_to_f32() -> None:
    found = np.frombuffer(encode(ALL_16_BITS.tobytes(), "F16", "f32"), np.float32)
    assert np.array_equal(found, ALL_F16_AS_F32, equal_nan=True)


def test_every_f16_rounds_to_bf16_like_gguf() -> None:
    assert (
        encode(ALL_16_BITS.tobytes(), "F16", "bf16") == gguf.quants.quantize(ALL_F16_AS_F32, BF16).tobytes()
    )


@pytest.mark.parametrize(("source", "target"), [("BF16", "bf16"), ("F16", "f16"), ("F32", "f32")])
def test_the_same_format_is_copied(source: str, target: OutputType) -> None:
    assert encode(ALL_16_BITS.tobytes(), source, target) == ALL_16_BITS.tobytes()


def test_a_weight_too_large_for_f16_is_an_error_and_infinity_is_not_made() -> None:
    with pytest.raises(UnsupportedError, match=r"7e\+04.*65504") as raised:
        encode(np.array([1, -7e4], dtype=np.float32).tobytes(), "F32", "f16")
    assert "bf16" in str(raised.value.hint)


@pytest.mark.parametrize(
    ("name", "n_dimensions", "stored"),
    [
        ("token_embd.weight", 2, "bf16"),
        ("blk.0.ffn_down.weight", 2, "bf16"),
        ("blk.0.attn_q.bias", 1, "f32"),
        ("blk.0.attn_q_norm.weight", 1, "f32"),
        ("blk.0.attn_norm.weight", 2, "f32"),
        ("output_norm.weight", 1, "f32"),
    ],
)
def test_vectors_and_norms_stay_f32(name: str, n_dimensions: int, stored: str) -> None:
    assert stored_type(name, n_dimensions, "bf16") == stored
