"""The KV cache of one conversation as bytes, and back.

llama.cpp writes a sequence as it lies in its context: under its number, and with a count of cells for every stream, which
is one for each sequence where several share a context. Here all are brought to one form, sequence 0 of a single stream,
so that what one context saved goes into any other::

    magic, sequence, streams, 0 … 0, cells, [cells and data], 0 … 0     of sequence s among several: s zeros before it
    magic, 0, 1, cells, [cells and data]                                as it is saved, and as a context alone has it

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
from qwen_edge.native.batch import NativeBatchContext
from qwen_edge.native.handles import NativeContext

# Source: src/llama-context.cpp, io_magic, and state_seq_get_data: magic, sequence, then the memory's own form.
_MAGIC = 0xAF143CD8
# Source: src/llama-kv-cache.cpp, state_write and state_write_meta: the number of streams, and for each its cells; where
# there are any, of each its position, the number of sequences it belongs to, and these; then the data.
_WORD_BYTES = 4
_STREAMS_AT_BYTES = 3 * _WORD_BYTES
_HEAD_BYTES = 4 * _WORD_BYTES
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
        assert context.handle, "Bug: handle raises when closed"
        context.rewind(context.n_past)  # drops what an interrupted call may have left behind
        return _get(context, 0, 1, context.n_past)


def load_state(context: NativeContext, data: Any, n_tokens: int) -> None:
    """Put a saved KV cache in place of the context's own.

    Args:
        context: Made with the settings and by the build that saved it.
        data: What save_state() or save_sequence() returned: any object with the buffer interface.
        n_tokens: Tokens in it.

    Raises:
        FormatError: It is damaged, or of another model, build or setting. The context is empty.
        ClosedError: After close().
    """
    with context._lock:
        assert context.handle, "Bug: handle raises when closed"
        context.rewind(0)
        _set(context, 0, 1, data, n_tokens)
        context.n_past = n_tokens


def save_sequence(context: NativeBatchContext, sequence: int, n_tokens: int) -> NDArray[np.uint8]:
    """Return the KV cache of one of several sequences, as save_state() does of a context alone.

    Args:
        context: Where it is.
        sequence: Which one.
        n_tokens: Tokens that it has; rewound to, so that nothing of an interrupted call is behind them.

    Raises:
        UnsupportedError, ClosedError: As in save_state().
    """
    with context._lock:
        return _get(context, sequence, context.n_sequences, n_tokens)


def load_sequence(context: NativeBatchContext, sequence: int, data: Any, n_tokens: int) -> None:
    """Put a saved KV cache in place of a sequence's own, as load_state() does; the others stay as they are.

    Raises:
        FormatError, ClosedError: As in load_state(); the sequence is empty.
    """
    with context._lock:
        context.rewind(sequence, 0)
        _set(context, sequence, context.n_sequences, data, n_tokens)


def as_single(data: NDArray[np.uint8], sequence: int, n_streams: int) -> NDArray[np.uint8] | None:
    """Return the state of one sequence among several as that of a sequence alone; None where it is no such state.

    Args:
        data: uint8 [n_bytes], as llama.cpp wrote it; changed in place.
        sequence: Which one it is.
        n_streams: Of the context that wrote it.

    Returns:
        uint8 [n_bytes - 4 * (n_streams - 1)], a view of data.
    """
    n_behind = n_streams - 1 - sequence
    start, end = sequence * _WORD_BYTES, len(data) - n_behind * _WORD_BYTES
    if end - start < _HEAD_BYTES:
        return None
    head = data[:_STREAMS_AT_BYTES].view("<u4")
    others = (data[_STREAMS_AT_BYTES : _STREAMS_AT_BYTES + start], data[end:])
    if head.tolist() != [_MAGIC, sequence, n_streams] or any(other.any() for other in others):
        return None
    single = data[start:end]
    single[:_STREAMS_AT_BYTES].view("<u4")[:] = (_MAGIC, 0, 1)
    n_cells = int(single[_STREAMS_AT_BYTES:_HEAD_BYTES].view("<u4")[0])
    if len(single) < _HEAD_BYTES + n_cells * _CELL.itemsize:
        return None
    single[_HEAD_BYTES : _HEAD_BYTES + n_cells * _CELL.itemsize].view(_CELL)["sequence"] = 0
    return single


def as_one_of(single: NDArray[np.uint8], sequence: int, n_streams: int) -> NDArray[np.uint8]:
    """Return the state of a sequence alone as that of one among several: what as_single() undoes.

    The cells go on saying that they belong to sequence 0: llama.cpp does not look at that.

    Args:
        single: uint8 [n_bytes], at least a head.
        sequence: Which one it becomes.
        n_streams: Of the context that will read it.
    """
    head = np.zeros(3 + sequence, dtype="<u4")
    head[:3] = (_MAGIC, sequence, n_streams)
    behind = np.zeros(n_streams - 1 - sequence, dtype="<u4")
    return np.concatenate([head.view(np.uint8), single[_STREAMS_AT_BYTES:], behind.view(np.uint8)])


def _get(
    context: NativeContext | NativeBatchContext, sequence: int, n_streams: int, n_tokens: int
) -> NDArray[np.uint8]:
    api, handle = context._api, context.handle
    data = np.empty(api.llama_state_seq_get_size(handle, sequence), dtype=np.uint8)
    written = api.llama_state_seq_get_data(handle, _pointer(data), len(data), sequence)
    state = as_single(data, sequence, n_streams) if written == len(data) else None
    if state is None or _problem_with(state, n_tokens):
        raise UnsupportedError("the memory of this model cannot be saved: it is no plain KV cache")
    return state


def _set(
    context: NativeContext | NativeBatchContext, sequence: int, n_streams: int, data: Any, n_tokens: int
) -> None:
    """Load a state into a sequence that is empty, and leave it so where that fails."""
    api, handle = context._api, context.handle
    state = np.frombuffer(data, dtype=np.uint8)
    problem = _problem_with(state, n_tokens)
    if n_tokens > context.n_ctx:
        problem = f"it holds {n_tokens} tokens, the context {context.n_ctx}"
    if not problem:
        if n_streams > 1:
            state = as_one_of(state, sequence, n_streams)
        library.clear_log()
        read = api.llama_state_seq_set_data(handle, _pointer(state), len(state), sequence)
        if read == len(state):
            return
        problem = library.last_errors() or f"llama.cpp read {read} of {len(state)} bytes"
        api.llama_memory_seq_rm(context._memory, sequence, -1, -1)
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
