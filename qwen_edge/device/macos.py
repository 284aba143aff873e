"""The machine as macOS tells it, through `sysctl` and `pmset`.

Written from Apple's documentation (sysctlbyname, "Determining system capabilities"; pmset(1)); not run on a Mac. The
parsers take text, so that tests can run them.
"""

from __future__ import annotations

import platform
import re
from pathlib import Path

from qwen_edge.device.bandwidth import NOT_MEASURED
from qwen_edge.device.caches import Cache, CacheKind, last_level_bytes
from qwen_edge.device.cores import CoreGroup, Cores, UsableCores
from qwen_edge.device.cpuinfo import features_in_sysctl, output_of, sysctl_fields
from qwen_edge.device.facts import Unknown
from qwen_edge.device.heat import Throttling
from qwen_edge.device.machine import Machine
from qwen_edge.device.memory import AvailableMemory, Swap, memory_limits, memory_of
from qwen_edge.device.power import Battery, PowerSource

_SYSCTL = ["sysctl", "hw", "machdep.cpu", "vm.swapusage", "kern.hv_vmm_present"]
_TIMEOUT_S = 5
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def probe_macos() -> Machine:
    """Ask this Mac."""
    return machine_of(
        output_of(_SYSCTL, timeout_s=_TIMEOUT_S),
        output_of(["pmset", "-g", "batt"], timeout_s=_TIMEOUT_S),
        output_of(["pmset", "-g", "therm"], timeout_s=_TIMEOUT_S),
        memory_limits(Path("/")),
    )


def machine_of(sysctl: str, batteries: str, therm: str, limits: tuple[AvailableMemory, ...]) -> Machine:
    """Return the machine that the output of the system's tools describes.

    Args:
        sysctl: Of `sysctl hw machdep.cpu vm.swapusage kern.hv_vmm_present`.
        batteries: Of `pmset -g batt`.
        therm: Of `pmset -g therm`.
        limits: See `memory_limits`.
    """
    fields = sysctl_fields(sysctl)
    cores = parse_cores(fields)
    caches = parse_caches(fields)
    instructions = features_in_sysctl(fields)
    return Machine(
        system="macos",
        release=platform.release(),
        architecture=platform.machine(),
        model=fields.get("hw.model") or Unknown("sysctl tells no hw.model"),
        is_virtual=fields.get("kern.hv_vmm_present") == "1",
        cpu_name=fields.get("machdep.cpu.brand_string", platform.machine()),
        cores=cores,
        usable=cores
        if isinstance(cores, Unknown)
        else UsableCores(n_cores=cores.n_cores, cpus=(), quota=None, limited_by=""),
        instructions=instructions or Unknown("sysctl tells no instruction sets"),
        caches=caches,
        last_level_bytes=last_level_bytes(caches),
        numa=Unknown("macOS has one memory for all cores"),
        memory=memory_of(limits, parse_swap(fields)),
        bandwidth=NOT_MEASURED,
        power_source=parse_power_source(batteries),
        battery=parse_battery(batteries),
        energy_counters=Unknown("macOS shows power to root only (powermetrics)"),
        thermal_zones=Unknown("macOS shows no temperatures to programs"),
        throttling=parse_therm(therm),
        frequency=Unknown("macOS does not tell how it chooses frequencies"),
        boost=Unknown("macOS does not tell"),
    )


def parse_cores(fields: dict[str, str]) -> Cores | Unknown:
    """Read cores by performance level; level 0 is the fastest. Intel Macs have no levels."""
    mhz = _number(fields, "hw.cpufrequency_max")
    levels = [f"hw.perflevel{i}." for i in range(_number(fields, "hw.nperflevels") or 0)]
    groups = []
    for i, level in enumerate(levels or ["hw."]):
        n_cores = _number(fields, f"{level}physicalcpu")
        if not n_cores:
            continue
        groups.append(
            CoreGroup(
                kind="efficiency" if i else "performance",
                cpus=(),
                n_cores=n_cores,
                n_threads=_number(fields, f"{level}logicalcpu") or n_cores,
                max_mhz=mhz / 1e6 if mhz else None,
                name=fields.get(f"{level}name", ""),
            )
        )
    if not groups:
        return Unknown("sysctl tells no hw.physicalcpu")
    return Cores(groups=tuple(groups), siblings=(), told_by="hw.perflevel" if levels else "")


