"""A GGUF file becomes a smaller one, through llama.cpp's quantizer."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qwen_edge import device
from qwen_edge.errors import ConfigError, NativeError, UnsupportedError
from qwen_edge.files import atomic_path
from qwen_edge.native.quantizer import Fallback, Outcome, run_quantizer
from qwen_edge.quant_types import FILE_TYPES, TENSOR_TYPES, FileType, file_type
from qwen_edge.quantize.header import GGUFHeader, padded, read_header


@dataclass(frozen=True)
class QuantizationReport:
    """What a quantization made.

    Attributes:
        path: The new file.
        type: Its file type, a key of FILE_TYPES.
        source_type: File type of the source, or the tensor type of most of its weights where it states none.
        predicted_bytes: Length of the new file as computed before.
        size_bytes: Length of the new file.
        source_size_bytes: Length of the source.
        bits_per_weight: 8 * bytes of all tensors / weights in all tensors. Metadata and padding do not count, the
            norms and biases that stay in F32 do: what llama.cpp calls BPW.
        n_params: Weights in the file.
        tensor_types: How many tensors have each type.
        fallbacks: Tensors whose rows do not divide into the blocks of their type, and the type they have instead.
        requantized: How many tensors were quantized already, and have lost precision twice.
        threads: CPU threads used.
        peak_memory_bytes: Largest resident size of the process that quantized; it includes the pages of the source
            that were mapped, which the system can take back.
        duration_s: Wall-clock time.
    """

    path: Path
    type: str
    source_type: str
    predicted_bytes: int
    size_bytes: int
    source_size_bytes: int
    bits_per_weight: float
    n_params: int
    tensor_types: dict[str, int]
    fallbacks: tuple[Fallback, ...]
    requantized: int
    threads: int
    peak_memory_bytes: int
    duration_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON types."""
        return {**asdict(self), "path": str(self.path), "fallbacks": [asdict(row) for row in self.fallbacks]}


def quantize_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    type_name: str,
    *,
    allow_requantize: bool = False,
    n_threads: int | None = None,
    pure: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> QuantizationReport:
    """Quantize a GGUF file.

    The work is done in a child process, which ends when this call is interrupted. The target is written under a
    temporary name and appears when it is complete.

    Args:
        source: A GGUF file, best in BF16, F16 or F32.
        target: The file to make.
        type_name: A key of FILE_TYPES; case does not matter.
        allow_requantize: Accept a source that is quantized already. The errors of both steps add up.
        n_threads: CPU threads; None takes the physical cores this process may use.
        pure: One type for all matrices, instead of more bits for those that need them.
        overwrite: Replace an existing target.
        progress: Called with (done_bytes, total_bytes) of the source's tensors, after each tensor.

    Raises:
        ModelNotFoundError: There is no file `source`.
        GGUFError: It is no GGUF file, or damaged, or cut off.
        ConfigError: Unknown type; the target exists, or is the source; the source is quantized already.
        UnsupportedError: The type needs an importance matrix; the source is split.
        NativeMissingError, NativeError, NativeCrashError: llama.cpp is not there, refuses or dies.
        OSError: The disk is full, or the target cannot be written.
    """
    started_s = time.monotonic()
    chosen = file_type(type_name)
    n_threads = _checked_threads(n_threads)
    source, target = Path(source), Path(target)
    header = read_header(source)
    _check_target(source, target, overwrite)
    plan = _plan(header, chosen, allow_requantize=allow_requantize, pure=pure)
    predicted_bytes = _file_bytes(header, plan)
    _check_free_space(target, predicted_bytes)
    with atomic_path(target) as part:
        done = _run(header, part, chosen, n_threads=n_threads, pure=pure, progress=progress, target=target)
        written = read_header(part)
        if {tensor.name: tensor.type_name for tensor in written.tensors} != plan.tensor_types:
            raise NativeError(f"llama.cpp wrote other tensors to {target} than it had announced")
    return QuantizationReport(
        path=target,
        type=chosen.name,
        source_type=_type_of(header),
        predicted_bytes=predicted_bytes,
        size_bytes=written.size_bytes,
        source_size_bytes=header.size_bytes,
        bits_per_weight=8 * written.tensor_bytes / written.n_weights,
        n_params=written.n_weights,
        tensor_types=dict(Counter(plan.tensor_types.values())),
        fallbacks=plan.fallbacks,
        requantized=len(_requantized(header, plan)),
        threads=n_threads,
        peak_memory_bytes=done.peak_memory_bytes,
        duration_s=time.monotonic() - started_s,
    )


def predict_size(
    source: str | os.PathLike[str], type_name: str, *, allow_requantize: bool = False, pure: bool = False
) -> int:
    """Return the length in bytes of the file that quantize_file would make, without making it.

    Raises:
        As quantize_file, of the errors that concern source and type.
    """
    header = read_header(source)
    plan = _plan(header, file_type(type_name), allow_requantize=allow_requantize, pure=pure)
    return _file_bytes(header, plan)


