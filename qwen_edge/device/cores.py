"""Cores by kind, their hardware threads, and those that this process may use.

A kind is relative to the machine: "performance" is the fastest there is, and what comes near it.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qwen_edge.device.cgroups import cpu_quota
from qwen_edge.device.cpuinfo import core_names
from qwen_edge.device.facts import Tree, Unknown, parse_cpu_list

CPU_FOLDER = "sys/devices/system/cpu"

# Cores of one design differ a little, in what the firmware rates them and how fast each may run.
_SAME_CAPACITY = 0.95
_SAME_FREQUENCY = 0.90
# Phones' middle cores have 0.6 to 0.9 of the capacity of the largest, little ones a third. By frequency alone: the
# dense cores of AMD reach two thirds of the others', little ones of phones 0.6 to 0.7.
_EFFICIENCY_CAPACITY = 0.5
_EFFICIENCY_FREQUENCY = 0.75

CoreKind = Literal["performance", "efficiency"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreGroup:
    """Cores of one kind.

    Attributes:
        kind: Relative to this machine.
        cpus: Numbers of the logical CPUs, as the system counts them; () where it does not number them (macOS).
        n_cores: Physical cores.
        n_threads: Hardware threads of all of them: more than `n_cores` with SMT.
        max_mhz: What the fastest of them may reach; None where the system does not tell.
        name: The design, "Cortex-A76"; "" where the system does not tell.
    """

    kind: CoreKind
    cpus: tuple[int, ...]
    n_cores: int
    n_threads: int
    max_mhz: float | None = None
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cores:
    """The processor's cores that are on.

    Attributes:
        groups: Fastest first.
        siblings: Logical CPUs that share a core, for each core; () where the system does not tell.
        told_by: Where the kinds come from: "cpu_capacity"; "" where all cores count as one kind for want of a word.
    """

    groups: tuple[CoreGroup, ...]
    siblings: tuple[tuple[int, ...], ...]
    told_by: str

    @property
    def n_cores(self) -> int:
        """Physical cores of all kinds."""
        return sum(group.n_cores for group in self.groups)

    @property
    def n_threads(self) -> int:
        """Hardware threads of all kinds."""
        return sum(group.n_threads for group in self.groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class UsableCores:
    """What this process may use of the cores.

    Attributes:
        n_cores: Physical cores, at least 1.
        cpus: Logical CPUs it may run on; () where the system has no affinity.
        quota: CPUs' worth of time that a cgroup grants; None without a limit.
        limited_by: "" where it may use all, else "affinity" or "cgroup".
    """

    n_cores: int
    cpus: tuple[int, ...]
    quota: float | None
    limited_by: Literal["", "affinity", "cgroup"]


def usable_cores() -> int:
    """Return the physical cores this process may use, at least 1: affinity and cgroup quota included."""
    cores = probe_cores(Tree()) if sys.platform not in ("darwin", "win32") else Unknown("no /sys")
    if isinstance(cores, Cores):
        return usable_of(cores, os.sched_getaffinity(0), cpu_quota(Path("/"))).n_cores
    import psutil

    return max(1, psutil.cpu_count(logical=False) or os.cpu_count() or 1)


def default_threads() -> int:
    """Return how many threads a model is run with that was not tuned, at least 1: `usable_cores`, without little ones of ARM."""
    if sys.platform in ("darwin", "win32"):
        return usable_cores()
    cores = probe_cores(Tree())
    if isinstance(cores, Unknown):
        return usable_cores()
    is_arm = platform.machine().lower() in ("aarch64", "arm64")
    return threads_for(cores, usable_of(cores, os.sched_getaffinity(0), cpu_quota(Path("/"))), is_arm=is_arm)


def threads_for(cores: Cores, usable: UsableCores, *, is_arm: bool) -> int:
    """Return the threads to run a model with: on ARM one for each usable core that is not of the little kind.

    The threads of a matrix product wait for the slowest of them. With four large and four little cores (RK3588), all
    eight wrote 1.3 to 3.8 tokens/s where the large ones alone wrote 3.3 to 6.9; with two and six (Snapdragon 730) all eight
    took twice as long as two. Nothing of the kind is known of x86, and nothing was measured here.

    Source: llama.cpp issues 1571 and 7176, whisper.cpp issue 1248.
    """
    if not is_arm:
        return usable.n_cores
    cpus = set(usable.cpus)
    large = {cpu for group in cores.groups if group.kind == "performance" for cpu in group.cpus}
    n_large = sum(bool(cpus & large & set(core)) for core in cores.siblings)
    return min(usable.n_cores, n_large or usable.n_cores)


def core_cpus() -> tuple[int, ...]:
    """Return one logical CPU of each physical core that this process may use, the fastest cores first.

    () where the system does not number its CPUs or has no affinity (macOS).
    """
    if not hasattr(os, "sched_getaffinity"):
        return ()
    cores = probe_cores(Tree())
    return () if isinstance(cores, Unknown) else cpus_of_cores(cores, os.sched_getaffinity(0))


def cpus_of_cores(cores: Cores, allowed: Iterable[int]) -> tuple[int, ...]:
    """Return the first allowed logical CPU of each core, cores of the fastest group first."""
    cpus = set(allowed)
    return tuple(
        usable[0]
        for group in cores.groups
        for core in cores.siblings
        if set(core) & set(group.cpus) and (usable := sorted(cpus.intersection(core)))
    )


def probe_cores(tree: Tree) -> Cores | Unknown:
    """Read the cores of a Linux or Android system.

    Source: Linux, Documentation/ABI/stable/sysfs-devices-system-cpu and testing/sysfs-devices-system-cpu;
    arch/x86/events/intel/core.c for /sys/devices/cpu_core and cpu_atom.
    """
    online = online_cpus(tree)
    if not online:
        return Unknown(tree.why_no_text(f"{CPU_FOLDER}/online"))
    siblings = _siblings(tree, online)
    max_mhz = {cpu: khz / 1000 for cpu, khz in _numbers(tree, online, "cpufreq/cpuinfo_max_freq").items()}
    kinds, told_by = _kinds(tree, online, max_mhz)
    names = core_names(tree.text("proc/cpuinfo"))
    groups = []
    for kind, cpus in kinds:
        designs = dict.fromkeys(names[cpu] for cpu in cpus if cpu in names)
        groups.append(
            CoreGroup(
                kind=kind,
                cpus=cpus,
                n_cores=len({core for core in siblings if set(core) & set(cpus)}),
                n_threads=len(cpus),
                max_mhz=max((max_mhz[cpu] for cpu in cpus if cpu in max_mhz), default=None),
                name=" and ".join(designs),
            )
        )
    return Cores(groups=tuple(groups), siblings=siblings, told_by=told_by)


def probe_usable(tree: Tree, cores: Cores | Unknown) -> UsableCores | Unknown:
    """Return what affinity and cgroups leave of the cores of a Linux system. Source: proc(5), Cpus_allowed_list."""
    found = re.search(r"^Cpus_allowed_list:\s*(\S+)", tree.text("proc/self/status"), re.MULTILINE)
    if isinstance(cores, Unknown) or found is None:
        return cores if isinstance(cores, Unknown) else Unknown(tree.why_no_text("proc/self/status"))
    online = {cpu for core in cores.siblings for cpu in core}
    return usable_of(cores, online.intersection(parse_cpu_list(found.group(1))), cpu_quota(tree.root))


def usable_of(cores: Cores, allowed: Iterable[int], quota: float | None) -> UsableCores:
    """Return what a set of logical CPUs and a quota leave of the cores."""
    cpus = set(allowed)
    n_allowed = sum(bool(cpus.intersection(core)) for core in cores.siblings)
    is_rationed = quota is not None and quota < n_allowed
    n_cores = int(quota) if is_rationed and quota is not None else n_allowed
    return UsableCores(
        n_cores=max(1, n_cores),
        cpus=tuple(sorted(cpus)),
        quota=quota,
        limited_by="cgroup" if is_rationed else "affinity" if n_allowed < cores.n_cores else "",
    )


def online_cpus(tree: Tree) -> tuple[int, ...]:
    """Return the logical CPUs that are on; () where the system hides them."""
    if online := tree.cpus(f"{CPU_FOLDER}/online"):
        return online
    numbered = re.findall(r"^processor\s*:\s*(\d+)$", tree.text("proc/cpuinfo"), re.MULTILINE)
    return tuple(sorted(int(number) for number in numbered))


def _siblings(tree: Tree, online: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Return the CPUs of each core; one that tells no siblings is a core of its own."""
    cores: dict[tuple[int, ...], None] = {}
    seen: set[int] = set()
    for cpu in online:
        if cpu in seen:
            continue
        folder = f"{CPU_FOLDER}/cpu{cpu}/topology"
        listed = tree.cpus(f"{folder}/core_cpus_list") or tree.cpus(f"{folder}/thread_siblings_list")
        core = tuple(sorted({cpu, *listed}.intersection(online) - seen))
        seen.update(core)
        cores[core] = None
    return tuple(cores)


