"""Which build of llama.cpp serves here: those of `qwen-edge setup`, the environment's, the one of LLAMA_CPP_LIB_PATH.

Nothing is loaded to find that out. Several machines may share a home: a build in it serves where its instruction sets
and its C library are there too.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeGuard

from qwen_edge import paths
from qwen_edge.errors import NoFolderError
from qwen_edge.native.build_plan import pinned_version, this_target
from qwen_edge.native.toolchain import detect_cpu

Origin = Literal["setup", "environment", "LLAMA_CPP_LIB_PATH"]

FACTS_FILE = "qwen_edge_build.json"
"""Facts of the build inside the package folder; `build_plan.CMAKE_INCLUDE` puts them there."""
PACKAGE = "llama_cpp"
"""Folder of the bindings, in an entry of the builds' folder as in an environment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """A native library with its bindings, and what is known of how it was built.

    Attributes:
        origin: "setup" (of `qwen-edge setup`), "environment" (installed by pip), or the variable that names it.
        package: The folder llama_cpp with the bindings.
        library: The folder with libllama.
        version: Of llama-cpp-python, whose bindings these are; None where nothing tells.
        key: Name in the builds' folder; None where it was not built by us.
        cpu_features: Instruction sets it was built for, as /proc/cpuinfo spells them; () unknown.
        flags: Arguments of CMake and compiler flags; None unknown.
        compiler: First line of the compiler's `--version`; None unknown.
        target: Platform with its C library, as in "linux-x86_64-glibc2.36"; None unknown.
        kernels: Functions of llama.cpp that kernels of ours replace; () none, or unknown.
        modules: Levels of processors that it has kernels for, weakest first, with the features that each needs; empty
            where it has one set of kernels, or nothing tells.
    """

    origin: Origin
    package: Path
    library: Path
    version: str | None
    key: str | None
    cpu_features: tuple[str, ...]
    flags: str | None
    compiler: str | None
    target: str | None
    kernels: tuple[str, ...] = ()
    modules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnfitBuild:
    """A build that is not used here.

    Attributes:
        build: Which one.
        reason: Why not, as a part of a sentence: "built for amx_tile, which this CPU lacks".
    """

    build: Build
    reason: str


def builds_folder() -> Path:
    """Return the folder of what `qwen-edge setup` builds: QWEN_EDGE_NATIVE, else native/ in the cache."""
    override = os.environ.get("QWEN_EDGE_NATIVE")
    return Path(override).expanduser().absolute() if override else paths.cache_root().absolute() / "native"


def find_builds() -> tuple[Build, ...]:
    """Return the builds that can serve here, best first.

    LLAMA_CPP_LIB_PATH comes first, for who sets it wants it. Then those of `qwen-edge setup`: the one with the most of
    this CPU's instruction sets, the newest among equals. The environment's own llama-cpp-python is last.
    """
    return tuple(build for build, reason in _candidates() if not reason)


def unfit_builds() -> tuple[UnfitBuild, ...]:
    """Return the builds that are there and not used, with the reason for each."""
    return tuple(UnfitBuild(build=build, reason=reason) for build, reason in _candidates() if reason)


def chosen_build() -> Build | None:
    """Return the build that this process uses or would use; None when there is none.

    What is loaded stays: a second libllama in one process would share the first one's libggml. So it is the one given
    to use(), else that of a program which has imported llama_cpp itself, else the first of find_builds().
    """
    if _used is not None:
        return _used
    if bindings := sys.modules.get("llama_cpp.llama_cpp"):
        package = Path(str(bindings.__file__)).parent
        library = Path(getattr(bindings, "_base_path", package / "lib"))
        return _describe("environment", package, library, _installed_version())
    return next(iter(find_builds()), None)


def use(build: Build | None) -> None:
    """Let this process use a build, or choose again (None); for child processes, before anything is loaded."""
    global _used
    _used = build


_used: Build | None = None


def entry_build(entry: Path) -> Build | None:
    """Return the build in an entry of the builds' folder; None where nothing was unpacked or the record is damaged."""
    record = read_record(entry)
    package = entry / PACKAGE
    if record is None or record.get("key") != entry.name or not package.is_dir():
        return None
    return _from_facts("setup", package, package / "lib", record, None)


def read_record(entry: Path) -> dict[str, Any] | None:
    """Return the record of an entry, None where it is missing or damaged."""
    return _read_facts(entry / "build.json")


def is_whole(entry: Path) -> bool:
    """Return whether an entry's package has the size that its record tells."""
    record = read_record(entry)
    try:
        return record is not None and record.get("package_bytes") == folder_bytes(entry / PACKAGE)
    except OSError:
        return False


