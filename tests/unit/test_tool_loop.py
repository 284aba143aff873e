from __future__ import annotations

import asyncio
import json
import sys
import threading
from typing import Any, Literal

import pytest

from qwen_edge.engines.fake import FakeEngine
from qwen_edge.errors import ConfigError, ToolError
from qwen_edge.model import Model
from qwen_edge.types import Message, ToolCall


def get_weather(city: str, unit: Literal["c", "f"] = "c") -> dict[str, Any]:
    """Current weather of a city."""
    return {"city": city, "unit": unit, "temp": 21}


def divide(a: int, b: int) -> float:
    """Divide."""
    return a / b


async def wait(seconds: float) -> str:
    """Wait."""
    await asyncio.sleep(seconds)
    return "waited"


def call(name: str, /, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def engine_of(*replies: str) -> FakeEngine:
    remaining = list(replies)
    return FakeEngine(lambda prompt: remaining.pop(0))


@pytest.fixture
def without_llguidance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)


def tool_results(messages: list[Message]) -> list[Any]:
    return [json.loads(message.content) for message in messages if message.role == "tool"]


def test_calls_are_made_and_their_results_sent() -> None:
    both = call("get_weather", city="Vienna") + "\n" + call("divide", a=6, b="3")
    with (
        Model(engine_of(both, "21 and 2.")) as model,
        model.session(tools=[get_weather, divide]) as session,
    ):
        reply = session.run("Weather, and 6 / 3?", thinking="off")
        assert reply.text == "21 and 2."
        assert [message.role for message in session.messages] == [
            "user",
            "assistant",
            "tool",
            "tool",
            "assistant",
        ]
        assert tool_results(session.messages) == [{"city": "Vienna", "unit": "c", "temp": 21}, 2.0]


def test_without_calls_it_is_a_plain_answer() -> None:
    with Model(engine_of("Hello.")) as model, model.session(tools=[divide]) as session:
        assert session.run("Hi").text == "Hello."


def test_the_limit_of_rounds() -> None:
    again = call("divide", a=1, b=1)
    with Model(FakeEngine(again)) as model, model.session(tools=[divide]) as session:
        with pytest.raises(ToolError, match="after 3 rounds of tool calls the model asks for more: divide"):
            session.run("?", max_rounds=3)
        assert tool_results(session.messages) == [1.0] * 3
    with Model(engine_of(again, again, "done")) as model, model.session(tools=[divide]) as session:
        assert session.run("?", max_rounds=2).text == "done"


def test_the_constraint_mends_names_and_arguments() -> None:
    """The fake model goes on with the next token of its script that is allowed."""
    wrong = (
        '<tool_call>\n{"name": "the_get_weather", "arguments": {"city": "Rome", "units": "x"}}\n</tool_call>'
    )
    with Model(engine_of(wrong, "ok")) as model, model.session(tools=[get_weather]) as session:
        session.run("?")
        (made,) = session.messages[1].tool_calls
    assert made.name == "get_weather"
    assert made.arguments["city"].startswith("Rome")
    assert set(made.arguments) <= {"city", "unit"}


@pytest.mark.usefixtures("without_llguidance")
@pytest.mark.parametrize(("request_", "told"), [
    (call("get_wether", city="Rome"), "there is no tool 'get_wether'; there are: get_weather, divide"),
    (call("get_weather"), "wrong arguments for get_weather: city is missing"),
    (call("get_weather", city="Rome", unit="k"), 'wrong arguments for get_weather: unit must be one of "c", "f" (not "k")'),
    (call("divide", a=1, b=0), "divide failed: ZeroDivisionError: division by zero"),
])  # fmt: skip
def test_what_goes_wrong_is_told_or_raised(request_: str, told: str) -> None:
    with (
        Model(engine_of(request_, "Sorry.")) as model,
        model.session(tools=[get_weather, divide]) as session,
    ):
        assert session.run("?").text == "Sorry."
        assert tool_results(session.messages) == [{"error": told}]
    with Model(engine_of(request_)) as model, model.session(tools=[get_weather, divide]) as session:
        with pytest.raises(ToolError) as caught:
            session.run("?", on_error="raise")
        assert caught.value.message == told


