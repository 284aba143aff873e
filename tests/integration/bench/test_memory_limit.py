"""Models in cgroups with limits of memory; skipped where none can be made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qwen_edge.bench.memory_cgroup import memory_cgroup
from qwen_edge.bench.memory_limit import try_limit
from qwen_edge.bench.memory_prediction import predict
from qwen_edge.catalog import MODELS
from qwen_edge.config import LoadConfig
from qwen_edge.errors import UnsupportedError
from qwen_edge.trial_model import write_trial_model


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        with memory_cgroup():
            pass
    except UnsupportedError as error:
        pytest.skip(str(error))
    shape = MODELS["qwen3-0.6b"].shape
    assert shape is not None
    path = tmp_path_factory.mktemp("limit") / "m.gguf"
    write_trial_model(path, replace(shape, n_layers=4, vocab_size=32_000), "Q4_0")
    return path


CONFIG = LoadConfig(n_ctx=4096, n_threads=1, safe_kernels=False, prefix_cache=False)


@pytest.mark.parametrize("load_mode", ["read", "mmap"])
def test_what_is_below_the_need_is_refused_and_what_is_above_it_runs(load_mode: str, path: Path) -> None:
    config = replace(CONFIG, load_mode=load_mode)
    need = predict(path, config)
    below = try_limit(path, config, int(0.9 * need.wanted_bytes))
    assert below["outcome"] == "refused"
    assert "are free (the cgroup may have" in below["said"]
    assert "What would fit: n_ctx=" in below["said"]
    # A small model's figures are the interpreter's, which a Python version changes by some MB.
    above = try_limit(path, config, int(1.1 * need.held_bytes))
    assert (above["outcome"], above["n_ctx"]) == ("ran", 4096)


def test_an_automatic_context_runs_under_a_limit_and_beside_another_program(path: Path) -> None:
    config = replace(CONFIG, n_ctx="auto")  # type: ignore[arg-type]
    limit_bytes = int(1.1 * predict(path, CONFIG).total_bytes)
    alone = try_limit(path, config, limit_bytes)
    beside = try_limit(path, config, limit_bytes, taken_bytes=50_000_000)
    assert (alone["outcome"], beside["outcome"]) == ("ran", "ran")
    assert 256 <= beside["n_ctx"] < alone["n_ctx"]
    crowded = try_limit(path, CONFIG, limit_bytes, taken_bytes=limit_bytes // 2)
    assert crowded["outcome"] == "refused"
