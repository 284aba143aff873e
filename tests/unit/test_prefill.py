"""What is evaluated to bring the cache to a prompt: never a token alone where two will do."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.config import LoadConfig
from qwen_edge.engines.fake import FakeEngine
from qwen_edge.generation import Checkpoint, Meter, TokenCache

N_CTX = 64


def cache_with(calls: list[int], n_batch: int) -> TokenCache:
    def note(tokens: Sequence[int]) -> None:
        calls.append(len(tokens))

    engine = FakeEngine("", config=LoadConfig(n_ctx=N_CTX, n_batch=n_batch), on_append=note)
    return TokenCache(engine.new_context())


PROMPTS = st.lists(st.integers(0, 2), min_size=2, max_size=40)


@given(PROMPTS, PROMPTS, st.integers(0, 40), st.integers(3, 20))
def test_no_token_is_evaluated_alone(before: list[int], rest: list[int], n_common: int, n_batch: int) -> None:
    calls: list[int] = []
    cache = cache_with(calls, n_batch)
    cache.prefill(before, Meter())
    prompt = [*before[:n_common], *rest][: N_CTX - 1]
    calls.clear()
    cache.prefill(prompt, Meter())
    assert cache.tokens == tuple(prompt)
    assert all(2 <= count <= n_batch for count in calls)
    assert sum(calls) >= 2  # the last one's logits are needed


@given(
    st.lists(st.integers(0, 2), min_size=4, max_size=40), st.integers(0, 40), st.integers(3, 20), st.data()
)
def test_nor_before_or_behind_a_pause(
    prompt: list[int], n_before: int, n_batch: int, data: st.DataObject
) -> None:
    calls: list[int] = []
    cache = cache_with(calls, n_batch)
    pause = data.draw(st.integers(2, len(prompt) - 2))
    before = prompt[: min(n_before, pause - 1)]
    if before:
        cache.prefill(before, Meter())
    calls.clear()
    reached: list[tuple[int, ...]] = []
    cache.prefill(prompt, Meter(), Checkpoint(pause, lambda prefill_s: reached.append(cache.tokens)))
    assert reached == [tuple(prompt[:pause])]
    assert cache.tokens == tuple(prompt)
    assert all(2 <= count <= n_batch for count in calls)


@pytest.mark.parametrize(
    ("length", "n_batch", "expected"), [(1, 8, [1]), (9, 8, [7, 2]), (8, 8, [8]), (17, 8, [8, 7, 2])]
)
def test_batches(length: int, n_batch: int, expected: list[int]) -> None:
    calls: list[int] = []
    cache_with(calls, n_batch).prefill(list(range(length)), Meter())
    assert calls == expected
