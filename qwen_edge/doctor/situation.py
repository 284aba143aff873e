"""The facts about the native library that several checks need, gathered once, and the trials of it."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qwen_edge import device
from qwen_edge.errors import QwenEdgeError
from qwen_edge.native.build import plan_here
from qwen_edge.native.build_plan import HONOURED, BuildPlan
from qwen_edge.native.builds import Build, UnfitBuild, chosen_build, find_builds, unfit_builds
from qwen_edge.native.library_file import has_library
from qwen_edge.native.selftest import SELFTEST_SHAPE, SELFTEST_TYPES, SelfTest, run_selftest
from qwen_edge.native.speed_trial import SPEED_SHAPE, SPEED_TYPE, Contestant, Speed, measure_speeds
from qwen_edge.native.toolchain import Cpu, detect_cpu
from qwen_edge.trial_model import write_trial_model

# Of wall clock for all that is timed, writing the trial model included.
SPEED_BUDGET_S = 20.0
_MAX_OTHERS = 2

CHOSEN, PLAIN = "chosen", "plain kernels"

# What a person can have asked of a build that leaves instruction sets out.
_HINDERING = re.compile(r"GGML_NATIVE(:\w+)?=(OFF|0|FALSE|NO)\b|-mno-|-march=(?!native)", re.IGNORECASE)

_TITLES = {
    "setup": "the build of qwen-edge setup",
    "environment": "the environment's llama-cpp-python",
    "LLAMA_CPP_LIB_PATH": "the library of LLAMA_CPP_LIB_PATH",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What is here to run GGUF models with, and to build it.

    Attributes:
        build: What is used; None where there is none.
        others: Builds that could be used too, best first.
        unfit: Builds that are here and cannot be used.
        cpu: This machine's.
        plan: What `qwen-edge setup` would build; None where it cannot.
        obstacle: Why it cannot.
        obstacle_advice: The command that brings what is missing; "" where there is none.
        hindering: Variables of the environment that keep instruction sets out of a build.
    """

    build: Build | None
    others: tuple[Build, ...]
    unfit: tuple[UnfitBuild, ...]
    cpu: Cpu
    plan: BuildPlan | None
    obstacle: str
    obstacle_advice: str
    hindering: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trials:
    """What became of the library when it was tried.

    Attributes:
        selftest: None where there is no library.
        speeds: By CHOSEN, PLAIN, or the title of another build.
        unmeasured: Why there are no speeds; "" where there are.
        rivals: A remark where other programs wanted the cores too: the speeds are too low then, their ratios hold.
    """

    selftest: SelfTest | None = None
    speeds: Mapping[str, Speed] = field(default_factory=dict)
    unmeasured: str = ""
    rivals: str = ""


def find_situation() -> Situation:
    """Look for builds and a compiler; loads nothing."""
    build = chosen_build()
    plan: BuildPlan | None = None
    obstacle = advice = ""
    try:
        plan = plan_here()
    except QwenEdgeError as error:
        obstacle, advice = _in_short(error)
    except OSError as error:
        obstacle = str(error)
    return Situation(
        build=build,
        others=tuple(other for other in find_builds() if build is None or other.library != build.library),
        unfit=unfit_builds(),
        cpu=detect_cpu(),
        plan=plan,
        obstacle=obstacle,
        obstacle_advice=advice,
        hindering=tuple(name for name in HONOURED if _HINDERING.search(os.environ.get(name, ""))),
    )


def _in_short(error: QwenEdgeError) -> tuple[str, str]:
    """Return why a build cannot be made, and the command that changes that, each on one line.

    What is missing stands as a list in the message, the command under its heading in the hint.
    """
    lines = error.message.splitlines()
    missing = [line.strip().removeprefix("- ") for line in lines if line.strip().startswith("- ")]
    obstacle = f"to build it, this is missing: {', '.join(missing)}" if missing else " ".join(lines)
    hint = [line.strip() for line in (error.hint or "").splitlines() if line.strip()]
    is_headed = len(hint) > 1 and hint[0].endswith(":")
    return obstacle, hint[1] if is_headed else " ".join(hint)


def title_of(build: Build, *, beside: Build | None) -> str:
    """Return how the report calls a build, beside the one in use."""
    if build.origin == "setup" and beside is not None and beside.origin == "setup":
        return f"another build of qwen-edge setup ({build.key})"
    return _TITLES[build.origin]


def run_trials(situation: Situation, *, is_quick: bool, say: Callable[[str], None]) -> Trials:
    """Try the library in children: does it compute, and how fast.

    Args:
        situation: Whose build is tried.
        is_quick: Leave the measuring out.
        say: Told what is going on.

    Raises:
        OSError: There is no room for the trial models.
    """
    if situation.build is None or not has_library(situation.build.library):
        return Trials(unmeasured="there is no library")
    # Asked before: the trials are load too.
    rivals = _rivals()
    with tempfile.TemporaryDirectory(prefix="qwen-edge-doctor-") as name:
        folder = Path(name)
        say("trying the native library")
        files = {kind: folder / f"{kind}.gguf" for kind in SELFTEST_TYPES}
        for kind, file in files.items():
            write_trial_model(file, SELFTEST_SHAPE, kind)
        selftest = run_selftest(files, folder, build=situation.build)
        if is_quick or selftest.failures("safe"):
            return Trials(
                selftest=selftest, unmeasured="not measured (--quick)" if is_quick else "it does not run"
            )
        say(f"measuring, at most {SPEED_BUDGET_S:.0f} s")
        started = time.monotonic()
        file = folder / "speed.gguf"
        write_trial_model(file, SPEED_SHAPE, SPEED_TYPE)
        left_s = SPEED_BUDGET_S - (time.monotonic() - started)
        # Threads of one call wait for each other: on a busy machine one alone, in CPU time, is the fair measure.
        n_threads = 1 if rivals else None
        speeds = measure_speeds(_contestants(situation, selftest), file, budget_s=left_s, n_threads=n_threads)
        late = "" if speeds else f"no trial ended within {SPEED_BUDGET_S:.0f} s"
        return Trials(selftest=selftest, speeds=speeds, unmeasured=late, rivals=rivals)


def _rivals() -> str:
    cores = device.usable_cores()
    try:
        load = os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows does not tell
        return ""
    if load <= cores / 2 + 1:
        return ""
    return f", in CPU time of one thread, for this machine is busy (load {load:.0f} on {cores} cores)"


def _contestants(situation: Situation, selftest: SelfTest) -> list[Contestant]:
    crashes = any(outcome.crash for outcome in selftest.failures("fast"))
    chosen = [] if crashes else [Contestant(name=CHOSEN, build=situation.build)]
    plain = Contestant(name=PLAIN, build=situation.build, kernels="safe")
    others = [
        Contestant(name=title_of(other, beside=situation.build), build=other)
        for other in situation.others[:_MAX_OTHERS]
    ]
    return [*chosen, plain, *others]
