"""Compile llama-cpp-python for this CPU, into the user's cache: what `qwen-edge setup` does.

The package index has it as source only, and pip's cache does not know with which flags a wheel was built. So it is
built here, with the flags of `build_plan`, into a folder named after everything that decides what is inside:
`~/.cache/qwen-edge/native/KEY/`, where `builds` finds it. No environment is changed.

The work is done in `building-KEY-MACHINE/` beside it: the source, unpacked once, and the compiler's objects. That folder
stays when a build is interrupted or fails, and the next run goes on from there. One build of a key runs at a time; on a
network file system that does not pass locks on, two machines build it each in a folder of its own, and the last stays.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shlex
import shutil
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from qwen_edge.errors import NativeError
from qwen_edge.files import atomic_path
from qwen_edge.native import build_needs
from qwen_edge.native.build_log import Outcome, failure, run_logged
from qwen_edge.native.build_needs import BUILD_ELSEWHERE
from qwen_edge.native.build_plan import CMAKE_INCLUDE, BuildPlan, pinned_version, plan_build
from qwen_edge.native.builds import (
    FACTS_FILE,
    PACKAGE,
    Build,
    builds_folder,
    entry_build,
    folder_bytes,
    is_whole,
    read_record,
)
from qwen_edge.native.cpu_modules import list_modules
from qwen_edge.native.own_kernels import CMAKE_FILE
from qwen_edge.native.toolchain import detect_compiler, detect_cpu

Say = Callable[[str], None]

_PROJECT = "llama-cpp-python"
# What an interrupted build left is removed after this time, when another one is made.
_KEPT_S = 7 * 24 * 3600
_END_TIMEOUT_S = 10.0


def plan_here() -> BuildPlan:
    """Return the plan for this CPU, with the compiler and flags of the environment.

    Raises:
        NativeError: There is no compiler that works, or no CMake; it says what to install.
        ConfigError: A flag of the environment would hide one that is needed.
    """
    build_needs.check_tools()
    return plan_build(detect_cpu(), detect_compiler(os.environ), os.environ, version=pinned_version())


def ensure_build(plan: BuildPlan, *, force: bool = False, jobs: int | None = None, say: Say) -> Build:
    """Return the build of a plan, from the cache or made now; it is the newest one afterwards.

    Args:
        plan: See `build_plan.plan_build`.
        force: Build it from the start, although it is there.
        jobs: Files to compile at once; None for what fits.
        say: Takes one line for the person who waits.

    Raises:
        NativeError: Something is missing, the build failed, or the cache cannot be written.
    """
    folder = builds_folder()
    entry = folder / plan.key
    if not force and (build := _finished(entry)):
        say(f"already built: {entry}")
        return build
    with writing(folder), exclusively(folder / f"{plan.key}.lock", say):
        # Another run may have built it while this one waited.
        if not force and (build := _finished(entry) or _from_wheel(entry)):
            say(f"built before: {entry}")
            return build
        remove_stale(folder)
        work = work_folder(plan)
        if force:
            end_leftovers(work)
            shutil.rmtree(work, ignore_errors=True)
        facts = compile_wheel(plan, work, entry.with_suffix(".log"), jobs, say)
        _install(work, entry, facts)
        say(f"built in {facts['seconds']:.0f} s: {entry}")
    made = _finished(entry)
    assert made is not None, f"Bug: {entry} is not whole"
    return made


def work_folder(plan: BuildPlan) -> Path:
    """Return where this machine builds a plan."""
    machine = re.sub(r"\W+", "-", platform.node()) or "machine"
    return builds_folder() / f"building-{plan.key}-{machine}"


def _finished(entry: Path) -> Build | None:
    """Return the build in an entry and make it the newest; None where there is none."""
    if not is_whole(entry) or (build := entry_build(entry)) is None:
        return None
    with contextlib.suppress(OSError):  # a cache that cannot be written still serves
        os.utime(entry / "build.json")
    return build


def _from_wheel(entry: Path) -> Build | None:
    """Unpack an entry that holds a wheel only, as earlier versions left it; None where it is not whole."""
    record = read_record(entry) or {}
    wheel = entry / str(record.get("wheel"))
    part = entry / f"{PACKAGE}.part"
    try:
        if wheel.stat().st_size != record.get("wheel_bytes"):
            return None
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(entry / PACKAGE, ignore_errors=True)
        unpack(wheel, part)
    except (OSError, ValueError, zipfile.BadZipFile):
        return None
    (part / PACKAGE).rename(entry / PACKAGE)
    part.rmdir()
    with atomic_path(entry / "build.json") as file:
        file.write_text(
            json.dumps({**record, "package_bytes": folder_bytes(entry / PACKAGE)}, indent=2) + "\n"
        )
    return _finished(entry)


def compile_wheel(plan: BuildPlan, work: Path, log: Path, jobs: int | None, say: Say) -> dict[str, Any]:
    """Make the wheel of a plan in `wheel/` of its work folder; what an interrupted run left there is used.

    Returns:
        What the record of the build is told: seconds and jobs.

    Raises:
        NativeError: Something is missing, or the build failed.
        OSError: The folder cannot be written.
    """
    end_leftovers(work)
    kept = is_resumable(work)
    if not kept:
        shutil.rmtree(work, ignore_errors=True)
    build_needs.check_disk(work.parent, folder_bytes(work) if kept else 0)
    log.write_bytes(b"")
    env = build_environment(plan, work, jobs)
    n_jobs = int(env["CMAKE_BUILD_PARALLEL_LEVEL"])
    minutes = build_needs.expected_minutes(n_jobs, n_modules=len(plan.modules))
    say(
        f"building llama.cpp: about {minutes} min on {n_jobs} core{'s' * (n_jobs > 1)}, "
        "more on a small board; what is interrupted goes on with the next run"
    )
    if kept:
        say(f"  going on with {n_objects(work)} compiled files of a run that did not end")
    say(f"  log: {log}")
    started = time.monotonic()
    outcome = _make_wheel(plan, work, env, log, say)
    if outcome.exit_code != 0 and kept and not outcome.remedy:
        say("  that failed with what was there: starting clean")
        shutil.rmtree(work)
        outcome = _make_wheel(plan, work, build_environment(plan, work, jobs), log, say)
    if outcome.exit_code != 0:
        raise failure(f"building {_PROJECT} {plan.version}", outcome, log, say)
    return {"seconds": round(time.monotonic() - started, 1), "jobs": n_jobs}


def _make_wheel(plan: BuildPlan, work: Path, env: dict[str, str], log: Path, say: Say) -> Outcome:
    """Run pip, which runs CMake and the compiler; the wheel is in the work folder where that worked."""
    pip = build_needs.pip_command(work)
    _fetch_source(plan, pip, env, work, log, say)
    source = next((work / "source").iterdir())
    if plan.modules:
        list_modules(source, plan.modules)
    command = [
        *pip, "wheel", "-v", "--no-deps", "--no-cache-dir", "--wheel-dir", str(work / "wheel"),
        f"--config-settings=build-dir={work / 'objects'}", "--config-settings=ninja.make-fallback=false",
        str(source),
    ]  # fmt: skip
    return run_logged(command, env, log, say)


def _fetch_source(
    plan: BuildPlan, pip: list[str], env: dict[str, str], work: Path, log: Path, say: Say
) -> None:
    """Put the source into the work folder, unless it is there."""
    source, part = work / "source", work / "source.part"
    if source.exists():
        return
    say(f"  fetching the source of {_PROJECT} {plan.version}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    command = [
        *pip, "download", "--no-deps", "--no-cache-dir", "--no-binary", _PROJECT, "--dest", str(part),
        f"{_PROJECT}=={plan.version}",
    ]  # fmt: skip
    outcome = run_logged(command, env, log, say)
    if outcome.exit_code != 0:
        raise failure(f"fetching {_PROJECT} {plan.version}", outcome, log, say)
    archive = next(part.glob("*.tar.gz"))
    # Python before 3.11.4 has no filters. What is in there is run in the next step, so none would protect much.
    options: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    try:
        with tarfile.open(archive) as file:
            file.extractall(part, **options)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise NativeError(
            f"the source that came, {archive.name}, is damaged: {error}",
            hint="Run qwen-edge setup again: it is fetched anew.",
        ) from error
    archive.unlink()
    part.rename(source)


def _install(work: Path, entry: Path, facts: dict[str, Any]) -> None:
    """Make the entry of a wheel, whole or not at all, and remove the work folder."""
    new = work / "entry"
    unpack(next((work / "wheel").glob("*.whl")), new)
    # Not the plan's own: CMake has told there which kernels are in.
    built = json.loads((work / FACTS_FILE).read_text())
    record = {**built, **facts, "package_bytes": folder_bytes(new / PACKAGE)}
    (new / "build.json").write_text(json.dumps(record, indent=2) + "\n")
    for path in new.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    if entry.exists():
        # Processes that have it loaded keep the files that they have open.
        entry.rename(work / "replaced")
    new.rename(entry)
    shutil.rmtree(work, ignore_errors=True)


def unpack(wheel: Path, folder: Path) -> None:
    """Unpack the package of a wheel into a folder.

    Raises:
        zipfile.BadZipFile: The wheel is damaged.
        OSError: It cannot be read, or the folder not written.
    """
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith(f"{PACKAGE}/")])


def build_environment(plan: BuildPlan, work: Path, jobs: int | None) -> dict[str, str]:
    """Return the environment of the build and make what it names in the work folder."""
    for name in ("tmp", "wheel", "entry"):
        shutil.rmtree(work / name, ignore_errors=True)
        (work / name).mkdir(parents=True)
    os.utime(work)
    facts, include = work / FACTS_FILE, work / "qwen_edge.cmake"
    facts.write_text(json.dumps(plan.build_facts(), indent=2) + "\n")
    include.write_text(CMAKE_INCLUDE)
    arguments = [
        f"-DCMAKE_PROJECT_llama_cpp_INCLUDE={include}",
        f"-DQWEN_EDGE_BUILD_FACTS={facts}",
        *([f"-DQWEN_EDGE_KERNELS_FILE={CMAKE_FILE}"] if plan.kernels else []),
        *plan.cmake_args,
    ]
    env = {
        **os.environ,
        **plan.compile_flags,
        "CMAKE_ARGS": shlex.join(arguments),
        "CXX": plan.compiler.command,
        # On the cache's disk: /tmp is often memory, which small machines need for the compiler.
        "TMPDIR": str(work / "tmp"),
        # Nothing is installed, so a rule against doing that outside of a venv does not apply.
        "PIP_REQUIRE_VIRTUALENV": "0",
    }
    if plan.compiler.c_command:
        env["CC"] = plan.compiler.c_command
    env["CMAKE_BUILD_PARALLEL_LEVEL"] = str(jobs or jobs_from(os.environ))
    return env


def jobs_from(env: Mapping[str, str]) -> int:
    """Return how many files to compile at once: what CMAKE_BUILD_PARALLEL_LEVEL says, else what fits."""
    named = env.get("CMAKE_BUILD_PARALLEL_LEVEL", "")
    return int(named) if named.isdecimal() and int(named) else build_needs.parallel_jobs()


def is_resumable(work: Path) -> bool:
    """Return whether a build can go on in a work folder.

    Ninja knows which objects it finished; where it is not installed, pip fetches it for the build. Make, which a
    CMAKE_GENERATOR may ask for, goes by their time and would take a half-written one for whole.
    """
    objects = work / "objects"
    return (work / "source").is_dir() and (not objects.exists() or (objects / "build.ninja").is_file())


def n_objects(work: Path) -> int:
    """Return how many files an interrupted build has compiled."""
    return sum(1 for _ in (work / "objects").rglob("*.o"))


def end_leftovers(work: Path) -> None:
    """End what a killed run left running in a work folder: pip, Ninja and compilers have its temporary folder."""
    if not work.exists():
        return
    killed = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get("TMPDIR") == str(work / "tmp"):
                process.kill()
                killed.append(process)
    psutil.wait_procs(killed, timeout=_END_TIMEOUT_S)


def remove_stale(folder: Path) -> None:
    """Remove what builds of other flags or earlier versions left long ago."""
    for work in folder.glob("building-*"):
        with contextlib.suppress(OSError):
            if time.time() - work.stat().st_mtime > _KEPT_S:
                shutil.rmtree(work)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Make the folder of the builds, and say of what cannot be written how to build elsewhere.

    Raises:
        NativeError: A file cannot be made, written or locked.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise NativeError(
            f"the build cannot write {error.filename or folder}: {error.strerror or error}",
            hint=BUILD_ELSEWHERE,
        ) from error


@contextlib.contextmanager
def exclusively(path: Path, say: Say) -> Iterator[None]:
    """Hold a lock that the system frees when its holder dies.

    Raises:
        OSError: The file cannot be made, or the file system has no locks.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say("another run builds the same: waiting for it to end")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
