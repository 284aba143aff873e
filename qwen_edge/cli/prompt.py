"""The prompt of `qwen-edge run`: an argument, files, and what is piped in, as one text."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from qwen_edge.errors import ConfigError

_BOM = "\ufeff"


def assemble_prompt(prompt: str | None, files: Sequence[Path]) -> str:
    """Return PROMPT, then each file under its name, then what is piped in.

    Args:
        prompt: As typed; None where none was, "-" for stdin alone.
        files: Text files in UTF-8.

    Raises:
        UsageError: There is nothing, or nothing but blanks.
        ConfigError: Something is no text in UTF-8; says at which byte.
        OSError: A file cannot be read.
    """
    parts = []
    if prompt is not None and prompt != "-":
        parts.append(_decoded(os.fsencode(prompt), "PROMPT"))
    parts += [f"{file.name}:\n\n{_decoded(file.read_bytes(), str(file))}" for file in files]
    if prompt == "-" or _is_piped():
        parts.append(_decoded(sys.stdin.buffer.read(), "stdin"))
    elif not parts:
        raise click.UsageError(
            'There is no prompt. Give one as in qwen-edge run FILE "Hello", with --file NOTES.txt or through a pipe; '
            "qwen-edge chat FILE is for a conversation."
        )
    parts = [part for part in parts if part.strip()]
    if not parts:
        raise click.UsageError("The prompt is empty.")
    return "\n\n".join(parts)


def _is_piped() -> bool:
    """Return whether stdin is a pipe, a file or a socket: not a terminal, nor the null device."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):  # a program put something else there
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def _decoded(data: bytes, where: str) -> str:
    """Return text without a byte order mark and without blank lines at its end.

    Raises:
        ConfigError: It is no UTF-8, or holds a zero byte.
    """
    if (offset := data.find(b"\0")) >= 0:
        raise ConfigError(
            f"{where} is no text: a zero byte stands at offset {offset}",
            hint="A prompt is plain text in UTF-8. Take the text out of a document first.",
        )
    try:
        return data.decode("utf-8").removeprefix(_BOM).rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{where} is not in UTF-8: byte 0x{data[error.start]:02x} at offset {error.start} ({error.reason})",
            hint="Convert it first, for example from Latin-1: iconv -f LATIN1 -t UTF-8",
        ) from error
