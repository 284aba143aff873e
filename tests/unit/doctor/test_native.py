"""Checks of the native library, from facts that are made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwen_edge.doctor import native
from qwen_edge.doctor.remedies import gain_of_others, lacking_sets, remedy
from qwen_edge.doctor.report import Check
from qwen_edge.doctor.situation import CHOSEN, PLAIN, Situation, Trials, find_situation, title_of
from qwen_edge.errors import NativeError
from qwen_edge.native.build_plan import BuildPlan, plan_build
from qwen_edge.native.builds import Build, Origin, UnfitBuild
from qwen_edge.native.cpu_modules import ARM_MODULES
from qwen_edge.native.selftest import SelfTest, TypeOutcome
from qwen_edge.native.speed_trial import Speed
from qwen_edge.native.toolchain import Compiler, Cpu

CPU = Cpu(
    architecture="x86_64",
    name="a server",
    features=("amx_int8", "amx_tile", "avx2", "avx512_vnni", "avx512f", "fma"),
)
GCC_12_2 = Compiler(command="c++", family="gcc", version=(12, 2, 0), banner="c++ (Debian) 12.2.0")
ALL = "CPU : SSE3 = 1 | AVX2 = 1 | FMA = 1 | AVX512 = 1 | AVX512_VNNI = 1 | AMX_INT8 = 1 | REPACK = 1 |"
NOT_NATIVE = "CPU : SSE3 = 1 | AVX2 = 1 | FMA = 1 | REPACK = 1 |"


def plan(compiler: Compiler = GCC_12_2) -> BuildPlan:
    return plan_build(CPU, compiler, {}, version="0.3.36", target="linux-x86_64-glibc2.36")


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A library with AMX kernels that GCC 12.2 made."""
    (tmp_path / "libllama.so").touch()
    (tmp_path / "libggml-cpu.so").write_bytes(
        b"\x7fELF _Z28ggml_backend_amx_buffer_typev\0GCC: (Debian 12.2.0-14) 12.2.0\0"
    )
    return tmp_path


def build_in(library: Path, origin: Origin = "environment", **facts: Any) -> Build:
    known: dict[str, Any] = {
        "version": "0.3.36",
        "key": None,
        "cpu_features": (),
        "flags": None,
        "compiler": None,
        "target": None,
        "kernels": (),
    }
    return Build(origin=origin, package=library, library=library, **(known | facts))


def situation(build: Build | None, **changes: Any) -> Situation:
    facts: dict[str, Any] = {
        "others": (),
        "unfit": (),
        "cpu": CPU,
        "plan": plan(),
        "obstacle": "",
        "obstacle_advice": "",
        "hindering": (),
    }
    return Situation(build=build, **(facts | changes))


def tried(
    info: str = ALL, *, speeds: dict[str, Speed] | None = None, **fast: dict[str, Any] | None
) -> Trials:
    """Return trials in which plain kernels are right and the fast ones as given, by type."""
    right = {"is_finite": True, "difference": 0.01}
    outcomes = [TypeOutcome(type_name=name, kernels="safe", is_finite=True, difference=0.0) for name in fast]
    outcomes += [
        TypeOutcome(type_name=name, kernels="fast", **(right if facts is None else facts))
        for name, facts in fast.items()
    ]
    return Trials(selftest=SelfTest(system_info=info, outcomes=tuple(outcomes)), speeds=speeds or {})


def speed(prefill: float, decode: float) -> Speed:
    return Speed(prefill_tokens_per_s=prefill, decode_tokens_per_s=decode, n_turns=3)


def only(checks: Any) -> Check:
    (check,) = checks
    assert isinstance(check, Check)
    return check


# What the library was built for


@pytest.mark.parametrize(
    ("info", "has_amx", "lacking"),
    [
        (ALL, True, ()),
        (ALL, None, ()),
        (NOT_NATIVE, None, ("AMX", "AVX-512", "AVX-512 VNNI")),
        # The flags of the C files are what it says, the AMX kernels are in C++ files.
        (ALL, False, ("AMX",)),
        ("", None, ()),
    ],
)
def test_what_a_library_lacks(info: str, has_amx: bool | None, lacking: tuple[str, ...]) -> None:
    assert lacking_sets(info, CPU.features, has_amx) == lacking


def test_arm_has_names_of_its_own() -> None:
    info = "CPU : NEON = 1 | ARM_FMA = 1 | DOTPROD = 1 | REPACK = 1 |"
    features = ("asimd", "asimddp", "i8mm")
    assert lacking_sets(info, features, False) == ("8-bit matrix products (i8mm)",)


