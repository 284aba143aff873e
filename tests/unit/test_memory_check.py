from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_edge import device, memory_advice, memory_check, memory_kernels
from qwen_edge.catalog import MODELS
from qwen_edge.config import LoadConfig, LoadMode, Switch
from qwen_edge.errors import InsufficientMemoryError
from qwen_edge.gguf_header import read_header
from qwen_edge.memory import estimate_header_memory, estimate_memory, fits_of
from qwen_edge.memory_advice import largest_context, ways_out
from qwen_edge.memory_check import memory_estimator, require_memory
from qwen_edge.memory_kernels import PLAIN, Kernels
from qwen_edge.memory_plan import plan_memory
from qwen_edge.memory_shapes import header_shape
from qwen_edge.native import probe
from qwen_edge.trial_model import write_trial_outline


@pytest.fixture
def memory_is(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def set_free(n_bytes: int) -> None:
        free = device.AvailableMemory(
            available_bytes=n_bytes, total_bytes=16 << 30, limited_by="system", reason="as the test says"
        )
        monkeypatch.setattr(device, "available_memory_bytes", lambda: free)

    return set_free


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file with the sizes of Qwen3-0.6B in Q4_0."""
    path = tmp_path / "m.gguf"
    shape = MODELS["qwen3-0.6b"].shape
    assert shape is not None
    write_trial_outline(path, shape, "Q4_0", n_ctx_train=40_960)
    return path


@pytest.fixture(autouse=True)
def plain_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_kernels, "build_kernels", lambda: frozenset({"avx2"}))


def test_kv_cache_of_a_file_is_what_the_notes_measured(model: Path, make_gguf: Callable[..., Path]) -> None:
    need = estimate_header_memory(read_header(model), LoadConfig(n_ctx=4096))
    assert need is not None
    assert need.kv_bytes == 4096 * 112 * 1024
    eight_bit = estimate_header_memory(
        read_header(model), LoadConfig(kv_type="q8_0", flash_attention="on", n_sessions=2)
    )
    assert eight_bit is not None
    assert eight_bit.kv_bytes == need.kv_bytes * 2 * 34 // 64
    assert estimate_header_memory(read_header(make_gguf("untold.gguf", block_count=28)), LoadConfig()) is None


def test_a_context_that_does_not_fit_is_refused_with_one_that_does(
    model: Path, memory_is: Callable[[int], None]
) -> None:
    memory_is(1_500_000_000)
    require_memory(model, LoadConfig(n_ctx=4096))
    with pytest.raises(InsufficientMemoryError, match="with a context of 100,000 tokens") as caught:
        require_memory(model, LoadConfig(n_ctx=100_000))
    assert "0.38 GB weights" in caught.value.message
    assert "1.50 GB are free (as the test says)" in caught.value.message
    assert caught.value.hint is not None
    fits = int(caught.value.hint.partition("=")[2].partition(" ")[0])
    require_memory(model, LoadConfig(n_ctx=fits))
    with pytest.raises(InsufficientMemoryError):
        require_memory(model, LoadConfig(n_ctx=fits + 512))


def test_weights_that_do_not_fit_are_refused_unless_they_are_mapped(
    model: Path, memory_is: Callable[[int], None]
) -> None:
    memory_is(400_000_000)
    with pytest.raises(InsufficientMemoryError) as caught:
        require_memory(model, LoadConfig(n_ctx=256))
    assert "smaller type" in str(caught.value.hint)
    require_memory(model, LoadConfig(n_ctx=256, load_mode="mmap"))


def test_three_things_that_would_fit(tmp_path: Path, memory_is: Callable[[int], None]) -> None:
    model, shape = tmp_path / "m.gguf", MODELS["qwen3-1.7b"].shape
    assert shape is not None
    write_trial_outline(model, shape, "Q8_0")
    memory_is(3_200_000_000)
    with pytest.raises(InsufficientMemoryError) as caught:
        require_memory(model, LoadConfig(n_ctx=12_288))
    hint = caught.value.hint or ""
    assert 'kv_type="q8_0" with flash_attention="on" (--kv-type q8_0)' in hint
    packed = LoadConfig(n_ctx=12_288, kv_type="q8_0", flash_attention="on")
    assert require_memory(model, packed) == packed
    assert hint.count(";") == 2
    assert "another model, " in hint
    other = hint.rpartition("another model, ")[2].rstrip(".")
    plan = plan_memory(other, LoadConfig(n_ctx=12_288))
    assert plan.fits
    assert plan.advice == ""


@pytest.mark.parametrize(
    ("type_name", "free_bytes", "said"),
    [
        ("BF16", 2_400_000_000, "-t Q8_0;"),
        ("Q8_0", 2_000_000_000, "-t Q6_K --allow-requantize;"),
        ("Q8_0", 1_200_000_000, None),
        ("Q4_K_M", 1_800_000_000, None),
    ],
)
def test_a_type_of_the_file_that_fits(
    type_name: str, free_bytes: int, said: str | None, tmp_path: Path
) -> None:
    path, shape = tmp_path / "m.gguf", MODELS["qwen3-1.7b"].shape
    assert shape is not None
    write_trial_outline(path, shape, type_name)
    config, estimate = LoadConfig(n_ctx=2048), memory_estimator(path, LoadConfig())
    assert estimate is not None
    hint = ways_out(estimate, config, lambda need: need.wanted_bytes <= free_bytes, weights=path)
    assert ("another type" in hint) == (said is not None)
    assert said is None or f"another type, qwen-edge quantize {path} {said}" in hint + ";"


def test_a_type_of_a_four_bit_file_is_fetched_where_the_catalog_has_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quantizing what has 4 bits would lose twice."""
    path, model = tmp_path / "m.gguf", MODELS["qwen3-4b-instruct-2507"]
    assert model.shape is not None
    write_trial_outline(path, model.shape, "Q5_K_M")
    header = read_header(path)
    for name, said in (("Qwen3 4B Instruct 2507", True), ("A Tale Of 4B", False)):
        named = replace(header, metadata={**header.metadata, "general.name": name})
        monkeypatch.setattr(memory_advice, "read_header", lambda _, named=named: named)
        hint = ways_out(
            lambda config, named=named: estimate_header_memory(named, config),
            LoadConfig(n_ctx=512),
            lambda need: need.wanted_bytes <= 3_150_000_000,
            weights=path,
        )
        assert ("(qwen-edge pull qwen3-4b-instruct-2507@Q4_K_M)" in hint) == said


@pytest.mark.parametrize("name", sorted(name for name, row in MODELS.items() if row.shape is not None))
def test_the_shape_of_a_file_is_recognised(name: str, tmp_path: Path) -> None:
    shape = MODELS[name].shape
    assert shape is not None
    write_trial_outline(tmp_path / "m.gguf", shape, "BF16", architecture="qwen3")
    assert header_shape(read_header(tmp_path / "m.gguf")) == shape


def test_what_is_of_no_shape_has_none(model: Path, make_gguf: Callable[..., Path]) -> None:
    header = read_header(model)
    extra = replace(header, tensors=(*header.tensors, replace(header.tensors[0], name="blk.0.experts")))
    assert header_shape(extra) is None
    assert header_shape(read_header(make_gguf("untold.gguf", block_count=28))) is None


@pytest.mark.parametrize("load_mode", ["read", "mmap"])
def test_plain_kernels_are_counted_where_the_probe_found_the_fast_ones_to_crash(
    load_mode: LoadMode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory_is: Callable[[int], None]
) -> None:
    amx: Kernels = frozenset({"amx", "avx2"})
    monkeypatch.setattr(memory_kernels, "build_kernels", lambda: amx)
    monkeypatch.setattr(probe, "_crash_of", lambda path, kernels: "SIGILL" if kernels == "fast" else "")
    path, shape = tmp_path / "m.gguf", MODELS["qwen3-0.6b"].shape
    assert shape is not None
    write_trial_outline(path, shape, "Q8_0")
    config = LoadConfig(n_ctx=512, load_mode=load_mode)
    memory_is(10**11)
    fast, fast_name = plan_memory(str(path), config), plan_memory("qwen3-0.6b@q8_0", config)
    assert plan_memory(str(path), replace(config, safe_kernels=True)).need == estimate_header_memory(
        read_header(path), config, kernels=PLAIN
    )
    probe.probe(path)
    for name, before in ((str(path), fast), ("qwen3-0.6b@q8_0", fast_name)):
        after = plan_memory(name, config)
        assert after.need.head_copy_bytes == 0 < before.need.head_copy_bytes
        assert after.need.wanted_bytes < before.need.wanted_bytes - 100_000_000
        assert plan_memory(name, replace(config, safe_kernels=False)).need == before.need
    assert fits_of(MODELS["qwen3-0.6b"], config, 0)[1].memory == plan_memory("qwen3-0.6b@q8_0", config).need
    memory_is(after.need.wanted_bytes + 10_000_000)
    require_memory(path, config)
    other = tmp_path / "other.gguf"
    path.rename(other)
    with pytest.raises(InsufficientMemoryError):
        require_memory(other, config)  # no verdict of its own yet: the fast kernels may serve


def test_an_automatic_context_is_the_largest_that_fits_with_headroom(
    model: Path, memory_is: Callable[[int], None]
) -> None:
    asked = LoadConfig(n_ctx="auto")  # type: ignore[arg-type]
    memory_is(1_500_000_000)
    chosen = require_memory(model, asked)
    assert 256 <= chosen.n_ctx < 40_960
    memory_is(1_350_000_000)
    require_memory(model, chosen)
    with pytest.raises(InsufficientMemoryError):
        require_memory(model, replace(chosen, n_ctx=chosen.n_ctx + 256))
    memory_is(10**11)
    assert require_memory(model, asked).n_ctx == 40_960
    memory_is(100_000_000)
    with pytest.raises(InsufficientMemoryError, match="with a context of 256 tokens"):
        require_memory(model, asked)


@given(free_bytes=st.integers(0, 10**10), n_batch=st.integers(1, 1024), flash=st.sampled_from(["on", "off"]))
@settings(max_examples=40, deadline=None)
def test_the_largest_context_fits_and_the_next_does_not(free_bytes: int, n_batch: int, flash: Switch) -> None:
    shape = MODELS["qwen3-0.6b"].shape
    assert shape is not None
    config = LoadConfig(n_batch=n_batch, flash_attention=flash)

    def need(n_ctx: int) -> int:
        return estimate_memory(shape, "Q4_0", replace(config, n_ctx=n_ctx)).wanted_bytes

    found = largest_context(
        lambda asked: estimate_memory(shape, "Q4_0", asked),
        config,
        40_960,
        lambda memory: memory.wanted_bytes <= free_bytes,
    )
    assert found % 256 == 0
    assert found == 0 or need(found) <= free_bytes
    assert found == 40_960 or need(found + 256) > free_bytes


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

    def refuse(path: Path, config: LoadConfig) -> LoadConfig:
        asked.append((path, config.n_ctx))
        raise InsufficientMemoryError("too large")

    assert model.require_memory is memory_check.require_memory
    monkeypatch.setattr(model, "require_memory", refuse)
    with pytest.raises(InsufficientMemoryError):
        model.load(tmp_path / "m.gguf", n_ctx=512)
    assert asked == [(tmp_path / "m.gguf", 512)]
