"""Contexts of several sessions in one KV cache of llama.cpp, brought together by the scheduler."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_edge.config import LoadConfig, SamplingConfig
from qwen_edge.engines.base import Context, TokenConstraint
from qwen_edge.engines.batching import Places, Request, Scheduler
from qwen_edge.errors import ClosedError, ContextOverflowError
from qwen_edge.native import state
from qwen_edge.native.batch import NativeBatchContext
from qwen_edge.native.handles import NativeModel
from qwen_edge.native.sampler import NativeSampler


class SharedCache:
    """The KV cache, and which parts of it are taken."""

    def __init__(self, model: NativeModel, config: LoadConfig, n_threads: int) -> None:
        """Allocate room for config.n_sessions sessions.

        Raises:
            NativeError: llama.cpp refuses; most often memory.
        """
        self.native = NativeBatchContext(model, config, n_threads, config.n_sessions)
        self.scheduler = Scheduler(self.native)
        self._places = Places(config.n_sessions)

    def new_context(self) -> SharedContext:
        """Return the context of one more session.

        Raises:
            ConfigError: All are taken.
        """
        return SharedContext(self, self._places.take())

    def give_back(self, sequence: int) -> None:
        """Empty a part for the next session."""
        try:
            self.native.rewind(sequence, 0)
        except ClosedError:
            return  # the model was closed before its session
        self._places.give_back(sequence)


class SharedContext(Context):
    """One session's part of the cache."""

    def __init__(self, cache: SharedCache, sequence: int) -> None:
        """Made by SharedCache.new_context()."""
        self._cache: SharedCache | None = cache
        self._native = cache.native
        self._scheduler = cache.scheduler
        self._sequence = sequence
        self._n_past = 0
        self._is_cancelled = False
        self._sampler: NativeSampler | None = None
        self._logits = np.empty(self._native.n_vocab, np.float32)
        self._lock = threading.RLock()
        self.n_ctx = self._native.n_ctx
        self.n_batch = self._native.n_batch

    @property
    def n_past(self) -> int:
        """Tokens in the cache."""
        return self._n_past

    @property
    def handle(self) -> Any:
        """The native pointer.

        Raises:
            ClosedError: After close().
        """
        if self._cache is None:
            raise ClosedError("the session's context is closed")
        return self._native.handle

    def append(self, tokens: Sequence[int], *, wants_logits: bool = True) -> None:
        """See Context.append: waits for a call that others take part in."""
        assert 0 < len(tokens) <= self.n_batch, f"Bug: {len(tokens)} tokens for a batch of {self.n_batch}"
        if self.n_past + len(tokens) > self.n_ctx:
            raise ContextOverflowError(
                f"{self.n_past} + {len(tokens)} tokens do not fit in a context of {self.n_ctx}",
                hint=f"Load with a larger n_ctx (at least {self.n_past + len(tokens)}) or shorten the conversation.",
            )
        with self._lock:
            assert self.handle, "Bug: handle raises when closed"
            request = Request(
                self._sequence,
                self.n_past,
                tuple(tokens),
                self._logits if wants_logits else None,
                lambda: self._is_cancelled,
            )
            try:
                self._scheduler.run(request)
            except BaseException:
                self._native.rewind(self._sequence, self.n_past)
                raise
            self._n_past += len(tokens)

    def rewind(self, n_tokens: int) -> None:
        """See Context.rewind."""
        assert 0 <= n_tokens <= self.n_past, f"Bug: rewind to {n_tokens} of {self.n_past}"
        with self._lock:
            assert self.handle, "Bug: handle raises when closed"
            self._n_past = self._native.rewind(self._sequence, n_tokens)

    def start_sampling(self, config: SamplingConfig) -> None:
        """See Context.start_sampling."""
        if self._sampler is not None:
            self._sampler.close()
        self._sampler = NativeSampler(self._native.model, config)

    def last_logits(self) -> NDArray[np.float32]:
        """Return the logits of the last token: float32 [n_vocab], this session's own copy."""
        return self._logits

    def logits(self) -> NDArray[np.float32]:
        """See Context.logits."""
        return self._logits.copy()

    def forbid(self, tokens: Sequence[int]) -> None:
        """See Context.forbid: this session's copy is changed."""
        self._logits[list(tokens)] = -np.inf

    def sample(self, constraint: TokenConstraint | None = None) -> int:
        """See Context.sample."""
        assert self._sampler is not None, "Bug: sample() before start_sampling()"
        return self._sampler.sample(self, constraint)

    def save_state(self) -> NDArray[np.uint8]:
        """See Context.save_state: waits for the call that others are in."""
        with self._lock:
            self.rewind(self.n_past)  # drops what an interrupted call may have left behind
            return state.save_sequence(self._native, self._sequence, self.n_past)

    def load_state(self, data: Any, n_tokens: int) -> None:
        """See Context.load_state: waits for the call that others are in, and leaves their parts alone."""
        with self._lock:
            assert self.handle, "Bug: handle raises when closed"
            self._n_past = 0
            state.load_sequence(self._native, self._sequence, data, n_tokens)
            self._n_past = n_tokens

    def cancel(self) -> None:
        """See Context.cancel: takes effect at the end of the call in flight."""
        self._is_cancelled = True
        self._scheduler.wake()

    def clear_cancel(self) -> None:
        """See Context.clear_cancel."""
        self._is_cancelled = False

    def close(self) -> None:
        """See Context.close."""
        with self._lock:
            cache, self._cache = self._cache, None
            if cache is not None:
                self._scheduler.forget(self._sequence)
                cache.give_back(self._sequence)
                if self._sampler is not None:
                    self._sampler.close()
