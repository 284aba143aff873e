"""The benchmark of speculation, on models that load in a moment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from qwen_edge import load, speculation
from qwen_edge.bench.speculation import CALL_LENGTHS, call_costs, forced_gain, main
from qwen_edge.catalog import MODELS
from qwen_edge.speculation_gain import Balance
from qwen_edge.speculation_trial import measure
from qwen_edge.trial_model import write_trial_model


@pytest.fixture
def random_model(tmp_path: Path) -> Path:
    shape = MODELS["qwen3-0.6b"].shape
    assert shape is not None
    path = tmp_path / "random.gguf"
    write_trial_model(path, replace(shape, n_layers=2, vocab_size=4000), "Q4_0")
    return path


def test_calls_and_forced_acceptance(random_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whatever is proposed is evaluated: on a busy machine it might not pay.
    monkeypatch.setattr(speculation, "best_count", lambda kinds, acceptance, costs: len(kinds))
    monkeypatch.setattr(Balance, "is_paused", False)
    with (
        load(random_model, n_ctx=512, n_threads=1, safe_kernels=False) as model,
        load(random_model, n_ctx=512, n_threads=1, safe_kernels=False) as draft,
    ):
        costs = call_costs(model.engine, 32, 2)
        assert tuple(costs) == CALL_LENGTHS
        assert costs[17] > costs[1] > 0
        _, right, _ = forced_gain(model.engine, None, 1.0, 1)
        _, wrong, _ = forced_gain(model.engine, draft.engine, 0.0, 1)
        assert right > 3
        assert wrong == 1.0


def test_a_workload(tiny_bf16: Path) -> None:
    with load(tiny_bf16, n_ctx=512, n_threads=1, safe_kernels=False) as model:
        prompt = model.engine.tokenize("Repeat: one two three one two three one two")
        trial = measure(model, [prompt], max_tokens=32, turns=2)
    assert trial.gain > 0
    assert 0 <= trial.acceptance <= 1
    assert trial.same_text == 1.0
    assert trial.tokens_a_call >= 1.0


def test_the_command(tiny_bf16: Path) -> None:
    arguments = [str(tiny_bf16), "--turns", "1", "--max-tokens", "16", "--workload", "chat", "--threads", "1"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "chat" in result.output
