"""Text that arrives in pieces, broken between words before the terminal breaks it inside one."""

from __future__ import annotations

import os
from typing import IO, Any

_DEFAULT_COLUMNS = 80
_FENCE = "```"
_ZERO_WIDTH_JOINER = "\u200d"
# Chinese and Japanese are broken anywhere, but not before the first of these and not behind the second.
_NEVER_FIRST = "、。，．：；？！）」』】》〉〕］｝…ー々"
_NEVER_LAST = "（「『【《〈〔［｛"

# What would move the cursor or change the terminal; a model may well write it, in code about terminals say.
_CONTROLS = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def _cells(text: str) -> int:
    """Return the columns that a text takes: 2 for most Chinese and Japanese characters and emoji."""
    # Here, because completion in the shell loads this module and needs no rich.
    from rich.cells import cell_len

    return cell_len(text)


def columns_of(stream: IO[Any]) -> int | None:
    """Return how many columns the terminal behind a stream has; None where there is none."""
    if not stream.isatty():
        return None
    try:
        return os.get_terminal_size(stream.fileno()).columns or _DEFAULT_COLUMNS
    except OSError:
        return _DEFAULT_COLUMNS


def without_controls(text: str) -> str:
    """Return a text that does nothing to a terminal but fill it."""
    return text.translate(_CONTROLS)


def wrapped(text: str, columns: int | None, *, indent: str = "") -> str:
    """Return a text with its lines broken between words; what follows of a broken line is indented."""
    if columns is None:
        return text
    lines = []
    for line in text.split("\n"):
        wrap = WordWrap(columns, indent=indent)
        lines.append(wrap.feed(line) + wrap.flush())
    return "\n".join(lines)


class WordWrap:
    """Breaks lines of a stream of text.

    A word is held back until it is whole, then it stands where it fits. Lines of a fenced code block stay as they are.
    """

    def __init__(self, columns: int | None, *, column: int = 0, indent: str = "") -> None:
        """Begin a text.

        Args:
            columns: Width of the terminal; None breaks nothing and holds nothing back.
            column: Cells of the line that are taken already.
            indent: Stands before every line but the first.
        """
        self._columns = columns
        self._column = column
        self._indent = indent
        self._spaces = self._word = self._line = ""
        self._in_fence = False

    def feed(self, text: str) -> str:
        """Return what is to be printed now."""
        if self._columns is None:
            return text.replace("\n", "\n" + self._indent)
        return "".join(self._fed(character) for character in text)

    def flush(self) -> str:
        """Return what was held back."""
        return self._placed_word()

    def _fed(self, character: str) -> str:
        if character == "\n":
            ready = self._placed_word()
            self._in_fence ^= self._line.lstrip().startswith(_FENCE)
            self._line = ""
            return ready + self._new_line()
        if character in " \t":
            ready = self._placed_word()
            self._spaces += " " if character == " " else "    "
            return ready
        ready = self._placed_word() if self._may_break_before(character) else ""
        self._word += character
        return ready

    def _may_break_before(self, character: str) -> bool:
        """Return whether a word ends before a character that is no blank: between those that are two cells wide."""
        if not self._word or character in _NEVER_FIRST:
            return False
        last = self._word[-1]
        if last in _NEVER_LAST or last == _ZERO_WIDTH_JOINER or _cells(character) == 0:
            return False
        return _cells(character) == 2 or _cells(last) == 2

    def _placed_word(self) -> str:
        word, self._word = self._word, ""
        if not word:
            return ""
        assert self._columns is not None, "Bug: nothing is held back without a width"
        spaces, self._spaces = self._spaces, ""
        self._line += spaces + word
        # The last column stays free: terminals differ in where the cursor is after it.
        fits = self._column + len(spaces) + _cells(word) < self._columns
        if fits or self._in_fence or self._column <= len(self._indent):
            self._column = (self._column + len(spaces) + _cells(word)) % self._columns
            return spaces + word
        broken = self._new_line()
        self._column = (self._column + _cells(word)) % self._columns
        return broken + word

    def _new_line(self) -> str:
        self._column, self._spaces = len(self._indent), ""
        return "\n" + self._indent
