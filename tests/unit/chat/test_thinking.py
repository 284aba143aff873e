from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.chat.template import ThinkingSupport
from qwen_edge.chat.thinking import ReplyGuard, answer_reserve, plan_thinking, soft_switch
from qwen_edge.config import ThinkingConfig, ThinkingLike, thinking_config
from qwen_edge.errors import ConfigError, UnsupportedError
from qwen_edge.types import Message

NEVER, SWITCHED, ALWAYS = ThinkingSupport.NEVER, ThinkingSupport.SWITCHED, ThinkingSupport.ALWAYS


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["Hi"], None),
        (["Hi /think"], "on"),
        (["/no_think Hi"], "off"),
        (["Hi\n/no_think\n"], "off"),
        (["/think no, /no_think"], "off"),
        (["Hi /no_think", "And now? /think"], "on"),
        (["Hi /no_think", "And now?"], "off"),
        (["Look into usr/think and /thinking, or src/no_think."], None),
        (["/think."], None),
    ],
)
def test_soft_switches(texts: list[str], expected: str | None) -> None:
    assert soft_switch([Message("user", text) for text in texts]) == expected


def test_only_the_user_and_the_system_switch() -> None:
    assert soft_switch([Message("system", "Brief. /no_think"), Message("user", "Hi")]) == "off"
    assert soft_switch([Message("assistant", "Write /think."), Message("tool", "/think")]) is None


@pytest.mark.parametrize(
    ("thinking", "support", "text", "mode", "enable", "budget"),
    [
        (None, SWITCHED, "Hi", "auto", None, None),
        ("auto", SWITCHED, "Hi", "auto", None, None),
        ("auto", SWITCHED, "Hi /think", "on", True, None),
        (None, SWITCHED, "Hi /no_think", "off", False, 0),
        ("on", SWITCHED, "Hi /no_think", "on", True, None),
        ("off", SWITCHED, "Hi /think", "off", False, 0),
        (64, SWITCHED, "Hi /no_think", "on", True, 64),
        (0, SWITCHED, "Hi /think", "off", False, 0),
        (ThinkingConfig(budget=9), SWITCHED, "Hi /think", "on", True, 9),
        (ThinkingConfig(budget=9), SWITCHED, "Hi /no_think", "off", False, 0),
        (None, NEVER, "Hi /think", "off", None, None),
        ("off", NEVER, "Hi", "off", None, 0),
        (0, NEVER, "Hi", "off", None, 0),
        (None, ALWAYS, "Hi /no_think", "on", None, None),
        ("on", ALWAYS, "Hi", "on", None, None),
        (64, ALWAYS, "Hi", "on", None, 64),
        (0, ALWAYS, "Hi", "on", None, 0),
    ],
)
def test_plans(
    thinking: ThinkingLike | None,
    support: ThinkingSupport,
    text: str,
    mode: str,
    enable: bool | None,
    budget: int | None,
) -> None:
    plan = plan_thinking(thinking_config(thinking), support, [Message("user", text)], model_name="m")
    assert (plan.mode, plan.enable_thinking, plan.limits.budget) == (mode, enable, budget)


@pytest.mark.parametrize("thinking", ["on", 1, ThinkingConfig(mode="on")])
def test_a_model_that_never_thinks_says_so(thinking: ThinkingLike) -> None:
    with pytest.raises(UnsupportedError, match="tiny does not think"):
        plan_thinking(thinking_config(thinking), NEVER, [], model_name="tiny")


def test_a_model_that_always_thinks_says_so_and_names_the_budget() -> None:
    with pytest.raises(UnsupportedError, match="this model always thinks") as error:
        plan_thinking(thinking_config("off"), ALWAYS, [], model_name="")
    assert "thinking=0" in str(error.value)


def test_an_overruled_switch_is_not_shown_to_the_model() -> None:
    messages = [
        Message("system", "/no_think\nBrief."),
        Message("assistant", "a /no_think b"),
        Message("user", "Is it /no_think 3? /no_think"),
    ]
    plan = plan_thinking(thinking_config("on"), SWITCHED, messages, model_name="")
    assert [message.content for message in plan.visible(messages)] == [
        "\nBrief.",
        "a /no_think b",
        "Is it 3?",
    ]
    followed = plan_thinking(thinking_config("auto"), SWITCHED, messages, model_name="")
    assert followed.visible(messages) == messages


@pytest.mark.parametrize("wrong", ["maybe", True, -1, 1.5, "8", [1]])
def test_wrong_arguments_are_named(wrong: object) -> None:
    with pytest.raises(ConfigError, match="thinking"):
        thinking_config(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "maybe"},
        {"mode": "on", "budget": 0},
        {"mode": "off", "budget": 8},
        {"budget": -1},
        {"budget": True},
        {"answer_tokens": -1},
        {"answer_tokens": 1.5},
        {"closing": "Now.</think>"},
    ],
)
def test_settings_are_checked(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        ThinkingConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("limit", "reserve"),
    [(1, 0), (2, 1), (40, 20), (64, 32), (100, 32), (400, 100), (4096, 512), (32768, 512)],
)
def test_what_is_kept_for_the_answer(limit: int, reserve: int) -> None:
    assert answer_reserve(ThinkingConfig(), limit) == reserve
    assert answer_reserve(ThinkingConfig(answer_tokens=7), limit) == min(7, limit)


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


@given(
    budget=st.none() | st.integers(0, 300),
    answer_tokens=st.none() | st.integers(0, 400),
    limit=st.integers(1, 400),
    is_open=st.booleans(),
)
def test_an_endless_thought_always_leaves_the_reserve(
    budget: int | None, answer_tokens: int | None, limit: int, is_open: bool
) -> None:
    config = ThinkingConfig(budget=budget, answer_tokens=answer_tokens, stop_loops=False)
    guard = ReplyGuard(config, limit=limit, tokenize=letters)
    used, thought, closing = 0, 0, ()
    if not is_open:
        guard.gives_up(0, was_thinking=False, thinking=True)
        used += 1
    while used < limit and not (closing := tuple(guard.closing(thinking=True))):
        assert not guard.gives_up(used, was_thinking=True, thinking=True)
        used += 1
        thought += 1
    left = limit - used - len(closing)
    assert thought <= limit if budget is None else thought <= budget or not closing
    if closing:
        assert left > 0
        assert guard.cut in ("budget", "reserve")
        # Where the limit has room for reserve, closing and tag, all of the reserve is left.
        if limit - answer_reserve(config, limit) - len(closing) >= used - thought:
            assert left >= answer_reserve(config, limit)
    else:
        # A closing tag and one token of an answer did not fit.
        assert limit - used <= len("\n</think>\n\n") or budget is None


def test_without_limits_everything_passes() -> None:
    guard = ReplyGuard(None, limit=10, tokenize=letters)
    for _ in range(1000):
        assert guard.closing(thinking=True) == ()
        assert not guard.gives_up(1, was_thinking=True, thinking=True)
    assert not guard.goes_on(thinking=True, answered=False)
    assert guard.finish_reason(has_calls=False, answered=False, is_full=False) == "stop"