def folder_bytes(folder: Path) -> int:
    """Return the bytes of the files in a folder, without what Python caches in it.

    Raises:
        OSError: It cannot be read.
    """
    return sum(
        file.stat().st_size
        for file in folder.rglob("*")
        if file.is_file() and file.parent.name != "__pycache__"
    )


def _candidates() -> Iterator[tuple[Build, str]]:
    """Yield every build that is there, best first, with why it does not serve ("" where it does)."""
    cached = [(build, _unfitness(build)) for build in _cached()]
    installed = _installed()
    others = [(installed, _unfitness(installed))] if installed else []
    bindings = next((build for build, reason in [*cached, *others] if not reason), None)
    if (named := os.environ.get("LLAMA_CPP_LIB_PATH")) and bindings is not None:
        yield _describe("LLAMA_CPP_LIB_PATH", bindings.package, Path(named), bindings.version), ""
    yield from cached
    yield from others


def _cached() -> list[Build]:
    """Return the unpacked builds of the builds' folder, best first."""
    found: list[tuple[int, int, Build]] = []
    try:
        folder = builds_folder()
    except NoFolderError:  # nothing can have been built there
        return []
    for record in folder.glob("*/build.json"):
        build = entry_build(record.parent)
        if build is not None:
            found.append((len(build.cpu_features), record.stat().st_mtime_ns, build))
    return [build for *_, build in sorted(found, key=lambda item: item[:2], reverse=True)]


def _installed() -> Build | None:
    """Return the llama-cpp-python of the environment, without importing it."""
    try:
        spec = importlib.util.find_spec(PACKAGE)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).parent
    return _describe("environment", package, package / "lib", _installed_version())


def _installed_version() -> str | None:
    try:
        return importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        return None


def _describe(origin: Origin, package: Path, library: Path, version: str | None) -> Build:
    """Return a build with the facts beside its library, where there are any."""
    return _from_facts(origin, package, library, _read_facts(library.parent / FACTS_FILE) or {}, version)


def _from_facts(
    origin: Origin, package: Path, library: Path, facts: dict[str, Any], version: str | None
) -> Build:
    def text(name: str) -> str | None:
        return str(facts[name]) if facts.get(name) else None

    features, modules = facts.get("cpu_features"), facts.get("modules")
    return Build(
        origin=origin,
        package=package,
        library=library,
        version=version or text("version"),
        key=text("key"),
        cpu_features=tuple(str(name) for name in features) if isinstance(features, list) else (),
        flags=text("flags"),
        compiler=text("compiler"),
        target=text("target"),
        kernels=tuple((text("kernels") or "").split()),
        modules={name: tuple(needs) for name, needs in modules.items()} if _is_modules(modules) else {},
    )


def _is_modules(value: Any) -> TypeGuard[dict[str, list[str]]]:
    """Return whether a damaged or foreign record may be taken for levels with what they need."""
    return isinstance(value, dict) and all(
        isinstance(needs, list) and all(isinstance(name, str) for name in needs) for needs in value.values()
    )


def _read_facts(file: Path) -> dict[str, Any] | None:
    try:
        facts = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return facts if isinstance(facts, dict) else None


@functools.cache
def _machine() -> tuple[frozenset[str], str]:
    """Return this CPU's instruction sets and this platform: neither changes while a program runs."""
    return frozenset(detect_cpu().features), this_target()


def _unfitness(build: Build) -> str:
    """Return why a build does not serve on this machine, "" where it does as far as its facts tell."""
    features, target = _machine()
    if build.origin == "setup":
        if not is_whole(build.package.parent):
            return "incomplete: files are missing or cut off"
        if build.version != pinned_version():
            return f"of llama-cpp-python {build.version}, this qwen-edge calls {pinned_version()}"
    if build.target and not target_fits(build.target, target):
        return f"built for {build.target}, this is {target}"
    if missing := sorted(set(build.cpu_features) - features):
        return f"built for {', '.join(missing)}, which this CPU lacks"
    return ""


def target_fits(built_for: str, here: str) -> bool:
    """Return whether what was built for one platform runs on another: the C library may be newer, all else is equal."""
    built_platform, built_libc, built_version = _split_target(built_for)
    platform, libc, version = _split_target(here)
    return (built_platform, built_libc) == (platform, libc) and built_version <= version


def _split_target(target: str) -> tuple[str, str, tuple[int, ...]]:
    """Split "linux-x86_64-glibc2.36" into platform, C library and its version."""
    found = re.fullmatch(r"(.+)-([a-z]+)([\d.]+)", target)
    if found is None:
        return target, "", ()
    return found[1], found[2], tuple(int(part) for part in found[3].split(".") if part)
