"""llama.cpp behind the seam."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qwen_edge import device
from qwen_edge.config import LoadConfig, SamplingConfig
from qwen_edge.digests import FileIdentity
from qwen_edge.engines.base import Context, Engine, MemoryWatch, ModelInfo, PoolingInfo, TokenConstraint
from qwen_edge.engines.llama_shared import SharedCache
from qwen_edge.errors import ConfigError, ContextOverflowError
from qwen_edge.gguf_check import check_model_file
from qwen_edge.native import library, probe, state
from qwen_edge.native.handles import NativeContext, NativeModel, check_is_gguf
from qwen_edge.native.pooling import pooled_output, pooled_size, pooling_type
from qwen_edge.native.sampler import NativeSampler

# Source: enum llama_pooling_type in include/llama.h.
_POOLING_KINDS: dict[int, Literal["mean", "cls", "last", "rank"]] = {
    1: "mean",
    2: "cls",
    3: "last",
    4: "rank",
}


class LlamaContext(Context):
    """A KV cache in llama.cpp, with the sampler chain of the reply in progress."""

    def __init__(
        self, model: NativeModel, config: LoadConfig, n_threads: int, watch: MemoryWatch | None = None
    ) -> None:
        self._native = NativeContext(model, config, n_threads)
        self._config = config
        self._watch = watch
        self._batch_bytes = 0  # activations that batches so far have taken
        self._largest_batch = 0, 0  # most tokens, and the last one's place
        self._sampler: NativeSampler | None = None
        self.n_ctx = self._native.n_ctx
        self.n_batch = self._native.n_batch

    @property
    def n_past(self) -> int:
        """Tokens in the cache."""
        return self._native.n_past

    def append(self, tokens: Sequence[int], *, wants_logits: bool = True) -> None:
        """See Context.append."""
        if self._watch is not None and len(tokens) > 1:
            self._ask_for_batch(self._watch, len(tokens))
        self._native.append(tokens, wants_logits=wants_logits)

    def _ask_for_batch(self, watch: MemoryWatch, n_tokens: int) -> None:
        """Ask for the activations of a batch that is larger than all before, or lies further behind."""
        n_most, end = self._largest_batch
        if n_tokens <= n_most and self.n_past + n_tokens <= end:
            return
        n_bytes = watch.batch_bytes(self._config, n_tokens, self.n_past)
        if n_bytes > self._batch_bytes:
            watch.before_batch(n_bytes - self._batch_bytes)
            self._batch_bytes = n_bytes
        self._largest_batch = max(n_tokens, n_most), max(self.n_past + n_tokens, end)

    @property
    def most_kept_logits(self) -> int:
        """See Context.most_kept_logits."""
        return self._native.most_kept_logits

    def append_all(self, tokens: Sequence[int]) -> None:
        """See Context.append_all."""
        self._native.append(tokens, keeps_all_logits=True)
        self._native.select(0)

    def select(self, index: int) -> None:
        """See Context.select."""
        self._native.select(index)

    def rewind(self, n_tokens: int) -> None:
        """See Context.rewind."""
        self._native.rewind(n_tokens)

    def start_sampling(self, config: SamplingConfig) -> None:
        """See Context.start_sampling."""
        if self._sampler is not None:
            self._sampler.close()
        self._sampler = NativeSampler(self._native.model, config)

    def sample(self, constraint: TokenConstraint | None = None) -> int:
        """See Context.sample."""
        assert self._sampler is not None, "Bug: sample() before start_sampling()"
        return self._sampler.sample(self._native, constraint)

    def logits(self) -> NDArray[np.float32]:
        """See Context.logits."""
        return self._native.last_logits().copy()

    def forbid(self, tokens: Sequence[int]) -> None:
        """See Context.forbid: the logits are changed in place."""
        self._native.last_logits()[list(tokens)] = -np.inf

    def cancel(self) -> None:
        """See Context.cancel."""
        self._native.cancel()

    def clear_cancel(self) -> None:
        """See Context.clear_cancel."""
        self._native.clear_cancel()

    def save_state(self) -> NDArray[np.uint8]:
        """See Context.save_state."""
        if self._watch is not None:
            self._watch.before_state(self._config, self.n_past)
        return state.save_state(self._native)

    def load_state(self, data: Any, n_tokens: int) -> None:
        """See Context.load_state."""
        state.load_state(self._native, data, n_tokens)

    def close(self) -> None:
        """See Context.close."""
        self._native.close()  # first: from here on nobody samples
        if self._sampler is not None:
            self._sampler.close()


class LlamaEngine(Engine):
    """A GGUF file loaded by llama.cpp on the CPU."""

    def __init__(self, path: Path, config: LoadConfig, *, watch: MemoryWatch | None = None) -> None:
        """Load a file.

        Args:
            path: A GGUF file.
            config: How; with safe_kernels None the native library is probed in a child process the first time.
            watch: Asked before each step that takes memory; None takes it unasked.

        Raises:
            ModelNotFoundError, GGUFError: The file or an adapter is missing or cannot be loaded.
            ConfigError: An adapter was made for another model, or a setting is for ONNX models.
            NativeMissingError: llama.cpp is not built here.
            NativeCrashError: The library dies on this machine whatever the kernels.
        """
        check_is_gguf(path)
        if config.provider != "cpu":
            raise ConfigError(
                f"provider={config.provider!r} does not apply to a GGUF file: llama.cpp runs it on the CPU",
                hint="Leave provider out, or export the checkpoint to ONNX.",
            )
        # Of the files as they are now: what stands there later is not what is in memory.
        self._weights = FileIdentity.of_parts(path)
        safe_kernels = config.safe_kernels
        if safe_kernels is None:
            verdict = probe.probe(path)
            safe_kernels = verdict.kernels == "safe"
            if safe_kernels:
                warnings.warn(verdict.warning(), probe.NativeFallbackWarning, stacklevel=2)
        else:
            check_model_file(path)
        self._config = config
        self._adapters = [FileIdentity.of_parts(each.path) for each in config.adapters]
        self._n_threads = config.n_threads or device.default_threads()
        self._shared: SharedCache | None = None
        self._watch = watch
        self._model = model = NativeModel(
            path,
            load_mode=config.load_mode,
            safe_kernels=safe_kernels,
            adapters=config.adapters,
            on_progress=None if watch is None else watch.before_weights,
        )
        # Qwen's tokenizer composes characters first (its tokenizer.json has the normalizer NFC); llama.cpp does not.
        self._takes_nfc = model.metadata("tokenizer.ggml.pre") == "qwen2"
        self.info = ModelInfo(
            path=path,
            engine="llama.cpp",
            architecture=model.metadata("general.architecture") or "",
            name=model.metadata("general.name") or "",
            chat_template=model.metadata("tokenizer.chat_template") or "",
            special_texts=self._special_texts(),
            n_vocab=model.n_vocab,
            n_params=model.n_params,
            n_ctx_train=model.n_ctx_train,
            weights_bytes=model.weights_bytes,
            settings={
                "threads": self._n_threads,
                "prefill_threads": config.n_prefill_threads or self._n_threads,
                "affinity": config.affinity,
                "n_ctx": config.n_ctx,
                "n_batch": config.n_batch,
                "n_sessions": config.n_sessions,
                "flash_attention": config.flash_attention,
                "kv_type": config.kv_type,
                "load_mode": config.load_mode,
                "prefix_cache": config.prefix_cache,
                "speculation": config.speculation,
                "kernels": "safe" if safe_kernels else "fast",
                "adapters": [{"path": str(each.path), "scale": each.scale} for each in config.adapters],
            },
            pooling=self._pooling(),
        )

    def _special_texts(self) -> dict[str, str]:
        texts = {}
        for name in ("bos", "eos"):
            text = self._model.token_text(name)
            if text is not None:
                texts[f"{name}_token"] = text
        return texts

    def _pooling(self) -> PoolingInfo | None:
        kind = _POOLING_KINDS.get(pooling_type(self._model))
        if kind is None:
            return None
        return PoolingInfo(
            kind=kind,
            size=pooled_size(self._model),
            end_token=self._model.appended_token(),
            rerank_template=self._model.metadata("tokenizer.chat_template.rerank") or "",
        )

    def tokenize(self, text: str, *, parse_special: bool = True) -> list[int]:
        """See Engine.tokenize."""
        if self._takes_nfc:
            text = unicodedata.normalize("NFC", text)
        return self._model.tokenize(text, parse_special=parse_special)

    def token_bytes(self, token: int) -> bytes:
        """See Engine.token_bytes."""
        return self._model.token_bytes(token)

    def is_end(self, token: int) -> bool:
        """See Engine.is_end."""
        return self._model.is_end(token)

    def new_context(self) -> Context:
        """See Engine.new_context."""
        with self._model.lock:
            if self._watch is not None and self._shared is None:
                self._watch.before_context(self._config)
            if self._config.n_sessions == 1:
                return LlamaContext(self._model, self._config, self._n_threads, self._watch)
            if self._shared is None:
                self._shared = SharedCache(self._model, self._config, self._n_threads)
            return self._shared.new_context()

    def use_for_contexts(self, config: LoadConfig) -> None:
        """Let the contexts that are made from now on be others; the weights stay. For trials of settings.

        Args:
            config: Threads, affinity, n_ctx, n_batch, n_sessions, flash_attention and kv_type are used. `info.settings`
                goes on telling what the engine was loaded with.
        """
        with self._model.lock:
            self._config = config
            self._n_threads = config.n_threads or device.default_threads()
            self._shared = None

    def score(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """See Engine.score."""
        if len(tokens) > self._config.n_ctx:
            raise ContextOverflowError(
                f"{len(tokens)} tokens to score do not fit in a context of {self._config.n_ctx}"
            )
        with self._model.lock:
            context = NativeContext(self._model, self._config, self._n_threads, logits_for_all=True)
        try:
            logits = np.empty((len(tokens), self.info.n_vocab), dtype=np.float32)
            for start in range(0, len(tokens), context.n_batch):
                part = tokens[start : start + context.n_batch]
                context.append(part)
                context.copy_logits(logits[start : start + len(part)])
            return logits
        finally:
            context.close()

    def pooled(
        self, texts: Sequence[Sequence[int]], *, is_cancelled: Callable[[], bool] = lambda: False
    ) -> NDArray[np.float32]:
        """See Engine.pooled."""
        return pooled_output(self._model, texts, self._config, self._n_threads, is_cancelled)

    def state_identity(self) -> dict[str, Any] | None:
        """See Engine.state_identity.

        n_ctx, n_sessions and the number of threads are not in it: the form of a state does not depend on them.
        """
        settings = self.info.settings
        return {
            "engine": self.info.engine,
            "build": [library.build_facts()["version"], library.library_fingerprint(), library.system_info()],
            "weights": self._weights.to_json(),
            "adapters": [
                [identity.to_json(), each.scale]
                for identity, each in zip(self._adapters, self._config.adapters, strict=True)
            ],
            **{name: settings[name] for name in ("kv_type", "flash_attention", "kernels")},
        }

    def close(self) -> None:
        """See Engine.close."""
        self._model.close()
