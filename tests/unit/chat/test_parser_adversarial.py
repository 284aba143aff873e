"""200 streams that try to confuse the parser, cut between any two bytes, against a slow reference on the whole text."""

from __future__ import annotations

import codecs
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_parser import Parsed, parse_whole

from qwen_edge.chat.parser import ReplyParser
from qwen_edge.types import Chunk

CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
NESTED = '<tool_call>{"name": "g", "arguments": {"a": {"b": [{"c": "}</tool_call"}, [[]]]}, "d": "{\\"e\\": 1}"}}</tool_call>'
BARE = '{"name": "f", "arguments": {"x": 1}}'

WRITTEN = (
    "<think>\n\n</think>\n\nHello.",
    "<think>\nhm\n</think>\n\n</think>\n\nHello.",
    "</think></think>Hello.",
    "</think>",
    "Hello. </think> is a tag.",
    "<think><think>a</think>b</think>c",
    "<think>a<think>b</think>c<think>d</think>e",
    f"<think>\nI call {CALL}\n</think>\n\nNo call.",
    f"<think>\n```xml\n{CALL}\n```",
    f"```xml\n{CALL}\n```",
    f"`<tool_call>` opens a call.{CALL}",
    f"{CALL}{CALL}\n{NESTED}",
    f"{CALL}<think>hm</think>{CALL}",
    '<tool_call><tool_call>{"name": "f"}</tool_call></tool_call>',
    '<tool_call>{"name": "f", "arguments": {"x": "</tool_call>"}}</tool_call>',
    '<tool_call>{"name": "f", "arguments": {"x": "<think>"}}</tool_call>',
    '<tool_call>\n{"name": "f", "arguments": {"city": "Kö',
    '<tool_call>\n{"name": "f", "arguments": {}}',
    "<tool_call>",
    "<tool_call></tool_call>",
    "<think>",
    "<thi",
    "a <",
    "</tool_call>",
    f"{BARE}<think>hm</think> And more.",
    f"{{<think>hm</think>{BARE}",
    f" \n<think>hm</think>\n {BARE}",
    f"  {BARE}",
    f"```json\n{BARE}\n```",
    f"```json\n{BARE}\n``` and more",
    f"```\n{BARE}{BARE}",
    "```",
    "{",
    "{ } {",
    f"</think>{BARE}",
    f"{BARE}</think>",
    "👩‍👩‍👧‍👦<think>家族</think>你好，世界。🎉",
    "<think>思考中……</think>答案是42。<tool_call>{\"name\": \"f\", \"arguments\": {\"城市\": \"维也纳 🏙\"}}</tool_call>",
    "\n\n\n",
    " ",
)  # fmt: skip

FRAGMENTS = (
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<think>", "</think>",
    "<", "</", "<thi", "nk>", "</tool", "_call>", "<|im_end|>",
    CALL, NESTED, BARE, f"```json\n{BARE}\n```", f"```python\nprint('{CALL}')\n```",
    '{"name": "f"', '{"name": "unknown", "arguments": {}}', '{"a": [1, {"b": "}"}]}', "}", "[[", '"',
    "\n", "\n\n", " ", "\t", "```", "Hello", "a < b", "naïve", "é", "🎉", "👩‍👧", "你好", "ก็", "\u00a0", "\u2028",
)  # fmt: skip


def _generated(count: int) -> list[str]:
    draw = random.Random(20)
    return ["".join(draw.choices(FRAGMENTS, k=draw.randint(3, 14))) for _ in range(count)]


STREAMS = [*WRITTEN, *_generated(200 - len(WRITTEN))]
SETTINGS = list(itertools.product((False, True), ((), ("f", "g"))))


def parse(data: bytes, cuts: list[int], starts_thinking: bool, names: tuple[str, ...]) -> Parsed:
    """Feed bytes in pieces, as tokens give them; check that the chunks are the reply."""
    parser = ReplyParser(starts_thinking=starts_thinking, tool_names=names)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    chunks: list[Chunk] = []
    for start, end in itertools.pairwise([0, *cuts, len(data)]):
        chunks += parser.feed(decoder.decode(data[start:end]))
        _check(parser, chunks)
    chunks += parser.feed(decoder.decode(b"", final=True))
    chunks += parser.finish()
    _check(parser, chunks)
    assert parser.finish() == []
    assert parser.has_answer == bool(parser.text.strip() or parser.tool_calls)
    return Parsed(parser.text, parser.thinking, parser.tool_calls)


def _check(parser: ReplyParser, chunks: list[Chunk]) -> None:
    assert "".join(chunk.text for chunk in chunks if chunk.kind == "text") == parser.text
    assert "".join(chunk.text for chunk in chunks if chunk.kind == "thinking") == parser.thinking
    assert tuple(chunk.tool_call for chunk in chunks if chunk.tool_call) == parser.tool_calls


def test_there_are_200_streams_and_they_are_about_something() -> None:
    assert len(STREAMS) == 200
    parsed = [parse_whole(raw, tool_names=("f", "g")) for raw in STREAMS]
    assert sum(bool(each.thinking) for each in parsed) > 50
    assert sum(bool(each.text) for each in parsed) > 50
    assert sum(bool(each.tool_calls) for each in parsed) > 50


@pytest.mark.parametrize("raw", STREAMS, ids=range(len(STREAMS)))
def test_parser_equals_the_reference_however_the_stream_is_cut(raw: str) -> None:
    data = raw.encode()

    @settings(max_examples=5, deadline=None)
    @given(cuts=st.lists(st.integers(0, len(data)), max_size=12).map(sorted))
    def any_cut(cuts: list[int]) -> None:
        assert parse(data, cuts, starts_thinking, names) == expected

    for starts_thinking, names in SETTINGS:
        expected = parse_whole(raw, starts_thinking=starts_thinking, tool_names=names)
        assert parse(data, [], starts_thinking, names) == expected
        assert parse(data, list(range(1, len(data))), starts_thinking, names) == expected
        any_cut()


@settings(deadline=None)
@given(
    raw=st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=12).map("".join),
    broken=st.lists(st.integers(0, 255), max_size=3).map(bytes),
    starts_thinking=st.booleans(),
    names=st.sampled_from([(), ("f", "g")]),
    data=st.data(),
)
def test_any_bytes_in_any_pieces(
    raw: str, broken: bytes, starts_thinking: bool, names: tuple[str, ...], data: st.DataObject
) -> None:
    stream = raw.encode()
    place = data.draw(st.integers(0, len(stream)))
    stream = stream[:place] + broken + stream[place:]
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8).map(sorted))
    whole = stream.decode("utf-8", "replace")
    expected = parse_whole(whole, starts_thinking=starts_thinking, tool_names=names)
    assert parse(stream, cuts, starts_thinking, names) == expected
