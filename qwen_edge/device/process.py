"""Memory of this process."""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path
from typing import Any


def peak_memory_bytes() -> int:
    """Return the largest resident size this process has had."""
    if sys.platform in ("linux", "android"):
        # Not getrusage: its ru_maxrss survives exec, so a child begins with its parent's. Source: proc(5), VmHWM.
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        if found:
            return int(found.group(1)) * 1024
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        info: Any = psutil.Process().memory_info()
        return int(info.peak_wset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Source: getrusage(2): bytes on macOS, kilobytes elsewhere.
    return peak if sys.platform == "darwin" else peak * 1024


def held_memory_bytes() -> int:
    """Return what this process holds that the system cannot drop; elsewhere than on Linux its resident size."""
    if sys.platform in ("linux", "android"):
        found = re.search(r"^RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        if found:
            return int(found.group(1)) * 1024
    import psutil

    return int(psutil.Process().memory_info().rss)


def private_dirty_bytes() -> int | None:
    """Return the memory that only this process holds and has written; None where the system does not tell."""
    try:
        rollup = Path("/proc/self/smaps_rollup").read_text()
    except OSError:
        return None
    found = re.search(r"^Private_Dirty:\s+(\d+) kB", rollup, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


def return_freed_memory() -> None:
    """Ask the C library to give pages back to the system that hold nothing any more; glibc only.

    It takes buffers of up to 32 MB from a heap that shrinks at its end only: what is allocated behind them keeps them.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(ctypes.c_size_t(0))
