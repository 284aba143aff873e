from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge import history
from qwen_edge.config import GREEDY, LoadConfig
from qwen_edge.engines.fake import FakeEngine
from qwen_edge.errors import ConfigError, ContextOverflowError, NativeError
from qwen_edge.model import Model
from qwen_edge.overflow import TurnsDroppedWarning, plan_cut
from qwen_edge.types import Message

DIALOGUE = [
    Message("system", "Be brief."),
    Message("user", "one"),
    Message("assistant", "1"),
    Message("user", "two"),
    Message("assistant", ""),
    Message("tool", "{}"),
    Message("assistant", "2"),
]


def counting() -> FakeEngine:
    """An engine whose nth reply is "reply n"."""
    count = iter(range(1, 100))
    return FakeEngine(lambda prompt: f"reply {next(count)}")


def texts(messages: Sequence[Message]) -> list[str]:
    return [message.content for message in messages]


def test_system_can_be_read_and_set() -> None:
    with Model(FakeEngine("ok")) as model, model.session() as session:
        assert session.system is None
        session.send("Hi")
        session.system = "Be brief."
        assert (session.system, texts(session.messages)) == ("Be brief.", ["Be brief.", "Hi", "ok"])
        session.system = "Be long."
        assert texts(session.messages) == ["Be long.", "Hi", "ok"]
        session.system = None
        assert texts(session.messages) == ["Hi", "ok"]


def test_a_new_system_message_reaches_the_model() -> None:
    seen: list[str] = []
    engine = FakeEngine(lambda prompt: seen.append(prompt) or "ok")
    with Model(engine) as model, model.session(system="first") as session:
        session.send("Hi")
        session.system = "second"
        session.send("Again")
    assert "second" in seen[1]
    assert "first" not in seen[1]


def test_edit_takes_out_what_answered_the_old_text() -> None:
    with Model(counting()) as model, model.session(system="Be brief.") as session:
        session.send("one")
        session.send("two")
        removed = session.edit(1, "other")
        assert texts(removed) == ["reply 1", "two", "reply 2"]
        assert texts(session.messages) == ["Be brief.", "other"]
        assert session.send([]).text == "reply 3"
        assert session.edit(-1, "mended") == ()
        assert session.edit(0, "Be long.") == ()
        assert texts(session.messages) == ["Be long.", "other", "mended"]
        for index in (3, -4):
            with pytest.raises(ConfigError, match=f"no message {index}"):
                session.edit(index, "x")


def test_undo_takes_out_whole_turns() -> None:
    with Model(FakeEngine("ok")) as model, model.session() as session:
        session.messages[:] = DIALOGUE
        assert texts(session.undo()) == ["two", "", "{}", "2"]
        assert texts(session.undo()) == ["one", "1"]
        assert texts(session.messages) == ["Be brief."]
        with pytest.raises(ConfigError, match="no turn yet"):
            session.undo()


def test_regenerate_answers_the_same_again() -> None:
    engine = counting()
    with Model(engine) as model, model.session() as session:
        first = session.send("one")
        reply = session.regenerate(max_tokens=100)
        assert (reply.text, texts(session.messages)) == ("reply 2", ["one", "reply 2"])
        assert reply.stats.cached_tokens == first.stats.prompt_tokens - 2
        session.messages.append(Message("tool", "{}"))
        with pytest.raises(ConfigError, match="does not end with a reply"):
            session.regenerate()


def test_regenerate_keeps_the_reply_when_there_is_no_other() -> None:
    engine = counting()

    def fail(tokens: Sequence[int]) -> None:
        raise NativeError("no memory")

    with Model(engine) as model, model.session() as session:
        session.send("one")
        engine.on_append = fail
        with pytest.raises(NativeError):
            session.regenerate()
        assert texts(session.messages) == ["one", "reply 1"]
        engine.on_append = lambda tokens: session.cancel()
        assert session.regenerate().finish_reason == "cancelled"
        assert session.messages[-1].role == "assistant"


def test_regenerate_takes_what_send_takes() -> None:
    with Model(counting()) as model, model.session() as session:
        session.send("one")
        reply = session.regenerate(timeout_s=60, logprobs=0, sampling=GREEDY)
        assert reply.logprobs is not None
        assert b"".join(entry.data for entry in reply.logprobs) == b"reply 2"
        with pytest.raises(TypeError, match="'max_token'; there are: "):
            session.regenerate(max_token=3)  # type: ignore[call-arg]
        with pytest.raises(ConfigError, match="timeout_s"):
            session.regenerate(timeout_s=0)
        assert texts(session.messages) == ["one", "reply 2"]


