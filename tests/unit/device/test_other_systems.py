"""macOS and Windows: answers written from the documentation of Apple and Microsoft; none was recorded there."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_edge.device import Unknown, macos, windows
from qwen_edge.device.cores import CoreGroup
from qwen_edge.device.heat import Throttling
from qwen_edge.device.machine import Machine
from qwen_edge.device.memory import AvailableMemory, Swap
from qwen_edge.device.power import Battery

MEMORY = (
    AvailableMemory(available_bytes=6_000_000_000, total_bytes=16_000_000_000, limited_by="system", reason="as given"),
)  # fmt: skip

# Names of "Determining system capabilities" and "Determining instruction set characteristics" (sysctlbyname, Apple).
APPLE_SYSCTL = """hw.model: MacBookAir10,1
hw.ncpu: 8
hw.physicalcpu: 8
hw.logicalcpu: 8
hw.nperflevels: 2
hw.perflevel0.name: Performance
hw.perflevel0.physicalcpu: 4
hw.perflevel0.logicalcpu: 4
hw.perflevel0.l1icachesize: 196608
hw.perflevel0.l1dcachesize: 131072
hw.perflevel0.l2cachesize: 12582912
hw.perflevel0.cpusperl2: 4
hw.perflevel1.name: Efficiency
hw.perflevel1.physicalcpu: 4
hw.perflevel1.logicalcpu: 4
hw.perflevel1.l1icachesize: 131072
hw.perflevel1.l1dcachesize: 65536
hw.perflevel1.l2cachesize: 4194304
hw.perflevel1.cpusperl2: 4
hw.optional.AdvSIMD: 1
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_FP16: 1
hw.optional.arm.FEAT_I8MM: 0
machdep.cpu.brand_string: Apple M1
vm.swapusage: total = 2048.00M  used = 1024.00M  free = 1024.00M  (encrypted)
kern.hv_vmm_present: 0
"""
INTEL_SYSCTL = """hw.model: MacBookPro15,1
hw.physicalcpu: 6
hw.logicalcpu: 12
hw.cpufrequency_max: 2600000000
hw.l1dcachesize: 32768
hw.l2cachesize: 262144
hw.l3cachesize: 12582912
machdep.cpu.brand_string: Intel(R) Core(TM) i7-8850H
machdep.cpu.features: FPU SSE4.2 FMA F16C
machdep.cpu.leaf7_features: AVX2 BMI2
"""
ON_BATTERY = """Now drawing from 'Battery Power'
 -InternalBattery-0 (id=4653155)\t85%; discharging; 4:10 remaining present: true
"""
CHARGED = """Now drawing from 'AC Power'
 -InternalBattery-0 (id=4653155)\t100%; charged; 0:00 remaining present: true
