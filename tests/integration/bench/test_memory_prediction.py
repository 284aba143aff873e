"""Predicted against measured peak memory, of a model that loads in a moment."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qwen_edge.bench.memory_prediction import Record, cases, compare, main
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
    row = compare(path, config)
    assert row["load_mode"] == settings["load_mode"]
    assert abs(row["error"]) < 0.1


def test_the_peak_of_a_folder_is_predicted(tiny_onnx: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tiny_onnx), "--n-ctx", "1024", "4096", "--kv-type", "f16", "q8_0"]) == 0
    *rows, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert [row["n_ctx"] for row in rows] == [1024, 4096]
    assert rows[1]["peak_bytes"] - rows[0]["peak_bytes"] == pytest.approx(3072 * 6144, rel=0.2)
    assert abs(last["worst_error"]) < 0.1


def test_a_run_that_was_cut_goes_on(tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.jsonl"
    first, second = cases(tiny_onnx, n_ctx=[512, 1024])
    measured = compare(tiny_onnx, first, Record(path))
    with path.open("a") as file:
        file.write('{"case": {"file": "m')  # killed while it wrote
    with monkeypatch.context() as without:
        without.setattr("qwen_edge.bench.memory_prediction.run_cell", None)
        assert compare(tiny_onnx, first, Record(path)) == measured
    compare(tiny_onnx, second, Record(path))
    monkeypatch.setattr("qwen_edge.bench.memory_prediction.run_cell", None)
    for config in (first, second):
        assert compare(tiny_onnx, config, Record(path))["n_ctx"] == config.n_ctx
