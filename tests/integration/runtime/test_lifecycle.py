"""Load, chat, close, again and again: what was taken is given back."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from qwen_edge import load
from qwen_edge.config import GREEDY
from qwen_edge.native import library

_WARM_UP, _CYCLES = 20, 160
# The heap may hold room for one model of this size, 12 MB, more or less; a leak of 0.1 MB a cycle is above this, and one
# session's KV cache is 2 MB.
_GROWTH_BYTES = 16_000_000

_TAKEN_AND_GIVEN = {
    "llama_model_load_from_file": "llama_model_free",
    "llama_init_from_model": "llama_free",
    "llama_batch_init": "llama_batch_free",
    "llama_sampler_chain_init": "llama_sampler_free",
}


def _cycle(path: Path) -> None:
    with load(path, n_ctx=256, n_threads=1, safe_kernels=False) as model:
        with model.session(system="Be brief.") as session:
            assert session.send("Say Anna.", thinking="off", sampling=GREEDY, logprobs=2).text == "Anna"
            session.send("Say Bob.", thinking="off", max_tokens=2)
        left_open = model.session()
        left_open.send("Say Anna.", max_tokens=1, timeout_s=60)


def measure_cycles(path: Path) -> None:
    """Load, talk and close again and again; print what has grown, and how often native things were taken and given."""
    calls: Counter[str] = Counter()

    def counted(name: str) -> Callable[..., Any]:
        real = getattr(library.api(), name)

        def call(*arguments: Any) -> Any:
            calls[name] += 1
            return real(*arguments)

        return call

    for name in (*_TAKEN_AND_GIVEN, *_TAKEN_AND_GIVEN.values()):
        setattr(library.api(), name, counted(name))
    process = psutil.Process()

    def held() -> tuple[int, int, int]:
        gc.collect()
        return process.memory_info().rss, threading.active_count(), process.num_fds()

    for _ in range(_WARM_UP):
        _cycle(path)
    before = held()
    for _ in range(_CYCLES):
        _cycle(path)
    grown = [now - then for now, then in zip(held(), before, strict=True)]
    print(json.dumps({"grown": grown, "calls": calls}))  # noqa: T201 - for the test that started this


def test_a_hundred_cycles_leave_memory_as_it_was(tiny_bf16: Path) -> None:
    # In a process of its own: what earlier tests left in the heap decides where later ones find room.
    code = "import pathlib, sys; from tests.integration.runtime.test_lifecycle import measure_cycles; measure_cycles(pathlib.Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_bf16)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    growth_bytes, new_threads, new_files = found["grown"]
    assert growth_bytes < _GROWTH_BYTES
    assert (new_threads, new_files) == (0, 0)
    for taken, given in _TAKEN_AND_GIVEN.items():
        assert found["calls"][taken] == found["calls"][given] >= _WARM_UP + _CYCLES
