"""Several conversations evaluated together: who waits for whom, and how a long prompt is kept from stalling others.

::

    session 1 ── append(1 token)  ─┐
    session 2 ── append(1 token)  ─┼─> Scheduler ──> one native call: 1 + 1 + 64 tokens
    session 3 ── append(500)      ─┘                 (the rest of the 500 comes in later calls)

All calls are made by one thread of the scheduler's own: the native library's OpenMP keeps a team of workers for each
thread that ever called it, and lets none of them spin while it waits once there are more teams than cores; a decode step
then takes three times as long. A call takes every waiting decode step, and what is left of its room is shared out among
waiting prompts. Reading weights is most of a decode step, so that steps taken together cost little more than one.

Source: continuous batching as in Orca (OSDI 2022), prompts in chunks as in Sarathi-Serve (arXiv 2403.02310).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qwen_edge.errors import CancelledError, ConfigError, QwenEdgeError
from qwen_edge.native.batch import Part

# Prompt tokens that one call takes beside decode steps. Smaller delays others less, larger reads prompts faster.
_MIXED_PREFILL_TOKENS = 64
# A session that took part in the last call is waited for this share of that call's time: long enough for it to
# sample and parse, short enough that one which has stopped costs little.
_GATHER_SHARE = 0.25
_GATHER_MOST_S = 0.02
# The thread ends when nobody has asked for so long, so that a model that is not in use can be collected.
_IDLE_S = 2.0


class Evaluator(Protocol):
    """What the scheduler drives: NativeBatchContext, OnnxCache, or a stand-in for tests."""

    n_batch: int

    def evaluate(self, parts: Sequence[Part]) -> None:
        """Evaluate parts of different sequences."""

    def rewind(self, sequence: int, n_tokens: int) -> int:
        """Forget all but the first n_tokens of a sequence; return how many it has then."""


@dataclass(eq=False, slots=True)
class Request:
    """Tokens that one sequence waits for.

    Attributes:
        sequence: Which one.
        position: Tokens it had before.
        tokens: What is to be added.
        logits: Where the last token's logits go, or None.
        is_cancelled: Asked before each call.
        n_done: Tokens evaluated so far.
        error: Why it ended early.
        is_done: Whether it has ended, in whatever way.
    """

    sequence: int
    position: int
    tokens: Sequence[int]
    logits: NDArray[np.float32] | None
    is_cancelled: Callable[[], bool]
    n_done: int = 0
    error: Exception | None = None
    is_done: bool = False

    @property
    def is_decode(self) -> bool:
        """Whether it is a single token: somebody waits for the next."""
        return len(self.tokens) == 1

    def next_part(self, n_tokens: int) -> Part:
        """Return the next n_tokens as a part; one less where a single token of a prompt would be left over."""
        end = min(self.n_done + n_tokens, len(self.tokens))
        if len(self.tokens) - end == 1 and n_tokens > 2:
            end -= 1  # alone it would take other kernels: see generation._without_lone_tokens()
        is_last = end == len(self.tokens)
        return Part(
            self.sequence,
            self.position + self.n_done,
            self.tokens[self.n_done : end],
            self.logits if is_last else None,
        )


class Scheduler:
    """Brings the appends of several threads into common calls."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self._condition = threading.Condition()
        self._waiting: list[Request] = []
        self._thread: threading.Thread | None = None
        self._expected: set[int] = set()
        self._last_call_s = 0.0

    def run(self, request: Request) -> None:
        """Evaluate a request, together with what other threads ask for, and return when it is done.

        Raises:
            CancelledError: Its is_cancelled() said so; the sequence is as before.
            QwenEdgeError: The call that it was part of failed; the sequence is as before.
        """
        with self._condition:
            self._waiting.append(request)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="qwen-edge batching", daemon=True)
                self._thread.start()
            self._condition.notify_all()
            try:
                while not request.is_done:
                    self._condition.wait()
            except BaseException:  # Ctrl-C: nobody will come back for this request
                self._end(request, None)
                raise
        if request.error is not None:
            raise request.error

    def _work(self) -> None:
        """Make calls for as long as somebody asks."""
        while self._has_work():
            try:
                self._drive()
            except Exception as bug:  # a waiting thread must not wait for ever, whatever happens here
                with self._condition:
                    for request in list(self._waiting):
                        self._end(request, bug)

    def _has_work(self) -> bool:
        """Wait until somebody asks; False when nobody did for _IDLE_S, and this thread is to end."""
        with self._condition:
            if not self._waiting:
                self._condition.wait(_IDLE_S)
            if not self._waiting:
                self._thread = None
            return bool(self._waiting)

    def wake(self) -> None:
        """Look again whether a waiting request was cancelled."""
        with self._condition:
            self._condition.notify_all()

    def forget(self, sequence: int) -> None:
        """Wait no longer for a sequence: its reply has ended."""
        with self._condition:
            self._expected.discard(sequence)
            self._condition.notify_all()

    def _drive(self) -> None:
        """Make one call for all that wait."""
        with self._condition:
            self._gather()
            self._end_cancelled()
            parts = self._plan()
        if not parts:
            return
        start_s = time.perf_counter()
        error: QwenEdgeError | None = None
        try:
            self._evaluator.evaluate([part for _, part in parts])
        except QwenEdgeError as failure:
            error = failure
        with self._condition:
            self._last_call_s = time.perf_counter() - start_s
            self._expected = {request.sequence for request, _ in parts if request.is_decode}
            for request, part in parts:
                if error is not None:
                    self._end(request, error)
                    continue
                request.n_done += len(part.tokens)
                if request.n_done == len(request.tokens):
                    self._end(request, None)
                    # A prompt that is read is followed by a decode step.
                    self._expected.add(request.sequence)

    def _gather(self) -> None:
        """Wait a moment for those that took part in the last call: they come back with their next token."""
        deadline_s = time.perf_counter() + min(self._last_call_s * _GATHER_SHARE, _GATHER_MOST_S)
        while self._expected - {request.sequence for request in self._waiting}:
            left_s = deadline_s - time.perf_counter()
            if left_s <= 0:
                return
            self._condition.wait(left_s)

    def _end_cancelled(self) -> None:
        for request in [request for request in self._waiting if request.is_cancelled()]:
            self._end(request, CancelledError("cancelled during evaluation"))

    def _plan(self) -> list[tuple[Request, Part]]:
        """Return the parts of the next call: all decode steps, then prompts in equal shares."""
        steps = [request for request in self._waiting if request.is_decode][: self._evaluator.n_batch]
        prompts = [request for request in self._waiting if not request.is_decode]
        room = self._evaluator.n_batch - len(steps)
        if steps:
            room = min(room, _MIXED_PREFILL_TOKENS)
        planned = [(request, request.next_part(1)) for request in steps]
        for index, request in enumerate(prompts[:room]):
            part = request.next_part(max(1, room // (len(prompts) - index)))
            room -= len(part.tokens)
            planned.append((request, part))
        return planned

    def _end(self, request: Request, error: Exception | None) -> None:
        if error is not None and request.n_done:
            self._evaluator.rewind(request.sequence, request.position)
        request.error = error
        request.is_done = True
        if request in self._waiting:
            self._waiting.remove(request)
        self._condition.notify_all()


class Places:
    """The places of a cache that several sessions share, and which of them are free."""

    def __init__(self, n_sessions: int) -> None:
        self._n_sessions = n_sessions
        self._free = list(range(n_sessions))
        self._lock = threading.Lock()

    def take(self) -> int:
        """Return a place for one more session.

        Raises:
            ConfigError: All are taken.
        """
        with self._lock:
            if not self._free:
                raise ConfigError(
                    f"all {self._n_sessions} sessions that the model was loaded for are open",
                    hint="Close one, or load with a larger n_sessions.",
                )
            return self._free.pop(0)

    def give_back(self, place: int) -> None:
        """Take note that a place is free again."""
        with self._lock:
            self._free.append(place)
