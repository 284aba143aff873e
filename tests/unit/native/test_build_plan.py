"""Which flags follow from which CPU and compiler: all machines here are made up of what the real ones print."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from qwen_edge.errors import ConfigError, NativeError
from qwen_edge.native import build_plan, own_kernels, toolchain
from qwen_edge.native.build_plan import plan_build
from qwen_edge.native.toolchain import Cpu

SAPPHIRE_RAPIDS = """\
processor	: 0
model name	: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags		: fpu sse sse2 ht pni ssse3 fma cx16 sse4_1 sse4_2 movbe popcnt avx f16c avx2 bmi2 avx512f avx_vnni amx_bf16 amx_tile amx_int8 md_clear ibrs

processor	: 1
model name	: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags		: fpu sse sse2 ht pni ssse3 fma cx16 sse4_1 sse4_2 movbe popcnt avx f16c avx2 bmi2 avx512f avx_vnni amx_bf16 amx_tile amx_int8 md_clear ibrs
"""
RYZEN = """\
model name	: AMD Ryzen 7 5800U with Radeon Graphics
flags		: fpu sse sse2 pni ssse3 fma cx16 sse4_1 sse4_2 movbe popcnt avx f16c avx2 bmi1 bmi2
"""
RASPBERRY_PI_5 = """\
processor	: 0
BogoMIPS	: 108.00
Features	: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer	: 0x41
CPU architecture: 8
CPU part	: 0xd0b

