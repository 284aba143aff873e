"""The processor's name and instruction sets, from /proc/cpuinfo; the same from macOS's sysctl."""

from __future__ import annotations

import functools
import os
import platform
import re
import sys

from qwen_edge.device.facts import Tree, Unknown
from qwen_edge.device.hwcap import hwcap_features, is_arm64

# The x86 and ARM features that decide which kernels llama.cpp runs, as /proc/cpuinfo names them.
_KERNEL_FEATURES = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512vl", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512vbmi",
    "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "asimdhp", "fphp", "i8mm", "sve", "sve2", "bf16", "sme",
)  # fmt: skip

# macOS's names of the same. Source: Apple, "Determining instruction set characteristics".
_MACOS_FEATURES = {
    "AdvSIMD": "asimd", "FEAT_DotProd": "asimddp", "FEAT_FP16": "fphp", "FEAT_I8MM": "i8mm", "FEAT_BF16": "bf16",
    "FEAT_SME": "sme", "FEAT_SME2": "sme2", "avx2_0": "avx2", "avx512f": "avx512f",
}  # fmt: skip

# Cores designed by ARM. Source: Linux, arch/arm64/include/asm/cputype.h.
_ARM_PARTS = {
    "0xd03": "Cortex-A53", "0xd04": "Cortex-A35", "0xd05": "Cortex-A55", "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72", "0xd09": "Cortex-A73", "0xd0a": "Cortex-A75", "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1", "0xd0d": "Cortex-A77", "0xd40": "Neoverse-V1", "0xd41": "Cortex-A78",
    "0xd44": "Cortex-X1", "0xd46": "Cortex-A510", "0xd47": "Cortex-A710", "0xd48": "Cortex-X2",
    "0xd49": "Neoverse-N2", "0xd4d": "Cortex-A715", "0xd4e": "Cortex-X3", "0xd4f": "Neoverse-V2",
    "0xd80": "Cortex-A520", "0xd81": "Cortex-A720", "0xd82": "Cortex-X4", "0xd85": "Cortex-X925",
}  # fmt: skip
_ARM_IMPLEMENTER = "0x41"


def cpuinfo_fields(text: str) -> dict[str, tuple[str, ...]]:
    """Read /proc/cpuinfo: cores may differ (big.LITTLE), so every value of a field is kept, once, in order."""
    fields: dict[str, dict[str, None]] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), {})[value.strip()] = None
    return {name: tuple(values) for name, values in fields.items()}


def sysctl_fields(text: str) -> dict[str, str]:
    """Read what macOS's `sysctl` prints: one `name: value` a line."""
    return dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)


def output_of(command: list[str], *, timeout_s: float) -> str:
    """Return what a command prints, in plain English; "" when it fails or takes too long."""
    import subprocess  # every command imports this module, few ask another program

    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False,
            env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def cpuinfo_text(tree: Tree) -> str:
    """Return /proc/cpuinfo of a Linux tree; "" where it is not of this process's architecture.

    A user-mode emulator of ARM shows the file of the x86 machine around it.
    """
    text = tree.text("proc/cpuinfo")
    return "" if is_arm64() and re.search(r"^vendor_id\s*:", text, re.MULTILINE) else text


@functools.cache
def _cpuinfo() -> str:
    return cpuinfo_text(Tree())


@functools.cache
def _sysctl() -> dict[str, str]:
    if sys.platform == "darwin":
        return sysctl_fields(output_of(["sysctl", "machdep.cpu", "hw.optional"], timeout_s=5))
    return {}


def cpu_name() -> str:
    """Return the processor's name as the system gives it."""
    return name_in_cpuinfo(_cpuinfo()) or _sysctl().get("machdep.cpu.brand_string") or _platform_name()


def cpu_features() -> tuple[str, ...]:
    """Return the instruction-set features that matter here, sorted; empty where the system does not tell."""
    if sys.platform == "darwin":
        return features_in_sysctl(_sysctl())
    found = probe_instructions(Tree())
    return found if isinstance(found, tuple) else ()


def _platform_name() -> str:
    return platform.processor() or platform.machine()


def name_in_cpuinfo(text: str) -> str:
    """Return the processor's name, or the board's where only that is told; "" where neither is."""
    fields = cpuinfo_fields(text)
    return next((fields[key][0] for key in ("model name", "Hardware", "Model") if fields.get(key)), "")


def features_in_cpuinfo(text: str) -> tuple[str, ...]:
    """Return the features of /proc/cpuinfo that matter here, sorted."""
    fields = cpuinfo_fields(text)
    lines = fields.get("flags", ()) or fields.get("Features", ())
    # Work moves between cores of different kinds: what one of them lacks cannot be used.
    common = set.intersection(*(set(line.split()) for line in lines)) if lines else set()
    return tuple(sorted(common.intersection(_KERNEL_FEATURES)))


def features_in_sysctl(fields: dict[str, str]) -> tuple[str, ...]:
    """Return the same of macOS, under Linux's names."""
    on = {key.rpartition(".")[2] for key, value in fields.items() if value.strip() == "1"}
    x86 = " ".join(fields.get(f"machdep.cpu.{part}", "") for part in ("features", "leaf7_features"))
    named = {ours for theirs, ours in _MACOS_FEATURES.items() if theirs in on}
    return tuple(sorted(named | set(x86.lower().split()).intersection(_KERNEL_FEATURES)))


def core_names(text: str) -> dict[int, str]:
    """Return which design each CPU of an ARM system is: {0: "Cortex-A55", 7: "Cortex-X1"}; {} on others."""
    names: dict[int, str] = {}
    for block in re.split(r"\n\s*\n", text):
        fields = cpuinfo_fields(block)
        number, part = fields.get("processor", ("",))[0], fields.get("CPU part", ("",))[0]
        if number.isdecimal() and fields.get("CPU implementer") == (_ARM_IMPLEMENTER,) and part in _ARM_PARTS:
            names[int(number)] = _ARM_PARTS[part]
    return names


def probe_instructions(tree: Tree) -> tuple[str, ...] | Unknown:
    """Return the features of a Linux tree that matter for the kernels of llama.cpp."""
    if is_arm64() and (told := hwcap_features(tree)):
        return tuple(sorted(told.intersection(_KERNEL_FEATURES)))
    text = cpuinfo_text(tree)
    if not text:
        return Unknown(tree.why_no_text("proc/cpuinfo"))
    if not re.search(r"^(?:flags|Features)\s*:", text, re.MULTILINE):
        return Unknown("/proc/cpuinfo names no features")
    return features_in_cpuinfo(text)


def is_virtual(tree: Tree) -> bool:
    """Return whether the processor says that a hypervisor runs it."""
    return bool(re.search(r"^flags\s*:.*\bhypervisor\b", tree.text("proc/cpuinfo"), re.MULTILINE))
