from __future__ import annotations

import datetime
import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.chat.schema import function_schema, json_schema, parse, parse_docstring, to_plain
from qwen_edge.chat.tools import ToolFunction, result_text, split_tools
from qwen_edge.errors import ConfigError, OutputError, ToolError
from qwen_edge.types import ToolCall


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Item:
    """A thing on a shelf.

    Attributes:
        name: What it is
            called.
    """

    name: str
    price: float
    colour: Colour = Colour.RED
    tags: set[str] = field(default_factory=set)
    since: datetime.date | None = None


@dataclass
class Shelf:
    items: list[Item]
    size: tuple[int, int]
    labels: dict[str, int | str]


@dataclass
class Tree:
    value: int
    children: list[Tree] = field(default_factory=list)


class Address(TypedDict):
    street: str
    number: NotRequired[int]


class Home(pydantic.BaseModel):
    street: str


class User(pydantic.BaseModel):
    name: str
    age: int = pydantic.Field(ge=0)
    address: Home

    @pydantic.field_validator("name")
    @classmethod
    def _not_root(cls, name: str) -> str:
        if name == "root":
            raise ValueError("not root")
        return name


def test_a_dataclass() -> None:
    schema = json_schema(Item)
    assert schema["properties"]["name"] == {"type": "string", "description": "What it is called."}
    assert schema["properties"]["colour"] == {"type": "string", "enum": ["red", "blue"]}
    assert schema["properties"]["tags"] == {"type": "array", "items": {"type": "string"}}
    assert schema["properties"]["since"] == {
        "anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]
    }
    assert (schema["required"], schema["additionalProperties"]) == (["name", "price"], False)


def test_values_become_instances() -> None:
    data = {
        "items": [{"name": "cup", "price": "3", "colour": "Blue", "tags": ["a", "a"], "since": "2020-01-31"}],
        "size": [2, 3.0],
        "labels": {"x": 1, "y": "two"},
    }
    item = Item("cup", 3.0, Colour.BLUE, {"a"}, datetime.date(2020, 1, 31))
    assert parse(Shelf, data) == Shelf([item], (2, 3), {"x": 1, "y": "two"})
    assert isinstance(parse(Item, {"name": "a", "price": 3}).price, float)
    with pytest.raises(OutputError, match=r"items\[0\]\.price must be a number"):
        parse(Shelf, {**data, "items": [{"name": "cup", "price": "dear"}]})
    with pytest.raises(OutputError, match="date refuses"):
        parse(Item, {"name": "cup", "price": 1, "since": "yesterday"})


def test_a_type_that_contains_itself() -> None:
    assert json_schema(Tree)["$ref"] == "#/$defs/Tree"
    tree = {"value": 1, "children": [{"value": "2", "children": []}]}
    assert parse(Tree, tree) == Tree(1, [Tree(2)])


def test_a_typed_dict_and_a_pydantic_model() -> None:
    assert json_schema(Address)["required"] == ["street"]
    assert parse(Address, {"street": "Ring", "number": "4"}) == {"street": "Ring", "number": 4}
    assert parse(User, {"name": "Ann", "age": "7", "address": {"street": "Ring"}}) == User(
        name="Ann", age=7, address=Home(street="Ring")
    )
    with pytest.raises(OutputError, match="age must be at least 0"):
        parse(User, {"name": "Ann", "age": -1, "address": {"street": "Ring"}})
    with pytest.raises(OutputError, match="not root"):
        parse(User, {"name": "root", "age": 1, "address": {"street": "Ring"}})
    assert parse(list[User], []) == []


def test_a_json_schema_gives_plain_values() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    assert parse(schema, {"n": "3"}) == {"n": 3}


@pytest.mark.parametrize(("hint", "value", "expected"), [
    (Literal["a", 1, None], 1, 1),
    (int | None, None, None),
    (list[tuple[int, ...]], [[1, 2], []], [(1, 2), ()]),
    (Sequence[bool], ["true"], [True]),
    (frozenset[int], [1, 1], frozenset({1})),
    (Annotated[int, "how many"], "3", 3),
    (Item | Address, {"street": "Ring"}, {"street": "Ring"}),
    (Any, {"x": [1]}, {"x": [1]}),
])  # fmt: skip
def test_hints(hint: Any, value: Any, expected: Any) -> None:
    assert parse(hint, value) == expected


