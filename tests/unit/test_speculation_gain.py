"""What is proposed, and that it never costs much."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.speculation_gain import Acceptance, Balance, CallCosts, best_count
from qwen_edge.speculation_lookup import NgramIndex, PromptLookup


def naive_place(text: list[int]) -> int:
    """Return the place behind the last earlier occurrence of the longest n-gram at the end, 0 for none."""
    for length in (4, 3, 2):
        for place in range(len(text) - 1, length - 1, -1):
            if len(text) > length and text[place - length : place] == text[len(text) - length :]:
                return place
    return 0


@given(st.lists(st.tuples(st.lists(st.integers(0, 2), max_size=9), st.integers(0, 12)), max_size=8))
def test_the_index_finds_what_a_search_finds(steps: list[tuple[list[int], int]]) -> None:
    index, text = NgramIndex(), []
    for tokens, n_cut in steps:
        index.extend(tokens)
        text += tokens
        kept = max(0, len(text) - n_cut)
        index.cut(kept)
        del text[kept:]
        assert index.tokens == text
        match = index.match()
        place = naive_place(text)
        assert (match.place if match else 0) == place
        if match:
            n = match.length
            assert text[place - n : place] == text[len(text) - n :]
            assert n == min(place, 32) or text[place - n - 1] != text[len(text) - n - 1]
    fresh = NgramIndex()
    fresh.extend(text)
    assert (fresh._last, fresh._before) == (index._last, index._before)


def test_what_repeats_goes_on_repeating() -> None:
    lookup = PromptLookup()
    lookup.follow([7, 1, 2, 1, 2, 1, 2])
    assert [each.token for each in lookup.propose(5)] == [1, 2, 1, 2, 1]
    lookup.follow([7, 1, 2, 9])
    assert lookup.propose(5) == ()


Clock = Callable[[int], float]


def simulate(is_true: Callable[[int], bool], cost: Clock, n_tokens: int = 2000, kind: int = 8) -> float:
    """Return the time of a reply beside that of the plain loop, both on a clock that is given."""
    acceptance, costs, balance = Acceptance(), CallCosts(), Balance()
    done, spent = 0, 0.0
    while done < n_tokens:
        kinds = [kind + i for i in range(15)]
        count = 0
        if not (costs.wants_plain or balance.is_paused):
            count = best_count(kinds, acceptance, costs)
        came = 0
        for i in range(max(count, 1)):
            acceptance.note(kinds[i], is_true(done + i))
            if not is_true(done + i):
                break
            came += i < count
        call = cost(count + 1)
        costs.note(count + 1, call)
        if count:
            balance.note(came + 1 - call / costs.plain_s)
        for _ in range(came + 1):
            balance.pass_token()
        done += came + 1
        spent += call
    return spent / (done * cost(1))


def linear(slope: float) -> Clock:
    return lambda n_tokens: 1.0 + slope * (n_tokens - 1)


@pytest.mark.parametrize("slope", [0.02, 0.15, 0.4, 1.0, 3.0])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("kind", [2, 4, 8, 16])
def test_never_loses_more_than_3_percent(slope: float, share: float, kind: int) -> None:
    random_ = random.Random(3)
    truths = [random_.random() < share for _ in range(4000)]
    assert simulate(truths.__getitem__, linear(slope), kind=kind) <= 1.03


def test_matches_that_were_good_and_become_bad() -> None:
    good = simulate(lambda i: True, linear(0.15))
    assert good < 0.35
    both = simulate(lambda i: i < 1000, linear(0.15))
    assert both <= (good + 1.03) / 2 + 0.02


def test_a_slow_spell_is_forgotten() -> None:
    costs = CallCosts()
    for _ in range(5):
        costs.note(1, 1.0)
    for _ in range(5):
        costs.note(16, 30.0)
    acceptance = Acceptance()
    assert best_count([16] * 15, acceptance, costs) == 0
    for _ in range(128):
        costs.note(1, 1.0)
    assert best_count([16] * 15, acceptance, costs) > 0


def test_one_slow_call_decides_nothing() -> None:
    costs = CallCosts()
    for _ in range(5):
        costs.note(1, 1.0)
    costs.note(4, 50.0)
    assert costs.ratio(4) < 3


def test_a_pause_grows_and_ends() -> None:
    balance = Balance()
    lengths = []
    for _ in range(3):
        balance.note(-2.0)
        length = 0
        while balance.is_paused:
            balance.pass_token()
            length += 1
        lengths.append(length)
    assert lengths == [64, 128, 256]
    balance.note(9.0)
    balance.note(-12.0)
    assert balance.is_paused
