"""The record of a benchmark: what was measured, on what, under which settings. Schema "qwen-edge/bench/1"."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA = "qwen-edge/bench/1"


@dataclass(frozen=True, slots=True)
class Samples:
    """Repeated measurements of one quantity.

    Attributes:
        values: One a repetition, in the order they were taken.
    """

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one: a repetition that the scheduler disturbed does not move it."""
        return statistics.median(self.values)

    @property
    def noise(self) -> float:
        """Median distance from the median, as a share of it; 0.0 for a single sample."""
        deviation = statistics.median(abs(value - self.median) for value in self.values)
        return deviation / self.median if self.median > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return median and samples, JSON-ready."""
        return {
            "median": round(self.median, 3),
            "samples": [round(value, 3) for value in self.values],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Samples:
        """Read back what to_dict() made."""
        return cls(tuple(float(value) for value in data["samples"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """Memory of the process that measured one file, and nothing else.

    Attributes:
        peak_rss_bytes: Largest resident size, from start to end.
        private_dirty_bytes: At the end, with the model loaded: what only this process holds and cannot be dropped.
            None where the system does not tell.
    """

    peak_rss_bytes: int
    private_dirty_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileResult:
    """What one file costs.

    Attributes:
        file: Path as it was given.
        sha256: Digest of the file; of an ONNX folder that of its weights.
        size_bytes: Its length; of an ONNX folder graph and weights.
        bits_per_weight: Bits of all tensors over the number of weights.
        engine: "llama.cpp" or "onnxruntime".
        settings: What the engine ran with: threads, n_ctx, flash_attention and so on.
        workload: What was asked of it: see Workload.
        prefill_tokens_per_s: Reading the prompt behind `depth` cached tokens.
        decode_tokens_per_s: Generating behind `depth` cached tokens.
        ttft_s: Seconds from the call to the first token of the prefill measurement; median.
        load_s: Seconds from load() to a session that takes a prompt, with the file in the page cache.
        memory: Of the measuring process.
    """

    file: str
    sha256: str
    size_bytes: int
    bits_per_weight: float
    engine: str
    settings: dict[str, Any]
    workload: dict[str, Any]
    prefill_tokens_per_s: Samples
    decode_tokens_per_s: Samples
    ttft_s: float
    load_s: float
    memory: MemoryUse

    def to_dict(self) -> dict[str, Any]:
        """Return the result as in the schema."""
        return {
            "file": self.file,
            "sha256": self.sha256,
            "size_bytes": self.size_bytes,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "engine": self.engine,
            "settings": dict(self.settings),
            "workload": dict(self.workload),
            "prefill_tokens_per_s": self.prefill_tokens_per_s.to_dict(),
            "decode_tokens_per_s": self.decode_tokens_per_s.to_dict(),
            "ttft_s": round(self.ttft_s, 6),
            "load_s": round(self.load_s, 6),
            "memory": asdict(self.memory),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FileResult:
        """Read back what to_dict() made."""
        return cls(
            **{
                **data,
                "prefill_tokens_per_s": Samples.from_dict(data["prefill_tokens_per_s"]),
                "decode_tokens_per_s": Samples.from_dict(data["decode_tokens_per_s"]),
                "memory": MemoryUse(**data["memory"]),
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRecord:
    """Results of one run on one machine.

    Attributes:
        machine: The machine and the native library's build.
        results: One a file, in the order given.
        warnings: What the loads warned of (slow kernels, say), for the person; not part of the schema.
    """

    machine: dict[str, Any]
    results: tuple[FileResult, ...]
    warnings: tuple[str, ...] = field(default=(), compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as in the schema."""
        return {
            "schema": SCHEMA,
            "machine": self.machine,
            "results": [result.to_dict() for result in self.results],
        }
