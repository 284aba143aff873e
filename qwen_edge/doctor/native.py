"""Checks of the native library: is there one, was it built for this CPU, does it compute, is there a faster one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from qwen_edge.doctor import machine
from qwen_edge.doctor.remedies import INSTRUCTION_SETS, gain_of_others, lacking_sets, listed, ratios, remedy
from qwen_edge.doctor.report import Check, guarded
from qwen_edge.doctor.situation import (
    CHOSEN,
    PLAIN,
    Situation,
    Trials,
    find_situation,
    run_trials,
)
from qwen_edge.native.build_plan import miscompiles_amx
from qwen_edge.native.builds import Build
from qwen_edge.native.cpu_modules import best_module
from qwen_edge.native.library_file import compiler_of, has_amx_kernels, has_library
from qwen_edge.native.selftest import AGREEMENT_BOUND, SelfTest, TypeOutcome
from qwen_edge.native.toolchain import Cpu

GROUP = "Native library"

_HOMES = {
    "setup": "built by qwen-edge setup",
    "environment": "installed in this environment",
    "LLAMA_CPP_LIB_PATH": "named by LLAMA_CPP_LIB_PATH",
}


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
        else f"llama-cpp-python {build.version or 'of unknown version'}, {_HOMES[build.origin]}"
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
    is_plain = "GGML_NATIVE=OFF" in flags and not build.modules
    if lacking:
        found = f"built without {listed(lacking)}, which this CPU has"
    elif is_plain and not info:
        found = "built without the instruction sets of this CPU"
    else:
        used = [title for title, said, has in INSTRUCTION_SETS if has in situation.cpu.features]
        known = f" ({listed(used)})" if used and info else ""
        own = f", with {len(build.kernels)} kernels of qwen-edge's own for decode" if build.kernels else ""
        level = best_module(build.modules, situation.cpu.features)
        made_for = (
            f"of its {len(build.modules)} sets of kernels it uses {level}, the best for what this CPU has"
            if level
            else "built for what this CPU has"
        )
        yield Check(
            group=GROUP,
            name="features",
            status="ok" if info else "note",
            found=f"{made_for}{known}{own}" if info else "the library does not tell what it was built for",
        )
        yield from check_arm_level(situation.cpu)
        return
    if is_plain:
        found += " (flag GGML_NATIVE=OFF)"
    advice, fix = remedy(situation, is_lacking=True)
    cost = gain_of_others(trials)
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


def check_arm_level(cpu: Cpu) -> Iterator[Check]:
    """What the level of an ARM processor means for speed.

    Source: ggml_repack_get_optimal_repack_type in ggml/src/ggml-cpu/repack.cpp. No speeds: those are measured.
    """
    if cpu.architecture not in ("aarch64", "arm64") or "i8mm" in cpu.features:
        return
    if "asimddp" in cpu.features:
        found = "this CPU has no 8-bit matrix products (i8mm, Cortex-A510, A710, X2 and later): prompts are read with dot products"
        advice = ""
    else:
        found = "this CPU has no dot products (dotprod, Cortex-A55, A75 and later), which the fast kernels for weights of 4 to 8 bits need"
        advice = "take a small model and a short context: qwen-edge list; measure: qwen-edge bench FILE"
    yield Check(group=GROUP, name="arm-level", status="note", found=found, advice=advice)


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
        found=_failure(test, fast, plain)
        + _blame(build, situation, (*fast, *plain), has_loaded=bool(test.system_info)),
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
        f"{ratios(base, speed)} those of {'its ' * (name == PLAIN)}{name}"
        for name, speed in trials.speeds.items()
        if speed is not base
    ]
    figures += trials.rivals
    gain = gain_of_others(trials)
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
    plan = situation.plan
    if plan is None and situation.build is not None and situation.build.modules:
        yield Check(
            group=GROUP,
            name="compiler",
            status="ok",
            found="nothing is compiled here: the library came in a wheel (qwen-edge setup --wheel)",
        )
    elif plan is None:
        yield Check(
            group=GROUP,
            name="compiler",
            status="note",
            found=situation.obstacle,
            cost="the library cannot be built for this CPU",
            advice=situation.obstacle_advice,
        )
    else:
        known = (
            "; it miscompiles the AMX kernels, qwen-edge setup gives it the flags against that"
            if miscompiles_amx(plan.cpu, plan.compiler)
            else ""
        )
        yield Check(
            group=GROUP, name="compiler", status="ok", found=f"compiler: {plan.compiler.banner}{known}"
        )
    for name in situation.hindering:
        yield Check(
            group=GROUP,
            name=f"environment-{name.lower()}",
            status="note",
            found=f"{name}={os.environ[name]} in your environment keeps instruction sets out of a build",
            advice=f"unset {name}",
        )


def _failure(test: SelfTest, fast: tuple[TypeOutcome, ...], plain: tuple[TypeOutcome, ...]) -> str:
    failed = plain or fast
    if not test.system_info:
        return f"the library does not load: {failed[0].crash or failed[0].error}"
    kind = "its plain kernels too" if plain else "its fast kernels"
    types = ", ".join(outcome.type_name for outcome in failed)
    if crashes := dict.fromkeys(outcome.crash for outcome in failed if outcome.crash):
        return f"{kind} crash with {types} ({', '.join(crashes)})"
    if error := next((outcome.error for outcome in failed if outcome.error), ""):
        return f"{kind} fail with {types}: {error}"
    if any(outcome.is_finite is False for outcome in failed):
        return f"{kind} give no numbers (NaN) with {types}"
    apart = max(outcome.difference or 0.0 for outcome in failed)
    return f"{kind} compute something else with {types}: {apart:.0%} apart, {AGREEMENT_BOUND:.1%} are allowed"


def _blame(build: Build, situation: Situation, failed: tuple[TypeOutcome, ...], *, has_loaded: bool) -> str:
    """Return what makes a library crash like this, where that is known."""
    crashes = [outcome.crash for outcome in failed if outcome.crash]
    if not has_loaded:
        return "; it was built for another CPU" if any("SIGILL" in crash for crash in crashes) else ""
    compiler = compiler_of(build.library)
    if not crashes or compiler is None or not miscompiles_amx(situation.cpu, compiler):
        return ""
    if not has_amx_kernels(build.library) or "-fno-tree-dse" in (build.flags or ""):
        return ""
    version = ".".join(map(str, compiler.version))
    return f"; GCC {version} made it, which miscompiles the AMX kernels"


def _failure_cost(
    situation: Situation, trials: Trials, fast: tuple[TypeOutcome, ...], plain: tuple[TypeOutcome, ...]
) -> str:
    if plain:
        return "GGUF models do not run"
    if not any(outcome.crash for outcome in fast):
        return "answers of such models are wrong"
    slower = "the plain kernels are used: right answers, slower"
    if gain := gain_of_others(trials):
        return f"{slower}; {gain}"
    return f"{slower}; how much is measured once another build is here"
