"""Sampling in numpy, for engines that give logits and nothing else.

The steps and their order are those of SamplingConfig: penalties, top-k, top-p, min-p, temperature, draw. Where only the
best tokens can matter, no step looks at more than a superset of them; nothing sorts the vocabulary.
"""

from __future__ import annotations

import collections

import numpy as np
from numpy.typing import NDArray

from qwen_edge.candidates import candidates_needed, draw
from qwen_edge.config import SamplingConfig
from qwen_edge.engines.base import TokenConstraint

# How many of the likeliest tokens top-p looks at first; four times as many as long as they do not reach its share.
_FIRST_NUCLEUS = 256

Ids = NDArray[np.intp]
Logits = NDArray[np.float32]
Probabilities = NDArray[np.float64]


class NumpySampler:
    """The state of one reply: what was generated lately, and the random generator."""

    def __init__(self, config: SamplingConfig) -> None:
        """Begin a reply."""
        self._config = config
        self._needed = candidates_needed(config)
        self._recent: collections.deque[int] = collections.deque(maxlen=config.penalty_last_n)
        self._random = np.random.default_rng(config.seed)

    def sample(self, logits: Logits, constraint: TokenConstraint | None = None) -> int:
        """Return the next token and remember it.

        Args:
            logits: float32 [n_vocab]; not changed.
            constraint: Which tokens are allowed, None for all.
        """
        token = draw(logits, self._needed, self._draw_from, constraint)
        self._recent.append(token)
        return token

    def _draw_from(self, ids: Ids, logits: Logits) -> int:
        """Take all steps on some tokens, ids ascending; `logits` is a copy that may be changed."""
        config = self._config
        if config.has_penalties:
            self._penalise(ids, logits)
        if config.temperature == 0.0:
            return int(ids[np.argmax(logits)])
        kept, probabilities = chances(ids, logits, config)
        sums = np.cumsum(probabilities)
        place = int(np.searchsorted(sums, self._random.random() * sums[-1], side="right"))
        return int(kept[min(place, len(kept) - 1)])

    def _penalise(self, ids: Ids, logits: Logits) -> None:
        """Change the logits of what was generated lately. Source: llama_sampler_penalties_apply in llama.cpp."""
        recent = np.unique(np.fromiter(self._recent, np.intp))
        places = np.flatnonzero(np.isin(ids, recent, assume_unique=True))
        hit = logits[places]
        factor = np.float32(self._config.repetition_penalty)
        logits[places] = np.where(hit <= 0, hit * factor, hit / factor) - np.float32(
            self._config.presence_penalty
        )


def chances(ids: Ids, logits: Logits, config: SamplingConfig) -> tuple[Ids, Probabilities]:
    """Return the tokens that top-k, top-p and min-p leave, and with which weights one is drawn.

    Args:
        ids: Tokens, ascending.
        logits: Theirs, with penalties: float32 of the same length.
        config: With a temperature above 0.

    Returns:
        ids, and float64 weights at the temperature, which need not sum to 1. Equal logits are told apart by their id,
        the lower first.
    """
    if 0 < config.top_k < len(ids):
        best = _best(logits, config.top_k)
        ids, logits = ids[best], logits[best]
    if config.top_p < 1.0:
        nucleus = _nucleus(logits, config.top_p)
        ids, logits = ids[nucleus], logits[nucleus]
    shifted = logits.astype(np.float64) - float(logits.max())
    if config.min_p > 0.0:
        likely = shifted >= np.log(config.min_p)
        ids, shifted = ids[likely], shifted[likely]
    return ids, np.exp(shifted / config.temperature)


def _best(logits: Logits, count: int) -> Ids:
    """Return the places of the `count` largest, the largest first; of equal ones the earlier first."""
    # All that equal the last one kept: which of them is kept is decided by their place.
    bound = np.partition(logits, len(logits) - count)[len(logits) - count]
    places = np.flatnonzero(logits >= bound)
    return places[np.argsort(-logits[places], kind="stable")[:count]]


def _nucleus(logits: Logits, share: float) -> Ids:
    """Return the places of the fewest likeliest that together reach a share of the probability, at least one."""
    weights = np.exp(logits.astype(np.float64) - float(logits.max()))
    wanted = share * float(weights.sum())
    count = min(_FIRST_NUCLEUS, len(logits))
    while True:
        places = _best(logits, count)
        sums = np.cumsum(weights[places])
        if sums[-1] >= wanted or count == len(logits):
            return places[: int(np.searchsorted(sums, wanted, side="left")) + 1]
        count = min(4 * count, len(logits))
