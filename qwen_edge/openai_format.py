r"""Messages and replies as the dictionaries of OpenAI's chat API, both ways.

::

    {"role": "user", "content": "Hi"}                                  <->  Message("user", "Hi")
    {"role": "user", "content": [{"type": "text", "text": "Hi"}]}       ->  the same; parts are joined by newlines
    {"role": "assistant", "content": None, "tool_calls": [{"id": "call_1", "type": "function",
     "function": {"name": "add", "arguments": "{\"a\": 1}"}}]}         <->  Message(…, tool_calls=(ToolCall("add", {"a": 1}),))
    {"role": "tool", "tool_call_id": "call_1", "content": "3"}         <->  Message("tool", "3")

Source: the OpenAI API reference, "Create chat completion".
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from qwen_edge.errors import ConfigError
from qwen_edge.types import Message, Reply, Role, ToolCall

MessageLike = Message | Mapping[str, Any]
Turn = str | MessageLike | Sequence[MessageLike]

# "developer" is OpenAI's newer name for the system's role.
_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
_MESSAGE_KEYS = {"role", "content", "name"}
_KEYS_OF_ROLE: dict[Role, set[str]] = {
    "system": _MESSAGE_KEYS,
    "user": _MESSAGE_KEYS,
    "assistant": _MESSAGE_KEYS | {"tool_calls", "reasoning_content"},
    "tool": _MESSAGE_KEYS | {"tool_call_id"},
}
# Reasons of ours that OpenAI's API does not have are told as what they come to: the reply is not whole.
_FINISH_REASONS = {"stop": "stop", "thinking_budget": "stop", "tool_calls": "tool_calls"}
_CUT_OFF = "length"


def as_messages(turn: Turn) -> list[Message]:
    """Return what a turn adds to the history.

    Args:
        turn: What the user says, or a message, or messages; each a Message or a dictionary as above.

    Raises:
        ConfigError: It is something else, or a dictionary is wrong; the message names the key.
    """
    if isinstance(turn, str):
        return [Message("user", turn)]
    if isinstance(turn, Message):
        return [turn]
    if isinstance(turn, Mapping):
        return [message_from_openai(turn, "message")]
    if not isinstance(turn, list | tuple):
        raise ConfigError(
            f"a turn must be a text, a message or a list of messages (not {type(turn).__name__})"
        )
    return [
        item if isinstance(item, Message) else message_from_openai(item, f"messages[{index}]")
        for index, item in enumerate(turn)
    ]


def message_from_openai(data: Mapping[str, Any], where: str = "message") -> Message:
    """Return the message that a dictionary means.

    Args:
        data: As above. Tool calls may also be bare, without "function" around them, and arguments an object.
        where: How errors name it: "messages[2]".

    Raises:
        ConfigError: A key is missing, unknown, or of the wrong type.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} must be a Message or a dictionary (not {type(data).__name__})")
    if "role" not in data:
        raise ConfigError(f"{where} has no 'role'", hint='Form: {"role": "user", "content": "…"}')
    name = data["role"]
    role = _ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise ConfigError(f"{where}.role must be one of {', '.join(_ROLES)} (not {name!r})")
    for key, value in data.items():
        # Programs that copy a reply bring keys along that say nothing: "refusal": None, "annotations": [].
        if key not in _KEYS_OF_ROLE[role] and value not in (None, [], ""):
            raise ConfigError(
                f"{where} has the key {key!r}, which a message of the role {role} has no place for",
                hint=f"Keys: {', '.join(sorted(_KEYS_OF_ROLE[role]))}.",
            )
    calls = _sequence(data.get("tool_calls"), f"{where}.tool_calls")
    content = data.get("content")
    if content is None and role != "assistant":
        raise ConfigError(f"{where} has no 'content'", hint='Form: {"role": "user", "content": "…"}')
    return Message(
        role,
        _content(content, f"{where}.content"),
        _text(data.get("reasoning_content") or "", f"{where}.reasoning_content"),
        tuple(_tool_call(call, f"{where}.tool_calls[{index}]") for index, call in enumerate(calls)),
        _text(data.get("tool_call_id") or "", f"{where}.tool_call_id"),
    )


