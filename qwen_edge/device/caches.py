"""Caches by level, and memory nodes (NUMA)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from qwen_edge.device.cores import CPU_FOLDER, online_cpus
from qwen_edge.device.facts import Tree, Unknown

CacheKind = Literal["data", "instruction", "unified"]
_KINDS: dict[str, CacheKind] = {"Data": "data", "Instruction": "instruction", "Unified": "unified"}
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_NODES = "sys/devices/system/node"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """Caches of one kind and size.

    Attributes:
        level: 1 is nearest to the core.
        kind: What it holds.
        size_bytes: Of one.
        n_instances: How many there are.
        n_sharing: Logical CPUs that share one.
    """

    level: int
    kind: CacheKind
    size_bytes: int
    n_instances: int
    n_sharing: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NumaNode:
    """Memory that some CPUs reach faster than the rest.

    Attributes:
        number: As the system counts it.
        cpus: Logical CPUs beside it; () for memory alone.
        total_bytes: Its memory; None where the system does not tell (Windows).
        free_bytes: Of this, without what caches of files hold.
    """

    number: int
    cpus: tuple[int, ...]
    total_bytes: int | None
    free_bytes: int | None


def probe_caches(tree: Tree) -> tuple[Cache, ...] | Unknown:
    """Read the caches of a Linux system, nearest first.

    Source: Linux, Documentation/ABI/testing/sysfs-devices-system-cpu.
    """
    online = online_cpus(tree)
    instances: set[tuple[int, CacheKind, int, tuple[int, ...]]] = set()
    # A server has thousands of these files: what one CPU told of a shared cache is not read again.
    told: set[tuple[str, int]] = set()
    for cpu in online:
        folder = f"{CPU_FOLDER}/cpu{cpu}/cache"
        for index in tree.names(folder, "index"):
            if (index, cpu) in told:
                continue
            level, size = tree.number(f"{folder}/{index}/level"), _size(tree.text(f"{folder}/{index}/size"))
            kind = _KINDS.get(tree.text(f"{folder}/{index}/type"))
            if level is not None and size is not None and kind is not None:
                shared = tree.cpus(f"{folder}/{index}/shared_cpu_list") or (cpu,)
                instances.add((level, kind, size, shared))
                told.update((index, other) for other in shared)
    if not instances:
        first = f"{CPU_FOLDER}/cpu{online[0] if online else 0}/cache"
        return Unknown(tree.why_no_names(first))
    counted: dict[tuple[int, CacheKind, int, int], int] = {}
    for level, kind, size, shared in instances:
        key = (level, kind, size, len(shared))
        counted[key] = counted.get(key, 0) + 1
    return tuple(
        Cache(level=level, kind=kind, size_bytes=size, n_instances=n_instances, n_sharing=n_sharing)
        for (level, kind, size, n_sharing), n_instances in sorted(counted.items())
    )


def last_level_bytes(caches: tuple[Cache, ...] | Unknown) -> int | Unknown:
    """Return what all caches of the last level hold together: a stream must be longer to come from memory."""
    if isinstance(caches, Unknown):
        return caches
    last = max(cache.level for cache in caches)
    return sum(cache.size_bytes * cache.n_instances for cache in caches if cache.level == last)


def probe_numa(tree: Tree) -> tuple[NumaNode, ...] | Unknown:
    """Read the memory nodes of a Linux system. Source: Linux, Documentation/ABI/stable/sysfs-devices-node."""
    nodes = []
    for name in tree.names(_NODES, "node"):
        if not name.removeprefix("node").isdecimal():
            continue
        facts = dict(re.findall(r"(MemTotal|MemFree):\s+(\d+) kB", tree.text(f"{_NODES}/{name}/meminfo")))
        nodes.append(
            NumaNode(
                number=int(name.removeprefix("node")),
                cpus=tree.cpus(f"{_NODES}/{name}/cpulist"),
                total_bytes=int(facts.get("MemTotal", 0)) * 1024,
                free_bytes=int(facts.get("MemFree", 0)) * 1024,
            )
        )
    return tuple(nodes) if nodes else Unknown(tree.why_no_names(_NODES))


def _size(text: str) -> int | None:
    found = re.fullmatch(r"(\d+)([KMG]?)", text)
    return int(found[1]) * _UNITS[found[2]] if found else None
