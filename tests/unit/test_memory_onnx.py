"""Memory of ONNX models against processes that were measured: peak resident sizes of load, full context and one reply."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_edge import device
from qwen_edge.catalog import Shape
from qwen_edge.config import LoadConfig
from qwen_edge.convert import OnnxPrecision, export_onnx
from qwen_edge.errors import InsufficientMemoryError
from qwen_edge.memory_check import memory_estimator, require_memory
from qwen_edge.memory_onnx import estimate_onnx_memory
from qwen_edge.memory_plan import plan_memory
from qwen_edge.quant_types import OnnxWeightType

CHECKPOINT = Path(__file__).parents[2] / "examples" / "tiny-qwen3"
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

# Shape, weights, head, block size, n_ctx, positions of the graph, measured MiB (bench.memory_prediction).
MEASURED: list[tuple[Shape, OnnxWeightType, OnnxWeightType | None, int, int, int, int]] = [
    (TINY, "int4", None, 32, 1024, 4096, 108),
    (TINY, "int8", None, 32, 4096, 4096, 129),
    (TINY, "f32", None, 32, 4096, 4096, 146),
    (QWEN2_HALF, "int4", None, 32, 2048, 32768, 646),
    (QWEN2_HALF, "int4", None, 32, 8192, 32768, 790),
    (QWEN2_HALF, "int4", "int8", 32, 2048, 32768, 749),
    (QWEN2_HALF, "int4", None, 128, 1024, 32768, 501),
    (QWEN2_HALF, "int8", None, 32, 2048, 32768, 918),
    (QWEN2_HALF, "int8", None, 32, 8192, 32768, 1016),
    (QWEN2_HALF, "f16", None, 32, 1024, 32768, 2657),
    (QWEN2_HALF, "f32", None, 32, 2048, 32768, 2631),
    (QWEN2_HALF, "f32", None, 32, 8192, 32768, 2776),
    (QWEN3_SMALL, "int4", None, 32, 1024, 40960, 933),
    (QWEN3_SMALL, "int4", "int8", 32, 1024, 40960, 1015),
    (QWEN3_SMALL, "int4", "int8", 32, 4096, 40960, 1691),
]


@pytest.mark.parametrize("row", MEASURED, ids=lambda row: "-".join(map(str, row[1:5])))
def test_the_estimate_is_near_what_was_measured(
    row: tuple[Shape, OnnxWeightType, OnnxWeightType | None, int, int, int, int],
) -> None:
    shape, weights, head, block_size, n_ctx, n_ctx_train, measured_mib = row
    estimate = estimate_onnx_memory(
        shape, weights, n_ctx, n_ctx_train=n_ctx_train, head=head, block_size=block_size
    )
    assert estimate.total_bytes == pytest.approx(measured_mib * MIB, rel=0.04)


@pytest.mark.parametrize(("n_batch", "measured_mib"), [(128, 625), (512, 646), (2048, 764)])
def test_a_batch_is_counted(n_batch: int, measured_mib: int) -> None:
    estimate = estimate_onnx_memory(QWEN2_HALF, "int4", 2048, n_ctx_train=32768, n_batch=n_batch)
    assert estimate.total_bytes == pytest.approx(measured_mib * MIB, rel=0.03)


def test_each_session_has_a_cache_of_its_own() -> None:
    one, four = (
        estimate_onnx_memory(QWEN3_SMALL, "int4", 1024, n_ctx_train=40960, n_sessions=count)
        for count in (1, 4)
    )
    assert four.kv_bytes == 4 * one.kv_bytes == 4 * 1024 * QWEN3_SMALL.kv_bytes_per_token(4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as the exporter writes it, which takes a fifth of a second."""
    path = tmp_path_factory.mktemp("onnx") / "m"
    export_onnx(CHECKPOINT, path, precision=OnnxPrecision(weights="int8"))
    return path


@pytest.fixture
def memory_is(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def set_free(n_bytes: int) -> None:
        free = device.AvailableMemory(
            available_bytes=n_bytes, total_bytes=16 << 30, limited_by="system", reason="as the test says"
        )
        monkeypatch.setattr(device, "available_memory_bytes", lambda: free)

    return set_free


def wanted(folder: Path, config: LoadConfig) -> int:
    estimate = memory_estimator(folder, config)
    assert estimate is not None
    need = estimate(config)
    assert need is not None
    return need.wanted_bytes


def test_a_folder_is_planned_and_refused_as_a_file_is(folder: Path, memory_is: Callable[[int], None]) -> None:
    memory_is(10**10)
    trained = plan_memory(str(folder), LoadConfig(n_ctx="auto"))  # type: ignore[arg-type]
    assert trained.fits
    limit = trained.config.n_ctx
    assert trained.largest_n_ctx == limit
    # Many sessions, so that the contexts of a model this small count.
    config = LoadConfig(n_ctx=limit, n_sessions=256)
    budget = wanted(folder, LoadConfig(n_ctx=limit // 2, n_sessions=256))
    memory_is(budget)
    plan = plan_memory(str(folder), config)
    assert not plan.fits
    assert plan.title == folder.name
    assert wanted(folder, LoadConfig(n_ctx=plan.largest_n_ctx, n_sessions=256)) <= budget
    with pytest.raises(InsufficientMemoryError, match=f"with a context of {limit:,} tokens needs") as caught:
        require_memory(folder, config)
    assert "are free (as the test says)" in caught.value.message
    assert f"n_ctx={plan.largest_n_ctx} " in (caught.value.hint or "")
    assert caught.value.hint == plan.advice
    for foreign in ("kv_type", "flash", "qwen-edge quantize", "another model"):
        assert foreign not in (caught.value.hint or "")


def test_an_automatic_context_of_a_folder_leaves_headroom(
    folder: Path, memory_is: Callable[[int], None]
) -> None:
    asked = LoadConfig(n_ctx="auto", n_sessions=256)  # type: ignore[arg-type]
    memory_is(10**11)
    limit = require_memory(folder, asked).n_ctx
    budget = wanted(folder, LoadConfig(n_ctx=limit // 2, n_sessions=256))
    memory_is(budget)
    chosen = require_memory(folder, asked)
    assert 256 <= chosen.n_ctx < limit
    assert wanted(folder, chosen) <= 0.9 * budget
    memory_is(1_000_000)
    with pytest.raises(InsufficientMemoryError):
        require_memory(folder, asked)