def test_a_build_without_native_flags_is_a_warning_with_its_cost(library: Path) -> None:
    chosen = build_in(library, flags="-DGGML_NATIVE=ON -DGGML_NATIVE=OFF")
    other = build_in(library / "other", "setup", key="k")
    (library / "libggml-cpu.so").write_bytes(b"\x7fELF")
    speeds = {CHOSEN: speed(100, 50), PLAIN: speed(80, 40), "the build of qwen-edge setup": speed(310, 70)}
    check = only(
        native.check_features(situation(chosen, others=(other,)), tried(NOT_NATIVE, speeds=speeds, Q4_0=None))
    )
    assert check.status == "warning"
    assert check.found == (
        "built without AMX, AVX-512 and AVX-512 VNNI, which this CPU has (flag GGML_NATIVE=OFF)"
    )
    assert check.cost == ("the build of qwen-edge setup reads prompts 3.1 times and writes 1.4 times as fast")
    assert check.advice == "qwen-edge setup"
    assert check.fix is not None
    assert check.fix.kind == "build"


def test_a_build_for_this_cpu(library: Path) -> None:
    check = only(native.check_features(situation(build_in(library)), tried(Q4_0=None)))
    assert (check.status, check.found) == (
        "ok",
        "built for what this CPU has (AMX, AVX-512, AVX-512 VNNI, AVX2 and FMA)",
    )


def test_own_kernels_are_mentioned(library: Path) -> None:
    build = build_in(library, kernels=("ggml_a", "ggml_b"))
    found = only(native.check_features(situation(build), tried(Q4_0=None))).found
    assert found.endswith(", with 2 kernels of qwen-edge's own for decode")


def test_without_a_word_of_the_library_its_flags_speak(library: Path) -> None:
    named = situation(build_in(library, flags="-DGGML_NATIVE=OFF"))
    assert only(native.check_features(named, Trials())).status == "warning"
    assert only(native.check_features(situation(build_in(library)), Trials())).status == "note"


# Whether it computes


def test_a_right_library(library: Path) -> None:
    check = only(native.check_selftest(situation(build_in(library)), tried(Q4_0=None, F32=None)))
    assert check.status == "ok"
    assert "1.0% apart" in check.found


def test_a_crash_names_signal_types_and_the_compiler_that_is_known_for_it(library: Path) -> None:
    trials = tried(Q4_0={"crash": "signal SIGSEGV"}, Q8_0={"crash": "signal SIGILL"}, F32=None)
    check = only(native.check_selftest(situation(build_in(library)), trials))
    assert check.status == "problem"
    assert check.found == (
        "its fast kernels crash with Q4_0, Q8_0 (signal SIGSEGV, signal SIGILL); GCC 12.2.0 made it, which miscompiles the AMX kernels"
    )
    assert check.cost == (
        "the plain kernels are used: right answers, slower; how much is measured once another build is here"
    )
    assert check.advice == "qwen-edge setup"


def test_flags_against_the_miscompiling_take_the_blame_away(library: Path) -> None:
    build = build_in(library, flags="CXXFLAGS=-fno-tree-dse -fno-dse")
    check = only(native.check_selftest(situation(build), tried(Q4_0={"crash": "signal SIGSEGV"})))
    assert check.found == "its fast kernels crash with Q4_0 (signal SIGSEGV)"


@pytest.mark.parametrize(
    ("outcome", "found", "cost"),
    [
        (
            {"is_finite": True, "difference": 0.9},
            "its fast kernels compute something else with Q4_0: 90% apart, 5.6% are allowed",
            "answers of such models are wrong",
        ),
        (
            {"is_finite": False},
            "its fast kernels give no numbers (NaN) with Q4_0",
            "answers of such models are wrong",
        ),
        (
            {"error": "NativeError: no context"},
            "its fast kernels fail with Q4_0: NativeError: no context",
            "answers of such models are wrong",
        ),
    ],
)
def test_wrong_answers(library: Path, outcome: dict[str, Any], found: str, cost: str) -> None:
    check = only(native.check_selftest(situation(build_in(library)), tried(Q4_0=outcome)))
    assert (check.status, check.found, check.cost) == ("problem", found, cost)


def test_a_library_that_does_not_load(library: Path) -> None:
    outcomes = tuple(
        TypeOutcome(type_name="Q4_0", kernels=kernels, crash="signal SIGILL") for kernels in ("safe", "fast")
    )
    trials = Trials(selftest=SelfTest(system_info="", outcomes=outcomes), unmeasured="it does not run")
    check = only(native.check_selftest(situation(build_in(library)), trials))
    assert check.found == "the library does not load: signal SIGILL; it was built for another CPU"
    assert check.cost == "GGUF models do not run"
    note = only(native.check_speed(situation(build_in(library)), trials, is_explained=True))
    assert note.found == "speed: it does not run"


