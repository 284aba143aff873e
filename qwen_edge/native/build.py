"""Compile llama-cpp-python for this CPU and install it: `python -m qwen_edge.native.build`.

The package index has it as source only, and pip's cache does not know with which flags a wheel was built. So the wheel
is built here, with the flags of `build_plan`, into a folder named after everything that decides what is inside:
`~/.cache/qwen-edge/native/KEY/`. A second checkout or environment finds it there. Standard library only: this runs
before anything is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from qwen_edge.errors import NativeError, QwenEdgeError
from qwen_edge.native.build_plan import (
    CMAKE_INCLUDE,
    BuildPlan,
    detect_compiler,
    detect_cpu,
    pinned_version,
    plan_build,
)

_PACKAGE = "llama-cpp-python"
# Never a wheel from the index or from pip's cache: they say nothing of their flags.
_FROM_SOURCE = ("--no-deps", "--no-cache-dir", "--no-binary", _PACKAGE)
_FACTS_FILE = "qwen_edge_build.json"  # in the installed package; qwen_edge.native.library reads it

# Measured with GCC 12.2 on a Sapphire Rapids core, llama-cpp-python 0.3.36: 199 s of CPU time.
_BUILD_CPU_S = 200
# Source tree, objects and wheel: 0.3 GB seen, and as much again for a build that keeps more.
_NEEDED_DISK_BYTES = 700_000_000
# The largest compile of llama.cpp (ggml-cpu/ops.cpp, llama-model.cpp) stays below this with GCC and clang.
_COMPILE_MEMORY_BYTES = 1 << 30

_PROGRESS_EVERY_S = 15.0
_LOG_TAIL_LINES = 30

# What a failed build's log says -> what to do next; first match wins.
_REMEDIES = (
    (
        r"No space left on device",
        "The disk is full. QWEN_EDGE_CACHE=/some/folder make setup builds elsewhere.",
    ),
    (
        r"\bKilled\b|cannot allocate memory|out of memory",
        "The compiler ran out of memory. Compile one file at a time: CMAKE_BUILD_PARALLEL_LEVEL=1 make setup",
    ),
    (
        r"unrecognized command-line option|unknown argument",
        "The compiler refuses a flag. Look at CMAKE_ARGS, CFLAGS, CXXFLAGS and LDFLAGS in your environment.",
    ),
    (
        r"NewConnectionError|ConnectTimeoutError|NameResolutionError|Temporary failure in name resolution"
        r"|Could not find a version|No matching distribution",
        "The package index did not answer or does not have it. With a connection, run make setup again.",
    ),
)
_ANY_REMEDY = "Run make setup again with another compiler, for example: CXX=clang++ make setup"


def say(text: str = "") -> None:
    """Write one line for the person who waits."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - click is not installed yet


def cache_folder(env: Mapping[str, str]) -> Path:
    """Return the folder of the wheels: under QWEN_EDGE_CACHE, else ${XDG_CACHE_HOME:-~/.cache}/qwen-edge."""
    if env.get("QWEN_EDGE_CACHE"):
        return Path(env["QWEN_EDGE_CACHE"]).expanduser().absolute() / "native"
    return Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qwen-edge" / "native"


def cached_wheel(folder: Path, key: str) -> Path | None:
    """Return the wheel of a finished build, None when there is none or its size is not the recorded one."""
    try:
        record = json.loads((folder / key / "build.json").read_text())
        wheel = folder / key / record["wheel"]
        return wheel if wheel.stat().st_size == record["wheel_bytes"] else None
    except (OSError, ValueError, KeyError):
        return None


def ensure_wheel(plan: BuildPlan, folder: Path) -> Path:
    """Return the wheel of a plan, from the cache or built now.

    Raises:
        NativeError: The build failed.
        OSError: The cache cannot be written.
    """
    if wheel := cached_wheel(folder, plan.key):
        say(f"using the build of {plan.key} in {folder}")
        return wheel
    folder.mkdir(parents=True, exist_ok=True)
    with _exclusively(folder / "lock"):
        # Another run may have built it while this one waited.
        if wheel := cached_wheel(folder, plan.key):
            say(f"using the build that just ended: {wheel.parent}")
            return wheel
        # Under the lock nobody builds: these are what killed runs left.
        for stale in folder.glob("building-*"):
            shutil.rmtree(stale, ignore_errors=True)
        return _build(plan, folder)


