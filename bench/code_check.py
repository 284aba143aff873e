"""Running a function that a model wrote against assertions, in a process that can do little harm.

The child is isolated Python (`-I -S`: no environment, no site-packages, an empty folder to be in) under limits on
time, memory, file size and open files. That stops accidents, not an attacker: it is no sandbox for hostile code.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence

TIME_LIMIT_S = 5.0
_CPU_LIMIT_S = 3
_MEMORY_LIMIT_BYTES = 512 << 20

# What the answer prints goes nowhere, and an answer that ends the process early has not passed: only the last line
# of this program writes to the pipe.
_HARNESS = """
import json, os, resource, sys
source, assertions, cpu_s, memory_bytes = json.load(sys.stdin)
for limit, value in ((resource.RLIMIT_CPU, cpu_s), (resource.RLIMIT_AS, memory_bytes),
                     (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_NOFILE, 16), (resource.RLIMIT_CORE, 0)):
    resource.setrlimit(limit, (value, value))
report, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
os.dup2(nowhere, 1)
os.dup2(nowhere, 2)
scope, doing = {"__name__": "answer"}, "the code"
try:
    exec(compile(source, "answer", "exec"), scope)
    for doing in assertions:
        exec(compile(doing, "assertion", "exec"), scope)
    outcome = "passed"
except BaseException as error:
    outcome = f"{doing}: {type(error).__name__} {error}".strip()[:400]
os.write(report, outcome.encode("utf-8", "replace"))
"""


def extract_code(answer: str) -> str:
    """Return the first fenced code block of an answer; without one the whole answer."""
    found = re.search(r"```[ \t]*\w*[ \t]*\n(.*?)(?:```|\Z)", answer, re.DOTALL)
    return found.group(1) if found else answer


def failure_of(source: str, assertions: Sequence[str], *, time_limit_s: float = TIME_LIMIT_S) -> str:
    """Run source, then each assertion; return "" when all hold, else what went wrong.

    Args:
        source: Python code.
        assertions: `assert …` statements, run one after the other in the same scope.
        time_limit_s: Wall-clock limit for all of it.
    """
    order = json.dumps([source, list(assertions), _CPU_LIMIT_S, _MEMORY_LIMIT_BYTES])
    with tempfile.TemporaryDirectory(prefix="qwen-edge-answer-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _HARNESS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            text=True,
            start_new_session=True,
        )
        try:
            outcome, _ = process.communicate(order, timeout=time_limit_s)
        except subprocess.TimeoutExpired:
            return f"not finished after {time_limit_s:g} s"
        finally:
            _end(process)
    if outcome == "passed":
        return ""
    return outcome or f"the process ended early ({_ending(process.returncode)})"


def _end(process: subprocess.Popen[str]) -> None:
    """End the process with whatever it has started, and free its pipes."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
