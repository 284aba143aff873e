"""`python -m qwen_edge`, and the console script: signals first, then everything else."""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer


def run() -> NoReturn:
    """Run the command line and end this process, in words also when a signal strikes while Python imports or leaves."""
    # What was started with Ctrl-C ignored, as a shell's background jobs are, goes on ignoring it.
    is_interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_interruptible:
        signal.signal(signal.SIGINT, _leave_at_once)
    signal.signal(signal.SIGTERM, _leave)
    _open_standard_streams()
    from qwen_edge.cli.main import main

    try:
        if is_interruptible:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = main()
        # Nothing is left to be cleared away: a signal may end the process where it stands.
        if is_interruptible:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    except KeyboardInterrupt:  # while the last words were being said
        _leave_at_once()
    sys.exit(code)


def _leave_at_once(_signal: int = 0, _frame: object = None) -> NoReturn:
    # Nothing is open, and an exception would be a traceback, or be lost in an import.
    os.write(2, b"interrupted\n")
    os._exit(130)


def _leave(_signal: int, _frame: object) -> NoReturn:
    # An exception, so that temporary files and children go.
    raise SystemExit(143)


def _open_standard_streams() -> None:
    """Put the null device where a standard stream is closed, as the next file opened would take its number.

    A failure of stdout names it, so that it can be told from that of a file.
    """
    for name, descriptor, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            setattr(sys, name, open(descriptor, mode, closefd=False, encoding="utf-8"))  # noqa: SIM115
    raw = _Stdout(sys.stdout.fileno(), "w", closefd=False)
    # A character that the encoding lacks, as in a file's name of other bytes, is written as its number.
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=sys.stdout.encoding,
        errors="backslashreplace",
        line_buffering=raw.isatty(),
    )


class _Stdout(io.FileIO):
    def write(self, data: Buffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, "stdout") from error


if __name__ == "__main__":
    run()
