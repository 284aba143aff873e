"""Cgroups as trees of files, and what the tables of memory say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwen_edge.bench.memory_cgroup import MemoryCgroup, memory_cgroup
from qwen_edge.bench.memory_pressure import markdown_table
from qwen_edge.bench.small_memory import is_sound, markdown_line
from qwen_edge.errors import UnsupportedError

# As Linux has them: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
V2 = {"memory.max": "max", "memory.swap.max": "max", "memory.peak": "123456\n", "memory.events": "low 0\nhigh 4\nmax 9\noom 2\noom_kill 1\n"}  # fmt: skip
V1 = {
    "memory.limit_in_bytes": "9223372036854771712",
    "memory.memsw.limit_in_bytes": "9223372036854771712",
    "memory.swappiness": "60",
    "memory.max_usage_in_bytes": "654321\n",
    "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
}


def tree(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def test_a_limit_of_version_2_leaves_no_swap(tmp_path: Path) -> None:
    cgroup = MemoryCgroup(tree(tmp_path, V2), 2)
    cgroup.limit(512_000_000)
    assert (tmp_path / "memory.max").read_text() == "512000000"
    assert (tmp_path / "memory.swap.max").read_text() == "0"
    assert (cgroup.peak_bytes(), cgroup.kills()) == (123_456, 1)


def test_a_limit_of_version_1_counts_swap(tmp_path: Path) -> None:
    cgroup = MemoryCgroup(tree(tmp_path, V1), 1)
    cgroup.limit(512_000_000)
    assert (tmp_path / "memory.limit_in_bytes").read_text() == "512000000"
    assert (tmp_path / "memory.memsw.limit_in_bytes").read_text() == "512000000"
    assert (tmp_path / "memory.swappiness").read_text() == "0"
    assert (cgroup.peak_bytes(), cgroup.kills()) == (654_321, 3)


def test_kernels_without_swap_or_a_peak_have_fewer_files(tmp_path: Path) -> None:
    cgroup = MemoryCgroup(tree(tmp_path, {"memory.max": "max", "memory.events": "oom 0\n"}), 2)
    cgroup.limit(1)
    assert not (tmp_path / "memory.swap.max").exists()
    assert (cgroup.peak_bytes(), cgroup.kills()) == (0, 0)


@pytest.mark.parametrize("line", ["0::/user.slice\n", "5:memory:/\n", ""])
def test_where_no_cgroup_can_be_made_it_says_what_that_takes(tmp_path: Path, line: str) -> None:
    """A folder without the controller's files: nothing was handed on to it."""
    tree(tmp_path / "proc/self", {"cgroup": line})
    tree(tmp_path / "sys/fs/cgroup/user.slice", {})
    tree(tmp_path / "sys/fs/cgroup/memory", {})
    with (
        pytest.raises(UnsupportedError, match="no cgroup with a limit of memory") as caught,
        memory_cgroup(tmp_path),
    ):
        pass
    assert "run as root" in str(caught.value.hint)
    assert not list((tmp_path / "sys/fs/cgroup").rglob("qwen-edge-*"))


def row(**changes: Any) -> dict[str, Any]:
    return {
        "limit_bytes": 512_000_000,
        "model": "qwen3-0.6b",
        "type": "Q4_0",
        "fits": True,
        "settings": {"n_ctx": 1280, "kv_type": "q8_0"},
        "file_bytes": 380_000_000,
        "predicted_bytes": 452_000_000,
        "held_bytes": 450_000_000,
        "peak_bytes": 500_000_000,
        "disk_bytes_per_token": 0,
        "disk_bytes": 0,
        "kills": 0,
        "outcome": "ran",
    } | changes


def test_a_line_of_the_table() -> None:
    line = "| 512 MB | qwen3-0.6b | Q4_0 | 1,280 | kv_type q8_0 | 380 MB | 452 MB | 450 MB | 500 MB | - | 0 | ran |"
    assert markdown_line(row()) == line
    refusal = {"exit_code": 1, "said": "error: no room", "kills": 0}
    paged = markdown_line(row(disk_bytes_per_token=127_000_000, disk_bytes=130_000_000, anyway=refusal))
    assert "| 127 MB / 130 MB | 0 | ran; as usual refused with exit code 1 |" in paged
    nothing = markdown_line(
        {"limit_bytes": 2_000_000_000, "model": "m", "type": "Q4_0", "fits": False, "anyway": refusal}
    )
    assert (
        nothing
        == "| 2.00 GB | m | no (Q4_0) | - | - | - | - | - | - | - | 0 | as usual refused with exit code 1 |"
    )
    assert {text.count("|") for text in (line, paged, nothing)} == {13}


def test_what_is_killed_is_a_bug() -> None:
    assert is_sound(row())
    assert not is_sound(row(outcome="killed", kills=1))
    assert not is_sound(row(outcome="failed"))
    assert not is_sound(row(outcome="refused"))
    assert not is_sound(row(anyway={"exit_code": -9, "said": "", "kills": 1}))
    assert is_sound({"fits": False, "anyway": {"exit_code": 1, "said": "error", "kills": 0}})
    assert not is_sound({"fits": False, "anyway": {"exit_code": 0, "said": "", "kills": 0}})


def test_moments_and_shares_are_a_table() -> None:
    cells = [
        {"moment": moment, "share": share, "outcome": f"{moment[:1]}{share}"}
        for share in (0.9, 0.3)
        for moment in ("loaded", "before the plan")
    ]
    assert markdown_table(cells, name=lambda cell: cell["outcome"]).splitlines() == [
        "| taken at | 30% of what is free | 90% of what is free |",
        "|---|---|---|",
        "| before the plan | b0.3 | b0.9 |",
        "| loaded | l0.3 | l0.9 |",
    ]
