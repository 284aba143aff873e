"""The rules of matching, each with a call that passes and calls that nearly do."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_edge.bench.call_match import mismatch, standardised
from qwen_edge.types import ToolCall

FUNCTION = {
    "name": "book.room",
    "parameters": {
        "type": "dict",
        "properties": {
            "city": {"type": "string"},
            "nights": {"type": "integer"},
            "price": {"type": "float"},
            "quiet": {"type": "boolean"},
            "guests": {"type": "array", "items": {"type": "string"}},
            "rates": {"type": "array", "items": {"type": "float"}},
            "size": {"type": "tuple", "items": {"type": "integer"}},
            "address": {"type": "dict", "properties": {}},
            "rooms": {"type": "array", "items": {"type": "dict"}},
            "other": {"type": "any"},
        },
        "required": ["city"],
    },
}


def wrong(arguments: dict[str, Any], answers: dict[str, list[Any]]) -> str:
    answers = {"city": ["Vienna"], **answers}
    return mismatch([ToolCall("book.room", {"city": "Vienna", **arguments})], FUNCTION, answers)


@pytest.mark.parametrize(
    ("parameter", "answers", "right", "not_right"),
    [
        ("city", ["New York, NY"], ["new york ny", "New York,NY", "NEW-YORK/NY"], ["New York", 3, None, ["New York, NY"]]),
        ("nights", [3], [3], [3.0, "3", True, 4]),
        ("nights", [1], [1], [True]),
        ("nights", ["n"], ["n"], ["N", "m"]),  # a variable, as it is
        ("price", [2.5, 3.0], [2.5, 3.0, 3], [2, "2.5", True]),
        ("quiet", [True], [True], [False, 1, "true"]),
        ("guests", [["Ann Lee", "Bo"]], [["ann lee", "BO"], ["Ann.Lee", "B-o"]], [["Bo", "Ann Lee"], ["Ann Lee"], "Ann Lee", []]),
        ("guests", ["people"], ["people"], [["people"], "People"]),
        ("guests", [["Ann"], ""], [["Ann"], []], [["Bo"], ""]),
        ("rates", [[1.0, 2.0]], [[1.0, 2.0]], [[1, 2], [1.0, 2], [2.0, 1.0]]),
        ("rates", [[1, 2]], [[1, 2], [1.0, 2.0]], [["1", "2"]]),
        ("size", [[3, 4]], [[3, 4]], [[4, 3]]),
        ("address", [{"street": ["Elm St."], "number": [4, ""]}],
         [{"street": "elm st", "number": 4}, {"street": "Elm St"}], [{"number": 4}, {"street": "Elm St", "zip": 1}, {}, "Elm St"]),
        ("rooms", [[{"beds": [2]}, {"beds": [1, ""]}]], [[{"beds": 2}, {"beds": 1}], [{"beds": 2}, {}]],
         [[{"beds": 1}, {"beds": 2}], [{"beds": 2}], [{"beds": 2}, 3]]),
        ("other", [[1, 2]], [[1, 2]], [[2, 1], "1"]),
    ],
)  # fmt: skip
def test_values(parameter: str, answers: list[Any], right: list[Any], not_right: list[Any]) -> None:
    for value in right:
        assert wrong({parameter: value}, {parameter: answers}) == "", value
    for value in not_right:
        assert parameter in wrong({parameter: value}, {parameter: answers}), value


def test_what_is_left_out() -> None:
    assert wrong({}, {"nights": [3, ""], "quiet": ["", True]}) == ""
    assert wrong({}, {"nights": [3]}) == "nights is missing"
    assert wrong({"nights": 3}, {}) == "nights is not expected"
    assert mismatch([ToolCall("book.room", {})], FUNCTION, {"city": ["Vienna", ""]}) == "city is missing"


def test_name_and_number_of_calls() -> None:
    call = ToolCall("book.room", {"city": "Vienna"})
    answers = {"city": ["Vienna"]}
    assert mismatch([call], FUNCTION, answers) == ""
    assert mismatch([], FUNCTION, answers) == "0 calls"
    assert mismatch([call, call], FUNCTION, answers) == "2 calls"
    assert mismatch([ToolCall("book_room", call.arguments)], FUNCTION, answers) == "it calls book_room"


def test_texts_as_they_are_compared() -> None:
    assert standardised("It's  3.5*x^2, A-b/c_D") == 'it"s35x2abcd'
    assert standardised(3) == 3
