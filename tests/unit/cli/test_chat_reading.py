"""Turns out of lines, and the file of what was typed."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.cli.chat.history_file import BoundedHistory
from qwen_edge.cli.chat.reading import LineReader, is_open, unquoted
from qwen_edge.errors import ConfigError


def turns_of(text: str | bytes, *, is_terminal: bool = False) -> list[str]:
    data = text if isinstance(text, bytes) else text.encode()
    reader = LineReader(io.BytesIO(data), is_terminal=is_terminal)
    turns = []
    while (turn := reader.read()) is not None:
        turns.append(turn)
    return turns


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        ("one\ntwo\n", ["one", "two"]),
        ("one\r\n\ntwo", ["one", "", "two"]),
        ("one\\\ntwo\\\nthree\nfour\n", ["one\ntwo\nthree", "four"]),
        ("one\\", ["one"]),
        ('"""\none\ntwo\\\n\n"""\nthree\n', ["one\ntwo\\\n", "three"]),
        ('"""one\ntwo"""\n', ["one\ntwo"]),
        ('"""one"""\n', ["one"]),
        ('/system """\nBe brief.\nBe kind.\n"""\nHi\n', ["/system Be brief.\nBe kind.", "Hi"]),
        ('say """this"""\n', ['say """this"""']),
        ('"""Docstring."""; x = 1\n', ['"""Docstring."""; x = 1']),
        ('"""\nnever closed\n', ["never closed"]),
        ("", []),
    ],
)
def test_turns(text: str, turns: list[str]) -> None:
    assert turns_of(text) == turns


def test_a_block_that_the_input_cuts_off_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    turns_of('"""\nnever closed\n')
    assert "ended inside" in capsys.readouterr().err


def test_a_line_that_is_no_text_is_named() -> None:
    with pytest.raises(ConfigError, match="line 2 of the input is not UTF-8: byte 0xe4 at 1"):
        turns_of(b"one\nt\xe4o\n")


def test_a_terminal_that_can_do_nothing_has_a_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    assert turns_of("one\\\ntwo\n", is_terminal=True) == ["one\ntwo"]
    assert capsys.readouterr() == ("", "> . > \n")


class Interrupted(io.BytesIO):
    """Ctrl-C at the second line."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.n_calls = 0

    def readline(self, size: int | None = -1, /) -> bytes:
        self.n_calls += 1
        line = super().readline(size)
        if self.n_calls == 2:
            raise KeyboardInterrupt
        return line


def test_ctrl_c_drops_what_was_typed(capsys: pytest.CaptureFixture[str]) -> None:
    reader = LineReader(Interrupted(b"one\\\ntwo\nthree\n"), is_terminal=True)
    assert reader.read() == "three"
    assert "Ctrl-D or /exit leaves" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        LineReader(Interrupted(b"one\\\ntwo\n"), is_terminal=False).read()


@given(st.text())
def test_any_text_in_a_block_comes_through(text: str) -> None:
    if '"""' in text or text.endswith('"'):
        return
    block = f'"""\n{text}\n"""'
    assert not is_open(block)
    assert unquoted(block) == text


@given(st.binary(max_size=200))
def test_any_input_is_turns_or_our_own_error(data: bytes) -> None:
    try:
        turns = turns_of(data)
    except ConfigError:
        return
    assert all(isinstance(turn, str) for turn in turns)


# --- history


def stored(path: Path) -> list[str]:
    return list(BoundedHistory(path).load_history_strings())


def test_history_is_private_and_keeps_entries_of_several_lines(tmp_path: Path) -> None:
    path = tmp_path / "new" / "chat"
    history = BoundedHistory(path)
    history.store_string("one\ntwo")
    history.store_string("+three ä")
    assert stored(path) == ["+three ä", "one\ntwo"]
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    BoundedHistory(path)
    assert path.stat().st_mode & 0o777 == 0o600


def test_history_stays_small(tmp_path: Path) -> None:
    path = tmp_path / "chat"
    history = BoundedHistory(path, max_bytes=1000)
    for number in range(200):
        history.store_string(f"entry {number}")
        assert path.stat().st_size <= 1000
    history.store_string("x" * 300)  # more than a quarter
    assert stored(path)[0] == "entry 199"
    assert path.stat().st_mode & 0o777 == 0o600
    BoundedHistory(path, max_entries=10)
    assert stored(path) == [f"entry {number}" for number in range(199, 194, -1)]


@pytest.mark.parametrize("spoiled", ["folder in its place", "file in place of its folder"])
def test_a_history_that_cannot_be_used_costs_nothing(tmp_path: Path, spoiled: str) -> None:
    path = tmp_path / "history" / "chat"
    if spoiled == "folder in its place":
        path.mkdir(parents=True)
    else:
        path.parent.write_text("")
    history = BoundedHistory(path)
    assert str(path) in history.problem
    history.append_string("one")
    assert list(history.load_history_strings()) == []


def test_a_history_that_disappears_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "history" / "chat"
    history = BoundedHistory(path)
    path.unlink()
    path.parent.rmdir()
    history.store_string("one")
    assert history.problem
