"""A reply that is left while it is generated: the next one waits for its end and then proceeds."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence

import pytest

from qwen_edge.engines.fake import FakeEngine
from qwen_edge.errors import ConfigError
from qwen_edge.model import Model
from qwen_edge.session import Session


class OneAtATime:
    """An on_append that fails when two threads are inside."""

    def __init__(self, seconds: float = 0.002) -> None:
        self._inside = threading.Lock()
        self._seconds = seconds
        self.n_calls = 0

    def __call__(self, tokens: Sequence[int]) -> None:
        assert self._inside.acquire(blocking=False), "two generations at once"
        try:
            self.n_calls += 1
            time.sleep(self._seconds)
        finally:
            self._inside.release()


class Gate:
    """An on_append that waits, from the moment it is shut, until it is opened."""

    def __init__(self) -> None:
        self.inside, self._open = threading.Event(), threading.Event()
        self._open.set()

    def __call__(self, tokens: Sequence[int]) -> None:
        if not self._open.is_set():
            self.inside.set()
            assert self._open.wait(20)

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()


async def words(session: Session) -> AsyncIterator[str]:
    """What a program writes around astream()."""
    async for chunk in session.astream("Hi"):
        yield chunk.text


def test_leaving_a_generator_around_the_stream() -> None:
    """asyncio closes it in a later turn of the loop, and the next call comes before that."""

    async def main() -> None:
        with Model(FakeEngine("abcdef", on_append=OneAtATime())) as model, model.session() as session:
            for _ in range(20):
                async for text in words(session):
                    assert text == "a"
                    break
                assert (await session.asend("Again")).text == "abcdef"
            assert [message.content for message in session.messages[:4]] == ["Hi", "a", "Again", "abcdef"]

    asyncio.run(main())


def test_a_call_beside_aclose_waits_for_the_end() -> None:
    gate = Gate()

    async def main() -> None:
        with Model(FakeEngine("abc", on_append=gate)) as model, model.session() as session:
            stream = session.astream("Hi")
            await anext(stream)
            gate.shut()
            reading = asyncio.create_task(anext(stream))
            await asyncio.to_thread(gate.inside.wait, 20)
            closing = asyncio.create_task(stream.aclose())
            await asyncio.sleep(0)
            following = asyncio.create_task(session.asend("Again"))
            await asyncio.sleep(0.5)  # longer than a reply that nobody has ended is waited for
            assert not following.done()
            gate.open()
            assert (await following).text == "abc"
            await closing
            await asyncio.gather(reading, return_exceptions=True)
            assert [message.role for message in session.messages] == ["user", "assistant"] * 2

    asyncio.run(main())


def test_a_call_right_behind_a_cancelled_task() -> None:
    async def main() -> None:
        engine = FakeEngine("x" * 300, on_append=OneAtATime())
        with Model(engine) as model, model.session() as session:
            for _ in range(10):
                task = asyncio.create_task(session.asend("Hi"))
                await asyncio.sleep(0.02)
                task.cancel()
                assert len((await session.asend("Again", max_tokens=3)).text) == 3
                with pytest.raises(asyncio.CancelledError):
                    await task

    asyncio.run(main())


def test_a_coroutine_that_is_dropped_while_it_waits() -> None:
    """Nobody cancels it: its frame is just closed, as at the end of a loop that was stopped."""
    gate = Gate()

    async def main() -> None:
        with Model(FakeEngine("abc", on_append=gate)) as model, model.session() as session:
            stream = session.astream("Hi")
            gate.shut()
            waiting = stream.__anext__()
            waiting.send(None)
            await asyncio.to_thread(gate.inside.wait, 20)
            waiting.close()
            del stream, waiting
            following = asyncio.create_task(session.asend("Again"))
            await asyncio.sleep(0.05)
            gate.open()
            assert (await following).text == "abc"
            assert [message.content for message in session.messages] == ["Hi", "a", "Again", "abc"]

    asyncio.run(main())


def test_a_reply_that_somebody_reads_is_not_taken_away() -> None:
    async def main() -> None:
        with Model(FakeEngine("abc")) as model, model.session() as session:
            async with session.astream("Hi") as stream:
                await anext(stream)
                with pytest.raises(ConfigError, match="still being streamed"):
                    await session.asend("Again")
                assert [chunk.text async for chunk in stream] == ["b", "c"]

    asyncio.run(main())


def test_a_cancelled_reply_that_nobody_reads_makes_room() -> None:
    with Model(FakeEngine("abc")) as model, model.session() as session:
        stream = session.stream("Hi")
        next(stream)
        stream.cancel()
        assert session.send("Again").text == "abc"
        assert (list(stream), stream.reply.text, stream.reply.finish_reason) == ([], "a", "cancelled")
        stream = session.stream("Hi")
        next(stream)
        session.cancel()
        assert session.undo()[0].content == "Hi"


def test_threads_that_cancel_and_ask_again() -> None:
    calls = OneAtATime()
    with Model(FakeEngine("x" * 200, on_append=calls)) as model, model.session() as session:
        for _ in range(10):
            stream = session.stream("Hi")
            reader = threading.Thread(target=list, args=(stream,))
            n_before = calls.n_calls
            reader.start()
            while calls.n_calls == n_before:
                time.sleep(0.001)
            stream.cancel()
            assert session.send("Again", max_tokens=2).text == "xx"
            reader.join(20)
            assert stream.reply.finish_reason == "cancelled"


def test_a_callback_inside_a_cancelled_reply_is_told_so() -> None:
    """It waits for nothing: the end of the reply is behind its own return."""
    errors: list[ConfigError] = []

    def ask(tokens: Sequence[int]) -> None:
        session.cancel()
        try:
            session.send("Inside")
        except ConfigError as error:
            errors.append(error)

    engine = FakeEngine("abc", on_append=ask)
    with Model(engine) as model:
        session = model.session()
        assert session.send("Hi").finish_reason == "cancelled"
    assert "still being streamed" in str(errors[0])
