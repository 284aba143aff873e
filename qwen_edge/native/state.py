"""The KV cache of a context as bytes, and back.

llama.cpp checks types, rows and sizes of what it reads, but asserts that the positions make sense: damaged ones would end
the process. They are checked here first.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_edge.errors import FormatError, UnsupportedError
from qwen_edge.native import library
from qwen_edge.native.handles import NativeContext

# Source: src/llama-context.cpp, io_magic, and state_seq_get_data: magic, sequence, then the memory's own form.
_MAGIC = 0xAF143CD8
# Source: src/llama-kv-cache.cpp, state_write and state_write_meta: streams, cells, then for each cell its position, the
# number of sequences it belongs to, and these.
_HEAD_BYTES = 16
_CELL = np.dtype([("position", "<i4"), ("n_sequences", "<u4"), ("sequence", "<i4")])


def save_state(context: NativeContext) -> NDArray[np.uint8]:
    """Return the KV cache of a context.

    Returns:
        uint8 [n_bytes], a copy; llama.cpp's form of sequence 0, which its build and the context's settings decide.

    Raises:
        UnsupportedError: The model keeps more than one key and value for each token (recurrent memories, images).
        ClosedError: After close().
    """
    with context._lock:
        handle = context.handle
        context.rewind(context.n_past)  # drops what an interrupted call may have left behind
        data = np.empty(context._api.llama_state_seq_get_size(handle, 0), dtype=np.uint8)
        written = context._api.llama_state_seq_get_data(handle, _pointer(data), len(data), 0)
        if written != len(data) or _problem_with(data, context.n_past):
            raise UnsupportedError("the memory of this model cannot be saved: it is no plain KV cache")
        return data


def load_state(context: NativeContext, data: Any, n_tokens: int) -> None:
    """Put a saved KV cache in place of the context's own.

    Args:
        context: Made with the settings and by the build that saved it.
        data: What save_state() returned: any object with the buffer interface.
        n_tokens: Tokens in it.

    Raises:
        FormatError: It is damaged, or of another model, build or setting. The context is empty.
        ClosedError: After close().
    """
    state = np.frombuffer(data, dtype=np.uint8)
    with context._lock:
        handle = context.handle
        context.rewind(0)
        problem = _problem_with(state, n_tokens)
        if n_tokens > context.n_ctx:
            problem = f"it holds {n_tokens} tokens, the context {context.n_ctx}"
        if not problem:
            library.clear_log()
            read = context._api.llama_state_seq_set_data(handle, _pointer(state), len(state), 0)
            if read == len(state):
                context.n_past = n_tokens
                return
            problem = library.last_errors() or f"llama.cpp read {read} of {len(state)} bytes"
            context._api.llama_memory_clear(context._memory, False)
        raise FormatError(f"a saved KV cache does not fit this context: {problem}")


def _problem_with(state: NDArray[np.uint8], n_tokens: int) -> str:
    """Return what is wrong with the part of a state that says which positions it holds; "" when nothing is."""
    if len(state) < _HEAD_BYTES + n_tokens * _CELL.itemsize:
        return f"{len(state)} bytes are too few for {n_tokens} tokens"
    magic, sequence, n_streams, n_cells = (int(word) for word in state[:_HEAD_BYTES].view("<u4"))
    if (magic, sequence, n_streams) != (_MAGIC, 0, 1):
        return "it does not begin as llama.cpp's states of one sequence do"
    if n_cells != n_tokens:
        return f"it holds {n_cells} tokens, not {n_tokens}"
    cells = state[_HEAD_BYTES : _HEAD_BYTES + n_tokens * _CELL.itemsize].view(_CELL)
    is_plain = (cells["n_sequences"] == 1).all() and (cells["sequence"] == 0).all()
    if not is_plain or not np.array_equal(cells["position"], np.arange(n_tokens)):
        return f"its positions are not 0 to {n_tokens - 1}"
    return ""


def _pointer(data: NDArray[np.uint8]) -> Any:
    return data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
