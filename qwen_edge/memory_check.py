"""Whether a model fits in the memory that is free, asked before it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qwen_edge import device
from qwen_edge.config import LoadConfig
from qwen_edge.engines.onnx_folder import is_onnx, read_folder
from qwen_edge.errors import InsufficientMemoryError, QwenEdgeError
from qwen_edge.gguf_header import read_header
from qwen_edge.memory import MemoryEstimate, estimate_header_memory
from qwen_edge.memory_onnx import estimate_onnx_memory


def require_memory(path: Path, config: LoadConfig) -> None:
    """Refuse a model whose weights, KV cache and activations together are larger than what is free.

    What the interpreter and the libraries take is not counted: most of it is in use already. A file that cannot be
    understood passes: the engine says what is wrong with it.

    Args:
        path: A GGUF file, or an exported folder.
        config: How it is to be loaded; n_ctx, n_batch, n_sessions, kv_type, flash_attention and load_mode are used.

    Raises:
        InsufficientMemoryError: With the numbers, and the context that would fit.
        FormatError, ModelNotFoundError, UnsupportedError: As read_folder(), of an ONNX folder.
    """
    estimate = memory_estimator(path, config)
    need = estimate(config.n_ctx) if estimate is not None else None
    if estimate is None or need is None:
        return
    free = device.available_memory_bytes()
    if _counted(need, config) <= free.available_bytes:
        return
    raise InsufficientMemoryError(
        f"{path} with a context of {config.n_ctx:,} tokens needs {_gigabytes(_counted(need, config))} of memory "
        f"({_gigabytes(need.weights_bytes)} weights, {_gigabytes(need.kv_bytes)} KV cache, "
        f"{_gigabytes(need.compute_bytes)} activations), and {_gigabytes(free.available_bytes)} are free "
        f"({free.reason})",
        hint=_advice(estimate, config, free.available_bytes),
    )


def memory_estimator(path: Path, config: LoadConfig) -> Callable[[int], MemoryEstimate | None] | None:
    """Return what tells the need for a context of n tokens; None for what cannot be understood.

    Args:
        path: A GGUF file, or an exported folder.
        config: How it is to be loaded, apart from n_ctx.

    Raises:
        FormatError, ModelNotFoundError, UnsupportedError: As read_folder(), of an ONNX folder.
    """
    if is_onnx(path):
        folder = read_folder(path)
        if folder.precision["weights"] is None:
            return None
        return lambda n_ctx: estimate_onnx_memory(
            folder.shape,
            folder.precision["weights"],
            n_ctx,
            n_ctx_train=folder.n_ctx_train,
            head=folder.precision["head"],
            block_size=folder.precision["block_size"] or 32,
            n_batch=config.n_batch,
            n_sessions=config.n_sessions,
        )
    try:
        header = read_header(path)
    except (QwenEdgeError, OSError):
        return None
    return lambda n_ctx: estimate_header_memory(
        header, n_ctx, kv_type=config.kv_type, n_batch=config.n_batch, n_sessions=config.n_sessions
    )


def _counted(need: MemoryEstimate, config: LoadConfig) -> int:
    """Return the bytes that have to be free.

    Pages of a mapped file come and go, flash attention keeps no scores of the whole context, and plain kernels no second
    form of a head.
    """
    weights_bytes = 0 if config.load_mode == "mmap" else need.weights_bytes
    compute_bytes = 0 if config.flash_attention == "on" else need.compute_bytes
    head_copy_bytes = 0 if config.safe_kernels else need.head_copy_bytes
    return weights_bytes + need.kv_bytes + compute_bytes + head_copy_bytes


def _advice(
    estimate: Callable[[int], MemoryEstimate | None], config: LoadConfig, available_bytes: int
) -> str:
    """Return the largest context in steps of 256 tokens that fits; where none does, say that weights are the matter."""
    low, high = 0, config.n_ctx // 256
    while low < high:
        middle = (low + high + 1) // 2
        need = estimate(256 * middle)
        if need is not None and _counted(need, config) <= available_bytes:
            low = middle
        else:
            high = middle - 1
    if low:
        return f"n_ctx={256 * low} fits (--n-ctx {256 * low} on the command line)."
    return "Close other programs, or take a smaller type or model: qwen-edge list shows what fits."


def _gigabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:,.2f} GB"
