from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_edge.config import LoadConfig
from qwen_edge.engines.fake import FakeEngine
from qwen_edge.errors import ConfigError, OutputError
from qwen_edge.model import Model
from qwen_edge.types import Message, ToolCall

NO_THINKING = "{% for message in messages %}{{ message.content }}{% endfor %}{{ tools }}"


@dataclass
class Person:
    name: str
    age: int

    def __post_init__(self) -> None:
        if self.age > 150:
            raise ValueError("too old")


def test_the_answer_is_an_instance() -> None:
    with Model(FakeEngine('Sure! {"name": "Max", "age": 30} Bye.')) as model, model.session() as session:
        assert session.extract("Max is 30.", Person, thinking="off") == Person("Max", 30)
        assert session.messages[-1] == Message("assistant", '{"name": "Max", "age": 30}')


def test_the_thought_is_free_and_the_answer_is_not() -> None:
    script = '<think>\nA {brace} and "more"\n</think>\n\n{"name": "Max", "age": 30}'
    with Model(FakeEngine(script)) as model, model.session() as session:
        stream = session.extract_stream("Max is 30.", Person, thinking="on")
        parts = list(stream)
    assert stream.result == Person("Max", 30)
    assert (stream.reply.thinking, stream.reply.finish_reason) == ('A {brace} and "more"', "stop")
    assert parts[0] == {}
    assert {"name": "Ma"} in parts
    assert parts[-1] == {"name": "Max", "age": 30}


def test_with_thinking_off_no_thought_can_open() -> None:
    script = '<think>\nhm</think>{"name": "Max", "age": 30}'
    for thinking, template in [("off", None), (None, NO_THINKING)]:
        engine = FakeEngine(script, **({"chat_template": template} if template else {}))  # type: ignore[arg-type]
        with Model(engine) as model, model.session() as session:
            stream = session.extract_stream("Max is 30.", Person, thinking=thinking)  # type: ignore[arg-type]
            list(stream)
        assert stream.result == Person("Max", 30)
        assert stream.reply.thinking == ""


def test_an_always_thinking_model() -> None:
    template = "{{ messages[-1].content }}<think>\n"
    with Model(FakeEngine("hm</think>\n\nyes", chat_template=template)) as model, model.session() as session:
        stream = session.extract_stream("?", choice=["yes", "no"])
        list(stream)
    assert (stream.result, stream.reply.thinking) == ("yes", "hm")


def test_texts_of_a_form() -> None:
    with Model(FakeEngine("It is no, of 12-34.")) as model, model.session() as session:
        assert session.extract("?", choice=["yes", "no"], thinking="off") == "no"
        assert session.extract("?", regex=r"[0-9]{2}-[0-9]{2}", thinking="off") == "12-34"
        assert session.extract("?", grammar='start: "of " /[0-9]/', thinking="off") == "of 1"
        assert session.extract("?", list[int], thinking="off") == [1234]


def test_the_schema_is_shown_unless_told_otherwise() -> None:
    prompts: list[str] = []
    engine = FakeEngine(lambda prompt: prompts.append(prompt) or '{"name": "Max", "age": 30}')  # type: ignore[func-returns-value]
    with Model(engine) as model, model.session() as session:
        session.extract([Message("user", "Max is 30.")], Person, thinking="off")
        session.extract("Max is 30.", Person, thinking="off", show_schema=False)
    assert '{"name": string, "age": integer}' in prompts[0]
    assert prompts[1].rsplit("<|im_start|>user\n", 1)[1].startswith("Max is 30.<|im_end|>")


def test_an_answer_that_is_cut_off_is_an_error_with_its_text() -> None:
    with Model(FakeEngine('{"name": "Maximilian", "age": 30}')) as model, model.session() as session:
        with pytest.raises(OutputError, match="ended before it was whole") as caught:
            session.extract("?", Person, thinking="off", max_tokens=15)
        assert caught.value.text == '{"name": "Maxim'
        assert "max_tokens" in (caught.value.hint or "")
        assert session.extract("?", Person, thinking="off") == Person("Maximilian", 30)


