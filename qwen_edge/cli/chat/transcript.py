"""The conversation so far, as text."""

from __future__ import annotations

from collections.abc import Sequence

from qwen_edge.cli.chat.screen import call_text
from qwen_edge.history import turn_starts
from qwen_edge.types import Message

_SPEAKERS = {"system": "system", "user": "you", "assistant": "model", "tool": "tool"}


def transcript(messages: Sequence[Message]) -> str:
    """Return messages as a person reads them; further lines of each are indented. "" for none."""
    return "\n".join(_paragraph(message) for message in messages)


def turns_text(messages: Sequence[Message]) -> str:
    """Return how many turns messages make, in words."""
    n_turns = len(turn_starts(messages))
    return "1 turn" if n_turns == 1 else f"{n_turns} turns"


def _paragraph(message: Message) -> str:
    parts = []
    if message.thinking:
        parts.append(f"(a thought of {len(message.thinking)} characters)")
    if message.content:
        parts.append(message.content)
    parts += [f"calls {call_text(call)}" for call in message.tool_calls]
    return f"{_SPEAKERS[message.role]}: " + "\n".join(parts).replace("\n", "\n  ")
