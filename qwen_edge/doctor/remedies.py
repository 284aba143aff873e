"""What follows from the facts about the native library: what it lacks, what is faster, what mends it."""

from __future__ import annotations

from collections.abc import Sequence

from qwen_edge.doctor.report import Fix
from qwen_edge.doctor.situation import CHOSEN, PLAIN, Situation, Trials
from qwen_edge.native.speed_trial import Speed

# Ratios closer to 1 than this are what a busy machine does.
_FASTER = 1.25

# For people; the library's name in llama_print_system_info; the CPU's in /proc/cpuinfo.
# Source: ggml_cpu_has_* and their names in ggml/src/ggml-cpu/ggml-cpu.cpp.
INSTRUCTION_SETS = (
    ("AMX", "AMX_INT8", "amx_int8"),
    ("AVX-512", "AVX512", "avx512f"),
    ("AVX-512 VNNI", "AVX512_VNNI", "avx512_vnni"),
    ("AVX-VNNI", "AVX_VNNI", "avx_vnni"),
    ("AVX2", "AVX2", "avx2"),
    ("FMA", "FMA", "fma"),
    ("F16C", "F16C", "f16c"),
    ("dot products (dotprod)", "DOTPROD", "asimddp"),
    ("8-bit matrix products (i8mm)", "MATMUL_INT8", "i8mm"),
    ("half precision (fp16)", "FP16_VA", "asimdhp"),
    ("SVE", "SVE", "sve"),
)

_SETUP = "qwen-edge setup"


def lacking_sets(info: str, cpu_features: tuple[str, ...], has_amx: bool | None) -> tuple[str, ...]:
    """Return the instruction sets, as people call them, that the CPU has and the library was built without.

    Args:
        info: What llama_print_system_info says; "" where it was not asked: nothing is told then.
        cpu_features: As /proc/cpuinfo names them.
        has_amx: Whether the AMX kernels are in the library's file; None where that is not known.
    """
    said = {part.split("=")[0].strip() for part in info.replace("CPU :", "").split("|") if "= 1" in part}
    if has_amx is False:
        said.discard("AMX_INT8")
    if not said:
        return ()
    return tuple(
        title for title, name, feature in INSTRUCTION_SETS if feature in cpu_features and name not in said
    )


def remedy(
    situation: Situation, *, is_lacking: bool = False, is_failing: bool = False, is_slower: bool = False
) -> tuple[str, Fix | None]:
    """Return the command that brings a better library, and what --fix would do.

    Args:
        situation: The facts.
        is_lacking: The build in use leaves instruction sets out.
        is_failing: It crashes or miscomputes.
        is_slower: Another build here is faster.
    """
    build = situation.build
    if build is not None and build.origin == "LLAMA_CPP_LIB_PATH":
        # The person's own choice: named, never overridden.
        return "unset LLAMA_CPP_LIB_PATH", None
    plan = situation.plan
    if plan is None:
        command = situation.obstacle_advice
        return (f"{command} && {_SETUP}" if command else situation.obstacle), None
    if is_lacking and situation.hindering:
        return f"unset {' '.join(situation.hindering)}; {_SETUP}", None
    if is_slower and any(other.key == plan.key for other in situation.others):
        return _SETUP, Fix(kind="build", does="put the build for this CPU and compiler first")
    if build is not None and build.key == plan.key and (is_failing or is_lacking):
        # The same compiler with the same flags would make the same library again.
        return f"CXX={'g++' if 'clang' in plan.compiler.family else 'clang++'} {_SETUP}", None
    return _SETUP, Fix(kind="build", does="build the library for this CPU and compiler, some minutes")


def gain_of_others(trials: Trials) -> str:
    """Return by how much the fastest other build here is faster than what is used, in words; "" where none is."""
    base = trials.speeds.get(CHOSEN) or trials.speeds.get(PLAIN)
    others = {name: speed for name, speed in trials.speeds.items() if name not in (CHOSEN, PLAIN)}
    if base is None or not others:
        return ""
    name, best = max(
        others.items(), key=lambda item: item[1].prefill_tokens_per_s * item[1].decode_tokens_per_s
    )
    ratios_of_best = {
        "reads prompts": best.prefill_tokens_per_s / base.prefill_tokens_per_s,
        "writes": best.decode_tokens_per_s / base.decode_tokens_per_s,
    }
    # What is faster at the one and slower at the other is a matter of taste, or of chance.
    if min(ratios_of_best.values()) < 1 / _FASTER:
        return ""
    gains = [f"{verb} {ratio:.1f} times" for verb, ratio in ratios_of_best.items() if ratio >= _FASTER]
    return f"{name} {' and '.join(gains)} as fast" if gains else ""


def listed(words: Sequence[str]) -> str:
    """Return "A, B and C"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def ratios(speed: Speed, other: Speed) -> str:
    """Return how many times as fast one is as another: "2.1 and 1.8 times" in prefill and decode."""
    reads = speed.prefill_tokens_per_s / other.prefill_tokens_per_s
    writes = speed.decode_tokens_per_s / other.decode_tokens_per_s
    return f"{reads:.1f} and {writes:.1f} times"
