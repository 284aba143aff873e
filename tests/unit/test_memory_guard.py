"""What the guard says before each step, on a machine whose free memory the test decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qwen_edge import device, memory_kernels
from qwen_edge.catalog import MODELS
from qwen_edge.config import LoadConfig
from qwen_edge.errors import InsufficientMemoryError
from qwen_edge.gguf_header import read_header
from qwen_edge.memory import estimate_header_memory
from qwen_edge.memory_guard import MemoryGuard, memory_guard
from qwen_edge.trial_model import write_trial_outline

MB = 1_000_000
CONFIG = LoadConfig(n_ctx=4096)
SetMemory = Callable[..., None]


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_kernels, "build_kernels", lambda: frozenset({"avx2"}))


@pytest.fixture
def memory_is(monkeypatch: pytest.MonkeyPatch) -> SetMemory:
    def set_memory(free: int, held: int = 0) -> None:
        found = device.AvailableMemory(
            available_bytes=free, total_bytes=16 << 30, limited_by="system", reason="as the test says"
        )
        monkeypatch.setattr(device, "available_memory_bytes", lambda: found)
        monkeypatch.setattr(device, "held_memory_bytes", lambda: held)

    return set_memory


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with the sizes of Qwen3-0.6B in Q4_0."""
    shape = MODELS["qwen3-0.6b"].shape
    assert shape is not None
    write_trial_outline(tmp_path / "m.gguf", shape, "Q4_0", n_ctx_train=40_960)
    return tmp_path / "m.gguf"


def wanted_bytes(path: Path) -> int:
    need = estimate_header_memory(read_header(path), CONFIG)
    assert need is not None
    return need.wanted_bytes


def guard_of(path: Path) -> MemoryGuard:
    guard = memory_guard(path, CONFIG)
    assert guard is not None
    return guard


def test_what_this_process_takes_itself_is_not_missing(path: Path, memory_is: SetMemory) -> None:
    wanted = wanted_bytes(path)
    memory_is(wanted, held=50 * MB)
    guard = guard_of(path)
    for step in range(11):
        memory_is(wanted - step * 35 * MB, held=50 * MB + step * 35 * MB)
        guard.before_weights(step / 10)


def test_what_others_take_while_weights_are_read_is_told_in_numbers(path: Path, memory_is: SetMemory) -> None:
    wanted = wanted_bytes(path)
    memory_is(wanted + 20 * MB)
    guard = guard_of(path)
    guard.before_weights(0.0)
    # 200 MB are read, and 100 MB that were free have gone elsewhere.
    memory_is(wanted + 20 * MB - 300 * MB, held=200 * MB)
    with pytest.raises(InsufficientMemoryError, match="when 50% of it are read") as caught:
        guard.before_weights(0.5)
    assert f"needs {(wanted - 200 * MB) / 1e6:,.0f} MB more" in caught.value.message
    assert f"{(wanted - 280 * MB) / 1e6:,.0f} MB are free (as the test says)" in caught.value.message
    assert "What would fit: n_ctx=" in str(caught.value.hint)


def test_it_looks_every_fiftieth_part_and_at_the_end(
    path: Path, memory_is: SetMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory_is(8 << 30)
    guard, free, looks = guard_of(path), device.available_memory_bytes(), []
    monkeypatch.setattr(device, "available_memory_bytes", lambda: looks.append(1) or free)
    for step in range(1000):
        guard.before_weights(step / 1000)
    assert 45 <= len(looks) <= 51
    before = len(looks)
    guard.before_weights(1.0)
    assert len(looks) == before + 1


def test_a_context_and_its_activations_are_wanted_after_loading(path: Path, memory_is: SetMemory) -> None:
    memory_is(8 << 30)
    guard = guard_of(path)
    need = estimate_header_memory(read_header(path), CONFIG)
    assert need is not None
    memory_is(need.kv_bytes + need.compute_bytes)
    guard.after_loading()
    memory_is(need.kv_bytes)
    with pytest.raises(InsufficientMemoryError, match="is loaded, its context of 4,096 tokens needs"):
        guard.after_loading()
    # A further session takes its KV cache at once, and activations when they are wanted.
    guard.before_context(CONFIG)
    with pytest.raises(InsufficientMemoryError, match="a context of 8,192 tokens needs 940 MB"):
        guard.before_context(replace(CONFIG, n_ctx=8192))


def test_activations_grow_with_the_place_and_a_few_tokens_take_nothing(
    path: Path, memory_is: SetMemory
) -> None:
    memory_is(8 << 30)
    guard = guard_of(path)
    sizes = [guard.batch_bytes(CONFIG, 512, n_past) for n_past in (0, 1024, 3584)]
    assert sizes == sorted(sizes)
    assert sizes[-1] == estimate_header_memory(read_header(path), CONFIG).compute_bytes  # type: ignore[union-attr]
    assert guard.batch_bytes(CONFIG, 1, 4095) == 0
    memory_is(10 * MB)
    with pytest.raises(InsufficientMemoryError, match="the next part of the prompt needs 200 MB") as caught:
        guard.before_batch(200 * MB)
    assert "Nothing of the conversation is lost" in str(caught.value.hint)


def test_a_copy_of_the_cache_needs_room_too(path: Path, memory_is: SetMemory) -> None:
    memory_is(8 << 30)
    guard = guard_of(path)
    memory_is(100 * MB)
    for n_tokens in (0, 1, 3, 512):
        guard.before_state(CONFIG, n_tokens)
    with pytest.raises(InsufficientMemoryError, match="a copy of the KV cache of 2,048 tokens needs 235 MB"):
        guard.before_state(CONFIG, 2048)


def test_what_cannot_be_understood_has_no_guard(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert memory_guard(tmp_path / "m.gguf", CONFIG) is None
