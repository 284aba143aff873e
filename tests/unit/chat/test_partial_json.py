from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.chat.partial_json import ABSENT, parse_partial

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=12,
)  # fmt: skip


def is_beginning(part: Any, whole: Any) -> bool:
    if isinstance(part, str) and isinstance(whole, str):
        return whole.startswith(part)
    if isinstance(part, list) and isinstance(whole, list):
        return (
            len(part) <= len(whole)
            and part[:-1] == whole[: len(part)][:-1]
            and all(is_beginning(a, b) for a, b in zip(part[-1:], whole[len(part) - 1 :], strict=False))
        )
    if isinstance(part, dict) and isinstance(whole, dict):
        keys = list(part)
        return keys == list(whole)[: len(keys)] and all(is_beginning(part[key], whole[key]) for key in keys)
    return type(part) is type(whole) and part == whole


@given(value=VALUES, ascii_only=st.booleans(), indent=st.sampled_from([None, 2]))
def test_every_beginning_gives_a_beginning_of_the_value(
    value: Any, ascii_only: bool, indent: int | None
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    for length in range(len(text)):
        part = parse_partial(text[:length])
        assert part is ABSENT or is_beginning(part, value), text[:length]
    if isinstance(value, int | float) and not isinstance(value, bool):
        assert parse_partial(text) is ABSENT, "a bare number may go on"
        text += " "
    assert parse_partial(text) == value
    assert parse_partial(text + "\n") == value


def test_what_is_certain() -> None:
    assert parse_partial("") is ABSENT
    assert parse_partial('{"a": "x\\u00e') == {"a": "x"}
    assert parse_partial('{"a": "x", "b') == {"a": "x"}
    assert parse_partial('{"a": 1') == {}
    assert parse_partial('{"a": 1,') == {"a": 1}
    assert parse_partial("[true, fal") == [True]
    assert parse_partial("[[1, 2], [3") == [[1, 2], []]
    assert parse_partial('"\\ud83d') == ""
    assert parse_partial('"\\ud83d\\ude00') == "😀"


@pytest.mark.parametrize(
    "text", ["x", "{1", '{"a" 1', "[1 2", '{"a": 1 "b"', "{} {}", "[1,]x", '"\\q" ', "[--1,"]
)
def test_no_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        parse_partial(text)
