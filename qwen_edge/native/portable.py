"""A wheel of llama.cpp for any 64-bit ARM machine with Linux, compiled on whatever machine is at hand.

Phones and boards take long to compile, or have no compiler. `build_wheel` makes a wheel with kernels for each level of
the processor (`cpu_modules`); `install_wheel` puts it among the builds of the device, where `builds` finds it as it finds
those that were compiled there.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen_edge.device.cpuinfo import output_of
from qwen_edge.errors import NativeError
from qwen_edge.files import atomic_path
from qwen_edge.native import build_needs
from qwen_edge.native.build import Say, compile_wheel, exclusively, remove_stale, unpack, work_folder, writing
from qwen_edge.native.build_plan import BuildPlan, pinned_version, plan_build, this_target
from qwen_edge.native.builds import (
    FACTS_FILE,
    PACKAGE,
    Build,
    builds_folder,
    entry_build,
    folder_bytes,
    is_whole,
    target_fits,
)
from qwen_edge.native.cpu_modules import ARM_MODULES
from qwen_edge.native.toolchain import Compiler, Cpu, detect_compiler

ARCHITECTURE = "aarch64"
"""As `uname -m` calls what portable builds are for."""

_PLATFORM = f"linux-{ARCHITECTURE}"
_CROSS_COMPILER = f"{ARCHITECTURE}-linux-gnu-g++"
_TIMEOUT_S = 60
# The name of a version that a library asks the C library for. Source: the GNU C library's symbol versions.
_GLIBC_VERSION = re.compile(rb"\0GLIBC_(\d+)\.(\d+)(?=[.\0])")
# libNAME.so.0.25.3 beside libNAME.so and libNAME.so.0, all the same file: a zip has no links.
_THIRD_COPY = re.compile(r"\.so(\.\d+){2,}$")
_FACTS_NAME = f"{PACKAGE}/{FACTS_FILE}"


def plan_portable(env: Mapping[str, str]) -> BuildPlan:
    """Return the plan of a portable wheel, with the compiler and flags of the environment.

    Raises:
        NativeError: There is no compiler for 64-bit ARM, or no CMake; it says what to install.
        ConfigError: As build_plan.plan_build.
    """
    build_needs.check_tools()
    cpu = Cpu(architecture=ARCHITECTURE, name="any 64-bit ARM processor", features=())
    compiler = _arm_compiler(env)
    return plan_build(cpu, compiler, env, version=pinned_version(), target=_PLATFORM, modules=ARM_MODULES)


def _arm_compiler(env: Mapping[str, str]) -> Compiler:
    """Return CXX, the distributions' cross compiler, or this machine's own where that is an ARM machine."""
    named = env.get("CXX", "").strip()
    tried = [named] if named else [_CROSS_COMPILER, "c++"]
    for command in tried:
        words = shlex.split(command)
        if not shutil.which(words[0], path=env.get("PATH")):
            continue
        if output_of([*words, "-dumpmachine"], timeout_s=_TIMEOUT_S).startswith(ARCHITECTURE):
            return detect_compiler({**env, "CXX": command})
    raise NativeError(
        f"no C++ compiler for {ARCHITECTURE} found (looked for {', '.join(tried)})",
        hint=f"Debian, Ubuntu: sudo apt-get install g++-{ARCHITECTURE}-linux-gnu\n"
        "  Another one: CXX=its-command qwen-edge setup --for aarch64",
    )


def build_wheel(
    plan: BuildPlan, folder: Path, *, force: bool = False, jobs: int | None = None, say: Say
) -> Path:
    """Return the wheel of a portable plan in a folder, made now unless it is there.

    Args:
        plan: Of plan_portable.
        folder: Where the wheel goes.
        force: Build it from the start.
        jobs: Files to compile at once; None for what fits.
        say: Takes one line for the person who waits.

    Raises:
        NativeError: Something is missing, the build failed, or a folder cannot be written.
    """
    builds = builds_folder()
    work = work_folder(plan)
    with writing(builds), exclusively(builds / f"{plan.key}.lock", say):
        folder.mkdir(parents=True, exist_ok=True)
        for wheel in sorted(folder.glob("*.whl")):
            if not force and _facts_in(wheel).get("key") == plan.key:
                say(f"already built: {wheel}")
                return wheel
        remove_stale(builds)
        if force:
            shutil.rmtree(work, ignore_errors=True)
        run = compile_wheel(plan, work, builds / f"{plan.key}.log", jobs, say)
        made = finish_wheel(next((work / "wheel").glob("*.whl")), folder, plan.build_facts())
        shutil.rmtree(work, ignore_errors=True)
    say(f"built in {run['seconds']:.0f} s: {made}")
    return made


def finish_wheel(wheel: Path, folder: Path, facts: dict[str, Any]) -> Path:
    """Write a compiled wheel under the platform it is for, with what is known of its build.

    The build tags it for the machine that compiled; the C library that it needs is known from the libraries only.

    Args:
        wheel: As pip made it.
        folder: Where the new one goes, whole or not at all.
        facts: For FACTS_FILE; "target" is completed here.

    Raises:
        NativeError: Its libraries do not tell which C library they need.
        OSError, zipfile.BadZipFile: It cannot be read, or the new one not written.
    """
    with zipfile.ZipFile(wheel) as archive:
        contents = {
            info.filename: archive.read(info)
            for info in archive.infolist()
            if not info.is_dir() and not _THIRD_COPY.search(info.filename)
        }
    major, minor = needed_glibc(data for name, data in contents.items() if ".so" in name)
    tag = f"py3-none-manylinux_{major}_{minor}_{ARCHITECTURE}"
    contents[_FACTS_NAME] = (
        json.dumps({**facts, "target": f"{_PLATFORM}-glibc{major}.{minor}"}, indent=2) + "\n"
    ).encode()
    record = next(name for name in contents if name.endswith(".dist-info/RECORD"))
    described = record.replace("RECORD", "WHEEL")
    contents[described] = re.sub(rb"(?m)^Tag: .*$", f"Tag: {tag}".encode(), contents[described])
    contents[record] = _record_of(contents, record)
    named = "-".join(wheel.name.split("-")[:2])
    made = folder / f"{named}-{tag}.whl"
    with atomic_path(made) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            # Written with one date: the same libraries give the same wheel.
            info = zipfile.ZipInfo(name)
            info.external_attr = (0o755 if ".so" in name else 0o644) << 16
            archive.writestr(info, data, zipfile.ZIP_DEFLATED)
    return made


def needed_glibc(libraries: Any) -> tuple[int, int]:
    """Return the newest version of the GNU C library that any of some ELF files asks for.

    Args:
        libraries: Their bytes.

    Raises:
        NativeError: None of them asks for any.
    """
    found = [(int(major), int(minor)) for data in libraries for major, minor in _GLIBC_VERSION.findall(data)]
    if not found:
        raise NativeError(
            "the libraries that were built do not tell which C library they need",
            hint="Name a compiler for Linux with the GNU C library: CXX=... qwen-edge setup --for aarch64",
        )
    return max(found)


def _record_of(contents: Mapping[str, bytes], own_name: str) -> bytes:
    """Return RECORD of a wheel. Source: packaging.python.org, "Recording installed projects"."""
    text = io.StringIO()
    for name, data in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        text.write(f"{name},,\n" if name == own_name else f"{name},sha256={digest},{len(data)}\n")
    return text.getvalue().encode()


def _facts_in(wheel: Path) -> dict[str, Any]:
    """Return what a wheel tells of its build; {} where it is none of ours, or damaged."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            facts = json.loads(archive.read(_FACTS_NAME))
    except (OSError, ValueError, KeyError, RecursionError, zipfile.BadZipFile):
        return {}
    return facts if isinstance(facts, dict) else {}


