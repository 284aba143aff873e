"""JSON that a model wrote in a free reply, and how much of it is what was expected."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_FENCED = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL)


def find_json(text: str) -> Any:
    """Return the JSON value of a reply, None when there is none.

    Args:
        text: The value alone, in a fenced block, or an object or a list that begins somewhere in the text.
    """
    for candidate in (text, *_FENCED.findall(text)):
        try:
            return json.loads(candidate)
        except (ValueError, RecursionError):
            continue
    start = re.search(r"[{\[]", text)
    if start is None:
        return None
    try:
        value, _ = json.JSONDecoder().raw_decode(text, start.start())
    except (ValueError, RecursionError):
        return None
    return value


def count_fields(value: Any, expected: Any) -> tuple[int, int]:
    """Return how many fields are right, and how many there are.

    A field is what is no object or list, or an empty one, at its place; those that are in only one of the two values
    are wrong. Numbers are equal as in JSON (3 and 3.0), texts to the letter.
    """
    found, wanted = dict(_fields(value, ())), dict(_fields(expected, ()))
    if () not in wanted:
        found.pop((), None)  # no answer, or an empty one, has no fields
    right = sum(place in found and _same(found[place], field) for place, field in wanted.items())
    return right, len(found.keys() | wanted.keys())


def _fields(value: Any, place: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    members: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        members = list(value.items())
    elif isinstance(value, list):
        members = list(enumerate(value))
    if not members:
        yield place, value
    for key, member in members:
        yield from _fields(member, (*place, key))


def _same(a: Any, b: Any) -> bool:
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)
