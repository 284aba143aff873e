"""Whether a model fits in the memory that is free, asked before it is loaded; and the largest context that does."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

from qwen_edge import device
from qwen_edge.config import AUTO_N_CTX, LoadConfig
from qwen_edge.engines.onnx_folder import is_onnx, read_folder
from qwen_edge.errors import InsufficientMemoryError, QwenEdgeError
from qwen_edge.gguf_header import GGUFHeader, read_header
from qwen_edge.memory import MemoryEstimate, estimate_header_memory
from qwen_edge.memory_advice import Estimate, largest_context, ways_out
from qwen_edge.memory_kernels import Kernels, expected_kernels
from qwen_edge.memory_onnx import estimate_onnx_memory

# Left free by n_ctx="auto" and by `plan --memory`, as a share: other programs go on growing, and an estimate may be 5% off.
HEADROOM = 0.1
# Parts that round to 0.00 GB are left out of a message.
_SHOWN_BYTES = 5_000_000


def require_memory(path: Path, config: LoadConfig) -> LoadConfig:
    """Refuse a model that does not fit in what is free, its contexts full; and choose an automatic context.

    Pages of a mapped file are not counted: the system drops and reads them again. A file that cannot be understood
    passes: the engine says what is wrong with it.

    Args:
        path: A GGUF file, or an exported folder.
        config: How it is to be loaded.

    Returns:
        The settings, with a number for n_ctx.

    Raises:
        InsufficientMemoryError: With the numbers, and what would fit.
        FormatError, ModelNotFoundError, UnsupportedError: As read_folder(), of an ONNX folder.
    """
    kernels = None if is_onnx(path) else expected_kernels(config, path)
    estimate = memory_estimator(path, config, kernels=kernels)
    free = device.available_memory_bytes()
    if config.n_ctx == AUTO_N_CTX:
        config = replace(config, n_ctx=automatic_context(estimate, config, free, n_ctx_train(path)))
    need = estimate(config) if estimate is not None else None
    if estimate is None or need is None or need.wanted_bytes <= free.available_bytes:
        return config
    raise InsufficientMemoryError(
        f"{path} with a context of {config.n_ctx:,} tokens needs {_gigabytes(need.wanted_bytes)} of memory "
        f"({describe(need)}), and {_gigabytes(free.available_bytes)} are free ({free.reason})",
        hint=ways_out(
            estimate,
            config,
            lambda found: found.wanted_bytes <= free.available_bytes,
            weights=path,
            kernels=kernels,
        ),
    )


def automatic_context(
    estimate: Estimate | None, config: LoadConfig, free: device.AvailableMemory, n_ctx_train: int | None
) -> int:
    """Return the largest context that fits with headroom, at most the trained one, in tokens.

    Args:
        estimate: Of what is to be loaded; None for what cannot be understood.
        config: How it is to be loaded, apart from n_ctx.
        free: Memory.
        n_ctx_train: What the model was trained for; None where that is not known.

    Returns:
        The default where nothing is known, 256 where none fits: loading says what does not fit then.
    """
    limit = n_ctx_train or LoadConfig().n_ctx
    if estimate is None:
        return min(LoadConfig().n_ctx, limit)
    budget = int(free.available_bytes * (1 - HEADROOM))
    return largest_context(estimate, config, limit, lambda found: found.wanted_bytes <= budget) or min(
        256, limit
    )


def memory_estimator(path: Path, config: LoadConfig, *, kernels: Kernels | None = None) -> Estimate | None:
    """Return what tells the need of a file or folder under settings; None for what cannot be understood.

    Args:
        path: A GGUF file, or an exported folder.
        config: Settings that it is asked for first.
        kernels: Of llama.cpp's build; None takes those that are expected here.

    Raises:
        FormatError, ModelNotFoundError, UnsupportedError: As read_folder(), of an ONNX folder.
    """
    if is_onnx(path):
        return _onnx_estimator(path)
    header = _header(path)
    if header is None or estimate_header_memory(header, replace(config, n_ctx=256), kernels=kernels) is None:
        return None
    return lambda settings: estimate_header_memory(header, settings, kernels=kernels)


def n_ctx_train(path: Path) -> int | None:
    """Return the context that a model was trained for, None where its file does not tell."""
    if is_onnx(path):
        return read_folder(path).n_ctx_train
    header = _header(path)
    if header is None:
        return None
    value = header.metadata.get(f"{header.metadata.get('general.architecture')}.context_length")
    return value if isinstance(value, int) and value > 0 else None


def describe(need: MemoryEstimate) -> str:
    """Return the parts of a need on one line."""
    parts = [
        (need.weights_bytes, "weights"),
        (need.head_copy_bytes, "second copy of the head"),
        (need.kv_bytes, "KV cache"),
        (need.compute_bytes, "activations"),
        (need.wanted_bytes - (need.held_bytes - need.runtime_bytes), "libraries and vocabulary"),
    ]
    return ", ".join(f"{_gigabytes(n_bytes)} {name}" for n_bytes, name in parts if n_bytes >= _SHOWN_BYTES)


def _onnx_estimator(path: Path) -> Estimate | None:
    folder = read_folder(path)
    weights = folder.precision["weights"]
    if weights is None:
        return None
    return lambda settings: estimate_onnx_memory(
        folder.shape,
        weights,
        settings.n_ctx,
        n_ctx_train=folder.n_ctx_train,
        head=folder.precision["head"],
        embedding=folder.precision["embedding"],
        block_size=folder.precision["block_size"] or 32,
        n_batch=settings.n_batch,
        n_sessions=settings.n_sessions,
    )


def _header(path: Path) -> GGUFHeader | None:
    try:
        facts = path.stat()
        return _header_of(path, (facts.st_ino, facts.st_size, facts.st_mtime_ns))
    except (QwenEdgeError, OSError):
        return None


@functools.lru_cache(maxsize=1)
def _header_of(path: Path, _identity: tuple[int, int, int]) -> GGUFHeader:
    """Read a header once for the plan, the context and the guard of one load: 29 ms each at 151,936 tokens, 0.1 MB held."""
    return read_header(path)


def _gigabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:,.2f} GB"
