"""What this machine is: cores, instruction sets, caches, memory, bandwidth, power and heat.

`probe_machine` gives all of it in one tree, in which each fact is a value or says why there is none (`Unknown`). The
functions beside it answer single questions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qwen_edge.lazy import lazy_names

if TYPE_CHECKING:
    from qwen_edge.device.bandwidth import Bandwidth as Bandwidth
    from qwen_edge.device.bandwidth import ThreadBandwidth as ThreadBandwidth
    from qwen_edge.device.caches import Cache as Cache
    from qwen_edge.device.caches import NumaNode as NumaNode
    from qwen_edge.device.cores import CoreGroup as CoreGroup
    from qwen_edge.device.cores import Cores as Cores
    from qwen_edge.device.cores import UsableCores as UsableCores
    from qwen_edge.device.cores import core_cpus as core_cpus
    from qwen_edge.device.cores import default_threads as default_threads
    from qwen_edge.device.cores import usable_cores as usable_cores
    from qwen_edge.device.cpuinfo import cpu_features as cpu_features
    from qwen_edge.device.cpuinfo import cpu_name as cpu_name
    from qwen_edge.device.facts import Unknown as Unknown
    from qwen_edge.device.facts import known as known
    from qwen_edge.device.heat import FrequencyPolicy as FrequencyPolicy
    from qwen_edge.device.heat import ThermalZone as ThermalZone
    from qwen_edge.device.heat import Throttling as Throttling
    from qwen_edge.device.heat import TripPoint as TripPoint
    from qwen_edge.device.machine import Machine as Machine
    from qwen_edge.device.memory import AvailableMemory as AvailableMemory
    from qwen_edge.device.memory import Memory as Memory
    from qwen_edge.device.memory import Swap as Swap
    from qwen_edge.device.memory import available_memory_bytes as available_memory_bytes
    from qwen_edge.device.memory_killer import MemoryKiller as MemoryKiller
    from qwen_edge.device.memory_killer import MemoryPressure as MemoryPressure
    from qwen_edge.device.power import Battery as Battery
    from qwen_edge.device.probing import describe_machine as describe_machine
    from qwen_edge.device.probing import measure_bandwidth as measure_bandwidth
    from qwen_edge.device.probing import probe_machine as probe_machine
    from qwen_edge.device.process import held_memory_bytes as held_memory_bytes
    from qwen_edge.device.process import peak_memory_bytes as peak_memory_bytes
    from qwen_edge.device.process import private_dirty_bytes as private_dirty_bytes
    from qwen_edge.device.process import return_freed_memory as return_freed_memory

_HOMES = {
    "AvailableMemory": ".memory",
    "Bandwidth": ".bandwidth",
    "Battery": ".power",
    "Cache": ".caches",
    "CoreGroup": ".cores",
    "Cores": ".cores",
    "FrequencyPolicy": ".heat",
    "Machine": ".machine",
    "Memory": ".memory",
    "MemoryKiller": ".memory_killer",
    "MemoryPressure": ".memory_killer",
    "NumaNode": ".caches",
    "Swap": ".memory",
    "ThermalZone": ".heat",
    "ThreadBandwidth": ".bandwidth",
    "Throttling": ".heat",
    "TripPoint": ".heat",
    "Unknown": ".facts",
    "UsableCores": ".cores",
    "available_memory_bytes": ".memory",
    "core_cpus": ".cores",
    "cpu_features": ".cpuinfo",
    "cpu_name": ".cpuinfo",
    "default_threads": ".cores",
    "describe_machine": ".probing",
    "known": ".facts",
    "measure_bandwidth": ".probing",
    "held_memory_bytes": ".process",
    "peak_memory_bytes": ".process",
    "private_dirty_bytes": ".process",
    "probe_machine": ".probing",
    "return_freed_memory": ".process",
    "usable_cores": ".cores",
}

__all__ = [
    "AvailableMemory",
    "Bandwidth",
    "Battery",
    "Cache",
    "CoreGroup",
    "Cores",
    "FrequencyPolicy",
    "Machine",
    "Memory",
    "MemoryKiller",
    "MemoryPressure",
    "NumaNode",
    "Swap",
    "ThermalZone",
    "ThreadBandwidth",
    "Throttling",
    "TripPoint",
    "Unknown",
    "UsableCores",
    "available_memory_bytes",
    "core_cpus",
    "cpu_features",
    "cpu_name",
    "default_threads",
    "describe_machine",
    "held_memory_bytes",
    "known",
    "measure_bandwidth",
    "peak_memory_bytes",
    "private_dirty_bytes",
    "probe_machine",
    "return_freed_memory",
    "usable_cores",
]

__getattr__, __dir__ = lazy_names(globals(), _HOMES)
