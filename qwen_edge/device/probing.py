"""Asks the probes of this system; remembers the bandwidth."""

from __future__ import annotations

import platform
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwen_edge import paths
from qwen_edge.device import bandwidth as reading
from qwen_edge.device.bandwidth import Bandwidth
from qwen_edge.device.cores import usable_cores
from qwen_edge.device.cpuinfo import cpu_features, cpu_name, output_of
from qwen_edge.device.facts import known, on_android
from qwen_edge.device.machine import Machine
from qwen_edge.errors import NoFolderError


def probe_machine() -> Machine:
    """Return what this machine is and how it is doing; takes milliseconds, as the bandwidth comes from memory."""
    machine = _probe_system()
    try:
        return replace(machine, bandwidth=reading.remembered(_record_path(machine)))
    except NoFolderError:
        return machine


def measure_bandwidth(machine: Machine, *, again: bool = False) -> Machine:
    """Return the machine with its bandwidth; measures in under two seconds where it is not remembered.

    Args:
        machine: What `probe_machine` gave.
        again: Measure even where it is remembered.
    """
    if isinstance(machine.bandwidth, Bandwidth) and not again:
        return machine
    last_level_bytes = known(machine.last_level_bytes)
    usable = known(machine.usable)
    measured = reading.measure(
        usable.n_cores if usable else usable_cores(),
        buffer_bytes=reading.buffer_size(last_level_bytes, machine.memory.available.available_bytes),
        last_level_bytes=last_level_bytes,
    )
    try:
        reading.remember(_record_path(machine), measured)
    except NoFolderError:  # measured again next time
        return replace(machine, bandwidth=measured)
    return replace(machine, bandwidth=measured)


def _record_path(machine: Machine) -> Path:
    facts = [machine.cpu_name, repr(known(machine.usable)), repr(known(machine.last_level_bytes))]
    return reading.record_path(paths.cache_root() / "device", facts)


def _probe_system() -> Machine:
    if sys.platform == "darwin":
        from qwen_edge.device.macos import probe_macos

        return probe_macos()
    if sys.platform == "win32":
        from qwen_edge.device.windows import probe_windows

        return probe_windows()
    from qwen_edge.device.linux import probe_android, probe_linux

    if on_android():
        return probe_android(Path("/"), output_of(["getprop"], timeout_s=2))
    return probe_linux()


def describe_machine() -> dict[str, Any]:
    """Return the facts that a measurement needs to be understood elsewhere, JSON-ready."""
    import psutil

    return {
        "cpu": cpu_name(),
        "features": list(cpu_features()),
        "usable_cores": usable_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "python": platform.python_version(),
    }
