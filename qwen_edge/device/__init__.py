"""What this machine is: cores, instruction sets, caches, memory, bandwidth, power and heat.

`probe_machine` gives all of it in one tree, in which each fact is a value or says why there is none (`Unknown`). The
functions beside it answer single questions.
"""

from qwen_edge.device.bandwidth import Bandwidth, ThreadBandwidth
from qwen_edge.device.caches import Cache, NumaNode
from qwen_edge.device.cores import CoreGroup, Cores, UsableCores
from qwen_edge.device.cpuinfo import cpu_features, cpu_name
from qwen_edge.device.facts import Unknown, known
from qwen_edge.device.heat import FrequencyPolicy, ThermalZone, Throttling, TripPoint
from qwen_edge.device.machine import Machine
from qwen_edge.device.memory import AvailableMemory, Memory, Swap, available_memory_bytes
from qwen_edge.device.power import Battery
from qwen_edge.device.probing import describe_machine, measure_bandwidth, probe_machine, usable_cores
from qwen_edge.device.process import peak_memory_bytes, private_dirty_bytes, return_freed_memory

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
    "NumaNode",
    "Swap",
    "ThermalZone",
    "ThreadBandwidth",
    "Throttling",
    "TripPoint",
    "Unknown",
    "UsableCores",
    "available_memory_bytes",
    "cpu_features",
    "cpu_name",
    "describe_machine",
    "known",
    "measure_bandwidth",
    "peak_memory_bytes",
    "private_dirty_bytes",
    "probe_machine",
    "return_freed_memory",
    "usable_cores",
]
