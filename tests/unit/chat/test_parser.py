from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.chat.parser import ReplyParser, parse_tool_call
from qwen_edge.types import Chunk, ToolCall


def parse(
    raw: str, *, pieces: list[str] | None = None, starts_thinking: bool = False, tools: tuple[str, ...] = ()
) -> tuple[ReplyParser, list[Chunk]]:
    parser = ReplyParser(starts_thinking=starts_thinking, tool_names=tools)
    chunks = [chunk for piece in (pieces or [raw]) for chunk in parser.feed(piece)]
    return parser, chunks + parser.finish()


CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'


@pytest.mark.parametrize(
    ("raw", "text", "thinking", "calls"),
    [
        ("Hello.", "Hello.", "", 0),
        ("<think>\nhm\n</think>\n\nHello.", "Hello.", "hm", 0),
        ("<think>\n\n</think>\n\nHello.", "Hello.", "", 0),
        (CALL, "", "", 1),
        (f"Let me see.\n{CALL}\n{CALL}", "Let me see.", "", 2),
        (f"Before\n{CALL}\nafter", "Before\nafter", "", 1),
        (f"<think>\n{CALL}\n</think>\n\nNo call.", "No call.", CALL, 0),
        ("<think>\ncut off", "", "cut off", 0),
        ("a < b and <thin air>", "a < b and <thin air>", "", 0),
        ("a tag at the end <tool_c", "a tag at the end <tool_c", "", 0),
        ("  indented\n\ncode\n", "  indented\n\ncode", "", 0),
        ("", "", "", 0),
    ],
)
def test_parts(raw: str, text: str, thinking: str, calls: int) -> None:
    parser, _ = parse(raw)
    assert (parser.text, parser.thinking, len(parser.tool_calls)) == (text, thinking, calls)


def test_prompt_that_opened_the_thought() -> None:
    parser, _ = parse("hm\n</think>\n\nHello.", starts_thinking=True)
    assert (parser.thinking, parser.text) == ("hm", "Hello.")


@pytest.mark.parametrize(
    "body",
    [
        "",
        "not json",
        '{"name": 3}',
        '{"name": ""}',
        '{"arguments": {}}',
        "[1]",
        '{"name": "f", "arguments": [1]}',
        "[" * 100_000,
    ],
)
def test_what_is_no_call_is_shown_as_written(body: str) -> None:
    raw = f"<tool_call>{body}</tool_call>"
    parser, _ = parse(f"See:\n{raw}\nDone.")
    assert parser.tool_calls == ()
    assert parser.text == f"See:\n{raw}\nDone."


def test_call_without_closing_tag_counts_when_it_is_complete() -> None:
    parser, chunks = parse('<tool_call>\n{"name": "f", "arguments": {}}')
    assert parser.tool_calls == (ToolCall("f", {}),)
    assert [chunk.kind for chunk in chunks] == ["tool_call"]
    assert parser.finish() == []


@pytest.mark.parametrize(
    ("raw", "arguments"),
    [
        ('{"name": "f", "arguments": {"x": 1}}', {"x": 1}),
        ('{"name": "f", "arguments": "{\\"x\\": 1}"}', {"x": 1}),
        ('{"name": "f", "arguments": ""}', {}),
        ('{"name": "f", "parameters": {"x": 1}}', {"x": 1}),
        ('{"name": "f"}', {}),
    ],
)
def test_forms_of_arguments(raw: str, arguments: dict[str, object]) -> None:
    assert parse_tool_call(raw) == ToolCall("f", arguments)


BARE = '{"name": "f", "arguments": {"x": 1}}'


@pytest.mark.parametrize(
    ("raw", "calls"),
    [
        (BARE, 1),
        (f"\n{BARE}\n", 1),
        (f"```json\n{BARE}\n```", 1),
        (f"```\n{BARE}\n```", 1),
        (f"{BARE}\n{BARE}", 2),
        (f"<think>\nhm\n</think>\n\n{BARE}", 1),
        (f"{BARE}\n<tool_call>{BARE}</tool_call>", 2),
    ],
)
def test_calls_without_tags_are_calls_when_tools_are_on_offer(raw: str, calls: int) -> None:
    parser, _ = parse(raw, tools=("f", "g"))
    assert (len(parser.tool_calls), parser.text) == (calls, "")


@pytest.mark.parametrize(
    "raw",
    [
        f"Call this: {BARE}",
        f"{BARE} and more",
        '{"name": "unknown", "arguments": {}}',
        '{"city": "Vienna"}',
        '{"name": "f", "argu',
        "```python\nprint(1)\n```",
        "```json\n[1]\n```",
        "{",
        "`",
    ],
)
def test_what_is_not_only_calls_of_tools_on_offer_is_text(raw: str) -> None:
    parser, chunks = parse(raw, tools=("f",))
    assert (parser.tool_calls, parser.text) == ((), raw)
    assert "".join(chunk.text for chunk in chunks) == raw
    assert parse(raw)[0].text == raw


def test_text_is_not_held_back_longer_than_needed() -> None:
    parser = ReplyParser(tool_names=("f",))
    assert parser.feed("Hello") == [Chunk("text", "Hello")]


_MARKUP = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "\n",
        " ",
        "<",
        "</",
        "ü",
        '{"name": "f", "arguments": {}}',
        "x",
    ]
)


@given(
    raw=st.lists(_MARKUP | st.text(max_size=4)).map("".join),
    tools=st.sampled_from([(), ("f",)]),
    data=st.data(),
)
def test_any_cut_of_the_stream_gives_the_same_reply(
    raw: str, tools: tuple[str, ...], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    whole, _ = parse(raw, tools=tools)
    cut, chunks = parse(raw, pieces=pieces, tools=tools)
    assert (cut.text, cut.thinking, cut.tool_calls) == (whole.text, whole.thinking, whole.tool_calls)
    assert "".join(c.text for c in chunks if c.kind == "text") == whole.text
    assert "".join(c.text for c in chunks if c.kind == "thinking") == whole.thinking
    assert tuple(c.tool_call for c in chunks if c.tool_call) == whole.tool_calls


@given(name=st.text(min_size=1), arguments=st.dictionaries(st.text(), st.integers() | st.text() | st.none()))
def test_calls_round_trip(name: str, arguments: dict[str, object]) -> None:
    body = json.dumps({"name": name, "arguments": arguments})
    assert parse_tool_call(body) == ToolCall(name, arguments)