def test_a_type_that_refuses_its_value() -> None:
    with (
        Model(FakeEngine('{"name": "Max", "age": 300}')) as model,
        model.session() as session,
        pytest.raises(OutputError, match="too old"),
    ):
        session.extract("?", Person, thinking="off")


def test_an_answer_that_looks_like_a_call_is_an_answer() -> None:
    tool = {"name": "add", "parameters": {"type": "object"}}
    schema = {"type": "object", "properties": {"name": {"type": "string"}, "arguments": {"type": "object"}}}
    script = '{"name": "add", "arguments": {}}'
    with Model(FakeEngine(script)) as model, model.session(tools=[tool]) as session:
        assert session.extract("?", schema, thinking="off") == {"name": "add", "arguments": {}}
        assert session.send("?", thinking="off").tool_calls == (ToolCall("add", {}),)


ADD = {
    "name": "add",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
}


@pytest.mark.parametrize("form", ["<tool_call>\n%s\n</tool_call>", "%s", "```json\n%s\n```"])
def test_calls_are_held_to_their_tool_unless_told_otherwise(form: str) -> None:
    script = form % '{"name": "add", "arguments": {"b": "a", "a": "12"}}'
    with Model(FakeEngine(script)) as model, model.session(tools=[ADD]) as session:
        (held,) = session.send("?", thinking="off").tool_calls
        assert held == ToolCall("add", {"a": 12})
        session.constrained_calls = False
        (free,) = session.send("?", thinking="off").tool_calls
        assert free == ToolCall("add", {"b": "a", "a": "12"})
        assert not session.branch().constrained_calls
    with Model(FakeEngine(script)) as model, model.session(tools=[ADD], constrained_calls=False) as session:
        assert session.send("?", thinking="off").tool_calls == (free,)


def test_json_that_is_no_call_is_said_as_it_is() -> None:
    script = '{"name": "Ada", "arguments": "none", "b": [1, {"name": "add", "x": 1}]}'
    with Model(FakeEngine(script)) as model, model.session(tools=[ADD]) as session:
        reply = session.send("?", thinking="off")
    assert (reply.text, reply.tool_calls, reply.finish_reason) == (script, (), "stop")


def test_tags_inside_an_answer_are_its_text() -> None:
    script = '{"name": "a < / think > <think> b </think> <tool_call>", "age": 3}'
    engine = FakeEngine(script)
    plain = engine.tokenize(script, parse_special=False)
    engine.tokenize = lambda text, parse_special=True: (  # type: ignore[method-assign]
        plain if text == script else FakeEngine.tokenize(engine, text, parse_special=parse_special)
    )
    with Model(engine) as model, model.session() as session:
        person = session.extract("?", Person, thinking="off")
    assert person.name == "a < / think > <think> b </think> <tool_call>"


@pytest.mark.parametrize("forms", [{}, {"schema": Person, "regex": "a"}, {"regex": "a", "choice": ["a"]}])
def test_one_form_must_be_given(forms: dict[str, Any]) -> None:
    with Model(FakeEngine("a")) as model, model.session() as session:
        with pytest.raises(ConfigError, match="one of schema, regex, choice and grammar"):
            session.extract("?", **forms)
        assert session.messages == []


def test_unknown_arguments_are_refused() -> None:
    with (
        Model(FakeEngine("a")) as model,
        model.session() as session,
        pytest.raises(TypeError, match="max_token"),
    ):
        session.extract("?", regex="a", max_token=3)  # type: ignore[call-overload]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32), noise=st.text(max_size=20))
def test_whatever_the_model_wants_the_object_is_valid(seed: int, noise: str) -> None:
    source = random.Random(seed)

    def choose(tokens: Sequence[int]) -> int:
        closing = [token for token in tokens if token in b'"}]']
        return source.choice(closing if closing and source.random() < 0.2 else list(tokens))

    engine = FakeEngine(noise, config=LoadConfig(n_ctx=8192), choose=choose)
    with Model(engine) as model, model.session() as session:
        value = session.extract("?", dict[str, list[bool]], thinking="off")
    assert all(isinstance(flag, bool) for flags in value.values() for flag in flags)
