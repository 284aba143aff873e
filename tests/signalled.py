"""Command lines that get a signal while they work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a command ended.

    Attributes:
        code: Its exit code, negative for a signal that ended it.
        was_signalled: Whether it was still there when the signal was sent.
        stdout: What it printed.
        stderr: What it said.
        orphans: Processes that it had started and that are still there.
    """

    code: int
    was_signalled: bool
    stdout: str
    stderr: str
    orphans: list[psutil.Process]


def end_after(
    delay_s: float,
    args: Sequence[str | Path],
    *,
    number: signal.Signals = signal.SIGINT,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Ending:
    """Run `qwen-edge args`, and send its group a signal some time after its first line of code, as a terminal does."""
    process = subprocess.Popen(
        [sys.executable, "-m", "qwen_edge", *map(str, args)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        start_new_session=True,
    )
    _wait_for_handler(process)
    time.sleep(delay_s)
    children: list[psutil.Process] = []
    was_signalled = process.poll() is None
    if was_signalled:
        children = psutil.Process(process.pid).children(recursive=True)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    _, orphans = psutil.wait_procs(children, timeout=10)
    return Ending(
        code=process.returncode, was_signalled=was_signalled, stdout=stdout, stderr=stderr, orphans=orphans
    )


def _wait_for_handler(process: subprocess.Popen[str]) -> None:
    """Wait until the command catches SIGTERM, which is the first thing that it does."""
    bit = 1 << (signal.SIGTERM - 1)
    while process.poll() is None:
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:") and int(line.split()[1], 16) & bit:
                return
        time.sleep(0.001)
