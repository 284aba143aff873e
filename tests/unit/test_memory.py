"""Sizes against published files, memory against measured processes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qwen_edge.catalog import MODELS, Shape
from qwen_edge.config import LoadConfig
from qwen_edge.errors import ConfigError, UnsupportedError
from qwen_edge.memory import (
    COMMON_TYPES,
    estimate_file_bytes,
    estimate_memory,
    estimate_published,
    estimate_tensor_bytes,
    fits_of,
)
from qwen_edge.memory_kernels import PLAIN, Kernels, rearranged_bytes
from qwen_edge.quant_types import FILE_TYPES, TENSOR_TYPES


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


AMX: Kernels = frozenset({"amx", "avx2", "avx512"})
AVX2: Kernels = frozenset({"avx2", "avx512"})


@pytest.mark.parametrize(
    ("name", "is_tied", "type_name", "settings", "kernels", "peak_bytes"),
    [
        ("qwen2.5-coder-0.5b", False, "Q4_0", {"n_ctx": 2048}, AMX, 684_429_312),
        (
            "qwen2.5-coder-0.5b",
            False,
            "Q4_0",
            {"n_ctx": 8192, "kv_type": "q8_0", "flash_attention": "on"},
            AMX,
            658_161_664,
        ),
        ("qwen2.5-coder-0.5b", False, "Q4_0", {"n_ctx": 8192, "load_mode": "mmap"}, AMX, 1_231_523_840),
        ("qwen2.5-coder-0.5b", False, "Q4_K_M", {"n_ctx": 2048}, AMX, 749_281_280),
    ],
)
def test_memory_is_that_of_a_measured_process(
    name: str,
    is_tied: bool,
    type_name: str,
    settings: dict[str, Any],
    kernels: Kernels,
    peak_bytes: int,
) -> None:
    """Peaks of whole processes with a full context: `python -m qwen_edge.bench.memory_prediction`."""
    shape = replace(shape_of(name), is_tied=is_tied)
    need = estimate_memory(shape, type_name, LoadConfig(**settings), kernels=kernels)
    assert need.total_bytes == pytest.approx(peak_bytes, rel=0.02)


def test_parts_of_an_estimate() -> None:
    shape, config = shape_of("qwen3-0.6b"), LoadConfig(n_ctx=2048)
    plain = estimate_memory(shape, "Q4_0", config, kernels=AVX2)
    copied = estimate_memory(shape, "Q4_0", config, kernels=AMX)
    assert plain.kv_bytes == 2048 * 112 * 1024
    assert plain.weights_bytes == estimate_tensor_bytes(shape, "Q4_0")
    assert (plain.head_copy_bytes, copied.head_copy_bytes) == (0, 151_936 * 1024 // 256 * 210)
    assert copied.total_bytes - plain.total_bytes == copied.head_copy_bytes
    packed = replace(config, kv_type="q8_0", flash_attention="on")
    assert estimate_memory(shape, "Q4_0", packed).kv_bytes == plain.kv_bytes * 17 // 32
    three = replace(config, n_sessions=3)
    assert estimate_memory(shape, "Q4_0", three).kv_bytes == 3 * plain.kv_bytes


def test_a_mapped_file_is_held_twice_where_kernels_rearrange_it() -> None:
    shape, config = shape_of("qwen3-0.6b"), LoadConfig(n_ctx=2048, load_mode="mmap")
    file_bytes = estimate_tensor_bytes(shape, "Q4_0")
    rearranged = estimate_memory(shape, "Q4_0", config, kernels=AVX2)
    as_it_lies = estimate_memory(shape, "Q4_0", replace(config, safe_kernels=True), kernels=AVX2)
    embedding_bytes = 151_936 * 1024 // 256 * 210
    assert rearranged.weights_bytes == pytest.approx(file_bytes - embedding_bytes, rel=0.01)
    assert as_it_lies.weights_bytes == 0
    assert as_it_lies.mapped_bytes == pytest.approx(file_bytes, rel=0.001)
    assert rearranged.total_bytes - as_it_lies.total_bytes == pytest.approx(
        rearranged.weights_bytes, rel=0.05
    )
    assert as_it_lies.wanted_bytes < as_it_lies.total_bytes - as_it_lies.mapped_bytes


def test_flash_attention_keeps_no_scores() -> None:
    shape = shape_of("qwen3-4b-instruct-2507")
    off = estimate_memory(shape, "Q4_K_M", LoadConfig(n_ctx=8192))
    on = estimate_memory(shape, "Q4_K_M", LoadConfig(n_ctx=8192, flash_attention="on"))
    # Scores of all heads and the mask in F32, scores once more in F16.
    assert off.compute_bytes > 4 * 512 * 8192 * (32 * 1.5 + 1)
    assert on.compute_bytes < off.compute_bytes / 8


def test_a_head_is_copied_only_where_it_is_tied_and_rearranged() -> None:
    shape, config = shape_of("qwen3-0.6b"), LoadConfig(n_ctx=512)
    assert estimate_memory(shape, "BF16", config, kernels=AMX).head_copy_bytes == 0
    assert estimate_memory(shape, "F16", config, kernels=AMX).head_copy_bytes > 0
    untied = replace(shape, is_tied=False)
    assert estimate_memory(untied, "Q4_0", config, kernels=AMX).head_copy_bytes == 0


@pytest.mark.parametrize(
    ("type_name", "size", "kernels", "grows"),
    [
        ("Q4_0", (1024, 3072), {"avx2"}, 1.0),
        ("Q8_0", (1024, 3072), {"amx"}, 38 / 34),
        ("Q4_K", (1024, 3072), {"amx"}, 148 / 144),
        ("Q6_K", (1024, 3072), {"arm"}, 1.0),
        ("Q6_K", (1024, 3072), {"avx2"}, None),
        ("Q8_0", (1024, 3072), {"avx2"}, None),
        ("Q4_0", (1024, 3), {"avx2", "amx", "arm"}, None),
        ("F32", (1024, 3072), {"avx2", "amx", "arm"}, None),
    ],
)
def test_which_weights_are_rearranged(
    type_name: str, size: tuple[int, int], kernels: set[str], grows: float | None
) -> None:
    found = rearranged_bytes(type_name, *size, frozenset(kernels))  # type: ignore[arg-type]
    row = TENSOR_TYPES[type_name]
    n_bytes = size[0] * size[1] // row.block_weights * row.block_bytes
    assert found == (None if grows is None else round(n_bytes * grows))


def test_context_is_counted_in_steps_of_256() -> None:
    shape = shape_of("qwen3-0.6b")
    at = [
        estimate_memory(shape, "Q4_0", LoadConfig(n_ctx=n_ctx, n_batch=16)).total_bytes
        for n_ctx in (16, 256, 257, 512)
    ]
    assert at[0] == at[1] < at[2] == at[3]


@pytest.mark.parametrize("name", [row.name for row in MODELS.values() if row.published is None])
def test_common_types_are_larger_before_smaller(name: str) -> None:
    sizes = [estimate_file_bytes(shape_of(name), type_name) for type_name in COMMON_TYPES]
    assert sizes == sorted(sizes, reverse=True)


def test_types_that_cannot_be_estimated_are_refused() -> None:
    narrow = replace(shape_of("qwen3-0.6b"), hidden_size=960)
    with pytest.raises(UnsupportedError, match="Q1_0 wants rows that divide by 128"):
        estimate_file_bytes(narrow, "Q1_0")
    with pytest.raises(ConfigError, match="unknown quantization type"):
        estimate_file_bytes(narrow, "Q4_K_X")
    assert set(COMMON_TYPES) <= set(FILE_TYPES)


def test_what_fits() -> None:
    fits = fits_of(MODELS["qwen3-1.7b"], LoadConfig(), 2_500_000_000)
    assert tuple(fit.type_name for fit in fits) == COMMON_TYPES
    assert [fit.fits for fit in fits] == sorted(fit.fits for fit in fits), "what is smaller fits sooner"
    assert {fit.fits for fit in fits} == {True, False}
    for fit in fits:
        assert fit.fits == (fit.memory.wanted_bytes <= 2_500_000_000)


def test_a_model_that_is_not_converted_is_offered_as_published() -> None:
    for name, type_name in (("smollm2-135m", "Q4_1"), ("gemma-3-1b", "Q4_K_M"), ("qwen3-30b-a3b", "Q4_K_M")):
        (fit,) = fits_of(MODELS[name], LoadConfig(), 10**9)
        assert fit.type_name == type_name
        assert fit.memory.total_bytes > fit.file_bytes
        assert fit.fits == (name == "smollm2-135m")


def test_no_model_is_counted_beyond_its_own_context() -> None:
    model = MODELS["qwen2.5-0.5b"]
    assert fits_of(model, LoadConfig(n_ctx=1 << 20), 10**12) == fits_of(
        model, LoadConfig(n_ctx=model.n_ctx_train), 10**12
    )


def test_a_published_file_that_stays_as_it_lies_is_mapped_once() -> None:
    config = LoadConfig(load_mode="mmap")
    model = MODELS["gemma-3-1b"]
    fast, plain = (estimate_published(model, config, kernels=kernels) for kernels in (AVX2, PLAIN))
    assert fast.wanted_bytes - plain.wanted_bytes == fast.weights_bytes > plain.weights_bytes == 0
    assert estimate_published(model, replace(config, safe_kernels=True), kernels=AVX2) == plain
