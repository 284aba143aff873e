from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.chat.outline import outline
from qwen_edge.chat.schema import json_schema


@dataclass
class Item:
    name: str
    size: Literal["small", "large"]
    tags: list[str]
    parent: Item | None = None


@dataclass
class Seat:
    row: int
    letter: str


@dataclass
class Booking:
    """A booking."""

    seats: list[Seat]
    price: float | None
    paid: bool = False


@pytest.mark.parametrize(
    ("hint", "form"),
    [
        (int, "integer"),
        (list[float], "[number, ...]"),
        (tuple[int, str], "[integer, string] (minItems 2; maxItems 2)"),
        (dict[str, int], "{any name: integer}"),
        (Literal["a", 3, None], '"a" or 3 or null'),
        ({"type": "integer", "minimum": 1, "description": "of nights"}, "integer (of nights; minimum 1)"),
        ({"type": ["string", "null"]}, "string or null"),
        ({"type": "object"}, "object"),
        ({"type": "array", "items": {}}, "[any value, ...]"),
        ({"const": "ü"}, '"ü"'),
        (Booking, '{"seats": [{"row": integer, "letter": string}, ...], "price": number or null, "paid": boolean (may be left out)}'),
    ],
)  # fmt: skip
def test_forms(hint: Any, form: str) -> None:
    assert outline(json_schema(hint)) == form


@pytest.mark.parametrize(
    "schema",
    [
        json_schema(Item),  # contains itself
        {"allOf": [{"type": "string"}]},
        {"type": "object", "properties": {"a": {"type": "string", "not": {"const": "b"}}}},
        {"$ref": "#/$defs/Nothing"},
        {"description": "anything"},
        {"type": "array", "items": 3},
    ],
)
def test_what_no_form_can_show(schema: dict[str, Any]) -> None:
    assert outline(schema) is None


@given(st.recursive(
    st.sampled_from([{"type": "string"}, {"enum": [1, "a"]}, {}]),
    lambda inner: st.one_of(
        inner.map(lambda each: {"type": "array", "items": each}),
        st.dictionaries(st.text("abc", min_size=1), inner, max_size=3).map(lambda p: {"type": "object", "properties": p}),
        st.lists(inner, min_size=1, max_size=3).map(lambda members: {"anyOf": members}),
    ),
))  # fmt: skip
def test_every_name_and_choice_is_shown(schema: dict[str, Any]) -> None:
    form = outline(schema)
    assert form is not None

    def check(part: dict[str, Any]) -> None:
        assert all(f'"{name}": ' in form for name in part.get("properties", {}))
        assert "enum" not in part or '1 or "a"' in form
        for member in [*part.get("properties", {}).values(), *part.get("anyOf", ()), *([part["items"]] if "items" in part else [])]:  # fmt: skip
            check(member)

    check(schema)