def _build(plan: BuildPlan, folder: Path) -> Path:
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < _NEEDED_DISK_BYTES:
        raise NativeError(
            f"the build needs {_NEEDED_DISK_BYTES / 1e6:.0f} MB in {folder}, {free_bytes / 1e6:.0f} MB are free",
            hint="QWEN_EDGE_CACHE=/some/folder make setup builds elsewhere.",
        )
    work = folder / f"building-{plan.key}"
    entry = work / "entry"
    log = folder / f"{plan.key}.log"
    (work / "tmp").mkdir(parents=True)
    entry.mkdir()
    try:
        env = build_environment(plan, work)
        jobs = int(env["CMAKE_BUILD_PARALLEL_LEVEL"])
        minutes = max(1, round(_BUILD_CPU_S / jobs / 60 + 0.5))
        say(
            f"building llama.cpp: about {minutes} min on {jobs} core{'s' * (jobs > 1)}, more on a small board"
        )
        say(f"  log: {log}")
        started = time.monotonic()
        _run_logged(
            [*_pip(), "wheel", "-v", *_FROM_SOURCE, "--wheel-dir", str(entry), f"{_PACKAGE}=={plan.version}"],
            env,
            log,
        )
        seconds = time.monotonic() - started
        wheel = next(entry.glob("*.whl"))
        record = {
            **plan.build_facts(),
            "seconds": round(seconds, 1),
            "jobs": jobs,
            "wheel": wheel.name,
            "wheel_bytes": wheel.stat().st_size,
        }
        (entry / "build.json").write_text(json.dumps(record, indent=2) + "\n")
        for file in entry.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        shutil.rmtree(folder / plan.key, ignore_errors=True)
        entry.rename(folder / plan.key)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    say(f"built in {seconds:.0f} s: {folder / plan.key / wheel.name}")
    return folder / plan.key / wheel.name


def build_environment(plan: BuildPlan, work: Path) -> dict[str, str]:
    """Return the environment of the build and write the two files it names into `work`."""
    facts, include = work / _FACTS_FILE, work / "qwen_edge.cmake"
    facts.write_text(json.dumps(plan.build_facts(), indent=2) + "\n")
    include.write_text(CMAKE_INCLUDE)
    arguments = [
        f"-DCMAKE_PROJECT_llama_cpp_INCLUDE={include}",
        f"-DQWEN_EDGE_BUILD_FACTS={facts}",
        *plan.cmake_args,
    ]
    env = {
        **os.environ,
        **plan.compile_flags,
        "CMAKE_ARGS": shlex.join(arguments),
        "CXX": plan.compiler.command,
        # On the cache's disk: /tmp is often memory, which small machines need for the compiler.
        "TMPDIR": str(work / "tmp"),
    }
    if plan.compiler.c_command:
        env["CC"] = plan.compiler.c_command
    if not env.get("CMAKE_BUILD_PARALLEL_LEVEL", "").isdigit():
        env["CMAKE_BUILD_PARALLEL_LEVEL"] = str(_parallel_jobs())
    return env


