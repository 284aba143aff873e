"""Temperatures, throttling, and how fast the cores may run. Linux: thermal, cpufreq, thermal_throttle."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass

from qwen_edge.device.cores import CPU_FOLDER, online_cpus
from qwen_edge.device.cpuinfo import is_virtual, output_of
from qwen_edge.device.facts import Tree, Unknown

_THERMAL = "sys/class/thermal"
_CPUFREQ = f"{CPU_FOLDER}/cpufreq"

# Raspberry Pi's firmware; its device is called after the node of the system on chip, whose name has an address since the
# Pi 5. Source: Raspberry Pi documentation, vcgencmd get_throttled; its kernel's drivers/firmware/raspberrypi.c.
_PLATFORM = "sys/devices/platform"
# What the kernel itself watches on a Pi. Source: Linux, Documentation/hwmon/raspberrypi-hwmon.rst.
_HWMON, _PI_VOLTAGE = "sys/class/hwmon", "rpi_volt"
_PI_NOW = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
_PI_SINCE_BOOT = 16
# Cooling devices that slow the processor, by how their names begin; others are fans, or slow something else.
# Source: Linux, drivers/acpi/processor_thermal.c, drivers/thermal/cpufreq_cooling.c, intel_powerclamp.c.
_SLOWING = ("processor", "cpufreq", "thermal-cpufreq", "intel_powerclamp")


@dataclass(frozen=True, slots=True, kw_only=True)
class TripPoint:
    """A temperature at which the system does something: "passive" slows down, "active" turns a fan, "critical" ends."""

    kind: str
    celsius: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ThermalZone:
    """A sensor of the system.

    Attributes:
        name: As the driver calls it: "x86_pkg_temp", "cpu-thermal".
        celsius: Now; None where the sensor is off.
        trips: Lowest first.
    """

    name: str
    celsius: float | None
    trips: tuple[TripPoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttling:
    """Whether heat or power slows the cores down.

    Attributes:
        now: What slows them at this moment; () for nothing.
        n_events: How often they were slowed since boot; None where that is not counted.
        since_boot: What did, where the system keeps that; () for nothing.
        told_by: Where that comes from.
    """

    now: tuple[str, ...]
    n_events: int | None
    since_boot: tuple[str, ...]
    told_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FrequencyPolicy:
    """How the system chooses the frequency of some cores.

    Attributes:
        cpus: Logical CPUs that it holds for.
        governor: "performance", "powersave", "schedutil" ...
        current_mhz: Now; None where it does not tell.
        min_mhz: Lower limit at this moment.
        max_mhz: Upper limit at this moment.
        hardware_max_mhz: What the cores could reach.
    """

    cpus: tuple[int, ...]
    governor: str
    current_mhz: float | None
    min_mhz: float | None
    max_mhz: float | None
    hardware_max_mhz: float | None

    @property
    def is_held_down(self) -> bool:
        """Whether the limit lies below what the cores could reach, by more than a rounding."""
        return bool(self.max_mhz and self.hardware_max_mhz and self.max_mhz < 0.99 * self.hardware_max_mhz)


def probe_thermal_zones(tree: Tree) -> tuple[ThermalZone, ...] | Unknown:
    """Read the sensors of a Linux system. Source: Linux, Documentation/ABI/testing/sysfs-class-thermal."""
    zones = []
    names = tree.names(_THERMAL, "thermal_zone")
    for name in names:
        folder = f"{_THERMAL}/{name}"
        millidegrees = tree.number(f"{folder}/temp")
        kind = tree.text(f"{folder}/type")
        if not kind and millidegrees is None:
            continue
        zones.append(
            ThermalZone(
                name=kind or name,
                celsius=None if millidegrees is None else millidegrees / 1000,
                trips=_trips(tree, folder),
            )
        )
    if zones:
        return tuple(zones)
    return Unknown(tree.why_no_text(f"{_THERMAL}/{names[0]}/temp") if names else tree.why_no_names(_THERMAL))


def _trips(tree: Tree, folder: str) -> tuple[TripPoint, ...]:
    trips = []
    for name in tree.names(folder, "trip_point_"):
        if not name.endswith("_temp"):
            continue
        millidegrees = tree.number(f"{folder}/{name}")
        kind = tree.text(f"{folder}/{name.removesuffix('_temp')}_type")
        # Drivers say 0 or less for a trip that is not set.
        if kind and millidegrees is not None and millidegrees > 0:
            trips.append(TripPoint(kind=kind, celsius=millidegrees / 1000))
    return tuple(sorted(trips, key=lambda trip: trip.celsius))


def ask_vcgencmd() -> str:
    """Return what the Raspberry Pi's tool says of throttling; "" without it."""
    return output_of(["vcgencmd", "get_throttled"], timeout_s=1) if shutil.which("vcgencmd") else ""


