"""What this machine is: cores this process may use, CPU name and features, memory."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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


@dataclass(frozen=True, slots=True, kw_only=True)
class AvailableMemory:
    """Memory that this process may still take, and what ends it.

    Attributes:
        available_bytes: What is free, file cache that can be dropped included; 0 where a limit is passed already.
        total_bytes: The machine's memory, or the limit.
        limited_by: "system" without a tighter limit, "cgroup" in a container or slice, "ulimit" for a process.
        reason: The same for people.
    """

    available_bytes: int
    total_bytes: int
    limited_by: Literal["system", "cgroup", "ulimit"]
    reason: str


def available_memory_bytes(root: Path = Path("/")) -> AvailableMemory:
    """Return the memory that this process may still take: the least that system, cgroups and ulimits leave.

    Args:
        root: Where /proc and /sys are.
    """
    found = [_system_memory(root), *_cgroup_memory(root), *_ulimit_memory(root)]
    return min(found, key=lambda memory: memory.available_bytes)


def _system_memory(root: Path) -> AvailableMemory:
    facts = _kilobytes(root / "proc/meminfo")
    if "MemAvailable" in facts and "MemTotal" in facts:
        available, total = facts["MemAvailable"], facts["MemTotal"]
    else:  # macOS and Windows
        import psutil

        memory = psutil.virtual_memory()
        available, total = memory.available, memory.total
    return AvailableMemory(
        available_bytes=available,
        total_bytes=total,
        limited_by="system",
        reason=f"{_gigabytes(available)} of this machine's {_gigabytes(total)} are free",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _CgroupFiles:
    """Where a version of cgroups is mounted, and what its files are called."""

    mounts: tuple[str, ...]
    limits: tuple[str, ...]
    usage: str
    cache: tuple[str, ...]


# Source: Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
_CGROUP_V2 = _CgroupFiles(
    mounts=("sys/fs/cgroup", "sys/fs/cgroup/unified"),
    limits=("memory.max", "memory.high"),
    usage="memory.current",
    cache=("inactive_file", "active_file"),
)
_CGROUP_V1 = _CgroupFiles(
    mounts=("sys/fs/cgroup/memory",),
    limits=("memory.limit_in_bytes",),
    usage="memory.usage_in_bytes",
    cache=("total_inactive_file", "total_active_file"),
)


def _cgroup_memory(root: Path) -> Iterator[AvailableMemory]:
    """Yield what each cgroup of this process leaves, from its own up to the root; those without a limit are left out."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            files = _CGROUP_V2
        elif "memory" in controllers.split(","):
            files = _CGROUP_V1
        else:
            continue
        for mount in files.mounts:
            # A container may see the host's path while its mount begins at its own cgroup: hence up to the mount.
            folder = root / mount / path.strip("/")
            while folder.is_relative_to(root / mount):
                if (memory := _cgroup_folder(folder, files)) is not None:
                    yield memory
                folder = folder.parent


def _cgroup_folder(folder: Path, files: _CgroupFiles) -> AvailableMemory | None:
    limits = [int(text) for name in files.limits if (text := _text(folder / name).strip()).isdecimal()]
    usage = _text(folder / files.usage).strip()
    # Without a limit v1 says the largest multiple of a page that a signed 64-bit number holds.
    if not limits or min(limits) >= 1 << 60 or not usage.isdecimal():
        return None
    stat = dict(re.findall(r"^(\w+) (\d+)$", _text(folder / "memory.stat"), re.MULTILINE))
    in_use = max(0, int(usage) - sum(int(stat.get(name, 0)) for name in files.cache))
    return AvailableMemory(
        available_bytes=max(0, min(limits) - in_use),
        total_bytes=min(limits),
        limited_by="cgroup",
        reason=f"the cgroup may have {_gigabytes(min(limits))}, of which {_gigabytes(in_use)} are in use",
    )


# What a process with a model holds of a limited kind beyond its resident memory: mapped libraries, stacks, arenas.
# Measured with 5.8 M and 0.5 B models: 285 and 299 MB of address space, 84 and 117 MB of data.
_ULIMITS = (
    ("address space", "VmSize", "-v", 300_000_000),
    ("data size", "VmData", "-d", 120_000_000),
)


def _ulimit_memory(root: Path) -> Iterator[AvailableMemory]:
    """Yield what the soft limits of address space and data leave. Source: getrlimit(2), proc(5)."""
    limits = dict(
        re.findall(r"^Max (address space|data size) +(\d+) ", _text(root / "proc/self/limits"), re.MULTILINE)
    )
    used = _kilobytes(root / "proc/self/status")
    for name, counter, option, overhead_bytes in _ULIMITS:
        if name in limits:
            limit, taken = int(limits[name]), max(overhead_bytes, used.get(counter, 0))
            yield AvailableMemory(
                available_bytes=max(0, limit - taken),
                total_bytes=limit,
                limited_by="ulimit",
                reason=f"ulimit {option} allows {_gigabytes(limit)}, of which the program itself takes {_gigabytes(taken)}",
            )


def _kilobytes(path: Path) -> dict[str, int]:
    """Return the lines `Name: 12 kB` of a file of /proc, in bytes."""
    return {
        name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB$", _text(path), re.MULTILINE)
    }


def _text(path: Path) -> str:
    """Return a file of /proc or /sys, empty where there is none."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _gigabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB"


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


def return_freed_memory() -> None:
    """Ask the C library to give pages back to the system that hold nothing any more; glibc only.

    It takes buffers of up to 32 MB from a heap that shrinks at its end only: what is allocated behind them keeps them.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(ctypes.c_size_t(0))
