"""The prompt of `run`, from all the places that it comes from."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.cli.prompt import _decoded, assemble_prompt
from qwen_edge.errors import ConfigError

Stdin = Callable[[bytes], None]


@pytest.fixture
def stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stdin]:
    """Return a function that puts bytes behind stdin; without a call there is the null device."""
    opened = []

    def put(data: bytes | None) -> None:
        path = Path(os.devnull)
        if data is not None:
            path = tmp_path / "stdin"
            path.write_bytes(data)
        opened.append(path.open(encoding="utf-8"))
        monkeypatch.setattr(sys, "stdin", opened[-1])

    put(None)
    yield put
    for file in opened:
        file.close()


def test_prompt_files_and_pipe_in_this_order(stdin: Stdin, tmp_path: Path) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "b.md"
    first.write_text("alpha\n\n")
    second.write_text("beta")
    stdin(b"gamma\n")
    assert assemble_prompt("Compare", [first, second]) == (
        "Compare\n\na.txt:\n\nalpha\n\nb.md:\n\nbeta\n\ngamma"
    )


@pytest.mark.parametrize("prompt", [None, "-"])
def test_the_pipe_alone(prompt: str | None, stdin: Stdin) -> None:
    stdin(b"\xef\xbb\xbfGr\xc3\xbc\xc3\x9fe\r\n")
    assert assemble_prompt(prompt, []) == "Grüße"


def test_nothing_piped_changes_nothing(stdin: Stdin) -> None:
    assert assemble_prompt("Hello", []) == "Hello"
    stdin(b"")
    assert assemble_prompt("Hello", []) == "Hello"


@pytest.mark.parametrize(
    ("prompt", "piped", "words"),
    [
        (None, None, "There is no prompt"),
        (None, b"", "is empty"),
        ("-", b" \n", "is empty"),
        ("  ", None, "is empty"),
    ],
)
def test_no_prompt_is_wrong_usage(prompt: str | None, piped: bytes | None, words: str, stdin: Stdin) -> None:
    if piped is not None:
        stdin(piped)
    with pytest.raises(click.UsageError, match=words):
        assemble_prompt(prompt, [])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"Gr\xfc\xdfe", r"notes.txt is not in UTF-8: byte 0xfc at offset 2 \(invalid start byte\)"),
        (b"caf\xc3", r"byte 0xc3 at offset 3 \(unexpected end of data\)"),
        (b"PK\x03\x04\0\0", "notes.txt is no text: a zero byte stands at offset 4"),
        ("Grüße".encode("utf-16"), "a zero byte"),
    ],
)
def test_other_bytes_are_refused_with_their_place(
    data: bytes, words: str, stdin: Stdin, tmp_path: Path
) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=words):
        assemble_prompt("Summarise", [path])
    stdin(data)
    with pytest.raises(ConfigError, match=words.replace("notes.txt", "stdin")):
        assemble_prompt(None, [])


def test_an_argument_of_other_bytes_is_refused(stdin: Stdin) -> None:
    with pytest.raises(ConfigError, match="PROMPT is not in UTF-8: byte 0xff at offset 1"):
        assemble_prompt(os.fsdecode(b"a\xff"), [])


@given(st.binary(max_size=64))
def test_any_bytes_are_text_or_an_error_of_ours(data: bytes) -> None:
    try:
        text = _decoded(data, "stdin")
    except ConfigError:
        return
    assert "\0" not in text
    assert data.decode().removeprefix("\ufeff").rstrip("\r\n") == text


def test_without_a_prompt_at_a_terminal() -> None:
    import pty

    parent, child = pty.openpty()
    try:
        result = subprocess.run(
            [sys.executable, "-m", "qwen_edge", "run", "x.gguf"],
            stdin=child,
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        os.close(parent)
        os.close(child)
    assert result.returncode == 2
    assert "There is no prompt." in result.stderr
