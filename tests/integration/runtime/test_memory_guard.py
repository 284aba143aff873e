"""Memory that goes away while a model is loaded and used: refused in words, and what was taken is given back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qwen_edge import device, load
from qwen_edge.catalog import MODELS
from qwen_edge.config import LoadConfig
from qwen_edge.errors import InsufficientMemoryError
from qwen_edge.memory_guard import MemoryGuard
from qwen_edge.native.handles import NativeModel
from qwen_edge.trial_model import write_trial_model

MB = 1_000_000
Take = Callable[[int], None]


@pytest.fixture
def others_take(monkeypatch: pytest.MonkeyPatch) -> Take:
    """Let other programs hold some memory from then on, of 8 GB that this process has too."""
    held_before, taken = device.held_memory_bytes(), [0]

    def available() -> device.AvailableMemory:
        own = device.held_memory_bytes() - held_before
        return device.AvailableMemory(
            available_bytes=max(0, 8_000 * MB - own - taken[0]),
            total_bytes=8_000 * MB,
            limited_by="system",
            reason="as the test says",
        )

    monkeypatch.setattr(device, "available_memory_bytes", available)
    return lambda n_bytes: taken.__setitem__(0, n_bytes)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of 120 MB: half of them can be told from noise."""
    shape = MODELS["qwen3-0.6b"].shape
    assert shape is not None
    path = tmp_path_factory.mktemp("guard") / "m.gguf"
    few_layers = replace(shape, n_layers=8, vocab_size=64_000)
    write_trial_model(path, few_layers, "Q4_0", n_ctx_train=40_960)
    return path


SETTINGS = {"n_ctx": 512, "n_batch": 256, "n_threads": 1, "safe_kernels": False, "prefix_cache": False}


def take_at(monkeypatch: pytest.MonkeyPatch, share: float, take: Callable[[], None]) -> list[float]:
    """Call a function when so much of the weights is read; return the shares that were told."""
    told: list[float] = []
    whole = MemoryGuard.before_weights

    def watched(self: MemoryGuard, progress: float) -> None:
        if progress >= share and max(told, default=0.0) < share:
            take()
        told.append(progress)
        whole(self, progress)

    monkeypatch.setattr(MemoryGuard, "before_weights", watched)
    return told


def test_weights_that_lose_their_room_while_they_are_read_are_freed(
    wide: Path, others_take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = take_at(monkeypatch, 0.5, lambda: others_take(7_900 * MB))
    before = device.held_memory_bytes()
    with pytest.raises(InsufficientMemoryError, match="other programs took memory meanwhile"):
        load(wide, **SETTINGS)
    assert 0.5 <= told[-1] < 0.7
    assert device.held_memory_bytes() - before < 30 * MB
    others_take(0)
    with load(wide, **SETTINGS) as model:
        assert model.engine.info.n_params > 0


def test_an_automatic_context_becomes_a_smaller_one(
    wide: Path, others_take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    with load(wide, **(SETTINGS | {"n_ctx": "auto"})) as model:
        whole = model.info.settings["n_ctx"]
    take_at(monkeypatch, 0.5, lambda: others_take(6_500 * MB))
    with load(wide, **(SETTINGS | {"n_ctx": "auto"})) as model:
        assert 256 <= model.info.settings["n_ctx"] < whole / 2


def test_a_further_session_and_a_long_prompt_are_refused_and_the_cache_stays(
    wide: Path, others_take: Take
) -> None:
    with load(wide, **(SETTINGS | {"n_ctx": 4096})) as model:
        context = model.engine.new_context()
        context.append(list(range(100)))
        others_take(7_800 * MB)
        with pytest.raises(InsufficientMemoryError, match="a context of 4,096 tokens"):
            model.engine.new_context()
        others_take(8_000 * MB)
        context.append([1])  # one token takes nothing
        with pytest.raises(InsufficientMemoryError, match="the next part of the prompt"):
            context.append(list(range(256)))
        with pytest.raises(InsufficientMemoryError, match="a copy of the KV cache"):
            context.save_state()
        assert context.n_past == 101
        others_take(0)
        context.append(list(range(256)))
        others_take(8_000 * MB)
        context.rewind(0)
        context.append(list(range(250)))  # no larger than what was evaluated, and not further behind
        assert context.n_past == 250


def test_what_the_progress_raises_comes_out_and_nothing_is_left(tiny_bf16: Path) -> None:
    def stop(progress: float) -> None:
        if progress > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        NativeModel(tiny_bf16, on_progress=stop)
    seen: list[float] = []
    NativeModel(tiny_bf16, on_progress=seen.append).close()
    assert (seen[0], seen[-1]) == (0.0, 1.0)
    assert seen == sorted(seen)


def test_a_guard_never_refuses_what_the_plan_allowed(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nobody else about, the last byte that the plan wants is enough."""
    from qwen_edge.bench.memory_prediction import predict

    config = LoadConfig(**SETTINGS)  # type: ignore[arg-type]
    wanted, held_before = predict(wide, config).wanted_bytes, device.held_memory_bytes()

    def available() -> device.AvailableMemory:
        own = device.held_memory_bytes() - held_before
        return device.AvailableMemory(
            available_bytes=wanted - own, total_bytes=wanted, limited_by="cgroup", reason="exactly enough"
        )

    monkeypatch.setattr(device, "available_memory_bytes", available)
    with load(wide, config) as model:
        context = model.engine.new_context()
        context.append(list(range(256)))
        context.append(list(range(255)))
        assert context.n_past == 511
