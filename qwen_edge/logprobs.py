"""From logits to the log-probabilities that a reply tells."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from qwen_edge.errors import ConfigError
from qwen_edge.types import TokenLogprob

MAX_ALTERNATIVES = 100


def check_alternatives(count: int | None) -> None:
    """Check the number of alternatives that is asked for.

    Raises:
        ConfigError: It is no whole number from 0 to MAX_ALTERNATIVES.
    """
    if count is None:
        return
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= MAX_ALTERNATIVES:
        raise ConfigError(
            f"logprobs must be a whole number from 0 to {MAX_ALTERNATIVES} (not {count!r})",
            hint="It is the number of alternatives told with each token; None tells no log-probabilities.",
        )


def token_logprob(
    logits: NDArray[np.float32], token: int, alternatives: int, token_bytes: Callable[[int], bytes]
) -> TokenLogprob:
    """Return a token's log-probability and the most likely ones beside it.

    Args:
        logits: float32 [n_vocab], before penalties, temperature and cuts.
        token: The one that was chosen.
        alternatives: How many to tell, the chosen one among them if it is so likely.
        token_bytes: From a token to its bytes.
    """
    shifted = logits.astype(np.float64)
    shifted -= shifted.max()
    log_sum = np.log(np.exp(shifted).sum())

    def told(index: int, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        return TokenLogprob(index, token_bytes(index), float(shifted[index] - log_sum), top)

    return told(token, tuple(told(int(index)) for index in _best(logits, alternatives)))


def _best(values: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Return the indices of the largest values, the largest first; of equal ones the lower index first."""
    count = min(count, len(values))
    if count == 0:
        return np.empty(0, dtype=np.intp)
    bound = np.partition(values, len(values) - count)[len(values) - count]
    among = np.flatnonzero(values >= bound)  # ascending, and argsort keeps the order of equal ones
    return among[np.argsort(-values[among], kind="stable")][:count]
