"""Blocking calls for asyncio: each in a thread of its own, and over when the task is told that it was cancelled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


async def call_in_thread(function: Callable[[Callable[[], bool]], T]) -> T:
    """Call a function in a passing thread and return what it returns.

    Args:
        function: Gets a function that says whether the task was cancelled, to be asked now and then. What it returns or
            raises afterwards is dropped; the task's CancelledError comes when it is over.
    """
    cancelled = threading.Event()
    # A thread of its own: the loop's default pool has few, and its threads stay, each with native workers.
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="qwen-edge-call")
    try:
        future = asyncio.get_running_loop().run_in_executor(executor, function, cancelled.is_set)
        try:
            await asyncio.wait((future,))
        except asyncio.CancelledError:
            cancelled.set()
            await uncancelled(future)
            raise
        return future.result()
    finally:
        cancelled.set()  # a coroutine that is dropped while it waits
        executor.shutdown(wait=False)


async def uncancelled(future: asyncio.Future[T]) -> None:
    """Wait for a call that is about to return, however often the task is cancelled meanwhile."""
    while not future.done():
        try:
            await asyncio.wait((future,))
        except asyncio.CancelledError:
            continue
    future.exception()  # looked at, so that asyncio does not complain: the task ends by its cancellation
