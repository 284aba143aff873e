from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_edge import Session, StateRebuiltWarning
from qwen_edge.config import LoadConfig
from qwen_edge.engines.base import Engine
from qwen_edge.engines.fake import TEMPLATE, FakeEngine
from qwen_edge.errors import FormatError, UnsupportedError
from qwen_edge.model import Model
from qwen_edge.state_file import read_state_file, write_state_file
from qwen_edge.types import Message, ToolCall

TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "array"}}}},
}


def saved(path: Path) -> list[Message]:
    """Save a session of a tool call and return its messages."""
    call = '<tool_call>\n{"name": "add", "arguments": {"a": [1, "ü"]}}\n</tool_call>'
    with Model(FakeEngine("<think>\nhm\n</think>\n\nYes." + call)) as model:
        session = model.session(system="Be brief.", tools=[TOOL])
        session.send("Hi")
        session.save(path)
        return session.messages


def test_a_restored_session_goes_on_without_evaluating_again(tmp_path: Path) -> None:
    messages = saved(tmp_path / "a.session")
    assert messages[-1].tool_calls == (ToolCall("add", {"a": [1, "ü"]}),)
    engine = FakeEngine("ok")
    with Model(engine) as model, model.restore_session(tmp_path / "a.session") as session:
        assert (session.messages, session.tools, session.rebuilt_because) == (messages, (TOOL,), "")
        n_past = engine.contexts[0].n_past
        assert n_past > 0
        reply = session.send(Message("tool", "3"))
        assert engine.contexts[0].evaluated_tokens < reply.stats.prompt_tokens - reply.stats.cached_tokens + 4
        assert reply.stats.cached_tokens > 0
    with Model(FakeEngine("ok")) as model:
        assert Session.restore(model, tmp_path / "a.session", on_overflow="drop_oldest").messages == messages


def other_state_magic() -> FakeEngine:
    engine = FakeEngine("ok")
    engine.state_magic = 2
    return engine


def saves_nothing() -> FakeEngine:
    engine = FakeEngine("ok")
    engine.state_identity = lambda: None  # type: ignore[method-assign, assignment, return-value]
    return engine


@pytest.mark.parametrize(("engine", "reason"), [
    (lambda: FakeEngine("ok", chat_template=TEMPLATE + "{# other #}"), "template"),
    (other_state_magic, "state_magic"),
    (lambda: FakeEngine("ok", config=LoadConfig(n_ctx=64)), "holds"),
    (saves_nothing, "engine, format, state_magic, template"),
])  # fmt: skip
def test_what_has_changed_is_named_and_the_conversation_restored(
    engine: Callable[[], FakeEngine], reason: str, tmp_path: Path
) -> None:
    messages = saved(tmp_path / "a.session")
    with Model(engine()) as model:
        with pytest.warns(StateRebuiltWarning, match=reason):
            session = model.restore_session(tmp_path / "a.session")
        assert (session.messages, reason in session.rebuilt_because) == (messages, True)
        if session._cache is not None and session._cache.context.n_ctx > 64:
            reply = session.send(Message("tool", "3"))
            assert (reply.text, reply.stats.cached_tokens) == ("ok", 0)


def test_an_engine_that_saves_nothing_keeps_the_conversation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeEngine, "state_identity", Engine.state_identity)
    messages = saved(tmp_path / "a.session")
    with Model(FakeEngine("ok")) as model:
        assert model.restore_session(tmp_path / "a.session").messages == messages


def test_a_new_session_can_be_saved(tmp_path: Path) -> None:
    with Model(FakeEngine("ok")) as model:
        model.session(system="Be brief.").save(tmp_path / "a.session")
        assert model.restore_session(tmp_path / "a.session").send("Hi").text == "ok"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_anywhere_is_a_format_error(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "a.session"
    if not path.exists():
        saved(path)
    whole = bytearray(path.read_bytes())
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    damaged = tmp_path / "damaged.session"
    damaged.write_bytes(whole)
    with Model(FakeEngine("ok")) as model, pytest.raises(FormatError, match=r"damaged\.session"):
        model.restore_session(damaged)


@pytest.mark.parametrize("facts", [
    {},
    {"messages": 3, "tools": []},
    {"messages": [{"role": "user"}], "tools": []},
    {"messages": [{"role": "robot", "content": "", "thinking": ""}], "tools": []},
    {"messages": [{"role": "user", "content": 3, "thinking": ""}], "tools": []},
    {"messages": [{"role": "user", "content": "", "thinking": "", "tool_calls": [{}]}], "tools": []},
    {"messages": [], "tools": [3]},
    {"messages": [], "tools": "add"},
])  # fmt: skip
def test_a_whole_file_that_says_nonsense_is_a_format_error(facts: dict[str, Any], tmp_path: Path) -> None:
    write_state_file(tmp_path / "a.session", "session", facts, [])
    with Model(FakeEngine("ok")) as model, pytest.raises(FormatError, match="no saved session"):
        model.restore_session(tmp_path / "a.session")


def test_other_files_are_refused(tmp_path: Path) -> None:
    write_state_file(tmp_path / "a.prefix", "prefix", {}, [1])
    (tmp_path / "text").write_text("hello")
    with Model(FakeEngine("ok")) as model:
        for name in ("a.prefix", "text"):
            with pytest.raises(FormatError, match=name):
                model.restore_session(tmp_path / name)
        with pytest.raises(FileNotFoundError):
            model.restore_session(tmp_path / "absent")


def test_saving_replaces_the_file_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = saved(tmp_path / "a.session")

    def full(*args: object) -> None:
        raise OSError("no space left on device")

    with Model(FakeEngine("ok")) as model, model.session() as session:
        session.send("Hi")
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", full)
            with pytest.raises(OSError, match="no space"):
                session.save(tmp_path / "a.session")
        assert model.restore_session(tmp_path / "a.session").messages == messages
        assert [path.name for path in tmp_path.iterdir()] == ["a.session"]
        session.save(tmp_path / "a.session")
        assert model.restore_session(tmp_path / "a.session").messages == session.messages


def test_interrupted_evaluations_are_not_saved(tmp_path: Path) -> None:
    """Ctrl-C can strike between an evaluation and its record: tokens and KV cache are cut to what both have."""
    with Model(FakeEngine("ok")) as model, model.session() as session:
        session.send("Hi")
        cache = session._idle_cache()
        cache.context.append([1, 2, 3])
        session.save(tmp_path / "a.session")
        content = read_state_file(tmp_path / "a.session", "session")
        assert 4 * (len(content.tokens) + 1) == len(content.state)
        assert model.restore_session(tmp_path / "a.session").rebuilt_because == ""


def test_tools_that_the_template_has_no_place_for(tmp_path: Path) -> None:
    saved(tmp_path / "a.session")
    with (
        Model(FakeEngine("ok", chat_template="{{ messages[-1].content }}")) as model,
        pytest.raises(UnsupportedError, match="no place for tools"),
    ):
        model.restore_session(tmp_path / "a.session")
