"""How llama.cpp is to be compiled: which flags follow from the CPU and the compiler.

Nothing is run or written by `plan_build`; `qwen_edge.native.build` carries the plan out.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shlex
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qwen_edge.errors import ConfigError
from qwen_edge.native import own_kernels
from qwen_edge.native.toolchain import Compiler, Cpu

# Environment variables of the user that reach CMake and change what is built.
HONOURED = ("CMAKE_ARGS", "CFLAGS", "CXXFLAGS", "LDFLAGS")

# CMake reads this file right after `project(llama_cpp)` of llama-cpp-python. An option cannot do the first line: the
# package forces llama.cpp's `common` on, which only the command-line tools and mtmd need. The second line puts the
# facts of the build inside the wheel, so that they come and go with it. The third adds our own kernels, where wanted.
# Source: cmake-variables(7), CMAKE_PROJECT_<PROJECT-NAME>_INCLUDE.
CMAKE_INCLUDE = """\
set(LLAMA_BUILD_COMMON OFF)
install(FILES "${QWEN_EDGE_BUILD_FACTS}" DESTINATION "${SKBUILD_PLATLIB_DIR}/llama_cpp")
if(QWEN_EDGE_KERNELS_FILE)
  include("${QWEN_EDGE_KERNELS_FILE}")
