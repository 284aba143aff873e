"""A session in a file: messages, system, tools, and the evaluated KV cache."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_edge.errors import FormatError, InsufficientMemoryError, UnsupportedError
from qwen_edge.kv_fingerprint import differences
from qwen_edge.state_file import StateFile, read_state_file, write_state_file
from qwen_edge.types import Message

if TYPE_CHECKING:
    from qwen_edge.generation import TokenCache
    from qwen_edge.session import Session

_KIND = "session"
_ROLES = ("system", "user", "assistant", "tool")


class StateRebuiltWarning(UserWarning):
    """A saved session was made under other conditions: its conversation is restored, its KV cache is evaluated anew."""


def save_session(
    path: str | os.PathLike[str],
    messages: list[Message],
    tools: tuple[Mapping[str, Any], ...],
    cache: TokenCache,
    fingerprint: Mapping[str, Any] | None,
) -> None:
    """Write a session; see Session.save()."""
    tokens: tuple[int, ...] = ()
    state: Any = b""
    if fingerprint is not None:
        try:
            tokens, state = cache.save()
        except (UnsupportedError, InsufficientMemoryError):
            fingerprint = None  # the conversation is worth keeping all the same
    facts = {
        "messages": [_message_to_json(message) for message in messages],
        "tools": list(tools),
        "fingerprint": fingerprint,
    }
    write_state_file(path, _KIND, facts, tokens, state)


def read_session(path: str | os.PathLike[str]) -> tuple[list[Message], list[dict[str, Any]], StateFile]:
    """Read a session.

    Returns:
        Its messages, its tools, and the file's contents.

    Raises:
        FormatError: It is damaged, or no saved session.
        OSError: It cannot be read.
    """
    content = read_state_file(path, _KIND)
    try:
        messages = [_message_from_json(item) for item in content.facts["messages"]]
        tools = content.facts["tools"]
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise TypeError("its tools are no list of objects")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise FormatError(f"{Path(path)} is no saved session: {type(error).__name__}: {error}") from error
    return messages, tools, content


def restore_cache(session: Session, content: StateFile, fingerprint: Mapping[str, Any] | None) -> None:
    """Give a new session the KV cache of a file; where it does not fit, say so in `session.rebuilt_because`."""
    if not content.tokens:
        return
    different = differences(content.facts.get("fingerprint"), fingerprint)
    reason = ", ".join(different)
    if not different:
        try:
            session._idle_cache().load(content.tokens, content.state)
        except FormatError as error:
            reason = error.message
    if reason:
        session.rebuilt_because = reason
        warnings.warn(
            f"the session is restored; its KV cache is evaluated again at the next turn, since it was saved with another {reason}"
            if different
            else f"the session is restored; its KV cache is evaluated again at the next turn: {reason}",
            StateRebuiltWarning,
            stacklevel=3,
        )


def _message_to_json(message: Message) -> dict[str, Any]:
    return {
        "role": message.role,
        "content": message.content,
        "thinking": message.thinking,
        "tool_calls": [call.to_dict() for call in message.tool_calls],
    }


def _message_from_json(data: Mapping[str, Any]) -> Message:
    texts = (data["role"], data["content"], data["thinking"])
    if not all(isinstance(text, str) for text in texts) or data["role"] not in _ROLES:
        raise TypeError(f"a message with {texts!r}")
    return Message.from_dict(data)
