"""The sampler in numpy against llama.cpp's chain, on the same logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qwen_edge.config import SamplingConfig
from qwen_edge.engines.numpy_sampler import chances
from qwen_edge.native.handles import NativeModel
from qwen_edge.native.sampler import NativeSampler


@pytest.mark.parametrize("top_k", [0, 20, 400])
@pytest.mark.parametrize("top_p", [0.3, 0.95, 1.0])
@pytest.mark.parametrize("min_p", [0.0, 0.05])
@pytest.mark.parametrize("temperature", [0.6, 1.5])
def test_chances_are_those_of_llama_cpps_chain(
    tiny_bf16: Path, top_k: int, top_p: float, min_p: float, temperature: float
) -> None:
    config = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=1)
    model = NativeModel(tiny_bf16)
    ids = np.arange(model.n_vocab)
    for seed in range(5):
        logits = (3 * np.random.default_rng(seed).standard_normal(model.n_vocab)).astype(np.float32)
        kept, weights = chances(ids, logits.copy(), config)
        ours = dict(zip(kept.tolist(), (weights / weights.sum()).tolist(), strict=True))
        sampler = NativeSampler(model, config)
        sampler._draw_from(ids, logits)
        array = sampler._array
        theirs = {int(array.data[i].id): float(array.data[i].p) for i in range(array.size)}
        assert ours.keys() == theirs.keys()
        for token, chance in ours.items():
            assert chance == pytest.approx(theirs[token], rel=1e-3, abs=1e-6)
        sampler.close()
    model.close()
