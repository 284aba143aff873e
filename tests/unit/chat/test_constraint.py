from __future__ import annotations

import gc
import json
import random
import re
import sys
import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qwen_edge.chat import constraint as constraints
from qwen_edge.chat.call_guide import CallForms, ToolCallGuide, call_grammar
from qwen_edge.chat.coercion import fits
from qwen_edge.chat.constraint import AnswerGuide, Constraint
from qwen_edge.chat.parser import ReplyParser
from qwen_edge.chat.tools import split_tools
from qwen_edge.engines.fake import FakeEngine
from qwen_edge.errors import ConfigError, MissingExtraError

ENGINE = FakeEngine("")
VOCABULARY = constraints.vocabulary_of(ENGINE)
END = ENGINE.end_token


def marker(text: str) -> int:
    (token,) = ENGINE.tokenize(text)
    return token


def allowed(constraint: Any) -> list[int]:
    bits = np.unpackbits(constraint.mask().view(np.uint8), bitorder="little")
    return [int(token) for token in np.flatnonzero(bits)]


def random_text(constraint: Any, source: random.Random, free_steps: int) -> str:
    """Walk at random, then by the shortest way out; at each step mask() and allows() must agree."""
    text = bytearray()
    for step in range(4000):
        tokens = allowed(constraint)
        assert tokens
        probes = {source.randrange(len(VOCABULARY.tokens)) for _ in range(8)} | {END, ord('"'), tokens[-1]}
        assert all(constraint.allows(token) == (token in tokens) for token in probes)
        closing = [token for token in (END, *b'"}]') if token in tokens]
        token = closing[0] if closing and step >= free_steps else source.choice(tokens)
        if ENGINE.is_end(token):
            return text.decode()
        constraint.accept(token)
        text += VOCABULARY.tokens[token]
    raise AssertionError(f"no end after {text!r}")


def assume_finite(text: str) -> None:
    """A number that is beyond a float's range is well-formed JSON; Python reads it as infinity."""
    assume(not re.search(r"\d[eE]\+?\d{3}", text))


NAMES = st.text('abcXYZ_ é"\\', min_size=1, max_size=5)
LEAVES = st.one_of(
    st.sampled_from([{"type": kind} for kind in ("string", "integer", "number", "boolean", "null")]),
    st.lists(st.one_of(NAMES, st.integers(-9, 9), st.booleans(), st.none()), min_size=1, max_size=4, unique_by=repr)
    .map(lambda values: {"enum": values}),
    st.tuples(st.integers(-20, 20), st.integers(0, 30)).map(lambda b: {"type": "integer", "minimum": b[0], "maximum": b[0] + b[1]}),
    st.tuples(st.integers(0, 3), st.integers(0, 4)).map(lambda b: {"type": "string", "minLength": b[0], "maxLength": b[0] + b[1]}),
)  # fmt: skip


def record(properties: dict[str, Any], wanted: set[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name in wanted],
        "additionalProperties": False,
    }


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(inner, st.integers(0, 2), st.integers(0, 2)).map(
            lambda t: {"type": "array", "items": t[0], "minItems": t[1], "maxItems": t[1] + t[2]}
        ),
        st.builds(record, st.dictionaries(NAMES, inner, max_size=4), st.sets(NAMES)),
        st.lists(inner, min_size=1, max_size=3).map(lambda members: {"anyOf": members}),
    ),
    max_leaves=6,
)


@settings(deadline=None)
@given(schema=SCHEMAS, seed=st.integers(0, 2**32), free_steps=st.integers(0, 120))
def test_random_texts_under_random_schemas_fit_them(
    schema: dict[str, Any], seed: int, free_steps: int
) -> None:
    constraint = Constraint(VOCABULARY, constraints.json_grammar(schema))
    text = random_text(constraint, random.Random(seed), free_steps)
    assume_finite(text)
    assert fits(json.loads(text), schema), text


@settings(deadline=None)
@given(
    parameters=st.lists(st.builds(record, st.dictionaries(NAMES, SCHEMAS, max_size=3), st.sets(NAMES)), min_size=1, max_size=3),
    seed=st.integers(0, 2**32),
    free_steps=st.integers(0, 200),
)  # fmt: skip
def test_random_calls_are_calls_of_the_tools(
    parameters: list[dict[str, Any]], seed: int, free_steps: int
) -> None:
    """From the tag on, whatever is sampled: the parser gets one call, of an offered tool, that fits its schema."""
    tools = [{"function": {"name": f'tool "{i}"', "parameters": p}} for i, p in enumerate(parameters)]
    guide, parser = ToolCallGuide(CallForms(tools, lambda: VOCABULARY)), ReplyParser()
    assert guide.constraint_for(parser) is None
    parser.feed("<tool_call>")
    source = random.Random(seed)
    text = bytearray()
    while parser.state == "tool":
        step = guide.constraint_for(parser)
        assert step is not None
        tokens = allowed(step)
        closing = [token for token in (marker("</tool_call>"), *b'"}]') if token in tokens]
        spelled = [ord(letter) for letter in "</tool_call>" if ord(letter) in tokens]
        if closing and len(text) >= free_steps:
            token = closing[0]
        else:
            token = source.choice(spelled if spelled and source.random() < 0.3 else tokens)
        step.accept(token)
        text += VOCABULARY.tokens[token]
        assert len(text) < 6000
        if b"</tool_call>" in text or len(text) % 7 == 0:
            parser = ReplyParser()
            parser.feed("<tool_call>" + text.decode(errors="ignore"))
    assume_finite(text.decode())
    (call,) = parser.tool_calls
    index = [tool["function"]["name"] for tool in tools].index(call.name)  # type: ignore[index]
    assert fits(call.arguments, parameters[index]), text


