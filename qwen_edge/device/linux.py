"""The machine as Linux and Android tell it, from /proc and /sys below any root."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from qwen_edge.device import caches, cpuinfo, heat, power
from qwen_edge.device.bandwidth import NOT_MEASURED
from qwen_edge.device.cores import probe_cores, probe_usable
from qwen_edge.device.facts import Tree, Unknown
from qwen_edge.device.machine import Machine
from qwen_edge.device.memory import memory_limits, memory_of, probe_swap
from qwen_edge.device.memory_killer import probe_memory_killer, probe_pressure

T = TypeVar("T")

_MODEL_FILES = ("proc/device-tree/model", "sys/class/dmi/id/product_name")
# Android's SELinux rules hide most of /sys from apps, Termux included. Source: AOSP, untrusted_app.te.
_HIDDEN = "; Android hides it from apps"


def probe_linux(root: Path = Path("/"), *, vcgencmd: Callable[[], str] = heat.ask_vcgencmd) -> Machine:
    """Return the machine that a tree of /proc and /sys describes; release and architecture are this system's.

    Args:
        root: Where /proc and /sys are.
        vcgencmd: Asks the firmware of a Raspberry Pi, see `heat.probe_throttling`.
    """
    tree = Tree(root)
    cores = probe_cores(tree)
    found_caches = caches.probe_caches(tree)
    battery = power.probe_battery(tree)
    return Machine(
        system="linux",
        release=platform.release(),
        architecture=platform.machine(),
        model=_model(tree),
        is_virtual=cpuinfo.is_virtual(tree),
        cpu_name=_processor(tree),
        cores=cores,
        usable=probe_usable(tree, cores),
        instructions=cpuinfo.probe_instructions(tree),
        caches=found_caches,
        last_level_bytes=caches.last_level_bytes(found_caches),
        numa=caches.probe_numa(tree),
        memory=memory_of(memory_limits(root, is_android=False), probe_swap(tree), probe_pressure(tree)),
        bandwidth=NOT_MEASURED,
        power_source=power.probe_power_source(tree, battery),
        battery=battery,
        energy_counters=power.probe_energy(tree),
        thermal_zones=heat.probe_thermal_zones(tree),
        throttling=heat.probe_throttling(tree, vcgencmd),
        frequency=heat.probe_frequency(tree),
        boost=heat.probe_boost(tree),
    )


def probe_android(root: Path, getprop: str) -> Machine:
    """Return the machine that an Android system describes.

    Written from documentation; not run on a phone.

    Args:
        root: Where /proc and /sys are.
        getprop: What the command `getprop` prints: `[name]: [value]` a line.
    """
    properties = dict(re.findall(r"^\[([^\]]+)\]: \[([^\]]*)\]$", getprop, re.MULTILINE))
    found = probe_linux(root, vcgencmd=lambda: "")
    maker, model = properties.get("ro.product.manufacturer", ""), properties.get("ro.product.model", "")
    chip = " ".join(
        filter(None, (properties.get(f"ro.soc.{part}", "") for part in ("manufacturer", "model")))
    )
    killer = probe_memory_killer(Tree(root))
    memory = memory_of(
        memory_limits(root, is_android=True),
        _hidden(found.memory.swap),
        _hidden(found.memory.pressure),
        replace(killer, levels=_hidden(killer.levels), oom_score_adj=_hidden(killer.oom_score_adj)),
    )
    return replace(
        found,
        system="android",
        memory=memory,
        model=f"{maker} {model}".strip() or Unknown("getprop tells no ro.product.model"),
        cpu_name=chip or found.cpu_name,
        caches=_hidden(found.caches),
        last_level_bytes=_hidden(found.last_level_bytes),
        power_source=_hidden(found.power_source),
        battery=_hidden(found.battery),
        thermal_zones=_hidden(found.thermal_zones),
        throttling=_hidden(found.throttling),
        frequency=_hidden(found.frequency),
    )


def _hidden(fact: T | Unknown) -> T | Unknown:
    return Unknown(fact.reason + _HIDDEN) if isinstance(fact, Unknown) else fact


def _model(tree: Tree) -> str | Unknown:
    for name in _MODEL_FILES:
        if text := tree.text(name).strip("\0 "):
            return text
    return Unknown(tree.why_no_text(_MODEL_FILES[1]))


def _processor(tree: Tree) -> str:
    """Return the processor's name; on ARM the designs of its cores where nothing better is told."""
    text = tree.text("proc/cpuinfo")
    named = cpuinfo.cpuinfo_fields(text).get("model name")
    designs = " and ".join(dict.fromkeys(cpuinfo.core_names(text).values()))
    return named[0] if named else designs or cpuinfo.name_in_cpuinfo(text) or platform.machine()
