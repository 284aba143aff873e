"""Checks of the machine, of Python, and of what is installed beside qwen-edge."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator
from importlib import metadata

import qwen_edge
from qwen_edge import device
from qwen_edge.doctor.report import Check
from qwen_edge.errors import QwenEdgeError
from qwen_edge.native.build_plan import detect_compiler
from qwen_edge.native.builds import chosen_build

GROUP = "Machine"
PACKAGES = "Packages"

# Not offered: the native library is built by `qwen-edge setup`, the others are for people who work on the project.
_LEFT_OUT = frozenset({"llama", "all", "dev", "ecosystem"})
_PURPOSES = {
    "onnx": "models exported to ONNX",
    "convert": "converting checkpoints",
    "bench": "charts of benchmarks",
    "typed": "grammars for typed answers",
}


def check_python() -> Check:
    """Which Python runs, on which system."""
    where = f"{platform.system()} {platform.machine()}"
    is_narrow = sys.maxsize <= 1 << 32
    return Check(
        group=GROUP,
        name="python",
        status="warning" if is_narrow else "ok",
        found=f"Python {platform.python_version()} on {where}{', 32 bits' * is_narrow}",
        cost="models above 2 GB cannot be loaded" if is_narrow else "",
        advice="Use a 64-bit Python." if is_narrow else "",
    )


def check_cpu() -> Check:
    """What the processor is, and how much of it this process may use."""
    cores = device.usable_cores()
    memory = device.available_memory_bytes()
    return Check(
        group=GROUP,
        name="cpu",
        status="ok",
        found=f"{device.cpu_name()}, {cores} core{'s' * (cores > 1)} usable; {memory.reason}",
    )


def check_extras() -> Iterator[Check]:
    """The version, and which optional parts are here."""
    by_extra = _requirements()
    missing = {
        extra: [name for name in names if installed_version(name) is None]
        for extra, names in by_extra.items()
    }
    here = [extra for extra, names in missing.items() if not names]
    yield Check(
        group=PACKAGES,
        name="qwen-edge",
        status="ok",
        found=f"qwen-edge {qwen_edge.__version__}" + (f" with the extras {', '.join(here)}" if here else ""),
    )
    if absent := [extra for extra, names in missing.items() if names]:
        purposes = "; ".join(f"{extra}, for {_PURPOSES.get(extra, extra)}" for extra in absent)
        yield Check(
            group=PACKAGES,
            name="extras",
            status="note",
            found=f"not installed: {purposes}",
            advice=f'pip install "qwen-edge[{",".join(absent)}]"',
        )


def has_onnx_engine() -> bool:
    """Return whether what the ONNX engine imports is installed."""
    return all(installed_version(name) is not None for name in ("onnxruntime", "tokenizers"))


def check_onnx() -> Check:
    """Whether the engine that needs no compiler is here."""
    version = installed_version("onnxruntime")
    if has_onnx_engine():
        return Check(
            group=PACKAGES,
            name="onnxruntime",
            status="ok",
            found=f"ONNX Runtime {version} runs models that were exported to ONNX",
        )
    lead = "ONNX Runtime is not installed" if version is None else "tokenizers is missing beside ONNX Runtime"
    way = "" if chosen_build() or _has_compiler() else "; it is the way to run models without a compiler"
    return Check(
        group=PACKAGES,
        name="onnxruntime",
        status="note",
        found=f"{lead}{way}",
        advice='pip install "qwen-edge[onnx]"',
    )


def _has_compiler() -> bool:
    try:
        detect_compiler(os.environ)
    except QwenEdgeError:
        return False
    return True


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed package, found without importing it; None where it is missing."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _requirements() -> dict[str, list[str]]:
    """Return the packages of each extra, as the metadata of qwen-edge tells; {} where it is not installed."""
    try:
        lines = metadata.requires("qwen-edge") or []
    except metadata.PackageNotFoundError:
        return {}
    extras: dict[str, list[str]] = {}
    for line in lines:
        found = re.match(r"""([\w.-]+)[^;]*;.*extra\s*==\s*["']([\w-]+)["']""", line)
        if found and found[2] not in _LEFT_OUT:
            extras.setdefault(found[2], []).append(found[1])
    return extras