Model		: Raspberry Pi 5 Model B Rev 1.0
"""
BIG_LITTLE = """\
processor	: 0
Features	: fp asimd asimddp
CPU part	: 0xd05
processor	: 4
Features	: fp asimd asimddp
CPU part	: 0xd0a
"""
APPLE_M2 = "machdep.cpu.brand_string: Apple M2\nhw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_SME: 0\nhw.ncpu: 8\n"

FSF = "\nCopyright (C) Free Software Foundation, Inc.\nThis is free software; see the source for copying conditions.\n"
GCC_12_2 = "c++ (Debian 12.2.0-14+deb12u1) 12.2.0" + FSF
GCC_12_4 = "g++-12 (Ubuntu 12.4.0-2ubuntu1~24.04) 12.4.0" + FSF
GCC_13_2 = "g++ (Ubuntu 13.2.0-23ubuntu4) 13.2.0" + FSF
GCC_13_3 = "g++ (Ubuntu 13.3.0-6ubuntu2~24.04) 13.3.0" + FSF
GCC_14 = "c++ (GCC) 14.2.1 20250110 (Red Hat 14.2.1-7)" + FSF
GCC_11 = "g++ (Ubuntu 11.4.0-1ubuntu1~22.04) 11.4.0" + FSF
GCC_UNKNOWN = "g++ built here" + FSF
CLANG_16 = "Debian clang version 16.0.6 (15~deb12u1)\nTarget: x86_64-pc-linux-gnu\n"
APPLE_CLANG = "Apple clang version 15.0.0 (clang-1500.3.9.4)\nTarget: arm64-apple-darwin23.4.0\n"
UNKNOWN = "nvc++ 24.1-0 64-bit target on x86-64 Linux\n"

DSE_OFF = "-fno-tree-dse -fno-dse"


def _cpu(cpuinfo: str, architecture: str = "x86_64") -> Cpu:
    return toolchain.parse_cpuinfo(cpuinfo, architecture)


def _plan(
    cpuinfo: str = SAPPHIRE_RAPIDS, banner: str = GCC_12_2, env: dict[str, str] | None = None, **changes: str
) -> build_plan.BuildPlan:
    compiler = toolchain.parse_compiler("c++", banner)
    known = {"version": "0.3.36", "target": "linux-x86_64-glibc2.36", **changes}
    return plan_build(_cpu(cpuinfo), compiler, env or {}, **known)


@pytest.mark.parametrize(
    ("banner", "family", "version"),
    [
        (GCC_12_2, "gcc", (12, 2, 0)),
        (GCC_12_4, "gcc", (12, 4, 0)),
        (GCC_14, "gcc", (14, 2, 1)),
        (GCC_UNKNOWN, "gcc", ()),
        (CLANG_16, "clang", (16, 0, 6)),
        (APPLE_CLANG, "apple-clang", (15, 0, 0)),
        (UNKNOWN, "unknown", ()),
        ("", "unknown", ()),
    ],
)
def test_compilers_are_told_apart(banner: str, family: str, version: tuple[int, ...]) -> None:
    compiler = toolchain.parse_compiler("c++", banner)
    assert (compiler.family, compiler.version) == (family, version)


@pytest.mark.parametrize(
    ("cpuinfo", "banner", "wanted"),
    [
        (SAPPHIRE_RAPIDS, GCC_12_2, True),
        (SAPPHIRE_RAPIDS, GCC_11, True),
        (SAPPHIRE_RAPIDS, GCC_12_4, False),
        (SAPPHIRE_RAPIDS, GCC_13_2, True),
        (SAPPHIRE_RAPIDS, GCC_13_3, False),
        (SAPPHIRE_RAPIDS, GCC_14, False),
        (SAPPHIRE_RAPIDS, GCC_UNKNOWN, True),
        (SAPPHIRE_RAPIDS, CLANG_16, False),
        (SAPPHIRE_RAPIDS, UNKNOWN, False),
        (RYZEN, GCC_12_2, False),
        (RASPBERRY_PI_5, GCC_12_2, False),
        ("", GCC_12_2, False),
    ],
)
def test_dse_is_off_exactly_where_gcc_miscompiles_amx(cpuinfo: str, banner: str, wanted: bool) -> None:
    plan = _plan(cpuinfo, banner)
    assert plan.compile_flags == ({"CXXFLAGS": DSE_OFF} if wanted else {})
    assert any("AMX" in reason for reason in plan.reasons) == wanted
    assert "-DGGML_NATIVE=ON" in plan.cmake_args, "built for this CPU, AMX included"


def test_x86_features_are_those_that_compilers_use() -> None:
    cpu = _cpu(SAPPHIRE_RAPIDS)
    assert cpu.name == "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"
    assert {"avx2", "amx_tile", "pni", "avx_vnni"} <= set(cpu.features)
    assert not {"md_clear", "ibrs", "ht"} & set(cpu.features), "a kernel update must not cost a build"


def test_arm_features_name_the_cores() -> None:
    cpu = _cpu(RASPBERRY_PI_5, "aarch64")
    assert cpu.name == "Raspberry Pi 5 Model B Rev 1.0"
    assert {"asimddp", "core-0xd0b"} <= set(cpu.features)
    assert {"core-0xd05", "core-0xd0a"} <= set(_cpu(BIG_LITTLE, "aarch64").features)


def test_macos_features_are_those_that_are_there() -> None:
    cpu = toolchain.parse_sysctl(APPLE_M2, "arm64")
    assert cpu.name == "Apple M2"
    assert "arm.FEAT_DotProd" in cpu.features
    assert "arm.FEAT_SME" not in cpu.features


def test_a_silent_system_gives_no_features() -> None:
    assert _cpu("").features == ()


def test_the_users_flags_come_last_and_are_said() -> None:
    env = {
        "CMAKE_ARGS": "-DGGML_BLAS=ON '-DNOTE=two words'",
        "CXXFLAGS": "-O2",
        "CFLAGS": " ",
        "LDFLAGS": "-s",
    }
    plan = _plan(env=env)
    assert plan.cmake_args[-2:] == ("-DGGML_BLAS=ON", "-DNOTE=two words")
    assert plan.compile_flags == {"CXXFLAGS": f"{DSE_OFF} -O2", "LDFLAGS": "-s"}
    assert "CXXFLAGS=-O2: from your environment" in plan.reasons


def test_flags_that_would_hide_the_cure_are_refused() -> None:
    env = {"CMAKE_ARGS": "-DCMAKE_CXX_FLAGS:STRING=-O2"}
    with pytest.raises(ConfigError, match="Put your flags into CXXFLAGS"):
        _plan(env=env)
    assert _plan(RYZEN, env=env).cmake_args[-1] == "-DCMAKE_CXX_FLAGS:STRING=-O2"


def test_the_key_changes_with_what_changes_the_wheel() -> None:
    plans = [
        _plan(),
        _plan(RYZEN),
        _plan(banner=GCC_14),
        _plan(env={"CFLAGS": "-g"}),
        _plan(env={"CMAKE_ARGS": "-DGGML_OPENMP=OFF"}),
        _plan(version="0.3.37"),
        _plan(target="linux-x86_64-glibc2.31"),
        _plan(env={"QWEN_EDGE_KERNELS": "0"}),
    ]
    assert len({plan.key for plan in plans}) == len(plans)
    assert all(re.fullmatch("[0-9a-f]{16}", plan.key) for plan in plans)


def test_the_key_changes_with_the_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = _plan().key
    shutil.copytree(own_kernels.KERNELS_FOLDER, tmp_path / "kernels")
    monkeypatch.setattr(own_kernels, "KERNELS_FOLDER", tmp_path / "kernels")
    assert _plan().key == before
    with (tmp_path / "kernels" / "x86_dot.cpp").open("a") as source:
        source.write("// another comment\n")
    assert _plan().key != before


def test_own_kernels_are_for_x86_and_can_be_left_out() -> None:
    assert _plan().kernels
    assert any("QWEN_EDGE_KERNELS=0" in reason for reason in _plan().reasons)
    assert not _plan(env={"QWEN_EDGE_KERNELS": "0"}).kernels
    compiler = toolchain.parse_compiler("c++", GCC_14)
    board = plan_build(_cpu(RASPBERRY_PI_5, "aarch64"), compiler, {}, version="0.3.36")
    assert not board.kernels
    assert not any("KERNELS" in reason for reason in board.reasons)
    with pytest.raises(ConfigError, match="QWEN_EDGE_KERNELS=0 builds"):
        _plan(env={"QWEN_EDGE_KERNELS": "no"})


def test_the_key_stays_with_what_does_not() -> None:
    same = SAPPHIRE_RAPIDS.replace("md_clear", "retbleed").replace("8481C", "8488C")
    assert _plan(same, env={"EDITOR": "vi"}).key == _plan().key


def test_the_version_comes_from_pyproject() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", build_plan.pinned_version())


def test_a_missing_compiler_is_an_error() -> None:
    with pytest.raises(NativeError, match=r"no C\+\+ compiler found"):
        toolchain.detect_compiler({"PATH": "/nowhere"})
    with pytest.raises(NativeError, match=r"CXX is 'icpc'"):
        toolchain.detect_compiler({"PATH": "/nowhere", "CXX": "icpc"})


@pytest.mark.parametrize(
    ("cxx", "cc"),
    [("c++", "cc"), ("g++-14", "gcc-14"), ("clang++", "clang"), ("nvc++", "nvcc"), ("tool", "")],
)
def test_the_c_compiler_belongs_to_the_cxx_compiler(
    cxx: str, cc: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("bin")
    for name in filter(None, (cxx, cc)):
        (folder / name).write_text("#!/bin/sh\necho 'clang version 18.1.0'\n")
        (folder / name).chmod(0o755)
    env = {"PATH": str(folder), "CXX": cxx}
    assert toolchain.detect_compiler(env).c_command == cc
    assert toolchain.detect_compiler({**env, "CC": "gcc"}).c_command == "gcc"
