from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from qwen_edge.chat.loops import ANSWER_LOOPS, THOUGHT_LOOPS, LoopDetector, LoopLimits

TINY = Path(__file__).parents[3] / "examples" / "tiny-qwen3"

MARKDOWN_LIST = "\n".join(
    f"{n}. **Step {n}**: take part {n} and put it on part {n - 1}." for n in range(1, 60)
)
SHOPPING = "\n".join(f"- {n} {thing}" for n, thing in enumerate(["eggs", "apples", "pears", "plums"] * 10))
TABLE = "| City | Country | Sky |\n| --- | --- | --- |\n" + "\n".join(
    f"| {city} | {country} | {sky} |"
    for city, country, sky in zip(
        ["Vienna", "Oslo", "Madrid", "Lima"] * 6,
        ["Austria", "Norway", "Spain", "Peru"] * 6,
        ["sunny", "rainy", "cloudy"] * 8,
        strict=True,
    )
    if (city, sky) != ("Oslo", "rainy")
)
JSON_ROWS = "[" + ",\n".join(f'{{"id": {n}, "name": "item {n * 7 % 13}"}}' for n in range(50)) + "]"
SUMS = "\n".join(f"{a} + {b} = {a + b}" for a in range(1, 8) for b in range(1, 8))


def first_alarm(tokens: list[int], limits: LoopLimits) -> int | None:
    detector = LoopDetector(limits)
    return next((i for i, token in enumerate(tokens) if detector.feed(token)), None)


def is_loop(tokens: list[int], limits: LoopLimits) -> bool:
    """The definition, slowly: the end of the tokens is a period often enough, or a window of them says too little."""
    for period in range(1, limits.max_period + 1):
        length = limits.tokens_needed(period)
        end = tokens[-length:]
        if len(end) == length and end[period:] == end[:-period]:
            return True
    window = tokens[-limits.entropy_window :]
    shares = [count / len(window) for count in Counter(window).values()]
    entropy = -sum(share * math.log2(share) for share in shares)
    return len(window) == limits.entropy_window and entropy < limits.min_entropy_bits - 1e-9


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TINY / "tokenizer.json"))


@pytest.mark.parametrize("limits", [THOUGHT_LOOPS, ANSWER_LOOPS], ids=["thought", "answer"])
@pytest.mark.parametrize("name", ["prose.txt", "code.txt"])
def test_no_alarm_on_held_out_texts(tokenizer: Tokenizer, name: str, limits: LoopLimits) -> None:
    tokens = tokenizer.encode((TINY / "eval" / name).read_text()).ids
    assert len(tokens) > 15_000
    assert first_alarm(tokens, limits) is None


@pytest.mark.parametrize("limits", [THOUGHT_LOOPS, ANSWER_LOOPS], ids=["thought", "answer"])
@pytest.mark.parametrize(
    "text",
    [MARKDOWN_LIST, SHOPPING, TABLE, JSON_ROWS, SUMS],
    ids=["list", "shopping", "table", "json", "sums"],
)
def test_no_alarm_on_lists_and_tables(tokenizer: Tokenizer, text: str, limits: LoopLimits) -> None:
    assert first_alarm(tokenizer.encode(text).ids, limits) is None


def test_an_answer_may_repeat_more_than_a_thought(tokenizer: Tokenizer) -> None:
    zeros = tokenizer.encode("[" + ",\n ".join(["[0, 0, 0, 0]"] * 6) + "]").ids
    assert first_alarm(zeros, THOUGHT_LOOPS) is not None
    assert first_alarm(zeros, ANSWER_LOOPS) is None


@pytest.mark.parametrize("limits", [THOUGHT_LOOPS, ANSWER_LOOPS], ids=["thought", "answer"])
@pytest.mark.parametrize("period", range(1, 41))
def test_every_period_is_found_in_time(tokenizer: Tokenizer, period: int, limits: LoopLimits) -> None:
    text = tokenizer.encode((TINY / "eval" / "prose.txt").read_text()).ids
    draw = random.Random(period)
    for _ in range(5):
        start = draw.randrange(len(text) - 400)
        before = text[start : start + draw.randrange(300)]
        piece = draw.sample(range(4096), period)
        alarm = first_alarm([*before, *piece * 200], limits)
        assert alarm is not None
        assert len(before) <= alarm < len(before) + limits.tokens_needed(period)


SMALL = LoopLimits(min_repeats=3, min_tokens=6, max_period=9, entropy_window=16, min_entropy_bits=1.25)


@given(
    before=st.lists(st.integers(0, 5), max_size=30),
    piece=st.lists(st.integers(0, 5), min_size=1, max_size=9),
    repeats=st.integers(0, 5),
    after=st.lists(st.integers(0, 5), max_size=8),
)
def test_every_verdict_is_the_definition(
    before: list[int], piece: list[int], repeats: int, after: list[int]
) -> None:
    tokens = [*before, *piece * repeats, *after]
    detector = LoopDetector(SMALL)
    verdicts = [detector.feed(token) for token in tokens]
    assert verdicts == [is_loop(tokens[: end + 1], SMALL) for end in range(len(tokens))]


@given(data=st.data())
def test_two_words_in_any_order_are_a_collapse(data: st.DataObject) -> None:
    size = THOUGHT_LOOPS.entropy_window
    tokens = data.draw(st.lists(st.sampled_from([7, 8]), min_size=size, max_size=size))
    assert first_alarm(tokens, THOUGHT_LOOPS) is not None


@given(tokens=st.lists(st.integers(0, 151_935), min_size=1, max_size=200, unique=True))
def test_tokens_that_never_come_back_are_no_loop(tokens: list[int]) -> None:
    assert first_alarm(tokens, THOUGHT_LOOPS) is None
