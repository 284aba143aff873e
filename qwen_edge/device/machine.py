"""All that is known of a machine, in one tree: each fact is a value, or says why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from qwen_edge.device.bandwidth import Bandwidth
from qwen_edge.device.caches import Cache, NumaNode
from qwen_edge.device.cores import Cores, UsableCores
from qwen_edge.device.facts import Unknown, reasons, to_json
from qwen_edge.device.heat import FrequencyPolicy, ThermalZone, Throttling
from qwen_edge.device.memory import Memory
from qwen_edge.device.power import Battery, PowerSource

System = Literal["linux", "android", "macos", "windows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What this machine is, and how it is doing at this moment.

    Attributes:
        system: Which probes were asked.
        release: Of the kernel.
        architecture: As `uname -m` says it.
        model: The board, laptop or phone.
        is_virtual: Whether the processor says that a hypervisor runs it: sensors are then mostly hidden.
        cpu_name: The processor.
        cores: By kind.
        usable: What affinity and cgroups leave of the cores.
        instructions: Instruction sets that matter for the kernels of llama.cpp, as Linux names them.
        caches: Nearest first.
        last_level_bytes: What all caches of the last level hold together.
        numa: Memory nodes.
        memory: Total, free, limits and swap.
        bandwidth: Sequential reading, as measured here; `measure_bandwidth` does it.
        power_source: What feeds the machine now.
        battery: Its charge.
        energy_counters: Names of the counters of energy (RAPL) that this user may read.
        thermal_zones: Temperatures, with what the system does at which.
        throttling: Whether heat or power slows the cores down.
        frequency: Governors and limits.
        boost: Whether cores may run above their base frequency.
    """

    system: System
    release: str
    architecture: str
    model: str | Unknown
    is_virtual: bool
    cpu_name: str
    cores: Cores | Unknown
    usable: UsableCores | Unknown
    instructions: tuple[str, ...] | Unknown
    caches: tuple[Cache, ...] | Unknown
    last_level_bytes: int | Unknown
    numa: tuple[NumaNode, ...] | Unknown
    memory: Memory
    bandwidth: Bandwidth | Unknown
    power_source: PowerSource | Unknown
    battery: Battery | Unknown
    energy_counters: tuple[str, ...] | Unknown
    thermal_zones: tuple[ThermalZone, ...] | Unknown
    throttling: Throttling | Unknown
    frequency: tuple[FrequencyPolicy, ...] | Unknown
    boost: bool | Unknown

    def to_dict(self) -> dict[str, Any]:
        """Return the tree as JSON types: what is unknown is null, and `unknown` says why by dotted name."""
        return {**to_json(self), "unknown": dict(reasons(self))}
