"""`qwen-edge device`: what this machine is, and how fast it reads memory."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from qwen_edge.cli.output import format_bytes, format_option, note, print_json, styled
from qwen_edge.cli.wrap import columns_of, wrapped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qwen_edge.device import Cache, Cores, FrequencyPolicy, Machine, ThermalZone, UsableCores

_LABEL_WIDTH = 14
_CACHE_LETTERS = {"data": "d", "instruction": "i", "unified": ""}
# What stands for a fact in the list of those that are not told.
_NAMES = {
    "last_level_bytes": "",
    "memory.pressure": "pressure",
    "memory.killer.levels": "memory killer",
    "memory.killer.oom_score_adj": "",
    "numa": "memory nodes",
    "power_source": "power",
    "energy_counters": "energy",
    "thermal_zones": "heat",
}


@click.command("device")
@click.option("--measure", is_flag=True, help="Measure the bandwidth again, even where it is remembered.")
@format_option
def command(measure: bool, output_format: str) -> None:
    """Show cores, caches, memory, power and heat of this machine, and how fast it reads memory.

    The bandwidth is measured the first time, in two seconds, and remembered. What the machine does not tell is listed
    with the reason.
    """
    from qwen_edge.device import Unknown, measure_bandwidth, probe_machine

    machine = probe_machine()
    if measure or isinstance(machine.bandwidth, Unknown):
        note("Measuring how fast memory is read: two seconds.")
        machine = measure_bandwidth(machine, again=True)
    if output_format == "json":
        print_json(machine.to_dict())
        return
    columns = columns_of(sys.stdout)
    for label, text in _rows(machine):
        _print_row(label, text, columns)
    unknown = dict(_unknown(machine))
    if unknown:
        click.echo()
        click.echo(styled("Not told by this machine", sys.stdout, bold=True))
        for label, reason in unknown.items():
            _print_row(label, reason, columns)


def _print_row(label: str, text: str, columns: int | None) -> None:
    indent = " " * _LABEL_WIDTH
    click.echo(wrapped(f"{label:{_LABEL_WIDTH}}{text}", columns, indent=indent))


def _rows(machine: Machine) -> Iterator[tuple[str, str]]:
    """Yield (label, text) of what is known."""
    from qwen_edge.device import known

    yield "processor", machine.cpu_name
    if model := known(machine.model):
        yield "model", model
    virtual = ", a virtual machine" if machine.is_virtual else ""
    yield "system", f"{machine.system} {machine.release}, {machine.architecture}{virtual}"
    if cores := known(machine.cores):
        yield "cores", _cores(cores)
    if usable := known(machine.usable):
        yield "usable", _usable(usable)
    if instructions := known(machine.instructions):
        yield "instructions", " ".join(instructions)
    if caches := known(machine.caches):
        yield "caches", ", ".join(_cache(cache) for cache in caches)
    nodes = known(machine.numa)
    if nodes and len(nodes) > 1:
        yield "memory nodes", f"{len(nodes)}: threads should stay with their memory"
    yield "memory", machine.memory.available.reason
    if swap := known(machine.memory.swap):
        zram = f", {format_bytes(swap.zram_bytes)} of it compressed memory" if swap.zram_bytes else ""
        yield (
            "swap",
            f"{format_bytes(swap.free_bytes)} of {format_bytes(swap.total_bytes)} free{zram}"
            if swap.total_bytes
            else "none",
        )
    if (pressure := known(machine.memory.pressure)) and pressure.some_percent:
        yield (
            "pressure",
            f"programs waited for memory in {pressure.some_percent:.0f}% of the last ten seconds",
        )
    yield from _bandwidth(machine)
    yield from _state(machine)


def _bandwidth(machine: Machine) -> Iterator[tuple[str, str]]:
    from qwen_edge.device import known

    if bandwidth := known(machine.bandwidth):
        points = ", ".join(
            f"{point.bytes_per_s / 1e9:.1f} GB/s with {_count(point.n_threads, 'thread')}"
            for point in bandwidth.by_threads
        )
        caution = (
            f"; over {format_bytes(bandwidth.buffer_bytes)}, which the last-level cache may hold: perhaps too high; --measure tries again"
            if bandwidth.may_be_cached
            else ""
        )
        yield "reads memory", f"{points}{caution}"


def _state(machine: Machine) -> Iterator[tuple[str, str]]:
    """Yield how the machine is doing at this moment."""
    from qwen_edge.device import known

    battery = known(machine.battery)
    if source := known(machine.power_source):
        charge = f"; battery at {battery.charge_percent:.0f}%, {battery.status}" if battery else ""
        yield "power", f"from the {source}{charge}"
    if counters := known(machine.energy_counters):
        yield "energy", f"counted for {', '.join(counters)}"
    if zones := known(machine.thermal_zones):
        yield "heat", _heat(zones)
    if throttling := known(machine.throttling):
        slowed = f"slowed now: {', '.join(throttling.now)}" if throttling.now else "not slowed now"
        events = f", {throttling.n_events} times since boot" if throttling.n_events else ""
        before = f", since boot: {', '.join(throttling.since_boot)}" if throttling.since_boot else ""
        yield "throttling", slowed + events + before
    for text in _frequencies(known(machine.frequency) or ()):
        yield "frequency", text
    boost = known(machine.boost)
    if boost is not None:
        yield "boost", "on" if boost else "off"


def _cores(cores: Cores) -> str:
    parts = []
    for group in cores.groups:
        kind = f" {group.kind}" if len(cores.groups) > 1 else ""
        name = f" {group.name}" if group.name else ""
        threads = f" with {_count(group.n_threads, 'thread')}" if group.n_threads > group.n_cores else ""
        mhz = f" up to {group.max_mhz / 1000:.2f} GHz" if group.max_mhz else ""
        parts.append(f"{group.n_cores}{kind}{name}{threads}{mhz}")
    return " + ".join(parts)


def _usable(usable: UsableCores) -> str:
    text = _count(usable.n_cores, "core")
    if usable.limited_by == "cgroup":
        return f"{text}: the cgroup grants the time of {usable.quota:g} CPUs"
    if usable.limited_by == "affinity":
        return f"{text}: this process may run on {_count(len(usable.cpus), 'CPU')} only (affinity)"
    return text


def _cache(cache: Cache) -> str:
    times = f" x{cache.n_instances}" if cache.n_instances > 1 else ""
    size = cache.size_bytes / 1024
    text = f"{size:.0f} KiB" if size < 1024 else f"{size / 1024:.4g} MiB"
    return f"L{cache.level}{_CACHE_LETTERS[cache.kind]} {text}{times}"


def _heat(zones: tuple[ThermalZone, ...]) -> str:
    """Return the warmest sensor, with the next thing that happens."""
    warm = [(zone.celsius, zone) for zone in zones if zone.celsius is not None]
    if not warm:
        return f"{len(zones)} sensors, all off"
    celsius, zone = max(warm, key=lambda pair: pair[0])
    ahead = next((trip for trip in zone.trips if trip.celsius > celsius), None)
    then = f", {ahead.kind} from {ahead.celsius:.0f}" if ahead else ""
    return f"{zone.name} {celsius:.0f} °C{then}"


def _frequencies(policies: tuple[FrequencyPolicy, ...]) -> Iterator[str]:
    """Yield a line for the policies of each governor and limit: servers have one policy a CPU."""
    alike: dict[tuple[str, float | None, float | None], list[FrequencyPolicy]] = {}
    for policy in policies:
        alike.setdefault((policy.governor, policy.max_mhz, policy.hardware_max_mhz), []).append(policy)
    for group in alike.values():
        first = group[0]
        cpus = _count(sum(len(policy.cpus) for policy in group), "CPU")
        fastest = max((policy.current_mhz or 0 for policy in group), default=0)
        now = f", {fastest / 1000:.2f} GHz now" if fastest else ""
        limit = f", held at {first.max_mhz / 1000:.2f} GHz" if first.max_mhz and first.is_held_down else ""
        yield f"{cpus}: {first.governor or 'unknown'}{now}{limit}"


def _unknown(machine: Machine) -> Iterator[tuple[str, str]]:
    reasons: dict[str, Any] = machine.to_dict()["unknown"]
    for path, reason in reasons.items():
        label = _NAMES.get(path, path.rpartition(".")[2].replace("_", " "))
        if label:
            yield label, reason


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
