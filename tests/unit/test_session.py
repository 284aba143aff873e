from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.config import GREEDY, LoadConfig, SamplingConfig
from qwen_edge.engines.fake import FakeEngine
from qwen_edge.errors import ClosedError, ConfigError, ContextOverflowError, NativeError, UnsupportedError
from qwen_edge.model import Model
from qwen_edge.types import Message, ToolCall

TOOL = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}


def test_send_returns_text_and_measurements() -> None:
    with Model(FakeEngine("Hello.")) as model, model.session() as session:
        reply = session.send("Hi")
    assert (reply.text, reply.thinking, reply.finish_reason) == ("Hello.", "", "stop")
    assert reply.stats.generated_tokens == len("Hello.") + 1  # the end token is counted
    assert reply.stats.cached_tokens == 0
    assert reply.stats.prompt_tokens > 0
    assert reply.stats.ttft_s > 0
    assert set(reply.to_dict()["stats"]) >= {
        "prompt_tokens", "cached_tokens", "generated_tokens", "ttft_s", "prefill_tokens_per_s", "decode_tokens_per_s",
        "peak_memory_bytes",
    }  # fmt: skip


def test_thinking_is_kept_apart_and_counted() -> None:
    with Model(FakeEngine("<think>\nhm\n</think>\n\nYes.")) as model, model.session() as session:
        stream = session.stream("Hi", thinking="on")
        kinds = [chunk.kind for chunk in stream]
    assert (stream.reply.thinking, stream.reply.text) == ("hm", "Yes.")
    assert kinds.index("thinking") < kinds.index("text")
    # \n h m \n and the closing tag itself
    assert stream.reply.stats.thinking_tokens == 5


def test_thinking_off_reaches_the_template() -> None:
    seen: list[str] = []
    engine = FakeEngine(lambda prompt: seen.append(prompt) or "ok")
    with Model(engine) as model, model.session() as session:
        session.send("Hi", thinking="off")
        assert seen[0].endswith("<think>\n\n</think>\n\n")
        assert engine.contexts[0].sampling == SamplingConfig(temperature=0.7, top_p=0.8, top_k=20)
        session.send("Hi", thinking="on")
        assert engine.contexts[0].sampling == SamplingConfig(temperature=0.6, top_p=0.95, top_k=20)


def test_thinking_that_the_model_cannot_do_is_refused() -> None:
    with (
        Model(FakeEngine("ok", chat_template="{{ messages[-1].content }}")) as model,
        model.session() as session,
    ):
        with pytest.raises(UnsupportedError, match="does not think"):
            session.stream("Hi", thinking="on")
        assert session.send("Hi", thinking="off").text == "ok"
    always = "{{ messages[-1].content }}<think>\n"
    with Model(FakeEngine("hm</think>ok", chat_template=always)) as model, model.session() as session:
        with pytest.raises(UnsupportedError, match="always thinks"):
            session.stream("Hi", thinking="off")
        assert session.send("Hi").thinking == "hm"


def test_tool_call_and_result() -> None:
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    engine = FakeEngine(lambda prompt: "It is 3." if "tool" in prompt.rsplit("<|im_start|>", 2)[1] else call)
    with Model(engine) as model, model.session(tools=[TOOL]) as session:
        first = session.send("Add.")
        assert (first.tool_calls, first.finish_reason) == ((ToolCall("add", {"a": 1}),), "tool_calls")
        second = session.send(Message("tool", '{"sum": 3}'))
        assert (second.text, second.finish_reason) == ("It is 3.", "stop")
    assert [message.role for message in session.messages] == ["user", "assistant", "tool", "assistant"]


def test_second_turn_evaluates_only_what_is_new() -> None:
    engine = FakeEngine("A fairly long answer that is in the cache already.")
    with Model(engine) as model, model.session() as session:
        first = session.send("Hi")
        evaluated = engine.contexts[0].evaluated_tokens
        second = session.send("Go on")
        new = second.stats.prompt_tokens - second.stats.cached_tokens
        assert second.stats.cached_tokens >= first.stats.prompt_tokens + first.stats.generated_tokens - 1
        assert engine.contexts[0].evaluated_tokens - evaluated == new + second.stats.generated_tokens - 1


def test_changed_history_reuses_the_common_prefix_only() -> None:
    engine = FakeEngine("ok")
    with Model(engine) as model, model.session(system="Be brief.") as session:
        session.send("one")
        session.messages[1] = Message("user", "other")
        session.send("two")
        context = engine.contexts[0]
        expected = session._template.render(session.messages[:-1])
        assert engine.text(context._tokens[: len(engine.tokenize(expected))]) == expected


@given(text=st.text(st.characters(exclude_categories=("Cs",)), max_size=30))
def test_streaming_never_splits_a_character(text: str) -> None:
    with Model(FakeEngine(text)) as model, model.session() as session:
        stream = session.stream("Hi")
        chunks = [chunk.text for chunk in stream]
    assert "�" not in "".join(chunks) or "�" in text
    assert "".join(chunks) == stream.reply.text


