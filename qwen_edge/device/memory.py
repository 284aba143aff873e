"""Memory that this process may still take: what system, cgroups and ulimits leave, and what swap there is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qwen_edge.device.cgroups import cgroup_folders
from qwen_edge.device.facts import Tree, Unknown, on_android
from qwen_edge.device.memory_killer import MemoryKiller, MemoryPressure, probe_memory_killer


@dataclass(frozen=True, slots=True, kw_only=True)
class AvailableMemory:
    """Memory that this process may still take, and what ends it.

    Attributes:
        available_bytes: What is free, file cache that can be dropped included; 0 where a limit is passed already.
        total_bytes: The machine's memory, or the limit.
        limited_by: "system" without a tighter limit, "memory killer" on Android, "cgroup" in a container or slice, "ulimit"
            for a process.
        reason: The same for people.
    """

    available_bytes: int
    total_bytes: int
    limited_by: Literal["system", "memory killer", "cgroup", "ulimit"]
    reason: str


def available_memory_bytes(root: Path = Path("/")) -> AvailableMemory:
    """Return the memory that this process may still take: the least that system, cgroups and ulimits leave.

    Args:
        root: Where /proc and /sys are.
    """
    return min(memory_limits(root), key=lambda memory: memory.available_bytes)


def memory_limits(root: Path = Path("/"), *, is_android: bool | None = None) -> tuple[AvailableMemory, ...]:
    """Return what the system, Android's memory killer, each cgroup with a limit and each ulimit leave, the system first.

    Args:
        root: Where /proc and /sys are.
        is_android: None asks this system.
    """
    system = _system_memory(root)
    killer = (_left_by_killer(system, root),) if (on_android() if is_android is None else is_android) else ()
    return (system, *killer, *_cgroup_memory(root), *_ulimit_memory(root))


def _system_memory(root: Path) -> AvailableMemory:
    facts = _kilobytes(Tree(root), "proc/meminfo")
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


def _left_by_killer(system: AvailableMemory, root: Path) -> AvailableMemory:
    """Return what may be taken without Android ending programs for it."""
    reserve_bytes = probe_memory_killer(Tree(root)).reserve_bytes
    return AvailableMemory(
        available_bytes=max(0, system.available_bytes - reserve_bytes),
        total_bytes=system.total_bytes,
        limited_by="memory killer",
        reason=f"{system.reason}, and below {_gigabytes(reserve_bytes)} Android ends programs",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _CgroupFiles:
    """What a version of cgroups calls its files."""

    limits: tuple[str, ...]
    usage: str
    cache: tuple[str, ...]


# Source: Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
_CGROUP_FILES = {
    2: _CgroupFiles(
        limits=("memory.max", "memory.high"),
        usage="memory.current",
        cache=("inactive_file", "active_file"),
    ),
    1: _CgroupFiles(
        limits=("memory.limit_in_bytes",),
        usage="memory.usage_in_bytes",
        cache=("total_inactive_file", "total_active_file"),
    ),
}


def _cgroup_memory(root: Path) -> Iterator[AvailableMemory]:
    """Yield what each cgroup of this process leaves, from its own up to the root; those without a limit are left out."""
    for version, folder in cgroup_folders(root, "memory"):
        if (memory := _cgroup_folder(folder, _CGROUP_FILES[version])) is not None:
            yield memory


def _cgroup_folder(folder: Path, files: _CgroupFiles) -> AvailableMemory | None:
    limits = [int(text) for name in files.limits if (text := Tree(folder).text(name)).isdecimal()]
    usage = Tree(folder).text(files.usage)
    # Without a limit v1 says the largest multiple of a page that a signed 64-bit number holds.
    if not limits or min(limits) >= 1 << 60 or not usage.isdecimal():
        return None
    stat = dict(re.findall(r"^(\w+) (\d+)$", Tree(folder).text("memory.stat"), re.MULTILINE))
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
        re.findall(
            r"^Max (address space|data size) +(\d+) ", Tree(root).text("proc/self/limits"), re.MULTILINE
        )
    )
    used = _kilobytes(Tree(root), "proc/self/status")
    for name, counter, option, overhead_bytes in _ULIMITS:
        if name in limits:
            limit, taken = int(limits[name]), max(overhead_bytes, used.get(counter, 0))
            yield AvailableMemory(
                available_bytes=max(0, limit - taken),
                total_bytes=limit,
                limited_by="ulimit",
                reason=f"ulimit {option} allows {_gigabytes(limit)}, of which the program itself takes {_gigabytes(taken)}",
            )


def _kilobytes(tree: Tree, name: str) -> dict[str, int]:
    """Return the lines `Name: 12 kB` of a file of /proc, in bytes."""
    return {
        name: int(kib) * 1024
        for name, kib in re.findall(r"^(\w+):\s+(\d+) kB$", tree.text(name), re.MULTILINE)
    }


def _gigabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB"


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """Where memory goes that has no room.

    Attributes:
        total_bytes: Of all swap areas, 0 without any.
        free_bytes: Of these.
        zram_bytes: What may lie compressed in memory, part of the total: slower than memory, faster than a disk.
    """

    total_bytes: int
    free_bytes: int
    zram_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Memory of the machine, and what of it this process may take.

    Attributes:
        total_bytes: As the system counts it, without cgroups.
        available: The tightest of `limits`.
        limits: What the system, Android's memory killer, each cgroup with a limit and each ulimit leave.
        swap: Its size and what is free of it.
        pressure: How hard it is to get at this moment.
        killer: What ends programs for it on Android; None elsewhere.
    """

    total_bytes: int
    available: AvailableMemory
    limits: tuple[AvailableMemory, ...]
    swap: Swap | Unknown
    pressure: MemoryPressure | Unknown
    killer: MemoryKiller | None


_NO_PRESSURE = Unknown("only Linux tells it")


def memory_of(
    limits: tuple[AvailableMemory, ...],
    swap: Swap | Unknown,
    pressure: MemoryPressure | Unknown = _NO_PRESSURE,
    killer: MemoryKiller | None = None,
) -> Memory:
    """Return the facts of memory; `limits` is what `memory_limits` gives, the system first."""
    return Memory(
        total_bytes=limits[0].total_bytes,
        available=min(limits, key=lambda memory: memory.available_bytes),
        limits=limits,
        swap=swap,
        pressure=pressure,
        killer=killer,
    )


def probe_swap(tree: Tree) -> Swap | Unknown:
    """Read the swap areas of a Linux system. Source: proc(5), Documentation/admin-guide/blockdev/zram.rst."""
    facts = _kilobytes(tree, "proc/meminfo")
    if "SwapTotal" not in facts:
        return Unknown(tree.why_no_text("proc/meminfo"))
    zram = re.findall(r"^(?:/dev)?(?:/block)?/zram\d+\s+\S+\s+(\d+)", tree.text("proc/swaps"), re.MULTILINE)
    return Swap(
        total_bytes=facts["SwapTotal"],
        free_bytes=facts.get("SwapFree", 0),
        zram_bytes=sum(int(kib) * 1024 for kib in zram),
    )
