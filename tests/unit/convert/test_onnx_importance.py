"""What a calibration text says of columns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qwen_edge.convert.checkpoint import open_checkpoint
from qwen_edge.convert.onnx_importance import measure_importance, tokenize
from qwen_edge.convert.reference import Reference
from qwen_edge.errors import ConfigError
from tests.golden.checkpoints import CHECKPOINTS, tokens_of


@pytest.mark.parametrize("name", ["qwen3", "qwen3-untied", "qwen2-biased"])
def test_it_is_the_mean_square_of_the_inputs(name: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(CHECKPOINTS[name](tmp_path))
    tokens = tokens_of(name).tolist()
    found = measure_importance(checkpoint, tokens, window=20)
    model = Reference(checkpoint)
    inputs: dict[str, list[np.ndarray]] = {}
    windows = [tokens[:20], tokens[20:40], tokens[40:]]
    states = model.hidden_states(windows, lambda key, x: inputs.setdefault(key, []).append(x))
    head = "lm_head.weight" if name == "qwen3-untied" else "embed_tokens.weight"
    inputs[head] = states
    assert found.keys() == inputs.keys()
    assert len(found) == 7 * model.config.n_layers + 1
    for key, parts in inputs.items():
        together = np.concatenate(parts).astype(np.float64)
        assert len(together) == len(tokens)
        np.testing.assert_allclose(found[key], np.square(together).mean(axis=0), rtol=1e-5)
        assert found[key].dtype == np.float32


def test_only_the_first_tokens_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen_edge.convert.onnx_importance.MAX_TOKENS", 40)
    checkpoint = open_checkpoint(CHECKPOINTS["qwen3"](tmp_path))
    tokens = tokens_of("qwen3").tolist()
    first, longer = measure_importance(checkpoint, tokens[:40]), measure_importance(checkpoint, tokens)
    for name in first:
        np.testing.assert_array_equal(first[name], longer[name])


def test_a_text_that_says_nothing_is_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(CHECKPOINTS["qwen3"](tmp_path))
    with pytest.raises(ConfigError, match="of 3 tokens says too little"):
        measure_importance(checkpoint, [1, 2, 3])


def test_text_becomes_the_checkpoints_tokens(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(CHECKPOINTS["qwen3"](tmp_path))
    assert tokenize(checkpoint, "the ") == [256 + 1, *tokenize(checkpoint, " ")]
