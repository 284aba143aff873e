"""llama.cpp's sampler chain, applied to the tokens that can matter."""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_edge.config import SamplingConfig
from qwen_edge.native.handles import NativeContext, NativeModel

# Source: include/llama.h, LLAMA_DEFAULT_SEED: draw a seed.
_RANDOM_SEED = 0xFFFFFFFF
# Source: include/llama.h, llama_token_data.
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
# Tokens this far below the best logit are left out when enough remain. Any value gives the same result; this one keeps
# some hundreds of Qwen's 151,936.
_NEAR_BEST = 14.0


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
        self._needed = _candidates_needed(config)
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

    def sample(self, context: NativeContext) -> int:
        """Return the next token, drawn from the logits of the context's last token, and remember it.

        Raises:
            ClosedError: The context is closed.
        """
        with context._lock:
            handle = context.handle
            assert self._free.alive, "Bug: sampler used after close"
            if self._needed is not None:
                logits = context.last_logits()
                near_best: NDArray[np.intp] = np.flatnonzero(logits >= logits.max() - _NEAR_BEST)
                if len(near_best) >= self._needed:
                    return self._sample_from(near_best, logits[near_best])
            return int(self._api.llama_sampler_sample(self._chain, handle, -1))

    def _sample_from(self, ids: NDArray[np.intp], logits: NDArray[np.float32]) -> int:
        """Apply the chain to some tokens, in the order of their ids as llama.cpp's own call does."""
        candidates = np.empty(len(ids), dtype=_CANDIDATE)
        candidates["id"] = ids
        candidates["logit"] = logits
        candidates["p"] = 0.0
        array = self._api.llama_token_data_array(
            data=candidates.ctypes.data_as(self._api.llama_token_data_p),
            size=len(ids),
            selected=-1,
            sorted=False,
        )
        self._api.llama_sampler_apply(self._chain, ctypes.byref(array))
        token = int(array.data[array.selected].id)
        self._api.llama_sampler_accept(self._chain, token)
        return token

    def close(self) -> None:
        """Free the chain."""
        self._free()


def _candidates_needed(config: SamplingConfig) -> int | None:
    """Return how many of the most likely tokens decide the result, or None when all may.

    The chain keeps the best k. A penalty that only lowers logits cannot lift a token past others, and at most
    penalty_last_n tokens are lowered, so the best k afterwards are among the best k + n before.
    """
    kept = 1 if config.temperature == 0.0 else config.top_k
    if kept == 0:
        return None
    if not config.has_penalties:
        return kept
    only_lowers = config.presence_penalty >= 0.0 and config.repetition_penalty >= 1.0
    return kept + config.penalty_last_n if only_lowers else None
