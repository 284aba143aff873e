"""An exported ONNX folder behind the seam: the engine that needs no compiler."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_edge import device
from qwen_edge.config import LoadConfig
from qwen_edge.digests import FileIdentity
from qwen_edge.engines import onnx_runtime
from qwen_edge.engines.base import Context, Engine, ModelInfo
from qwen_edge.engines.onnx_cache import OnnxCache
from qwen_edge.engines.onnx_contexts import OnnxContext, SharedOnnxCache
from qwen_edge.engines.onnx_folder import read_folder
from qwen_edge.engines.onnx_tokenizer import shared_tokenizer
from qwen_edge.errors import ClosedError, ConfigError, ContextOverflowError, NativeError

# Logits of so many tokens are made at a time when all are wanted: 39 MB at Qwen's vocabulary, in activations alone.
_SCORE_ROWS = 64


class OnnxEngine(Engine):
    """A folder that `export_onnx` made, run by ONNX Runtime."""

    def __init__(self, path: Path, config: LoadConfig) -> None:
        """Load a folder.

        Args:
            path: The folder, or the graph in it.
            config: How. What only llama.cpp has is refused.

        Raises:
            ModelNotFoundError, FormatError: A file is missing or damaged.
            UnsupportedError: The graph was not exported by qwen-edge, or is newer than ONNX Runtime.
            ConfigError: A setting that does not apply, or a provider that is not there.
            MissingExtraError: onnxruntime or tokenizers is not installed.
        """
        _refuse_foreign(config)
        folder = read_folder(path)
        if config.n_ctx > folder.n_ctx_train:
            raise ConfigError(
                f"n_ctx is {config.n_ctx}, and {folder.graph.path} has positions for {folder.n_ctx_train} tokens",
                hint=f"Load with n_ctx={folder.n_ctx_train} or less.",
            )
        # Of the files as they are now: what stands there later is not what is in memory.
        self._weights = FileIdentity(
            tuple(facts for file in folder.files for facts in FileIdentity.of_parts(file).facts)
        )
        self._config = config
        self._weights_bytes = folder.weights_bytes
        n_threads = config.n_threads or device.default_threads()
        self._tokenizer = shared_tokenizer(folder.tokenizer_path, folder.end_tokens)
        graph = onnx_runtime.OnnxGraph(folder.graph.path, n_threads=n_threads, provider=config.provider)
        self._graph: onnx_runtime.OnnxGraph | None = graph
        self._shared: SharedOnnxCache | None = None
        self._contexts: weakref.WeakSet[OnnxContext] = weakref.WeakSet()
        self._lock = threading.RLock()
        self.info = ModelInfo(
            path=path,
            engine="onnxruntime",
            architecture=folder.architecture,
            name=folder.name,
            chat_template=folder.chat_template,
            special_texts=folder.special_texts,
            n_vocab=graph.n_vocab,
            n_params=folder.n_params,
            n_ctx_train=folder.n_ctx_train,
            weights_bytes=folder.weights_bytes,
            settings={
                "threads": n_threads,
                "n_ctx": config.n_ctx,
                "n_batch": config.n_batch,
                "n_sessions": config.n_sessions,
                "kv_type": "f32",
                "prefix_cache": config.prefix_cache,
                "speculation": config.speculation,
                "provider": config.provider,
                "nodes": graph.nodes,
                "precision": folder.precision,
                "onnxruntime": onnx_runtime.version(),
            },
        )

    def tokenize(self, text: str, *, parse_special: bool = True) -> list[int]:
        """See Engine.tokenize."""
        return self._tokenizer.tokenize(text, parse_special=parse_special)

    def token_bytes(self, token: int) -> bytes:
        """See Engine.token_bytes."""
        return self._tokenizer.token_bytes(token)

    def is_end(self, token: int) -> bool:
        """See Engine.is_end."""
        return self._tokenizer.is_end(token)

    def new_context(self) -> Context:
        """See Engine.new_context."""
        config = self._config
        with self._lock:
            if config.n_sessions == 1:
                context = OnnxContext(self._new_cache(1, config.n_ctx, min(config.n_batch, config.n_ctx)))
                self._contexts.add(context)
                return context
            if self._shared is None:
                n_batch = max(min(config.n_batch, config.n_ctx), config.n_sessions)
                self._shared = SharedOnnxCache(
                    self._new_cache(config.n_sessions, config.n_ctx, n_batch), config.n_sessions
                )
            shared = self._shared.new_context()
            self._contexts.add(shared)
            return shared

    def use_for_contexts(self, config: LoadConfig) -> None:
        """Let the contexts that are made from now on be others; the weights stay. For trials of settings.

        Args:
            config: n_ctx, n_batch and n_sessions are used. `info.settings` goes on telling what the engine was loaded
                with, and so do its threads.
        """
        with self._lock:
            self._config = config
            self._shared = None

    def _new_cache(self, n_rows: int, n_ctx: int, n_batch: int) -> OnnxCache:
        if self._graph is None:
            raise ClosedError("the model is closed")
        try:
            return OnnxCache(
                self._graph, n_rows=n_rows, n_ctx=n_ctx, n_batch=n_batch, weights_bytes=self._weights_bytes
            )
        except MemoryError as error:
            raise NativeError(
                f"no memory for a KV cache of {n_rows} x {n_ctx} tokens: {error}",
                hint="A smaller n_ctx or n_sessions needs less memory.",
            ) from error

    def score(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """See Engine.score."""
        if len(tokens) > self._config.n_ctx:
            raise ContextOverflowError(
                f"{len(tokens)} tokens to score do not fit in a context of {self._config.n_ctx}"
            )
        with self._lock:
            cache = self._new_cache(1, len(tokens), _SCORE_ROWS)
        logits = np.empty((len(tokens), self.info.n_vocab), np.float32)
        try:
            for start in range(0, len(tokens), _SCORE_ROWS):
                part = tokens[start : start + _SCORE_ROWS]
                cache.score(part, logits[start : start + len(part)])
        finally:
            cache.close()
        return logits

    def state_identity(self) -> dict[str, Any]:
        """See Engine.state_identity.

        Threads, n_ctx, n_batch and n_sessions are not in it: the form of a state does not depend on them.
        """
        return {
            "engine": self.info.engine,
            **{name: self.info.settings[name] for name in ("onnxruntime", "provider")},
            "weights": self._weights.to_json(),
        }

    def close(self) -> None:
        """See Engine.close."""
        with self._lock:
            graph, self._graph = self._graph, None
            contexts = list(self._contexts)
            shared, self._shared = self._shared, None
        for context in contexts:
            context.close()
        if shared is not None:
            shared.cache.close()
        if graph is not None:
            graph.close()


def _refuse_foreign(config: LoadConfig) -> None:
    """Refuse what is llama.cpp's.

    Raises:
        ConfigError: A setting is not at its default and means nothing here.
    """
    problems = {
        "adapters": (bool(config.adapters), "Merge them when exporting: qwen-edge convert --adapter."),
        f"kv_type={config.kv_type!r}": (
            config.kv_type not in ("f16", "f32"),
            "Its KV cache is always F32; leave kv_type out.",
        ),
        'flash_attention="on"': (config.flash_attention == "on", "Leave flash_attention out."),
        'load_mode="mmap"': (config.load_mode == "mmap", "Leave load_mode out."),
        "safe_kernels=True": (bool(config.safe_kernels), "Leave safe_kernels out."),
        "n_prefill_threads": (
            config.n_prefill_threads is not None,
            "Use n_threads, for prompts and answers alike.",
        ),
        'affinity="cores"': (config.affinity != "none", "Leave affinity out."),
    }
    for name, (is_asked, hint) in problems.items():
        if is_asked:
            raise ConfigError(
                f"{name} does not apply to an ONNX model: it is a setting of llama.cpp's", hint=hint
            )
