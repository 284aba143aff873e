"""One reply at a time in a session, and what becomes of one that was left when the next is asked for."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from qwen_edge.errors import ConfigError
from qwen_edge.generation import Outcome

ASYNC_PATIENCE_S = 0.25
"""How long a call for asyncio waits for a reply that nobody has ended yet. A cancelled task ends its reply, and a
generator that was left is closed, in a later turn of the event loop."""

_POLL_S = 0.005


class ReplySlot:
    """Where the reply in flight is, if there is one."""

    def __init__(self) -> None:
        self._freed = threading.Condition()
        self._holder: Outcome | None = None

    def cancel(self) -> None:
        """Cancel the reply in flight. Callable from any thread."""
        holder = self._holder
        if holder is not None:
            holder.cancellation.cancel()

    def wait(self) -> None:
        """Return when no reply is in flight. A cancelled one is ended; a thread that is inside it is waited for.

        Raises:
            ConfigError: A reply is being streamed that nobody has cancelled.
        """
        self._take(None, 0.0)

    @contextlib.contextmanager
    def held(self, outcome: Outcome, patience_s: float = 0.0) -> Iterator[None]:
        """Hold the slot for a reply; wait() describes what comes before that.

        Args:
            outcome: Of the reply.
            patience_s: A reply that nobody has cancelled is given this long to be.

        Raises:
            ConfigError: As wait(), afterwards.
        """
        self._take(outcome, patience_s)
        try:
            yield
        finally:
            with self._freed:
                self._holder = None
                self._freed.notify_all()

    def _take(self, taker: Outcome | None, patience_s: float) -> None:
        deadline_s = time.monotonic() + patience_s
        while True:
            with self._freed:
                holder = self._holder
                if holder is None:
                    self._holder = taker
                    return
            # Outside of the lock, which the end of that reply takes.
            if holder.cancellation.is_cancelled and holder.end():
                continue
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise ConfigError(
                    "a reply of this session is still being streamed", hint="Finish it or close() it first."
                )
            with self._freed:
                if self._holder is holder:
                    self._freed.wait(min(left_s, _POLL_S))
