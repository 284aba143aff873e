"""Turns of a conversation out of lines: from a pipe, or a terminal that can do nothing but lines.

A line is a turn. One that ends with a backslash goes on with the next. Three quotes open a block, at the beginning of a
turn or behind a command (/system), and the next three close it.
"""

from __future__ import annotations

import re
from typing import BinaryIO, Protocol

import click

from qwen_edge.cli.stream import tell
from qwen_edge.errors import ConfigError

_QUOTES = '"""'
_OPENS_BLOCK = re.compile(r'(/[A-Za-z_]+\s+)?"""')


class Reader(Protocol):
    """Where the turns come from."""

    def read(self, draft: str = "") -> str | None:
        """Return the next turn, None at the end.

        Args:
            draft: What a person typed before and may change; readers of lines do without.
        """


def is_open(text: str) -> bool:
    """Return whether a turn has opened a block and not closed it."""
    opening = _OPENS_BLOCK.match(text)
    return opening is not None and _QUOTES not in text[opening.end() :]


def unquoted(text: str) -> str:
    r"""Return what a turn says: a block without its quotes and the line breaks beside them.

    Text that begins with quotes and goes on behind the closing ones (a Python file, say) stays as it is.

    Example:
        >>> unquoted('/system \"\"\"\nBe brief.\n\"\"\"')
        '/system Be brief.'
    """
    opening = _OPENS_BLOCK.match(text)
    if opening is None:
        return text.strip()
    inner, _, rest = text[opening.end() :].partition(_QUOTES)
    if rest.strip():
        return text.strip()
    inner = inner.removeprefix("\n").removesuffix("\n")
    return (opening[1] or "") + inner


class LineReader:
    """Reads turns from a stream of bytes."""

    def __init__(self, stream: BinaryIO, *, is_terminal: bool) -> None:
        """Begin.

        Args:
            stream: UTF-8, a line ends with a line feed.
            is_terminal: A person is at the other end: there is a prompt, and Ctrl-C drops what was typed.
        """
        self._stream = stream
        self._is_terminal = is_terminal
        self._n_lines = 0

    def read(self, draft: str = "") -> str | None:
        """See Reader.read.

        Raises:
            ConfigError: A line is not UTF-8.
            KeyboardInterrupt: Ctrl-C, where nobody is at the other end.
        """
        while True:
            try:
                return self._turn()
            except KeyboardInterrupt:
                if not self._is_terminal:
                    raise
                tell("\n(Ctrl-D or /exit leaves)")

    def _turn(self) -> str | None:
        text = self._line("> ")
        while text is not None:
            if is_open(text):
                separator = "\n"
            elif text.endswith("\\") and not _OPENS_BLOCK.match(text):
                text, separator = text[:-1], "\n"
            else:
                return unquoted(text)
            more = self._line(". ")
            if more is None:
                if is_open(text):
                    tell('(the input ended inside a """ block)')
                return unquoted(text)
            text += separator + more
        return None

    def _line(self, prompt: str) -> str | None:
        if self._is_terminal:
            click.echo(prompt, nl=False, err=True)
        data = self._stream.readline()
        if not data:
            if self._is_terminal:
                click.echo(err=True)
            return None
        self._n_lines += 1
        try:
            return data.decode("utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"line {self._n_lines} of the input is not UTF-8: byte {error.object[error.start]:#04x} at {error.start}",
                hint="iconv -f LATIN1 -t UTF-8 puts a file right, where it is Latin-1.",
            ) from error
