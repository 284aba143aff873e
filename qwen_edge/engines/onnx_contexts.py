"""Contexts of the ONNX engine: alone with a cache, or with a row of one that several sessions share."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_edge.config import SamplingConfig
from qwen_edge.engines.base import Context, TokenConstraint
from qwen_edge.engines.batching import Places, Request, Scheduler
from qwen_edge.engines.numpy_sampler import NumpySampler
from qwen_edge.engines.onnx_cache import OnnxCache, Stopper
from qwen_edge.errors import CancelledError, ClosedError, ContextOverflowError, NativeError
from qwen_edge.native.batch import Part

# Room for a token and what is proposed behind it; 19 MB at Qwen's vocabulary, while a reply speculates.
_MOST_KEPT_LOGITS = 32


class OnnxContext(Context):
    """A row of a cache, with the logits of its last token and the sampler of the reply in progress."""

    def __init__(self, cache: OnnxCache, row: int = 0) -> None:
        """Take a row; the whole cache is this context's own, and closed with it."""
        self._cache = cache
        self._row = row
        self._last = np.zeros(cache.n_vocab, np.float32)  # one place, so that it is bound once
        self._rows = self._last[np.newaxis]  # of the last append_all()
        self._logits = self._last  # those that are sampled from
        self._sampler: NumpySampler | None = None
        self._stopper = Stopper()
        self._is_closed = False
        self._lock = threading.RLock()
        self.n_ctx = cache.n_ctx
        self.n_batch = cache.n_batch

    @property
    def n_past(self) -> int:
        """Tokens in the cache."""
        return self._cache.length(self._row)

    def append(self, tokens: Sequence[int], *, wants_logits: bool = True) -> None:
        """See Context.append."""
        assert 0 < len(tokens) <= self.n_batch, f"Bug: {len(tokens)} tokens for a batch of {self.n_batch}"
        self._check_room(tokens)
        self._guarded(tokens, self._last if wants_logits else None)
        self._logits = self._last

    @property
    def most_kept_logits(self) -> int:
        """See Context.most_kept_logits."""
        return min(self.n_batch, _MOST_KEPT_LOGITS)

    def append_all(self, tokens: Sequence[int]) -> None:
        """See Context.append_all."""
        self._check_room(tokens)
        rows = np.empty((len(tokens), self._cache.n_vocab), np.float32)
        self._guarded(tokens, rows)
        self._rows, self._logits = rows, rows[0]

    def select(self, index: int) -> None:
        """See Context.select."""
        self._logits = self._rows[index]

    def _check_room(self, tokens: Sequence[int]) -> None:
        wanted = self.n_past + len(tokens)
        if wanted > self.n_ctx:
            raise ContextOverflowError(
                f"{self.n_past} + {len(tokens)} tokens do not fit in a context of {self.n_ctx}",
                hint=f"Load with a larger n_ctx (at least {wanted}) or shorten the conversation.",
            )

    def _guarded(self, tokens: Sequence[int], logits: NDArray[np.float32] | None) -> None:
        """Evaluate tokens; whatever happens, the cache is as before or has all of them."""
        before = self.n_past
        with self._lock:
            self._check_open()
            try:
                self._evaluate(tokens, logits)
            except BaseException:
                self._cache.rewind(self._row, before)
                raise

    def _evaluate(self, tokens: Sequence[int], logits: NDArray[np.float32] | None) -> None:
        try:
            self._cache.evaluate([Part(self._row, self.n_past, tokens, logits)], self._stopper.begin)
        except NativeError:
            if self._stopper.is_set:
                raise CancelledError("cancelled during evaluation") from None
            raise

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClosedError("the session's context is closed")
        self._cache.check_open()

    def rewind(self, n_tokens: int) -> None:
        """See Context.rewind."""
        assert 0 <= n_tokens <= self.n_past, f"Bug: rewind to {n_tokens} of {self.n_past}"
        with self._lock:
            self._check_open()
            self._cache.rewind(self._row, n_tokens)

    def start_sampling(self, config: SamplingConfig) -> None:
        """See Context.start_sampling."""
        self._sampler = NumpySampler(config)

    def sample(self, constraint: TokenConstraint | None = None) -> int:
        """See Context.sample."""
        assert self._sampler is not None, "Bug: sample() before start_sampling()"
        with self._lock:
            self._check_open()
            return self._sampler.sample(self._logits, constraint)

    def logits(self) -> NDArray[np.float32]:
        """See Context.logits."""
        return self._logits.copy()

    def forbid(self, tokens: Sequence[int]) -> None:
        """See Context.forbid: the context's own copy is changed."""
        self._logits[list(tokens)] = -np.inf

    def cancel(self) -> None:
        """See Context.cancel."""
        self._stopper.stop()

    def clear_cancel(self) -> None:
        """See Context.clear_cancel."""
        self._stopper = Stopper()

    def save_state(self) -> NDArray[np.uint8]:
        """See Context.save_state."""
        with self._lock:
            self._check_open()
            return self._cache.save(self._row)

    def load_state(self, data: Any, n_tokens: int) -> None:
        """See Context.load_state."""
        with self._lock:
            self._check_open()
            self._cache.load(self._row, data, n_tokens)

    def close(self) -> None:
        """See Context.close."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._release()

    def _release(self) -> None:
        self._cache.close()


class SharedOnnxContext(OnnxContext):
    """A row of a cache that others have rows of too, evaluated together with theirs."""

    def __init__(self, shared: SharedOnnxCache, row: int) -> None:
        """Made by SharedOnnxCache.new_context()."""
        super().__init__(shared.cache, row)
        self._shared = shared

    @property
    def most_kept_logits(self) -> int:
        """See Context.most_kept_logits: the calls are those of all rows, each with its last token's logits."""
        return 0

    def _evaluate(self, tokens: Sequence[int], logits: NDArray[np.float32] | None) -> None:
        request = Request(self._row, self.n_past, tuple(tokens), logits, lambda: self._stopper.is_set)
        self._shared.scheduler.run(request)

    def cancel(self) -> None:
        """See Context.cancel: takes effect at the end of the call in flight, which others take part in."""
        super().cancel()
        self._shared.scheduler.wake()

    def _release(self) -> None:
        self._shared.scheduler.forget(self._row)
        self._shared.give_back(self._row)


class SharedOnnxCache:
    """The rows of several sessions, and which of them are taken."""

    def __init__(self, cache: OnnxCache, n_sessions: int) -> None:
        """Take over a cache with so many rows."""
        self.cache = cache
        self.scheduler = Scheduler(cache)
        self._places = Places(n_sessions)

    def new_context(self) -> SharedOnnxContext:
        """Return the context of one more session.

        Raises:
            ConfigError: All are taken.
        """
        return SharedOnnxContext(self, self._places.take())

    def give_back(self, row: int) -> None:
        """Empty a row for the next session."""
        self.cache.rewind(row, 0)
        self._places.give_back(row)
