"""Running a module of this package in a child process, for native work that may die or must be killable."""

from __future__ import annotations

import contextlib
import json
import logging
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qwen_edge.native.builds import Build, chosen_build

_log = logging.getLogger(__name__)

_BOOTSTRAP = """\
import pickle, runpy, sys
sys.path += [p for p in {paths!r} if p not in sys.path]
sys.argv = {argv!r}
from qwen_edge.native.builds import use
use(pickle.loads({build!r}))
runpy.run_module({module!r}, run_name="__main__")
"""


def start_child(
    module: str, args: Sequence[str], *, build: Build | None = None, is_asked: bool = False
) -> subprocess.Popen[str]:
    """Start `python -m module args` with this process's import path; stdout and stderr are pipes of text.

    Args:
        module: Dotted name, run as __main__.
        args: What it finds in sys.argv[1:].
        build: Native library that it uses; None for the one that this process uses.
        is_asked: Its stdin is a pipe too; else it is empty.
    """
    _log.debug("starting %s in a child process: %s", module, " ".join(args))
    package_parent = str(Path(__file__).resolve().parents[2])
    code = _BOOTSTRAP.format(
        paths=[package_parent, *sys.path],
        argv=[module, *args],
        build=pickle.dumps(build or chosen_build()),
        module=module,
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE if is_asked else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )


def describe_exit(code: int) -> str:
    """Return how a child ended in words: "exit code 3", "signal SIGSEGV"."""
    if code >= 0:
        return f"exit code {code}"
    import signal

    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def finish(process: subprocess.Popen[str], timeout_s: float) -> tuple[str, str, str]:
    """Wait for a child and return its stdout, its stderr, and how it crashed, "" when it ended by itself.

    One that is silent for longer than timeout_s is killed, which counts as a crash; so is every child when this process
    is interrupted.
    """
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        stdout, stderr = process.communicate()
        return stdout, stderr, f"no answer in {timeout_s:.0f} s"
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return stdout, stderr, describe_exit(process.returncode) if process.returncode < 0 else ""


@contextlib.contextmanager
def killed_after(process: subprocess.Popen[str], timeout_s: float) -> Iterator[None]:
    """Kill a child that the block still waits for after this time, and whenever the block fails."""
    timer = threading.Timer(timeout_s, process.kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    except BaseException:
        process.kill()
        raise
    finally:
        timer.cancel()


def json_lines(text: str) -> list[dict[str, Any]]:
    """Return the JSON objects in a child's output, one a line; other lines, cut-off ones too, are left out."""
    found = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict):
                found.append(value)
    return found


def last_line(text: str) -> str:
    """Return the last line that is not blank, "" when there is none."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