@pytest.mark.usefixtures("without_llguidance")
def test_without_llguidance_arguments_are_still_put_right() -> None:
    with (
        Model(engine_of(call("divide", a="6", b=3.0), "2")) as model,
        model.session(tools=[divide]) as session,
    ):
        session.run("?")
        assert session.messages[1].tool_calls == (ToolCall("divide", {"a": "6", "b": 3.0}),)
        assert tool_results(session.messages) == [2.0]


def test_an_exception_of_ours_in_a_tool_names_its_cause() -> None:
    with (
        Model(engine_of(call("divide", a=1, b=0))) as model,
        model.session(tools=[divide]) as session,
        pytest.raises(ToolError) as caught,
    ):
        session.run("?", on_error="raise")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_ctrl_c_in_a_tool_is_not_told_to_the_model() -> None:
    def stop() -> str:
        """Stop."""
        raise KeyboardInterrupt

    with (
        Model(engine_of(call("stop"))) as model,
        model.session(tools=[stop]) as session,
        pytest.raises(KeyboardInterrupt),
    ):
        session.run("?")


def test_tools_that_cannot_be_called() -> None:
    schema = {"name": "add", "parameters": {"type": "object"}}
    with Model(FakeEngine("ok")) as model:
        with (
            model.session(tools=[divide, schema]) as session,
            pytest.raises(ConfigError, match="'add' is a schema"),
        ):
            session.run("?")
        with model.session(tools=[wait]) as session, pytest.raises(ConfigError, match="arun"):
            session.run("?")
        with model.session(tools=[divide]) as session:
            with pytest.raises(ConfigError, match="max_rounds"):
                session.run("?", max_rounds=0)
            with pytest.raises(ConfigError, match="on_error"):
                session.run("?", on_error="ignore")  # type: ignore[arg-type]
            assert session.messages == []


def test_async_tools_are_awaited_together() -> None:
    started: list[str] = []
    both = asyncio.Event()

    async def meet(name: str) -> str:
        """Wait for the other."""
        started.append(name)
        if len(started) == 2:
            both.set()
        await asyncio.wait_for(both.wait(), 5)
        return name

    def here(n: int) -> int:
        """Run in a thread."""
        assert threading.current_thread() is not threading.main_thread()
        return n

    calls = call("meet", name="a") + call("meet", name="b") + call("here", n=3)
    with Model(engine_of(calls, "done")) as model, model.session(tools=[meet, here]) as session:
        reply = asyncio.run(session.arun("?"))
        assert reply.text == "done"
        assert [message.content for message in session.messages if message.role == "tool"] == ["a", "b", "3"]


def test_errors_in_async_tools() -> None:
    async def fail() -> str:
        """Fail."""
        raise ValueError("no")

    with Model(engine_of(call("fail"), "done")) as model, model.session(tools=[fail]) as session:
        asyncio.run(session.arun("?"))
        assert tool_results(session.messages) == [{"error": "fail failed: ValueError: no"}]
    with (
        Model(FakeEngine(call("wait", seconds=0))) as model,
        model.session(tools=[wait]) as session,
        pytest.raises(ToolError, match="after 1 rounds"),
    ):
        asyncio.run(session.arun("?", max_rounds=1))


def test_a_cancelled_task_cancels_the_reply() -> None:
    begun = threading.Event()

    def slow(tokens: Any) -> None:
        begun.set()
        threading.Event().wait(0.01)

    async def main(session: Any) -> None:
        task = asyncio.create_task(session.arun("?"))
        await asyncio.to_thread(begun.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with Model(FakeEngine("x" * 3000, on_append=slow)) as model, model.session(tools=[divide]) as session:
        asyncio.run(main(session))
        session._engine.on_append = lambda tokens: None  # type: ignore[attr-defined]
        session._engine.script = lambda prompt: "ok"  # type: ignore[attr-defined]
        assert session.send("again").text == "ok"
