"""The machine as Windows tells it, through kernel32.

Written from Microsoft's documentation of the structures in sysinfoapi.h, winnt.h and winbase.h; not run on Windows. The
parsers take bytes, so that tests can run them.
"""

from __future__ import annotations

import ctypes
import platform
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from qwen_edge.device.bandwidth import NOT_MEASURED
from qwen_edge.device.caches import Cache, CacheKind, NumaNode, last_level_bytes
from qwen_edge.device.cores import CoreGroup, Cores, UsableCores, usable_of
from qwen_edge.device.facts import Unknown
from qwen_edge.device.machine import Machine
from qwen_edge.device.memory import AvailableMemory, Swap, memory_limits, memory_of
from qwen_edge.device.power import Battery, PowerSource

# Source: winnt.h, LOGICAL_PROCESSOR_RELATIONSHIP and PROCESSOR_CACHE_TYPE.
_CORE, _NUMA, _CACHE, _ALL = 0, 1, 2, 0xFFFF
_CACHE_KINDS: dict[int, CacheKind] = {0: "unified", 1: "instruction", 2: "data"}
# Source: winnt.h, PF_*; Windows names no others that matter here (no FMA, F16C, VNNI, AMX).
_FEATURES = {
    40: "avx2",
    41: "avx512f",
    19: "asimd",
    43: "asimddp",
    46: "sve",
    47: "sve2",
    66: "i8mm",
    68: "bf16",
}
_ADMINISTRATORS = "Windows shows it to administrators only (WMI)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """What GetLogicalProcessorInformationEx tells."""

    cores: Cores | Unknown
    caches: tuple[Cache, ...] | Unknown
    numa: tuple[NumaNode, ...] | Unknown


def probe_windows() -> Machine:
    """Ask this system."""
    return machine_of(
        processor_information=_processor_information(),
        power_status=_power_status(),
        has_feature=_has_feature,
        cpu_name=processor_name(),
        affinity=_affinity(),
        limits=memory_limits(Path("/")),
        swap=_swap(),
    )


def machine_of(
    *,
    processor_information: bytes,
    power_status: bytes,
    has_feature: Callable[[int], bool],
    cpu_name: str,
    affinity: tuple[int, ...],
    limits: tuple[AvailableMemory, ...],
    swap: Swap | Unknown,
) -> Machine:
    """Return the machine that the answers of the system's functions describe.

    Args:
        processor_information: Of GetLogicalProcessorInformationEx(RelationAll).
        power_status: A SYSTEM_POWER_STATUS.
        has_feature: IsProcessorFeaturePresent.
        cpu_name: See `processor_name`.
        affinity: Logical CPUs this process may run on; () where that is not told.
        limits: See `memory_limits`.
        swap: The page file.
    """
    topology = parse_processor_information(processor_information)
    cores = topology.cores
    return Machine(
        system="windows",
        release=platform.release(),
        architecture=platform.machine(),
        model=Unknown("Windows tells it through WMI, which is not asked"),
        is_virtual=False,
        cpu_name=cpu_name,
        cores=cores,
        usable=cores if isinstance(cores, Unknown) else _usable(cores, affinity),
        instructions=tuple(sorted(name for number, name in _FEATURES.items() if has_feature(number))),
        caches=topology.caches,
        last_level_bytes=last_level_bytes(topology.caches),
        numa=topology.numa,
        memory=memory_of(limits, swap),
        bandwidth=NOT_MEASURED,
        power_source=parse_power_source(power_status),
        battery=parse_battery(power_status),
        energy_counters=Unknown("Windows has no counters of energy for programs"),
        thermal_zones=Unknown(_ADMINISTRATORS),
        throttling=Unknown(_ADMINISTRATORS),
        frequency=Unknown("Windows has power plans instead of governors; they are not asked"),
        boost=Unknown("Windows does not tell"),
    )


def parse_processor_information(buffer: bytes) -> Topology:
    """Read an array of SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX of a 64-bit system.

    Source: Microsoft Learn, winnt.h: PROCESSOR_RELATIONSHIP, CACHE_RELATIONSHIP, NUMA_NODE_RELATIONSHIP, GROUP_AFFINITY.
    """
    cores: dict[int, list[tuple[int, ...]]] = {}
    caches: dict[tuple[int, CacheKind, int, int], int] = {}
    nodes: list[NumaNode] = []
    for relation, body in _records(buffer):
        if relation == _CORE and len(body) >= 40:
            cores.setdefault(body[1], []).append(_cpus(body, n_groups_at=22, at=24))
        elif relation == _CACHE and len(body) >= 48:
            level, _, _, size, kind = struct.unpack_from("<BBHII", body)
            if kind in _CACHE_KINDS:
                key = (level, _CACHE_KINDS[kind], size, len(_cpus(body, n_groups_at=30, at=32)))
                caches[key] = caches.get(key, 0) + 1
        elif relation == _NUMA and len(body) >= 40:
            cpus = _cpus(body, n_groups_at=22, at=24)
            number = struct.unpack_from("<I", body)[0]
            nodes.append(NumaNode(number=number, cpus=cpus, total_bytes=None, free_bytes=None))
    silent = Unknown("GetLogicalProcessorInformationEx tells nothing of the kind")
    return Topology(
        cores=_cores(cores) if cores else silent,
        caches=tuple(
            Cache(level=level, kind=kind, size_bytes=size, n_instances=n_instances, n_sharing=n_sharing)
            for (level, kind, size, n_sharing), n_instances in sorted(caches.items())
        )
        or silent,
        numa=tuple(nodes) or silent,
    )


def _records(buffer: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (relationship, what follows the header) of each record; ends at one that cannot be."""
    offset = 0
    while offset + 8 <= len(buffer):
        relation, size = struct.unpack_from("<II", buffer, offset)
        if size < 8 or offset + size > len(buffer):
            return
        yield relation, buffer[offset + 8 : offset + size]
        offset += size


