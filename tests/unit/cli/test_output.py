"""Colour, terminals, progress."""

from __future__ import annotations

import io
import sys

import pytest

from qwen_edge.cli import progress
from qwen_edge.cli.output import can_redraw, console_on, styled, wants_colour


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.mark.parametrize(
    ("stream", "variables", "colour"),
    [
        (Terminal(), {}, True),
        (io.StringIO(), {}, False),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (Terminal(), {"NO_COLOR": ""}, True),
        (Terminal(), {"TERM": "dumb"}, False),
        (Terminal(), {"CLICOLOR": "0"}, False),
        (io.StringIO(), {"CLICOLOR_FORCE": "1"}, True),
        (io.StringIO(), {"CLICOLOR_FORCE": "0"}, False),
        (io.StringIO(), {"CLICOLOR_FORCE": "1", "NO_COLOR": "1"}, False),
    ],
)
def test_who_gets_colour(
    stream: io.StringIO, variables: dict[str, str], colour: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert wants_colour(stream) == colour
    assert ("\x1b" in styled("text", stream, bold=True)) == colour
    stream.seek(0)
    stream.truncate()
    console_on(stream).print("[bold]text[/bold]")
    assert ("\x1b" in stream.getvalue()) == colour


def test_a_dumb_terminal_is_not_redrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_redraw(Terminal())
    monkeypatch.setenv("TERM", "dumb")
    assert not can_redraw(Terminal())


@pytest.mark.parametrize("show", [progress.byte_progress, progress.round_progress])
def test_progress_without_a_terminal_is_a_plain_line_now_and_then(
    show: type, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with show("Writing a.gguf") as update:
        for second in range(25):
            now = float(second)
            update(second * 1_000_000, 25_000_000)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("Writing a.gguf: ")
    assert [line.endswith(end) for line, end in zip(lines, ("(40%)", "(80%)"), strict=True)] == [True, True]


def test_progress_on_a_terminal_is_a_bar_that_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.byte_progress("Writing a.gguf") as update:
        update(1, 2)
    assert "Writing a.gguf" in terminal.getvalue()
    assert "\x1b" in terminal.getvalue()
