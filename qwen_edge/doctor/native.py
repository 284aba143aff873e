"""Checks of the native library: is there one, was it built for this CPU, does it compute, is there a faster one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

from qwen_edge.doctor import machine
from qwen_edge.doctor.report import Check, Fix, guarded
from qwen_edge.doctor.situation import (
    CHOSEN,
    PLAIN,
    Situation,
    Trials,
    find_situation,
    run_trials,
    title_of,
)
from qwen_edge.native.build_plan import Compiler, miscompiles_amx
from qwen_edge.native.builds import Build
from qwen_edge.native.library_file import compiler_of, has_amx_kernels, has_library
from qwen_edge.native.selftest import AGREEMENT_BOUND, SelfTest, TypeOutcome
from qwen_edge.native.speed_trial import Speed

GROUP = "Native library"

# Ratios closer to 1 than this are what a busy machine does.
_FASTER = 1.15

# For people; the library's name in llama_print_system_info; the CPU's in /proc/cpuinfo.
# Source: ggml_cpu_has_* and their names in ggml/src/ggml-cpu/ggml-cpu.cpp.
_INSTRUCTION_SETS = (
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


def check_native(*, is_quick: bool, say: Callable[[str], None]) -> Iterator[Check]:
    """All checks of the native library.

    Args:
        is_quick: Measure no speeds.
        say: Told what is going on.
    """
    situation = find_situation()
    try:
        trials = run_trials(situation, is_quick=is_quick, say=say)
    except OSError as error:
        trials = Trials(unmeasured=f"not tried: no room for the trial models ({error})")
    yield from guarded(GROUP, "library", lambda: check_library(situation, has_onnx=machine.has_onnx_engine()))
    features = guarded(GROUP, "features", lambda: check_features(situation, trials))
    selftest = guarded(GROUP, "selftest", lambda: check_selftest(situation, trials))
    is_explained = any(check.status in ("warning", "problem") for check in (*features, *selftest))
    yield from features
    yield from selftest
    yield from guarded(GROUP, "speed", lambda: check_speed(situation, trials, is_explained=is_explained))
    yield from guarded(GROUP, "compiler", lambda: check_compiler(situation))


def check_library(situation: Situation, *, has_onnx: bool) -> Iterator[Check]:
    """Which build is used, and why."""
    build = situation.build
    if build is None:
        advice, fix = remedy(situation)
        reasons = "".join(f"; {entry.build.package} is {entry.reason}" for entry in situation.unfit)
        yield Check(
            group=GROUP,
            name="library",
            status="warning" if has_onnx else "problem",
            found=f"the llama.cpp library is not built yet on this machine{reasons}",
            cost="GGUF models do not run, models exported to ONNX do" if has_onnx else "no model runs",
            advice=advice,
            fix=fix,
        )
        return
    is_named = build.origin == "LLAMA_CPP_LIB_PATH"
    if not has_library(build.library):
        advice, fix = remedy(situation)
        yield Check(
            group=GROUP,
            name="library",
            status="problem",
            found=f"{build.library} holds no llama.cpp library{', and LLAMA_CPP_LIB_PATH names it' * is_named}",
            cost="GGUF models do not run",
            advice=advice,
            fix=fix,
        )
        return
    where = (
        f"LLAMA_CPP_LIB_PATH names {build.library}: it is used, other builds are not"
        if is_named
        else f"llama-cpp-python {build.version or 'of unknown version'}, {title_of(build)}"
    )
    yield Check(
        group=GROUP,
        name="library",
        status="note" if is_named else "ok",
        found=where,
        advice="unset LLAMA_CPP_LIB_PATH" if is_named else "",
    )
    for entry in situation.unfit:
        yield Check(
            group=GROUP,
            name="unfit-build",
            status="note",
            found=f"{entry.build.package} is not used: {entry.reason}",
        )


def check_features(situation: Situation, trials: Trials) -> Iterator[Check]:
    """Whether the library uses the instruction sets that this CPU has."""
    build = situation.build
    if build is None or not has_library(build.library):
        return
    info = trials.selftest.system_info if trials.selftest else ""
    lacking = lacking_sets(info, situation.cpu.features, has_amx_kernels(build.library))
    flags = build.flags or ""
    is_plain = "GGML_NATIVE=OFF" in flags
    if lacking:
        found = f"built without {_listed(lacking)}, which this CPU has"
    elif is_plain and not info:
        found = "built without the instruction sets of this CPU"
    else:
        used = [title for title, said, has in _INSTRUCTION_SETS if has in situation.cpu.features]
        known = f" ({_listed(used)})" if used and info else ""
        yield Check(
            group=GROUP,
            name="features",
            status="ok" if info else "note",
            found=f"built for what this CPU has{known}"
            if info
            else "the library does not tell what it was built for",
        )
        return
    if is_plain:
        found += " (flag GGML_NATIVE=OFF)"
    advice, fix = remedy(situation, is_lacking=True)
    cost = gain_of_others(situation, trials)
    after = "speed; how much is measured once another build is here"
    yield Check(
        group=GROUP,
        name="features",
        status="warning",
        found=found,
        cost=cost or after,
        advice=advice,
        fix=fix,
    )


def check_selftest(situation: Situation, trials: Trials) -> Iterator[Check]:
    """Whether the library survives and computes what it should."""
    test, build = trials.selftest, situation.build
    if test is None or build is None or not has_library(build.library):
        return
    fast, plain = test.failures("fast"), test.failures("safe")
    if not fast and not plain:
        apart = max((outcome.difference or 0.0 for outcome in test.outcomes), default=0.0)
        yield Check(
            group=GROUP,
            name="selftest",
            status="ok",
            found=f"it computes what it should: fast and plain kernels are {apart:.1%} apart, {AGREEMENT_BOUND:.1%} are allowed",
        )
        return
    advice, fix = remedy(situation, is_failing=True)
    yield Check(
        group=GROUP,
        name="selftest",
        status="problem",
        found=_failure(test, fast, plain) + _blame(build, situation, fast),
        cost=_failure_cost(situation, trials, fast, plain),
        advice=advice,
        fix=fix,
    )


def check_speed(situation: Situation, trials: Trials, *, is_explained: bool) -> Iterator[Check]:
    """How fast the library is beside its plain kernels and beside the other builds here.

    Args:
        situation: The facts.
        trials: With the speeds.
        is_explained: Whether another check has said already why it is slower than it could be.
    """
    if situation.build is None:
        return
    base = trials.speeds.get(CHOSEN) or trials.speeds.get(PLAIN)
    if base is None:
        yield Check(group=GROUP, name="speed", status="note", found=f"speed: {trials.unmeasured}")
        return
    how = "" if CHOSEN in trials.speeds else "with its plain kernels "
    figures = (
        f"{how}it reads {base.prefill_tokens_per_s:,.0f} and writes {base.decode_tokens_per_s:,.0f} tokens/s of a "
        "37 MB trial model (Q4_0)"
    )
    beside = [
        f"{_ratios(base, speed)} those of {'its ' * (name == PLAIN)}{name}"
        for name, speed in trials.speeds.items()
        if speed is not base
    ]
    gain = gain_of_others(situation, trials)
    if gain and not is_explained:
        advice, fix = remedy(situation, is_slower=True)
        yield Check(
            group=GROUP,
            name="speed",
            status="warning",
            found=f"another build here is faster: {gain}",
            cost=figures,
            advice=advice,
            fix=fix,
        )
        return
    yield Check(
        group=GROUP,
        name="speed",
        status="note" if is_explained else "ok",
        found=f"{figures}{': ' * bool(beside)}{', '.join(beside)}",
    )


def check_compiler(situation: Situation) -> Iterator[Check]:
    """Whether the library could be built here, and what the compiler is known for."""
    compiler = situation.compiler
    if compiler is None:
        yield Check(
            group=GROUP,
            name="compiler",
            status="note",
            found="there is no C++ compiler here",
            cost="the library cannot be built for this CPU",
            advice=situation.compiler_advice,
        )
    elif situation.plan_problem:
        yield Check(
            group=GROUP,
            name="compiler",
            status="warning",
            found=f"a build would be refused: {situation.plan_problem}",
        )
    else:
        known = (
            "; it miscompiles the AMX kernels, qwen-edge setup gives it the flags against that"
            if miscompiles_amx(situation.cpu, compiler)
            else ""
        )
        yield Check(group=GROUP, name="compiler", status="ok", found=f"compiler: {compiler.banner}{known}")
    for name in situation.hindering:
        yield Check(
            group=GROUP,
            name=f"environment-{name.lower()}",
            status="note",
            found=f"{name}={os.environ[name]} in your environment keeps instruction sets out of a build",
            advice=f"unset {name}",
        )


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
        title for title, name, feature in _INSTRUCTION_SETS if feature in cpu_features and name not in said
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
    if situation.compiler is None:
        return situation.compiler_advice, None
    if situation.plan_problem:
        return situation.plan_problem, None
    if is_lacking and situation.hindering:
        return f"unset {' '.join(situation.hindering)}, then: {_SETUP}", None
    if is_slower and any(other.key == situation.plan_key for other in situation.others):
        return _SETUP, Fix(kind="build", does="put the build for this CPU and compiler first")
    if (
        build is not None
        and build.key is not None
        and build.key == situation.plan_key
        and (is_failing or is_lacking)
    ):
        # The same compiler with the same flags would make the same library again.
        other = "g++" if "clang" in situation.compiler.family else "clang++"
        return f"CXX={other} {_SETUP}", None
    return _SETUP, Fix(kind="build", does="build the library for this CPU and compiler, some minutes")


def gain_of_others(situation: Situation, trials: Trials) -> str:
    """Return by how much the fastest other build here is faster than what is used, in words; "" where none is."""
    base = trials.speeds.get(CHOSEN) or trials.speeds.get(PLAIN)
    others = {name: speed for name, speed in trials.speeds.items() if name not in (CHOSEN, PLAIN)}
    if base is None or not others:
        return ""
    name, best = max(
        others.items(), key=lambda item: item[1].prefill_tokens_per_s * item[1].decode_tokens_per_s
    )
    reads = best.prefill_tokens_per_s / base.prefill_tokens_per_s
    writes = best.decode_tokens_per_s / base.decode_tokens_per_s
    if max(reads, writes) < _FASTER:
        return ""
    return f"{name} reads prompts {reads:.1f} times and writes {writes:.1f} times as fast"


def _listed(words: Sequence[str]) -> str:
    """Return "A, B and C"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _ratios(speed: Speed, other: Speed) -> str:
    reads = speed.prefill_tokens_per_s / other.prefill_tokens_per_s
    writes = speed.decode_tokens_per_s / other.decode_tokens_per_s
    return f"{reads:.1f} and {writes:.1f} times"


