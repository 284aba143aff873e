"""A value that a model wrote, checked against a JSON schema and put right where only one thing can be meant.

Small models write "3" for 3, 3.0 for 3 and "true" for true; each has one reading where the schema asks for the other
type. "yes" for true, or 1 for true, has not.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qwen_edge.errors import ConfigError, OutputError

_INTEGER = re.compile(r"[+-]?\d{1,300}(\.0*)?\Z")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\Z")
_MOST_SHOWN = 80  # characters of a value in a message


def coerce(value: Any, schema: Mapping[str, Any], *, name: str = "") -> Any:
    """Return a JSON value as a schema asks for it.

    Knows type, enum, const, properties, required, additionalProperties, items, prefixItems, anyOf, oneOf, allOf, $ref
    into the schema itself, and the bounds of numbers, lengths and patterns; ignores other keywords.

    Args:
        value: As json.loads returns it; it is not changed.
        schema: A JSON schema.
        name: What messages call the value: "city", or "" for the whole.

    Raises:
        OutputError: The value does not fit, however it is read. The message names the place.
        ConfigError: A $ref leads nowhere.
    """
    return _Reader(schema, lenient=True).read(value, schema, name)


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Return whether a value fits a schema as it is."""
    try:
        _Reader(schema, lenient=False).read(value, schema, "")
    except OutputError:
        return False
    return True


class _Reader:
    """One walk over a value; lenient or to the letter."""

    def __init__(self, root: Mapping[str, Any], *, lenient: bool) -> None:
        self._root = root
        self._lenient = lenient

    def read(self, value: Any, schema: Any, place: str) -> Any:
        if schema is True:
            return value
        if schema is False:
            raise OutputError(f"{place or 'the value'} may not be given (it is {_shown(value)})")
        if "$ref" in schema:
            return self.read(value, self._resolve(schema["$ref"]), place)
        for part in schema.get("allOf", ()):
            value = self.read(value, part, place)
        for key in ("anyOf", "oneOf"):
            if key in schema:
                value = self._read_any(value, schema[key], place)
        if "const" in schema or "enum" in schema:
            return self._read_choice(value, schema.get("enum", [schema.get("const")]), place)
        if "type" in schema:
            kinds = schema["type"]
            value = self._read_type(value, [kinds] if isinstance(kinds, str) else kinds, place)
        if isinstance(value, dict):
            value = self._read_object(value, schema, place)
        elif isinstance(value, list):
            value = self._read_array(value, schema, place)
        _check_bounds(value, schema, place)
        return value

    def _resolve(self, reference: str) -> Any:
        if not reference.startswith("#"):
            raise ConfigError(f"$ref {reference!r} leads out of the schema, which is not followed")
        found: Any = self._root
        for step in reference[1:].split("/")[1:]:
            try:
                found = found[step.replace("~1", "/").replace("~0", "~")]
            except (KeyError, TypeError) as error:
                raise ConfigError(f"$ref {reference!r} leads nowhere in the schema") from error
        return found

    def _read_any(self, value: Any, schemas: Sequence[Any], place: str) -> Any:
        """Take the first schema that fits to the letter, else the first that fits at all."""
        for lenient in (False, True) if self._lenient else (False,):
            reader = _Reader(self._root, lenient=lenient)
            reasons = []
            for schema in schemas:
                try:
                    return reader.read(value, schema, place)
                except OutputError as error:
                    reasons.append(error.message)
        raise OutputError(f"{place or 'the value'} fits none of {len(schemas)} forms: {'; '.join(reasons)}")

    def _read_choice(self, value: Any, choices: Sequence[Any], place: str) -> Any:
        for choice in choices:
            if _same(choice, value):
                return choice
        if self._lenient and isinstance(value, str | int | float):
            meant = [choice for choice in choices if _word(choice) == _word(value)]
            if len(meant) == 1:
                return meant[0]
        wanted = ", ".join(_shown(choice) for choice in choices)
        raise _misfit(place, f"one of {wanted}" if len(choices) > 1 else wanted, value)

    def _read_type(self, value: Any, kinds: Sequence[str], place: str) -> Any:
        if any(_TYPES[kind](value) for kind in kinds):
            # 3.0 is an integer to JSON Schema, and 3 is what Python calls it.
            return (
                int(value) if isinstance(value, float) and "number" not in kinds and value == value else value
            )
        if self._lenient:
            for kind in kinds:
                meant = _READINGS[kind](value)
                if meant is not _NOTHING:
                    return meant
        raise _misfit(place, " or ".join(_NAMES[kind] for kind in kinds), value)

    def _read_object(self, value: dict[str, Any], schema: Mapping[str, Any], place: str) -> dict[str, Any]:
        properties = schema.get("properties", {})
        others = schema.get("additionalProperties", True)
        missing = [name for name in schema.get("required", ()) if name not in value]
        if missing:
            raise OutputError(f"{_inside(place)}{', '.join(missing)} is missing")
        unknown = [name for name in value if name not in properties]
        if others is False and unknown:
            raise OutputError(
                f"{_inside(place)}{', '.join(unknown)} is not known; known: {', '.join(properties) or 'nothing'}"
            )
        return {
            name: self.read(item, properties.get(name, others), f"{place}.{name}" if place else name)
            for name, item in value.items()
        }

    def _read_array(self, value: list[Any], schema: Mapping[str, Any], place: str) -> list[Any]:
        first = schema.get("prefixItems", ())
        others = schema.get("items", True)
        return [
            self.read(item, first[i] if i < len(first) else others, f"{place}[{i}]")
            for i, item in enumerate(value)
        ]


