from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_edge import device, memory_check
from qwen_edge.config import LoadConfig
from qwen_edge.errors import InsufficientMemoryError
from qwen_edge.gguf_header import read_header
from qwen_edge.memory import estimate_header_memory
from qwen_edge.memory_check import require_memory


@pytest.fixture
def memory_is(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def set_free(n_bytes: int) -> None:
        free = device.AvailableMemory(
            available_bytes=n_bytes, total_bytes=16 << 30, limited_by="system", reason="as the test says"
        )
        monkeypatch.setattr(device, "available_memory_bytes", lambda: free)

    return set_free


@pytest.fixture
def model(make_gguf: Callable[..., Path]) -> Path:
    """A file with the sizes of Qwen3-0.6B and no tensors."""
    path = make_gguf(
        "m.gguf",
        block_count=28,
        embedding_length=1024,
        feed_forward_length=3072,
        head_count=16,
        head_count_kv=8,
        key_length=128,
        value_length=128,
    )
    with path.open("rb+") as file:
        file.truncate(400_000_000)
    return path


def test_kv_cache_of_a_file_is_what_the_notes_measured(model: Path, make_gguf: Callable[..., Path]) -> None:
    need = estimate_header_memory(read_header(model), 4096)
    assert need is not None
    assert need.kv_bytes == 4096 * 112 * 1024
    eight_bit = estimate_header_memory(read_header(model), 4096, kv_type="q8_0", n_sessions=2)
    assert eight_bit is not None
    assert eight_bit.kv_bytes == need.kv_bytes * 2 * 34 // 64
    assert estimate_header_memory(read_header(make_gguf("untold.gguf", block_count=28)), 4096) is None


def test_a_context_that_does_not_fit_is_refused_with_one_that_does(
    model: Path, memory_is: Callable[[int], None]
) -> None:
    memory_is(1_500_000_000)
    require_memory(model, LoadConfig(n_ctx=4096))
    with pytest.raises(InsufficientMemoryError, match="with a context of 100,000 tokens") as caught:
        require_memory(model, LoadConfig(n_ctx=100_000))
    assert "0.40 GB weights" in caught.value.message
    assert "1.50 GB are free (as the test says)" in caught.value.message
    assert caught.value.hint is not None
    fits = int(caught.value.hint.partition("=")[2].partition(" ")[0])
    require_memory(model, LoadConfig(n_ctx=fits))
    with pytest.raises(InsufficientMemoryError):
        require_memory(model, LoadConfig(n_ctx=fits + 512))


def test_weights_that_do_not_fit_are_refused_unless_they_are_mapped(
    model: Path, memory_is: Callable[[int], None]
) -> None:
    memory_is(300_000_000)
    with pytest.raises(InsufficientMemoryError) as caught:
        require_memory(model, LoadConfig(n_ctx=256))
    assert "smaller type" in str(caught.value.hint)
    require_memory(model, LoadConfig(n_ctx=256, load_mode="mmap"))


def test_a_file_that_cannot_be_understood_is_left_to_the_engine(
    tmp_path: Path, memory_is: Callable[[int], None]
) -> None:
    memory_is(0)
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("Not found\n")
    for name in ("empty", "text", "nothing"):
        require_memory(tmp_path / name, LoadConfig())


def test_loading_asks_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qwen_edge import model

    asked = []

    def refuse(path: Path, config: LoadConfig) -> None:
        asked.append((path, config.n_ctx))
        raise InsufficientMemoryError("too large")

    assert model.require_memory is memory_check.require_memory
    monkeypatch.setattr(model, "require_memory", refuse)
    with pytest.raises(InsufficientMemoryError):
        model.load(tmp_path / "m.gguf", n_ctx=512)
    assert asked == [(tmp_path / "m.gguf", 512)]
