"""Threads of llama.cpp that stay on cores of their own.

The functions are in the library but not in llama-cpp-python's bindings. Source: ggml/include/ggml.h (struct
ggml_threadpool_params), ggml-cpu.h (ggml_threadpool_new, ggml_threadpool_free), include/llama.h (llama_attach_threadpool).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from qwen_edge.config import MAX_THREADS
from qwen_edge.errors import UnsupportedError
from qwen_edge.native import library

# Source: ggml_threadpool_params_init in ggml/src/ggml.c.
_NORMAL_PRIORITY, _POLL = 0, 50


class _Params(ctypes.Structure):
    _fields_ = (
        ("cpumask", ctypes.c_bool * MAX_THREADS),
        ("n_threads", ctypes.c_int),
        ("prio", ctypes.c_int),
        ("poll", ctypes.c_uint32),
        ("strict_cpu", ctypes.c_bool),
        ("paused", ctypes.c_bool),
    )


class PinnedThreads:
    """Threads of a context, each bound to one CPU. Its owner frees the context first, then this."""

    def __init__(self, api: Any, context: Any, cpus: Sequence[int], n_threads: int) -> None:
        """Bind the threads of a context.

        Args:
            api: The bindings.
            context: Native pointer; its calls take these threads from now on.
            cpus: Logical CPUs, taken in the order of their numbers, and again from the first where threads are left.
            n_threads: The most that the context uses.

        Raises:
            UnsupportedError: The library has no such functions, or the system no such CPUs.
        """
        kernels = library.kernel_functions(api)
        try:
            new, free = kernels.ggml_threadpool_new, kernels.ggml_threadpool_free
            attach = api._lib.llama_attach_threadpool
        except AttributeError as error:
            raise _unsupported("this build of llama.cpp does not export its thread pools") from error
        if not cpus or max(cpus) >= MAX_THREADS:
            raise _unsupported("the system does not tell which CPUs there are")
        params = _Params(
            n_threads=n_threads, prio=_NORMAL_PRIORITY, poll=_POLL, strict_cpu=True, paused=False
        )
        for cpu in cpus:
            params.cpumask[cpu] = True
        new.restype, new.argtypes = ctypes.c_void_p, [ctypes.POINTER(_Params)]
        free.restype, free.argtypes = None, [ctypes.c_void_p]
        attach.restype, attach.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
        with calling_thread_kept():
            pool = new(ctypes.byref(params))
        if not pool:
            raise _unsupported("llama.cpp could not make its threads")
        attach(context, pool, pool)
        self.free = weakref.finalize(self, free, pool)


@contextlib.contextmanager
def calling_thread_kept() -> Iterator[None]:
    """Give the calling thread its own CPUs back at the end: the library binds it too, and it is the program's."""
    if not hasattr(os, "sched_getaffinity"):
        yield
        return
    cpus = os.sched_getaffinity(0)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cpus)


def _unsupported(reason: str) -> UnsupportedError:
    return UnsupportedError(
        f"threads cannot be bound to cores: {reason}", hint='Leave affinity="cores" (--affinity) out.'
    )
