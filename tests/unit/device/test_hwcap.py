"""The auxiliary vector of ARM processes, written from the kernel's headers: no ARM machine was at hand."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.device import cpuinfo, hwcap
from qwen_edge.device.facts import Tree, Unknown

# HWCAP, HWCAP2 as Linux gives them there. Source: arch/arm64/include/uapi/asm/hwcap.h.
CORTEX_A53 = (0x0FF, 0)
CORTEX_A76 = (1 << 20 | 1 << 10 | 1 << 9 | 0x3, 0)
NEOVERSE_V2 = (1 << 22 | 1 << 20 | 1 << 10 | 1 << 9 | 0x3, 1 << 13 | 1 << 14 | 1 << 1)


def auxv(hwcaps: tuple[int, int]) -> bytes:
    entries = [(6, 4096), (16, hwcaps[0]), (26, hwcaps[1]), (33, 0xFFFF00000000), (0, 0)]
    return b"".join(struct.pack("<QQ", *entry) for entry in entries)


def tree(root: Path, vector: bytes, text: str = "") -> Tree:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/auxv").write_bytes(vector)
    if text:
        (root / "proc/cpuinfo").write_text(text)
    return Tree(root)


def test_levels_are_told_apart() -> None:
    assert "asimddp" not in hwcap.features_in_auxv(auxv(CORTEX_A53))
    assert {"asimd", "asimddp", "asimdhp", "fphp"} == hwcap.features_in_auxv(auxv(CORTEX_A76)) - {"fp"}
    assert {"sve", "sve2", "i8mm", "bf16"} <= hwcap.features_in_auxv(auxv(NEOVERSE_V2))


@given(st.binary(max_size=200))
def test_any_bytes_are_read(data: bytes) -> None:
    known = {*hwcap._HWCAP_BITS.values(), *hwcap._HWCAP2_BITS.values()}
    assert hwcap.features_in_auxv(data) <= known


def test_on_arm_the_vector_stands_for_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user-mode emulator shows the x86 machine's /proc/cpuinfo: nothing of it may be taken."""
    monkeypatch.setattr(cpuinfo, "is_arm64", lambda: True)
    emulated = tree(
        tmp_path, auxv(CORTEX_A76), "vendor_id\t: GenuineIntel\nmodel name\t: a Xeon\nflags\t: avx2 fma\n"
    )
    assert cpuinfo.probe_instructions(emulated) == ("asimd", "asimddp", "asimdhp", "fphp")
    assert cpuinfo.cpuinfo_text(emulated) == ""


def test_without_the_vector_the_file_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpuinfo, "is_arm64", lambda: True)
    (tmp_path / "proc").mkdir()
    assert isinstance(cpuinfo.probe_instructions(Tree(tmp_path)), Unknown)
    (tmp_path / "proc/cpuinfo").write_text("Features\t: fp asimd asimddp\nCPU implementer\t: 0x41\n")
    assert cpuinfo.probe_instructions(Tree(tmp_path)) == ("asimd", "asimddp")
