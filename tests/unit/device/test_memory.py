"""What memory is free, read from trees of /proc and /sys that are written here."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_edge.device import available_memory_bytes

GB = 1_000_000_000
UNLIMITED_V1 = "9223372036854771712"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with 16 GB, of which 12 GB are free, without limits."""
    write(
        tmp_path,
        "proc/meminfo",
        f"MemTotal: {16 * GB // 1024} kB\nMemFree: 5 kB\nMemAvailable: {12 * GB // 1024} kB\n",
    )
    write(
        tmp_path, "proc/self/status", "Name:\tpython\nVmSize:\t 100000 kB\nVmData:\t 50000 kB\nThreads:\t1\n"
    )
    write(tmp_path, "proc/self/limits", LIMITS.format(space="unlimited", data="unlimited"))
    return tmp_path


LIMITS = """Limit                     Soft Limit           Hard Limit           Units
Max data size             {data}            unlimited            bytes
Max address space         {space}           unlimited            bytes
"""


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_v2(folder: Path, limit: str, current: int, cache: int = 0) -> None:
    write(folder, "memory.max", f"{limit}\n")
    write(folder, "memory.current", f"{current}\n")
    write(folder, "memory.stat", f"anon 7\nfile {cache + 9}\ninactive_file {cache}\nactive_file 0\nshmem 9\n")


def write_v1(folder: Path, limit: str, usage: int, cache: int = 0) -> None:
    write(folder, "memory.limit_in_bytes", f"{limit}\n")
    write(folder, "memory.usage_in_bytes", f"{usage}\n")
    write(folder, "memory.stat", f"total_inactive_file 0\ntotal_active_file {cache}\ninactive_file 1\n")


def test_without_limits_the_system_decides(root: Path) -> None:
    found = available_memory_bytes(root)
    assert found.limited_by == "system"
    assert found.available_bytes == pytest.approx(12 * GB, abs=1024)
    assert found.total_bytes == pytest.approx(16 * GB, abs=1024)
    assert found.reason == "12.00 GB of this machine's 16.00 GB are free"


def test_cgroup_v2_counts_cache_as_free(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/user.slice/app.scope\n")
    write_v2(root / "sys/fs/cgroup/user.slice/app.scope", str(4 * GB), 3 * GB, cache=2 * GB)
    found = available_memory_bytes(root)
    assert (found.limited_by, found.total_bytes, found.available_bytes) == ("cgroup", 4 * GB, 3 * GB)
    assert found.reason == "the cgroup may have 4.00 GB, of which 1.00 GB are in use"


def test_the_tightest_ancestor_counts(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/user.slice/app.scope\n")
    write_v2(root / "sys/fs/cgroup/user.slice/app.scope", "max", GB)
    write_v2(root / "sys/fs/cgroup/user.slice", str(6 * GB), 5 * GB)
    write_v2(root / "sys/fs/cgroup", str(14 * GB), 5 * GB)
    found = available_memory_bytes(root)
    assert (found.total_bytes, found.available_bytes) == (6 * GB, GB)


def test_memory_high_is_a_limit_too(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/\n")
    write_v2(root / "sys/fs/cgroup", "max", GB)
    write(root, "sys/fs/cgroup/memory.high", f"{3 * GB}\n")
    assert available_memory_bytes(root).available_bytes == 2 * GB


def test_cgroup_v1(root: Path) -> None:
    write(root, "proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/\n")
    write_v1(root / "sys/fs/cgroup/memory/docker/abc", str(2 * GB), GB, cache=GB // 2)
    write_v1(root / "sys/fs/cgroup/memory", UNLIMITED_V1, 9 * GB)
    found = available_memory_bytes(root)
    assert (found.limited_by, found.total_bytes, found.available_bytes) == ("cgroup", 2 * GB, 3 * GB // 2)


def test_a_container_whose_mount_begins_at_its_own_cgroup(root: Path) -> None:
    # The path is the host's; inside, the limit is at the mount itself.
    write(root, "proc/self/cgroup", "4:memory:/docker/0123abc\n")
    write_v1(root / "sys/fs/cgroup/memory", str(GB), GB // 4)
    assert available_memory_bytes(root).available_bytes == GB - GB // 4


def test_no_limit_in_v1(root: Path) -> None:
    write(root, "proc/self/cgroup", "4:memory:/\n")
    write_v1(root / "sys/fs/cgroup/memory", UNLIMITED_V1, GB)
    assert available_memory_bytes(root).limited_by == "system"


def test_more_in_use_than_allowed_leaves_nothing(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/\n")
    write_v2(root / "sys/fs/cgroup", str(GB), 2 * GB)
    assert available_memory_bytes(root).available_bytes == 0


@pytest.mark.parametrize("text", ["", "garbage", "0::", "::::\n\n0", "4:memory:../../../etc\n0::/../..\n"])
def test_a_strange_cgroup_file_is_no_limit(root: Path, text: str) -> None:
    write(root, "proc/self/cgroup", text)
    assert available_memory_bytes(root).limited_by == "system"


@pytest.mark.parametrize(
    ("space", "data", "option", "left"),
    [
        (str(2 * GB), "unlimited", "-v", 2 * GB - 300_000_000),
        ("unlimited", str(GB), "-d", GB - 120_000_000),
        (str(2 * GB), str(GB), "-d", GB - 120_000_000),
    ],
)
def test_ulimits(root: Path, space: str, data: str, option: str, left: int) -> None:
    write(root, "proc/self/limits", LIMITS.format(space=space, data=data))
    found = available_memory_bytes(root)
    assert (found.limited_by, found.available_bytes) == ("ulimit", left)
    assert f"ulimit {option}" in found.reason


def test_what_the_process_holds_already_is_taken_from_a_ulimit(root: Path) -> None:
    write(root, "proc/self/limits", LIMITS.format(space=str(2 * GB), data="unlimited"))
    write(root, "proc/self/status", f"VmSize:\t {GB // 1024} kB\n")
    assert available_memory_bytes(root).available_bytes == pytest.approx(GB, abs=1024)


def test_without_proc_another_source_is_asked(tmp_path: Path) -> None:
    found = available_memory_bytes(tmp_path)
    assert found.limited_by == "system"
    assert 0 < found.available_bytes <= found.total_bytes


def test_this_machine() -> None:
    found = available_memory_bytes()
    assert 0 < found.available_bytes <= found.total_bytes
    assert found.reason
