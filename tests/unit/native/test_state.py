"""States of one sequence among several: one form for all, and nothing damaged reaches llama.cpp."""

from __future__ import annotations

import ctypes
import threading
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qwen_edge.errors import FormatError, UnsupportedError
from qwen_edge.native import library, state
from qwen_edge.native.batch import NativeBatchContext

MAGIC = 0xAF143CD8
BODY = b"keys and values"


def words(*values: int) -> bytes:
    return np.array(values, dtype=np.int64).astype("<u4").tobytes()


def written(sequence: int, n_streams: int, n_tokens: int) -> bytes:
    """Return what llama.cpp writes, as its source says."""
    parts = [words(MAGIC, sequence, n_streams)]
    for stream in range(n_streams):
        count = n_tokens if stream == sequence else 0
        parts.append(words(count))
        if count:
            parts += [words(position, 1, sequence) for position in range(count)] + [BODY]
    return b"".join(parts)


class FakeLibrary:
    """Sequences as states; takes only what llama.cpp would survive."""

    def __init__(self, n_sequences: int) -> None:
        self.n_sequences = n_sequences
        self.lengths = [0] * n_sequences
        self.written: bytes | None = None
        self.refuses = False

    def data(self, sequence: int) -> bytes:
        if self.written is not None:
            return self.written
        return written(sequence, self.n_sequences, self.lengths[sequence])

    def llama_state_seq_get_size(self, handle: Any, sequence: int) -> int:
        return len(self.data(sequence))

    def llama_state_seq_get_data(self, handle: Any, pointer: Any, size: int, sequence: int) -> int:
        ctypes.memmove(pointer, self.data(sequence), size)
        return size

    def llama_state_seq_set_data(self, handle: Any, pointer: Any, size: int, sequence: int) -> int:
        data = np.frombuffer(ctypes.string_at(pointer, size), dtype="u1")
        assert self.lengths[sequence] == 0
        before = 12 + 4 * sequence
        assert data[:12].tobytes() == words(MAGIC, sequence, self.n_sequences)
        assert not data[12:before].any()
        n_tokens = int(data[before : before + 4].view("<u4")[0])
        cells = data[before + 4 : before + 4 + 12 * n_tokens].view("<u4").reshape(-1, 3)
        assert cells[:, 0].tolist() == list(range(n_tokens))
        self.lengths[sequence] = n_tokens
        return size - 1 if self.refuses else size

    def llama_memory_seq_rm(self, memory: Any, sequence: int, start: int, end: int) -> bool:
        self.lengths[sequence] = max(0, start)
        return True


def shared(n_sequences: int, api: FakeLibrary) -> NativeBatchContext:
    def rewind(sequence: int, n_tokens: int) -> int:
        api.lengths[sequence] = n_tokens
        return n_tokens

    return cast(
        NativeBatchContext,
        SimpleNamespace(
            _api=api, _lock=threading.RLock(), _memory=1, handle=1, n_ctx=64, n_sequences=n_sequences,
            rewind=rewind,
        ),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def no_native_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "clear_log", lambda: None)
    monkeypatch.setattr(library, "last_errors", lambda: "")


@given(st.data(), st.integers(0, 5), st.integers(1, 16))
def test_all_streams_have_one_form(data: st.DataObject, n_tokens: int, n_streams: int) -> None:
    sequence = data.draw(st.integers(0, n_streams - 1))
    many = np.frombuffer(bytearray(written(sequence, n_streams, n_tokens)), dtype=np.uint8)
    single = state.as_single(many, sequence, n_streams)
    assert single is not None
    assert single.tobytes() == written(0, 1, n_tokens)
    again = state.as_one_of(single, sequence, n_streams)
    assert len(again) == len(written(sequence, n_streams, n_tokens))
    back = state.as_single(again, sequence, n_streams)
    assert back is not None
    assert back.tobytes() == written(0, 1, n_tokens)


@given(st.binary(max_size=80), st.integers(1, 5), st.data())
def test_other_bytes_are_no_state(junk: bytes, n_streams: int, data: st.DataObject) -> None:
    sequence = data.draw(st.integers(0, n_streams - 1))
    assert state.as_single(np.frombuffer(bytearray(junk), dtype=np.uint8), sequence, n_streams) is None


@pytest.mark.parametrize("change", [
    lambda data: data[:-8],  # the last empty streams are missing
    lambda data: data[:20],
    lambda data: words(MAGIC, 1, 4) + data[12:],  # another sequence
    lambda data: words(MAGIC, 2, 5) + data[12:],  # another number of streams
    lambda data: data[:12] + words(1) + data[16:],  # cells in a stream before
    lambda data: data[:-4] + words(1),  # and behind
    lambda data: data[:20] + words(10**9) + data[24:],  # more cells than bytes
])  # fmt: skip
def test_what_is_no_plain_kv_cache_cannot_be_saved(change: Any) -> None:
    api = FakeLibrary(4)
    api.lengths[2] = 3
    api.written = change(written(2, 4, 3))
    with pytest.raises(UnsupportedError, match="no plain KV cache"):
        state.save_sequence(shared(4, api), 2, 3)


def test_a_state_moves_between_places_and_contexts() -> None:
    one, other = FakeLibrary(4), FakeLibrary(3)
    one.lengths[:] = [7, 0, 5, 1]
    saved = state.save_sequence(shared(4, one), 2, 5)
    assert saved.tobytes() == written(0, 1, 5)
    other.lengths[:] = [2, 9, 4]
    state.load_sequence(shared(3, other), 1, saved.tobytes(), 5)
    assert other.lengths == [2, 5, 4]
    assert one.lengths == [7, 0, 5, 1]


def damaged_states() -> list[tuple[NDArray[np.uint8], int]]:
    whole = np.frombuffer(written(0, 1, 5), dtype=np.uint8)
    cases = [(whole, 4), (whole, 6), (whole[:70], 5), (whole[:2], 5), (whole[:0], 0)]
    cases.append((np.frombuffer(written(0, 1, 65), dtype=np.uint8), 65))  # more than the context holds
    cases.append((np.frombuffer(written(1, 4, 5), dtype=np.uint8), 5))  # not brought to the one form
    for index in range(16 + 12 * 5):
        flipped = whole.copy()
        flipped[index] ^= 0x80
        cases.append((flipped, 5))
    return cases


@pytest.mark.parametrize(("data", "n_tokens"), damaged_states())
def test_damage_does_not_reach_the_library(data: NDArray[np.uint8], n_tokens: int) -> None:
    api = FakeLibrary(3)
    api.lengths[:] = [2, 9, 4]
    with pytest.raises(FormatError, match="does not fit this context"):
        state.load_sequence(shared(3, api), 1, data, n_tokens)
    assert api.lengths == [2, 0, 4]


def test_what_the_library_refuses_leaves_that_sequence_empty() -> None:
    api = FakeLibrary(3)
    api.refuses = True
    api.lengths[:] = [2, 9, 4]
    with pytest.raises(FormatError, match="read 98 of 99 bytes"):
        state.load_sequence(shared(3, api), 1, written(0, 1, 5), 5)
    assert api.lengths == [2, 0, 4]
