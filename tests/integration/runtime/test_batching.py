"""Several sessions in one batch: the same answers as alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_edge import LoadConfig, Model, SamplingConfig, Session, load
from qwen_edge.config import GREEDY
from qwen_edge.errors import CancelledError, ConfigError, ContextOverflowError
from qwen_edge.types import Reply

N_CTX = 512


@pytest.fixture(scope="module")
def questions(request: pytest.FixtureRequest) -> list[str]:
    read: Callable[[str], list[dict[str, Any]]] = request.getfixturevalue("eval_lines")
    return [line["messages"][0]["content"] for line in read("chat.jsonl")[:8]]


@pytest.fixture(scope="module")
def alone(tiny_path: Path, questions: list[str]) -> list[str]:
    with load(tiny_path, n_ctx=N_CTX, n_threads=1, safe_kernels=False) as model:
        return [_ask(model.session(), question).text for question in questions]


def _shared(path: Path, n_sessions: int) -> Model:
    return load(path, n_ctx=N_CTX, n_threads=1, safe_kernels=False, n_sessions=n_sessions)


def _ask(session: Session, question: str) -> Reply:
    return session.send(question, thinking="on", max_tokens=64, sampling=GREEDY)


def _all_at_once(works: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.parametrize("n_sessions", [2, 4, 8])
def test_the_answers_are_those_of_sessions_alone(
    tiny_path: Path, questions: list[str], alone: list[str], n_sessions: int
) -> None:
    with _shared(tiny_path, n_sessions) as model:
        sessions = [model.session() for _ in range(n_sessions)]
        found: dict[int, Reply] = {}

        def ask(index: int) -> None:
            found[index] = _ask(sessions[index], questions[index])

        _all_at_once([lambda i=i: ask(i) for i in range(n_sessions)])  # type: ignore[misc]
    assert [found[i].text for i in range(n_sessions)] == alone[:n_sessions]


def test_turns_reuse_what_is_in_the_cache(tiny_path: Path, questions: list[str]) -> None:
    with _shared(tiny_path, 2) as model, model.session() as session:
        _ask(session, questions[0])
        second = session.send(questions[1], thinking="off", max_tokens=16, sampling=GREEDY)
        assert second.stats.cached_tokens > 0


def test_there_is_room_for_as_many_as_was_said(
    tiny_path: Path, questions: list[str], alone: list[str]
) -> None:
    with _shared(tiny_path, 2) as model:
        first, second = model.session(), model.session()
        with pytest.raises(ConfigError, match="all 2 sessions"):
            model.session()
        _ask(first, questions[0])
        first.close()
        # The part of a closed session is empty for the next one.
        third = model.session()
        assert _ask(third, questions[2]).text == alone[2]
        assert _ask(second, questions[1]).text == alone[1]


def test_the_context_of_one_session_is_its_own(tiny_path: Path) -> None:
    with _shared(tiny_path, 2) as model, model.session() as session, model.session() as other:
        with pytest.raises(ContextOverflowError):
            session.send("word " * N_CTX)
        assert _ask(other, "What is 2 + 2?").text


def test_one_is_cancelled_and_the_other_goes_on(
    tiny_path: Path, questions: list[str], alone: list[str]
) -> None:
    with _shared(tiny_path, 2) as model:
        stopped, going = model.session(), model.session()
        replies: dict[str, Reply] = {}

        def stop() -> None:
            stream = stopped.stream_tokens([1] * 20, max_tokens=400, sampling=GREEDY, ignore_end=True)
            for index, _ in enumerate(stream):
                if index == 3:
                    stopped.cancel()
            replies["stopped"] = stream.reply

        def go() -> None:
            replies["going"] = _ask(going, questions[0])

        _all_at_once([stop, go])
        assert replies["stopped"].finish_reason == "cancelled"
        assert replies["going"].text == alone[0]
        assert _ask(stopped, questions[1]).text == alone[1]


def test_cancelled_while_a_prompt_is_read(tiny_path: Path) -> None:
    with _shared(tiny_path, 2) as model:
        context = model.engine.new_context()
        context.cancel()
        with pytest.raises(CancelledError):
            context.append([1] * 100)
        assert context.n_past == 0
        context.clear_cancel()
        context.append([1] * 100)
        assert context.n_past == 100
        context.close()


def test_penalties_and_draws_work_on_shared_logits(tiny_path: Path) -> None:
    texts = []
    for n_sessions in (1, 2):
        config = LoadConfig(n_ctx=N_CTX, n_threads=1, safe_kernels=False, n_sessions=n_sessions)
        with load(tiny_path, config) as model, model.session() as session:
            for top_k in (0, 20):
                sampling = SamplingConfig(
                    temperature=1.0, top_k=top_k, top_p=0.9, presence_penalty=0.5, seed=3
                )
                texts.append(session.send("Tell me a story.", max_tokens=32, sampling=sampling).text)
    assert texts[:2] == texts[2:]
    assert texts[0]