def _plan(header: GGUFHeader, chosen: FileType, *, allow_requantize: bool, pure: bool) -> Outcome:
    """Ask the quantizer what it would do, and refuse what must not be done."""
    n_parts = int(header.metadata.get("split.count", 1))
    if n_parts > 1:
        raise UnsupportedError(
            f"{header.path} is one of {n_parts} parts", hint="Join them first: llama-gguf-split --merge"
        )
    plan = run_quantizer(header.path, None, chosen.llama_id, n_threads=1, pure=pure)
    if plan.needs_imatrix:
        raise UnsupportedError(
            f"{chosen.name} needs an importance matrix, which this version does not make: without one the quantizer "
            "refuses, because the result would be unusable",
            hint=f"The smallest types without one: {', '.join(_alternatives())}.",
        )
    twice = _requantized(header, plan)
    if twice and not allow_requantize:
        raise ConfigError(
            f"{header.path} is quantized already ({_type_of(header)}): {len(twice)} of {len(header.tensors)} tensors "
            f"would be quantized a second time, from what the first time left, and the errors add up",
            hint="Convert the checkpoint and quantize that (qwen-edge convert). To go on all the same: "
            "allow_requantize=True, on the command line --allow-requantize.",
        )
    return plan


def _run(
    header: GGUFHeader,
    part: Path,
    chosen: FileType,
    *,
    n_threads: int,
    pure: bool,
    progress: Callable[[int, int], None] | None,
    target: Path,
) -> Outcome:
    sizes = {tensor.name: tensor.n_bytes for tensor in header.tensors}
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
            header.path, part, chosen.llama_id, n_threads=n_threads, pure=pure, on_tensor=on_tensor
        )
    except NativeError as error:
        # The C++ library names a failed write "iostream error" and loses the reason.
        if "iostream error" not in error.message:
            raise
        free_bytes = shutil.disk_usage(part.parent).free
        raise OSError(
            errno.ENOSPC,
            f"the quantizer could not write on: the disk is full or a file may not grow further "
            f"({part.stat().st_size / 1e6:.1f} MB written, {free_bytes / 1e6:.1f} MB free now)",
            str(target),
        ) from error


def _requantized(header: GGUFHeader, plan: Outcome) -> list[str]:
    """Return the tensors that are quantized in the source and get another type."""
    return [
        tensor.name
        for tensor in header.tensors
        if TENSOR_TYPES[tensor.type_name].block_weights > 1
        and plan.tensor_types[tensor.name] != tensor.type_name
    ]


def _alternatives() -> list[str]:
    """Return the three smallest types that need no importance matrix; the table lists larger before smaller."""
    free = [row for row in reversed(FILE_TYPES.values()) if not row.needs_imatrix]
    return [row.name for row in sorted(free, key=lambda row: TENSOR_TYPES[row.base].bits_per_weight)[:3]]


def _type_of(header: GGUFHeader) -> str:
    stated = header.metadata.get("general.file_type")
    for row in FILE_TYPES.values():
        if row.llama_id == stated:
            return row.name
    weights: Counter[str] = Counter()
    for tensor in header.tensors:
        weights[tensor.type_name] += tensor.n_weights
    return weights.most_common(1)[0][0] if weights else "empty"


def _file_bytes(header: GGUFHeader, plan: Outcome) -> int:
    """Return the length of the new file: the source's header with two values set, then each tensor padded.

    Source: llama_model_quantize_impl in src/llama-quant.cpp; a u32 value takes 8 (length of the key) + key + 4 (type) + 4.
    """
    added = [
        key for key in ("general.quantization_version", "general.file_type") if key not in header.metadata
    ]
    new_header_bytes = header.header_bytes + sum(16 + len(key) for key in added)
    return padded(new_header_bytes) + sum(
        padded(tensor.n_bytes_as(plan.tensor_types[tensor.name])) for tensor in header.tensors
    )


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
    if target.samefile(source):
        raise ConfigError(f"the target {target} is the source file", hint="Name another file.")
    if not overwrite:
        raise ConfigError(
            f"{target} exists already",
            hint="Name another file, or replace it: overwrite=True, on the command line --force.",
        )


def _check_free_space(target: Path, needed_bytes: int) -> None:
    """Fail at once rather than after minutes, where the file cannot fit. An old target stays until the new is whole."""
    folder = target.resolve().parent
    while not folder.exists():
        folder = folder.parent
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise OSError(
            errno.ENOSPC,
            f"not enough disk space: the file takes {needed_bytes / 1e6:.1f} MB, {free_bytes / 1e6:.1f} MB are free",
            str(target),
        )
