"""llama.cpp's sampler chain, applied to the tokens that can matter."""

from __future__ import annotations

import ctypes
import threading
import weakref
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qwen_edge.candidates import candidates_needed, draw
from qwen_edge.config import SamplingConfig
from qwen_edge.native.handles import NativeModel

if TYPE_CHECKING:
    from qwen_edge.engines.base import TokenConstraint

# Source: include/llama.h, LLAMA_DEFAULT_SEED: draw a seed.
_RANDOM_SEED = 0xFFFFFFFF
# Source: include/llama.h, llama_token_data.
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class LogitsOwner(Protocol):
    """A context as far as sampling goes."""

    _lock: threading.RLock

    @property
    def handle(self) -> Any:
        """Raises ClosedError after close()."""

    def last_logits(self) -> NDArray[np.float32]:
        """Return the logits of the last token: float32 [n_vocab]."""


class NativeSampler:
    """A native sampler chain for one reply: penalties, top-k, top-p, min-p, temperature, draw; greedy at temperature 0.

    llama.cpp's own sampling call copies the whole vocabulary into an array of candidates, 1.8 MB a token for Qwen.
    Where the chain keeps only the best k anyhow, the array is made of a superset of those instead.
    """

    def __init__(self, model: NativeModel, config: SamplingConfig) -> None:
        """Build the chain."""
        self._api = api = model._api
        self._chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
        self._free = weakref.finalize(self, api.llama_sampler_free, self._chain)
        self._needed = candidates_needed(config)
        self._candidates = np.zeros(model.n_vocab, dtype=_CANDIDATE)
        self._array = api.llama_token_data_array(data=self._candidates.ctypes.data_as(api.llama_token_data_p))
        if config.has_penalties:
            if self._needed is not None:
                self._add(api.llama_sampler_init_top_k(self._needed))
            self._add(
                api.llama_sampler_init_penalties(
                    model.n_vocab,
                    config.penalty_last_n,
                    config.repetition_penalty,
                    0.0,
                    config.presence_penalty,
                )
            )
        if config.temperature == 0.0:
            self._add(api.llama_sampler_init_greedy())
            return
        if config.top_k > 0:
            self._add(api.llama_sampler_init_top_k(config.top_k))
        if config.top_p < 1.0:
            self._add(api.llama_sampler_init_top_p(config.top_p, 1))
        if config.min_p > 0.0:
            self._add(api.llama_sampler_init_min_p(config.min_p, 1))
        self._add(api.llama_sampler_init_temp(config.temperature))
        self._add(api.llama_sampler_init_dist(_RANDOM_SEED if config.seed is None else config.seed))

    def _add(self, sampler: Any) -> None:
        self._api.llama_sampler_chain_add(self._chain, sampler)

    def sample(self, context: LogitsOwner, constraint: TokenConstraint | None = None) -> int:
        """Return the next token, drawn from the logits of the context's last token, and remember it.

        A model that knows what is wanted draws an allowed token anyhow, so the mask is made only after a refusal. It
        selects candidates; the logits stay what the model computed. The chain remembers the token returned, not the
        refused one (whose draw has used the random generator).

        Args:
            context: Whose logits.
            constraint: Which tokens are allowed, None for all.

        Raises:
            ClosedError: The context is closed.
        """
        with context._lock:
            assert context.handle, "Bug: handle raises when closed"
            assert self._free.alive, "Bug: sampler used after close"
            token = draw(context.last_logits(), self._needed, self._draw_from, constraint)
            self._api.llama_sampler_accept(self._chain, token)
            return token

    def _draw_from(self, ids: NDArray[np.intp], logits: NDArray[np.float32]) -> int:
        """Apply the chain to some tokens, in the order of their ids as llama.cpp's own call does."""
        count = len(ids)
        candidates = self._candidates[:count]
        candidates["id"] = ids
        candidates["logit"] = logits
        array = self._array
        array.size, array.selected, array.sorted = count, -1, False
        self._api.llama_sampler_apply(self._chain, ctypes.byref(array))
        return int(array.data[array.selected].id)

    def close(self) -> None:
        """Free the chain."""
        self._free()
