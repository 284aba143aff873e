"""A program in a terminal of its own, and what a person does there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

# Makes its stdin the controlling terminal, so that Ctrl-C is a signal, and becomes the program.
_OWN_TERMINAL = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]")


class Terminal:
    """Runs a program behind a pseudo-terminal of 24 lines."""

    def __init__(
        self, command: Sequence[str], *, columns: int = 80, env: dict[str, str], stdout: int | None = None
    ) -> None:
        """Start it.

        Args:
            command: Program and arguments.
            columns: Width of the terminal.
            env: Set on top of this process's environment; TERM has to be among them.
            stdout: Where its stdout goes, when not to the terminal.
        """
        self._terminal, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        # prompt_toolkit asks a terminal where its cursor is, and this one does not answer.
        environment = {**os.environ, "PROMPT_TOOLKIT_NO_CPR": "1", **env}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _OWN_TERMINAL, *command], stdin=inner, stderr=inner,
            stdout=inner if stdout is None else stdout, env=environment, start_new_session=True,
        )  # fmt: skip
        os.close(inner)
        self.output = ""
        self._position = 0

    @property
    def text(self) -> str:
        """The output so far without escape codes."""
        return _ESCAPES.sub("", self.output).replace("\r", "")

    def type(self, keys: str) -> None:
        """Send keys."""
        os.write(self._terminal, keys.encode())

    def wait_for(self, text: str, *, timeout_s: float = 30) -> None:
        """Read until a text appears behind the one waited for last."""
        deadline_s = time.monotonic() + timeout_s
        while (found := self.text.find(text, self._position)) < 0:
            left_s = deadline_s - time.monotonic()
            assert left_s > 0, f"no {text!r} in {self.text[self._position :]!r}"
            assert self._read(left_s), f"it ended without {text!r}: {self.text[self._position :]!r}"
        self._position = found + len(text)

    def exit_code(self) -> int:
        """Wait for the end and return its exit code."""
        deadline_s = time.monotonic() + 30
        while self._read(1):
            assert time.monotonic() < deadline_s, f"it has not ended: {self.text[self._position :]!r}"
        return self.process.wait(timeout=30)

    def _read(self, timeout_s: float) -> bool:
        """Read what there is, in this time; return whether there may be more."""
        if not select.select([self._terminal], [], [], timeout_s)[0]:
            return True
        try:
            data = os.read(self._terminal, 65536)
        except OSError:  # EIO: nobody is at the other end any more
            return False
        self.output += data.decode("utf-8", "replace")
        return bool(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._terminal)
