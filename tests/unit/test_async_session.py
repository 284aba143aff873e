from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Sequence

import pytest

from qwen_edge.cancellation import Cancellation
from qwen_edge.config import LoadConfig
from qwen_edge.engines.fake import FakeEngine
from qwen_edge.errors import ClosedError, ConfigError, ContextOverflowError, NativeError
from qwen_edge.model import Model
from qwen_edge.types import Chunk, Message


def _slow(tokens: Sequence[int]) -> None:
    time.sleep(0.002)


def test_asend_is_send() -> None:
    async def main() -> None:
        with Model(FakeEngine("Hello.")) as model, model.session() as session:
            reply = await session.asend("Hi")
            assert (reply.text, reply.finish_reason) == ("Hello.", "stop")
            assert (await session.asend("Again", max_tokens=2)).finish_reason == "length"
            assert len(session.messages) == 4

    asyncio.run(main())


def test_astream_gives_the_chunks_and_then_the_reply() -> None:
    async def main() -> None:
        with Model(FakeEngine("abc")) as model, model.session() as session:
            stream = session.astream("Hi", logprobs=1)
            with pytest.raises(ConfigError, match="not complete"):
                _ = stream.reply
            assert [chunk async for chunk in stream] == [Chunk("text", letter) for letter in "abc"]
            assert stream.reply.text == "abc"
            assert stream.logprobs == stream.reply.logprobs
            assert [chunk async for chunk in stream] == []
            assert (await stream.finish()).text == "abc"
            await stream.aclose()

    asyncio.run(main())


def test_the_loop_runs_while_a_reply_is_generated() -> None:
    async def main() -> None:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1

        with Model(FakeEngine("x" * 50, on_append=_slow)) as model, model.session() as session:
            ticker = asyncio.create_task(tick())
            await session.asend("Hi")
            ticker.cancel()
        assert ticks >= 10

    asyncio.run(main())


def test_sessions_of_one_model_reply_side_by_side() -> None:
    """More replies than asyncio's default pool has threads, each waiting for all others."""
    n_sessions = 40
    barrier = threading.Barrier(n_sessions, timeout=20)

    def meet(tokens: Sequence[int]) -> None:
        if tokens == (ord("!"),):
            barrier.wait()

    async def main() -> None:
        with Model(FakeEngine("!?", on_append=meet)) as model:
            sessions = [model.session() for _ in range(n_sessions)]
            replies = await asyncio.gather(*(session.asend("Hi") for session in sessions))
        assert {reply.text for reply in replies} == {"!?"}

    asyncio.run(main())


def test_a_time_limit_around_a_reply_keeps_what_was_said() -> None:
    async def main() -> None:
        with Model(FakeEngine("x" * 1000, on_append=_slow)) as model, model.session() as session:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await session.asend("Hi")
            said = session.messages[-1]
            assert said.role == "assistant"
            assert 0 < len(said.content) < 1000
            assert (await session.asend("Go on", max_tokens=3)).text == "xxx"

    asyncio.run(main())


def test_a_time_limit_around_the_reading_of_the_prompt_takes_the_turn_back() -> None:
    async def main() -> None:
        config = LoadConfig(n_ctx=4096, n_batch=4)
        engine = FakeEngine("ok", config=config, on_append=_slow)
        with Model(engine) as model, model.session() as session:
            stream = session.astream("word " * 700)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(stream), 0.05)
            assert session.messages == []
            assert engine.contexts[0].evaluated_tokens < 3000
            assert (await session.asend("Hi")).text == "ok"

    asyncio.run(main())


def test_a_task_cancelled_before_its_thread_began_generates_nothing() -> None:
    async def main() -> None:
        evaluated: list[int] = []

        def note(tokens: Sequence[int]) -> None:
            evaluated.extend(tokens)
            _slow(tokens)

        engine = FakeEngine("x" * 1000, on_append=note)
        with Model(engine) as model, model.session() as session:
            for _ in range(20):
                task = asyncio.create_task(session.asend("Hi"))
                await asyncio.sleep(0)  # the task runs up to the point where it waits for the thread
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert len(evaluated) < 500
                evaluated.clear()
                session.messages.clear()
            assert (await session.asend("Hi", max_tokens=2)).text == "xx"

    asyncio.run(main())


