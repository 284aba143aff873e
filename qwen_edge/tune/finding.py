"""Tuning one file: from what the machine has to a record of the fastest settings."""

from __future__ import annotations

import functools
import itertools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qwen_edge import device
from qwen_edge.config import QUANTIZED_KV_TYPES, KVType, LoadConfig
from qwen_edge.engines.onnx_folder import is_onnx
from qwen_edge.errors import NativeError
from qwen_edge.memory_check import memory_estimator, require_memory
from qwen_edge.native.builds import Build
from qwen_edge.native.probe import probe
from qwen_edge.tune.arms import (
    LONG_PROMPT_TOKENS,
    SHORT_PROMPT_TOKENS,
    Cell,
    cells_of,
    first_arms,
    neighbours,
    thread_counts,
    turn_s,
)
from qwen_edge.tune.search import Search
from qwen_edge.tune.trials import Trials
from qwen_edge.tune.worker import Job
from qwen_edge.tuned import Settings, TuneRecord, Workload

DEFAULT_BUDGET_S = 60.0

# Shares of the budget by which the first arms, and their neighbours, are narrowed down.
_FIRST_SHARE, _NEXT_SHARE = 0.45, 0.75
_FINALISTS = 2
# Only what is this close to the best is worth a look at its neighbours.
_ABOUT_AS_FAST = 1.15
_FINAL_SAMPLES = 5
# What is not faster by more is noise: the simpler one is taken.
_LEAST_GAIN = 1.01

Say = Callable[[str], None]


def tune_file(
    path: Path,
    workload: Workload | None = None,
    *,
    kv_types: Sequence[KVType] = ("f16",),
    budget_s: float = DEFAULT_BUDGET_S,
    is_brief: bool = False,
    build: Build | None = None,
    say: Say = lambda line: None,
) -> TuneRecord:
    """Find the fastest settings for a model, by measuring. Nothing is written.

    All that is tried gives the same answers within floating-point rounding, unless kv_types has more than "f16".

    Args:
        path: A GGUF file, or an exported folder.
        workload: What is to be fast; None for a chat.
        kv_types: Types of the KV cache that are allowed. The first is the default.
        budget_s: Wall clock. A first look at everything is taken in any case.
        is_brief: Try kernels and attention only, with the default number of threads: a third of the time.
        build: Native library; None for the one that this process uses.
        say: Takes a line for the person who waits.

    Raises:
        InsufficientMemoryError: Not even the default settings fit.
        NativeError: Nothing could be measured.
        QwenEdgeError: As load().
    """
    workload = workload or Workload()
    base = LoadConfig(n_ctx=max(256, workload.n_ctx), n_sessions=workload.n_sessions)
    is_gguf = not is_onnx(path)
    n_cores, n_default = device.usable_cores(), device.default_threads()
    default = Settings(
        n_threads=n_default,
        kv_type=kv_types[0],
        flash_attention="on" if kv_types[0] in QUANTIZED_KV_TYPES else "off",
    )
    # Refuses, with ways out, what does not even fit as it is.
    require_memory(path, default.config(base) if is_gguf else base)
    estimate = memory_estimator(path, base)

    def need_bytes(config: LoadConfig) -> int | None:
        need = estimate(config) if estimate is not None else None
        return None if need is None else need.wanted_bytes

    may_be_fast = is_gguf and probe(path).kernels == "fast"
    threads = (n_default,) if is_brief else _threads(n_cores, n_default)
    with Trials(path, need_bytes, build=build) as trials:
        tuning = _Tuning(trials, workload, base.n_ctx, budget_s, say)
        arms = first_arms(default, threads, is_gguf=is_gguf, may_be_fast=may_be_fast, kv_types=kv_types)
        best = tuning.first(arms)
        if not is_brief:
            can_bind = _can_bind(n_cores)
            around = (neighbours(arm, threads, workload, is_gguf=is_gguf, can_bind=can_bind) for arm in best)
            best = tuning.next([*best, *itertools.chain.from_iterable(around)])
        return tuning.finish(best, default)


