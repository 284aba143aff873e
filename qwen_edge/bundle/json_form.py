"""Dataclasses from JSON that anybody may have written: each value has the type that its field says, or it is an error."""

from __future__ import annotations

import dataclasses
import math
import types
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")

_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
_MOST_SHOWN = 60  # characters of a value in a message


def from_json(form: type[T], value: object, place: str = "") -> T:
    """Return a JSON value as a dataclass; keys that it does not know are left out.

    Knows dataclasses, tuple[X, ...], dict[str, Any], unions with None, str, int, float and bool.

    Args:
        form: The dataclass.
        value: As json.loads returns it.
        place: What messages call the value: "model", or "" for the whole.

    Raises:
        ValueError: A value is missing or has another type; the message names the place.
    """
    if not isinstance(value, dict):
        raise _misfit(place, "an object", value)
    hints = get_type_hints(form)
    read: dict[str, Any] = {}
    assert dataclasses.is_dataclass(form), f"Bug: {form} is no dataclass"
    for field in dataclasses.fields(form):
        inner = f"{place}.{field.name}" if place else field.name
        if field.name in value:
            read[field.name] = _read(hints[field.name], value[field.name], inner)
        elif field.default is dataclasses.MISSING:
            raise ValueError(f"{inner} is missing")
    return form(**read)


def _read(form: Any, value: object, place: str) -> Any:
    if dataclasses.is_dataclass(form) and isinstance(form, type):
        return from_json(form, value, place)
    origin = get_origin(form)
    if origin is tuple:
        if not isinstance(value, list):
            raise _misfit(place, "a list", value)
        item_form = get_args(form)[0]
        return tuple(_read(item_form, item, f"{place}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise _misfit(place, "an object", value)
        return value
    if origin is types.UnionType:
        inner, none = get_args(form)
        assert none is type(None), f"Bug: {form} is no union with None"
        return None if value is None else _read(inner, value, place)
    if not _fits(form, value):
        raise _misfit(place, _NAMES[form], value)
    return value


def _fits(form: Any, value: object) -> bool:
    # true is no number, and NaN neither: JSON has none, Python's reader takes it.
    if form is float and isinstance(value, float):
        return math.isfinite(value)
    if form in (int, float):
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, form)


def _misfit(place: str, wanted: str, value: object) -> ValueError:
    return ValueError(f"{place or 'it'} must be {wanted} (not {repr(value)[:_MOST_SHOWN]})")
