"""The sweep that tuning is measured against."""

from __future__ import annotations

import itertools
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.bench import tuning
from qwen_edge.bench.tuning import Point, best_turn, grid, nearest_points, sweep
from qwen_edge.errors import NativeError
from qwen_edge.tuned import Settings, Workload

WORKLOAD = Workload(prompt_tokens=256, answer_tokens=100, depth=0)


def listed(value: str) -> list[str]:
    return value.split(",")


@pytest.fixture
def llama_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """A llama-bench whose speeds follow from its flags: threads count, flash attention helps prompts and costs answers."""

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        flags = dict(zip(command[1::2], command[2::2], strict=True))
        rows = [
            {
                "n_threads": int(threads),
                "flash_attn": int(flash == "on"),
                "n_ubatch": int(batch),
                "load_mode": mode,
                "repack": repack == "1",
                "avg_ts": int(threads)
                * (100 if flags["-n"] == "0" else 10)
                * ((1.2 if flags["-n"] == "0" else 0.8) if flash == "on" else 1)
                * (1 if repack == "1" else 0.5)
                * (1.1 if batch == "256" else 1),
            }
            for threads, flash, batch, mode, repack in itertools.product(
                *(listed(flags[name]) for name in ("-t", "-fa", "-ub", "-lm", "--repack"))
            )
        ]
        return subprocess.CompletedProcess(command, 0, json.dumps(rows), "")

    monkeypatch.setattr(subprocess, "run", run)


@pytest.mark.usefixtures("llama_bench")
def test_the_best_turn_is_found_in_the_sweep() -> None:
    points = grid([2, 1])
    assert len(points) == 2 * 2 * 3 * 2 * 2
    found = sweep(Path("llama-bench"), Path("m.gguf"), points, WORKLOAD, passes=2)
    assert all(len(samples) == 2 for samples in found.values())
    best = best_turn(found, points, [2, 1], WORKLOAD)
    assert best == pytest.approx(256 / (2 * 100 * 1.1) + 100 / 20)
    prefill, decode = nearest_points(Settings(n_threads=2, n_batch=256))
    assert tuning._turn(found, prefill, decode, WORKLOAD) == pytest.approx(best)


def test_settings_as_llama_bench_is_told_them() -> None:
    found = Settings(
        n_threads=2,
        n_prefill_threads=4,
        n_batch=1024,
        flash_attention="on",
        load_mode="mmap",
        safe_kernels=True,
    )
    prefill, decode = nearest_points(found)
    assert prefill == Point(4, "on", 512, "mmap", 0)
    assert decode == Point(2, "on", 512, "mmap", 0)


def test_a_sweep_that_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "error: failed to load\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: failed)
    with pytest.raises(NativeError, match="failed with 1: error: failed to load"):
        sweep(Path("llama-bench"), Path("m.gguf"), grid([1]), WORKLOAD, passes=1)
