"""Phones and boards, as trees that are written from documentation: nothing here was recorded on a device."""

from __future__ import annotations

import errno
import platform
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.device import arm_trees, trees

from qwen_edge import device
from qwen_edge.config import LoadConfig
from qwen_edge.device import cores, memory
from qwen_edge.device.cores import Cores, UsableCores, default_threads, probe_cores, threads_for, usable_of
from qwen_edge.device.facts import Tree, Unknown, known, on_android
from qwen_edge.device.heat import Throttling, probe_throttling
from qwen_edge.device.linux import probe_android, probe_linux
from qwen_edge.device.memory import available_memory_bytes, memory_limits
from qwen_edge.device.memory_killer import MemoryPressure, probe_memory_killer, probe_pressure
from qwen_edge.memory_plan import plan_memory

RESERVE_BYTES = 221_184 * 1024


def cores_of(root: Path) -> Cores:
    found = probe_cores(Tree(root))
    assert not isinstance(found, Unknown)
    return found


def everything(found: Cores) -> UsableCores:
    return usable_of(found, {cpu for group in found.groups for cpu in group.cpus}, None)


def test_phone_of_three_clusters_written_from_documentation(tmp_path: Path) -> None:
    machine = probe_android(arm_trees.open_phone(tmp_path), "")
    found = cores_of(tmp_path)
    assert [(group.kind, group.cpus, group.name) for group in found.groups] == [
        ("performance", (7,), "Cortex-X1"),
        ("performance", (4, 5, 6), "Cortex-A78"),
        ("efficiency", (0, 1, 2, 3), "Cortex-A55"),
    ]
    assert machine.throttling == Throttling(
        now=("cpufreq-cpu4",), n_events=None, since_boot=(), told_by="cooling devices"
    )
    policies = known(machine.frequency) or ()
    assert [(policy.cpus, policy.is_held_down) for policy in policies] == [
        ((0, 1, 2, 3), False),
        ((4, 5, 6), True),
        ((7,), False),
    ]
    warmest = max(known(machine.thermal_zones) or (), key=lambda zone: zone.celsius or 0)
    assert (warmest.name, warmest.celsius) == ("cpu-1-3-usr", 92.4)
    assert machine.power_source == "battery"


def test_memory_of_a_phone_written_from_documentation(tmp_path: Path) -> None:
    found = probe_android(arm_trees.open_phone(tmp_path), "").memory
    assert found.pressure == MemoryPressure(some_percent=14.25, full_percent=3.5)
    assert found.killer is not None
    assert (found.killer.oom_score_adj, found.killer.told_by) == (200, "lowmemorykiller")
    levels = found.killer.levels
    assert not isinstance(levels, Unknown)
    assert levels[0] == (0, 72 << 20)
    assert levels[-1] == (950, 315 << 20)
    # The level at which programs in the background are ended: 55,296 pages, which is Android's default too.
    assert found.killer.reserve_bytes == RESERVE_BYTES
    assert found.available.limited_by == "memory killer"
    assert found.available.available_bytes == 2_900_000 * 1024 - RESERVE_BYTES
    assert found.available.reason.endswith("are free, and below 0.23 GB Android ends programs")
    swap = known(found.swap)
    assert swap is not None
    assert (swap.zram_bytes, swap.free_bytes) == (3_000_000 * 1024, 1_200_000 * 1024)


def test_what_android_hides_is_said_and_its_default_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SELinux refuses apps the killer's levels and the pressure; root, who may run this test, is refused nothing."""
    arm_trees.open_phone(tmp_path)
    hidden = (arm_trees.KILLER, "proc/pressure", "thermal")
    may_read, read_bytes = Tree.text, Path.read_bytes

    def text(tree: Tree, name: str) -> str:
        return "" if any(part in name for part in hidden) else may_read(tree, name)

    def refuse(path: Path) -> bytes:
        if any(part in str(path) for part in hidden):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Tree, "text", text)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    found = probe_android(tmp_path, "").memory
    refused = "may not be read by this user; Android hides it from apps"
    assert found.pressure == Unknown(f"/proc/pressure/memory {refused}")
    assert found.killer is not None
    assert found.killer.levels == Unknown(f"/{arm_trees.KILLER}/minfree {refused}")
    assert (found.killer.reserve_bytes, found.killer.told_by) == (RESERVE_BYTES, "Android's default")
    assert probe_android(tmp_path, "").to_dict()["unknown"]["memory.pressure"].endswith(refused)


@pytest.mark.parametrize(
    ("adj", "minfree", "why"),
    [
        ("0,100", "1024", "the files of /sys/module/lowmemorykiller/parameters do not fit each other"),
        ("0,x", "1024,2048", "/sys/module/lowmemorykiller/parameters/adj"),
        ("", "", "/sys/module/lowmemorykiller/parameters/minfree is empty"),
    ],
)
def test_levels_that_are_no_levels(tmp_path: Path, adj: str, minfree: str, why: str) -> None:
    files = {f"{arm_trees.KILLER}/adj": adj, f"{arm_trees.KILLER}/minfree": minfree}
    killer = probe_memory_killer(Tree(trees.write_tree(tmp_path, files)))
    assert isinstance(killer.levels, Unknown)
    assert killer.levels.reason.startswith(why)
    assert killer.reserve_bytes == RESERVE_BYTES


