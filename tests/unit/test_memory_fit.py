"""What fits in a limit of memory: against hand computations, and for any limit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_edge.catalog import MODELS
from qwen_edge.config import AUTO_N_CTX, LoadConfig
from qwen_edge.errors import ConfigError
from qwen_edge.memory import MemoryEstimate, estimate_memory
from qwen_edge.memory_fit import (
    FITTED_TYPES,
    ROOMY_N_CTX,
    MemoryFit,
    Variant,
    best_fit,
    budget_of,
    catalog_variants,
)
from qwen_edge.memory_kernels import PLAIN, Kernels

MB = 1_000_000
WANTED = LoadConfig(n_ctx=4096)


def toy(weights_mb: int, type_name: str = "Q8_0") -> Variant:
    """A file whose need can be counted in the head.

    Runtime 100 MB. KV cache 25 kB a token in F16, half of that in q8_0. Activations 0.2 MB a row of a batch without flash
    attention, 0.1 MB with it. Half of the weights are rearranged; of the mapped rest everything is read for each token.
    """

    def estimate(config: LoadConfig) -> MemoryEstimate:
        is_mapped = config.load_mode == "mmap"
        rearranged = 0 if config.safe_kernels else weights_mb * MB // 2
        plain = weights_mb * MB - rearranged
        return MemoryEstimate(
            weights_bytes=rearranged + (0 if is_mapped else plain),
            kv_bytes=config.n_ctx * (25_000 if config.kv_type == "f16" else 12_500),
            compute_bytes=config.n_batch * (200_000 if config.flash_attention == "off" else 100_000),
            head_copy_bytes=0,
            runtime_bytes=100 * MB,
            mapped_bytes=plain if is_mapped else 0,
            streamed_bytes=plain if is_mapped else 0,
        )

    return Variant(type_name=type_name, file_bytes=weights_mb * MB, estimate=estimate)


def fit_in(budget_mb: float, *variants: Variant, config: LoadConfig = WANTED) -> MemoryFit | None:
    """Return the fit where so much is left of a limit after the tenth."""
    return best_fit(variants, config, round(budget_mb * MB / 0.9) + 1, n_ctx_train=8192)


# 4096 tokens are 102.4 MB, 8192 are 204.8 MB; 512 rows are 102.4 MB, 64 rows 12.8 MB.
@pytest.mark.parametrize(
    ("budget_mb", "settings_found", "largest_n_ctx"),
    [
        # 600 + 100 + 102.4 + 102.4
        (904.8, {"n_ctx": 4096}, 4096),
        (1007.2, {"n_ctx": 4096}, 8192),
        # 600 + 100 + 51.2 + 5888 * 0.025
        (904.7, {"n_ctx": 4096, "n_batch": 256}, 5888),
        # 600 + 100 + 102.4 + 12.8
        (815.2, {"n_ctx": 4096, "n_batch": 64}, 4096),
        # 600 + 100 + 102.4 + 6.4; + 12.8 are 815.2
        (815.1, {"n_ctx": 4096, "n_batch": 64, "flash_attention": "on"}, 4096),
        # 600 + 100 + 51.2 + 51.2, and + 6.4
        (802.4, {"n_ctx": 4096, "flash_attention": "on", "kv_type": "q8_0"}, 4096),
        (757.6, {"n_ctx": 4096, "n_batch": 64, "flash_attention": "on", "kv_type": "q8_0"}, 4096),
        # 600 + 100 + 6.4 + 3072 * 0.0125
        (744.8, {"n_ctx": 3072, "n_batch": 64, "flash_attention": "on", "kv_type": "q8_0"}, 3072),
    ],
)
def test_settings_are_given_up_in_the_stated_order(
    budget_mb: float, settings_found: dict[str, Any], largest_n_ctx: int
) -> None:
    fit = fit_in(budget_mb, toy(600))
    assert fit is not None
    assert (fit.settings, fit.largest_n_ctx, fit.is_from_disk) == (settings_found, largest_n_ctx, False)
    assert set(fit.given_up) == {name for name in settings_found if name != "n_ctx"} | (
        {"n_ctx"} if fit.config.n_ctx < 4096 else set()
    )


def test_bits_are_given_up_before_a_context_below_2048_and_after_one_above_it() -> None:
    large, small = toy(600), toy(500, "Q6_K")
    # 600 + 100 + 6.4 + 25.6 are 732 MB with 2,048 tokens.
    roomy = fit_in(732.1, large, small)
    assert roomy is not None
    assert (roomy.type_name, roomy.config.n_ctx) == ("Q8_0", ROOMY_N_CTX)
    fewer_bits = fit_in(731.9, large, small)
    assert fewer_bits is not None
    assert (fewer_bits.type_name, fewer_bits.settings) == ("Q6_K", {"n_ctx": 4096, "n_batch": 128})
    # 500 + 100 + 6.4 + 6.4 with 512 tokens: nothing is left for 2,048.
    shortest = fit_in(613, large, small)
    assert shortest is not None
    assert (shortest.type_name, shortest.config.n_ctx, shortest.given_up[-1]) == ("Q6_K", 512, "n_ctx")


def test_weights_come_from_the_disk_at_last() -> None:
    # Half of 500 is held, the other half does not fit beside it: 250 + 100 + 102.4 + 102.4 are.
    half = fit_in(560, toy(500))
    assert half is not None
    assert half.settings == {"n_ctx": 4096, "load_mode": "mmap"}
    assert (half.disk_bytes_per_token, half.resident_bytes) == (250 * MB, half.need.held_bytes + 250 * MB)
    # 100 + 6.4 + 6.4 hold no half: plain kernels, and all comes from the disk; of two files the smaller one.
    floor = fit_in(113, toy(500), toy(400, "Q4_0"))
    assert floor is not None
    assert (floor.type_name, floor.disk_bytes_per_token, floor.config.n_ctx) == ("Q4_0", 400 * MB, 512)
    assert floor.config.safe_kernels is True
    assert fit_in(112, toy(500), toy(400, "Q4_0")) is None


def test_what_is_asked_for_is_kept_and_nothing_is_taken_back() -> None:
    asked = replace(WANTED, kv_type="q4_0", flash_attention="on", load_mode="mmap", n_batch=32, n_ctx=300)
    fit = fit_in(600, toy(500), config=asked)
    assert fit is not None
    assert fit.config == replace(asked, safe_kernels=fit.config.safe_kernels)
    assert set(fit.given_up) <= {"safe_kernels"}
    automatic = fit_in(2000, toy(500), config=replace(WANTED, n_ctx=AUTO_N_CTX))
    assert automatic is not None
    assert (automatic.config.n_ctx, automatic.largest_n_ctx) == (4096, 8192)


def test_a_model_is_not_given_more_than_it_was_trained_for() -> None:
    fit = best_fit((toy(500),), replace(WANTED, n_ctx=10_000), 4_000 * MB, n_ctx_train=700)
    assert fit is not None
    assert (fit.config.n_ctx, fit.largest_n_ctx) == (700, 700)


def test_the_files_of_a_model() -> None:
    assert [each.type_name for each in catalog_variants(MODELS["qwen3-0.6b"], kernels=PLAIN)] == list(
        FITTED_TYPES
    )
    assert [
        each.type_name for each in catalog_variants(MODELS["qwen3-0.6b"], type_name="bf16", kernels=PLAIN)
    ] == ["BF16"]
    published = MODELS["gemma-3-1b"]
    assert [each.type_name for each in catalog_variants(published, kernels=PLAIN)] == ["Q4_K_M"]
    assert catalog_variants(published, type_name="Q8_0", kernels=PLAIN) == ()
    with pytest.raises(ConfigError):
        catalog_variants(MODELS["qwen3-0.6b"], type_name="q99", kernels=PLAIN)


def test_a_real_shape_by_hand() -> None:
    """Qwen3-0.6B in Q4_0 without rearranged weights: 28 layers of 8 heads of 128, vocabulary 151,936."""
    shape = MODELS["qwen3-0.6b"].shape
    assert shape is not None
    (variant,) = catalog_variants(MODELS["qwen3-0.6b"], type_name="Q4_0", kernels=PLAIN)
    fit = best_fit((variant,), WANTED, 700 * MB, n_ctx_train=40_960)
    assert fit is not None
    assert fit.need == estimate_memory(shape, "Q4_0", fit.config, kernels=PLAIN)
    # In 8 bits a token takes 2 · 28 · 1024 · 34/32 = 60,928 bytes; weights and runtime leave room for so many of them.
    assert fit.config.kv_type == "q8_0"
    assert fit.need.kv_bytes == fit.config.n_ctx * 60_928
    rest = budget_of(700 * MB) - fit.need.weights_bytes - fit.need.runtime_bytes - fit.need.compute_bytes
    # The mask of 64 rows in F16 grows with the context, by less than 256 bytes a token.
    assert rest // (60_928 + 256) // 256 * 256 <= fit.largest_n_ctx <= rest // 60_928


_FORMS = {("read", None): 0, ("mmap", None): 1, ("mmap", True): 2}
_SAVINGS = [
    (flash, kv_type, n_batch)
    for flash, kv_type in (("off", "f16"), ("on", "f16"), ("on", "q8_0"))
    for n_batch in (512, 256, 128, 64)
]


def goodness(fit: MemoryFit | None, types: list[str]) -> tuple[float, ...]:
    """Return numbers of which more are better, the most important first."""
    if fit is None:
        return (-2.0,)
    config = fit.config
    if fit.is_from_disk:
        return (-1.0, -fit.disk_bytes_per_token)
    saving = _SAVINGS.index((config.flash_attention, config.kv_type, config.n_batch))
    return (
        0.0,
        -_FORMS[config.load_mode, config.safe_kernels],
        config.n_ctx >= ROOMY_N_CTX,
        -types.index(fit.type_name),
        config.n_ctx,
        -saving,
        fit.largest_n_ctx,
    )


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(["smollm2-135m", "qwen2.5-0.5b", "qwen3-0.6b", "deepseek-r1-distill-qwen-1.5b", "qwen3-4b"]),
    kernels=st.sampled_from([PLAIN, frozenset({"avx2"}), frozenset({"arm"}), frozenset({"amx", "avx2"})]),
    limit_mb=st.integers(50, 6000),
    more_mb=st.integers(0, 2000),
)  # fmt: skip
def test_more_memory_is_never_worse_and_no_budget_is_passed(
    name: str, kernels: Kernels, limit_mb: int, more_mb: int
) -> None:
    model = MODELS[name]
    variants = catalog_variants(model, kernels=kernels)
    types = [each.type_name for each in variants]
    less, more = (
        best_fit(variants, WANTED, limit * MB, n_ctx_train=model.n_ctx_train)
        for limit in (limit_mb, limit_mb + more_mb)
    )
    assert goodness(less, types) <= goodness(more, types)
    if less is None:
        return
    budget = budget_of(limit_mb * MB)
    pages = 0 if less.is_from_disk else less.need.streamed_bytes
    assert less.need.held_bytes + pages <= budget
    (variant,) = (each for each in variants if each.type_name == less.type_name)
    largest = variant.estimate(replace(less.config, n_ctx=less.largest_n_ctx))
    assert largest is not None
    assert largest.held_bytes + (0 if less.is_from_disk else largest.streamed_bytes) <= budget
