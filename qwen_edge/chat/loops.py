"""Noticing that a reply goes round in circles.

::

    … I see . Wait , no . Wait , no . Wait , no . Wait , no .      a period of 4 tokens, five times: 20 tokens
    … ha ha haha ha haha haha ha ha ha haha ha …                   no period, but hardly any information

Pure: tokens in, a verdict out.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopLimits:
    """What counts as a loop.

    Attributes:
        min_repeats: So often the same tokens in a row, and
        min_tokens: so many tokens of that in all, are a loop.
        max_period: Longest repeated piece that is looked for.
        entropy_window: Tokens over which entropy is taken.
        min_entropy_bits: Less than this, in bits a token, is a collapse. Two tokens in any mixture have at most 1.
    """

    min_repeats: int
    min_tokens: int
    max_period: int = 256
    entropy_window: int
    min_entropy_bits: float = 1.25

    def tokens_needed(self, period: int) -> int:
        """Return after how many tokens of a loop it is noticed."""
        return max(self.min_repeats * period, self.min_tokens)


# A thought loses little when it is closed too early: the answer follows.
THOUGHT_LOOPS = LoopLimits(min_repeats=4, min_tokens=32, entropy_window=128)
# An answer is lost, and may repeat for a reason: rows of zeros, a refrain. A loop that is one goes on anyhow.
ANSWER_LOOPS = LoopLimits(min_repeats=8, min_tokens=128, entropy_window=256)


class LoopDetector:
    """Reads a stream of tokens and says when it has become a loop.

    Example:
        >>> detector = LoopDetector(THOUGHT_LOOPS)
        >>> [detector.feed(token) for token in [5, 6] * 16].index(True)
        31
    """

    def __init__(self, limits: LoopLimits) -> None:
        self.limits = limits
        periods = np.arange(1, limits.max_period + 1, dtype=np.int64)
        self._needed = np.maximum(limits.min_repeats * periods, limits.min_tokens) - periods
        # The newest token comes first, so that item p - 1 is the token p places before the next one.
        self._recent: NDArray[np.int64] = np.full(limits.max_period, -1, dtype=np.int64)
        self._runs: NDArray[np.int64] = np.zeros(limits.max_period, dtype=np.int64)
        self._window: deque[int] = deque()
        self._counts: dict[int, int] = {}
        self._sum_n_log_n = 0.0

    def feed(self, token: int) -> bool:
        """Take the next token; return whether the stream ends in a loop."""
        # A run counts how long each token has equalled the one a period before; the loop is a period longer than that.
        self._runs += 1
        self._runs *= self._recent == token
        self._recent[1:] = self._recent[:-1]
        self._recent[0] = token
        is_collapsed = self._is_collapsed(token)
        return is_collapsed or bool((self._runs >= self._needed).any())

    def _is_collapsed(self, token: int) -> bool:
        """Take a token into the window; return whether the entropy of a full window is below the limit."""
        size = self.limits.entropy_window
        self._window.append(token)
        self._count(token, +1)
        if len(self._window) > size:
            self._count(self._window.popleft(), -1)
        # Entropy of counts n: log2(size) - sum(n log2 n) / size.
        return len(self._window) == size and (
            math.log2(size) - self._sum_n_log_n / size < self.limits.min_entropy_bits
        )

    def _count(self, token: int, change: int) -> None:
        before = self._counts.get(token, 0)
        after = before + change
        self._sum_n_log_n += _n_log_n(after) - _n_log_n(before)
        if after:
            self._counts[token] = after
        else:
            del self._counts[token]


def _n_log_n(n: int) -> float:
    return n * math.log2(n) if n else 0.0