def parse_caches(fields: dict[str, str]) -> tuple[Cache, ...] | Unknown:
    """Read the caches of each performance level, or of an Intel Mac."""
    names: tuple[tuple[int, CacheKind, str], ...] = (
        (1, "data", "l1dcachesize"),
        (1, "instruction", "l1icachesize"),
        (2, "unified", "l2cachesize"),
        (3, "unified", "l3cachesize"),
    )
    found = []
    for prefix in [f"hw.perflevel{i}." for i in range(_number(fields, "hw.nperflevels") or 0)] or ["hw."]:
        n_cpus = _number(fields, f"{prefix}logicalcpu") or _number(fields, f"{prefix}physicalcpu") or 1
        n_cores = _number(fields, f"{prefix}physicalcpu") or n_cpus
        for level, kind, name in names:
            size = _number(fields, prefix + name)
            if not size:
                continue
            # Without a word on it: levels 1 and 2 belong to a core, level 3 to all.
            own = n_cpus // n_cores if level < 3 else n_cpus
            n_sharing = _number(fields, f"{prefix}cpusperl{level}") or own
            found.append(
                Cache(
                    level=level,
                    kind=kind,
                    size_bytes=size,
                    n_instances=max(1, n_cpus // n_sharing),
                    n_sharing=n_sharing,
                )
            )
    return tuple(sorted(found, key=lambda cache: cache.level)) or Unknown("sysctl tells no cache sizes")


def parse_swap(fields: dict[str, str]) -> Swap | Unknown:
    """Read `vm.swapusage: total = 2048.00M  used = 1022.75M  free = 1025.25M  (encrypted)`; grows as needed."""
    sizes = {
        name: int(float(number) * _UNITS[unit])
        for name, number, unit in re.findall(
            r"(total|free) = (\d+(?:\.\d+)?)([KMG])", fields.get("vm.swapusage", "")
        )
    }
    if "total" not in sizes:
        return Unknown("sysctl tells no vm.swapusage")
    return Swap(total_bytes=sizes["total"], free_bytes=sizes.get("free", 0), zram_bytes=0)


def parse_power_source(batteries: str) -> PowerSource | Unknown:
    """Read the first line of `pmset -g batt`: Now drawing from 'AC Power'."""
    found = re.search(r"drawing from '([^']+)'", batteries)
    if found is None:
        return Unknown("pmset tells no power source")
    return "battery" if found.group(1) == "Battery Power" else "mains"


def parse_battery(batteries: str) -> Battery | Unknown:
    """Read the line of the battery: -InternalBattery-0 (id=1)  85%; discharging; 4:10 remaining present: true."""
    found = re.search(r"-InternalBattery.*?(\d+)%;\s*([^;]+)", batteries)
    if found is None:
        return Unknown("no battery: pmset lists none")
    status = {"charged": "full", "finishing charge": "charging", "AC attached": "not charging"}
    return Battery(charge_percent=int(found.group(1)), status=status.get(found.group(2), found.group(2)))


def parse_therm(therm: str) -> Throttling | Unknown:
    """Read `pmset -g therm`: a speed limit in percent on Intel Macs, notes elsewhere."""
    found = re.search(r"CPU_Speed_Limit\s*=\s*(\d+)", therm)
    if found is None:
        return Unknown("pmset tells no CPU_Speed_Limit: only Intel Macs have one")
    limit = int(found.group(1))
    now = (f"speed limit {limit}%",) if limit < 100 else ()
    return Throttling(now=now, n_events=None, since_boot=(), told_by="pmset")


def _number(fields: dict[str, str], name: str) -> int | None:
    text = fields.get(name, "").strip()
    return int(text) if text.isdecimal() else None
