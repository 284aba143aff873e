"""How a command ends: the exit code and the last words for each exception.

::

    0    done; also where stdout was closed before the start
    1    failed: one of our errors, or one of the operating system
    2    wrong usage
    70   a bug in qwen-edge                     EX_SOFTWARE of sysexits.h
    130  interrupted (Ctrl-C)                   128 + SIGINT, as shells report it
    141  the reader of stdout went away         128 + SIGPIPE; nothing is said
    143  ended by SIGTERM                       128 + SIGTERM

A signal that strikes while Python leaves ends the process by itself, which shells report as the same numbers.
QWEN_EDGE_DEBUG=1 prints the traceback before the words.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from pathlib import Path

import click

from qwen_edge.errors import QwenEdgeError

FAILED, BUG, INTERRUPTED, READER_GONE, TERMINATED = 1, 70, 130, 141, 143
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_NOT_WRITABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def end_with(error: BaseException) -> int:
    """Say what ended a command, and return its exit code."""
    match error:
        case click.exceptions.Exit():
            return error.exit_code
        case SystemExit():
            _say("terminated")
            return error.code if isinstance(error.code, int) else FAILED
        case KeyboardInterrupt() | click.exceptions.Abort():
            _say("interrupted")
            return INTERRUPTED
        case click.ClickException():
            error.show()
            if isinstance(error, click.NoSuchOption) and error.option_name in ("-v", "--verbose"):
                _say("  It goes before the command: qwen-edge --verbose COMMAND")
            return error.exit_code
    if os.environ.get("QWEN_EDGE_DEBUG") == "1":
        traceback.print_exception(error)
    if isinstance(error, BrokenPipeError):
        _drop_stdout()
        return READER_GONE
    if text := _text_of(error):
        _say(f"error: {text}")
        return FAILED
    _say(f"error: this is a bug in qwen-edge: {type(error).__name__}: {error}{_place_of(error)}")
    _say("  Please report it, with the command and what it prints with QWEN_EDGE_DEBUG=1.")
    return BUG


def _text_of(error: BaseException) -> str:
    """Return the words for what can go wrong without a bug; "" for what cannot."""
    match error:
        case QwenEdgeError():
            return str(error)
        case OSError():
            if error.filename == "stdout":
                _drop_stdout()
                return f"stdout cannot be written: {error.strerror}"
            return _os_error_text(error)
        case MemoryError():
            return (
                "out of memory\n  Close other programs, or take a smaller model or --n-ctx: qwen-edge list shows "
                "what fits."
            )
        case RecursionError():
            return "the input is nested too deeply"
    return ""


def _os_error_text(error: OSError) -> str:
    from qwen_edge.paths import cache_root

    if error.strerror is None:
        return str(error)
    places = [
        os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)
    ]
    text = ": ".join([error.strerror, " -> ".join(places)] if places else [error.strerror])
    is_ours = False
    with contextlib.suppress(QwenEdgeError):
        is_ours = any(Path(place).absolute().is_relative_to(cache_root().absolute()) for place in places)
    if is_ours and error.errno in _DISK_FULL | _NOT_WRITABLE:
        return f"{text}\n  QWEN_EDGE_CACHE=FOLDER puts what qwen-edge keeps elsewhere; qwen-edge du shows what it keeps."
    if error.errno in _DISK_FULL:
        return f"{text}\n  Free some space there. What was begun has been removed, or will be continued."
    if error.errno in _NOT_WRITABLE:
        return f"{text}\n  Name another place, or change its permissions."
    return text


def _drop_stdout() -> None:
    """Lead stdout nowhere, so that Python's last flush does not fail once more."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


def _place_of(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
