"""Running a module of this package in a child process, for native work that may die or must be killable."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from qwen_edge.native.builds import Build, chosen_build

_BOOTSTRAP = """\
import pickle, runpy, sys
sys.path += [p for p in {paths!r} if p not in sys.path]
sys.argv = {argv!r}
from qwen_edge.native.builds import use
use(pickle.loads({build!r}))
runpy.run_module({module!r}, run_name="__main__")
"""


def start_child(module: str, args: Sequence[str], *, build: Build | None = None) -> subprocess.Popen[str]:
    """Start `python -m module args` with this process's import path; stdout and stderr are pipes of text.

    Args:
        module: Dotted name, run as __main__.
        args: What it finds in sys.argv[1:].
        build: Native library that it uses; None for the one that this process uses.
    """
    package_parent = str(Path(__file__).resolve().parents[2])
    code = _BOOTSTRAP.format(
        paths=[package_parent, *sys.path],
        argv=[module, *args],
        build=pickle.dumps(build or chosen_build()),
        module=module,
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
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