def test_regenerate_piece_by_piece() -> None:
    with Model(counting()) as model, model.session() as session:
        with pytest.raises(ConfigError, match="does not end with a reply"):
            session.regenerate_stream().finish()
        session.send("one")
        stream = session.regenerate_stream()
        assert texts(session.messages) == ["one", "reply 1"], "nothing happens before the first chunk"
        assert "".join(chunk.text for chunk in stream) == stream.reply.text == "reply 2"
        stream = session.regenerate_stream()
        next(stream)
        stream.close()
        assert texts(session.messages) == ["one", "r"]


def test_regenerate_for_asyncio() -> None:
    async def main() -> None:
        with Model(counting()) as model, model.session() as session:
            await session.asend("one")
            assert (await session.aregenerate(logprobs=1)).text == "reply 2"
            async for chunk in session.aregenerate_stream():
                assert chunk.text == "r"
                break
            assert (await session.aregenerate()).text == "reply 4"
            assert texts(session.messages) == ["one", "reply 4"]

    asyncio.run(main())


def test_a_branch_goes_on_by_itself_and_evaluates_nothing_again() -> None:
    engine = counting()
    with Model(engine) as model, model.session(system="Be brief.", tools=[{"name": "add"}]) as session:
        session.send("one")
        with session.branch() as other:
            assert other.tools == session.tools
            assert engine.contexts[1].evaluated_tokens == 0
            assert other.send("two").stats.cached_tokens >= engine.contexts[0].n_past
            assert texts(session.messages) == ["Be brief.", "one", "reply 1"]
            with other.branch() as third:
                assert texts(third.messages) == texts(other.messages)
        assert session.send("three").text == "reply 3"
        assert set(model._sessions) == {session}


def test_what_is_streamed_is_not_changed() -> None:
    with Model(FakeEngine("abc")) as model, model.session() as session:
        session.send("Hi")
        stream = session.stream("Hi")
        next(stream)
        changes: list[Callable[[], object]] = [
            session.undo,
            session.regenerate,
            session.branch,
            lambda: session.edit(0, "x"),
            lambda: session.save("never-written"),
            lambda: setattr(session, "system", "x"),
        ]
        for change in changes:
            with pytest.raises(ConfigError, match="still being streamed"):
                change()
        stream.close()


# Overflow


def small(script: str | Callable[[str], str] = "ok", n_ctx: int = 400) -> Model:
    return Model(FakeEngine(script, config=LoadConfig(n_ctx=n_ctx)))


def test_overflow_is_an_error_unless_asked_otherwise() -> None:
    with small() as model, model.session(system="Be brief.", on_drop=lambda dropped: 1 / 0) as session:
        session.messages += [Message("user", "x" * 40)] * 20
        with pytest.raises(ContextOverflowError):
            session.send("Hi")
        with pytest.raises(ConfigError, match="on_overflow must be one of error, drop_oldest, summarise"):
            model.session(on_overflow="forget")  # type: ignore[arg-type]


def test_the_oldest_turns_are_dropped_and_told() -> None:
    dropped: list[Message] = []
    said = [f"{i:02} " + "x" * 30 for i in range(20)]
    with (
        small() as model,
        model.session(
            system="Be brief.", tools=[{"name": "add"}], on_overflow="drop_oldest", on_drop=dropped.extend
        ) as session,
    ):
        for text in said:
            session.send(text)
        assert session.system == "Be brief."
        assert session.tools
    exchange = [message for text in said for message in (Message("user", text), Message("assistant", "ok"))]
    assert dropped + session.messages[1:] == exchange
    assert session.messages[1].role == "user"  # whole turns
    assert 0 < len(dropped) < len(exchange)


def test_drops_leave_room_for_several_turns() -> None:
    calls: list[int] = []
    with (
        small(n_ctx=1000) as model,
        model.session(
            on_overflow="drop_oldest", on_drop=lambda dropped: calls.append(len(dropped))
        ) as session,
    ):
        for _ in range(40):
            session.send("x" * 30)
    assert 0 < len(calls) <= 8
    assert min(calls) >= 4


def test_without_a_callback_a_warning_says_it() -> None:
    with small() as model, model.session(on_overflow="drop_oldest") as session:
        session.messages += [Message("user", "x" * 30)] * 12
        with pytest.warns(TurnsDroppedWarning, match=r"its oldest \d+ messages were taken out"):
            session.send("Hi")


