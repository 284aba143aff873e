"""What a build is made with and for: the processor as the system tells it, the compiler as it tells itself."""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from qwen_edge.device.cpuinfo import cpuinfo_fields, cpuinfo_text, output_of, sysctl_fields
from qwen_edge.device.facts import Tree
from qwen_edge.device.hwcap import hwcap_features, is_arm64
from qwen_edge.errors import NativeError

# What is asked answers at once; a compiler behind a wrapper may start slowly.
_TIMEOUT_S = 60

# What compilers emit on their own under -march=native, as /proc/cpuinfo spells it (pni is SSE3, abm is LZCNT).
_X86_CODE_FEATURES = re.compile(
    r"pni|ssse3|sse\w+|avx\w*|amx_\w+|fma|f16c|bmi[12]|abm|popcnt|movbe|gfni|vaes|vpclmulqdq|cx16|lahf_lm"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """The processor that the library is built for.

    Attributes:
        architecture: As `uname -m` says it: x86_64, aarch64, arm64.
        name: For people.
        features: What a native build depends on, sorted; empty where the system does not tell.
    """

    architecture: str
    name: str
    features: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiler:
    """The C++ compiler, and the C compiler that belongs to it.

    Attributes:
        command: What CMake is given as CXX; may hold arguments.
        c_command: What CMake is given as CC, "" to let it choose.
        family: "gcc", "clang", "apple-clang" or "unknown".
        version: Major, minor and so on; empty when the banner does not tell.
        banner: First line of `--version`.
    """

    command: str
    c_command: str = ""
    family: str
    version: tuple[int, ...]
    banner: str


def detect_cpu() -> Cpu:
    """Ask the system what the processor is; never assumes an instruction set."""
    if sys.platform == "darwin":
        return parse_sysctl(output_of(["sysctl", "-a"], timeout_s=_TIMEOUT_S), platform.machine())
    tree = Tree()
    told = hwcap_features(tree) if is_arm64() else frozenset[str]()
    return parse_cpuinfo(cpuinfo_text(tree), platform.machine(), told)


def parse_cpuinfo(text: str, architecture: str, told: Collection[str] = ()) -> Cpu:
    """Read the text of Linux's /proc/cpuinfo.

    Args:
        text: Its content.
        architecture: As `uname -m` says it.
        told: Features that the kernel tells otherwise; they stand for those of the text.
    """
    fields = cpuinfo_fields(text)

    def values(*names: str) -> list[str]:
        return [value for name in names for value in fields.get(name, ())]

    features = {feature for line in values("flags", "Features", "isa") for feature in line.split()}
    if told:
        features = set(told)
    elif "flags" in fields:
        # The x86 line also lists kernel mitigations; an update of the kernel must not cost a build.
        features = {feature for feature in features if _X86_CODE_FEATURES.fullmatch(feature)}
    # -mcpu=native on ARM reads which cores these are.
    cores = [f"core-{part}" for part in values("CPU part")]
    names = values("model name", "Model", "Hardware") or cores or [platform.processor() or architecture]
    return Cpu(architecture=architecture, name=names[0], features=tuple(sorted(features.union(cores))))


def parse_sysctl(text: str, architecture: str) -> Cpu:
    """Read the output of macOS's `sysctl -a`."""
    fields = sysctl_fields(text)
    name = fields.get("machdep.cpu.brand_string", architecture)
    optional = {key.removeprefix("hw.optional.") for key in fields if _is_present_option(key, fields[key])}
    x86 = " ".join(fields.get(f"machdep.cpu.{part}", "") for part in ("features", "leaf7_features"))
    # The chip's name too: -mcpu=native reads it.
    return Cpu(
        architecture=architecture, name=name, features=tuple(sorted({*optional, *x86.lower().split(), name}))
    )


def _is_present_option(key: str, value: str) -> bool:
    return key.startswith("hw.optional.") and value.strip() == "1"


def detect_compiler(env: Mapping[str, str]) -> Compiler:
    """Find the C++ compiler as CMake does (CXX, else c++, g++, clang++) and ask it who it is.

    Raises:
        NativeError: There is none, or CXX names one that does not run.
    """
    named = env.get("CXX", "").strip()
    for command in [named] if named else ["c++", "g++", "clang++"]:
        words = shlex.split(command)
        if shutil.which(words[0], path=env.get("PATH")):
            banner = output_of([*words, "--version"], timeout_s=_TIMEOUT_S)
            return parse_compiler(command, banner, c_command=_c_compiler_of(command, env))
    raise NativeError(
        f"CXX is {named!r}, which is not found"
        if named
        else "no C++ compiler found (looked for c++, g++ and clang++)",
        hint="qwen-edge setup names the command that installs one.",
    )


def parse_compiler(command: str, banner: str, *, c_command: str = "") -> Compiler:
    """Read what `--version` prints."""
    first_line = banner.strip().partition("\n")[0]
    if "Apple clang" in first_line or "Apple LLVM" in first_line:
        family, pattern = "apple-clang", r"version (\d[\d.]*)"
    elif "clang version" in first_line:
        family, pattern = "clang", r"clang version (\d[\d.]*)"
    elif "Free Software Foundation" in banner:
        # "g++ (Debian 12.2.0-14+deb12u1) 12.2.0": the distributor's own version is in the parentheses.
        family, pattern = "gcc", r"\) (\d[\d.]*)"
    else:
        family, pattern = "unknown", r"(?!)"
    found = re.search(pattern, first_line)
    version = tuple(int(part) for part in found.group(1).split(".") if part) if found else ()
    return Compiler(
        command=command,
        c_command=c_command,
        family=family,
        version=version,
        banner=first_line or "unknown compiler",
    )


def _c_compiler_of(command: str, env: Mapping[str, str]) -> str:
    """Return CC, else the C compiler beside a C++ one: g++-14 -> gcc-14, clang++ -> clang; "" when it is not there."""
    if env.get("CC", "").strip():
        return env["CC"].strip()
    head, name = os.path.split(command)
    for suffix, c_suffix in (("clang++", "clang"), ("g++", "gcc"), ("c++", "cc")):
        if suffix in name:
            sibling = os.path.join(head, name.replace(suffix, c_suffix, 1))  # noqa: PTH118 - a command, not yet a path
            return sibling if shutil.which(sibling, path=env.get("PATH")) else ""
    return ""