def _numbers(tree: Tree, cpus: tuple[int, ...], name: str) -> dict[int, int]:
    found = ((cpu, tree.number(f"{CPU_FOLDER}/cpu{cpu}/{name}")) for cpu in cpus)
    return {cpu: number for cpu, number in found if number is not None and number > 0}


def _kinds(
    tree: Tree, online: tuple[int, ...], max_mhz: Mapping[int, float]
) -> tuple[list[tuple[CoreKind, tuple[int, ...]]], str]:
    """Return (kind, CPUs) fastest first, and what told them apart."""
    large = tuple(cpu for cpu in tree.cpus("sys/devices/cpu_core/cpus") if cpu in online)
    small = tuple(cpu for cpu in online if cpu not in large)
    if large and small and tree.cpus("sys/devices/cpu_atom/cpus"):
        return [("performance", large), ("efficiency", small)], "cpu_core and cpu_atom"
    capacity = _numbers(tree, online, "cpu_capacity")
    if len(capacity) == len(online) and len(set(capacity.values())) > 1:
        return _clusters(capacity, _SAME_CAPACITY, _EFFICIENCY_CAPACITY), "cpu_capacity"
    if len(max_mhz) == len(online):
        return _clusters(max_mhz, _SAME_FREQUENCY, _EFFICIENCY_FREQUENCY), "cpuinfo_max_freq"
    return [("performance", online)], "cpu_capacity" if len(capacity) == len(online) else ""


def _clusters(
    rates: Mapping[int, float], same: float, efficiency: float
) -> list[tuple[CoreKind, tuple[int, ...]]]:
    """Put CPUs together whose rates lie within a share `same` of the highest among them."""
    best = max(rates.values())
    clusters: list[tuple[float, list[int]]] = []
    for cpu in sorted(rates, key=lambda cpu: (-rates[cpu], cpu)):
        if clusters and rates[cpu] >= same * clusters[-1][0]:
            clusters[-1][1].append(cpu)
        else:
            clusters.append((rates[cpu], [cpu]))
    return [
        ("efficiency" if top < efficiency * best else "performance", tuple(sorted(cpus)))
        for top, cpus in clusters
    ]
