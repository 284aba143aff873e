from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.chat.coercion import coerce, fits
from qwen_edge.errors import ConfigError, OutputError

KINDS = ["integer", "number", "boolean", "null", "string", "array", "object"]


@pytest.mark.parametrize(("value", "kind", "expected"), [
    ("3", "integer", 3), (" -7 ", "integer", -7), (3.0, "integer", 3), ("3.0", "integer", 3), (3, "integer", 3),
    ("3.5", "number", 3.5), ("3", "number", 3), ("1e3", "number", 1000.0), (3, "number", 3), (2.0, "number", 2.0),
    ("true", "boolean", True), ("False", "boolean", False),
    ("null", "null", None), ("None", "null", None),
    (3, "string", "3"), (True, "string", "true"), (1.5, "string", "1.5"),
    ("[1, 2]", "array", [1, 2]), ('{"a": 1}', "object", {"a": 1}),
])  # fmt: skip
def test_what_has_one_reading_is_read(value: Any, kind: str, expected: Any) -> None:
    result = coerce(value, {"type": kind})
    assert (result, type(result)) == (expected, type(expected))


@pytest.mark.parametrize(("value", "kind"), [
    ("three", "integer"), (3.5, "integer"), ("3.5", "integer"), (True, "integer"), (None, "integer"), ("", "integer"),
    ("1e999", "number"), ("nan", "number"), (float("inf"), "number"), (True, "number"),
    (1, "boolean"), ("yes", "boolean"), ("", "null"), (None, "string"), ([], "string"),
    ("[1, 2", "array"), ({"0": 1}, "array"), ("[1]", "object"), ("x", "object"),
])  # fmt: skip
def test_what_has_not_is_refused(value: Any, kind: str) -> None:
    with pytest.raises(OutputError, match="size must be"):
        coerce(value, {"type": kind}, name="size")


@given(value=st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()), kind=st.sampled_from(KINDS))  # fmt: skip
def test_what_comes_out_fits_and_stays(value: Any, kind: str) -> None:
    schema = {"type": kind}
    try:
        result = coerce(value, schema)
    except OutputError:
        assert not fits(value, schema)
        return
    assert fits(result, schema)
    assert coerce(result, schema) == result
    if fits(value, schema):
        assert result == value


def test_the_place_is_named() -> None:
    schema = {
        "type": "object",
        "properties": {"items": {"type": "array", "items": {"$ref": "#/$defs/item"}}},
        "$defs": {"item": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}},
    }
    assert coerce({"items": [{"n": "4"}]}, schema) == {"items": [{"n": 4}]}
    with pytest.raises(OutputError, match=r'items\[1\]\.n must be an integer \(not "x"\)'):
        coerce({"items": [{"n": 1}, {"n": "x"}]}, schema)
    with pytest.raises(OutputError, match=r"in items\[0\]: n is missing"):
        coerce({"items": [{}]}, schema)


def test_unknown_names_are_told_with_the_known_ones() -> None:
    schema = {"type": "object", "properties": {"city": {}}, "additionalProperties": False}
    with pytest.raises(OutputError, match="town is not known; known: city"):
        coerce({"town": "Rome"}, schema)
    numbers = {"type": "object", "additionalProperties": {"type": "integer"}}
    assert coerce({"a": "1"}, numbers) == {"a": 1}


def test_choices() -> None:
    assert coerce("Red", {"enum": ["red", "blue"]}) == "red"
    assert coerce("2", {"enum": [1, 2]}) == 2
    assert coerce(1.0, {"enum": [1, 2]}) == 1
    assert not fits(True, {"enum": [1, 2]})
    with pytest.raises(OutputError, match='must be one of "red", "blue"'):
        coerce("green", {"enum": ["red", "blue"]})
    with pytest.raises(OutputError, match="one of"):
        coerce("A", {"enum": ["a", "a "]})  # could be either
    assert coerce(None, {"const": None}) is None


def test_a_union_prefers_what_fits_to_the_letter() -> None:
    union = {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    assert coerce("3", union) == "3"
    assert coerce(3, union) == 3
    assert coerce("3", {"anyOf": [{"type": "integer"}, {"type": "null"}]}) == 3
    assert coerce("3", {"type": ["null", "integer"]}) == 3
    with pytest.raises(OutputError, match="fits none of 2 forms"):
        coerce([], {"oneOf": [{"type": "integer"}, {"type": "null"}]})


@pytest.mark.parametrize(("schema", "good", "bad"), [
    ({"type": "integer", "minimum": 2, "maximum": 4}, 4, 5),
    ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, 0.5, 1),
    ({"type": "string", "minLength": 2, "maxLength": 3}, "ab", "a"),
    ({"type": "string", "pattern": "^a+$"}, "aa", "ab"),
    ({"type": "array", "minItems": 1, "maxItems": 2}, [1], []),
    ({"prefixItems": [{"type": "string"}], "items": False}, ["a"], ["a", 1]),
    ({"allOf": [{"type": "integer"}, {"minimum": 3}]}, 3, 2),
])  # fmt: skip
def test_bounds(schema: dict[str, Any], good: Any, bad: Any) -> None:
    assert coerce(good, schema) == good
    with pytest.raises(OutputError):
        coerce(bad, schema)


@pytest.mark.parametrize("reference", ["#/$defs/none", "other.json"])
def test_a_reference_that_leads_nowhere(reference: str) -> None:
    with pytest.raises(ConfigError, match="leads"):
        coerce(1, {"$ref": reference})


def test_the_value_given_is_not_changed() -> None:
    value = {"a": ["1"]}
    coerce(value, {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}}}})
    assert json.dumps(value) == '{"a": ["1"]}'
