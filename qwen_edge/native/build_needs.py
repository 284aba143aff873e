"""What a build needs of this machine: a compiler, CMake, pip, memory, space on the disk."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil

from qwen_edge.errors import NativeError
from qwen_edge.files import existing_folder

# Source archive and tree, objects, wheel and package: 0.4 GB seen, and as much again for a build that keeps more.
NEEDED_DISK_BYTES = 700_000_000
# Measured with GCC 12.2 on a Sapphire Rapids core, llama-cpp-python 0.3.36: 199 s of CPU time.
_BUILD_CPU_S = 200
# The same, of one level of kernels in a portable build for ARM.
_MODULE_CPU_S = 25
# The largest compile of llama.cpp (ggml-cpu/ops.cpp, llama-model.cpp) stays below this with GCC and clang.
_COMPILE_MEMORY_BYTES = 1 << 30

BUILD_ELSEWHERE = (
    "Build elsewhere: QWEN_EDGE_CACHE=/some/folder qwen-edge setup (set it for every later command too)"
)

_PREFLIGHT = Path(__file__).parent / "preflight.sh"


def check_tools() -> None:
    """Look for a C++ compiler that works and for CMake.

    Raises:
        NativeError: Something is missing; it says which packages of this system bring it.
    """
    done = subprocess.run(
        ["sh", str(_PREFLIGHT), "--tools"], capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode != 0:
        message, _, hint = done.stderr.strip().partition("\nInstall with:\n")
        raise NativeError(message, hint="Install with:\n" + textwrap.indent(hint, "  ") if hint else None)


def check_disk(folder: Path, kept_bytes: int) -> None:
    """Fail at once rather than after minutes where a build does not fit.

    Args:
        folder: Where it is made.
        kept_bytes: What an interrupted one left there.

    Raises:
        NativeError: It does not fit, with both numbers.
    """
    needed_bytes, free_bytes = max(0, NEEDED_DISK_BYTES - kept_bytes), free_disk_bytes(folder)
    if free_bytes < needed_bytes:
        raise NativeError(
            f"the build needs {needed_bytes / 1e6:.0f} MB in {folder}, {free_bytes / 1e6:.0f} MB are free",
            hint=f"Make room, or: {BUILD_ELSEWHERE}",
        )


def free_disk_bytes(folder: Path) -> int:
    """Return what is free on the disk of a folder that need not be there yet."""
    return shutil.disk_usage(existing_folder(folder)).free


def parallel_jobs() -> int:
    """Return how many files to compile at once: one a core, and never more than fit in memory."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no affinity call
        cores = os.cpu_count() or 1
    return max(1, min(cores, psutil.virtual_memory().total // _COMPILE_MEMORY_BYTES))


def expected_minutes(jobs: int, *, n_modules: int = 0) -> int:
    """Return about how long a build takes on a server's or laptop's cores; a small board takes several times that."""
    return max(1, round((_BUILD_CPU_S + n_modules * _MODULE_CPU_S) / jobs / 60 + 0.5))


def pip_command(work: Path) -> list[str]:
    """Return the command that runs pip: this environment's, else that of an environment made for it in the work folder.

    Environments made by uv have no pip.

    Raises:
        NativeError: There is none, and none can be made.
    """
    python = sys.executable
    if importlib.util.find_spec("pip") is None:
        folder = work / "pip"
        python = str(folder / "bin" / "python")
        if not (folder / "made").exists():
            done = subprocess.run(
                [sys.executable, "-m", "venv", "--clear", str(folder)],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                raise NativeError(
                    f"the build needs pip: {sys.prefix} has none, and {sys.executable} cannot make an environment "
                    "with one (its modules venv or ensurepip are not installed)",
                    hint="Add pip: uv pip install pip (in an environment of uv), or the system's python3-pip or "
                    "python3-venv. Then run qwen-edge setup again.",
                )
            (folder / "made").touch()
    return [python, "-m", "pip", "--disable-pip-version-check", "--no-input"]
