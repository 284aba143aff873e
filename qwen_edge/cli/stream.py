"""Showing a reply while it comes: the answer on stdout, the rest on stderr."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from qwen_edge.cli.output import styled

if TYPE_CHECKING:
    from qwen_edge.session import ReplyStream, Session
    from qwen_edge.types import Reply

_ENDINGS = {
    "length": "cut off by the token limit",
    "thinking_budget": "the thought was cut short",
    "loop": "stopped because it led nowhere",
}


@contextlib.contextmanager
def ctrl_c_cancels(session: Session) -> Iterator[None]:
    """Let Ctrl-C, and SIGTERM, end the native call in flight while the block runs; what they do follows at its end.

    Python runs signal handlers only when the native call returns, which for a batch of a prompt may take seconds.
    The signal's number is written to a socket at once, and a thread that reads it cancels. The handler itself does
    nothing: an exception from it could strike inside a callback of the library, where it would be lost.
    Only for a program that owns its process: there is one wakeup descriptor, and one main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    ours, signals = socket.socketpair()
    signals.setblocking(False)

    def watch() -> None:
        while received := ours.recv(1):
            if received[0] in (signal.SIGINT, signal.SIGTERM):
                came.append(received[0])
                session.cancel()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    handlers = {
        number: signal.signal(number, lambda number, frame: None)
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    descriptor = signal.set_wakeup_fd(signals.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signals.close()
        watcher.join()
        ours.close()
    if signal.SIGTERM in came:
        signal.raise_signal(signal.SIGTERM)
    if came:
        raise KeyboardInterrupt


def show_stream(stream: ReplyStream) -> None:
    """Print a reply piece by piece; thinking is dimmed where the terminal can."""
    last = ""
    for chunk in stream:
        if chunk.kind == "thinking":
            _dim(("thinking: " if last != "thinking" else "") + chunk.text)
        else:
            if last == "thinking":
                click.echo(err=True)
            if chunk.tool_call is not None:
                click.echo(f"tool call: {json.dumps(chunk.tool_call.to_dict(), ensure_ascii=False)}")
            else:
                click.echo(chunk.text, nl=False)
        last = chunk.kind
    click.echo(err=last == "thinking")


def show_stats(reply: Reply) -> None:
    """Print what the reply cost, on one dim line."""
    stats = reply.stats
    parts = [
        f"{stats.generated_tokens} tokens",
        f"{stats.decode_tokens_per_s:.1f} tokens/s",
        f"first after {stats.ttft_s:.2f} s",
        f"prompt {stats.prompt_tokens} ({stats.cached_tokens} cached)",
        f"peak {stats.peak_memory_bytes / 1e6:.0f} MB",
    ]
    if reply.finish_reason != "stop":
        parts.insert(0, _ENDINGS.get(reply.finish_reason, reply.finish_reason))
    _dim(", ".join(parts) + "\n")


def _dim(text: str) -> None:
    click.echo(styled(text, sys.stderr, dim=True), nl=False, err=True)