@pytest.mark.parametrize("hint", [bytes, complex, dict[int, str], list[bytes], Callable[[], int]])
def test_types_without_a_schema_are_told(hint: Any) -> None:
    with pytest.raises(ConfigError):
        json_schema(hint)


@given(st.builds(Item, st.text(), st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(Colour), st.sets(st.text()), st.none() | st.dates()))  # fmt: skip
def test_plain_data_and_back(item: Item) -> None:
    assert parse(Item, to_plain(item)) == item


def search(
    query: str,
    limit: int = 5,
    *,
    kind: Literal["web", "news"] = "web",
    where: Address | None = None,
    tags: list[str] | None = None,
) -> str:
    """Search a catalogue.

    Over two lines.

    Args:
        query: What to look for;
            more of it.
        limit (int): Most results.

    Returns:
        limit: not a parameter.
    """
    return f"{query} {limit} {kind} {where} {tags}"


def test_a_function() -> None:
    schema = function_schema(search)
    assert (schema["name"], schema["description"]) == ("search", "Search a catalogue.\n\nOver two lines.")
    properties = schema["parameters"]["properties"]
    assert properties["query"] == {"type": "string", "description": "What to look for; more of it."}
    assert properties["limit"] == {"type": "integer", "description": "Most results.", "default": 5}
    assert properties["kind"] == {"type": "string", "enum": ["web", "news"], "default": "web"}
    assert schema["parameters"]["required"] == ["query"]


def test_arguments_of_a_call() -> None:
    tool = ToolFunction.of(search)
    assert tool.arguments(ToolCall("search", {"query": 7, "limit": "3", "tags": None})) == {
        "query": "7", "limit": 3, "tags": None,
    }  # fmt: skip
    for arguments, message in [
        ({}, "query is missing"),
        ({"query": "a", "size": 1}, "size is not known; known: query, limit"),
        ({"query": "a", "limit": "many"}, 'limit must be an integer (not "many")'),
        ({"query": "a", "where": {"number": 1}}, "street is missing"),
    ]:
        with pytest.raises(ToolError) as caught:
            tool.arguments(ToolCall("search", arguments))
        assert message in caught.value.message


def no_hint(a): ...  # type: ignore[no-untyped-def]


def many(*names: str) -> None: ...


def of_bytes(data: bytes) -> None: ...


@pytest.mark.parametrize(
    ("function", "message"),
    [(no_hint, "no type hint"), (many, "by name"), (of_bytes, "'data' of of_bytes"), (lambda: 1, "a name")],
)
def test_functions_that_cannot_be_tools(function: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        function_schema(function)


def test_two_tools_of_one_name() -> None:
    with pytest.raises(ConfigError, match="two tools"):
        split_tools([search, search])
    with pytest.raises(ConfigError, match="must be a function or"):
        split_tools(["search"])  # type: ignore[list-item]


def test_docstrings_of_other_forms() -> None:
    assert parse_docstring("Only a line.") == ("Only a line.", {})
    assert parse_docstring("") == ("", {})
    assert parse_docstring("A.\n\nArgs:\n  x: one\n  y: two\n    more\n\n  z: three") == (
        "A.",
        {"x": "one", "y": "two more", "z": "three"},
    )


def test_results_as_text() -> None:
    assert result_text("as it is") == "as it is"
    assert result_text({"a": Colour.RED, "b": (1, None)}) == '{"a": "red", "b": [1, null]}'
    assert result_text(User(name="Ann", age=1, address=Home(street="ü"))) == (
        '{"name": "Ann", "age": 1, "address": {"street": "ü"}}'
    )
    assert result_text(datetime.date(2020, 1, 2)) == '"2020-01-02"'
    assert result_text(1 + 2j) == '"(1+2j)"'