def _parallel_jobs() -> int:
    """Return how many files to compile at once: one a core, and never more than fit in memory."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no affinity call
        cores = os.cpu_count() or 1
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(cores, memory_bytes // _COMPILE_MEMORY_BYTES))


def install_wheel(wheel: Path, plan: BuildPlan) -> None:
    """Install a wheel into the environment of this interpreter, unless it is what is there.

    Raises:
        NativeError: pip failed.
    """
    if installed_key() == plan.key:
        say(f"{_PACKAGE} {plan.version} of this build is installed")
        return
    # Twice: the first replaces another build of the same version and leaves the other packages as they are,
    # the second adds those that are missing.
    for options in (["--force-reinstall", "--no-deps"], []):
        done = subprocess.run([*_pip(), "install", "-qq", *options, str(wheel)], check=False)
        if done.returncode != 0:
            raise NativeError(
                f"pip could not install {wheel.name} (exit code {done.returncode}; its message is above)",
                hint="Run make setup again; the wheel is kept, nothing is compiled twice.",
            )
    say(f"installed {_PACKAGE} {plan.version} into {sys.prefix}")


def installed_key() -> str | None:
    """Return the key of the build that is installed; None for no build or one that was made elsewhere."""
    try:
        facts_file = importlib.metadata.distribution(_PACKAGE).locate_file(f"llama_cpp/{_FACTS_FILE}")
        key = json.loads(Path(str(facts_file)).read_text())["key"]
    except (importlib.metadata.PackageNotFoundError, OSError, ValueError, KeyError):
        return None
    return str(key)


def _pip() -> list[str]:
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]


@contextlib.contextmanager
def _exclusively(lock: Path) -> Iterator[None]:
    """Hold a lock that the system frees when its holder dies."""
    import fcntl

    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another build is running: waiting for it to end")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run_logged(command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
    """Run a command with its output in a log, and say now and then how far it is.

    Raises:
        NativeError: It failed; the end of the log has been shown.
    """
    started = time.monotonic()
    # A session of its own, so that an interrupt ends pip, CMake and every compiler together.
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        try:
            while True:
                try:
                    exit_code = process.wait(timeout=_PROGRESS_EVERY_S)
                    break
                except subprocess.TimeoutExpired:
                    say(f"  {time.monotonic() - started:4.0f} s{progress_in(_tail_of(log))}")
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
    if exit_code == 0:
        return
    text = log.read_text(errors="replace")
    lines = [line for line in text.splitlines() if line.strip()][-_LOG_TAIL_LINES:]
    say(f"\nlast {len(lines)} lines of the log:")
    for line in lines:
        say(f"  | {line[:300]}")
    raise NativeError(f"building {_PACKAGE} failed; the whole log is {log}", hint=remedy_for(text))


def progress_in(log_text: str) -> str:
    """Return ": 12 of 83 steps" (ninja) or ": 14%" (make) from the last counter in a log; "" when there is none yet."""
    counters = re.findall(r"^\s*\[(?:(\d+)/(\d+)|\s*(\d+%))\]", log_text, re.MULTILINE)
    if not counters:
        return ""
    done, steps, percent = counters[-1]
    return f": {percent}" if percent else f": {done} of {steps} steps"


def remedy_for(log_text: str) -> str:
    """Return what to do about a failed build."""
    for pattern, remedy in _REMEDIES:
        if re.search(pattern, log_text, re.IGNORECASE):
            return remedy
    return _ANY_REMEDY


def _tail_of(log: Path, size_bytes: int = 65536) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - size_bytes))
        return file.read().decode(errors="replace")


def describe(plan: BuildPlan, folder: Path) -> dict[str, Any]:
    """Return the plan as a JSON-ready dict, with what the cache and this environment have of it."""
    wheel = cached_wheel(folder, plan.key)
    return {
        **plan.build_facts(),
        "compiler_command": plan.compiler.command,
        "reasons": list(plan.reasons),
        "jobs": _parallel_jobs(),
        "cached_wheel": str(wheel) if wheel else None,
        "installed": installed_key() == plan.key,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Build and install; return the exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m qwen_edge.native.build",
        description="Compile llama-cpp-python for this CPU and install it.",
    )
    parser.add_argument(
        "--print-plan", action="store_true", help="print what would be built as JSON, and stop"
    )
    parser.add_argument(
        "--wheel-only", action="store_true", help="build, print the path of the wheel, install nothing"
    )
    options = parser.parse_args(argv)
    try:
        plan = plan_build(detect_cpu(), detect_compiler(os.environ), os.environ, version=pinned_version())
        folder = cache_folder(os.environ)
        if options.print_plan:
            print(json.dumps(describe(plan, folder), indent=2))  # noqa: T201 - the data asked for
            return 0
        say(f"llama-cpp-python {plan.version} for {plan.cpu.name} ({plan.cpu.architecture})")
        say(f"  compiler: {plan.compiler.banner}")
        for reason in plan.reasons:
            say(f"  {reason}")
        wheel = ensure_wheel(plan, folder)
        if options.wheel_only:
            print(wheel)  # noqa: T201 - the data asked for
        else:
            install_wheel(wheel, plan)
    except (QwenEdgeError, OSError) as error:
        if os.environ.get("QWEN_EDGE_DEBUG") == "1":
            raise
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted; nothing half-made is left, the next run starts the build again")
        return 130
    return 0


def _on_sigterm(_signal: int, _frame: object) -> NoReturn:
    # An exception, so that the compilers are ended and the work folder is removed.
    raise SystemExit(143)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _on_sigterm)
    sys.exit(main())