_NOTHING = object()


def _read_integer(value: Any) -> Any:
    if isinstance(value, str) and _INTEGER.match(value.strip()):
        return int(value.strip().partition(".")[0])
    return _NOTHING


def _read_number(value: Any) -> Any:
    if isinstance(value, str) and _NUMBER.match(value.strip()):
        number = float(value)
        if math.isfinite(number):
            whole = _read_integer(value)
            return whole if whole is not _NOTHING and "." not in value else number
    return _NOTHING


def _read_boolean(value: Any) -> Any:
    return (
        {"true": True, "false": False}.get(value.strip().lower(), _NOTHING)
        if isinstance(value, str)
        else _NOTHING
    )


def _read_null(value: Any) -> Any:
    return None if isinstance(value, str) and value.strip().lower() in ("null", "none") else _NOTHING


def _read_string(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, bool | int | float) else _NOTHING


def _read_json(kind: type) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        """Read a list or an object that was written as a text."""
        if isinstance(value, str):
            try:
                data = json.loads(value)
            except (ValueError, RecursionError):
                return _NOTHING
            return data if isinstance(data, kind) else _NOTHING
        return _NOTHING

    return read


# Source: JSON Schema 2020-12, validation, 6.1.1: a number without a fraction is an integer.
_TYPES: dict[str, Callable[[Any], bool]] = {
    "integer": lambda value: _is_number(value) and value == math.floor(value),
    "number": lambda value: _is_number(value),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}
_READINGS: dict[str, Callable[[Any], Any]] = {
    "integer": _read_integer,
    "number": _read_number,
    "boolean": _read_boolean,
    "null": _read_null,
    "string": _read_string,
    "array": _read_json(list),
    "object": _read_json(dict),
}
_NAMES = {
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
    "string": "a text",
    "array": "a list",
    "object": "an object",
}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _same(a: Any, b: Any) -> bool:
    """Compare as JSON does: true is not 1, 1.0 is."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    return bool(a == b)


def _word(value: Any) -> str:
    return value.strip().casefold() if isinstance(value, str) else json.dumps(value)


def _check_bounds(value: Any, schema: Mapping[str, Any], place: str) -> None:
    checks: list[tuple[str, str, Callable[[Any], bool]]]
    if _is_number(value):
        checks = [
            ("minimum", "at least", lambda bound: value >= bound),
            ("maximum", "at most", lambda bound: value <= bound),
            ("exclusiveMinimum", "above", lambda bound: value > bound),
            ("exclusiveMaximum", "below", lambda bound: value < bound),
        ]
    elif isinstance(value, str):
        checks = [
            ("minLength", "of a length of at least", lambda bound: len(value) >= bound),
            ("maxLength", "of a length of at most", lambda bound: len(value) <= bound),
            ("pattern", "a text that matches", lambda pattern: re.search(pattern, value) is not None),
        ]
    elif isinstance(value, list):
        checks = [
            ("minItems", "of a length of at least", lambda bound: len(value) >= bound),
            ("maxItems", "of a length of at most", lambda bound: len(value) <= bound),
        ]
    else:
        return
    for key, words, holds in checks:
        if key in schema and not holds(schema[key]):
            raise _misfit(place, f"{words} {schema[key]}", value)


def _misfit(place: str, wanted: str, value: Any) -> OutputError:
    return OutputError(f"{place or 'the value'} must be {wanted} (not {_shown(value)})")


def _inside(place: str) -> str:
    return f"in {place}: " if place else ""


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"
