"""Load, chat, close, again and again: what was taken is given back."""

from __future__ import annotations

import gc
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from qwen_edge import load
from qwen_edge.config import GREEDY
from qwen_edge.native import library

_WARM_UP, _CYCLES = 20, 80
# One model of this size that is not freed is 12 MB, one session's KV cache 2 MB: a leak of either is far above this.
_GROWTH_BYTES = 8_000_000

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


def test_a_hundred_cycles_leave_memory_as_it_was(tiny_bf16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()

    def counted(name: str) -> Callable[..., Any]:
        real = getattr(library.api(), name)

        def call(*arguments: Any) -> Any:
            calls[name] += 1
            return real(*arguments)

        return call

    for name in (*_TAKEN_AND_GIVEN, *_TAKEN_AND_GIVEN.values()):
        monkeypatch.setattr(library.api(), name, counted(name))
    process = psutil.Process()
    for _ in range(_WARM_UP):
        _cycle(tiny_bf16)
    gc.collect()
    before_bytes, n_threads, n_files = process.memory_info().rss, threading.active_count(), process.num_fds()
    for _ in range(_CYCLES):
        _cycle(tiny_bf16)
    gc.collect()
    growth_bytes = process.memory_info().rss - before_bytes
    assert growth_bytes < _GROWTH_BYTES
    assert (threading.active_count(), process.num_fds()) == (n_threads, n_files)
    for taken, given in _TAKEN_AND_GIVEN.items():
        assert calls[taken] == calls[given] >= _WARM_UP + _CYCLES
