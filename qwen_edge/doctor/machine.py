"""Checks of the machine, of Python, and of what is installed beside qwen-edge."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata

import qwen_edge
from qwen_edge import device
from qwen_edge.device.facts import on_android
from qwen_edge.doctor.report import Check
from qwen_edge.errors import QwenEdgeError
from qwen_edge.native.builds import chosen_build
from qwen_edge.native.toolchain import detect_compiler

GROUP = "Machine"
PACKAGES = "Packages"

# A tenth of the time is lost: swapping, or close to it.
_MUCH_PRESSURE_PERCENT = 10

_COOLING = "Cool it: a heat sink with a fan, and room for the air. qwen-edge device shows the temperature."
# Not offered: the native library is built by `qwen-edge setup`, the others are for people who work on the project.
_LEFT_OUT = frozenset({"llama", "all", "dev", "ecosystem"})
# What helps against what slows a machine, for what is said of it. A Raspberry Pi draws more than most chargers give.
_REMEDIES = {
    "under-voltage": "Power it with the supply made for the board (Raspberry Pi 4: 5.1 V and 3 A, Pi 5: 5.1 V and 5 A) and a "
    "short cable; a hub or a phone's charger is too weak.",
    "throttled": _COOLING,
    "soft temperature limit": _COOLING,
    "frequency capped": _COOLING,
}
# PyPI has no wheel of ONNX Runtime and tokenizers for Android; Termux and its user repository have packages.
_TERMUX_ONNX = "pkg install python-onnxruntime tur-repo && pkg install python-tokenizers"
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


def check_state() -> Iterator[Check]:
    """Kinds of cores, how fast they read, and what slows them at this moment; nothing where none of it is told."""
    facts = device.probe_machine()
    found: list[str] = []
    if (cores := device.known(facts.cores)) and len(cores.groups) > 1:
        found.append(" and ".join(f"{group.n_cores} {group.kind}" for group in cores.groups) + " cores")
    if bandwidth := device.known(facts.bandwidth):
        best = bandwidth.best
        threads = f"{best.n_threads} thread{'s' * (best.n_threads > 1)}"
        found.append(f"{threads} read {best.bytes_per_s / 1e9:.1f} GB/s from memory")
    throttling = device.known(facts.throttling)
    slow = list(throttling.now) if throttling else []
    slow += [
        f"limited to {policy.max_mhz / 1000:.1f} GHz"
        for policy in device.known(facts.frequency) or ()
        if policy.max_mhz and policy.is_held_down
    ]
    if slow:
        found.append(f"slowed now: {', '.join(dict.fromkeys(slow))}")
    before = [reason for reason in (throttling.since_boot if throttling else ()) if reason not in slow]
    if before:
        found.append(f"slowed since boot: {', '.join(before)}")
    pressure = device.known(facts.memory.pressure)
    if pressure and pressure.some_percent >= _MUCH_PRESSURE_PERCENT:
        found.append(f"programs waited for memory in {pressure.some_percent:.0f}% of the last ten seconds")
    battery = device.known(facts.battery)
    if battery and device.known(facts.power_source) == "battery":
        found.append(f"on battery, {battery.charge_percent:.0f}%")
    if found:
        yield Check(
            group=GROUP,
            name="state",
            status="note" if slow or before else "ok",
            found="; ".join(found),
            cost="answers come slower than they could" if slow else "",
            advice=_advice((*slow, *before)),
        )


def _advice(slow: Sequence[str]) -> str:
    """Return what helps, the power first: firmware also throttles for want of it."""
    remedies = dict.fromkeys(text for reason, text in _REMEDIES.items() if reason in slow)
    return " ".join(remedies) or ("qwen-edge device shows temperatures and limits." if slow else "")


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
        advice=_TERMUX_ONNX if on_android() else 'pip install "qwen-edge[onnx]"',
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
