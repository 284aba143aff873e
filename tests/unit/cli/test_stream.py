"""What a reply looks like while it comes."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from typing import Any

import pytest

from qwen_edge.cli.stream import show_stream, stats_line, tell
from qwen_edge.engines.fake import FakeEngine
from qwen_edge.model import Model

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
TOOL = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(reply: str, *, shows_calls: bool = True) -> None:
    with Model(FakeEngine(reply)) as model, model.session(tools=[TOOL], constrained_calls=False) as session:
        show_stream(session.stream("Hi", thinking="auto"), shows_calls=shows_calls)


@pytest.mark.parametrize(
    ("reply", "shows_calls", "out", "err"),
    [
        ("Hello.", True, "Hello.\n", ""),
        ("<think>\nOne.\n\nTwo.\n</think>\n\nHello.", True, "Hello.\n", "thinking: One.\n  \n  Two.\n\n"),
        (CALL, True, 'tool call: {"name": "add", "arguments": {"a": 1}}\n', ""),
        (CALL, False, "", ""),
        ("Wait." + CALL, False, "Wait.\n", ""),
    ],
)
def test_answers_go_to_stdout_and_thoughts_to_stderr(
    reply: str, shows_calls: bool, out: str, err: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shown(reply, shows_calls=shows_calls)
    captured = capsys.readouterr()
    assert captured.out == out
    assert [line.rstrip() for line in captured.err.split("\n")] == [line.rstrip() for line in err.split("\n")]


@pytest.mark.parametrize("no_colour", ["", "1"])
def test_a_thought_on_a_terminal_is_dimmed_where_that_is_wanted(
    no_colour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", no_colour)
    monkeypatch.delenv("CLICOLOR", raising=False)
    shown("<think>\n" + " ".join(f"word{number}" for number in range(30)) + "\n</think>\n\n\x1b[2JHello.")
    text = screen.getvalue()
    assert ("\x1b[2m" in text) == (not no_colour)
    assert "\x1b[2J" not in text  # a model cannot clear the screen
    plain = text.replace("\x1b[2m", "").replace("\x1b[0m", "")
    lines = plain.split("\n")
    assert lines[0].startswith("thinking: word")
    assert lines[1].startswith("  word")
    assert max(map(len, lines)) < 80
    assert plain.endswith("word29\n\n\ufffd[2JHello.\n")


def test_what_is_told_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("NO_COLOR", "1")
    tell("word " * 20)
    tell("word " * 20, is_dim=True)
    first, second, *again = screen.getvalue().removesuffix("\n").split("\n")
    assert (len(first) < 80, second.startswith("  word"), again) == (True, True, [first, second])


@pytest.mark.parametrize(
    ("figures", "told"),
    [
        ({}, ""),
        ({"speculation": "on"}, ""),
        ({"speculation": "on", "proposed_tokens": 40, "accepted_tokens": 31}, "31 of 40 guessed tokens came"),
        ({"speculation": "switched_off"}, "guessing paused: it lost time"),
    ],
)
def test_what_became_of_guesses_is_told(figures: dict[str, Any], told: str) -> None:
    with Model(FakeEngine("Hello.")) as model, model.session() as session:
        reply = session.send("Hi")
    line = stats_line(replace(reply, stats=replace(reply.stats, **figures)))
    assert ("guess" in line) == bool(told)
    assert line.endswith(told)