def probe_throttling(tree: Tree, vcgencmd: Callable[[], str] = ask_vcgencmd) -> Throttling | Unknown:
    """Return whether the cores of a Linux system are slowed down.

    Args:
        tree: Its files.
        vcgencmd: Asks the firmware of a Raspberry Pi, where the kernel does not tell what that says.

    Source: Linux, Documentation/ABI/testing/sysfs-devices-system-cpu, thermal_throttle;
    Documentation/driver-api/thermal/sysfs-api.rst, cooling devices.
    """
    said = _pi_flags(tree)
    is_pi = "Raspberry Pi" in tree.text("proc/device-tree/model")
    if not said and is_pi:
        said = vcgencmd().strip().removeprefix("throttled=")
    if said and (bits := _hex(said)) is not None:
        return Throttling(
            now=tuple(text for bit, text in _PI_NOW.items() if bits >> bit & 1),
            n_events=None,
            since_boot=tuple(text for bit, text in _PI_NOW.items() if bits >> bit + _PI_SINCE_BOOT & 1),
            told_by="get_throttled",
        )
    cooling = _cooling(tree)
    if is_pi and (voltage := _pi_voltage(tree)) is not None:
        return Throttling(
            now=voltage + (cooling or ()),
            n_events=None,
            since_boot=(),
            told_by=f"{_PI_VOLTAGE} and cooling devices",
        )
    n_events = _throttle_events(tree)
    if n_events is not None:
        return Throttling(now=cooling or (), n_events=n_events, since_boot=(), told_by="thermal_throttle")
    if cooling is not None:
        return Throttling(now=cooling, n_events=None, since_boot=(), told_by="cooling devices")
    where = f"/{CPU_FOLDER}/cpu0/thermal_throttle is not there"
    return Unknown(where + (": a virtual machine does not see it" if is_virtual(tree) else ""))


def _pi_flags(tree: Tree) -> str:
    """Return the firmware's flags as the kernel of Raspberry Pi OS has them; "" where it does not."""
    for soc in tree.names(_PLATFORM, "soc"):
        if text := tree.text(f"{_PLATFORM}/{soc}/{soc}:firmware/get_throttled"):
            return text
    return ""


def _pi_voltage(tree: Tree) -> tuple[str, ...] | None:
    """Return ("under-voltage",) where the supply has sagged lately, () where it has not; None where none watches it."""
    for name in tree.names(_HWMON):
        if tree.text(f"{_HWMON}/{name}/name") == _PI_VOLTAGE:
            alarm = tree.number(f"{_HWMON}/{name}/in0_lcrit_alarm")
            return None if alarm is None else (_PI_NOW[0],) * bool(alarm)
    return None


def _hex(text: str) -> int | None:
    try:
        return int(text, 16)
    except ValueError:
        return None


def _throttle_events(tree: Tree) -> int | None:
    """Return how often cores and packages were slowed; each core has its own counter, a package one for all its cores."""
    cores, packages = [], {}
    for cpu in online_cpus(tree):
        folder = f"{CPU_FOLDER}/cpu{cpu}"
        core = tree.number(f"{folder}/thermal_throttle/core_throttle_count")
        package = tree.number(f"{folder}/thermal_throttle/package_throttle_count")
        if core is not None:
            cores.append(core)
        if package is not None:
            packages[tree.number(f"{folder}/topology/physical_package_id")] = package
    return sum(cores) + sum(packages.values()) if cores or packages else None


def _cooling(tree: Tree) -> tuple[str, ...] | None:
    """Return the devices that cool by slowing the processor and do so now; None where there are none."""
    found, active = False, []
    for name in tree.names(_THERMAL, "cooling_device"):
        kind = tree.text(f"{_THERMAL}/{name}/type")
        if not kind.lower().startswith(_SLOWING):
            continue
        found = True
        if (tree.number(f"{_THERMAL}/{name}/cur_state") or 0) > 0:
            active.append(kind)
    return tuple(dict.fromkeys(active)) if found else None


def probe_frequency(tree: Tree) -> tuple[FrequencyPolicy, ...] | Unknown:
    """Read the governors of a Linux system. Source: Linux, Documentation/admin-guide/pm/cpufreq.rst."""
    policies = []
    for name in tree.names(_CPUFREQ, "policy"):
        folder = f"{_CPUFREQ}/{name}"
        governor = tree.text(f"{folder}/scaling_governor")
        hardware_max = _mhz(tree, f"{folder}/cpuinfo_max_freq")
        if not governor and hardware_max is None:
            continue
        policies.append(
            FrequencyPolicy(
                cpus=tree.cpus(f"{folder}/affected_cpus") or tree.cpus(f"{folder}/related_cpus"),
                governor=governor,
                current_mhz=_mhz(tree, f"{folder}/scaling_cur_freq"),
                min_mhz=_mhz(tree, f"{folder}/scaling_min_freq"),
                max_mhz=_mhz(tree, f"{folder}/scaling_max_freq"),
                hardware_max_mhz=hardware_max,
            )
        )
    return tuple(policies) if policies else Unknown(tree.why_no_names(_CPUFREQ))


def probe_boost(tree: Tree) -> bool | Unknown:
    """Return whether cores may run above their base frequency."""
    no_turbo = tree.number(f"{CPU_FOLDER}/intel_pstate/no_turbo")
    if no_turbo is not None:
        return no_turbo == 0
    boost = tree.number(f"{_CPUFREQ}/boost")
    return Unknown(tree.why_no_text(f"{_CPUFREQ}/boost")) if boost is None else boost != 0


def _mhz(tree: Tree, name: str) -> float | None:
    khz = tree.number(name)
    return khz / 1000 if khz is not None and khz > 0 else None
