"""Successive halving over arms that share measurements.

Each round measures what the arms in it need, one sample of everything before a second of anything, so that a machine that
is busy for a while is so for all. Then the slower part is dropped. What is left gets more samples.

Source: successive halving as in Jamieson and Talwalkar, "Non-stochastic Best Arm Identification" (AISTATS 2016), with
costs made of shared parts.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

A = TypeVar("A", bound=Hashable)
C = TypeVar("C", bound=Hashable)

_SAMPLES_A_ROUND = 2
_KEPT_SHARE = 0.5
# An arm this close behind the best is not dropped while few samples tell them apart.
_CLOSE = 1.03


@dataclass(slots=True)
class Round(Generic[A]):
    """What one round showed.

    Attributes:
        costs: By arm, cheapest first.
        kept: Those that went on.
    """

    costs: dict[A, float]
    kept: list[A]


@dataclass(slots=True)
class Samples(Generic[C]):
    """Measured values by cell; a cell that failed has none and is not measured again."""

    values: dict[C, list[float]] = field(default_factory=dict)
    failed: set[C] = field(default_factory=set)

    def median(self, cell: C) -> float | None:
        """Return the median of a cell; None without a sample."""
        taken = self.values.get(cell)
        return statistics.median(taken) if taken else None


class Search(Generic[A, C]):
    """A search in progress. Arms are compared by `cost`, made of the medians of their cells."""

    def __init__(
        self,
        cells_of: Callable[[A], Sequence[C]],
        cost: Callable[[A, Sequence[float]], float],
        measure: Callable[[C], float | None],
        is_over: Callable[[], bool],
        order: Callable[[C], Hashable] = lambda cell: 0,
    ) -> None:
        """Begin.

        Args:
            cells_of: What is measured for an arm.
            cost: Of an arm, from the medians of its cells in that order; less is better.
            measure: One sample; None where it cannot be had.
            is_over: Asked before each sample: no more time.
            order: Cells of equal order are measured together where moving from one to another is dear.
        """
        self.samples: Samples[C] = Samples()
        self.rounds: list[Round[A]] = []
        self.cells_of, self._cost, self._measure = cells_of, cost, measure
        self._is_over, self._order = is_over, order

    def halve(self, arms: Iterable[A], *, keep: int) -> list[A]:
        """Measure arms and drop the slower ones until at most `keep` are left; cheapest first.

        Each is looked at once, whatever the time. When that is over, what is known decides.

        Args:
            arms: To compare.
            keep: How many.
        """
        left = list(dict.fromkeys(arms))
        self._sample(left, 1, in_any_case=True)
        while True:
            ranked = self.ranked(left)
            kept = ranked[:keep] if len(ranked) <= keep or self._is_over() else self._survivors(ranked, keep)
            self.rounds.append(Round({arm: self.cost(arm) or 0.0 for arm in ranked}, kept))
            if len(kept) <= keep:
                return kept
            left = kept
            self._sample(left, _SAMPLES_A_ROUND)

    def compare(self, arms: Sequence[A], n_samples: int) -> list[A]:
        """Bring arms to at least so many samples each, in turns, and return them cheapest first; one in any case."""
        self._sample(arms, 1, in_any_case=True)
        while any(self._count(cell) < n_samples for cell in self._cells(arms)) and not self._is_over():
            self._sample(arms, 1)
        return self.ranked(arms)

    def ranked(self, arms: Iterable[A]) -> list[A]:
        """Return arms cheapest first, without those that could not be measured."""
        costs = {arm: self.cost(arm) for arm in dict.fromkeys(arms)}
        known = {arm: cost for arm, cost in costs.items() if cost is not None}
        return sorted(known, key=lambda arm: known[arm])

    def cost(self, arm: A) -> float | None:
        """Return what an arm costs as far as is known; None where a part was not measured."""
        medians = [self.samples.median(cell) for cell in self.cells_of(arm)]
        if any(median is None for median in medians):
            return None
        return self._cost(arm, [median for median in medians if median is not None])

    def _survivors(self, ranked: list[A], keep: int) -> list[A]:
        n_kept = max(keep, int(len(ranked) * _KEPT_SHARE))
        best = self.cost(ranked[0]) or 0.0
        close = sum((self.cost(arm) or 0.0) <= best * _CLOSE for arm in ranked)
        # Close ones stay, but each round drops one at least: it has to end.
        return ranked[: min(max(n_kept, close), len(ranked) - 1)]

    def _cells(self, arms: Iterable[A]) -> list[C]:
        cells = dict.fromkeys(cell for arm in arms for cell in self.cells_of(arm))
        return [cell for cell in cells if cell not in self.samples.failed]

    def _count(self, cell: C) -> int:
        return len(self.samples.values.get(cell, ()))

    def _sample(self, arms: Iterable[A], n_samples: int, *, in_any_case: bool = False) -> None:
        cells = sorted(self._cells(arms), key=self._order)  # type: ignore[arg-type]
        for turn in range(n_samples):
            # There and back: what grows slower with the time does so for first and last alike.
            for cell in cells if turn % 2 == 0 else reversed(cells):
                is_new = cell not in self.samples.values
                if cell in self.samples.failed or (self._is_over() and not (in_any_case and is_new)):
                    continue
                value = self._measure(cell)
                if value is None:
                    self.samples.failed.add(cell)
                else:
                    self.samples.values.setdefault(cell, []).append(value)
