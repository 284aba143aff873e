"""Which quantization of a model suits this machine: from its shape, before any of it is fetched.

Memory is planned; speed is measured on synthetic weights of the shape and type, which run as fast as trained ones.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from qwen_edge import device, paths
from qwen_edge.catalog_types import CatalogModel, Shape
from qwen_edge.config import LoadConfig
from qwen_edge.errors import ConfigError, QwenEdgeError, UnsupportedError
from qwen_edge.files import atomic_path, check_free_space
from qwen_edge.memory import COMMON_TYPES, MemoryEstimate, estimate_file_bytes, estimate_memory
from qwen_edge.native import library
from qwen_edge.quant_types import file_type
from qwen_edge.trial_model import write_trial_model
from qwen_edge.tune.finding import tune_file
from qwen_edge.tuned import TuneRecord, Workload, record_from_json

# A type is looked at for so long, and once in every way to run it in any case.
_BUDGET_S = 20.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What is wanted.

    Attributes:
        n_ctx: Context, in tokens.
        min_decode: tokens/s of answers; 0 for any.
        min_prefill: tokens/s of prompts; 0 for any.
        max_memory_bytes: Peak; None for what is free.
        max_file_bytes: Length of the file; None for any.
    """

    n_ctx: int = 4096
    min_decode: float = 0.0
    min_prefill: float = 0.0
    max_memory_bytes: int | None = None
    max_file_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One type of the model.

    Attributes:
        type_name: A key of FILE_TYPES.
        file_bytes: Length of its file.
        bits_per_weight: Of the file; more is closer to the original, and the measure of quality here.
        memory: What it needs with the wanted context.
        record: How fast it is, and with which settings; None where that was not measured.
        misses: What it fails, in words; () where it suits.
    """

    type_name: str
    file_bytes: int
    bits_per_weight: float
    memory: MemoryEstimate
    record: TuneRecord | None
    misses: tuple[str, ...]

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Tokens/s of an answer, with the fastest settings."""
        return self.record.speeds["tuned"]["decode"] if self.record else None

    @property
    def prefill_tokens_per_s(self) -> float | None:
        """Tokens/s of a prompt, with the fastest settings."""
        return self.record.speeds["tuned"]["prefill"] if self.record else None


def recommend(
    model: CatalogModel,
    limits: Limits,
    *,
    workload: Workload | None = None,
    types: Sequence[str] = COMMON_TYPES,
    again: bool = False,
    say: Say = lambda line: None,
) -> tuple[Candidate, ...]:
    """Return the types of a model, those that suit first, of these the one with the most bits first.

    Types that need too much memory or disk are not measured. What was measured before on this machine with this build is
    taken from memory.

    Args:
        model: A row of the catalog with a shape.
        limits: What is wanted.
        workload: What is measured; None for a chat, as long as the context has room for it.
        types: To choose from.
        again: Measure anew.
        say: Takes a line for the person who waits.

    Raises:
        UnsupportedError: The model's shape is not known.
        ConfigError: Unknown type.
        NoSpaceError: No room for the synthetic weights.
    """
    shape = model.shape
    if shape is None:
        raise UnsupportedError(
            f"{model.name} is offered as a finished file only, so its types cannot be compared before it is here",
            hint=f"qwen-edge pull {model.name}, then qwen-edge tune {model.name}",
        )
    if limits.n_ctx > model.n_ctx_train:
        raise ConfigError(
            f"n_ctx is {limits.n_ctx:,}, and {model.name} handles {model.n_ctx_train:,} tokens",
            hint=f"--n-ctx {model.n_ctx_train}",
        )
    workload = workload or _fitting(Workload(), limits.n_ctx)
    config = LoadConfig(n_ctx=limits.n_ctx)
    free_bytes = device.available_memory_bytes().available_bytes
    found = []
    for name in dict.fromkeys(file_type(each).name for each in types):
        need = estimate_memory(shape, name, config)
        file_bytes = estimate_file_bytes(shape, name)
        misses = _misses_of_size(need, file_bytes, limits, free_bytes)
        record = None
        if not misses:
            record = _speed(model, shape, name, workload, again=again, say=say)
            need = estimate_memory(shape, name, record.settings.config(config))
            misses = [
                *_misses_of_size(need, file_bytes, limits, free_bytes),
                *_misses_of_speed(record, limits),
            ]
        found.append(
            Candidate(
                type_name=name,
                file_bytes=file_bytes,
                bits_per_weight=8 * file_bytes / shape.n_weights,
                memory=need,
                record=record,
                misses=tuple(misses),
            )
        )
    return tuple(sorted(found, key=lambda each: (bool(each.misses), -each.bits_per_weight)))


def fastest(candidates: Sequence[Candidate]) -> Candidate | None:
    """Return the type that answers fastest, of those that were measured."""
    measured = [each for each in candidates if each.decode_tokens_per_s is not None]
    return max(measured, key=lambda each: each.decode_tokens_per_s or 0.0, default=None)


def _fitting(workload: Workload, n_ctx: int) -> Workload:
    """Return a workload that has room in a context."""
    if workload.n_ctx <= n_ctx:
        return workload
    share = n_ctx // 4
    return Workload(prompt_tokens=max(2, share), answer_tokens=max(1, share), depth=share)


def _misses_of_size(need: MemoryEstimate, file_bytes: int, limits: Limits, free_bytes: int) -> list[str]:
    misses = []
    if limits.max_memory_bytes is not None and need.total_bytes > limits.max_memory_bytes:
        misses.append(f"needs {need.total_bytes / 1e9:.2f} GB of memory")
    elif need.wanted_bytes > free_bytes:
        misses.append(f"needs {need.wanted_bytes / 1e9:.2f} GB of memory, {free_bytes / 1e9:.2f} GB are free")
    if limits.max_file_bytes is not None and file_bytes > limits.max_file_bytes:
        misses.append(f"is a file of {file_bytes / 1e9:.2f} GB")
    return misses


def _misses_of_speed(record: TuneRecord, limits: Limits) -> list[str]:
    speeds = record.speeds["tuned"]
    wanted = (("decode", limits.min_decode), ("prefill", limits.min_prefill))
    return [f"{speeds[name]:.1f} tokens/s of {name}" for name, least in wanted if speeds[name] < least]


def _speed(
    model: CatalogModel, shape: Shape, type_name: str, workload: Workload, *, again: bool, say: Say
) -> TuneRecord:
    """Return how fast a type of a shape is here: remembered, or measured on synthetic weights."""
    kept = _record_path(shape, type_name, workload)
    if not again and (record := record_from_json(kept)) is not None:
        return record
    with tempfile.TemporaryDirectory(prefix="qwen-edge-recommend-") as folder:
        file = Path(folder) / f"{type_name}.gguf"
        check_free_space(file, estimate_file_bytes(shape, type_name))
        started = time.monotonic()
        write_trial_model(file, shape, type_name, architecture=model.architecture)  # type: ignore[arg-type]
        record = tune_file(file, workload, budget_s=_BUDGET_S, is_brief=True)
        say(f"{type_name}: measured in {time.monotonic() - started:.0f} s")
    try:
        with atomic_path(kept) as part:
            part.write_text(record.to_json())
    except (OSError, QwenEdgeError):
        return record  # it is measured again next time
    return record


def _record_path(shape: Shape, type_name: str, workload: Workload) -> Path:
    facts = [
        asdict(shape),
        type_name,
        asdict(workload),
        device.cpu_name(),
        device.cpu_features(),
        device.usable_cores(),
        library.library_fingerprint(),
    ]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
    return paths.tune_folder() / f"shape-{key}.json"
