"""Running a build with its output in a log: progress while it runs, what to do when it fails."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen_edge.errors import NativeError
from qwen_edge.native.build_needs import BUILD_ELSEWHERE

_PROGRESS_EVERY_S = 15.0
_LOG_TAIL_LINES = 30

# What the log of a failed build says -> what to do next; first match wins.
_REMEDIES = (
    (
        r"No space left on device|Disk quota exceeded",
        f"The disk is full. Make room and run qwen-edge setup again. Or: {BUILD_ELSEWHERE}",
    ),
    (
        r"\bKilled\b|cannot allocate memory|out of memory",
        "The compiler ran out of memory. Compile one file at a time: qwen-edge setup --jobs 1",
    ),
    (
        r"unrecognized command-line option|unknown argument",
        "The compiler refuses a flag. Look at CMAKE_ARGS, CFLAGS, CXXFLAGS and LDFLAGS in your environment.",
    ),
    (
        r"NewConnectionError|ConnectTimeoutError|NameResolutionError|Temporary failure in name resolution"
        r"|Could not find a version|No matching distribution",
        "The package index did not answer or does not have it. With a connection, run qwen-edge setup again.",
    ),
)
_ANY_REMEDY = (
    "Run it again from the start: qwen-edge setup --force   Or with another compiler, for example: "
    "CXX=clang++ qwen-edge setup"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a command ended.

    Attributes:
        exit_code: 0 where it did what it should.
        output: All that it wrote.
    """

    exit_code: int
    output: str

    @property
    def remedy(self) -> str:
        """What to do about a failure, "" where the output names no known cause."""
        for pattern, remedy in _REMEDIES:
            if re.search(pattern, self.output, re.IGNORECASE):
                return remedy
        return ""


def run_logged(
    command: Sequence[str], env: Mapping[str, str], log: Path, say: Callable[[str], None]
) -> Outcome:
    """Run a command with its output at the end of a log, and say now and then how far it is.

    Args:
        command: Program and arguments.
        env: Its environment.
        log: Appended to.
        say: Takes one line for the person who waits.
    """
    started = time.monotonic()
    # A session of its own, so that an interrupt ends pip, CMake and every compiler together.
    with log.open("ab") as output:
        start_bytes = output.tell()
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        try:
            while True:
                try:
                    exit_code = process.wait(timeout=_PROGRESS_EVERY_S)
                    break
                except subprocess.TimeoutExpired:
                    say(f"  {time.monotonic() - started:4.0f} s{progress_in(_tail_of(log))}")
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
    with log.open("rb") as file:
        file.seek(start_bytes)
        return Outcome(exit_code=exit_code, output=file.read().decode(errors="replace"))


def failure(purpose: str, outcome: Outcome, log: Path, say: Callable[[str], None]) -> NativeError:
    """Show the end of what a failed command wrote, and return the error to raise.

    Args:
        purpose: What failed: "building llama-cpp-python".
        outcome: How it ended.
        log: Where its output is.
        say: Takes one line for the person who waits.
    """
    lines = [line for line in outcome.output.splitlines() if line.strip()][-_LOG_TAIL_LINES:]
    say(f"\nlast {len(lines)} lines of the log:")
    for line in lines:
        say(f"  | {line[:300]}")
    return NativeError(
        f"{purpose} failed (exit code {outcome.exit_code}); the whole log is {log}",
        hint=outcome.remedy or _ANY_REMEDY,
    )


def progress_in(log_text: str) -> str:
    """Return ": 12 of 83 steps" (ninja) or ": 14%" (make) from the last counter in a log; "" when there is none yet."""
    counters = re.findall(r"^\s*\[(?:(\d+)/(\d+)|\s*(\d+%))\]", log_text, re.MULTILINE)
    if not counters:
        return ""
    done, steps, percent = counters[-1]
    return f": {percent}" if percent else f": {done} of {steps} steps"


def _tail_of(log: Path, size_bytes: int = 65536) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - size_bytes))
        return file.read().decode(errors="replace")