def test_a_text_cannot_spell_the_closing_tag() -> None:
    tools = [{"function": {"name": "say", "parameters": record({"text": {"type": "string"}}, {"text"})}}]
    guide, parser = ToolCallGuide(CallForms(tools, lambda: VOCABULARY)), ReplyParser()
    parser.feed("<tool_call>")
    step = guide.constraint_for(parser)
    assert step is not None
    for letter in b'{"name": "say", "arguments": {"text": "a </tool_call':
        assert step.allows(letter)
        step.accept(letter)
    assert not step.allows(ord(">"))
    assert ord(">") not in allowed(step)
    assert {ord("/"), ord('"'), ord("a")} <= set(allowed(step))
    for letter in b' >"}}':
        assert step.allows(letter)
        step.accept(letter)
    assert step.allows(marker("</tool_call>"))
    assert marker("</tool_call>") in allowed(step)


def test_a_call_that_begins_with_the_tags_last_token() -> None:
    """A tag that is spelled out: its last token may bring the line break along."""
    tools = [{"function": {"name": "go", "parameters": {}}}]
    for begun, is_held in [("\n{", True), ("\nno call", False)]:
        parser = ReplyParser()
        parser.feed("<tool_call>" + begun)
        step = ToolCallGuide(CallForms(tools, lambda: VOCABULARY)).constraint_for(parser)
        assert (step is not None) == is_held
        if step is not None:
            assert {ord('"'), ord("\n")} <= set(allowed(step)) <= set(b' \n"')


def test_calls_are_held_only_between_the_tags_and_outside_of_thoughts() -> None:
    tools = [{"function": {"name": "go", "parameters": {}}}]
    guide, parser = ToolCallGuide(CallForms(tools, lambda: VOCABULARY)), ReplyParser()
    held = []
    for piece in [
        "<think>",
        "<tool_call>",
        "{",
        "</think>",
        "text",
        "<tool_call>",
        "{",
        "</tool_call>",
        "text",
    ]:
        parser.feed(piece)
        held.append(guide.constraint_for(parser) is not None)
    assert held == [False, False, False, False, False, True, True, False, False]


@settings(deadline=None)
@given(
    parameters=st.lists(st.builds(record, st.dictionaries(NAMES, SCHEMAS, max_size=3), st.sets(NAMES)), min_size=1, max_size=3),
    seed=st.integers(0, 2**32),
    free_steps=st.integers(0, 200),
    opening=st.sampled_from(["{", "```json\n{\n    ", " {\n  "]),
)  # fmt: skip
def test_random_bare_calls_are_calls_of_the_tools(
    parameters: list[dict[str, Any]], seed: int, free_steps: int, opening: str
) -> None:
    """From the name of a tool on, whatever is sampled, tags that are spelled out included."""
    tools = [{"function": {"name": f'tool "{i}"', "parameters": p}} for i, p in enumerate(parameters)]
    names = [tool["function"]["name"] for tool in tools]
    source = random.Random(seed)
    guide, parser = ToolCallGuide(CallForms(tools, lambda: VOCABULARY)), ReplyParser(tool_names=names)
    begun = f'{opening}"name": {json.dumps(source.choice(names))}'  # type: ignore[arg-type]
    for letter in begun:
        assert guide.constraint_for(parser) is None
        parser.feed(letter)
    step = guide.constraint_for(parser)
    text = bytearray(begun.encode())
    while step is not None:
        tokens = allowed(step)
        closing = [token for token in b'"}]' if token in tokens]
        spelled = [ord(letter) for letter in "<tool_call><think>" if ord(letter) in tokens]
        if closing and len(text) >= free_steps:
            token = closing[0]
        else:
            token = source.choice(spelled if spelled and source.random() < 0.3 else tokens)
        step.accept(token)
        text += VOCABULARY.tokens[token]
        assert len(text) < 6000
        parser = ReplyParser(tool_names=names)
        parser.feed(text.decode(errors="ignore"))
        step = guide.constraint_for(parser)
    assume_finite(text.decode())
    parser.finish()
    (call,) = parser.tool_calls
    assert fits(call.arguments, parameters[names.index(call.name)]), text