def test_max_tokens_and_full_context_end_with_length() -> None:
    with Model(FakeEngine("x" * 500, config=LoadConfig(n_ctx=100))) as model, model.session() as session:
        reply = session.send("Hi", max_tokens=7)
        assert (reply.finish_reason, reply.text) == ("length", "x" * 7)
        session.messages.clear()
        reply = session.send("Hi")
        assert reply.finish_reason == "length"
        assert reply.stats.prompt_tokens + reply.stats.generated_tokens == 100


def test_prompt_longer_than_the_context_leaves_the_session_as_it_was() -> None:
    with Model(FakeEngine("ok", config=LoadConfig(n_ctx=100))) as model, model.session() as session:
        with pytest.raises(ContextOverflowError, match="holds 100"):
            session.send("x" * 200)
        assert session.messages == []
        assert session.send("Hi").text == "ok"


def test_ctrl_c_keeps_what_was_said_and_the_session() -> None:
    def interrupt(tokens: Sequence[int]) -> None:
        if list(tokens) == [ord("!")]:
            raise KeyboardInterrupt

    with Model(FakeEngine("Hello! And more.", on_append=interrupt)) as model, model.session() as session:
        stream = session.stream("Hi")
        with pytest.raises(KeyboardInterrupt):
            for _ in stream:
                pass
        assert (stream.reply.text, stream.reply.finish_reason) == ("Hello!", "cancelled")
        assert session.messages[-1] == Message("assistant", "Hello!")
        session._engine.on_append = lambda tokens: None  # type: ignore[attr-defined]
        assert session.send("Again").text == "Hello! And more."


def test_ctrl_c_while_reading_the_prompt_takes_the_turn_back() -> None:
    def interrupt(tokens: Sequence[int]) -> None:
        raise KeyboardInterrupt

    with Model(FakeEngine("ok", on_append=interrupt)) as model, model.session() as session:
        with pytest.raises(KeyboardInterrupt):
            session.send("Hi")
        assert session.messages == []


def test_leaving_the_loop_early_ends_the_reply() -> None:
    with Model(FakeEngine("abcdef")) as model, model.session() as session:
        for chunk in session.stream("Hi"):
            if chunk.text == "c":
                break
        assert session.messages[-1] == Message("assistant", "abc")
        assert session.send("Go on").text == "abcdef"


def test_cancel_from_elsewhere_ends_the_reply() -> None:
    with Model(FakeEngine("abcdef")) as model, model.session() as session:
        stream = session.stream("Hi")
        for chunk in stream:
            if chunk.text == "b":
                session.cancel()
        assert (stream.reply.text, stream.reply.finish_reason) == ("ab", "cancelled")
        assert session.send("Go on").finish_reason == "stop"


def test_a_failing_engine_takes_the_turn_back() -> None:
    def fail(tokens: Sequence[int]) -> None:
        raise NativeError("no memory")

    with Model(FakeEngine("ok", on_append=fail)) as model, model.session() as session:
        with pytest.raises(NativeError):
            session.send("Hi")
        assert session.messages == []


def test_one_reply_at_a_time() -> None:
    with Model(FakeEngine("abc")) as model, model.session() as session:
        stream = session.stream("Hi")
        next(stream)
        with pytest.raises(ConfigError, match="still being streamed"):
            session.send("Hi")
        with pytest.raises(ConfigError, match="not complete"):
            _ = stream.reply
        stream.close()
        assert session.send("Hi").text == "abc"


def test_closing() -> None:
    model = Model(FakeEngine("ok"))
    session = model.session()
    model.close()
    model.close()
    session.close()
    with pytest.raises(ClosedError):
        session.send("Hi")
    with pytest.raises(ClosedError):
        model.session()


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -1), ("top_p", 1.5), ("top_k", -1), ("seed", -3), ("temperature", float("nan"))],
)
def test_sampling_is_checked(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=field):
        SamplingConfig(**{field: value})  # type: ignore[arg-type]


def test_load_settings_are_checked() -> None:
    for n_ctx in (0, -2, "most"):
        with pytest.raises(ConfigError, match="n_ctx"):
            LoadConfig(n_ctx=n_ctx)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="flash attention"):
        LoadConfig(kv_type="q8_0")
    assert GREEDY.temperature == 0.0


def test_bad_arguments() -> None:
    with Model(FakeEngine("ok")) as model:
        with pytest.raises(ConfigError, match="a tool must be"):
            model.session(tools=[{"description": "nameless"}])
        with model.session() as session:
            with pytest.raises(ConfigError, match="max_tokens"):
                session.stream("Hi", max_tokens=0)
            with pytest.raises(ConfigError, match="thinking"):
                session.stream("Hi", thinking="maybe")  # type: ignore[arg-type]