def install_wheel(wheel: Path, *, say: Say) -> Build:
    """Put a wheel of build_wheel among the builds of this machine; one that is there is replaced.

    Args:
        wheel: The file.
        say: Takes one line for the person who waits.

    Raises:
        NativeError: It is damaged, none of ours, of another version, for another machine, or cannot be written.
    """
    facts = _facts_in(wheel)
    key = str(facts.get("key", ""))
    if not re.fullmatch(r"[0-9a-f]{16}", key):
        raise NativeError(
            f"{wheel} {'is not there' if not wheel.exists() else 'is no wheel of qwen-edge setup, or is damaged'}",
            hint="Make one: qwen-edge setup --for aarch64 -o DIR\n"
            "  Wheels of others go into the environment: pip install FILE",
        )
    if facts.get("version") != pinned_version():
        raise NativeError(
            f"{wheel.name} is llama-cpp-python {facts.get('version')}, this qwen-edge calls {pinned_version()}",
            hint="Make it with the qwen-edge that is installed here: qwen-edge setup --for aarch64 -o DIR",
        )
    target = str(facts.get("target"))
    if not target_fits(target, this_target()):
        raise NativeError(
            f"{wheel.name} is for {target}, this is {this_target()}",
            hint="Build here: qwen-edge setup   On a machine like the one it was compiled on, it runs too.",
        )
    folder = builds_folder()
    entry = folder / key
    part = folder / f"installing-{key}-{os.getpid()}"
    with writing(folder), exclusively(folder / f"{key}.lock", say):
        shutil.rmtree(part, ignore_errors=True)
        try:
            unpack(wheel, part)
            record = {**facts, "wheel": wheel.name, "package_bytes": folder_bytes(part / PACKAGE)}
            (part / "build.json").write_text(json.dumps(record, indent=2) + "\n")
            if entry.exists():
                shutil.rmtree(entry)
            part.rename(entry)
        except (zipfile.BadZipFile, EOFError) as error:
            raise NativeError(f"{wheel} is damaged: {error}", hint="Copy it again.") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
    made = entry_build(entry) if is_whole(entry) else None
    assert made is not None, f"Bug: {entry} is not whole"
    return made