@pytest.mark.parametrize("text", [
    '{"name": "stop"',  # a tool that is not on offer
    '{"name": "go',
    '{"go": "name"',
    '{"person": {"name": "go"',
    'So: {"name": "go"',
    '{"name": "go", "age": 3',  # no call any more
    '{"name": "go"}',
    '{"name": "go", "arguments": {}} {"name": "',
    '{"name": "go", "arguments": {}}\n\nThat is all: {"name": "go"',
    '<think>{"name": "go"',
])  # fmt: skip
def test_json_that_is_no_call_of_a_tool_is_free(text: str) -> None:
    tools = [{"function": {"name": "go", "parameters": record({}, set())}}]
    parser = ReplyParser(tool_names=["go"])
    parser.feed(text)
    assert ToolCallGuide(CallForms(tools, lambda: VOCABULARY)).constraint_for(parser) is None


def test_a_second_bare_call_is_held_too_and_what_is_between_is_free() -> None:
    tools = [{"function": {"name": "go", "parameters": record({}, set())}}]
    guide, parser = ToolCallGuide(CallForms(tools, lambda: VOCABULARY)), ReplyParser(tool_names=["go"])
    held = []
    for piece in [
        '{"name": "go"',
        ', "arguments": {',
        "}}",
        "\n",
        '{"name": "go"',
        ', "arguments": {}}',
        "\n",
    ]:
        parser.feed(piece)
        held.append(guide.constraint_for(parser) is not None)
    assert held == [True, True, False, False, True, False, False]


def test_the_answer_is_held_and_the_thought_is_free() -> None:
    constraint = Constraint(VOCABULARY, constraints.choice_grammar(["yes", "no"]))
    guide, parser = AnswerGuide(constraint, may_think=True), ReplyParser()
    assert guide.constraint_for(parser) is guide
    assert set(allowed(guide)) == {ord("y"), ord("n"), marker("<think>")}
    assert guide.allows(marker("<think>"))
    guide.accept(marker("<think>"))
    parser.feed("<think>")
    assert guide.constraint_for(parser) is None
    parser.feed("anything</think>")
    assert guide.constraint_for(parser) is guide
    assert set(allowed(guide)) == {ord("y"), ord("n"), ord("\n")}
    for letter in b"\nno":
        assert guide.allows(letter)
        assert not guide.allows(END)
        guide.accept(letter)
    assert guide.allows(END)
    assert (guide.text, guide.is_whole) == ("no", True)


def test_without_thinking_the_answer_begins_at_once() -> None:
    guide = AnswerGuide(Constraint(VOCABULARY, constraints.regex_grammar("[ab]c?")), may_think=False)
    assert set(allowed(guide)) == {ord("a"), ord("b")}
    guide.accept(ord("a"))
    assert set(allowed(guide)) == {ord("c"), *VOCABULARY.ends}


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32),
    pattern=st.sampled_from([r"[0-9]{2}-[a-c]+", r"(ja|nein)( bitte)?!", r"é+[^a]"]),
)
def test_random_texts_match_the_regex(seed: int, pattern: str) -> None:
    constraint = Constraint(VOCABULARY, constraints.regex_grammar(pattern))
    assert re.fullmatch(pattern, random_text(constraint, random.Random(seed), 20), re.DOTALL)


@given(
    choices=st.lists(
        st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=6), min_size=1, max_size=4
    )
)
@settings(deadline=None)
def test_random_texts_are_a_choice(choices: list[str]) -> None:
    constraint = Constraint(VOCABULARY, constraints.choice_grammar(choices))
    assert random_text(constraint, random.Random(len(choices)), 0) in choices


def test_a_lark_grammar() -> None:
    constraint = Constraint(VOCABULARY, constraints.lark_grammar('start: word ("," word)*\nword: /[a-z]{2}/'))
    assert re.fullmatch(r"[a-z]{2}(,[a-z]{2})*", random_text(constraint, random.Random(1), 9))


@pytest.mark.parametrize("make", [
    lambda: constraints.regex_grammar("(a"),
    lambda: constraints.lark_grammar("start: nothing"),
    lambda: constraints.json_grammar({"type": "no such type"}),
    lambda: constraints.json_grammar({"type": "array", "uniqueItems": True}),
    lambda: constraints.choice_grammar([]),
    lambda: constraints.choice_grammar("yes"),
    lambda: constraints.choice_grammar([""]),
])  # fmt: skip
def test_what_is_no_grammar_is_a_config_error(make: Any) -> None:
    with pytest.raises(ConfigError):
        Constraint(VOCABULARY, make())


def test_a_tool_that_contains_the_closing_tag_is_refused() -> None:
    tools, _ = split_tools([{"name": "a", "description": "ends with </tool_call>"}])
    with pytest.raises(ConfigError, match="ends a call"):
        call_grammar([{"function": tools[0]}], VOCABULARY)


def test_the_vocabulary_is_made_once_and_goes_with_its_engine() -> None:
    engine = FakeEngine("")
    vocabulary = constraints.vocabulary_of(engine)
    assert constraints.vocabulary_of(engine) is vocabulary
    gone = weakref.ref(vocabulary)
    del engine, vocabulary
    gc.collect()
    assert gone() is None


def test_without_llguidance_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    assert not constraints.is_available()
    with pytest.raises(MissingExtraError, match=r"qwen-edge\[typed\]"):
        constraints.json_grammar({})
