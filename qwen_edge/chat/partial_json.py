"""JSON that is still being written: what is certain of it so far."""

from __future__ import annotations

import json
import re
from typing import Any

ABSENT = object()
"""In place of a value of which nothing is certain yet."""

_decoder = json.JSONDecoder(strict=False)  # control characters may stand in a text
_WORDS = {"true": True, "false": False, "null": None}
_BLANKS = " \t\n\r"
_OPEN_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{0,3})?\Z")
_NUMBER_CHARACTERS = frozenset("+-.0123456789eE")


def parse_partial(text: str) -> Any:
    """Return the value that the beginning of a JSON text holds, ABSENT when there is none yet.

    A text that is cut off is its characters so far. Numbers, words and keys count once they have ended, members once
    their value has begun. A whole JSON text gives what json.loads does.

    Args:
        text: A JSON text, or the beginning of one.

    Raises:
        ValueError: No JSON text begins like this.
    """
    value, end, is_whole = _value(text, _skip(text, 0))
    if value is not ABSENT and is_whole and _skip(text, end) < len(text):
        raise ValueError(f"more than one value: {text[end:]!r}")
    if not is_whole and isinstance(value, int | float) and not isinstance(value, bool):
        return ABSENT  # its next digit may follow
    return value


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _BLANKS:
        at += 1
    return at


def _value(text: str, at: int) -> tuple[Any, int, bool]:
    """Return (value, where it ends, whether it is whole); the end is meaningless of one that is not."""
    first = text[at : at + 1]
    if not first:
        return ABSENT, at, False
    if first == "{":
        return _object(text, at + 1)
    if first == "[":
        return _array(text, at + 1)
    if first == '"':
        return _string(text, at)
    for word, value in _WORDS.items():
        if text.startswith(word, at):
            return value, at + len(word), True
        if word.startswith(text[at:]):
            return ABSENT, at, False
    return _number(text, at)


def _number(text: str, at: int) -> tuple[Any, int, bool]:
    end = at
    while end < len(text) and text[end] in _NUMBER_CHARACTERS:
        end += 1
    if end == at:
        raise ValueError(f"no JSON: {text[at : at + 20]!r}")
    if end == len(text):
        try:
            return json.loads(text[at:end]), end, False
        except ValueError:
            return ABSENT, end, False
    return json.loads(text[at:end]), end, True


def _string(text: str, at: int) -> tuple[Any, int, bool]:
    try:
        value, end = _decoder.raw_decode(text, at)
    except ValueError:
        return _cut_string(text[at:]), at, False
    return value, end, True


def _cut_string(body: str) -> str:
    """Return the characters of a text that has its first quote only, without an escape that is not whole."""
    try:
        value = str(_decoder.raw_decode(body + '"')[0])
    except ValueError:
        value = str(_decoder.raw_decode(_OPEN_ESCAPE.sub("", body) + '"')[0])
    # The first half of a pair of surrogates becomes a character only with the second.
    return value[:-1] if value and "\ud800" <= value[-1] <= "\udbff" else value


def _array(text: str, at: int) -> tuple[Any, int, bool]:
    items: list[Any] = []
    at = _skip(text, at)
    if text[at : at + 1] == "]":
        return items, at + 1, True
    while True:
        value, at, is_whole = _value(text, _skip(text, at))
        if not is_whole:
            _add_open(value, items.append)
            return items, at, False
        items.append(value)
        at = _skip(text, at)
        if at == len(text):
            return items, at, False
        if text[at] == "]":
            return items, at + 1, True
        at = _expect(text, at, ",")


def _object(text: str, at: int) -> tuple[Any, int, bool]:
    members: dict[str, Any] = {}
    at = _skip(text, at)
    if text[at : at + 1] == "}":
        return members, at + 1, True
    while True:
        at = _skip(text, at)
        if at == len(text):
            return members, at, False
        key, at, is_whole = _string(text, _expect(text, at, '"') - 1)
        at = _skip(text, at)
        if not is_whole or at == len(text):
            return members, at, False
        value, at, is_whole = _value(text, _skip(text, _expect(text, at, ":")))
        if not is_whole:
            _add_open(value, lambda value, key=key: members.__setitem__(key, value))
            return members, at, False
        members[key] = value
        at = _skip(text, at)
        if at == len(text):
            return members, at, False
        if text[at] == "}":
            return members, at + 1, True
        at = _expect(text, at, ",")


def _add_open(value: Any, add: Any) -> None:
    """Add a value that is not whole, if anything of it is certain."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not ABSENT and not is_number:
        add(value)


def _expect(text: str, at: int, character: str) -> int:
    if text[at] != character:
        raise ValueError(f"{character!r} expected: {text[at : at + 20]!r}")
    return at + 1
