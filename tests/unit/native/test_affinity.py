"""Binding threads, without the library: what is asked of it, and what happens where it cannot."""

from __future__ import annotations

import ctypes
import os
from types import SimpleNamespace
from typing import Any

import pytest

from qwen_edge import device
from qwen_edge.config import LoadConfig
from qwen_edge.errors import UnsupportedError
from qwen_edge.native.affinity import PinnedThreads, calling_thread_kept
from qwen_edge.native.handles import pinned_threads


class Function:
    """Stands for a function of the library; notes its calls."""

    def __init__(self, answer: Any = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._answer = answer

    def __call__(self, *arguments: Any) -> Any:
        self.calls.append(arguments)
        return self._answer


def library(**changes: Any) -> SimpleNamespace:
    functions: dict[str, Any] = {
        "ggml_threadpool_new": Function(77),
        "ggml_threadpool_free": Function(),
        "llama_attach_threadpool": Function(),
    }
    return SimpleNamespace(_lib=SimpleNamespace(**{**functions, **changes}))


def test_threads_are_bound_and_freed_once() -> None:
    api = library()
    pinned = PinnedThreads(api, "context", (4, 5), 2)
    [(params,)] = api._lib.ggml_threadpool_new.calls
    asked = ctypes.cast(params, ctypes.POINTER(type(params._obj))).contents
    assert [cpu for cpu, is_set in enumerate(asked.cpumask) if is_set] == [4, 5]
    assert (asked.n_threads, asked.strict_cpu) == (2, True)
    assert api._lib.llama_attach_threadpool.calls == [("context", 77, 77)]
    pinned.free()
    pinned.free()
    assert api._lib.ggml_threadpool_free.calls == [(77,)]


def test_threads_go_to_the_fastest_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "core_cpus", lambda: (4, 5, 0, 1))
    api = library()
    assert pinned_threads(api, "context", LoadConfig(), 2) is None
    pinned = pinned_threads(api, "context", LoadConfig(affinity="cores", n_prefill_threads=3), 2)
    assert pinned is not None
    [(params,)] = api._lib.ggml_threadpool_new.calls
    assert [cpu for cpu, is_set in enumerate(params._obj.cpumask) if is_set] == [0, 4, 5]
    pinned.free()


@pytest.mark.parametrize(
    ("api", "cpus"),
    [
        (SimpleNamespace(_lib=SimpleNamespace()), (0, 1)),
        (library(), ()),
        (library(ggml_threadpool_new=Function(None)), (0, 1)),
    ],
)
def test_where_threads_cannot_be_bound_it_says_so(api: Any, cpus: tuple[int, ...]) -> None:
    with pytest.raises(UnsupportedError, match="cannot be bound"):
        PinnedThreads(api, "context", cpus, 2)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_the_calling_thread_gets_its_cpus_back() -> None:
    before = os.sched_getaffinity(0)
    with calling_thread_kept():
        os.sched_setaffinity(0, {min(before)})
    assert os.sched_getaffinity(0) == before
