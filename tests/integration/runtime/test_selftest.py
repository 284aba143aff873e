"""The library of this environment on models of random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qwen_edge.config import LoadConfig
from qwen_edge.native.handles import NativeContext, NativeModel
from qwen_edge.native.selftest import SELFTEST_SHAPE, SELFTEST_TYPES, run_selftest
from qwen_edge.native.speed_trial import Contestant, measure_speeds
from qwen_edge.trial_model import write_trial_model


def test_the_library_computes_what_it_should(tmp_path: Path) -> None:
    files = {kind: tmp_path / f"{kind}.gguf" for kind in SELFTEST_TYPES}
    for kind, file in files.items():
        write_trial_model(file, SELFTEST_SHAPE, kind)
    test = run_selftest(files, tmp_path)
    assert "= 1" in test.system_info
    assert len(test.outcomes) == 2 * len(SELFTEST_TYPES)
    assert test.failures("safe") == ()
    assert test.failures("fast") == ()


def test_wrong_weights_are_seen(tmp_path: Path) -> None:
    """A file that is not what the plain kernels evaluated stands for fast kernels that compute something else."""
    file = tmp_path / "Q4_0.gguf"
    write_trial_model(file, SELFTEST_SHAPE, "Q4_0")
    (before,) = run_selftest({"Q4_0": file}, tmp_path).outcomes[:1]
    assert before.is_right
    right = np.load(tmp_path / "safe-Q4_0.npy")[1]
    write_trial_model(file, SELFTEST_SHAPE, "Q4_0", seed=1)
    run_selftest({"Q4_0": file}, tmp_path)
    wrong = np.load(tmp_path / "fast-Q4_0.npy")[1]
    assert np.sqrt(np.mean((wrong - right) ** 2) / np.mean(right**2)) > 0.5


def test_speeds_of_both_kinds_of_kernels(tmp_path: Path) -> None:
    file = tmp_path / "speed.gguf"
    write_trial_model(file, SELFTEST_SHAPE, "Q4_0")
    contestants = [
        Contestant(name="fast", build=None),
        Contestant(name="plain", build=None, kernels="safe"),
    ]
    speeds = measure_speeds(contestants, file, budget_s=60, n_threads=1)
    assert speeds.keys() == {"fast", "plain"}
    assert all(speed.prefill_tokens_per_s > 0 < speed.decode_tokens_per_s for speed in speeds.values())


@pytest.mark.parametrize("architecture", ["qwen3", "qwen2", "llama"])
def test_llama_cpp_takes_every_architecture(tmp_path: Path, architecture: str) -> None:
    from dataclasses import replace

    shape = replace(SELFTEST_SHAPE, has_qk_norm=architecture == "qwen3", has_qkv_bias=architecture == "qwen2")
    file = tmp_path / "trial.gguf"
    write_trial_model(file, shape, "Q4_0", architecture=architecture)  # type: ignore[arg-type]
    model = NativeModel(file)
    assert (model.n_vocab, model.n_params) == (shape.vocab_size, shape.n_weights)
    context = NativeContext(model, LoadConfig(n_ctx=256, n_batch=16), 1)
    context.append(list(range(16)))
    logits = context.last_logits().copy()
    model.close()
    assert np.isfinite(logits).all()
    assert 0.3 < np.sqrt(np.mean(logits**2)) < 3
