"""Memory of ONNX models against processes that were measured: peak resident sizes of load, full context and one reply."""

from __future__ import annotations

import pytest

from qwen_edge.catalog import Shape
from qwen_edge.memory_onnx import estimate_onnx_memory
from qwen_edge.quant_types import OnnxWeightType

TINY = Shape(
    n_layers=6, hidden_size=256, ffn_size=768, n_heads=4, n_kv_heads=2, head_dim=64, vocab_size=4096,
    is_tied=True, has_qk_norm=True,
)  # fmt: skip
QWEN2_HALF = Shape(
    n_layers=24, hidden_size=896, ffn_size=4864, n_heads=14, n_kv_heads=2, head_dim=64, vocab_size=151936,
    is_tied=True, has_qkv_bias=True,
)  # fmt: skip
QWEN3_SMALL = Shape(
    n_layers=28, hidden_size=1024, ffn_size=3072, n_heads=16, n_kv_heads=8, head_dim=128, vocab_size=151936,
    is_tied=True, has_qk_norm=True,
)  # fmt: skip
MIB = 1 << 20

# Shape, weights, head, block size, n_ctx, positions of the graph, measured MiB.
MEASURED: list[tuple[Shape, OnnxWeightType, OnnxWeightType | None, int, int, int, int]] = [
    (TINY, "int4", None, 32, 1024, 4096, 115),
    (QWEN2_HALF, "int4", None, 32, 1024, 32768, 655),
    (QWEN2_HALF, "int4", None, 32, 2048, 32768, 680),
    (QWEN2_HALF, "int4", "int8", 32, 2048, 32768, 744),
    (QWEN2_HALF, "int4", None, 128, 1024, 32768, 520),
    (QWEN2_HALF, "int8", None, 32, 1024, 32768, 915),
    (QWEN2_HALF, "f16", None, 32, 1024, 32768, 2599),
    (QWEN2_HALF, "f32", None, 32, 1024, 32768, 2626),
    (QWEN3_SMALL, "int4", None, 32, 1024, 40960, 965),
    (QWEN3_SMALL, "int4", "int8", 32, 4096, 40960, 1735),
]


@pytest.mark.parametrize("row", MEASURED, ids=lambda row: "-".join(map(str, row[1:5])))
def test_the_estimate_is_near_what_was_measured(
    row: tuple[Shape, OnnxWeightType, OnnxWeightType | None, int, int, int, int],
) -> None:
    shape, weights, head, block_size, n_ctx, n_ctx_train, measured_mib = row
    estimate = estimate_onnx_memory(
        shape, weights, n_ctx, n_ctx_train=n_ctx_train, head=head, block_size=block_size
    )
    assert estimate.total_bytes == pytest.approx(measured_mib * MIB, rel=0.05)


def test_each_session_has_a_cache_of_its_own() -> None:
    one, four = (
        estimate_onnx_memory(QWEN3_SMALL, "int4", 1024, n_ctx_train=40960, n_sessions=count)
        for count in (1, 4)
    )
    assert four.kv_bytes == 4 * one.kv_bytes == 4 * 1024 * QWEN3_SMALL.kv_bytes_per_token(4)