@given(st.text(max_size=80))
def test_no_text_of_a_pressure_file_ends_the_probe(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    root = tmp_path_factory.mktemp("tree")
    (root / "proc/pressure").mkdir(parents=True)
    (root / "proc/pressure/memory").write_text(text, errors="replace")
    found = probe_pressure(Tree(root))
    assert isinstance(found, Unknown | MemoryPressure)


def test_only_android_keeps_memory_for_its_killer(tmp_path: Path) -> None:
    arm_trees.open_phone(tmp_path)
    assert [limit.limited_by for limit in memory_limits(tmp_path, is_android=False)] == ["system"]
    assert [limit.limited_by for limit in memory_limits(tmp_path, is_android=True)] == [
        "system",
        "memory killer",
    ]
    assert probe_linux(tmp_path).memory.killer is None
    (tmp_path / "proc/meminfo").write_text("MemTotal: 2000000 kB\nMemAvailable: 100000 kB\n")
    assert memory_limits(tmp_path, is_android=True)[1].available_bytes == 0


def test_a_plan_on_android_leaves_what_the_killer_wants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = LoadConfig(n_ctx=512)
    need_bytes = plan_memory("qwen3-0.6b@q8_0", config).need.wanted_bytes
    arm_trees.open_phone(tmp_path)
    available_kib = (need_bytes + RESERVE_BYTES // 2) // 1024
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: 8000000 kB\nMemAvailable: {available_kib} kB\n")
    for is_android, fits in ((False, True), (True, False)):
        monkeypatch.setattr(memory, "on_android", lambda answer=is_android: answer)
        free = available_memory_bytes(tmp_path)
        monkeypatch.setattr(device, "available_memory_bytes", lambda answer=free: answer)
        plan = plan_memory("qwen3-0.6b@q8_0", config)
        assert (plan.free.limited_by, plan.fits) == ("memory killer" if is_android else "system", fits)


@pytest.mark.parametrize(
    ("platform_name", "expected"), [("android", True), ("linux", False), ("darwin", False)]
)
def test_android_is_told_by_its_platform(
    monkeypatch: pytest.MonkeyPatch, platform_name: str, expected: bool
) -> None:
    monkeypatch.setattr(sys, "platform", platform_name)
    monkeypatch.delattr(sys, "getandroidapilevel", raising=False)
    assert on_android() is expected
    monkeypatch.setattr(
        sys, "getandroidapilevel", lambda: 24, raising=False
    )  # Python 3.11 and 3.12 in Termux
    assert on_android()


def test_threads_of_phones_written_from_documentation(tmp_path: Path) -> None:
    phone = cores_of(arm_trees.open_phone(tmp_path / "phone"))
    assert threads_for(phone, everything(phone), is_arm=True) == 4
    cheap = cores_of(arm_trees.two_big_six_little(tmp_path / "cheap"))
    assert threads_for(cheap, everything(cheap), is_arm=True) == 2
    # An app in the background may be kept to the little cores: they are all there is then.
    assert threads_for(cheap, usable_of(cheap, (0, 1, 2), None), is_arm=True) == 3
    assert threads_for(phone, usable_of(phone, range(8), 2.5), is_arm=True) == 2
    board = cores_of(arm_trees.raspberry_pi_4(tmp_path / "board"))
    assert threads_for(board, everything(board), is_arm=True) == 4


def test_threads_of_x86_stay_one_a_core(tmp_path: Path) -> None:
    laptop = cores_of(trees.hybrid_laptop(tmp_path))
    assert threads_for(laptop, everything(laptop), is_arm=False) == 6


def test_the_default_asks_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phone = arm_trees.open_phone(tmp_path)
    monkeypatch.setattr(cores, "Tree", lambda: Tree(phone))
    monkeypatch.setattr(cores, "cpu_quota", lambda _: None)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(sys, "platform", "android")
    assert (device.usable_cores(), default_threads()) == (8, 4)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert default_threads() == 8


def test_raspberry_pi_4_written_from_documentation(tmp_path: Path) -> None:
    machine = probe_linux(arm_trees.raspberry_pi_4(tmp_path, throttled="80000"))
    assert (machine.model, machine.cpu_name) == ("Raspberry Pi 4 Model B Rev 1.5", "Cortex-A72")
    assert machine.throttling == Throttling(
        now=(), n_events=None, since_boot=("soft temperature limit",), told_by="get_throttled"
    )
    assert machine.memory.pressure == MemoryPressure(some_percent=0, full_percent=0)
    swap = known(machine.memory.swap)
    assert swap is not None
    assert swap.zram_bytes == 1_794_000 * 1024
    assert machine.last_level_bytes == 1 << 20


def test_raspberry_pi_5_without_firmware_flags_written_from_documentation(tmp_path: Path) -> None:
    arm_trees.raspberry_pi_5_on_another_kernel(tmp_path)
    found = probe_throttling(Tree(tmp_path), lambda: "")
    assert found == Throttling(
        now=("under-voltage",), n_events=None, since_boot=(), told_by="rpi_volt and cooling devices"
    )
    trees.write_tree(tmp_path, {"sys/class/hwmon/hwmon1/in0_lcrit_alarm": 0})
    found = probe_throttling(Tree(tmp_path), lambda: "")
    assert not isinstance(found, Unknown)
    assert found.now == ()
    # The firmware's own tool knows more, where there is one.
    found = probe_throttling(Tree(tmp_path), lambda: "throttled=0x50005")
    assert not isinstance(found, Unknown)
    assert found.now == ("under-voltage", "throttled")
