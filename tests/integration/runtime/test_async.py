"""Threads, tasks and their cancellation with a real native library."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from qwen_edge import Model, Session, load
from qwen_edge.config import GREEDY
from qwen_edge.errors import ClosedError

QUESTIONS = [f"What is {a} + {b}?" for a, b in ((12, 30), (7, 8), (41, 5), (20, 22))]
Lines = Callable[[str], list[dict[str, Any]]]


def _answer(model: Model, question: str) -> tuple[str, str]:
    with model.session() as session:
        first = session.send(question, thinking="off", sampling=GREEDY)
        return first.text, session.send("Say Anna.", thinking="off", sampling=GREEDY).text


def test_eight_threads_share_a_model(tiny_model: Model) -> None:
    expected = {question: _answer(tiny_model, question) for question in QUESTIONS}
    start = threading.Barrier(8)

    def work(index: int) -> None:
        start.wait(30)
        for turn in range(6):
            question = QUESTIONS[(index + turn) % len(QUESTIONS)]
            assert _answer(tiny_model, question) == expected[question]
            assert tiny_model.engine.score(tiny_model.engine.tokenize(question)).shape[0] > 4

    with ThreadPoolExecutor(8) as executor:
        list(executor.map(work, range(8)))


def test_closing_a_model_that_eight_threads_use(tiny_path: Path) -> None:
    for delay_s in (0.0, 0.02, 0.1):
        model = load(tiny_path, n_ctx=512, n_threads=1, safe_kernels=False)
        begun = threading.Barrier(9)
        endings: list[BaseException] = []

        def work(
            model: Model = model, begun: threading.Barrier = begun, endings: list[BaseException] = endings
        ) -> None:
            begun.wait(30)
            try:
                while True:
                    _answer(model, QUESTIONS[0])
            except BaseException as error:
                endings.append(error)  # noqa: B023

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        begun.wait(30)
        time.sleep(delay_s)
        model.close()
        for thread in threads:
            thread.join(30)
        assert [type(error) for error in endings] == [ClosedError] * 8


def test_replies_of_several_tasks_are_those_of_one(tiny_model: Model) -> None:
    expected = [_answer(tiny_model, question)[0] for question in QUESTIONS]

    async def ask(question: str) -> str:
        with tiny_model.session() as session:
            parts = [chunk.text async for chunk in session.astream(question, thinking="off", sampling=GREEDY)]
        return "".join(parts)

    async def main() -> list[str]:
        return await asyncio.gather(*(ask(question) for question in QUESTIONS))

    assert asyncio.run(main()) == expected


def test_cancelling_ends_the_reading_of_one_large_batch(tiny_path: Path) -> None:
    """The whole prompt is one native call: without an abort inside it, control would come back at its end only."""

    async def main() -> None:
        with (
            load(tiny_path, n_ctx=4096, n_batch=4096, n_threads=1, safe_kernels=False) as model,
            model.session() as session,
        ):
            prompt = "And it came to pass. " * 600
            start = time.perf_counter()
            await session.asend(prompt, max_tokens=1)
            whole_s = time.perf_counter() - start
            session.messages.clear()
            start = time.perf_counter()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(whole_s / 10):
                    await session.asend("Now " + prompt, max_tokens=1)
            assert time.perf_counter() - start < 0.7 * whole_s
            assert session.messages == []
            start = time.perf_counter()
            reply = await session.asend("Now " + prompt, max_tokens=1, timeout_s=whole_s / 10)
            assert time.perf_counter() - start < 0.7 * whole_s
            assert (reply.finish_reason, session.messages) == ("cancelled", [])
            answer = await session.asend("Say Anna.", thinking="off", sampling=GREEDY)
            assert answer.text == "Anna"

    asyncio.run(main())


def test_cancelling_between_tokens_keeps_the_session(tiny_model: Model) -> None:
    async def main() -> None:
        for _ in range(5):
            with tiny_model.session() as session:
                started = asyncio.Event()

                async def read(started: asyncio.Event = started, session: Any = session) -> None:
                    async for _ in session.astream("Tell me of the king.", thinking="on", sampling=GREEDY):
                        started.set()

                task = asyncio.create_task(read())
                await started.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                session.messages.clear()
                answer = await session.asend("Say Anna.", thinking="off", sampling=GREEDY)
                assert answer.text == "Anna"

    asyncio.run(main())


def test_a_reply_that_was_left_and_the_next_one(tiny_model: Model) -> None:
    async def words(session: Session) -> AsyncIterator[str]:
        async for chunk in session.astream("Tell me everything.", thinking="off"):
            yield chunk.text

    async def main() -> None:
        expected = _answer(tiny_model, "Say Anna.")[0]
        with tiny_model.session() as session:
            for _ in range(10):
                async for _text in words(session):
                    break
                task = asyncio.create_task(session.asend("word " * 500))
                await asyncio.sleep(0.01)
                task.cancel()
                session.messages.clear()
                assert (await session.asend("Say Anna.", thinking="off", sampling=GREEDY)).text == expected
                await asyncio.wait((task,))
                session.messages.clear()

    asyncio.run(main())
