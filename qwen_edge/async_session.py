"""Replies for asyncio: the blocking work in a thread, cancelled with the task that waits for it.

A cancelled task (or `asyncio.timeout`) stops the native call in flight at its next graph node, while a prompt is read
as well as between two tokens. The task gets its CancelledError once the call has returned: the session is usable then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from qwen_edge.async_call import uncancelled
from qwen_edge.types import Chunk, Reply, TokenLogprob

if TYPE_CHECKING:
    from qwen_edge.session import ReplyStream

T = TypeVar("T")


class AsyncReplyStream:
    """One answer being generated: `async for` for chunks, then read `.reply`.

    Each chunk is computed when it is asked for, in a thread of this reply. Cancelling the task that waits, aclose(), and
    leaving the loop all end the reply where it is: what was generated stays in the history with finish_reason
    "cancelled", and the session goes on. A stream that has a name and is not read to its end wants `async with`::

        async with session.astream("Tell me a story.") as stream:
            async for chunk in stream:
                print(chunk.text, end="")
    """

    def __init__(self, stream: ReplyStream) -> None:
        """Made by Session.astream()."""
        self._stream = stream
        # A thread of its own: the loop's default pool has few, and replies would wait for each other.
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="qwen-edge-reply")
        self._is_over = False

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        chunk = None if self._is_over else await self._run(lambda: next(self._stream, None))
        if chunk is None:
            self._end()
            raise StopAsyncIteration
        return chunk

    async def finish(self) -> Reply:
        """Generate the rest and return the whole answer."""
        if not self._is_over:
            await self._run(self._stream.finish)
            self._end()
        return self._stream.reply

    def cancel(self) -> None:
        """End the reply within a token: the loop that reads it comes to its end. Callable from any thread."""
        self._stream.cancel()

    async def aclose(self) -> None:
        """End the reply here."""
        if not self._is_over:
            self._stream.cancel()
            # In the reply's thread: behind the call that may be in flight there.
            await self._run(self._stream.close)
            self._end()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def reply(self) -> Reply:
        """The whole answer.

        Raises:
            ConfigError: The stream has not ended yet.
        """
        return self._stream.reply

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...]:
        """Log-probabilities of the tokens so far; () unless asked for."""
        return self._stream.logprobs

    async def _run(self, function: Callable[[], T]) -> T:
        """Run a function in the reply's thread; when the task is cancelled, end the reply, then raise."""
        future = asyncio.get_running_loop().run_in_executor(self._executor, _call_last_reference, [function])
        try:
            await asyncio.wait((future,))
        except asyncio.CancelledError:
            self._stream.cancel()
            await uncancelled(future)
            # The call may have come to a chunk all the same, which nobody gets any more.
            self._stream.close()
            self._end()
            raise
        except GeneratorExit:
            # The coroutine is dropped, and cannot wait: the next reply does.
            self._stream.cancel()
            self._end()
            raise
        return future.result()

    def _end(self) -> None:
        """Let the thread go."""
        self._is_over = True
        self._executor.shutdown(wait=False)


def _call_last_reference(box: list[Callable[[], T]]) -> T:
    """Call the function in a box, and hold it no longer than that.

    A pool's thread keeps what it was given for a moment after the result is out. A loop that was left meanwhile would
    find its reply still going on.
    """
    return box.pop()()
