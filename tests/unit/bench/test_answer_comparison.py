"""Where two answers part, and the gap there, on answers made up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.bench.answer_comparison import (
    Answer,
    Difference,
    compare,
    first_difference,
    largest_change,
    logit_gap,
)
from qwen_edge.types import TokenLogprob


def step(token: int, logprob: float = -0.5, **others: float) -> TokenLogprob:
    """Return a step; others are named t7=-1.25 for token 7."""
    alternatives = {token: logprob, **{int(name[1:]): value for name, value in others.items()}}
    top = tuple(TokenLogprob(other, b"%d" % other, value) for other, value in alternatives.items())
    return TokenLogprob(token, b"%d" % token, logprob, top)


def steps(*tokens: int) -> tuple[TokenLogprob, ...]:
    return tuple(step(token) for token in tokens)


def test_equal_answers_do_not_part() -> None:
    assert first_difference(0, steps(1, 2, 3), steps(1, 2, 3)) is None
    assert first_difference(0, (), ()) is None


def test_each_gap_is_in_the_logits_of_its_own_run() -> None:
    expected = (*steps(1, 2), step(3, -1.0, t4=-1.125), *steps(5))
    found = (*steps(1, 2), step(4, -1.0, t3=-1.5), *steps(6))
    difference = first_difference(7, expected, found)
    assert difference == Difference(prompt=7, position=2, texts=("3", "4"), gaps=(0.125, 0.5))


def test_a_token_beyond_the_alternatives_has_no_gap() -> None:
    difference = first_difference(0, (step(3),), (step(4, -1.0, t3=-1.5),))
    assert difference is not None
    assert difference.gaps == (None, 0.5)
    assert logit_gap(step(3), 4) is None
    assert logit_gap(step(3), 3) == 0.0


@pytest.mark.parametrize(("expected", "found", "texts"), [
    (steps(1, 2), steps(1), ("2", "")),
    (steps(1), steps(1, 2), ("", "2")),
    ((), steps(1), ("", "1")),
])  # fmt: skip
def test_an_answer_that_ends_sooner_is_another(
    expected: tuple[TokenLogprob, ...], found: tuple[TokenLogprob, ...], texts: tuple[str, str]
) -> None:
    position = min(len(expected), len(found))
    assert first_difference(0, expected, found) == Difference(
        prompt=0, position=position, texts=texts, gaps=(None, None)
    )


def test_the_change_is_that_before_answers_part() -> None:
    expected = (step(1, -0.5), step(2, -0.25), step(3, -0.5))
    found = (step(1, -0.5), step(2, -0.5), step(4, -9.0))
    assert largest_change(expected, found) == 0.25
    assert largest_change(expected, expected) == 0.0
    assert largest_change((), found) == 0.0


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_the_first_difference_is_the_first(one: list[int], other: list[int]) -> None:
    difference = first_difference(0, steps(*one), steps(*other))
    if difference is None:
        assert one == other
    else:
        at = difference.position
        assert one[:at] == other[:at]
        assert one[at : at + 1] != other[at : at + 1]


def test_a_comparison_counts() -> None:
    expected = [Answer(steps(1, 2), 30), Answer((step(3, -1.0, t4=-1.25),), 30), Answer(steps(5), 30)]
    found = [Answer(steps(1, 2), 9), Answer((step(4, -1.0, t3=-1.125),), 9), Answer((step(5, -0.75),), 9)]
    comparison = compare("with", "without", expected, found)
    assert (comparison.n_prompts, comparison.n_equal, comparison.evaluated_tokens) == (3, 2, 27)
    assert comparison.largest_gap == 0.25
    assert comparison.largest_change == 0.25
    assert [difference.prompt for difference in comparison.differences] == [1]
    told = comparison.to_dict()
    assert (told["way"], told["against"], told["n_equal"]) == ("with", "without", 2)
    assert told["differences"][0]["gaps"] == (0.25, 0.125)


def test_all_equal_leaves_no_gap() -> None:
    comparison = compare("with", "without", [Answer(steps(1), 3)], [Answer(steps(1), 3)])
    assert (comparison.n_equal, comparison.largest_gap, comparison.largest_change) == (1, None, 0.0)


def test_answers_to_other_prompts_are_not_compared() -> None:
    with pytest.raises(ValueError, match="shorter"):
        compare("with", "without", [Answer(steps(1), 3)], [])


def test_turns_add_up() -> None:
    assert Answer(steps(1), 3) + Answer(steps(2, 4), 5) == Answer(steps(1, 2, 4), 8)
