"""The scheduler, with a stand-in for the native library that keeps books."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_edge.engines import batching
from qwen_edge.engines.batching import Request, Scheduler
from qwen_edge.errors import CancelledError, NativeError
from qwen_edge.native.batch import Part


class Books:
    """Sequences as lists of tokens; notes what each call took."""

    def __init__(
        self, n_batch: int = 512, *, call_s: float = 0.0, before: Callable[[], None] = lambda: None
    ) -> None:
        self.n_batch = n_batch
        self.sequences: dict[int, list[int]] = {}
        self.calls: list[list[tuple[int, int]]] = []
        self._call_s = call_s
        self._before = before
        self._busy = threading.Lock()

    def evaluate(self, parts: Sequence[Part]) -> None:
        assert self._busy.acquire(blocking=False), "two calls at once"
        try:
            assert len({part.sequence for part in parts}) == len(parts)
            assert 0 < sum(len(part.tokens) for part in parts) <= self.n_batch
            time.sleep(self._call_s)
            self._before()
            self.calls.append([(part.sequence, len(part.tokens)) for part in parts])
            for part in parts:
                tokens = self.sequences.setdefault(part.sequence, [])
                assert len(tokens) == part.position
                tokens += part.tokens
        finally:
            self._busy.release()

    def rewind(self, sequence: int, n_tokens: int) -> int:
        del self.sequences.setdefault(sequence, [])[n_tokens:]
        return n_tokens


def request(sequence: int, tokens: Sequence[int], position: int = 0, cancelled: bool = False) -> Request:
    return Request(sequence, position, tuple(tokens), None, lambda: cancelled)


def in_threads(*works: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), "a session waits for ever"


def conversation(scheduler: Scheduler, sequence: int, prompt: int, steps: int) -> None:
    scheduler.run(request(sequence, range(prompt)))
    for step in range(steps):
        scheduler.run(request(sequence, [1000 + step], prompt + step))


def expected(prompt: int, steps: int) -> list[int]:
    return [*range(prompt), *range(1000, 1000 + steps)]


def test_one_session_needs_nobody() -> None:
    books = Books(n_batch=8)
    conversation(Scheduler(books), 0, 20, 3)
    assert books.sequences == {0: expected(20, 3)}
    assert [sum(count for _, count in call) for call in books.calls] == [8, 8, 4, 1, 1, 1]


def test_steps_of_several_sessions_are_taken_together() -> None:
    books = Books(call_s=0.01)
    scheduler = Scheduler(books)
    in_threads(*(lambda i=i: conversation(scheduler, i, 5, 40) for i in range(4)))  # type: ignore[misc]
    assert books.sequences == {i: expected(5, 40) for i in range(4)}
    # 4 x 41 requests; alone each would be a call.
    assert len(books.calls) < 4 * 41 / 2


def test_a_long_prompt_comes_in_pieces_beside_the_steps_of_others() -> None:
    books = Books(call_s=0.002)
    scheduler = Scheduler(books)
    started = threading.Event()

    def talk() -> None:
        scheduler.run(request(0, range(5)))
        for step in range(60):
            scheduler.run(request(0, [1000 + step], 5 + step))
            started.set()

    def read() -> None:
        started.wait(10)
        scheduler.run(request(1, range(500)))

    in_threads(talk, read)
    assert books.sequences[1] == list(range(500))
    mixed = [dict(call) for call in books.calls if len(call) == 2]
    assert mixed, "the prompt was read while the other one talked"
    assert all(call[0] == 1 and call[1] <= 64 for call in mixed)


def test_two_prompts_share_the_room() -> None:
    books = Books(n_batch=100)
    scheduler = Scheduler(books)
    scheduler._waiting += [request(0, range(400)), request(1, range(30)), request(2, range(400))]
    counts = {owner.sequence: len(part.tokens) for owner, part in scheduler._plan()}
    assert counts == {0: 33, 1: 30, 2: 37}


def test_a_cancelled_request_leaves_nothing() -> None:
    books = Books(n_batch=8)
    scheduler = Scheduler(books)
    flags = [False]
    books._before = lambda: flags.__setitem__(0, len(books.calls) >= 2)
    long = Request(0, 0, tuple(range(100)), None, lambda: flags[0])
    with pytest.raises(CancelledError):
        scheduler.run(long)
    assert books.sequences == {0: []}
    assert len(books.calls) == 3
    conversation(scheduler, 1, 3, 1)
    assert books.sequences[1] == expected(3, 1)


def test_a_failed_call_fails_those_in_it_and_nobody_else() -> None:
    def fail() -> None:
        if len(books.calls) == 1:
            raise NativeError("out of luck")

    books = Books(n_batch=8, before=fail)
    scheduler = Scheduler(books)
    with pytest.raises(NativeError, match="out of luck"):
        scheduler.run(request(0, range(20)))
    assert books.sequences[0] == []
    books._before = lambda: None
    conversation(scheduler, 0, 20, 2)
    assert books.sequences[0] == expected(20, 2)


def test_an_interrupted_thread_does_not_take_others_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    books = Books(call_s=0.002)
    scheduler = Scheduler(books)
    real_wait = scheduler._condition.wait
    victim: list[threading.Thread] = []

    def wait(timeout: float | None = None) -> bool:
        woken = real_wait(timeout)
        if threading.current_thread() in victim and len(books.calls) > 5:
            victim.clear()
            raise KeyboardInterrupt
        return woken

    monkeypatch.setattr(scheduler._condition, "wait", wait)
    outcomes: list[str] = []

    def talk(sequence: int) -> None:
        if sequence == 1:
            victim.append(threading.current_thread())
        try:
            conversation(scheduler, sequence, 5, 20)
            outcomes.append("done")
        except KeyboardInterrupt:
            outcomes.append("interrupted")

    in_threads(*(lambda i=i: talk(i) for i in range(3)))  # type: ignore[misc]
    assert sorted(outcomes) == ["done", "done", "interrupted"]
    assert not scheduler._waiting


def test_a_bug_below_reaches_those_who_wait() -> None:
    def break_down() -> None:
        raise ZeroDivisionError("not one of our errors")

    scheduler = Scheduler(Books(before=break_down))
    with pytest.raises(ZeroDivisionError):
        scheduler.run(request(0, [1, 2]))


def test_the_thread_ends_when_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "_IDLE_S", 0.01)
    scheduler = Scheduler(Books())
    for round_ in range(3):
        conversation(scheduler, round_, 3, 2)
        thread = scheduler._thread
        assert thread is not None
        thread.join(5)
        assert scheduler._thread is None


def test_a_session_that_has_ended_is_not_waited_for() -> None:
    books = Books()
    scheduler = Scheduler(books)
    scheduler._last_call_s, scheduler._expected = 10.0, {0, 1}
    scheduler.forget(1)
    start_s = time.perf_counter()
    scheduler.run(request(0, [1]))
    assert time.perf_counter() - start_s < 5
    assert scheduler._expected == {0}


@settings(deadline=None, max_examples=40)
@given(
    sessions=st.lists(st.tuples(st.integers(1, 90), st.integers(0, 6)), min_size=1, max_size=6),
    n_batch=st.integers(6, 40),
)
def test_whatever_the_lengths_every_session_gets_its_tokens(
    sessions: list[tuple[int, int]], n_batch: int
) -> None:
    books = Books(n_batch)
    scheduler = Scheduler(books)
    in_threads(
        *(lambda i=i, p=p, s=s: conversation(scheduler, i, p, s) for i, (p, s) in enumerate(sessions))  # type: ignore[misc]
    )
    assert books.sequences == {i: expected(prompt, steps) for i, (prompt, steps) in enumerate(sessions)}


@given(st.integers(2, 300), st.integers(3, 64))
def test_no_token_of_a_prompt_is_left_alone(length: int, room: int) -> None:
    prompt = request(0, range(length))
    while prompt.n_done < length:
        part = prompt.next_part(room)
        assert 2 <= len(part.tokens) <= room
        prompt.n_done += len(part.tokens)
    assert prompt.n_done == length
