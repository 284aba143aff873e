"""Whether what a model still has to take is free: asked again while it is loaded and used, since other programs go on.

The plan is made once, before anything is read (`memory_check`). After that memory is taken in steps: weights while they are
read, the KV cache when a context is made, and activations with the first batches, more of them the longer the context is.
Before each step this looks once more at what is free, and refuses it with numbers: a process that the system ends for want of
memory could not even say so. Decoding token by token takes nothing more. What another program takes during a step is seen
before the next one only.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qwen_edge import device
from qwen_edge.config import LoadConfig
from qwen_edge.engines.onnx_folder import is_onnx
from qwen_edge.errors import InsufficientMemoryError
from qwen_edge.memory import MemoryEstimate
from qwen_edge.memory_advice import Estimate, ways_out
from qwen_edge.memory_check import memory_estimator
from qwen_edge.memory_kernels import Kernels, expected_kernels

# The system's counters run behind by some pages, and page tables are in no estimate.
_TOLERANCE = 0.01
# Weights are looked at so often while they are read; a look takes a third of a millisecond.
_LOADING_STEP = 0.02
# A call of fewer tokens, or a copy of as many, takes a few MB at most.
_FEW_TOKENS = 32


class MemoryGuard:
    """Looks at what is free before each step of one model."""

    def __init__(self, path: Path, config: LoadConfig, estimate: Estimate, kernels: Kernels | None) -> None:
        """Made by memory_guard() before loading: what this process holds by then is not the model's."""
        self._path = path
        self._config = config
        self._estimate = estimate
        self._kernels = kernels
        self._need = self._need_of(config)
        self._held_before = device.held_memory_bytes()
        self._looked_at = -1.0

    def before_weights(self, progress: float) -> None:
        """Look whether the rest of the weights, and the context behind them, have room.

        Args:
            progress: Share of the weights that is read, 0 to 1.

        Raises:
            InsufficientMemoryError: They have not.
        """
        if progress - self._looked_at < _LOADING_STEP and progress < 1:
            return
        self._looked_at = progress
        # What this process has taken is missing from what is free; what others took is what remains of the difference.
        taken = max(0, device.held_memory_bytes() - self._held_before)
        free = device.available_memory_bytes()
        missing = self._need.wanted_bytes - taken
        if missing <= free.available_bytes + _TOLERANCE * self._need.wanted_bytes:
            return
        budget = free.available_bytes + taken
        raise InsufficientMemoryError(
            f"{self._path} needs {_megabytes(missing)} more of memory when {progress:.0%} of it are read, and "
            f"{_megabytes(free.available_bytes)} are free ({free.reason}): other programs took memory meanwhile",
            hint=ways_out(
                self._estimate,
                self._config,
                lambda need: need.wanted_bytes <= budget,
                weights=self._path,
                kernels=self._kernels,
            ),
        )

    def after_loading(self) -> None:
        """Look whether a context, full, has room.

        Raises:
            InsufficientMemoryError: It has not.
        """
        self._require(
            self._need.kv_bytes + self._need.compute_bytes,
            f"{self._path} is loaded, its context of {self._config.n_ctx:,} tokens",
            "Close other programs, or take a smaller n_ctx (--n-ctx N, or auto).",
        )

    def before_context(self, config: LoadConfig) -> None:
        """Look whether a KV cache has room.

        Args:
            config: n_ctx, kv_type and n_sessions of the context.

        Raises:
            InsufficientMemoryError: It has not.
        """
        self._require(
            self._need_of(config).kv_bytes,
            f"a context of {config.n_ctx:,} tokens",
            "Close other sessions or programs, or load with a smaller n_ctx.",
        )

    def batch_bytes(self, config: LoadConfig, n_tokens: int, n_past: int) -> int:
        """Return the bytes of activations of a batch; 0 where they are not worth a look.

        Args:
            config: Of the context.
            n_tokens: In the batch.
            n_past: Tokens before it.
        """
        if n_tokens < _FEW_TOKENS:
            return 0
        return self._need_of(replace(config, n_ctx=n_past + n_tokens, n_batch=n_tokens)).compute_bytes

    def before_batch(self, n_bytes: int) -> None:
        """Look whether activations have room.

        Args:
            n_bytes: Of them, beyond what batches before took.

        Raises:
            InsufficientMemoryError: They have not.
        """
        self._require(
            n_bytes,
            "the next part of the prompt",
            "Nothing of the conversation is lost. Close other programs and ask again, or begin a shorter conversation.",
        )

    def before_state(self, config: LoadConfig, n_tokens: int) -> None:
        """Look whether a copy of a KV cache has room.

        Args:
            config: Of the context.
            n_tokens: In the cache.

        Raises:
            InsufficientMemoryError: It has not.
        """
        if n_tokens < _FEW_TOKENS:
            return
        self._require(
            self._need_of(replace(config, n_ctx=n_tokens, n_sessions=1)).kv_bytes,
            f"a copy of the KV cache of {n_tokens:,} tokens",
            "Close other programs, and save again.",
        )

    def _need_of(self, config: LoadConfig) -> MemoryEstimate:
        need = self._estimate(config)
        assert need is not None, "Bug: an estimator that was made tells a need"
        return need

    def _require(self, n_bytes: int, what: str, hint: str) -> None:
        free = device.available_memory_bytes()
        if n_bytes > free.available_bytes + _TOLERANCE * self._need.wanted_bytes:
            raise InsufficientMemoryError(
                f"{what} needs {_megabytes(n_bytes)} of memory, and {_megabytes(free.available_bytes)} are free "
                f"({free.reason})",
                hint=hint,
            )


def memory_guard(path: Path, config: LoadConfig) -> MemoryGuard | None:
    """Return the guard of a GGUF file that is about to be loaded; None where nothing is known of its need.

    Args:
        path: The file. Of an exported ONNX folder the parts are not known while it is loaded.
        config: How, n_ctx a number.
    """
    if is_onnx(path):
        return None
    kernels = expected_kernels(config, path)
    estimate = memory_estimator(path, config, kernels=kernels)
    return None if estimate is None else MemoryGuard(path, config, estimate, kernels)


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.0f} MB"