class _Tuning:
    """The stages of one search, and its clock."""

    def __init__(self, trials: Trials, workload: Workload, n_ctx: int, budget_s: float, say: Say) -> None:
        self._trials, self._workload, self._n_ctx, self._say = trials, workload, n_ctx, say
        self._budget_s = budget_s
        self._started = time.monotonic()
        self._deadline = 0.0
        self._steps: list[dict[str, Any]] = []
        self._latest: Search[Settings, Cell] | None = None

    def first(self, arms: list[Settings]) -> list[Settings]:
        """Look at all arms on short prompts, and return the best: one, or two that are about as fast."""
        self._say(f"trying {len(arms)} ways to run it")
        search = self._begin(min(SHORT_PROMPT_TOKENS, self._workload.prompt_tokens), _FIRST_SHARE)
        best = search.halve(arms, keep=_FINALISTS)
        if not best:
            raise NativeError(
                f"no setting could be measured: {next(iter(self._trials.errors.values()), 'no time')}",
                hint="qwen-edge doctor tells whether models run here at all.",
            )
        self._note("first", search)
        limit = _ABOUT_AS_FAST * (search.cost(best[0]) or 0.0)
        return [arm for arm in best if (search.cost(arm) or 0.0) <= limit]

    def next(self, arms: list[Settings]) -> list[Settings]:
        """Look at good arms and their neighbours on longer prompts, and return the best."""
        self._say(f"trying {len(dict.fromkeys(arms))} ways around the best")
        search = self._begin(min(LONG_PROMPT_TOKENS, self._workload.prompt_tokens), _NEXT_SHARE)
        best = search.halve(arms, keep=_FINALISTS) or arms[:_FINALISTS]
        self._note("next", search)
        return best

    def finish(self, finalists: list[Settings], default: Settings) -> TuneRecord:
        """Compare the last ones with the default, and return the record."""
        self._say("comparing the best with the default settings")
        search = self._latest
        assert search is not None, "Bug: first() begins one"
        self._deadline = self._started + self._budget_s
        ranked = search.compare([default, *finalists], _FINAL_SAMPLES)
        costs = {arm: search.cost(arm) or 0.0 for arm in ranked}
        best = _simplest(costs, default)
        speeds = {name: self._speeds(search, arm) for name, arm in (("default", default), ("tuned", best))}
        self._steps.append(_step("last", costs, [best]))
        return TuneRecord(
            settings=best,
            workload=self._workload,
            speeds=speeds,
            steps=self._steps,
            seconds=round(time.monotonic() - self._started, 1),
            measured_at=time.time(),
        )

    def _begin(self, n_tokens: int, share: float) -> Search[Settings, Cell]:
        """Begin a search whose prompts have n_tokens, with that share of the budget."""
        self._deadline = self._started + share * self._budget_s
        self._latest = search = Search(
            functools.partial(cells_of, n_tokens=n_tokens),
            lambda arm, medians: turn_s(self._workload, medians[0], medians[1]),
            self._measure,
            lambda: time.monotonic() > self._deadline,
            order=lambda cell: (repr(self._trials.group_of(cell.settings)), repr(cell.settings), cell.phase),
        )
        return search

    def _measure(self, cell: Cell) -> float | None:
        return self._trials.sample(
            Job(
                phase=cell.phase,
                settings=cell.settings,
                n_tokens=cell.n_tokens,
                depth=self._workload.depth,
                n_sessions=self._workload.n_sessions,
                n_ctx=self._n_ctx,
            )
        )

    def _speeds(self, search: Search[Settings, Cell], arm: Settings) -> dict[str, float]:
        prefill, decode = (search.samples.median(cell) or float("inf") for cell in search.cells_of(arm))
        return {
            "prefill": 1 / prefill,
            "decode": self._workload.n_sessions / decode,
            "turn_s": turn_s(self._workload, prefill, decode),
        }

    def _note(self, title: str, search: Search[Settings, Cell]) -> None:
        self._steps += [_step(title, step.costs, step.kept) for step in search.rounds]


def _simplest(costs: dict[Settings, float], default: Settings) -> Settings:
    """Return what is about the cheapest, and of that the nearest to the default."""
    usual = asdict(default)
    limit = _LEAST_GAIN * min(costs.values())

    def distance(arm: Settings) -> tuple[int, float]:
        return sum(usual[name] != value for name, value in asdict(arm).items()), costs[arm]

    return min((arm for arm in costs if costs[arm] <= limit), key=distance)


def _step(title: str, costs: dict[Settings, float], kept: list[Settings]) -> dict[str, Any]:
    return {
        "round": title,
        "tried": [
            {"settings": asdict(arm), "turn_s": cost, "kept": arm in kept} for arm, cost in costs.items()
        ],
    }


def _threads(n_cores: int, n_default: int) -> tuple[int, ...]:
    machine = device.probe_machine()
    cores = device.known(machine.cores)
    fast = cores.groups[0].n_cores if cores is not None and cores.groups else n_cores
    usable = device.known(machine.usable)
    n_logical = len(usable.cpus) if usable is not None and usable.cpus else os.cpu_count() or n_cores
    # A quota of time is not stretched by more threads.
    if usable is not None and usable.limited_by == "cgroup":
        n_logical = n_cores
    counts = thread_counts(n_cores, min(fast, n_cores), max(n_cores, n_logical))
    return tuple(dict.fromkeys((n_default, *counts)))


def _can_bind(n_cores: int) -> bool:
    """Return whether binding threads could matter: there are more CPUs than threads, so that they can wander."""
    return len(device.core_cpus()) > 1 and (os.cpu_count() or 1) > n_cores
