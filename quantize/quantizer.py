"""A GGUF file becomes a smaller one, through llama.cpp's quantizer."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qwen_edge import device
from qwen_edge.errors import ConfigError, NativeError
from qwen_edge.files import atomic_path, check_free_space
from qwen_edge.gguf_header import read_header
from qwen_edge.hub import origin_of
from qwen_edge.manifest import FileRecord, Manifest, manifest_path, tool_versions, write_manifest
from qwen_edge.native.library import build_facts
from qwen_edge.native.quantizer import Fallback, Outcome, run_quantizer
from qwen_edge.quant_types import file_type
from qwen_edge.quantize.plan import QuantizationPlan, plan_quantization


@dataclass(frozen=True)
class QuantizationReport:
    """What a quantization made.

    Attributes:
        path: The new file.
        type: Its file type, a key of FILE_TYPES.
        source_type: File type of the source, see QuantizationPlan.
        predicted_bytes: Length of the new file as computed before.
        size_bytes: Length of the new file.
        sha256: Digest of the new file.
        manifest: The record beside it, see qwen_edge/manifest.py.
        source_size_bytes: Length of the source.
        bits_per_weight: Of the new file, as QuantizationPlan defines it.
        n_params: Weights in the file.
        type_counts: How many tensors have each type.
        fallbacks: Tensors whose rows do not divide into the blocks of their type, and the type they have instead.
        requantized: How many tensors were quantized already, and have lost precision twice.
        threads: CPU threads used.
        peak_memory_bytes: Largest resident size of the process that quantized. It includes the pages of the source
            that were mapped, which the system can take back.
        duration_s: Wall-clock time.
    """

    path: Path
    type: str
    source_type: str
    predicted_bytes: int
    size_bytes: int
    sha256: str
    manifest: Path
    source_size_bytes: int
    bits_per_weight: float
    n_params: int
    type_counts: dict[str, int]
    fallbacks: tuple[Fallback, ...]
    requantized: int
    threads: int
    peak_memory_bytes: int
    duration_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON types."""
        return {**asdict(self), "path": str(self.path), "manifest": str(self.manifest)}


def quantize_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    type_name: str,
    *,
    allow_requantize: bool = False,
    n_threads: int | None = None,
    pure: bool = False,
    overwrite: bool = False,
    on_plan: Callable[[QuantizationPlan], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> QuantizationReport:
    """Quantize a GGUF file.

    The work is done in a child process, which ends when this call is interrupted. The target is written under a
    temporary name and appears when it is complete.

    Args:
        source: A GGUF file, best in BF16, F16 or F32.
        target: The file to make.
        type_name: A key of FILE_TYPES or an alias; case does not matter.
        allow_requantize: Accept a source that is quantized already. The errors of both steps add up.
        n_threads: CPU threads; None takes the physical cores this process may use.
        pure: One type for all matrices, instead of more bits for those that need them.
        overwrite: Replace an existing target.
        on_plan: Called once before the work, with the predicted size and types.
        progress: Called with (done_bytes, total_bytes) of the source's tensors, after each tensor.

    Raises:
        ModelNotFoundError: There is no file `source`.
        GGUFError: It is no GGUF file, or damaged, cut off or without tensors.
        ConfigError: Unknown type; the target exists, or is the source; the source is quantized already.
        UnsupportedError: The type needs an importance matrix; the source is split.
        NativeMissingError, NativeError, NativeCrashError: llama.cpp is not there, refuses or dies.
        OSError: The disk is full, or the target cannot be written.
    """
    started_s = time.monotonic()
    source, target = Path(source), Path(target)
    threads = _checked_threads(n_threads)
    _check_target(source, target, overwrite)
    plan = plan_quantization(source, type_name, allow_requantize=allow_requantize, pure=pure)
    check_free_space(target, plan.predicted_bytes)
    if on_plan:
        on_plan(plan)
    with atomic_path(target) as part:
        outcome = _run(plan, part, target, threads=threads, pure=pure, progress=progress)
        written = read_header(part)
        if {tensor.name: tensor.type_name for tensor in written.tensors} != plan.tensor_types:
            raise NativeError(f"llama.cpp wrote other tensors to {target} than it had announced")
        manifest_path(target).unlink(missing_ok=True)  # of an older file of this name
    artefact = FileRecord.of(target)
    manifest = Manifest(
        action="quantize",
        artefact=artefact,
        origin=origin_of(source),
        inputs=(FileRecord.of(source),),
        settings={"type": plan.type, "pure": pure, "allow_requantize": allow_requantize},
        tools={**tool_versions(), "llama-cpp-python": build_facts()["version"] or "unknown"},
    )
    return QuantizationReport(
        path=target,
        type=plan.type,
        source_type=plan.source_type,
        predicted_bytes=plan.predicted_bytes,
        size_bytes=written.size_bytes,
        sha256=artefact.sha256,
        manifest=write_manifest(target, manifest),
        source_size_bytes=plan.source_size_bytes,
        bits_per_weight=8 * written.tensor_bytes / written.n_weights,
        n_params=written.n_weights,
        type_counts=plan.type_counts,
        fallbacks=plan.fallbacks,
        requantized=len(plan.requantized),
        threads=threads,
        peak_memory_bytes=outcome.peak_memory_bytes,
        duration_s=time.monotonic() - started_s,
    )


def _run(
    plan: QuantizationPlan,
    part: Path,
    target: Path,
    *,
    threads: int,
    pure: bool,
    progress: Callable[[int, int], None] | None,
) -> Outcome:
    sizes = {tensor.name: tensor.n_bytes for tensor in read_header(plan.source).tensors}
    total_bytes, done_bytes = sum(sizes.values()), 0

    def on_tensor(name: str) -> None:
        nonlocal done_bytes
        done_bytes += sizes[name]
        if progress:
            progress(done_bytes, total_bytes)

    if progress:
        progress(0, total_bytes)
    try:
        return run_quantizer(
            plan.source,
            part,
            file_type(plan.type).llama_id,
            n_threads=threads,
            pure=pure,
            on_tensor=on_tensor,
        )
    except NativeError as error:
        # The C++ library calls a failed write "iostream error" and loses the reason.
        if "iostream error" not in error.message:
            raise
        free_bytes = shutil.disk_usage(part.parent).free
        raise OSError(
            errno.ENOSPC,
            f"the disk is full, or files may not grow so large: {part.stat().st_size / 1e6:.1f} of "
            f"{plan.predicted_bytes / 1e6:.1f} MB were written, {free_bytes / 1e6:.1f} MB are free",
            str(target),
        ) from error


def _checked_threads(n_threads: int | None) -> int:
    if n_threads is None:
        return device.usable_cores()
    if n_threads < 1:
        raise ConfigError(f"n_threads must be at least 1 (not {n_threads})")
    return n_threads


def _check_target(source: Path, target: Path, overwrite: bool) -> None:
    if target.is_dir():
        raise ConfigError(f"the target {target} is a folder", hint=f"Name a file: {target / source.name}")
    if not target.exists():
        return
    if source.exists() and target.samefile(source):
        raise ConfigError(f"the target {target} is the source file", hint="Name another file.")
    if not overwrite:
        raise ConfigError(
            f"{target} exists already",
            hint="Name another file, or replace it: overwrite=True, on the command line --force.",
        )
