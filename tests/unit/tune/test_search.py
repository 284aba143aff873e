"""Successive halving, on machines whose speeds are known."""

from __future__ import annotations

import random
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_edge.tune.search import Search

Arm = tuple[int, int]
"""Index of its prefill cell, and of its decode cell."""
Cell = tuple[str, int]


class Machine:
    """Costs by cell, with noise now and then; counts what it is asked."""

    def __init__(self, costs: dict[Cell, float], *, noise: float = 0.0, seed: int = 0) -> None:
        self.costs, self._noise, self._random = costs, noise, random.Random(seed)
        self.asked: list[Cell] = []

    def measure(self, cell: Cell) -> float | None:
        self.asked.append(cell)
        if cell not in self.costs:
            return None
        # A stall: rare, and long.
        stalled = self._noise and self._random.random() < 0.1
        return self.costs[cell] * (1 + self._noise * self._random.random()) * (4 if stalled else 1)


def search_on(machine: Machine, limit: int = 10_000) -> Search[Arm, Cell]:
    return Search(
        lambda arm: [("prefill", arm[0]), ("decode", arm[1])],
        lambda arm, medians: sum(medians),
        machine.measure,
        lambda: len(machine.asked) >= limit,
    )


def machine_of(
    prefill: Sequence[float], decode: Sequence[float], **noise: float
) -> tuple[Machine, list[Arm]]:
    costs = {("prefill", i): cost for i, cost in enumerate(prefill)}
    costs |= {("decode", i): cost for i, cost in enumerate(decode)}
    arms = [(i, j) for i in range(len(prefill)) for j in range(len(decode))]
    return Machine(costs, **noise), arms  # type: ignore[arg-type]


@given(
    st.lists(st.floats(0.1, 10), min_size=1, max_size=6),
    st.lists(st.floats(0.1, 10), min_size=1, max_size=6),
    st.integers(1, 3),
)
def test_without_noise_the_best_is_found_first(prefill: list[float], decode: list[float], keep: int) -> None:
    machine, arms = machine_of(prefill, decode)
    kept = search_on(machine).halve(arms, keep=keep)
    assert len(kept) == min(keep, len(arms))
    best = kept[0]
    assert prefill[best[0]] + decode[best[1]] == min(prefill) + min(decode)


@settings(max_examples=50)
@given(st.integers(0, 10_000))
def test_stalls_do_not_hide_what_is_clearly_best(seed: int) -> None:
    machine, arms = machine_of([1.0, 2.0, 2.5, 3.0], [1.0, 2.0, 4.0], noise=0.05, seed=seed)
    search = search_on(machine)
    finalists = search.halve(arms, keep=2)
    ranked = search.compare([(3, 2), *finalists], 7)
    # One stall in ten samples: the median of seven is clean in all but 0.02% of cells.
    assert search.cost(ranked[0]) is not None
    assert ranked[0] in finalists
    assert search.samples.median(("prefill", 3)) is not None


def test_arms_share_what_is_measured() -> None:
    machine, arms = machine_of([1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0])
    search = search_on(machine)
    search.halve(arms, keep=1)
    assert len(search.rounds[0].costs) == 12
    assert machine.asked[:7].count(("prefill", 0)) == 1
    assert len(set(machine.asked[:7])) == 7  # one sample of everything before a second of anything


def test_what_cannot_be_measured_is_left_out() -> None:
    machine, arms = machine_of([1.0, 2.0], [1.0, 2.0])
    del machine.costs["decode", 0]
    search = search_on(machine)
    assert search.halve(arms, keep=1) == [(0, 1)]
    assert machine.asked.count(("decode", 0)) == 1
    assert search.ranked(arms) == [(0, 1), (1, 1)]


def test_when_time_is_over_each_arm_was_still_looked_at_once() -> None:
    machine, arms = machine_of([3.0, 1.0, 2.0], [2.0, 1.0])
    search = search_on(machine, limit=1)
    assert search.halve(arms, keep=1) == [(1, 1)]
    assert sorted(machine.asked) == sorted(machine.costs)
    assert search.compare([(0, 0), (1, 1)], 5) == [(1, 1), (0, 0)]
    assert len(machine.asked) == len(machine.costs)


def test_nothing_to_measure_is_no_arm() -> None:
    machine, arms = machine_of([1.0], [1.0])
    machine.costs.clear()
    assert search_on(machine).halve(arms, keep=2) == []