endif()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One reason for some flags.

    Attributes:
        applies: Whether the flags are wanted for a CPU and a compiler.
        cmake_args: Arguments of CMake.
        cxxflags: Flags of the C++ compiler.
        reason: Shown to the person who waits for the build.
    """

    applies: Callable[[Cpu, Compiler], bool]
    cmake_args: tuple[str, ...] = ()
    cxxflags: tuple[str, ...] = ()
    reason: str


def miscompiles_amx(cpu: Cpu, compiler: Compiler) -> bool:
    """Return whether this compiler breaks llama.cpp's AMX kernels on this CPU.

    `_tile_loadconfig` of these GCC versions declares that it reads 8 of its 64 bytes. The stores that fill the rest
    of the tile configuration are then dead to the optimizer, and the first matrix product ends in SIGSEGV.

    Source: amxtileintrin.h of GCC 12.2 against that of 14 (GCC bug 114098, mended in 12.4, 13.3 and 14).
    """
    if compiler.family != "gcc" or "amx_tile" not in cpu.features:
        return False
    # A GCC of unknown version counts as old: the flags cost nothing measurable, the bug crashes.
    return compiler.version < (12, 4) or (13,) <= compiler.version < (13, 3)


def _always(_cpu: Cpu, _compiler: Compiler) -> bool:
    return True


NATIVE_RULES = (
    # Said although it is the default: SOURCE_DATE_EPOCH in the environment would turn it off (ggml/CMakeLists.txt).
    # Without it an ARM build has neither dotprod nor i8mm, and an x86 build stops at AVX2.
    Rule(
        applies=_always,
        cmake_args=("-DGGML_NATIVE=ON",),
        reason="-DGGML_NATIVE=ON: use every instruction set of this CPU",
    ),
)

PORTABLE_RULES = (
    Rule(
        applies=_always,
        cmake_args=("-DGGML_NATIVE=OFF", "-DGGML_BACKEND_DL=ON", "-DGGML_CPU_ALL_VARIANTS=ON"),
        reason="-DGGML_CPU_ALL_VARIANTS=ON: kernels for each level of the processor, of which the best is loaded",
    ),
    # Boards and phones have no libgomp unless a compiler was installed; llama.cpp's own threads do the same.
    Rule(
        applies=_always,
        cmake_args=("-DGGML_OPENMP=OFF",),
        reason="-DGGML_OPENMP=OFF: nothing is needed there but the C and C++ libraries",
    ),
    Rule(
        applies=_always,
        cmake_args=(
            "-DCMAKE_SYSTEM_NAME=Linux",
            "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
            "-DCMAKE_INSTALL_RPATH=$ORIGIN",
        ),
        reason="-DCMAKE_SYSTEM_PROCESSOR=aarch64: for 64-bit ARM, wherever it is compiled",
    ),
)

RULES = (
    Rule(
        applies=_always,
        cmake_args=("-DLLAVA_BUILD=OFF",),
        reason="-DLLAVA_BUILD=OFF, no llama.cpp tools: images and command-line tools are not used here",
    ),
    # llama.cpp installs its libraries a second time, beside the packages: site-packages/lib, site-packages/include.
    # Sent to the package's own folder they are one copy, and every file of the wheel has an owner.
    Rule(
        applies=_always,
        cmake_args=(
            "-DCMAKE_INSTALL_LIBDIR=llama_cpp/lib",
            "-DCMAKE_INSTALL_BINDIR=llama_cpp/lib",
            "-DCMAKE_INSTALL_INCLUDEDIR=llama_cpp/include",
        ),
        reason="-DCMAKE_INSTALL_*DIR=llama_cpp/...: one copy of the libraries instead of two",
    ),
    # Thousands of warnings otherwise, from the compiler's own AVX-512 headers too.
    Rule(
        applies=_always,
        cmake_args=("-DLLAMA_ALL_WARNINGS=OFF",),
        reason="-DLLAMA_ALL_WARNINGS=OFF: a log in which an error is seen",
    ),
    Rule(
        applies=miscompiles_amx,
        cxxflags=("-fno-tree-dse", "-fno-dse"),
        reason="-fno-tree-dse -fno-dse: this GCC miscompiles the CPU's AMX kernels (mended in 12.4, 13.3 and 14); "
        "with these flags AMX works, at full speed",
    ),
)


KERNELS_REASON = (
    "kernels of qwen-edge's own for decode, used with AVX2 and later (QWEN_EDGE_KERNELS=0 leaves them out)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPlan:
    """Everything that decides what the wheel contains.

    Attributes:
        version: Version of llama-cpp-python.
        target: Platform that the wheel runs on, C library included.
        cpu: Processor that it is built for.
        compiler: What builds it.
        cmake_args: Arguments of CMake, the user's last.
        compile_flags: CFLAGS, CXXFLAGS and LDFLAGS, the user's last; only those that are set.
        kernels: Digest of our own kernels, "" for a build without them.
        modules: Levels of the processor that kernels are compiled for, see cpu_modules; empty for this CPU alone.
        reasons: One line for each decision.
    """

    version: str
    target: str
    cpu: Cpu
    compiler: Compiler
    cmake_args: tuple[str, ...]
    compile_flags: Mapping[str, str]
    kernels: str
    modules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    reasons: tuple[str, ...]

    @property
    def key(self) -> str:
        """Name of this build in the cache: 16 hex digits, the same for the same wheel."""
        facts = asdict(self)
        del facts["reasons"], facts["cpu"]["name"]
        if not self.modules:
            del facts["modules"]
        facts["include"] = CMAKE_INCLUDE
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def build_facts(self) -> dict[str, Any]:
        """Return what the package is to know of its build, JSON-ready."""
        flags = [f"{name}={value}" for name, value in sorted(self.compile_flags.items())]
        return {
            "key": self.key,
            "version": self.version,
            "flags": " ".join([*self.cmake_args, *flags]),
            "compiler": self.compiler.banner,
            "cpu": self.cpu.name,
            "cpu_features": list(self.cpu.features),
            "target": self.target,
            **(
                {"modules": {name: list(needs) for name, needs in self.modules.items()}}
                if self.modules
                else {}
            ),
        }


def plan_build(
    cpu: Cpu,
    compiler: Compiler,
    env: Mapping[str, str],
    *,
    version: str,
    target: str | None = None,
    modules: Mapping[str, tuple[str, ...]] | None = None,
) -> BuildPlan:
    """Decide the flags.

    Args:
        cpu: See `detect_cpu`.
        compiler: See `detect_compiler`.
        env: Environment; CMAKE_ARGS, CFLAGS, CXXFLAGS and LDFLAGS are appended to what the rules give, and
            QWEN_EDGE_KERNELS=0 leaves our own kernels out.
        version: Version of llama-cpp-python.
        target: Platform of the wheel; None for this one.
        modules: Levels of the processor to compile kernels for, of which one is loaded; None for `cpu` alone.

    Raises:
        ConfigError: The user's CMAKE_ARGS would hide a flag that keeps the library from crashing, or QWEN_EDGE_KERNELS
            is neither 0 nor 1.
    """
    has_kernels = own_kernels.wants_kernels(cpu.architecture, env)
    kind = PORTABLE_RULES if modules else NATIVE_RULES
    rules = [rule for rule in (*kind, *RULES) if rule.applies(cpu, compiler)]
    cxxflags = [flag for rule in rules for flag in rule.cxxflags]
    users = {name: env[name].strip() for name in HONOURED if env.get(name, "").strip()}
    users_args = shlex.split(users.get("CMAKE_ARGS", ""))
    if cxxflags and any(re.match(r"(-D)?CMAKE_CXX_FLAGS(:\w+)?=", argument) for argument in users_args):
        raise ConfigError(
            f"CMAKE_ARGS sets CMAKE_CXX_FLAGS, which hides {' '.join(cxxflags)}; without those the library crashes "
            f"on this CPU when built by {compiler.banner}",
            hint="Put your flags into CXXFLAGS: they are added to the others.",
        )
    compile_flags = {name: value for name, value in users.items() if name != "CMAKE_ARGS"}
    if cxxflags:
        compile_flags["CXXFLAGS"] = " ".join([*cxxflags, *shlex.split(users.get("CXXFLAGS", ""))])
    return BuildPlan(
        version=version,
        target=target or this_target(),
        cpu=cpu,
        compiler=compiler,
        cmake_args=(
            *(argument for rule in rules for argument in rule.cmake_args),
            *users_args,
        ),
        compile_flags=compile_flags,
        kernels=own_kernels.kernels_digest() if has_kernels else "",
        modules=modules or {},
        reasons=(
            *(rule.reason for rule in rules),
            *([KERNELS_REASON] if has_kernels else []),
            *(f"{name}={value}: from your environment" for name, value in users.items()),
        ),
    )


def this_target() -> str:
    """Return the platform of this interpreter with its C library: "linux-x86_64-glibc2.36".

    No Python version in it: the package calls the library through ctypes, and its wheel is tagged py3-none.
    """
    return "-".join([sysconfig.get_platform(), "".join(platform.libc_ver())]).rstrip("-")


def pinned_version() -> str:
    """Return the version of llama-cpp-python that the extra `llama` asks for; pyproject.toml is the one place.

    Raises:
        ConfigError: It is not pinned with ==.
    """
    project_file = Path(__file__).parents[2] / "pyproject.toml"
    if project_file.is_file():
        import tomllib

        project = tomllib.loads(project_file.read_text())["project"]
        requirements, origin = project["optional-dependencies"]["llama"], str(project_file)
    else:
        import importlib.metadata

        requirements, origin = importlib.metadata.requires("qwen-edge") or [], "the metadata of qwen-edge"
    for requirement in requirements:
        if found := re.match(r"llama[-_]cpp[-_]python\s*==\s*([\w.]+)", requirement):
            return found.group(1)
    raise ConfigError(f"{origin}: the extra 'llama' does not pin llama-cpp-python with ==: {requirements}")
