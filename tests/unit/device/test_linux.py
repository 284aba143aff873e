"""Machines that are trees of files: what the probes make of them."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.device import trees

from qwen_edge.device import Unknown, known
from qwen_edge.device.cgroups import cpu_quota
from qwen_edge.device.cores import CoreGroup, Cores, cpus_of_cores
from qwen_edge.device.facts import Tree, parse_cpu_list
from qwen_edge.device.heat import Throttling, TripPoint, probe_throttling
from qwen_edge.device.linux import probe_android, probe_linux
from qwen_edge.device.machine import Machine
from qwen_edge.device.memory import Swap
from qwen_edge.device.power import Battery


def reason(fact: object) -> str:
    assert isinstance(fact, Unknown), fact
    return fact.reason


def groups(machine: Machine) -> list[tuple[str, tuple[int, ...], int]]:
    assert not isinstance(machine.cores, Unknown)
    return [(group.kind, group.cpus, group.n_cores) for group in machine.cores.groups]


def test_one_cpu_of_each_core_the_fastest_first(tmp_path: Path) -> None:
    laptop = probe_linux(trees.hybrid_laptop(tmp_path)).cores
    assert not isinstance(laptop, Unknown)
    assert [set(core) for core in laptop.siblings[:2]] == [{0, 1}, {2, 3}]
    assert cpus_of_cores(laptop, range(8)) == (0, 2, 4, 5, 6, 7)
    assert cpus_of_cores(laptop, (1, 3, 6)) == (1, 3, 6)
    small_first = Cores(
        groups=(
            CoreGroup(kind="performance", cpus=(4, 5), n_cores=2, n_threads=2),
            CoreGroup(kind="efficiency", cpus=(0, 1, 2, 3), n_cores=4, n_threads=4),
        ),
        siblings=tuple((cpu,) for cpu in range(6)),
        told_by="cpu_capacity",
    )
    assert cpus_of_cores(small_first, range(6)) == (4, 5, 0, 1, 2, 3)


def test_hybrid_laptop(tmp_path: Path) -> None:
    machine = probe_linux(trees.hybrid_laptop(tmp_path))
    assert machine.model == "Thin Laptop 14"
    assert machine.instructions == ("avx2", "avx_vnni", "f16c", "fma")
    assert groups(machine) == [("performance", (0, 1, 2, 3), 2), ("efficiency", (4, 5, 6, 7), 4)]
    assert not isinstance(machine.cores, Unknown)
    assert (machine.cores.n_cores, machine.cores.n_threads) == (6, 8)
    assert machine.cores.siblings[:3] == ((0, 1), (2, 3), (4,))
    assert [group.max_mhz for group in machine.cores.groups] == [4700, 3500]
    assert (machine.power_source, machine.battery) == (
        "battery",
        Battery(charge_percent=57, status="discharging", power_w=11.5),
    )
    assert machine.energy_counters == ("package-0",)
    assert machine.memory.swap == Swap(
        total_bytes=4_096_000_000, free_bytes=3_072_000_000, zram_bytes=4_096_000_000
    )
    assert machine.boost is True


def test_caches_of_a_hybrid_laptop(tmp_path: Path) -> None:
    machine = probe_linux(trees.hybrid_laptop(tmp_path))
    found = [
        (cache.level, cache.kind, cache.size_bytes >> 10, cache.n_instances, cache.n_sharing)
        for cache in known(machine.caches) or ()
    ]
    assert found == [
        (1, "data", 32, 4, 1),
        (1, "data", 48, 2, 2),
        (1, "instruction", 32, 2, 2),
        (1, "instruction", 64, 4, 1),
        (2, "unified", 1280, 2, 2),
        (2, "unified", 2048, 1, 4),
        (3, "unified", 12288, 1, 8),
    ]
    assert machine.last_level_bytes == 12 << 20


def test_heat_of_a_hybrid_laptop(tmp_path: Path) -> None:
    machine = probe_linux(trees.hybrid_laptop(tmp_path))
    (zone,) = known(machine.thermal_zones) or ()
    assert (zone.name, zone.celsius) == ("x86_pkg_temp", 71)
    # The trip that is not set is left out, the others stand in the order they will be met.
    assert zone.trips == (TripPoint(kind="passive", celsius=95), TripPoint(kind="critical", celsius=100))
    # 2 for each CPU of the fast cores, 5 once for the package.
    assert machine.throttling == Throttling(
        now=(), n_events=4 * 2 + 5, since_boot=(), told_by="thermal_throttle"
    )
    fast, small = known(machine.frequency) or ()
    assert (fast.governor, fast.cpus, fast.current_mhz, fast.max_mhz) == (
        "powersave",
        (0, 1, 2, 3),
        2100,
        2800,
    )
    assert (fast.is_held_down, small.is_held_down) == (True, False)


def test_amd_desktop(tmp_path: Path) -> None:
    machine = probe_linux(trees.amd_desktop(tmp_path))
    # Preferred cores are no kind of their own, and the battery of a mouse does not feed the machine.
    assert groups(machine) == [("performance", tuple(range(16)), 8)]
    assert known(machine.usable) is not None
    assert not isinstance(machine.usable, Unknown)
    assert (machine.usable.n_cores, machine.usable.limited_by) == (8, "")
    assert machine.last_level_bytes == 64 << 20
    assert [node.cpus for node in known(machine.numa) or ()] == [
        (0, 1, 2, 3, 8, 9, 10, 11),
        (4, 5, 6, 7, 12, 13, 14, 15),
    ]
    assert reason(machine.battery) == "no battery: none in /sys/class/power_supply"
    assert "energy_uj is not there" in reason(machine.energy_counters)
    assert machine.boost is True


def test_dense_cores_are_told_by_frequency(tmp_path: Path) -> None:
    trees.amd_desktop(tmp_path)
    slow = {
        f"{trees.CPU}/cpu{cpu}/cpufreq/cpuinfo_max_freq": 3_300_000 for cpu in (4, 5, 6, 7, 12, 13, 14, 15)
    }
    machine = probe_linux(trees.write_tree(tmp_path, slow))
    assert [(kind, n_cores) for kind, _, n_cores in groups(machine)] == [
        ("performance", 4),
        ("efficiency", 4),
    ]


def test_a_file_for_root_only_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trees.hybrid_laptop(tmp_path)
    counter = tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj"
    counter.unlink()

    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)  # root, who may run this, is refused nothing
    found = probe_linux(tmp_path).energy_counters
    assert reason(found) == "/sys/class/powercap/intel-rapl:0/energy_uj may not be read by this user"


def test_raspberry_pi(tmp_path: Path) -> None:
    machine = probe_linux(trees.raspberry_pi(tmp_path))
    assert (machine.model, machine.cpu_name) == ("Raspberry Pi 5 Model B Rev 1.0", "Cortex-A76")
    assert not isinstance(machine.cores, Unknown)
    assert machine.cores.groups == (
        CoreGroup(
            kind="performance", cpus=(0, 1, 2, 3), n_cores=4, n_threads=4, max_mhz=2400, name="Cortex-A76"
        ),
    )
    assert machine.last_level_bytes == 2 << 20
    assert machine.throttling == Throttling(
        now=("under-voltage", "throttled"),
        n_events=None,
        since_boot=("under-voltage", "throttled"),
        told_by="get_throttled",
    )
    assert [policy.governor for policy in known(machine.frequency) or ()] == ["ondemand"]


@pytest.mark.parametrize(
    ("said", "now"),
    [
        ("throttled=0x0\n", ()),
        ("throttled=0x80008\n", ("soft temperature limit",)),
        ("throttled=0x2", ("frequency capped",)),
    ],
)
def test_the_firmware_is_asked_where_the_kernel_does_not_tell(
    tmp_path: Path, said: str, now: tuple[str, ...]
) -> None:
    trees.raspberry_pi(tmp_path)
    (tmp_path / trees.PI5_FIRMWARE / "get_throttled").unlink()
    found = probe_throttling(Tree(tmp_path), lambda: said)
    assert not isinstance(found, Unknown)
    assert found.now == now


def test_a_cooling_device_at_work_is_throttling(tmp_path: Path) -> None:
    found = probe_throttling(
        Tree(
            trees.write_tree(
                tmp_path,
                {
                    f"{trees.THERMAL}/cooling_device0/type": "thermal-cpufreq-0",
                    f"{trees.THERMAL}/cooling_device0/cur_state": 3,
                    f"{trees.THERMAL}/cooling_device1/type": "pwm-fan",
                    f"{trees.THERMAL}/cooling_device1/cur_state": 2,
                },
            )
        )
    )
    assert found == Throttling(
        now=("thermal-cpufreq-0",), n_events=None, since_boot=(), told_by="cooling devices"
    )


GETPROP = """[ro.product.manufacturer]: [Vendor]
[ro.product.model]: [Phone 9]
[ro.soc.manufacturer]: [QTI]
[ro.soc.model]: [SM8350]
[persist.empty]: []
"""


def test_android_phone(tmp_path: Path) -> None:
    machine = probe_android(trees.android_phone(tmp_path), GETPROP)
    assert (machine.system, machine.model, machine.cpu_name) == ("android", "Vendor Phone 9", "QTI SM8350")
    assert groups(machine) == [
        ("performance", (7,), 1),
        ("performance", (4, 5, 6), 3),
        ("efficiency", (0, 1, 2, 3), 4),
    ]
    assert not isinstance(machine.cores, Unknown)
    assert [group.name for group in machine.cores.groups] == ["Cortex-X1", "Cortex-A78", "Cortex-A55"]
    assert machine.cores.told_by == "cpu_capacity"
    assert isinstance(machine.memory.swap, Swap)
    assert machine.memory.swap.zram_bytes == 3_072_000_000
    for hidden in (
        machine.battery,
        machine.caches,
        machine.last_level_bytes,
        machine.thermal_zones,
        machine.frequency,
    ):
        assert reason(hidden).endswith("Android hides it from apps")


def test_a_phone_without_capacities_is_told_by_frequency(tmp_path: Path) -> None:
    trees.android_phone(tmp_path)
    for cpu in range(8):
        (tmp_path / f"{trees.CPU}/cpu{cpu}/cpu_capacity").unlink()
    machine = probe_android(tmp_path, "")
    assert [(kind, n_cores) for kind, _, n_cores in groups(machine)] == [
        ("performance", 1),
        ("performance", 3),
        ("efficiency", 4),
    ]
    assert reason(machine.model) == "getprop tells no ro.product.model"


def test_bare_virtual_machine(tmp_path: Path) -> None:
    machine = probe_linux(trees.bare_virtual_machine(tmp_path))
    assert machine.is_virtual
    assert groups(machine) == [("performance", (0, 1), 2)]
    assert reason(machine.battery) == "no battery: /sys/class/power_supply is empty"
    assert reason(machine.power_source) == "/sys/class/power_supply is empty"
    assert reason(machine.thermal_zones) == "/sys/class/thermal is empty"
    assert reason(machine.frequency) == "/sys/devices/system/cpu/cpufreq is empty"
    assert "a virtual machine does not see it" in reason(machine.throttling)
    assert reason(machine.caches) == "/sys/devices/system/cpu/cpu0/cache is not there"
    assert reason(machine.last_level_bytes) == reason(machine.caches)


def test_container_with_limits(tmp_path: Path) -> None:
    machine = probe_linux(trees.limited_container(tmp_path))
    assert not isinstance(machine.usable, Unknown)
    assert machine.usable.cpus == (0, 1, 2, 3, 8, 9)
    assert (machine.usable.n_cores, machine.usable.quota, machine.usable.limited_by) == (2, 2.5, "cgroup")
    assert [limit.limited_by for limit in machine.memory.limits] == ["system", "cgroup"]
    assert machine.memory.available.available_bytes == 3_000_000_000
    assert machine.memory.total_bytes == 32_000_000 * 1024


def test_threads_of_one_core_are_one_core(tmp_path: Path) -> None:
    trees.amd_desktop(tmp_path)
    machine = probe_linux(trees.write_tree(tmp_path, {"proc/self/status": "Cpus_allowed_list:\t3,11"}))
    assert not isinstance(machine.usable, Unknown)
    assert (machine.usable.n_cores, machine.usable.limited_by) == (1, "affinity")


def test_quota_of_cgroups_v1(tmp_path: Path) -> None:
    trees.write_tree(
        tmp_path,
        {
            "proc/self/cgroup": "3:cpu,cpuacct:/docker/a",
            "sys/fs/cgroup/cpu,cpuacct/docker/a/cpu.cfs_quota_us": 150000,
            "sys/fs/cgroup/cpu,cpuacct/docker/a/cpu.cfs_period_us": 100000,
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": -1,
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": 100000,
        },
    )
    assert cpu_quota(tmp_path) == 1.5


def test_an_empty_tree_gives_reasons_only(tmp_path: Path) -> None:
    found = probe_linux(tmp_path, vcgencmd=lambda: "").to_dict()
    assert {"cores", "usable", "caches", "battery", "thermal_zones", "throttling", "frequency"} <= set(
        found["unknown"]
    )
    assert all("not" in text for text in found["unknown"].values())
    assert found["cores"] is None


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trees.hybrid_laptop(tmp_path_factory.mktemp("laptop"))


@settings(deadline=None)
@given(damage=st.binary(max_size=40), which=st.integers(min_value=0))
def test_damaged_files_cost_facts_and_no_more(laptop: Path, damage: bytes, which: int) -> None:
    files = sorted(path for path in laptop.rglob("*") if path.is_file())
    file = files[which % len(files)]
    whole = file.read_bytes()
    file.write_bytes(damage)
    try:
        json.dumps(probe_linux(laptop).to_dict())
    finally:
        file.write_bytes(whole)


@settings(deadline=None)
@given(st.sets(st.integers(0, 300), min_size=1))
def test_lists_of_cpus(cpus: set[int]) -> None:
    assert parse_cpu_list(",".join(map(str, sorted(cpus)))) == tuple(sorted(cpus))
    assert parse_cpu_list(f"{min(cpus)}-{max(cpus)}\n") == tuple(range(min(cpus), max(cpus) + 1))


@pytest.mark.parametrize("text", ["", "\n", "none", "-", "3-", "0-99999999999", "²"])
def test_what_is_no_list_of_cpus(text: str) -> None:
    assert len(parse_cpu_list(text)) <= 1 << 17
