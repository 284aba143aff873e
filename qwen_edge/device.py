"""What this machine is: cores this process may use, CPU name and features, memory."""

from __future__ import annotations

import functools
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

# The x86 and ARM features that decide which kernels llama.cpp runs, as /proc/cpuinfo names them.
_KERNEL_FEATURES = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512vl", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_vbmi",
    "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "asimdhp", "fphp", "i8mm", "sve", "sve2", "bf16",
)  # fmt: skip


@functools.cache
def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return ""


def cpu_name() -> str:
    """Return the processor's name as the system gives it."""
    found = re.search(r"^(?:model name|Hardware|Model)\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def cpu_features() -> tuple[str, ...]:
    """Return the instruction-set features that matter here, sorted; empty where the system does not tell."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    present = set(found.group(1).split()) if found else set()
    return tuple(sorted(present.intersection(_KERNEL_FEATURES)))


def usable_cores() -> int:
    """Return the physical cores this process may use, at least 1: affinity and cgroup quota included."""
    import psutil

    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have no affinity call
        allowed = os.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or allowed
    quota = _cgroup_cpu_quota()
    cores = min(allowed, physical)
    return max(1, min(cores, int(quota)) if quota is not None else cores)


def _cgroup_cpu_quota() -> float | None:
    """Return the CPUs that cgroup v2 grants, or None without a limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def peak_memory_bytes() -> int:
    """Return the largest resident size this process has had."""
    if sys.platform == "linux":
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


def private_dirty_bytes() -> int | None:
    """Return the memory that only this process holds and has written; None where the system does not tell."""
    try:
        rollup = Path("/proc/self/smaps_rollup").read_text()
    except OSError:
        return None
    found = re.search(r"^Private_Dirty:\s+(\d+) kB", rollup, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


def describe_machine() -> dict[str, Any]:
    """Return the facts that a measurement needs to be understood elsewhere, JSON-ready."""
    import psutil

    return {
        "cpu": cpu_name(),
        "features": list(cpu_features()),
        "usable_cores": usable_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "python": platform.python_version(),
    }
