"""Where the power comes from, and the counters of energy. Linux: /sys/class/power_supply, /sys/class/powercap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qwen_edge.device.facts import Tree, Unknown

_SUPPLIES = "sys/class/power_supply"
_POWERCAP = "sys/class/powercap"
# What a supply that is no battery may say it is. Source: Linux, Documentation/ABI/testing/sysfs-class-power.
_OUTSIDE = ("Mains", "USB", "Wireless")

PowerSource = Literal["mains", "battery"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Battery:
    """The battery that the machine runs from when nothing else is plugged in.

    Attributes:
        charge_percent: 0 to 100.
        status: "charging", "discharging", "full", "not charging" or "unknown".
        power_w: What flows in or out, at this moment; None where it does not tell.
    """

    charge_percent: float
    status: str
    power_w: float | None = None


def probe_battery(tree: Tree) -> Battery | Unknown:
    """Return the first battery of a Linux system that feeds the machine: mice and headsets have some too."""
    names = tree.names(_SUPPLIES)
    for name in names:
        folder = f"{_SUPPLIES}/{name}"
        if tree.text(f"{folder}/type") != "Battery" or tree.text(f"{folder}/scope") == "Device":
            continue
        charge = tree.number(f"{folder}/capacity")
        if charge is None:
            return Unknown(tree.why_no_text(f"{folder}/capacity"))
        return Battery(
            charge_percent=charge,
            status=tree.text(f"{folder}/status").lower() or "unknown",
            power_w=_power_w(tree, folder),
        )
    return Unknown("no battery: " + (f"none in /{_SUPPLIES}" if names else tree.why_no_names(_SUPPLIES)))


def probe_power_source(tree: Tree, battery: Battery | Unknown) -> PowerSource | Unknown:
    """Return what feeds a Linux system at this moment."""
    for name in tree.names(_SUPPLIES):
        folder = f"{_SUPPLIES}/{name}"
        if tree.text(f"{folder}/scope") == "Device":
            continue
        # 0 is offline, 1 online, 2 online with a fixed voltage out of a range.
        if tree.text(f"{folder}/type") in _OUTSIDE and (tree.number(f"{folder}/online") or 0) > 0:
            return "mains"
    if isinstance(battery, Unknown):
        return Unknown(tree.why_no_names(_SUPPLIES))
    # Chargers of phones are not always listed; the battery says what it does.
    return "mains" if battery.status in ("charging", "full", "not charging") else "battery"


def probe_energy(tree: Tree) -> tuple[str, ...] | Unknown:
    """Return the names of the energy counters (RAPL) that this user may read.

    Source: Linux, Documentation/power/powercap/powercap.rst; since 5.10 (CVE-2020-8694) only root reads energy_uj.
    """
    zones = [name for name in tree.names(_POWERCAP) if ":" in name]
    if not zones:
        return Unknown(tree.why_no_names(_POWERCAP))
    readable = [name for name in zones if tree.number(f"{_POWERCAP}/{name}/energy_uj") is not None]
    if not readable:
        return Unknown(tree.why_no_text(f"{_POWERCAP}/{zones[0]}/energy_uj"))
    return tuple(dict.fromkeys(tree.text(f"{_POWERCAP}/{name}/name") or name for name in readable))


def _power_w(tree: Tree, folder: str) -> float | None:
    """Return the power of a battery in W, from µW or from µA and µV; drivers differ in the sign."""
    power = tree.number(f"{folder}/power_now")
    if power is not None:
        return abs(power) / 1e6
    current, voltage = tree.number(f"{folder}/current_now"), tree.number(f"{folder}/voltage_now")
    return abs(current * voltage) / 1e12 if current is not None and voltage is not None else None
