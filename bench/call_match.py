"""Whether a call is the right one, by the rules of the Berkeley Function-Calling Leaderboard for Python functions.

A parameter has a list of right values. Texts are compared without case, blanks and some punctuation; a whole number does
for a float, a float never for an integer. Where a right value is of another type than the parameter (the name of a
variable in place of a list, say), a value of that type is compared as it is.

Source: https://github.com/ShishirPatil/gorilla, berkeley-function-call-leaderboard, the "AST" evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qwen_edge.types import ToolCall

_TYPES: dict[str, type] = {
    "string": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "any": str,
}
_MAY_BE_LEFT_OUT = ""
_IGNORED = str.maketrans(dict.fromkeys(" ,./-_*^") | {"'": '"'})


def mismatch(calls: Sequence[ToolCall], function: Mapping[str, Any], answers: Mapping[str, list[Any]]) -> str:
    """Return what is wrong with the calls of a reply, "" when they are the one expected.

    Args:
        calls: All calls of the reply.
        function: What was on offer: its name and parameters, in BFCL's types.
        answers: Right values by parameter; "" among them: it may be left out.
    """
    if len(calls) != 1:
        return f"{len(calls)} calls"
    (call,) = calls
    if call.name != function["name"]:
        return f"it calls {call.name}"
    properties = function["parameters"]["properties"]
    missing = [name for name in function["parameters"]["required"] if name not in call.arguments]
    if missing:
        return f"{', '.join(missing)} is missing"
    for name, value in call.arguments.items():
        if name not in properties or name not in answers:
            return f"{name} is not expected"
        if not _is_right(value, properties[name], answers[name]):
            return f"{name} is {value!r}, right: {answers[name]!r}"
    left_out = [
        name for name in answers if name not in call.arguments and _MAY_BE_LEFT_OUT not in answers[name]
    ]
    return f"{', '.join(left_out)} is missing" if left_out else ""


def standardised(value: Any) -> Any:
    """Return a text as it is compared; another value as it is."""
    return value.translate(_IGNORED).lower() if isinstance(value, str) else value


def _is_right(value: Any, parameter: Mapping[str, Any], answers: Sequence[Any]) -> bool:
    kind = _TYPES[parameter["type"]]
    inner = _TYPES[parameter["items"]["type"]] if kind is list else None
    if kind is float and type(value) is int:
        value = float(value)
    known = _type_of(answers)
    if type(value) is not kind:
        return type(value) is known and value in answers
    if inner is not None and not any(_holds(value, inner, answer) for answer in answers):
        return False  # whole numbers do for a float, but not in a list
    if known not in (kind, None):
        return value in answers
    return _is_among(value, kind, inner, answers)


def _is_among(value: Any, kind: type, inner: type | None, answers: Sequence[Any]) -> bool:
    """Return whether a value of the right type is one of the right values."""
    if kind is dict:
        return any(_same_dict(value, answer) for answer in answers if answer != _MAY_BE_LEFT_OUT)
    if inner is dict:
        return any(_same_dicts(value, answer) for answer in answers)
    if kind is list:
        items = [standardised(item) for item in value]
        return any(items == [standardised(item) for item in answer] for answer in answers)
    if kind is str:
        return standardised(value) in [standardised(answer) for answer in answers if isinstance(answer, str)]
    return value in answers


def _type_of(answers: Sequence[Any]) -> type | None:
    """Return the type of right values, None where there is none but being left out."""
    return next((type(answer) for answer in answers if answer != _MAY_BE_LEFT_OUT), None)


def _holds(items: Any, kind: type, answer: Any) -> bool:
    """Return whether the items of a list are of a type, or of that of a right list's items."""
    if not isinstance(answer, list):
        return True  # a variable, or nothing: it makes no demand
    return all(type(item) in (kind, _type_of(answer)) for item in items)


def _same_dict(value: Any, answer: Mapping[str, list[Any]]) -> bool:
    if not isinstance(value, dict):
        return False
    for key, item in value.items():
        if key not in answer or standardised(item) not in [standardised(each) for each in answer[key]]:
            return False
    return all(key in value or _MAY_BE_LEFT_OUT in answer[key] for key in answer)


def _same_dicts(values: Sequence[Any], answer: Sequence[Any]) -> bool:
    return len(values) == len(answer) and all(map(_same_dict, values, answer))