def _cpus(body: bytes, *, n_groups_at: int, at: int) -> tuple[int, ...]:
    """Read GROUP_AFFINITY entries: a group has up to 64 CPUs. Before Windows 10 20H2 the count is 0 and means one."""
    n_groups = max(1, struct.unpack_from("<H", body, n_groups_at)[0])
    cpus: list[int] = []
    for i in range(min(n_groups, (len(body) - at) // 16)):
        mask, group = struct.unpack_from("<QH", body, at + 16 * i)
        cpus += [64 * group + bit for bit in range(64) if mask >> bit & 1]
    return tuple(cpus)


def _cores(by_class: dict[int, list[tuple[int, ...]]]) -> Cores:
    """Group cores by efficiency class: the higher, the faster."""
    fastest = max(by_class)
    return Cores(
        groups=tuple(
            CoreGroup(
                kind="performance" if number == fastest else "efficiency",
                cpus=tuple(sorted(cpu for core in cores for cpu in core)),
                n_cores=len(cores),
                n_threads=sum(map(len, cores)),
            )
            for number, cores in sorted(by_class.items(), reverse=True)
        ),
        siblings=tuple(sorted(core for cores in by_class.values() for core in cores)),
        told_by="EfficiencyClass",
    )


def _usable(cores: Cores, affinity: tuple[int, ...]) -> UsableCores:
    allowed = affinity or tuple(cpu for core in cores.siblings for cpu in core)
    return usable_of(cores, allowed, quota=None)


def parse_power_source(status: bytes) -> PowerSource | Unknown:
    """Read ACLineStatus of SYSTEM_POWER_STATUS. Source: Microsoft Learn, winbase.h."""
    line = status[0] if len(status) >= 3 else 255
    return "mains" if line == 1 else "battery" if line == 0 else Unknown("Windows does not tell")


def parse_battery(status: bytes) -> Battery | Unknown:
    """Read the battery of SYSTEM_POWER_STATUS: flag 128 is none, 8 is charging, 255 unknown; percent 255 is unknown."""
    if len(status) < 3:
        return Unknown("GetSystemPowerStatus failed")
    line, flag, percent = status[:3]
    if flag != 255 and flag & 128:
        return Unknown("no battery: Windows finds none")
    if flag == 255 or percent > 100:
        return Unknown("Windows does not tell its charge")
    plugged = "full" if percent == 100 else "not charging"
    state = "charging" if flag & 8 else plugged if line == 1 else "discharging"
    return Battery(charge_percent=percent, status=state)


def processor_name() -> str:
    """Return the processor's name as the registry has it."""
    if sys.platform == "win32":
        import winreg

        try:
            with winreg.OpenKey(
                winreg.HKEY_LOCAL_MACHINE, r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
            ) as key:
                return str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()
        except OSError:
            pass
    return platform.processor() or platform.machine()


def _processor_information() -> bytes:
    if sys.platform == "win32":
        size = ctypes.c_uint32(0)
        ask = ctypes.windll.kernel32.GetLogicalProcessorInformationEx
        ask(_ALL, None, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        if ask(_ALL, buffer, ctypes.byref(size)):
            return buffer.raw[: size.value]
    return b""


def _power_status() -> bytes:
    if sys.platform == "win32":
        buffer = ctypes.create_string_buffer(12)
        if ctypes.windll.kernel32.GetSystemPowerStatus(buffer):
            return buffer.raw
    return b""


def _has_feature(number: int) -> bool:
    if sys.platform == "win32":
        return bool(ctypes.windll.kernel32.IsProcessorFeaturePresent(number))
    return False


def _affinity() -> tuple[int, ...]:
    if sys.platform == "win32":
        import psutil

        return tuple(psutil.Process().cpu_affinity() or ())
    return ()


def _swap() -> Swap | Unknown:
    if sys.platform == "win32":
        import psutil

        swap = psutil.swap_memory()
        return Swap(total_bytes=swap.total, free_bytes=swap.free, zram_bytes=0)
    return Unknown("not on Windows")
