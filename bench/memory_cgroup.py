"""A cgroup with a limit of memory: what a small board is stood for by.

Source: Linux, Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from qwen_edge.device.cgroups import cgroup_folders
from qwen_edge.errors import UnsupportedError


class MemoryCgroup:
    """A cgroup with a limit of memory, made below the one of this process, and removed at the end."""

    def __init__(self, folder: Path, version: int) -> None:
        """Made by memory_cgroup().

        Args:
            folder: Of the cgroup.
            version: 1 or 2.
        """
        self._folder = folder
        self._version = version

    def limit(self, n_bytes: int) -> None:
        """Set what its processes may have together, swap included: it would let through what a board has no room for."""
        if self._version == 2:
            self._write("memory.max", n_bytes)
            self._write_if_there("memory.swap.max", 0)
            return
        # Memory with swap may never be less than memory alone.
        self._write_if_there("memory.memsw.limit_in_bytes", -1)
        self._write("memory.limit_in_bytes", n_bytes)
        self._write_if_there("memory.memsw.limit_in_bytes", n_bytes)
        self._write_if_there("memory.swappiness", 0)

    def enter(self) -> None:
        """Put the process that calls into it; for a child, before its program begins."""
        self._write("cgroup.procs", os.getpid())

    def peak_bytes(self) -> int:
        """Return the most that its processes had, file pages included; 0 where the kernel does not tell (v2, Linux < 5.19)."""
        file = self._folder / ("memory.peak" if self._version == 2 else "memory.max_usage_in_bytes")
        return int(file.read_text()) if file.exists() else 0

    def kills(self) -> int:
        """Return how many of its processes the kernel killed for want of memory."""
        file = self._folder / ("memory.events" if self._version == 2 else "memory.oom_control")
        found = re.search(r"^oom_kill (\d+)$", file.read_text(), re.MULTILINE)
        return int(found[1]) if found else 0

    def _write(self, name: str, value: int) -> None:
        (self._folder / name).write_text(str(value))

    def _write_if_there(self, name: str, value: int) -> None:
        """Write a file that a kernel without swap has not."""
        if (self._folder / name).exists():
            self._write(name, value)


@contextlib.contextmanager
def memory_cgroup(root: Path = Path("/")) -> Iterator[MemoryCgroup]:
    """Make a cgroup that can limit memory.

    Args:
        root: Where /proc and /sys are.

    Raises:
        UnsupportedError: This system has none, or this process may not make one.
    """
    problem = "this system has none"
    for version, parent in cgroup_folders(root, "memory"):
        folder = parent / f"qwen-edge-{os.getpid()}-{time.monotonic_ns()}"
        cgroup = MemoryCgroup(folder, version)
        try:
            folder.mkdir()
            # There only where the parent hands this controller on (cgroup.subtree_control of version 2).
            (folder / ("memory.max" if version == 2 else "memory.limit_in_bytes")).stat()
            cgroup.limit(1 << 50)
            break
        except OSError as error:
            problem = str(error)
            _remove(folder)
    else:
        raise UnsupportedError(
            f"no cgroup with a limit of memory can be made here: {problem}",
            hint="It takes Linux and the rights for it: run as root, or with systemd: "
            "systemd-run --user --scope -p Delegate=yes python -m qwen_edge.bench.memory_limit …",
        )
    try:
        yield cgroup
    finally:
        _remove(folder)


def forget_cached(path: Path) -> None:
    """Drop a file's pages from memory: what is there already is on the account of who read it first, not of a new cgroup."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _remove(folder: Path) -> None:
    for _ in range(50):
        with contextlib.suppress(FileNotFoundError):
            try:
                folder.rmdir()
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                time.sleep(0.1)  # the kernel is still taking leave of a process that ended
                continue
        return