"""
THERM = "2026-01-01 10:00:00 +0100 CPU Power notify\n\tCPU_Scheduler_Limit \t= 100\n\tCPU_Speed_Limit \t= {limit}\n"
NO_THERM = "Note: No thermal warning level has been recorded\nNote: No CPU power status has been recorded\n"


def test_apple_silicon() -> None:
    machine = macos.machine_of(APPLE_SYSCTL, ON_BATTERY, NO_THERM, MEMORY)
    assert (machine.model, machine.cpu_name, machine.is_virtual) == ("MacBookAir10,1", "Apple M1", False)
    assert not isinstance(machine.cores, Unknown)
    assert machine.cores.groups == (
        CoreGroup(kind="performance", cpus=(), n_cores=4, n_threads=4, name="Performance"),
        CoreGroup(kind="efficiency", cpus=(), n_cores=4, n_threads=4, name="Efficiency"),
    )
    assert not isinstance(machine.usable, Unknown)
    assert machine.usable.n_cores == 8
    assert machine.instructions == ("asimd", "asimddp", "fphp")
    assert machine.last_level_bytes == 16 << 20
    assert machine.memory.swap == Swap(total_bytes=2 << 30, free_bytes=1 << 30, zram_bytes=0)
    assert machine.power_source == "battery"
    assert machine.battery == Battery(charge_percent=85, status="discharging")
    assert isinstance(machine.throttling, Unknown)


def test_intel_mac() -> None:
    machine = macos.machine_of(INTEL_SYSCTL, CHARGED, THERM.format(limit=72), MEMORY)
    assert not isinstance(machine.cores, Unknown)
    assert [(group.n_cores, group.n_threads, group.max_mhz) for group in machine.cores.groups] == [
        (6, 12, 2600)
    ]
    assert machine.instructions == ("avx2", "f16c", "fma")
    assert not isinstance(machine.caches, Unknown)
    assert [(cache.level, cache.n_instances, cache.n_sharing) for cache in machine.caches] == [
        (1, 6, 2),
        (2, 6, 2),
        (3, 1, 12),
    ]
    assert machine.power_source == "mains"
    assert machine.battery == Battery(charge_percent=100, status="full")
    assert machine.throttling == Throttling(
        now=("speed limit 72%",), n_events=None, since_boot=(), told_by="pmset"
    )


@settings(deadline=None)
@given(st.text(max_size=200), st.text(max_size=100))
def test_other_text_from_a_mac_gives_reasons(sysctl: str, pmset: str) -> None:
    assert isinstance(macos.machine_of(sysctl, pmset, pmset, MEMORY), Machine)
    assert isinstance(macos.machine_of("", "", "", MEMORY).cores, Unknown)


def affinity(mask: int, group: int = 0) -> bytes:
    """A GROUP_AFFINITY."""
    return struct.pack("<QHHHH", mask, group, 0, 0, 0)


def record(relation: int, body: bytes) -> bytes:
    """A SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX."""
    return struct.pack("<II", relation, 8 + len(body)) + body


def core(mask: int, efficiency_class: int, group: int = 0) -> bytes:
    """A PROCESSOR_RELATIONSHIP."""
    return record(
        0, struct.pack("<BB20xH", mask.bit_count() > 1, efficiency_class, 1) + affinity(mask, group)
    )


def cache(level: int, kind: int, size: int, mask: int, n_groups: int = 1) -> bytes:
    """A CACHE_RELATIONSHIP; systems before Windows 10 20H2 leave the number of groups 0."""
    return record(2, struct.pack("<BBHII18xH", level, 8, 64, size, kind, n_groups) + affinity(mask))


def node(number: int, mask: int) -> bytes:
    """A NUMA_NODE_RELATIONSHIP."""
    return record(1, struct.pack("<I18xH", number, 1) + affinity(mask))


HYBRID = (
    core(0b11, 1)
    + core(0b1100, 1)
    + core(0b10000, 0)
    + core(0b100000, 0)
    + cache(1, 2, 48 << 10, 0b11)
    + cache(1, 2, 48 << 10, 0b1100)
    + cache(3, 0, 12 << 20, 0b111111, n_groups=0)
    + node(0, 0b111111)
)


def windows_machine(information: bytes, status: bytes, affinity: tuple[int, ...] = ()) -> Machine:
    return windows.machine_of(
        processor_information=information,
        power_status=status,
        has_feature=lambda number: number == 40,
        cpu_name="CPU",
        affinity=affinity,
        limits=MEMORY,
        swap=Swap(total_bytes=1, free_bytes=1, zram_bytes=0),
    )


def test_windows_hybrid() -> None:
    machine = windows_machine(HYBRID, bytes([0, 0, 41, *bytes(9)]))
    assert not isinstance(machine.cores, Unknown)
    assert machine.cores.groups == (
        CoreGroup(kind="performance", cpus=(0, 1, 2, 3), n_cores=2, n_threads=4),
        CoreGroup(kind="efficiency", cpus=(4, 5), n_cores=2, n_threads=2),
    )
    assert not isinstance(machine.caches, Unknown)
    assert [(found.level, found.kind, found.n_instances, found.n_sharing) for found in machine.caches] == [
        (1, "data", 2, 2),
        (3, "unified", 1, 6),
    ]
    assert machine.last_level_bytes == 12 << 20
    assert machine.instructions == ("avx2",)
    assert (machine.power_source, machine.battery) == (
        "battery",
        Battery(charge_percent=41, status="discharging"),
    )
    assert not isinstance(machine.numa, Unknown)
    assert [found.cpus for found in machine.numa] == [(0, 1, 2, 3, 4, 5)]


def test_windows_affinity() -> None:
    machine = windows_machine(HYBRID, b"", affinity=(0, 1, 4))
    assert not isinstance(machine.usable, Unknown)
    assert (machine.usable.n_cores, machine.usable.limited_by) == (2, "affinity")


def test_windows_counts_cpus_across_groups() -> None:
    cores = windows.parse_processor_information(core(1, 0) + core(0b10, 0, group=1)).cores
    assert not isinstance(cores, Unknown)
    assert cores.siblings == ((0,), (65,))


@pytest.mark.parametrize(
    ("status", "source", "battery"),
    [
        ([1, 8, 60], "mains", "charging"),
        ([1, 0, 60], "mains", "not charging"),
        ([1, 1, 100], "mains", "full"),
        ([1, 128, 255], "mains", "no battery: Windows finds none"),
        ([255, 255, 255], "Windows does not tell", "Windows does not tell its charge"),
        ([], "Windows does not tell", "GetSystemPowerStatus failed"),
    ],
)
def test_windows_power(status: list[int], source: str, battery: str) -> None:
    found, charge = windows.parse_power_source(bytes(status)), windows.parse_battery(bytes(status))
    assert (found.reason if isinstance(found, Unknown) else found) == source
    assert (charge.reason if isinstance(charge, Unknown) else charge.status) == battery


@settings(deadline=None)
@given(st.binary(max_size=200) | st.integers(0, len(HYBRID)).map(lambda end: HYBRID[:end]))
def test_any_bytes_from_windows(information: bytes) -> None:
    windows_machine(information, information[:12]).to_dict()