def message_to_openai(message: Message) -> dict[str, Any]:
    """Return a message as a dictionary; calls without an id get one that depends on message, place and call alone."""
    data: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.thinking:
        data["reasoning_content"] = message.thinking
    if message.tool_calls:
        data["content"] = message.content or None
        data["tool_calls"] = [
            {
                "id": call.id or _made_id(message, index),
                "type": "function",
                "function": {"name": call.name, "arguments": _json(call.arguments)},
            }
            for index, call in enumerate(message.tool_calls)
        ]
    if message.role == "tool":
        data["tool_call_id"] = message.tool_call_id
    return data


def completion(reply: Reply, *, model: str = "") -> dict[str, Any]:
    """Return a reply as a chat.completion.

    A reply that was cut off, for whatever reason, has the finish_reason "length". Log-probabilities leave out control
    tokens, as OpenAI's do.
    """
    stats = reply.stats
    logprobs = None
    if reply.logprobs is not None:
        entries = [entry.to_dict() for entry in reply.logprobs if entry.data]
        logprobs = {"content": [{"top_logprobs": [], **entry} for entry in entries], "refusal": None}
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": message_to_openai(reply.message) | {"refusal": None},
                "logprobs": logprobs,
                "finish_reason": _FINISH_REASONS.get(reply.finish_reason, _CUT_OFF),
            }
        ],
        "usage": {
            "prompt_tokens": stats.prompt_tokens,
            "completion_tokens": stats.generated_tokens,
            "total_tokens": stats.prompt_tokens + stats.generated_tokens,
            "prompt_tokens_details": {"cached_tokens": stats.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": stats.thinking_tokens},
        },
    }


def _content(content: Any, where: str) -> str:
    """Return the text of a message: a string, or parts of type "text"."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, Sequence):
        raise ConfigError(f"{where} must be text or a list of parts (not {type(content).__name__})")
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text":
            raise ConfigError(
                f"{where}[{index}].type must be 'text' (not {kind!r})",
                hint='Form: {"type": "text", "text": "…"}. The models read text only.',
            )
        texts.append(_text(part.get("text"), f"{where}[{index}].text"))
    return "\n".join(texts)


def _tool_call(data: Any, where: str) -> ToolCall:
    if isinstance(data, ToolCall):
        return data
    call = data.get("function", data) if isinstance(data, Mapping) else None
    if not isinstance(call, Mapping):
        raise ConfigError(
            f"{where}.function must be a dictionary (found {data!r})",
            hint='Form: {"id": "call_1", "type": "function", "function": {"name": "…", "arguments": "{…}"}}',
        )
    if data.get("type", "function") != "function":
        raise ConfigError(f"{where}.type must be 'function' (not {data['type']!r})")
    inside = f"{where}.function" if "function" in data else where
    name = _text(call.get("name"), f"{inside}.name")
    if not name:
        raise ConfigError(f"{inside}.name is empty")
    return ToolCall(
        name,
        _arguments(call.get("arguments"), f"{inside}.arguments"),
        _text(data.get("id") or "", f"{where}.id"),
    )


def _arguments(arguments: Any, where: str) -> dict[str, Any]:
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{where} is not valid JSON: {error}") from error
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping):
        raise ConfigError(f"{where} must be a JSON object (not {type(arguments).__name__})")
    return dict(arguments)


def _sequence(value: Any, where: str) -> Sequence[Any]:
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise ConfigError(f"{where} must be a list (not {type(value).__name__})")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{where} must be text (not {type(value).__name__})")
    return value


def _made_id(message: Message, index: int) -> str:
    call = message.tool_calls[index]
    source = _json([message.content, message.thinking, index, call.name, call.arguments])
    return f"call_{hashlib.sha256(source.encode('utf-8', 'surrogatepass')).hexdigest()[:24]}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
