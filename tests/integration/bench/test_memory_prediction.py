"""Predicted against measured peak memory, of a model that loads in a moment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qwen_edge.bench.memory_prediction import measure_apart
from qwen_edge.catalog import MODELS
from qwen_edge.config import LoadConfig
from qwen_edge.trial_model import write_trial_model


@pytest.mark.parametrize(
    "settings", [{"load_mode": "read"}, {"load_mode": "mmap", "flash_attention": "on", "kv_type": "q8_0"}]
)
def test_the_peak_is_predicted(settings: dict[str, str], tmp_path: Path) -> None:
    shape = MODELS["qwen3-0.6b"].shape
    assert shape is not None
    path = tmp_path / "m.gguf"
    write_trial_model(path, replace(shape, n_layers=4, vocab_size=32_000), "Q4_0")
    config = LoadConfig(n_ctx=1024, n_threads=1, safe_kernels=False, **settings)  # type: ignore[arg-type]
    row = measure_apart(path, config)
    assert row["load_mode"] == settings["load_mode"]
    assert abs(row["error"]) < 0.1
