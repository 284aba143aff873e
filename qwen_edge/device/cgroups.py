"""The control groups of this process: their folders, and the CPUs they grant.

Source: Linux, Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst, scheduler/sched-bwc.rst.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qwen_edge.device.facts import Tree

_V2_MOUNTS: tuple[str, ...] = ("sys/fs/cgroup", "sys/fs/cgroup/unified")


def cgroup_folders(root: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """Yield (version, folder) of each cgroup that limits this process, from its own up to the root.

    Args:
        root: Where /proc and /sys are.
        controller: "memory" or "cpu".
    """
    for line in Tree(root).text("proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            version, mounts = 2, _V2_MOUNTS
        elif controller in controllers.split(","):
            # One mount may serve several controllers, under both names joined: cpu,cpuacct.
            names = dict.fromkeys((controller, controllers))
            version, mounts = 1, tuple(f"sys/fs/cgroup/{name}" for name in names)
        else:
            continue
        for mount in mounts:
            # A container may see the host's path while its mount begins at its own cgroup: hence up to the mount.
            folder = root / mount / path.strip("/")
            while folder.is_relative_to(root / mount):
                yield version, folder
                folder = folder.parent


def cpu_quota(root: Path) -> float | None:
    """Return the CPUs' worth of time that the tightest cgroup grants, None without a limit."""
    quotas = [
        quota
        for version, folder in cgroup_folders(root, "cpu")
        if (quota := _quota_v2(folder) if version == 2 else _quota_v1(folder)) is not None
    ]
    return min(quotas, default=None)


def _quota_v2(folder: Path) -> float | None:
    quota, _, period = Tree(folder).text("cpu.max").partition(" ")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def _quota_v1(folder: Path) -> float | None:
    quota = Tree(folder).number("cpu.cfs_quota_us")
    period = Tree(folder).number("cpu.cfs_period_us")
    return quota / period if quota is not None and quota > 0 and period else None