# Speed


def test_speed_beside_plain_kernels(library: Path) -> None:
    trials = tried(speeds={CHOSEN: speed(2000, 600), PLAIN: speed(1000, 400)}, Q4_0=None)
    check = only(native.check_speed(situation(build_in(library)), trials, is_explained=False))
    assert check.status == "ok"
    assert check.found == (
        "it reads 2,000 and writes 600 tokens/s of a 37 MB trial model (Q4_0): 2.0 and 1.5 times those of its plain kernels"
    )


def test_a_busy_machine_is_named(library: Path) -> None:
    speeds = {CHOSEN: speed(2, 1), PLAIN: speed(1, 1)}
    trials = Trials(speeds=speeds, rivals=", with one thread")
    check = only(native.check_speed(situation(build_in(library)), trials, is_explained=False))
    assert "(Q4_0), with one thread: 2.0 and 1.0 times" in check.found


def test_a_faster_build_beside_is_a_warning_once(library: Path) -> None:
    speeds = {CHOSEN: speed(100, 50), "the environment's llama-cpp-python": speed(200, 50)}
    trials = tried(speeds=speeds, Q4_0=None)
    facts = situation(build_in(library, "LLAMA_CPP_LIB_PATH"))
    check = only(native.check_speed(facts, trials, is_explained=False))
    assert (check.status, check.advice, check.fix) == ("warning", "unset LLAMA_CPP_LIB_PATH", None)
    assert only(native.check_speed(facts, trials, is_explained=True)).status == "note"


@pytest.mark.parametrize(
    ("prefill", "decode", "gain"),
    [
        (200, 51, "the other reads prompts 2.0 times as fast"),
        (101, 100, "the other writes 2.0 times as fast"),
        (200, 100, "the other reads prompts 2.0 times and writes 2.0 times as fast"),
        (300, 30, ""),
        (120, 60, ""),
    ],
)
def test_only_what_is_faster_is_told(prefill: float, decode: float, gain: str) -> None:
    trials = Trials(
        speeds={CHOSEN: speed(100, 50), PLAIN: speed(900, 900), "the other": speed(prefill, decode)}
    )
    assert gain_of_others(trials) == gain


def test_two_builds_of_setup_are_told_apart(library: Path) -> None:
    older = build_in(library, "setup", key="0f")
    assert title_of(older, beside=older) == "another build of qwen-edge setup (0f)"
    assert title_of(older, beside=None) == "the build of qwen-edge setup"


def test_what_a_busy_machine_does_is_no_difference(library: Path) -> None:
    speeds = {CHOSEN: speed(100, 50), "the environment's llama-cpp-python": speed(108, 52)}
    check = only(
        native.check_speed(situation(build_in(library)), tried(speeds=speeds, Q4_0=None), is_explained=False)
    )
    assert check.status == "ok"


# No library, a wrong folder, no compiler


def test_nothing_built(tmp_path: Path) -> None:
    unfit = UnfitBuild(build=build_in(tmp_path, "setup"), reason="built for amx_tile, which this CPU lacks")
    facts = situation(None, unfit=(unfit,))
    check = only(native.check_library(facts, has_onnx=False))
    assert (check.status, check.advice) == ("problem", "qwen-edge setup")
    assert "amx_tile" in check.found
    assert only(native.check_library(facts, has_onnx=True)).status == "warning"


def test_nothing_built_and_no_compiler() -> None:
    facts = situation(
        None, plan=None, obstacle="no C++ compiler", obstacle_advice="sudo apt-get install -y build-essential"
    )
    check = only(native.check_library(facts, has_onnx=False))
    assert check.advice == "sudo apt-get install -y build-essential && qwen-edge setup"
    assert check.fix is None
    compiler = only(native.check_compiler(facts))
    assert (compiler.status, compiler.advice) == ("note", "sudo apt-get install -y build-essential")


def test_a_variable_that_names_nothing(tmp_path: Path) -> None:
    check = only(native.check_library(situation(build_in(tmp_path, "LLAMA_CPP_LIB_PATH")), has_onnx=True))
    assert check.status == "problem"
    assert "LLAMA_CPP_LIB_PATH names it" in check.found
    assert (check.advice, check.fix) == ("unset LLAMA_CPP_LIB_PATH", None)


