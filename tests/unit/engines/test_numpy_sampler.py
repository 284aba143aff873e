"""The sampler in numpy against one that sorts everything and cuts nothing short."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qwen_edge.config import GREEDY, SamplingConfig
from qwen_edge.engines import numpy_sampler
from qwen_edge.engines.numpy_sampler import NumpySampler

configs = st.builds(
    SamplingConfig,
    temperature=st.sampled_from([0.3, 0.7, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 5, 20, 300]),
    top_p=st.sampled_from([0.0, 0.3, 0.8, 0.99, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.2, 1.0]),
    presence_penalty=st.sampled_from([0.0, 1.5, -1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    penalty_last_n=st.sampled_from([0, 3, 64]),
    seed=st.integers(0, 1000),
)


def reference(logits: NDArray[np.float32], recent: Sequence[int], config: SamplingConfig) -> dict[int, float]:
    """Return the probability of each token that may be drawn, step by step over a sorted list of all."""
    changed = logits.copy()
    for token in set(recent[-config.penalty_last_n :] if config.penalty_last_n else ()):
        factor = np.float32(config.repetition_penalty)
        changed[token] = changed[token] * factor if changed[token] <= 0 else changed[token] / factor
        changed[token] -= np.float32(config.presence_penalty)
    order = sorted(range(len(changed)), key=lambda token: (-changed[token], token))
    kept = order[: config.top_k] if config.top_k else order
    top = float(changed[kept[0]])
    if config.top_p < 1.0:
        weights = [math.exp(float(changed[token]) - top) for token in kept]
        wanted, reached = config.top_p * math.fsum(weights), 0.0
        for count, weight in enumerate(weights, 1):
            reached += weight
            if reached >= wanted - 1e-12:
                kept = kept[:count]
                break
    if config.min_p:
        kept = [token for token in kept if float(changed[token]) - top >= math.log(config.min_p)]
    weights = [math.exp((float(changed[token]) - top) / config.temperature) for token in kept]
    total = math.fsum(weights)
    return {token: weight / total for token, weight in zip(kept, weights, strict=True)}


@settings(max_examples=150, deadline=None)
@given(
    config=configs, seed=st.integers(0, 10_000), n_vocab=st.sampled_from([40, 700, 5000]), flat=st.booleans()
)
def test_each_draw_is_from_what_the_steps_leave(
    config: SamplingConfig, seed: int, n_vocab: int, flat: bool
) -> None:
    random = np.random.default_rng(seed)
    # Distinct: which of two equal tokens is kept at a threshold is a matter of rounding.
    logits = random.permutation(np.linspace(-8, 8 if not flat else -7.9, n_vocab)).astype(np.float32)
    sampler = NumpySampler(config)
    drawn: list[int] = []
    seen: list[dict[int, float]] = []

    def recorded(ids: Any, some: Any, config: SamplingConfig) -> Any:
        kept, weights = original(ids, some, config)
        seen.append(dict(zip(kept.tolist(), (weights / weights.sum()).tolist(), strict=True)))
        return kept, weights

    original = numpy_sampler.chances
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numpy_sampler, "chances", recorded)
        for _ in range(4):
            before = logits.copy()
            expected = reference(logits, drawn, config)
            drawn.append(sampler.sample(logits))
            assert np.array_equal(logits, before)
            found = seen[-1]
            rounded = {
                token
                for token in found.keys() ^ expected.keys()
                if max(found.get(token, 0), expected.get(token, 0)) > 0
            }
            # One token at the border of top-p or min-p may be on either side.
            assert len(rounded) <= 1
            for token in found.keys() & expected.keys():
                assert found[token] == pytest.approx(expected[token], rel=0.02 if rounded else 1e-6, abs=1e-9)
            assert drawn[-1] in found


@given(logits=st.lists(st.integers(-3, 3), min_size=1, max_size=300), last=st.integers(0, 3))
def test_greedy_takes_the_first_of_the_best(logits: list[int], last: int) -> None:
    values = np.array(logits, np.float32)
    assert NumpySampler(GREEDY).sample(values) == logits.index(max(logits))


def test_a_seed_repeats_and_another_differs() -> None:
    logits = np.random.default_rng(1).standard_normal(4096).astype(np.float32)

    def walk(seed: int) -> list[int]:
        sampler = NumpySampler(SamplingConfig(temperature=1.0, top_k=0, top_p=1.0, seed=seed))
        return [sampler.sample(logits) for _ in range(20)]

    assert walk(1) == walk(1)
    assert walk(1) != walk(2)


def test_frequencies_are_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))
    sampler = NumpySampler(SamplingConfig(temperature=1.0, top_k=0, top_p=1.0, seed=1))
    counts = np.bincount([sampler.sample(logits) for _ in range(8000)], minlength=4) / 8000
    assert counts == pytest.approx([0.5, 0.25, 0.125, 0.125], abs=0.02)


class Only:
    """Allows some tokens."""

    def __init__(self, tokens: set[int], n_vocab: int) -> None:
        self._bits = np.zeros(-(-n_vocab // 32) * 32, np.uint8)
        self._bits[list(tokens)] = 1
        self.masks = 0

    def allows(self, token: int) -> bool:
        return bool(self._bits[token])

    def mask(self) -> NDArray[np.uint32]:
        self.masks += 1
        return np.packbits(self._bits, bitorder="little").view(np.uint32)


@settings(max_examples=60, deadline=None)
@given(
    config=configs, seed=st.integers(0, 1000), tokens=st.sets(st.integers(0, 2999), min_size=1, max_size=40)
)
def test_what_is_drawn_is_allowed_and_drawn_as_if_nothing_else_were_there(
    config: SamplingConfig, seed: int, tokens: set[int]
) -> None:
    logits = np.random.default_rng(seed).permutation(np.linspace(-4, 4, 3000)).astype(np.float32)
    only = Only(tokens, 3000)
    token = NumpySampler(config).sample(logits, only)
    assert token in tokens
    if only.masks:
        alone = np.full(3000, -np.inf, np.float32)
        alone[list(tokens)] = logits[list(tokens)]
        assert token in reference(alone, [], config)
