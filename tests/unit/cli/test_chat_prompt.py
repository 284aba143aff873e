"""The editor, fed with keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from qwen_edge.cli.chat.commands import COMMANDS
from qwen_edge.cli.chat.prompt import CommandCompleter, PromptReader

Read = Callable[..., str | None]

ENTER, ALT_ENTER, CTRL_C, CTRL_D, UP = "\r", "\x1b\r", "\x03", "\x04", "\x1b[A"
PASTE, END_OF_PASTE = "\x1b[200~", "\x1b[201~"


@pytest.fixture
def keys() -> Iterator[PipeInput]:
    with create_pipe_input() as source, create_app_session(input=source, output=DummyOutput()):
        yield source


@pytest.fixture
def read(keys: PipeInput) -> Read:
    def answer(typed: str, *, draft: str = "", history: Path | None = None) -> str | None:
        keys.send_text(typed)
        return PromptReader(history, source=keys, output=DummyOutput()).read(draft)

    return answer


@pytest.mark.parametrize(
    ("typed", "turn"),
    [
        (f"one{ENTER}", "one"),
        (f"one{ALT_ENTER}two{ENTER}", "one\ntwo"),
        (f"one\\{ENTER}two{ENTER}", "one\ntwo"),
        (f'"""one{ENTER}two\\{ENTER}"""{ENTER}', "one\ntwo\\"),
        (f'/system """{ENTER}one{ENTER}two{ENTER}"""{ENTER}', "/system one\ntwo"),
        (f"{PASTE}one \\\n  two\n{END_OF_PASTE}{ENTER}", "one \\\n  two"),
        (f"dropped{CTRL_C}kept{ENTER}", "kept"),
        (CTRL_D, None),
    ],
)
def test_keys(typed: str, turn: str | None, read: Read) -> None:
    assert read(typed) == turn


def test_a_draft_can_be_changed_and_is_dropped_by_ctrl_c(read: Read) -> None:
    assert read(f" more{ENTER}", draft="too long") == "too long more"
    assert read(f"{CTRL_C}new{ENTER}", draft="too long") == "new"


def test_what_was_typed_comes_back_with_the_arrow(read: Read, tmp_path: Path) -> None:
    path = tmp_path / "history" / "chat"
    assert read(f"first\\{ENTER}second{ENTER}", history=path) == "first\nsecond"
    assert read(f"{UP}{ENTER}", history=path) == "first\nsecond"
    assert not list(tmp_path.glob("*.part"))


def test_a_history_that_cannot_be_kept_is_told_once(
    keys: PipeInput, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "history").write_text("")
    reader = PromptReader(tmp_path / "history" / "chat", source=keys, output=DummyOutput())
    for _ in range(2):
        keys.send_text(f"one{ENTER}")
        assert reader.read() == "one"
    assert capsys.readouterr().err.count("is not kept for the next time") == 1


def completions(text: str) -> list[str]:
    return [each.text for each in CommandCompleter().get_completions(Document(text), CompleteEvent())]


def test_commands_and_their_paths_are_completed(tmp_path: Path) -> None:
    assert completions("/") == [f"/{command.name}" for command in COMMANDS]
    assert completions("/s") == ["/system", "/stats", "/save"]
    (tmp_path / "mine.session").write_text("")
    assert completions(f"/load {tmp_path}/mi") == ["ne.session"]
    assert completions("/system mi") == completions("Hi /s") == completions("/s\n/s") == []
