"""What a model file costs on this machine.

::

    runner      files -> BenchRecord; each file measured in a process of its own
      └── worker      that process: load, warm up, measure
            └── workload    exact numbers of tokens through the public session; the clock is Reply.stats
    record      the JSON record, schema "qwen-edge/bench/1"

The names below are imported when first used: `import qwen_edge.bench` loads nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qwen_edge.lazy import lazy_names

if TYPE_CHECKING:
    from qwen_edge.bench.record import BenchRecord as BenchRecord
    from qwen_edge.bench.record import FileResult as FileResult
    from qwen_edge.bench.record import MemoryUse as MemoryUse
    from qwen_edge.bench.record import Samples as Samples
    from qwen_edge.bench.runner import BenchConfig as BenchConfig
    from qwen_edge.bench.runner import run_benchmark as run_benchmark
    from qwen_edge.bench.workload import Workload as Workload

_HOMES = {
    "BenchConfig": ".runner",
    "BenchRecord": ".record",
    "FileResult": ".record",
    "MemoryUse": ".record",
    "Samples": ".record",
    "Workload": ".workload",
    "run_benchmark": ".runner",
}

__all__ = ["BenchConfig", "BenchRecord", "FileResult", "MemoryUse", "Samples", "Workload", "run_benchmark"]

__getattr__, __dir__ = lazy_names(globals(), _HOMES)
