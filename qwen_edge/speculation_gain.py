"""Whether proposing pays: what calls cost, how often proposals come true, and what came of it.

::

    gain of k proposals  =  (1 + p1 + p1 p2 + … + p1…pk) plain steps  -  one call over k + 1 tokens

The p are learned from every token of a reply, also where nothing was evaluated ahead: to compare a proposal with what the
model says costs nothing. What a call costs is measured when there is reason to make it.
"""

from __future__ import annotations

import collections
import statistics
from collections.abc import Sequence

# Tokens of a call that are tried: kernels work in fours, and a text that repeats itself does so for long.
_CALL_LENGTHS = (2, 3, 4, 6, 8, 12, 16)
# Until one was measured, none is longer: it could cost anything.
_FIRST_LONGEST = 4
# Of a call that was not made yet, the cost in plain steps is taken to grow by this with each token. Measured on
# Qwen2.5-0.5B: 1.06 to 1.83 for 4 tokens and 3.0 to 4.3 for 17, with and without AMX.
_COST_PER_TOKEN = 0.15
# Where few calls were measured, a slow one may be an accident: until then none counts as more than this many times what
# was expected.
_FEW = 3
_ACCIDENT = 1.5
_KEPT = 9
# A plain step is made, and measured, at least once in so many calls.
_MOST_CALLS_BETWEEN = 32
_PLAIN_NEEDED = 3
# After so many plain steps in a row longer calls are measured anew: what made them slow may be over.
_FORGOTTEN_AFTER = 128

# What is expected to come of it, in plain steps' time.
_WANTED = 1.05

# Proposals of one kind: how many came true of how many, before the first was seen. By the length of the match.
_MATCH_KINDS = ((2, 0.15), (3, 0.3), (4, 0.5), (8, 0.75), (16, 0.9))
_DRAFT_PRIOR = 0.6
_PRIOR_WEIGHT = 4.0
# Beyond this weight older ones are forgotten.
_MOST_WEIGHT = 64.0
DRAFT_KIND = -1

# When the account is this many plain steps in the red, nothing is proposed for some tokens; twice as many each time.
_MOST_LOST_STEPS = 1.5
_FIRST_PAUSE, _LONGEST_PAUSE = 64, 4096
# What is earned or lost is forgotten by this factor with each call, so that a good past pays for no bad present.
_MEMORY = 0.9
# A pause is short again once so many steps were earned since the last one.
_EARNED_STEPS = 8.0


class Acceptance:
    """How often proposals of a kind come true: the length of a match, or DRAFT_KIND."""

    def __init__(self) -> None:
        self._counts = {least: [prior * _PRIOR_WEIGHT, _PRIOR_WEIGHT] for least, prior in _MATCH_KINDS}
        self._counts[DRAFT_KIND] = [_DRAFT_PRIOR * _PRIOR_WEIGHT, _PRIOR_WEIGHT]

    def note(self, kind: int, is_true: bool) -> None:
        """Note what became of a proposal behind ones that came true."""
        counts = self._counts[_class_of(kind)]
        counts[0] += is_true
        counts[1] += 1
        if counts[1] > _MOST_WEIGHT:
            counts[:] = counts[0] / 2, counts[1] / 2

    def probability(self, kind: int) -> float:
        """Return how likely a proposal is to come true, where those before it did."""
        true, all_ = self._counts[_class_of(kind)]
        return true / all_


class CallCosts:
    """What calls take, in plain steps."""

    def __init__(self) -> None:
        self._plain: collections.deque[float] = collections.deque(maxlen=_KEPT)
        self._ratios: dict[int, collections.deque[float]] = {}
        self._calls_since_plain = self._plain_in_a_row = 0

    @property
    def plain_s(self) -> float:
        """Seconds of a plain step; 0.0 while too few were measured."""
        return statistics.median(self._plain) if len(self._plain) >= _PLAIN_NEEDED else 0.0

    @property
    def wants_plain(self) -> bool:
        """Whether it is time to measure a plain step."""
        return len(self._plain) < _PLAIN_NEEDED or self._calls_since_plain >= _MOST_CALLS_BETWEEN

    @property
    def longest_call(self) -> int:
        """Tokens of the longest call to try: twice those of the longest that was measured."""
        return max(_FIRST_LONGEST, 2 * max(self._ratios, default=0))

    def note(self, n_tokens: int, seconds: float) -> None:
        """Note a call over so many tokens."""
        if n_tokens == 1:
            self._plain.append(seconds)
            self._calls_since_plain = 0
            self._plain_in_a_row += 1
            if self._plain_in_a_row == _FORGOTTEN_AFTER:
                self._ratios.clear()
            return
        self._calls_since_plain += 1
        self._plain_in_a_row = 0
        kept = self._ratios.setdefault(n_tokens, collections.deque(maxlen=_KEPT))
        kept.append(seconds / self.plain_s)

    def ratio(self, n_tokens: int) -> float:
        """Return what a call over so many tokens takes; from the nearest length where it was never made."""
        if not self._ratios:
            return _expected_ratio(n_tokens)
        nearest = min(self._ratios, key=lambda known: abs(known - n_tokens))
        found = self._ratios[nearest]
        measured = statistics.median(found)
        if len(found) < _FEW:
            measured = min(*found, _ACCIDENT * _expected_ratio(nearest))
        # A longer call is never taken to be cheaper than the one that was measured, nor a shorter one dearer.
        return measured * _expected_ratio(n_tokens) / _expected_ratio(nearest)


class Balance:
    """What speculating has earned and lost lately, and the pause that follows a loss."""

    def __init__(self) -> None:
        self._net_steps = self._earned_steps = 0.0
        self._pause, self._left = _FIRST_PAUSE, 0

    @property
    def is_paused(self) -> bool:
        """Whether nothing is to be proposed."""
        return self._left > 0

    def note(self, steps: float) -> None:
        """Note what a call earned, in plain steps; negative for what it lost."""
        self._net_steps = _MEMORY * self._net_steps + steps
        self._earned_steps += steps
        if self._earned_steps >= _EARNED_STEPS:
            self._pause = _FIRST_PAUSE
        if self._net_steps < -_MOST_LOST_STEPS:
            self._left = self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            self._net_steps = self._earned_steps = 0.0

    def pass_token(self) -> None:
        """Note a token of the reply."""
        self._left = max(0, self._left - 1)


def best_count(kinds: Sequence[int], acceptance: Acceptance, costs: CallCosts) -> int:
    """Return how many of some proposals to evaluate, so that a token takes the least time; 0 where a plain step does.

    Args:
        kinds: Of the proposals, in order.
        acceptance: How often they come true.
        costs: Of calls; a plain step was measured.
    """
    best, best_rate = 0, _WANTED
    expected = chance = 1.0
    for count, kind in enumerate(kinds[: costs.longest_call - 1], start=1):
        chance *= acceptance.probability(kind)
        expected += chance
        if count + 1 in _CALL_LENGTHS and (rate := expected / costs.ratio(count + 1)) > best_rate:
            best, best_rate = count, rate
    return best


def _class_of(kind: int) -> int:
    if kind == DRAFT_KIND:
        return kind
    return max(least for least, _ in _MATCH_KINDS if least <= kind)


def _expected_ratio(n_tokens: int) -> float:
    return 1.0 + _COST_PER_TOKEN * (n_tokens - 1)
