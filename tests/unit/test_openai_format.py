from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.engines.fake import FakeEngine
from qwen_edge.errors import ConfigError
from qwen_edge.model import Model
from qwen_edge.openai_format import as_messages, message_from_openai, message_to_openai
from qwen_edge.types import Message, ToolCall

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
CALLS = st.lists(
    st.builds(ToolCall, TEXT.filter(bool), st.dictionaries(TEXT, JSON, max_size=3), TEXT), max_size=3
).map(tuple)
MESSAGES = st.one_of(
    st.builds(Message, st.sampled_from(["system", "user"]), TEXT),
    st.builds(Message, st.just("assistant"), TEXT, TEXT, CALLS),
    st.builds(lambda content, name: Message("tool", content, tool_call_id=name), TEXT, TEXT),
)


def _fields(message: Message) -> tuple[Any, ...]:
    """All of a message, what takes no part in its comparison included, but for ids that nobody gave."""
    ids = [call.id for call in message.tool_calls if call.id]
    return message, ids, message.tool_call_id


@given(messages=st.lists(MESSAGES, max_size=4))
def test_there_and_back(messages: list[Message]) -> None:
    sent = json.loads(json.dumps([message_to_openai(message) for message in messages]))
    read = as_messages(sent)
    for message, again in zip(messages, read, strict=True):
        assert again == message
        assert again.tool_call_id == message.tool_call_id
        for call, call_again in zip(message.tool_calls, again.tool_calls, strict=True):
            assert call_again.id == call.id or not call.id
            assert call_again.id
    assert [message_to_openai(message) for message in read] == sent


VALUES = JSON | st.sampled_from(["user", "assistant", "tool", "text", "function"])
KEYS = st.sampled_from(
    ["role", "content", "tool_calls", "tool_call_id", "name", "type", "text", "function", "arguments"]
)


@given(
    turn=st.recursive(
        VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4)
    )
)
def test_anything_is_messages_or_a_config_error(turn: Any) -> None:
    try:
        messages = as_messages(turn)
    except ConfigError:
        return
    assert all(isinstance(message, Message) for message in messages)


def test_forms_that_mean_the_same() -> None:
    call = ToolCall("add", {"a": 1})
    for function in ({"name": "add", "arguments": '{"a": 1}'}, {"name": "add", "arguments": {"a": 1}}):
        for calls in ([{"id": "c1", "type": "function", "function": function}], [function]):
            data = {
                "role": "assistant",
                "content": None,
                "tool_calls": calls,
                "refusal": None,
                "annotations": [],
            }
            assert message_from_openai(data) == Message("assistant", "", tool_calls=(call,))
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert as_messages({"role": "user", "content": parts}) == [Message("user", "one\ntwo")]
    assert as_messages([{"role": "developer", "content": "Be brief.", "name": "dev"}, Message("user", "Hi")]) == [
        Message("system", "Be brief."), Message("user", "Hi"),
    ]  # fmt: skip
    assert as_messages("Hi") == as_messages(Message("user", "Hi")) == as_messages((Message("user", "Hi"),))


@pytest.mark.parametrize(("turn", "error"), [
    (3, r"a turn must be a text, a message or a list of messages \(not int\)"),
    (b"Hi", "not bytes"),
    ([3], r"messages\[0\] must be a Message or a dictionary"),
    ([{"content": "Hi"}], r"messages\[0\] has no 'role'"),
    ({"role": "User", "content": "Hi"}, r"message\.role must be one of .*not 'User'"),
    ({"role": ["user"], "content": "Hi"}, r"message\.role"),
    ({"role": "user"}, r"message has no 'content'"),
    ({"role": "user", "content": 3}, r"message\.content must be text or a list of parts \(not int\)"),
    ({"role": "user", "contents": "Hi", "content": ""}, r"message has the key 'contents'"),
    ({"role": "user", "content": "Hi", "tool_calls": [{}]}, "key 'tool_calls', which a message of the role user"),
    ({"role": "user", "content": [{"type": "image_url"}]}, r"message\.content\[0\]\.type must be 'text' \(not 'image_url'\)"),
    ({"role": "user", "content": ["Hi"]}, r"message\.content\[0\]\.type"),
    ({"role": "user", "content": [{"type": "text"}]}, r"message\.content\[0\]\.text must be text \(not NoneType\)"),
    ({"role": "assistant", "tool_calls": {}}, r"message\.tool_calls must be a list \(not dict\)"),
    ({"role": "assistant", "tool_calls": ["add"]}, r"message\.tool_calls\[0\]\.function must be a dictionary"),
    ({"role": "assistant", "tool_calls": [{"function": {}}]}, r"tool_calls\[0\]\.function\.name must be text"),
    ({"role": "assistant", "tool_calls": [{"name": ""}]}, r"tool_calls\[0\]\.name is empty"),
    ({"role": "assistant", "tool_calls": [{"type": "custom", "function": {"name": "a"}}]}, r"tool_calls\[0\]\.type"),
    ({"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "{"}}]},
     r"tool_calls\[0\]\.function\.arguments is not valid JSON"),
    ({"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "[1]"}}]},
     r"arguments must be a JSON object \(not list\)"),
    ({"role": "tool", "content": "3", "tool_call_id": 3}, r"message\.tool_call_id must be text"),
])  # fmt: skip
def test_wrong_dictionaries_are_named(turn: Any, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        as_messages(turn)


TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}


def test_a_conversation_in_dictionaries_is_the_one_in_messages() -> None:
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    prompts: list[str] = []

    def script(prompt: str) -> str:
        prompts.append(prompt)
        return "It is 3." if "<|im_start|>tool" in prompt else call

    with Model(FakeEngine(script)) as model:
        with model.session(tools=[TOOL]) as session:
            first = session.send([{"role": "system", "content": "Add."}, {"role": "user", "content": "1?"}])
            answer = first.to_openai(model="tiny")
            assert json.loads(json.dumps(answer)) == answer
            (choice,) = answer["choices"]
            assert (answer["object"], answer["model"], choice["finish_reason"]) == (
                "chat.completion", "tiny", "tool_calls",
            )  # fmt: skip
            assert choice["message"]["content"] is None
            (tool_call,) = choice["message"]["tool_calls"]
            assert json.loads(tool_call["function"]["arguments"]) == {"a": 1}
            result = {"role": "tool", "tool_call_id": tool_call["id"], "content": "3"}
            assert session.send(result).text == "It is 3."
            assert session.messages[3].tool_call_id == tool_call["id"]
        # The whole history as a program of OpenAI's API keeps it, in a new session.
        history = [
            {"role": "system", "content": "Add."},
            {"role": "user", "content": "1?"},
            choice["message"],
            result,
        ]
        with model.session(tools=[TOOL]) as session:
            assert session.send(history).text == "It is 3."
    assert prompts[-1] == prompts[-2]


def test_usage_and_cut_off_replies() -> None:
    with Model(FakeEngine("<think>\nhm\n</think>\n\nYes.")) as model, model.session() as session:
        reply = session.send("Hi", thinking="on")
        answer = reply.to_openai()
        assert answer["choices"][0]["message"] == {
            "role": "assistant", "content": "Yes.", "reasoning_content": "hm", "refusal": None,
        }  # fmt: skip
        usage = answer["usage"]
        assert usage["completion_tokens_details"] == {"reasoning_tokens": reply.stats.thinking_tokens}
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert answer["choices"][0]["finish_reason"] == "stop"
        stream = session.stream("Hi")
        for _ in stream:
            session.cancel()
        assert stream.reply.to_openai()["choices"][0]["finish_reason"] == "length"