def test_a_compiler_is_known_for_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_NATIVE=OFF")
    compiler, variable = native.check_compiler(situation(None, hindering=("CMAKE_ARGS",)))
    assert "miscompiles the AMX kernels" in compiler.found
    assert variable.found.startswith("CMAKE_ARGS=-DGGML_NATIVE=OFF in your environment")
    assert variable.advice == "unset CMAKE_ARGS"


# What mends it


def test_the_same_compiler_would_make_the_same_library(library: Path) -> None:
    build = build_in(library, "setup", key=plan().key)
    assert remedy(situation(build), is_failing=True) == ("CXX=clang++ qwen-edge setup", None)
    assert remedy(situation(build), is_lacking=True)[1] is None


def test_what_the_person_set_is_named_not_overridden(library: Path) -> None:
    hindered = situation(build_in(library), hindering=("CMAKE_ARGS", "CXXFLAGS"))
    assert remedy(hindered, is_lacking=True) == ("unset CMAKE_ARGS CXXFLAGS; qwen-edge setup", None)
    assert remedy(situation(build_in(library, "LLAMA_CPP_LIB_PATH")), is_failing=True)[1] is None


def test_a_build_that_is_there_is_put_first(library: Path) -> None:
    other = build_in(library / "other", "setup", key=plan().key)
    advice, fix = remedy(situation(build_in(library), others=(other,)), is_slower=True)
    assert advice == "qwen-edge setup"
    assert fix is not None
    assert "first" in fix.does


# Looking around


def test_the_command_that_brings_a_compiler_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> BuildPlan:
        raise NativeError(
            "it cannot be built yet. Missing:\n  - a C++ compiler\n  - CMake",
            hint="Install with:\n    apt-get install g++ cmake\n  Then run qwen-edge setup again.",
        )

    monkeypatch.setattr("qwen_edge.doctor.situation.plan_here", missing)
    facts = find_situation()
    assert facts.plan is None
    assert facts.obstacle == "to build it, this is missing: a C++ compiler, CMake"
    assert facts.obstacle_advice == "apt-get install g++ cmake"


@pytest.mark.parametrize(
    ("variable", "value", "is_named"),
    [
        ("CMAKE_ARGS", "-DGGML_NATIVE=OFF", True),
        ("CMAKE_ARGS", "-DGGML_NATIVE:BOOL=off", True),
        ("CMAKE_ARGS", "-DGGML_NATIVE=ON", False),
        ("CXXFLAGS", "-O2 -mno-amx-tile", True),
        ("CFLAGS", "-march=x86-64-v3", True),
        ("CFLAGS", "-march=native", False),
    ],
)
def test_variables_that_keep_instruction_sets_out(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, is_named: bool
) -> None:
    monkeypatch.setenv(variable, value)
    assert find_situation().hindering == ((variable,) if is_named else ())


@pytest.mark.parametrize(
    ("features", "info", "found", "level"),
    [
        ((), "CPU : NEON = 1 | REPACK = 1 |", "it uses armv8.0_1", "no dot products"),
        (
            ("asimddp", "asimdhp"),
            "CPU : NEON = 1 | FP16_VA = 1 | DOTPROD = 1 |",
            "it uses armv8.2_2, the best for what this CPU has (dot products (dotprod) and half precision (fp16))",
            "no 8-bit matrix products",
        ),
        (
            ("asimddp", "asimdhp", "i8mm"),
            "CPU : FP16_VA = 1 | MATMUL_INT8 = 1 | DOTPROD = 1 |",
            "armv8.6_0",
            None,
        ),
    ],
)
def test_on_arm_the_kernels_in_use_are_named(
    library: Path, features: tuple[str, ...], info: str, found: str, level: str | None
) -> None:
    cpu = Cpu(architecture="aarch64", name="a board", features=features)
    portable = build_in(library, "setup", modules=ARM_MODULES, flags="-DGGML_NATIVE=OFF")
    checks = list(native.check_features(situation(portable, cpu=cpu), tried(info)))
    assert checks[0].status == "ok"
    assert found in checks[0].found
    said = [check.found for check in checks if check.name == "arm-level"]
    assert (level is None and not said) or level in said[0]


def test_a_library_from_a_wheel_needs_no_compiler(library: Path) -> None:
    portable = build_in(library, "setup", modules=ARM_MODULES)
    (check,) = native.check_compiler(
        situation(portable, plan=None, obstacle="no compiler", obstacle_advice="apt")
    )
    assert (check.status, check.advice) == ("ok", "")
    (check,) = native.check_compiler(
        situation(None, plan=None, obstacle="no compiler", obstacle_advice="apt")
    )
    assert (check.status, check.advice) == ("note", "apt")