@pytest.mark.parametrize("mode", ["drop_oldest", "summarise"])
def test_a_turn_that_does_not_fit_alone_is_an_error_and_nothing_is_dropped(mode: str) -> None:
    with (
        small() as model,
        model.session(on_overflow=mode, on_drop=lambda dropped: 1 / 0) as session,  # type: ignore[arg-type]
    ):
        session.send("x" * 30)
        before = list(session.messages)
        with pytest.raises(ContextOverflowError, match="this turn alone"):
            session.send("x" * 500)
        assert session.messages == before


def test_a_tool_result_keeps_its_whole_turn() -> None:
    dropped: list[Message] = []
    with (
        small() as model,
        model.session(on_overflow="drop_oldest", on_drop=dropped.extend) as session,
    ):
        session.messages += [
            Message("user", "x" * 150),
            Message("assistant", "ok"),
            Message("user", "call it"),
        ]
        session.messages.append(Message("assistant", "calling"))
        session.send(Message("tool", "y" * 100))
        assert texts(dropped) == ["x" * 150, "ok"]
        assert texts(session.messages) == ["call it", "calling", "y" * 100, "ok"]


def summariser(prompt: str) -> str:
    return "They counted." if "Summarise our conversation" in prompt else "ok"


def test_the_models_own_summary_takes_the_place_of_what_is_dropped() -> None:
    seen: list[str] = []
    dropped: list[tuple[Message, ...]] = []
    with (
        small(lambda prompt: seen.append(prompt) or summariser(prompt), n_ctx=1000) as model,
        model.session(system="Be brief.", on_overflow="summarise", on_drop=dropped.append) as session,
    ):
        for i in range(40):
            session.send(f"{i:02} " + "x" * 30)
        assert session.system == "Be brief."
        assert texts(session.messages)[1] == history.SUMMARY_HEADING + "They counted."
        assert session.messages[2].role == "user"
    assert len(dropped) > 1
    assert all(message.role in ("user", "assistant") for message in dropped[0])
    assert dropped[1][0].content.startswith(history.SUMMARY_HEADING)  # the next summary covers the one before
    asked = [prompt for prompt in seen if "Summarise our conversation" in prompt]
    assert len(asked) == len(dropped)
    assert all("Be brief." in prompt and prompt.endswith("<think>\n\n</think>\n\n") for prompt in asked)
    assert "They counted." in seen[-1]


def test_a_summary_is_bounded_and_an_empty_one_left_out() -> None:
    for summary, expected in (("s" * 900, 1000 // 8), ("", 0)):
        with (
            small(lambda prompt, text=summary: text if "Summarise" in prompt else "ok", n_ctx=1000) as model,
            model.session(on_overflow="summarise", on_drop=lambda dropped: None) as session,
        ):
            for _ in range(20):
                session.send("x" * 30)
            found = [m for m in session.messages if m.role == "system"]
            assert sum(len(m.content) - len(history.SUMMARY_HEADING) for m in found) == expected


def test_cancelling_a_summary_takes_the_turn_back() -> None:
    with (
        small(summariser) as model,
        model.session(on_overflow="summarise", on_drop=lambda dropped: 1 / 0) as session,
    ):
        session.messages += [Message("user", "x" * 150), Message("assistant", "ok")]
        before = list(session.messages)
        model.engine.on_append = lambda tokens: session.cancel()  # type: ignore[attr-defined]
        assert session.send("x" * 150).finish_reason == "cancelled"
        assert session.messages == before


@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=20),
    has_system=st.booleans(),
    n_ctx=st.integers(60, 400),
    mode=st.sampled_from(["drop_oldest", "summarise"]),
)
def test_a_cut_is_before_a_turn_and_what_is_left_fits(
    lengths: list[int], has_system: bool, n_ctx: int, mode: str
) -> None:
    messages = [Message("system", "s")] if has_system else []
    for length in lengths:
        messages += [Message("user", "x" * length), Message("assistant", "ok")]
    messages.append(Message("user", "last"))

    def count(conversation: Sequence[Message]) -> int:
        return sum(5 + len(message.content) for message in conversation)

    cut = plan_cut(mode, messages, 1, n_ctx, count)  # type: ignore[arg-type]
    assert cut == 0 or messages[cut].role == "user"
    left = [*messages[: int(has_system)], *messages[cut:]] if cut else messages
    assert left[-1].content == "last"
    assert count(left) < n_ctx
    assert count(left) <= n_ctx // 2 or cut in (0, len(messages) - 1)