def _failure(test: SelfTest, fast: tuple[TypeOutcome, ...], plain: tuple[TypeOutcome, ...]) -> str:
    failed = plain or fast
    if not test.system_info:
        return f"the library does not load: {failed[0].crash or failed[0].error}"
    kind = "its plain kernels too" if plain else "its fast kernels"
    types = ", ".join(outcome.type_name for outcome in failed)
    if crashed := next((outcome.crash for outcome in failed if outcome.crash), ""):
        return f"{kind} crash with {types} ({crashed})"
    if error := next((outcome.error for outcome in failed if outcome.error), ""):
        return f"{kind} fail with {types}: {error}"
    if any(outcome.is_finite is False for outcome in failed):
        return f"{kind} give no numbers (NaN) with {types}"
    apart = max(outcome.difference or 0.0 for outcome in failed)
    return f"{kind} compute something else with {types}: {apart:.0%} apart, {AGREEMENT_BOUND:.1%} are allowed"


def _blame(build: Build, situation: Situation, fast: tuple[TypeOutcome, ...]) -> str:
    """Return the compiler that made a crashing build, where it is known for that."""
    compiler: Compiler | None = compiler_of(build.library)
    if compiler is None or not any(outcome.crash for outcome in fast):
        return ""
    is_known = miscompiles_amx(situation.cpu, compiler) and "-fno-tree-dse" not in (build.flags or "")
    version = ".".join(map(str, compiler.version))
    return f"; GCC {version} made it, which miscompiles the AMX kernels" if is_known else ""


def _failure_cost(
    situation: Situation, trials: Trials, fast: tuple[TypeOutcome, ...], plain: tuple[TypeOutcome, ...]
) -> str:
    if plain:
        return "GGUF models do not run"
    if not any(outcome.crash for outcome in fast):
        return "answers of such models are wrong"
    slower = "the plain kernels are used: right answers, slower"
    if gain := gain_of_others(situation, trials):
        return f"{slower}; {gain}"
    return f"{slower}; how much is measured once another build is here"