def test_cancelling_twice_waits_for_the_call_all_the_same() -> None:
    inside, go_on = threading.Event(), threading.Event()

    def hang(tokens: Sequence[int]) -> None:
        inside.set()
        go_on.wait(20)

    async def main() -> None:
        with Model(FakeEngine("abc", on_append=hang)) as model, model.session() as session:
            task = asyncio.create_task(session.asend("Hi"))
            while not inside.is_set():
                await asyncio.sleep(0.001)
            for _ in range(3):
                task.cancel()
                await asyncio.sleep(0.01)
            assert not task.done()
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await session.asend("Again")).text == "abc"

    asyncio.run(main())


def test_leaving_the_loop_ends_the_reply() -> None:
    async def main() -> None:
        with Model(FakeEngine("abcdef")) as model, model.session() as session:
            async for chunk in session.astream("Hi"):
                if chunk.text == "c":
                    break
            for _ in range(400):  # the reply's thread may hold it for a moment longer
                if session.messages[-1].role == "assistant":
                    break
                await asyncio.sleep(0.005)
            assert session.messages[-1] == Message("assistant", "abc")
            async with session.astream("Hi") as stream:
                await anext(stream)
            assert session.messages[-1] == Message("assistant", "a")
            stream = session.astream("Hi")
            async for chunk in stream:
                if chunk.text == "b":
                    stream.cancel()
            assert (stream.reply.text, stream.reply.finish_reason) == ("ab", "cancelled")
            await session.astream("unread").aclose()
            assert session.messages[-1] == Message("assistant", "ab")

    asyncio.run(main())


def test_errors_reach_the_task_and_the_threads_go() -> None:
    def fail(tokens: Sequence[int]) -> None:
        raise NativeError("no memory")

    async def main() -> None:
        with Model(FakeEngine("ok", on_append=fail)) as model, model.session() as session:
            with pytest.raises(NativeError, match="no memory"):
                await session.asend("Hi")
            with pytest.raises(ConfigError, match="max_tokens"):
                session.astream("Hi", max_tokens=0)
        with pytest.raises(ClosedError):
            session.astream("Hi")
        with Model(FakeEngine("ok", config=LoadConfig(n_ctx=64))) as model, model.session() as session:
            with pytest.raises(ContextOverflowError):
                await session.asend("x" * 100)
            assert (await session.asend("Hi")).text == "ok"

    asyncio.run(main())
    gc.collect()
    deadline = time.monotonic() + 10
    while any(thread.name.startswith("qwen-edge-reply") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_timeout_s_ends_the_reply_and_says_so() -> None:
    config = LoadConfig(n_ctx=4096, n_batch=4)
    with Model(FakeEngine("x" * 1000, config=config, on_append=_slow)) as model:
        with model.session() as session:
            reply = session.send("Hi", timeout_s=0.2)
            assert reply.finish_reason == "cancelled"
            assert 0 < len(reply.text) < 1000
            assert session.messages[-1].content == reply.text
            assert session.send("Go on", max_tokens=3).finish_reason == "length"
        with model.session() as session:
            reply = session.send("word " * 700, timeout_s=0.05)
            assert (reply.text, reply.finish_reason, session.messages) == ("", "cancelled", [])
            assert session.send("Hi", max_tokens=2, timeout_s=60).finish_reason == "length"
            for value in (0, -1.0, float("nan"), float("inf")):
                with pytest.raises(ConfigError, match="timeout_s"):
                    session.send("Hi", timeout_s=value)


def test_a_cancellation_ends_its_own_reply_only() -> None:
    engine = FakeEngine("abcdef")
    with Model(engine) as model, model.session() as session:
        first, second = session.stream("one"), session.stream("two")
        first.cancel()
        assert [chunk.text for chunk in second] == list("abcdef")
        assert list(first) == []
        assert first.reply.finish_reason == "cancelled"
        second.cancel()
        assert session.send("three").text == "abcdef"


def test_the_timer_of_a_reply_goes_with_it() -> None:
    context = FakeEngine("").new_context()
    cancellation = Cancellation()
    before = threading.active_count()
    with cancellation.watching(context, timeout_s=3600):
        assert threading.active_count() == before + 1
    deadline = time.monotonic() + 10
    while threading.active_count() > before:
        assert time.monotonic() < deadline
        time.sleep(0.001)
