"""Every slash command, used rightly and wrongly, on an engine without a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.cli.chat.commands import BY_NAME, COMMANDS, Typed, parse, run_command
from qwen_edge.cli.chat.conversation import Conversation
from qwen_edge.cli.chat.entry import talk
from qwen_edge.cli.chat.screen import JsonScreen, TextScreen
from qwen_edge.cli.options import GenerationOptions
from qwen_edge.config import LoadConfig, ThinkingLike, thinking_config
from qwen_edge.engines.fake import TEMPLATE, FakeEngine
from qwen_edge.errors import ConfigError, ContextOverflowError, FormatError, ToolError, UnsupportedError
from qwen_edge.model import Model

Capture = pytest.CaptureFixture[str]
Start = Callable[..., Conversation]

TOOLS = '''
"""Tools for a test."""
from __future__ import annotations
import asyncio, dataclasses

@dataclasses.dataclass
class Place:
    city: str

def get_weather(city: str) -> dict[str, object]:
    """Current weather of a city."""
    print("looking out of the window")
    return {"city": city, "temp": 21}

def divide(a: int, b: int) -> float:
    """Divide."""
    return a / b

async def wait(seconds: float) -> str:
    """Wait."""
    await asyncio.sleep(seconds)
    return "waited"

def visit(place: Place) -> str:
    """Go there."""
    return f"went to {place.city}"

def stop() -> None:
    """As if somebody pressed Ctrl-C while it runs."""
    raise KeyboardInterrupt

def _helper(a): return a
'''


def call(name: str, /, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


class Lines:
    """Turns that were typed beforehand; remembers the drafts that were handed back."""

    def __init__(self, *turns: str) -> None:
        self.turns = list(turns)
        self.drafts: list[str] = []

    def read(self, draft: str = "") -> str | None:
        self.drafts.append(draft)
        return self.turns.pop(0) if self.turns else None


@pytest.fixture
def start() -> Iterator[Start]:
    models = []

    def begin(
        *replies: str,
        screen: Any = None,
        engine: FakeEngine | None = None,
        thinking: Any = None,
        **config: Any,
    ) -> Conversation:
        remaining = list(replies)
        load = LoadConfig(**config)
        if engine is None:
            engine = FakeEngine(lambda prompt: remaining.pop(0) if remaining else "Hello.", config=load)
        model = Model(engine)
        models.append(model)
        options = GenerationOptions(load, thinking, None, None, None, None, None)
        return Conversation(model, model.session(), screen or TextScreen(), options)

    yield begin
    for model in models:
        model.close()


@pytest.fixture
def tools_file(tmp_path: Path) -> Path:
    path = tmp_path / "tools.py"
    path.write_text(TOOLS)
    return path


def do(conversation: Conversation, *turns: str) -> Lines:
    lines = Lines(*turns)
    talk(conversation, lines, is_interactive=True)
    return lines


def contents(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in conversation.session.messages]


# --- what a turn is


@pytest.mark.parametrize(
    ("text", "turn"),
    [
        ("Hi /think", "Hi /think"),
        ("/new", Typed("new", "")),
        ("/NEW ", Typed("new", "")),
        ("/", Typed("", "")),
        ("/system Be brief.\nBe kind.", Typed("system", "Be brief.\nBe kind.")),
        ("/think about it", Typed("think", "about it")),
        ("//think about it", "/think about it"),
        ("/etc/hosts holds what?", "/etc/hosts holds what?"),
        ("/3 of it", "/3 of it"),
    ],
)
def test_what_is_a_command(text: str, turn: object) -> None:
    assert parse(text) == turn


@given(st.text())
def test_two_slashes_are_always_text(text: str) -> None:
    assert parse("//" + text) == "/" + text


@given(st.text())
def test_parsing_takes_any_text(text: str) -> None:
    turn = parse(text)
    assert isinstance(turn, Typed) or turn in (text, text[1:])


def test_every_command_is_in_the_help(start: Start, capsys: Capture) -> None:
    do(start(), "/help")
    shown = capsys.readouterr()
    assert shown.out == ""
    for command in COMMANDS:
        assert command.usage in shown.err
        assert command.summary in shown.err


def test_names_are_used_once() -> None:
    assert len(BY_NAME) == sum(1 + len(command.aliases) for command in COMMANDS)


@pytest.mark.parametrize(("typed", "near"), [("sysem", "/system"), ("relod", "/load"), ("hist", "/history")])
def test_the_nearest_command_is_offered(typed: str, near: str, start: Start) -> None:
    with pytest.raises(ConfigError, match=f"no command /{typed}. Did you mean {near}") as raised:
        run_command(start(), Typed(typed, ""))
    assert "//like this" in str(raised.value)


def test_an_unknown_command_is_not_said_to_the_model(start: Start, capsys: Capture) -> None:
    conversation = start()
    do(conversation, "/xyzzy", "/xyzzy and more")
    assert conversation.session.messages == []
    assert "there is no command /xyzzy.\n" in capsys.readouterr().err


@pytest.mark.parametrize("command", [command for command in COMMANDS if not command.argument])
def test_what_stands_behind_a_command_that_takes_nothing_is_refused(command: Any, start: Start) -> None:
    conversation = start()
    with pytest.raises(ConfigError, match=f"/{command.name} takes nothing behind it"):
        run_command(conversation, Typed(command.name, "please"))
    assert not conversation.is_over


@pytest.mark.parametrize("name", ["save", "load"])
def test_a_file_is_needed(name: str, start: Start) -> None:
    with pytest.raises(ConfigError, match=f"/{name} needs FILE"):
        run_command(start(), Typed(name, ""))


# --- commands one by one


@pytest.mark.parametrize("name", ["exit", "quit", "bye"])
def test_exit_leaves(name: str, start: Start) -> None:
    lines = do(start(), f"/{name}", "Hi")
    assert lines.turns == ["Hi"]


def test_new_keeps_the_system_message(start: Start, capsys: Capture) -> None:
    conversation = start()
    do(conversation, "/system Be brief.", "Hi", "/new")
    assert contents(conversation) == [("system", "Be brief.")]
    assert "a new conversation with the same system message" in capsys.readouterr().err


def test_system_shows_sets_and_takes_out(start: Start, capsys: Capture) -> None:
    conversation = start()
    do(conversation, "/system", "/system Be brief.", "/system")
    shown = capsys.readouterr().err
    assert "no system message" in shown
    assert "the system message is set\n" in shown
    assert shown.endswith("Be brief.\n\n")
    do(conversation, "Hi", "/system Be kind.")
    assert "the conversation so far (1 turn) stays and is read anew" in capsys.readouterr().err
    assert contents(conversation)[:2] == [("system", "Be kind."), ("user", "Hi")]
    do(conversation, "/system off")
    assert conversation.session.system is None


@pytest.mark.parametrize(
    ("typed", "thinking", "said"),
    [
        ("/think", "on", "thinks before each answer from now on\n"),
        ("/think 12", 12, "for at most 12 tokens"),
        ("/think 0", 0, "answers at once"),
        ("/think off", "off", "answers at once"),
        ("/no_think", "off", "answers at once"),
        ("/think auto", "auto", "as it is used to"),
    ],
)
def test_think_holds_for_the_turns_that_follow(
    typed: str, thinking: ThinkingLike, said: str, start: Start, capsys: Capture
) -> None:
    conversation = start()
    do(conversation, typed)
    assert conversation.thinking == thinking_config(thinking)
    assert said in capsys.readouterr().err
    prompts: list[str] = []

    def answer(prompt: str) -> str:
        prompts.append(prompt)
        return "Hello."

    assert isinstance(conversation.model.engine, FakeEngine)
    conversation.model.engine.script = answer
    do(conversation, "Hi", "And?")
    is_off = thinking in ("off", 0)
    assert [prompt.endswith("<think>\n\n</think>\n\n") for prompt in prompts] == [is_off, is_off]


def test_think_takes_no_words(start: Start) -> None:
    with pytest.raises(ConfigError, match=r"a number of tokens \(not 'about it'"):
        run_command(start(), Typed("think", "about it"))


def test_a_model_that_does_not_think_says_so(start: Start, capsys: Capture) -> None:
    never = TEMPLATE.replace("enable_thinking", "nothing")
    conversation = start(engine=FakeEngine("Hello.", chat_template=never))
    with pytest.raises(UnsupportedError, match="does not think"):
        run_command(conversation, Typed("think", ""))
    do(conversation, "/no_think", "Hi /think", "/think auto")
    shown = capsys.readouterr()
    assert shown.out == "Hello.\n"
    assert shown.err.count("answers at once") == 2
    assert "/think in a message is no switch for this model" in shown.err


def test_a_model_that_always_thinks_is_offered_a_budget(start: Start) -> None:
    always = (
        TEMPLATE.replace("enable_thinking", "nothing") + "{% if add_generation_prompt %}<think>\n{% endif %}"
    )
    conversation = start(engine=FakeEngine("Well.</think>Hello.", chat_template=always))
    with pytest.raises(UnsupportedError, match="--thinking 0"):
        run_command(conversation, Typed("no_think", ""))


@pytest.mark.parametrize(
    ("command", "message", "said"),
    [
        (
            "/think auto",
            "Hi /no_think",
            "(/no_think in a message holds until a later message says otherwise)",
        ),
        ("/think", "Hi /no_think", "changes nothing while thinking is set to on: /think auto lets it"),
        ("/no_think", "Hi /think", "changes nothing while thinking is set to off"),
        ("/think", "Hi /think", ""),
        ("/think", "Hi", ""),
    ],
)
def test_a_switch_in_a_message_is_explained(
    command: str, message: str, said: str, start: Start, capsys: Capture
) -> None:
    conversation = start()
    do(conversation, command)
    capsys.readouterr()
    do(conversation, message)
    shown = capsys.readouterr().err
    assert said in shown
    assert bool(said) == bool(shown.strip())
    assert conversation.session.messages[0].content == message  # what was typed reaches the model


def test_stats_count_answers_context_and_memory(start: Start, capsys: Capture) -> None:
    conversation = start(n_ctx=1000)
    do(conversation, "/stats")
    shown = capsys.readouterr().err
    assert "last answer: none yet" in shown
    assert "context:     0 of 1000 tokens used (0%)" in shown
    do(conversation, "Hi", "Hi", "/stats")
    shown = capsys.readouterr().err
    used = conversation.used_tokens()
    assert "all answers: 2, 14 tokens" in shown
    assert f"context:     {used} of 1000 tokens used ({used / 1000:.0%})" in shown
    assert "MB now" in shown


def test_undo_says_what_it_took_back(start: Start, capsys: Capture) -> None:
    conversation = start()
    do(conversation, "/undo")
    assert "nothing was said yet" in capsys.readouterr().err
    do(conversation, "One", "Two " + "x" * 100, "/undo")
    assert "taken back: 'Two xxx" in (shown := capsys.readouterr().err)
    assert "…' and what followed; 1 turn left" in shown
    assert contents(conversation) == [("user", "One"), ("assistant", "Hello.")]


def test_retry_answers_anew(start: Start, capsys: Capture) -> None:
    conversation = start("First.", "Second.")
    do(conversation, "/retry")
    assert "nothing was said yet" in capsys.readouterr().err
    do(conversation, "Hi", "/retry")
    assert contents(conversation) == [("user", "Hi"), ("assistant", "Second.")]
    assert capsys.readouterr().out == "First.\nSecond.\n"


def test_a_retry_that_fails_leaves_the_answer(start: Start) -> None:
    conversation = start()
    do(conversation, "Hi")
    before = contents(conversation)

    def interrupt(tokens: object) -> None:
        raise KeyboardInterrupt

    conversation.model.engine.on_append = interrupt  # type: ignore[attr-defined]
    conversation.session.system = "Be brief."  # so that something is to be evaluated
    do(conversation, "/retry")
    assert contents(conversation)[1:] == before


def test_history_shows_who_said_what(start: Start, capsys: Capture) -> None:
    conversation = start("<think>\nWell.\n</think>\n\nHello,\nyou.")
    do(conversation, "/history")
    assert "nothing was said yet" in capsys.readouterr().err
    do(conversation, "/system Be brief.", "/think", "Hi", "/show")
    shown = capsys.readouterr().err
    assert "system: Be brief.\nyou: Hi\nmodel: (a thought of" in shown
    assert "\n  Hello,\n  you.\n" in shown


# --- tools


def test_tools_are_shown_called_and_taken_away(start: Start, tools_file: Path, capsys: Capture) -> None:
    conversation = start("Hello.", call("get_weather", city="Vienna"), "21 degrees.")
    do(conversation, "/tools", "Hi", f"/tools {tools_file}")
    shown = capsys.readouterr()
    assert "no tools. /tools FILE.py" in shown.err
    assert "get_weather(city)  Current weather of a city." in shown.err
    assert "_helper" not in shown.err
    do(conversation, "Weather in Vienna?")
    shown = capsys.readouterr()
    assert shown.out == "21 degrees.\n"
    assert 'calls get_weather(city="Vienna")' in shown.err
    assert '= {"city": "Vienna", "temp": 21}' in shown.err
    assert "looking out of the window" in shown.err  # what a tool prints is no part of the answer
    assert [role for role, _ in contents(conversation)] == [
        "user", "assistant", "user", "assistant", "tool", "assistant",
    ]  # fmt: skip
    do(conversation, "/new", "/tools off", "/tools")
    assert "with the same tools" in (shown := capsys.readouterr().err)
    assert "no tools from now on" in shown
    assert conversation.session.tools == ()


@pytest.mark.parametrize(
    ("request_", "result"),
    [
        (call("divide", a=1, b=0), "ZeroDivisionError"),
        (call("divide", a="many", b=2), "wrong arguments"),
        (call("wait", seconds=0.0), "waited"),
        (call("visit", place={"city": "Rome"}), "went to Rome"),
    ],
)
def test_what_a_tool_says_or_fails_with_is_shown_and_told(
    request_: str,
    result: str,
    start: Start,
    tools_file: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    conversation = start(request_, "I see.")
    conversation.set_tools(tools_file)
    conversation.session.constrained_calls = False
    do(conversation, "Go.")
    assert result in capsys.readouterr().err
    assert result in conversation.session.messages[2].content
    assert conversation.session.messages[-1].content == "I see."


def test_ctrl_c_in_a_tool_leaves_a_whole_conversation(
    start: Start, tools_file: Path, capsys: Capture
) -> None:
    conversation = start(call("stop"), "I see.")
    conversation.set_tools(tools_file)
    do(conversation, "Stop.", "And?")
    assert "(stopped)" in capsys.readouterr().err
    assert [role for role, _ in contents(conversation)] == ["user", "assistant", "tool", "user", "assistant"]
    assert "interrupted by the user" in contents(conversation)[2][1]


def test_calls_without_end_are_ended(start: Start, tools_file: Path, capsys: Capture) -> None:
    conversation = start(*[call("divide", a=1, b=1)] * 7)
    conversation.set_tools(tools_file)
    do(conversation, "Go.")
    assert "more calls after 5 rounds" in capsys.readouterr().err
    assert "not called" in contents(conversation)[-1][1]


def test_an_overflow_in_the_middle_of_calls_takes_the_turn_back(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "tools.py"
    path.write_text("def read() -> str:\n    'Read it.'\n    return 'x' * 5000\n")
    conversation = start("Hello.", call("read"), n_ctx=1500)
    conversation.set_tools(path)
    do(conversation, "Hi")
    before = contents(conversation)
    lines = do(conversation, "Read it.")
    assert contents(conversation) == before
    assert lines.drafts == ["", "Read it."]


def test_json_tells_the_calls_that_were_made(start: Start, tools_file: Path, capsys: Capture) -> None:
    conversation = start(call("divide", a=6, b=3), "2.", "Bye.", screen=JsonScreen())
    conversation.set_tools(tools_file)
    do(conversation, "6 / 3?", "Bye")
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["text"] == "2."
    assert first["calls_made"] == [{"name": "divide", "arguments": {"a": 6, "b": 3}, "result": "2.0"}]
    assert "calls_made" not in second


@pytest.mark.parametrize(
    ("source", "error", "said"),
    [
        (None, ToolError, "cannot be read"),
        ("def f(:", ToolError, r"tools\.py, line 1 does not run: SyntaxError"),
        ("\n\nprint(unknown)", ToolError, r"tools\.py, line 3 does not run: NameError"),
        ("import sys; sys.exit(3)", ToolError, "SystemExit"),
        ("x = 1", ConfigError, "defines no function"),
        ("import os\nfrom math import sqrt", ConfigError, "defines no function"),
        ("def f(a): pass", ConfigError, "begins with _"),
        ("__all__ = ['g']\ndef f(): pass", ConfigError, "defines no function"),
    ],
)
def test_a_file_that_has_no_tools_is_refused_and_changes_nothing(
    source: str | None, error: type[Exception], said: str, start: Start, tmp_path: Path
) -> None:
    path = tmp_path / "tools.py"
    if source is not None:
        path.write_text(source)
    conversation = start()
    do(conversation, "Hi")
    session = conversation.session
    with pytest.raises(error, match=said):
        run_command(conversation, Typed("tools", str(path)))
    assert conversation.session is session
    assert not list(tmp_path.glob("__pycache__"))


def test_a_template_without_tools_is_told(start: Start, tools_file: Path) -> None:
    conversation = start(engine=FakeEngine("Hi", chat_template=TEMPLATE.replace("tools", "nothing")))
    with pytest.raises(UnsupportedError, match="no place for tools"):
        conversation.set_tools(tools_file)


# --- files


def test_save_and_load_bring_the_conversation_back(start: Start, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "a b.session"
    conversation = start()
    do(conversation, "Hi", "How are you?", f"/save {path}", "/new", f"/load {path}")
    shown = capsys.readouterr().err
    assert f"saved 2 turns to {path}" in shown
    assert f"restored 2 turns from {path}. It goes on where it was" in shown
    assert "last, the model: Hello." in shown
    assert [content for _, content in contents(conversation)] == ["Hi", "Hello.", "How are you?", "Hello."]
    do(conversation, "/stats")
    assert "last answer: none yet" in capsys.readouterr().err


def test_save_leaves_other_files_alone(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Dear Anna")
    with pytest.raises(ConfigError, match="no saved conversation"):
        run_command(start(), Typed("save", str(path)))
    assert path.read_text() == "Dear Anna"


def test_a_save_that_fails_is_told(start: Start, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").write_text("")
    conversation = start()
    do(conversation, "Hi", f"/save {tmp_path}/file/x", f"/load {tmp_path}/absent", f"/load {tmp_path}/file")
    shown = capsys.readouterr().err
    assert shown.count("error: ") == 3
    assert len(conversation.session.messages) == 2


class OtherWeights(FakeEngine):
    def __init__(self, weights: str) -> None:
        super().__init__("Hello.")
        self.weights = weights

    def state_identity(self) -> dict[str, Any]:
        return {**super().state_identity(), "weights": self.weights}


def test_a_conversation_with_another_model_is_refused(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "a.session"
    do(start(engine=OtherWeights("a")), "Hi", f"/save {path}")
    conversation = start(engine=OtherWeights("b"))
    session = conversation.session
    with pytest.raises(UnsupportedError, match="another model file than this one") as raised:
        run_command(conversation, Typed("load", str(path)))
    assert "qwen-edge chat MODEL --load" in str(raised.value)
    assert conversation.session is session


def test_a_damaged_file_is_refused(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "a.session"
    conversation = start()
    do(conversation, "Hi", f"/save {path}")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(FormatError):
        run_command(conversation, Typed("load", str(path)))
    assert len(conversation.session.messages) == 2


def test_what_makes_the_saved_cache_useless_is_said(start: Start, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "a.session"
    do(start(), "Hi", f"/save {path}")
    other = start()
    other.model.engine.state_magic = 2  # type: ignore[attr-defined]
    do(other, f"/load {path}")
    assert (
        "read anew with the next message, since it was saved with another state_magic"
        in capsys.readouterr().err
    )


def test_tools_of_a_saved_conversation_find_their_functions(
    start: Start, tools_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "a.session"
    conversation = start()
    conversation.set_tools(tools_file)
    do(conversation, "Hi", f"/save {path}", "/new", f"/load {path}")
    assert conversation.session.functions
    without = start(call("divide", a=6, b=3), "6 / 3 is 2.")
    capsys.readouterr()
    do(without, f"/load {path}", "/tools")
    assert "have no functions here: /tools FILE.py brings them" in capsys.readouterr().err
    do(without, f"/tools {tools_file}", "6 / 3?")
    assert contents(without)[-1] == ("assistant", "6 / 3 is 2.")


# --- the context


def test_a_message_that_does_not_fit_is_handed_back(start: Start, capsys: Capture) -> None:
    conversation = start(n_ctx=200)
    do(conversation, "Hi")
    before = contents(conversation)
    long = "word " * 60
    lines = do(conversation, long, "Short.")
    assert lines.drafts == ["", long, ""]
    assert contents(conversation)[: len(before)] == before
    assert contents(conversation)[-2][1] == "Short."
    assert "/new begins a new conversation, /undo" in capsys.readouterr().err


def test_a_context_that_fills_up_is_said_once(start: Start, capsys: Capture) -> None:
    conversation = start(n_ctx=300)
    do(conversation, "x" * 240, "y", "/undo", "/undo", "z")
    shown = capsys.readouterr().err
    assert shown.count("the context is nearly full") == 1
    do(conversation, "x" * 240)
    assert capsys.readouterr().err.count("the context is nearly full") == 1


def test_without_a_person_a_failing_answer_ends_it(start: Start) -> None:
    def fail(tokens: object) -> None:
        raise UnsupportedError("no such thing")

    conversation = start(engine=FakeEngine("Hi", on_append=fail))
    with pytest.raises(UnsupportedError):
        talk(conversation, Lines("/xyzzy", "Hi"), is_interactive=False)
    with pytest.raises(ContextOverflowError):
        conversation.say("x" * 10_000)


def test_answers_that_nobody_reads_end_it(start: Start) -> None:
    def vanish(tokens: object) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        do(start(engine=FakeEngine("Hi", on_append=vanish)), "Hi", "Hi")


def test_a_mode_the_model_has_not_is_refused_at_the_start(start: Start) -> None:
    never = TEMPLATE.replace("enable_thinking", "nothing")
    with pytest.raises(UnsupportedError):
        start(engine=FakeEngine("Hi", chat_template=never), thinking="on")
