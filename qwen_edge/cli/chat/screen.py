"""How the answers of a chat are shown: to a person, or as one line of JSON each."""

from __future__ import annotations

import json
from typing import Any, Protocol

import click

from qwen_edge.cli.stream import show_ending, show_stream, tell
from qwen_edge.session import ReplyStream
from qwen_edge.types import Message, Reply, ToolCall

_MAX_RESULT_CHARACTERS = 300


class Screen(Protocol):
    """What a conversation tells while an answer comes."""

    def stream(self, stream: ReplyStream, *, makes_calls: bool) -> None:
        """Read a reply to its end; its calls will be made where makes_calls says so."""

    def calling(self, call: ToolCall) -> None:
        """Say that a call is about to be made."""

    def called(self, call: ToolCall, result: Message) -> None:
        """Say what came of it."""

    def answered(self, reply: Reply) -> None:
        """The answer is complete."""


class TextScreen:
    """Answers on stdout as they come; thoughts and calls on stderr."""

    def stream(self, stream: ReplyStream, *, makes_calls: bool) -> None:
        """See Screen.stream."""
        show_stream(stream, shows_calls=not makes_calls)

    def calling(self, call: ToolCall) -> None:
        """See Screen.calling."""
        tell(f"calls {call_text(call)}", is_dim=True)

    def called(self, call: ToolCall, result: Message) -> None:
        """See Screen.called."""
        tell(f"  = {shortened(result.content, _MAX_RESULT_CHARACTERS)}", indent="    ", is_dim=True)

    def answered(self, reply: Reply) -> None:
        """See Screen.answered."""
        show_ending(reply)


class JsonScreen:
    """One line of JSON on stdout an answer, with the calls that were made for it."""

    def __init__(self) -> None:
        self._calls: list[dict[str, Any]] = []

    def stream(self, stream: ReplyStream, *, makes_calls: bool) -> None:
        """See Screen.stream."""
        stream.finish()

    def calling(self, call: ToolCall) -> None:
        """See Screen.calling."""

    def called(self, call: ToolCall, result: Message) -> None:
        """See Screen.called."""
        self._calls.append(call.to_dict() | {"result": result.content})

    def answered(self, reply: Reply) -> None:
        """See Screen.answered."""
        calls, self._calls = self._calls, []
        click.echo(json.dumps(reply.to_dict() | ({"calls_made": calls} if calls else {}), ensure_ascii=False))


def call_text(call: ToolCall) -> str:
    """Return a call as Python would write it."""
    arguments = ", ".join(
        f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in call.arguments.items()
    )
    return f"{call.name}({arguments})"


def shortened(text: str, n_characters: int) -> str:
    """Return a text on one line, cut where it is longer than that."""
    line = " ".join(text.split())
    return line if len(line) <= n_characters else line[: n_characters - 1] + "…"
