"""Sizes against published files, memory against measured processes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qwen_edge.catalog import MODELS, Shape
from qwen_edge.errors import ConfigError, UnsupportedError
from qwen_edge.memory import COMMON_TYPES, estimate_file_bytes, estimate_memory, fits_of
from qwen_edge.quant_types import FILE_TYPES


def shape_of(name: str) -> Shape:
    shape = MODELS[name].shape
    assert shape is not None
    return shape


# Lengths of files that are on the hub, and of two that this library made.
PUBLISHED = [
    ("qwen3-0.6b", "Q8_0", 639_446_688),
    ("qwen3-0.6b", "Q4_0", 381_565_728),
    ("qwen3-4b-instruct-2507", "Q4_K_M", 2_497_281_120),
    ("qwen3-8b", "Q4_K_M", 5_027_784_512),
    ("qwen3-14b", "Q4_K_M", 9_001_753_984),
    ("qwen3-32b", "Q4_K_M", 19_762_150_048),
    ("llama-3.2-1b", "Q4_K_M", 807_694_464),
    ("smollm2-135m", "Q4_1", 98_362_432),
]


@pytest.mark.parametrize(("name", "type_name", "n_bytes"), PUBLISHED)
def test_size_is_that_of_the_published_file(name: str, type_name: str, n_bytes: int) -> None:
    assert estimate_file_bytes(shape_of(name), type_name) == pytest.approx(n_bytes, rel=0.01)


def test_an_untied_half_billion_in_rows_that_are_no_multiple_of_256() -> None:
    # Qwen's own GGUF files of Qwen2.5-0.5B hold a head of their own.
    shape = replace(shape_of("qwen2.5-coder-0.5b"), is_tied=False)
    assert estimate_file_bytes(shape, "Q4_K_M") == pytest.approx(491_400_064, rel=0.001)
    assert estimate_file_bytes(shape, "Q4_0") == pytest.approx(428_730_240, rel=0.001)
    assert estimate_file_bytes(shape, "Q8_0") == pytest.approx(675_710_848, rel=0.001)


@pytest.mark.parametrize(
    ("name", "is_tied", "type_name", "n_ctx", "peak_bytes"),
    [
        ("qwen2.5-coder-0.5b", False, "Q4_0", 2048, 660_516_864),
        ("qwen2.5-coder-0.5b", False, "Q4_0", 8192, 998_305_792),
        ("qwen2.5-coder-0.5b", False, "Q4_K_M", 4096, 828_137_472),
        ("qwen3-0.6b", True, "Q4_0", 2048, 954_118_144),
    ],
)
def test_memory_is_that_of_a_measured_process(
    name: str, is_tied: bool, type_name: str, n_ctx: int, peak_bytes: int
) -> None:
    """Peaks of whole processes with a full context, on a CPU with AMX: never less than measured, 4% more at most."""
    shape = replace(shape_of(name), is_tied=is_tied)
    total = estimate_memory(shape, type_name, n_ctx, copies_head=True).total_bytes
    assert peak_bytes <= total <= 1.04 * peak_bytes


def test_parts_of_an_estimate() -> None:
    shape = shape_of("qwen3-0.6b")
    plain = estimate_memory(shape, "Q4_0", 2048, copies_head=False)
    copied = estimate_memory(shape, "Q4_0", 2048, copies_head=True)
    assert plain.kv_bytes == 2048 * 112 * 1024
    assert plain.weights_bytes == estimate_file_bytes(shape, "Q4_0")
    assert (plain.head_copy_bytes, copied.head_copy_bytes) == (0, 151_936 * 1024 // 256 * 210)
    assert copied.total_bytes - plain.total_bytes == copied.head_copy_bytes
    assert estimate_memory(shape, "Q4_0", 2048, kv_item_bytes=34 / 32).kv_bytes == plain.kv_bytes * 17 // 32


def test_a_head_is_copied_only_where_it_is_tied_and_quantized() -> None:
    shape = shape_of("qwen3-0.6b")
    assert estimate_memory(shape, "BF16", 512, copies_head=True).head_copy_bytes == 0
    untied = replace(shape, is_tied=False)
    assert estimate_memory(untied, "Q4_0", 512, copies_head=True).head_copy_bytes == 0


def test_context_is_counted_in_steps_of_256() -> None:
    shape = shape_of("qwen3-0.6b")
    at = [estimate_memory(shape, "Q4_0", n_ctx).total_bytes for n_ctx in (16, 256, 257, 512)]
    assert at[0] == at[1] < at[2] == at[3]


@pytest.mark.parametrize("name", [row.name for row in MODELS.values() if row.published is None])
def test_common_types_are_larger_before_smaller(name: str) -> None:
    sizes = [estimate_file_bytes(shape_of(name), type_name) for type_name in COMMON_TYPES]
    assert sizes == sorted(sizes, reverse=True)


def test_types_that_cannot_be_estimated_are_refused() -> None:
    shape = shape_of("qwen3-0.6b")
    with pytest.raises(UnsupportedError, match="IQ2_XS is not estimated"):
        estimate_file_bytes(shape, "IQ2_XS")
    with pytest.raises(ConfigError, match="unknown quantization type"):
        estimate_file_bytes(shape, "Q4_K_X")
    assert set(COMMON_TYPES) <= set(FILE_TYPES)


def test_what_fits() -> None:
    fits = fits_of(MODELS["qwen3-1.7b"], 4096, 2_500_000_000)
    assert tuple(fit.type_name for fit in fits) == COMMON_TYPES
    assert [fit.fits for fit in fits] == sorted(fit.fits for fit in fits), "what is smaller fits sooner"
    assert {fit.fits for fit in fits} == {True, False}
    for fit in fits:
        assert fit.fits == (fit.memory.total_bytes <= 2_500_000_000)


def test_a_model_that_is_not_converted_is_offered_as_published() -> None:
    for name, type_name in (("smollm2-135m", "Q4_1"), ("gemma-3-1b", "Q4_K_M"), ("qwen3-30b-a3b", "Q4_K_M")):
        (fit,) = fits_of(MODELS[name], 4096, 10**9)
        assert fit.type_name == type_name
        assert fit.memory.total_bytes > fit.file_bytes
        assert fit.fits == (name == "smollm2-135m")


def test_no_model_is_counted_beyond_its_own_context() -> None:
    model = MODELS["qwen2.5-0.5b"]
    assert fits_of(model, 1 << 20, 10**12) == fits_of(model, model.n_ctx_train, 10**12)
