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

from qwen_edge.cli.output import note, styled
from qwen_edge.cli.wrap import WordWrap, columns_of, without_controls, wrapped

if TYPE_CHECKING:
    from qwen_edge.session import ReplyStream, Session
    from qwen_edge.types import Reply

_THOUGHT_LABEL = "thinking: "
_THOUGHT_INDENT = "  "
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


@contextlib.contextmanager
def unseen_keys() -> Iterator[None]:
    """Keep what is typed meanwhile out of the text that is being shown; it is there for the next prompt."""
    if not sys.stdin.isatty():
        yield
        return
    import termios

    before = termios.tcgetattr(sys.stdin)
    quiet = [*before]
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


class _Writer:
    """Prints text as it comes, in lines that fit the terminal."""

    def __init__(self, *, is_thought: bool) -> None:
        stream = sys.stderr if is_thought else sys.stdout
        columns = columns_of(stream)
        self._is_thought = is_thought
        self._is_terminal = columns is not None
        self._wrap = WordWrap(
            columns,
            column=len(_THOUGHT_LABEL) if is_thought else 0,
            indent=_THOUGHT_INDENT if is_thought else "",
        )

    def write(self, text: str) -> None:
        self._print(self._wrap.feed(without_controls(text) if self._is_terminal else text))

    def end(self) -> None:
        self._print(self._wrap.flush())

    def _print(self, text: str) -> None:
        if not text:
            return
        if self._is_thought:
            dim(text)
        else:
            click.echo(text, nl=False)


def show_stream(stream: ReplyStream, *, shows_calls: bool = True) -> None:
    """Print a reply piece by piece.

    A thought is dimmed where the terminal can, and readable as one where it cannot: it has a label, its further lines
    are indented, and a blank line ends it.

    Args:
        stream: The reply.
        shows_calls: Print the calls that the model asks for, as part of the answer.
    """
    answer, thought = _Writer(is_thought=False), None
    has_call = False
    has_text = False  # on the line that is not ended yet
    for chunk in stream:
        if chunk.kind == "thinking":
            if thought is None:
                answer.end()
                thought = _Writer(is_thought=True)
                dim(_THOUGHT_LABEL)
            thought.write(chunk.text)
            continue
        if thought is not None:
            thought.end()
            click.echo("\n", err=True)
            thought = None
        if chunk.tool_call is None:
            answer.write(chunk.text)
            has_text = True
            continue
        if has_text:
            answer.end()
            click.echo()
        if shows_calls:
            click.echo(f"tool call: {json.dumps(chunk.tool_call.to_dict(), ensure_ascii=False)}")
        has_text, has_call = False, True
    (thought or answer).end()
    if thought is not None or has_text or not has_call:
        click.echo(err=thought is not None)


def show_ending(reply: Reply) -> None:
    """Say why a reply ended, where that is not the model's own doing."""
    if reply.finish_reason in _ENDINGS:
        tell(f"({_ENDINGS[reply.finish_reason]})", is_dim=True)


def show_stats(reply: Reply) -> None:
    """Print what the reply cost, on one dim line."""
    tell(stats_line(reply), is_dim=True)


def stats_line(reply: Reply) -> str:
    """Return what the reply cost, and why it ended where that is not the model's own doing."""
    stats = reply.stats
    parts = [
        f"{stats.generated_tokens} tokens",
        f"{stats.decode_tokens_per_s:.1f} tokens/s",
        f"first after {stats.ttft_s:.2f} s",
        f"prompt {stats.prompt_tokens} ({stats.cached_tokens} cached)",
        f"peak {stats.peak_memory_bytes / 1e6:.0f} MB",
    ]
    if stats.proposed_tokens:
        parts.append(f"{stats.accepted_tokens} of {stats.proposed_tokens} guessed tokens came")
    if stats.speculation == "switched_off":
        parts.append("guessing paused: it lost time")
    if reply.finish_reason != "stop":
        parts.insert(0, _ENDINGS.get(reply.finish_reason, reply.finish_reason))
    return ", ".join(parts)


def tell(text: str, *, indent: str = "  ", is_dim: bool = False) -> None:
    """Write lines for the person to stderr, broken between words where a terminal shows them.

    Args:
        text: May hold what a model or a tool wrote.
        indent: Stands before what follows of a broken line.
        is_dim: Dim it where the terminal can.
    """
    columns = columns_of(sys.stderr)
    shown = text if columns is None else wrapped(without_controls(text), columns, indent=indent)
    if is_dim:
        dim(shown + "\n")
    else:
        note(shown)


def dim(text: str) -> None:
    """Write a piece of text to stderr, dimmed where the terminal can."""
    click.echo(styled(text, sys.stderr, dim=True), nl=False, err=True)
