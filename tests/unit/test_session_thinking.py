"""Budgets, room for the answer, loops and empty answers, through the session and the decode loop."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge import ThinkingConfig
from qwen_edge.config import LoadConfig, SamplingConfig, ThinkingLike
from qwen_edge.engines.fake import TEMPLATE, FakeEngine
from qwen_edge.errors import UnsupportedError
from qwen_edge.model import Model
from qwen_edge.types import Message, Reply, ToolCall

TOOL = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
ALWAYS = "{{ messages[-1].content }}<think>\n"
NEVER = "{{ messages[-1].content }}"
SENTENCE = ThinkingConfig().closing
LONG_CLOSING = len(SENTENCE) + 6  # bytes are tokens, the tag is one: \n\n … \n </think> \n\n
MUSING = "".join(f"Step {n}: {n * n}. " for n in range(400))


def thinker(thought: str, answer: str = "Yes.") -> Callable[[str], str]:
    """A model that thinks, and answers once its thought is closed in whatever way."""
    return lambda prompt: answer if "</think>" in prompt else f"<think>\n{thought}\n</think>\n\n{answer}"


def ask(
    script: str | Callable[[str], str],
    *,
    n_ctx: int = 4096,
    template: str = TEMPLATE,
    tools: tuple[dict[str, object], ...] = (),
    thinking: ThinkingLike | None = "on",
    max_tokens: int | None = None,
) -> Reply:
    engine = FakeEngine(script, config=LoadConfig(n_ctx=n_ctx), chat_template=template)
    with Model(engine) as model, model.session(tools=tools) as session:
        return session.send("Hi", thinking=thinking, max_tokens=max_tokens)


def test_a_thought_is_closed_at_its_budget_and_the_answer_follows() -> None:
    reply = ask(thinker(MUSING), thinking=20)
    assert reply.thinking == f"{MUSING[:19]}\n\n{SENTENCE}"
    assert (reply.text, reply.finish_reason, reply.stats.thought_cut) == ("Yes.", "thinking_budget", "budget")
    stats = reply.stats
    assert (stats.thinking_tokens, stats.closing_tokens) == (20, LONG_CLOSING)
    assert stats.answer_tokens == len("Yes.") + 2  # the opening tag and the end token
    assert stats.generated_tokens == stats.thinking_tokens + stats.answer_tokens
    assert reply.is_complete
    assert reply.to_dict()["stats"]["thought_cut"] == "budget"
    assert reply.to_dict()["stats"]["answer_tokens"] == stats.answer_tokens


def test_the_closing_comes_as_chunks_and_is_in_the_cache() -> None:
    engine = FakeEngine(thinker(MUSING))
    with Model(engine) as model, model.session() as session:
        stream = session.stream("Hi", thinking=8)
        chunks = list(stream)
        assert "".join(c.text for c in chunks if c.kind == "thinking") == stream.reply.thinking
        assert stream.reply.thinking.endswith(SENTENCE)
        context = engine.contexts[0]
        assert engine.text(context._tokens).endswith(f"\n\n{SENTENCE}\n</think>\n\nYes.")
        assert session.messages[-1] == Message("assistant", "Yes.", stream.reply.thinking)
        again = session.send("Go on", thinking=8)
    assert again.stats.cached_tokens > 0
    assert again.text == "Yes."


def test_a_thought_within_its_budget_is_left_alone() -> None:
    tokens = len("\nhm\n") + 1
    assert ask(thinker("hm"), thinking=tokens).stats.thought_cut is None
    assert ask(thinker("hm"), thinking=tokens - 1).stats.thought_cut == "budget"
    reply = ask(thinker("hm"), thinking=tokens)
    assert (reply.thinking, reply.finish_reason, reply.stats.closing_tokens) == ("hm", "stop", 0)


@pytest.mark.parametrize("thinking", [None, "auto", "on"])
def test_without_a_budget_only_the_reserve_ends_a_thought(thinking: ThinkingLike | None) -> None:
    reply = ask(thinker(MUSING), thinking=thinking)
    assert reply.stats.thought_cut == "reserve"
    assert reply.stats.thinking_tokens > 2500
    short = ask(thinker(MUSING[:1000]), thinking=thinking)
    assert (short.thinking, short.finish_reason) == (MUSING[:1000].strip("\n"), "stop")


@given(
    max_tokens=st.none() | st.integers(1, 300),
    n_ctx=st.integers(60, 400),
    thinking=st.sampled_from(["on", 0, 5, 40, 1000]),
    template=st.sampled_from([TEMPLATE, ALWAYS]),
)
def test_a_thought_never_eats_the_answer_nor_the_limit(
    max_tokens: int | None, n_ctx: int, thinking: ThinkingLike, template: str
) -> None:
    endless = "<think>" + MUSING if template == TEMPLATE else MUSING
    engine = FakeEngine(
        lambda prompt: "Y" * 30 if "</think>" in prompt else endless,
        config=LoadConfig(n_ctx=n_ctx),
        chat_template=template,
    )
    with Model(engine) as model, model.session() as session:
        reply = session.send("Hi", thinking=thinking, max_tokens=max_tokens)
    used = reply.stats.generated_tokens + reply.stats.closing_tokens
    limit = min(max_tokens or n_ctx, n_ctx - reply.stats.prompt_tokens)
    assert used <= limit
    # An opening and a closing tag with their newlines, and one token.
    assert reply.text or limit < 8
    if limit >= 64:
        assert reply.text == "Y" * 30
        assert reply.is_complete
    if not isinstance(thinking, str):
        assert reply.stats.thinking_tokens <= thinking or limit < 8


def test_tokens_for_the_answer_can_be_asked_for() -> None:
    config = ThinkingConfig(mode="on", answer_tokens=150)
    reply = ask(thinker(MUSING, "x" * 100), thinking=config, max_tokens=200)
    assert (reply.text, reply.finish_reason) == ("x" * 100, "thinking_budget")
    assert reply.stats.thinking_tokens < 50


def test_models_that_always_think_have_budgets_too() -> None:
    reply = ask(lambda prompt: "Yes." if "</think>" in prompt else MUSING, template=ALWAYS, thinking=10)
    assert (reply.text, reply.stats.thinking_tokens) == ("Yes.", 10)
    assert reply.finish_reason == "thinking_budget"
    at_once = ask("hm</think>Yes.", template=ALWAYS, thinking=0)
    assert (at_once.text, at_once.thinking, at_once.stats.thinking_tokens) == ("Yes.", "", 0)
    assert (at_once.finish_reason, at_once.stats.closing_tokens) == ("thinking_budget", 4)
    with pytest.raises(UnsupportedError, match="always thinks"):
        ask("hm</think>Yes.", template=ALWAYS, thinking="off")


def test_models_that_never_think_answer_and_say_so() -> None:
    assert ask("Yes.", template=NEVER, thinking=0).text == "Yes."
    with pytest.raises(UnsupportedError, match="does not think"):
        ask("Yes.", template=NEVER, thinking=8)


def test_off_leads_out_of_a_thought_that_opens_all_the_same() -> None:
    reply = ask(lambda prompt: "Yes." if prompt.count("</think>") == 2 else "<think>\nhm", thinking="off")
    assert (reply.text, reply.thinking, reply.finish_reason) == ("Yes.", "", "thinking_budget")


def test_an_end_token_inside_the_thought_closes_it() -> None:
    reply = ask(lambda prompt: "Yes." if "</think>" in prompt else "<think>\nhm")
    assert (reply.thinking, reply.text, reply.finish_reason) == ("hm", "Yes.", "stop")
    assert reply.stats.thought_cut == "end"


def test_an_end_instead_of_an_answer_is_tried_once_more() -> None:
    asked: list[str] = []

    def script(prompt: str) -> str:
        asked.append(prompt)
        return "<think>\nhm\n</think>\n\n" if len(asked) == 1 else "Yes."

    reply = ask(script)
    assert (reply.text, reply.finish_reason, reply.thinking) == ("Yes.", "stop", "hm")
    assert len(asked) == 2


@pytest.mark.parametrize("script", ["", " \n", "<think>\nhm\n</think>\n\n"])
def test_a_model_with_nothing_to_say_is_no_stop(script: str) -> None:
    reply = ask(script)
    assert (reply.text.strip(), reply.finish_reason, reply.is_complete) == ("", "loop", False)


def test_thought_after_thought_comes_to_an_end() -> None:
    reply = ask(lambda prompt: "<think>" + MUSING, thinking=5)
    assert (reply.text, reply.finish_reason) == ("", "loop")
    assert reply.stats.thinking_tokens <= 3 * 5


def test_a_loop_in_a_thought_is_closed_and_the_answer_follows() -> None:
    reply = ask(thinker("I see. " + "Wait, no. " * 300))
    assert (reply.text, reply.finish_reason, reply.stats.thought_cut) == ("Yes.", "thinking_budget", "loop")
    assert reply.stats.thinking_tokens < 60
    free = ask(thinker("Wait, no. " * 50), thinking=ThinkingConfig(mode="on", stop_loops=False))
    assert (free.finish_reason, free.stats.thought_cut) == ("stop", None)


def test_a_loop_in_an_answer_ends_it() -> None:
    reply = ask("So: " + "and on " * 500, thinking="off")
    assert (reply.finish_reason, reply.is_complete) == ("loop", False)
    assert 128 <= len(reply.text) < 140
    free = ask("and on " * 100, thinking=ThinkingConfig(mode="off", stop_loops=False))
    assert free.finish_reason == "stop"


def test_calls_after_a_cut_thought_are_calls_and_in_it_are_not() -> None:
    script = thinker(f"I call {CALL} or not. {MUSING}", CALL)
    reply = ask(script, thinking=60, tools=(TOOL,))
    assert (reply.tool_calls, reply.finish_reason) == ((ToolCall("add", {"a": 1}),), "tool_calls")
    assert reply.stats.thought_cut == "budget"
    assert "I call" in reply.thinking
    assert reply.text == ""


def test_length_says_that_the_answer_was_cut() -> None:
    reply = ask(thinker(MUSING, "x" * 100), thinking=5, max_tokens=100)
    assert (reply.finish_reason, reply.is_complete) == ("length", False)
    assert reply.text


def test_switches_in_the_text() -> None:
    seen: list[str] = []
    engine = FakeEngine(lambda prompt: seen.append(prompt) or "ok")
    with Model(engine) as model, model.session() as session:
        session.send("Hi /no_think")
        assert seen[-1].endswith("<think>\n\n</think>\n\n")
        assert engine.contexts[0].sampling == SamplingConfig(temperature=0.7, top_p=0.8, top_k=20)
        session.send("And 3 + 4?")  # the last switch holds
        assert seen[-1].endswith("<think>\n\n</think>\n\n")
        session.send("And 5?", thinking="on")
        assert "/no_think" not in seen[-1]
        assert seen[-1].endswith("assistant\n")
        session.send("Hi /think")
        assert seen[-1].endswith("assistant\n")
        assert engine.contexts[0].sampling == SamplingConfig(temperature=0.6, top_p=0.95, top_k=20)
        assert session.messages[0] == Message("user", "Hi /no_think")


def test_raw_tokens_are_left_alone() -> None:
    with Model(FakeEngine("ab" * 200)) as model, model.session() as session:
        stream = session.stream_tokens([1, 2], max_tokens=400, sampling=SamplingConfig())
        assert "".join(chunk.text for chunk in stream) == "ab" * 200
        assert stream.reply.finish_reason == "length"


def test_cancelling_inside_the_closing_keeps_what_was_said() -> None:
    engine = FakeEngine(thinker(MUSING))
    with Model(engine) as model, model.session() as session:
        stream = session.stream("Hi", thinking=5)
        for chunk in stream:
            if SENTENCE in chunk.text:
                session.cancel()
        assert (stream.reply.finish_reason, stream.reply.text) == ("cancelled", "")
        assert stream.reply.stats.thought_cut == "budget"
        assert session.send("Again", thinking=5).text == "Yes."
