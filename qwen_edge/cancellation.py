"""Ending one reply from outside: by another thread, by a cancelled task, by a time limit."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Protocol


class Cancellable(Protocol):
    """What evaluates a reply: a context, or what holds one."""

    def cancel(self) -> None:
        """End the evaluation in flight, and later ones."""

    def clear_cancel(self) -> None:
        """Forget an earlier cancel()."""


class Cancellation:
    """The means to end one reply. Before the reply has begun it ends it at once; afterwards it does nothing.

    Context.cancel() ends whatever that context does next. This ends one reply and never the one behind it.
    """

    def __init__(self) -> None:
        # Reentrant: a signal handler may cancel while this thread is inside.
        self._lock = threading.RLock()
        self._context: Cancellable | None = None
        self._is_cancelled = False

    @property
    def is_cancelled(self) -> bool:
        """Whether cancel() was called."""
        return self._is_cancelled

    def cancel(self) -> None:
        """End the reply. Callable from any thread, any number of times."""
        with self._lock:
            self._is_cancelled = True
            if self._context is not None:
                self._context.cancel()

    @contextlib.contextmanager
    def watching(self, context: Cancellable, timeout_s: float | None = None) -> Iterator[None]:
        """Let cancel() reach a context while the block runs.

        Args:
            context: Evaluates the reply. An earlier cancel() of its own is forgotten.
            timeout_s: Cancel by itself after this many seconds.
        """
        with self._lock:
            context.clear_cancel()
            self._context = context
            if self._is_cancelled:
                context.cancel()
        timer = None
        if timeout_s is not None:
            timer = threading.Timer(timeout_s, self.cancel)
            timer.daemon = True  # does not keep a program alive that leaves a reply unfinished
            timer.start()
        try:
            yield
        finally:
            with self._lock:
                self._context = None
            if timer is not None:
                timer.cancel()
