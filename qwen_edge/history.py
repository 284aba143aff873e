"""A conversation as turns: what can be taken out of it, put in, or told in fewer words.

A turn begins with a message of the user and ends before the next one: answers, calls and results of tools belong to it.
What stands before the first turn is the head (the system message), which stays whatever is dropped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from qwen_edge.errors import ConfigError
from qwen_edge.types import Message

SUMMARY_HEADING = "Summary of the earlier conversation:\n"


def head_length(messages: Sequence[Message]) -> int:
    """Return how many leading messages are the system's own: 0 or 1."""
    return int(bool(messages) and messages[0].role == "system" and not _is_summary(messages[0]))


def turn_starts(messages: Sequence[Message]) -> list[int]:
    """Return where turns begin: the indices of all messages of the user."""
    return [index for index, message in enumerate(messages) if message.role == "user"]


def droppable_ends(messages: Sequence[Message], n_kept: int) -> list[int]:
    """Return the indices before which a conversation can be cut, so that whole turns are gone.

    Args:
        messages: The conversation.
        n_kept: The turn that these last messages belong to stays, with all later ones.
    """
    starts = turn_starts(messages)
    last = max((start for start in starts if start <= len(messages) - n_kept), default=0)
    return [start for start in starts if head_length(messages) < start <= last]


def with_system(messages: Sequence[Message], text: str | None) -> list[Message]:
    """Return a conversation with another system message; None or "" takes it out."""
    rest = list(messages[head_length(messages) :])
    return [Message("system", text), *rest] if text else rest


def edited(messages: Sequence[Message], index: int, text: str) -> tuple[list[Message], list[Message]]:
    """Return a conversation in which one message says something else, and the messages behind it, which are out.

    They answered what is no longer said; a system message is no part of the exchange, and nothing behind it goes.

    Raises:
        ConfigError: There is no such message.
    """
    if not -len(messages) <= index < len(messages):
        raise ConfigError(f"there is no message {index}: the conversation has {len(messages)}")
    index %= len(messages)
    changed = dataclasses.replace(messages[index], content=text)
    removed = [] if messages[index].role == "system" else list(messages[index + 1 :])
    kept = messages[index + 1 :] if messages[index].role == "system" else []
    return [*messages[:index], changed, *kept], removed


def last_turn_start(messages: Sequence[Message]) -> int:
    """Return where the last turn begins.

    Raises:
        ConfigError: There is none.
    """
    starts = turn_starts(messages)
    if not starts:
        raise ConfigError("the conversation has no turn yet", hint="Say something first: session.send(…)")
    return starts[-1]


def last_reply_start(messages: Sequence[Message]) -> int:
    """Return where the last reply begins, behind the last message of the user or of a tool.

    Raises:
        ConfigError: There is no reply at the end.
    """
    end = len(messages)
    while end > 0 and messages[end - 1].role == "assistant":
        end -= 1
    if end == len(messages) or end == 0 or messages[end - 1].role == "system":
        raise ConfigError(
            "the conversation does not end with a reply", hint="Say something first: session.send(…)"
        )
    return end


def summary_message(summary: str) -> Message:
    """Return the message that stands for turns that were summarised."""
    return Message("system", SUMMARY_HEADING + summary)


def _is_summary(message: Message) -> bool:
    return message.role == "system" and message.content.startswith(SUMMARY_HEADING)
