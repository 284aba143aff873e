"""Which of a vocabulary's logits can decide the next token: what both samplers begin with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qwen_edge.config import SamplingConfig

# Logits in one group of superset_of_best: a column, since numpy compares whole rows fastest.
_GROUP = 64


def superset_of_best(logits: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Return ids, ascending, among which the `count` best are; fewer than `count` where this way does not work.

    The count-th best of the maxima of groups cannot be above the count-th best of all.

    Args:
        logits: float32 [n_vocab].
        count: How many are needed.
    """
    n_groups = len(logits) // _GROUP
    if n_groups < count:
        return np.empty(0, dtype=np.intp)
    maxima = logits[: n_groups * _GROUP].reshape(_GROUP, n_groups).max(axis=0)
    bound = np.partition(maxima, n_groups - count)[n_groups - count]
    return np.flatnonzero(logits >= bound)


def set_bits(mask: NDArray[np.uint32], n_vocab: int) -> NDArray[np.intp]:
    """Return the tokens of a constraint's mask, ascending; words without one are never expanded."""
    words = np.flatnonzero(mask)
    bits = np.unpackbits(mask[words].astype("<u4").view(np.uint8), bitorder="little")
    places = np.flatnonzero(bits)
    ids: NDArray[np.intp] = words[places >> 5] * 32 + (places & 31)
    return ids[ids < n_vocab]


def allowed_of(ids: NDArray[np.intp], mask: NDArray[np.uint32]) -> NDArray[np.intp]:
    """Return those of some ids that a constraint's mask allows."""
    allowed: NDArray[np.intp] = ids[mask[ids >> 5] >> (ids & 31).astype(np.uint32) & 1 == 1]
    return allowed


def candidates_needed(config: SamplingConfig) -> int | None:
    """Return how many of the most likely tokens decide the result, or None when all may.

    Sampling keeps the best k. A penalty that only lowers logits cannot lift a token past others, and at most
    penalty_last_n tokens are lowered, so the best k afterwards are among the best k + n before.
    """
    kept = 1 if config.temperature == 0.0 else config.top_k
    if kept == 0:
        return None
    if not config.has_penalties:
        return kept
    only_lowers = config.presence_penalty >= 0.0 and config.repetition_penalty >= 1.0
    return kept + config.penalty_last_n if only_lowers else None


class Constraint(Protocol):
    """What sampling needs of engines.base.TokenConstraint."""

    def allows(self, token: int) -> bool:
        """Return whether a token may come next."""

    def mask(self) -> NDArray[np.uint32]:
        """Return the tokens that may: uint32 [ceil(n_vocab / 32)]."""


def draw(
    logits: NDArray[np.float32],
    needed: int | None,
    draw_from: Callable[[NDArray[np.intp], NDArray[np.float32]], int],
    constraint: Constraint | None = None,
) -> int:
    """Draw a token from the candidates that can decide; a second time from allowed ones when the first is refused.

    A model that knows what is wanted draws an allowed token anyhow, so the mask is made only after a refusal (whose
    draw has used the random generator).

    Args:
        logits: float32 [n_vocab]; not changed.
        needed: What candidates_needed() says.
        draw_from: Draws from tokens, ids ascending, and a copy of their logits.
        constraint: Which tokens are allowed, None for all.
    """
    needed = len(logits) if needed is None else needed
    best = superset_of_best(logits, needed)
    if len(best) < needed:
        best = np.arange(len(logits))
    token = draw_from(best, logits[best])
    if constraint is None or constraint.allows(token):
        return token
    mask = constraint.mask()
    # Of tokens that are all above a bound, the allowed ones are the best of all that are allowed.
    allowed = allowed_of(best, mask)
    if len(allowed) < needed:
        allowed = set_bits(mask, len(logits))
    assert len(allowed), "Bug: a constraint that allows no token"
    return draw_from(allowed, logits[allowed])
