from __future__ import annotations

from pathlib import Path

import pytest

from qwen_edge.config import LoadConfig
from qwen_edge.engines.llama import LlamaEngine
from qwen_edge.errors import ConfigError
from qwen_edge.quantize import evaluate_kld, quantize_file


def test_fewer_bits_are_further_away(tiny_bf16: Path, tmp_path: Path, eval_text: str) -> None:
    reports = []
    for name in ("Q8_0", "Q4_K_M", "Q2_K"):
        quantize_file(tiny_bf16, tmp_path / f"{name}.gguf", name, n_threads=1)
        reports.append(evaluate_kld(tiny_bf16, tmp_path / f"{name}.gguf", eval_text, chunks=8, n_threads=1))
    klds = [report.mean_kld for report in reports]
    shares = [report.same_top_share for report in reports]
    assert klds == sorted(klds)
    assert shares == sorted(shares, reverse=True)
    assert 0.0001 < klds[0] < 0.0005
    assert 0.004 < klds[1] < 0.012
    for report in reports:
        assert report.tokens_scored == 8 * 255
        assert report.mean_kld_stderr is not None
        assert 0 < report.mean_kld_stderr < report.mean_kld
        assert report.mean_kld < report.kld_999 <= report.max_kld


def test_file_against_itself_is_zero(tiny_bf16: Path, eval_text: str) -> None:
    report = evaluate_kld(tiny_bf16, tiny_bf16, eval_text, n_ctx=128, chunks=2, n_threads=1)
    assert (report.mean_kld, report.max_kld, report.same_top_share) == (0.0, 0.0, 1.0)


def test_engine_that_is_open_already(tiny_bf16: Path, eval_text: str) -> None:
    config = LoadConfig(n_ctx=128, n_threads=1, safe_kernels=False)
    engine = LlamaEngine(tiny_bf16, config)
    try:
        report = evaluate_kld(engine, tiny_bf16, eval_text, n_ctx=128, chunks=1, n_threads=1)
        assert report.mean_kld == 0.0
        assert report.mean_kld_stderr is None
        assert engine.score([1, 2, 3]).shape == (3, engine.info.n_vocab)
        with pytest.raises(ConfigError, match="at least 256 are needed"):
            evaluate_kld(engine, engine, "short", n_ctx=128)
    finally:
        engine.close()
