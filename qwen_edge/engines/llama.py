"""llama.cpp behind the seam."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qwen_edge import device
from qwen_edge.config import LoadConfig, SamplingConfig
from qwen_edge.engines.base import Context, Engine, ModelInfo, TokenConstraint
from qwen_edge.errors import ContextOverflowError
from qwen_edge.native import probe
from qwen_edge.native.handles import NativeContext, NativeModel, check_is_gguf
from qwen_edge.native.pooling import pooled_output
from qwen_edge.native.sampler import NativeSampler


class LlamaContext(Context):
    """A KV cache in llama.cpp, with the sampler chain of the reply in progress."""

    def __init__(self, model: NativeModel, config: LoadConfig, n_threads: int) -> None:
        self._native = NativeContext(model, config, n_threads)
        self._sampler: NativeSampler | None = None
        self.n_ctx = self._native.n_ctx
        self.n_batch = self._native.n_batch

    @property
    def n_past(self) -> int:
        """Tokens in the cache."""
        return self._native.n_past

    def append(self, tokens: Sequence[int], *, wants_logits: bool = True) -> None:
        """See Context.append."""
        self._native.append(tokens, wants_logits=wants_logits)

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
        if constraint is None:
            return self._sampler.sample(self._native)
        return self._sampler.sample_allowed(self._native, constraint)

    def cancel(self) -> None:
        """See Context.cancel."""
        self._native.cancel()

    def clear_cancel(self) -> None:
        """See Context.clear_cancel."""
        self._native.clear_cancel()

    def close(self) -> None:
        """See Context.close."""
        self._native.close()  # first: from here on nobody samples
        if self._sampler is not None:
            self._sampler.close()


class LlamaEngine(Engine):
    """A GGUF file loaded by llama.cpp on the CPU."""

    def __init__(self, path: Path, config: LoadConfig) -> None:
        """Load a file.

        Args:
            path: A GGUF file.
            config: How; with safe_kernels None the native library is probed in a child process the first time.

        Raises:
            ModelNotFoundError, GGUFError: The file or an adapter is missing or cannot be loaded.
            ConfigError: An adapter was made for another model.
            NativeMissingError: llama-cpp-python is not installed.
            NativeCrashError: The library dies on this machine whatever the kernels.
        """
        check_is_gguf(path)
        safe_kernels = config.safe_kernels
        if safe_kernels is None:
            verdict = probe.probe(path)
            safe_kernels = verdict.kernels == "safe"
            if safe_kernels:
                warnings.warn(verdict.warning(), probe.NativeFallbackWarning, stacklevel=2)
        self._config = config
        self._n_threads = config.n_threads or device.usable_cores()
        self._model = model = NativeModel(
            path, load_mode=config.load_mode, safe_kernels=safe_kernels, adapters=config.adapters
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
                "n_ctx": config.n_ctx,
                "n_batch": config.n_batch,
                "flash_attention": config.flash_attention,
                "kv_type": config.kv_type,
                "load_mode": config.load_mode,
                "kernels": "safe" if safe_kernels else "fast",
                "adapters": [{"path": str(each.path), "scale": each.scale} for each in config.adapters],
            },
        )

    def _special_texts(self) -> dict[str, str]:
        texts = {}
        for name in ("bos", "eos"):
            text = self._model.token_text(name)
            if text is not None:
                texts[f"{name}_token"] = text
        return texts

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
        return LlamaContext(self._model, self._config, self._n_threads)

    def score(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """See Engine.score."""
        if len(tokens) > self._config.n_ctx:
            raise ContextOverflowError(
                f"{len(tokens)} tokens to score do not fit in a context of {self._config.n_ctx}"
            )
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

    def pooled(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Return the embedding or the probabilities that a file with a pooling type makes of a text.

        See native.pooling.pooled_output, which the tokens, the result and the errors are those of.
        """
        return pooled_output(self._model, tokens, self._config, self._n_threads)

    def close(self) -> None:
        """See Engine.close."""
        self._model.close()
