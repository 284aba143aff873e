"""GGUF headers that are damaged or made to harm: only our own errors, little time, little memory."""

from __future__ import annotations

import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_edge.errors import GGUFError, QwenEdgeError, UnsupportedError
from qwen_edge.gguf_check import check_model_file
from qwen_edge.gguf_header import read_header, read_texts

U32, F32, STRING, ARRAY = 4, 6, 8, 9
F32_TENSOR = 0


def text(value: str | bytes) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def value(key: str | bytes, kind: int, data: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + data


def u32(key: str, number: int) -> bytes:
    return value(key, U32, struct.pack("<I", number))


def tensor(
    name: str | bytes = "a", shape: tuple[int, ...] = (8,), kind: int = F32_TENSOR, offset: int = 0
) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def file_bytes(
    values: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    n_values: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    counts = (
        len(tensors) if n_tensors is None else n_tensors,
        len(values) if n_values is None else n_values,
    )
    header = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(values) + b"".join(tensors)
    return header + bytes(-len(header) % alignment) + data


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gguf") / "x.gguf"


ALIGNMENT = "general.alignment"
BAD: dict[str, tuple[bytes, str]] = {
    "2^63 tensors": (file_bytes(n_tensors=2**63), "counts of 9,223,372,036,854,775,808 tensors"),
    "2^60 values": (file_bytes(n_values=2**60), "counts of 0 tensors and 1,152,921,504,606,846,976 values"),
    "more values than bytes": (file_bytes((u32("a", 1),), n_values=9), "cut off"),
    "empty key": (file_bytes((u32("", 1),)), "name of a value of 0 bytes"),
    "long key": (file_bytes((u32("a" * 65_536, 1),)), "name of a value of 65536 bytes"),
    "key of 2^63 bytes": (file_bytes((struct.pack("<Q", 2**63) + bytes(64),)), "name of a value of 9223372036854775808"),
    "key no UTF-8": (file_bytes((value(b"\xff\xfe", U32, bytes(4)),)), "no UTF-8"),
    "key twice": (file_bytes((u32("a", 1), u32("a", 2))), "'a' stands twice"),
    "array key twice": (file_bytes((value("a", ARRAY, struct.pack("<IQ", U32, 0)),) * 2), "'a' stands twice"),
    "unknown type": (file_bytes((value("a", 13, bytes(8)),)), "has type 13"),
    "nested array": (file_bytes((value("a", ARRAY, struct.pack("<IQ", ARRAY, 1) + bytes(32)),)), "array of type 9"),
    "array of 2^63": (file_bytes((value("a", ARRAY, struct.pack("<IQ", U32, 2**63)),)), "cut off"),
    "texts of 2^63": (file_bytes((value("a", ARRAY, struct.pack("<IQ", STRING, 2**63)),)), "cut off"),
    "text of 2^64": (file_bytes((value("a", STRING, struct.pack("<Q", 2**64 - 1)),)), "cut off"),
    "alignment 0": (file_bytes((u32(ALIGNMENT, 0),)), "is 0, expected a power of 2"),
    "alignment 33": (file_bytes((u32(ALIGNMENT, 33),)), "is 33, expected a power of 2"),
    "alignment a text": (file_bytes((value(ALIGNMENT, STRING, text("32")),)), "has type 8, expected 4"),
    "alignment negative": (file_bytes((value(ALIGNMENT, 5, struct.pack("<i", -32)),)), "has type 5"),
    "alignment an array": (file_bytes((value(ALIGNMENT, ARRAY, struct.pack("<IQI", U32, 1, 32)),)), "has type 9"),
    "alignment beyond the file": (file_bytes((u32(ALIGNMENT, 2**31),), (tensor(),), bytes(32)), "cut off"),
    "tensor without name": (file_bytes((), (tensor(""),), bytes(32)), "name of a tensor of 0 bytes"),
    "long tensor name": (file_bytes((), (tensor("a" * 64),), bytes(32)), "name of a tensor of 64 bytes"),
    "tensor name no UTF-8": (file_bytes((), (tensor(b"\xc3("),), bytes(32)), "no UTF-8"),
    "tensor twice": (file_bytes((), (tensor(), tensor(offset=32)), bytes(64)), "'a' stands twice"),
    "no dimensions": (file_bytes((), (tensor(shape=()),), bytes(32)), "0 dimensions"),
    "five dimensions": (file_bytes((), (tensor(shape=(1,) * 5),), bytes(32)), "5 dimensions"),
    "2^32-1 dimensions": (file_bytes((), (text("a") + b"\xff" * 32,)), "4294967295 dimensions"),
    "dimension 0": (file_bytes((), (tensor(shape=(8, 0)),), bytes(32)), r"shape \(8, 0\)"),
    "product 2^64": (file_bytes((), (tensor(shape=(2**32, 2**32)),), bytes(32)), "shape"),
    "product 2^63": (file_bytes((), (tensor(shape=(2**62, 2)),), bytes(32)), "shape"),
    "too long for the file": (file_bytes((), (tensor(shape=(2**60,)),), bytes(32)), "cut off"),
    "row of 33 in Q8_0": (file_bytes((), (tensor(shape=(33,), kind=8),), bytes(64)), "rows of 33 in Q8_0"),
    "overlap": (file_bytes((), (tensor(), tensor("b")), bytes(64)), "'b' begins at byte 0 of the data, expected 32"),
    "misaligned": (file_bytes((), (tensor(), tensor("b", offset=33)), bytes(99)), "begins at byte 33"),
    "a hole": (file_bytes((), (tensor(offset=64),), bytes(128)), "begins at byte 64 of the data, expected 0"),
    "huge offset": (file_bytes((), (tensor(offset=2**64 - 1),), bytes(64)), "expected 0"),
    "header only": (b"GGUF", "cut off"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_contradicts_itself_is_named(name: str, scratch: Path) -> None:
    content, said = BAD[name]
    scratch.write_bytes(content)
    with pytest.raises(GGUFError, match=said) as raised:
        read_header(scratch)
    assert str(scratch) in str(raised.value)
    assert raised.value.hint


@pytest.mark.parametrize(
    ("version", "said"),
    [(1, "GGUF version 1"), (4, "GGUF version 4"), (3 << 24, "big-endian"), (0, "version 0")],
)
def test_other_versions_are_unsupported(version: int, said: str, scratch: Path) -> None:
    scratch.write_bytes(file_bytes(version=version))
    with pytest.raises(UnsupportedError, match=said):
        read_header(scratch)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (file_bytes(n_values=2**20, n_tensors=2**20), "0 bytes"),
        (file_bytes((value("a", ARRAY, struct.pack("<IQ", STRING, 2**30)),)), "more than 128 MiB"),
        (file_bytes((value("a", STRING, struct.pack("<Q", 2**33)),)), "more than 128 MiB"),
        (file_bytes((value("a", ARRAY, struct.pack("<IQ", U32, 2**31)),)), "more than 128 MiB"),
    ],
)
def test_a_sparse_file_of_10_gb_is_not_read(head: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    path.write_bytes(head)
    os.truncate(path, 10 << 30)
    tracemalloc.start()
    try:
        with pytest.raises(GGUFError, match=said):
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_every_length_of_a_file_is_an_error_or_whole(float_gguf: Path, tmp_path: Path) -> None:
    whole = float_gguf.read_bytes()
    cut = tmp_path / "cut.gguf"
    header_bytes = read_header(float_gguf).header_bytes
    for length in [*range(header_bytes + 2), *range(header_bytes + 2, len(whole), 97), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(GGUFError, match=r"cut off|no GGUF file"):
            read_header(cut)


def test_texts_of_an_array(make_gguf: Callable[..., Path]) -> None:
    header = read_header(make_gguf())
    assert read_texts(header, "tokenizer.ggml.tokens") == [b"a", "ä".encode(), b"<|im_end|>"]
    assert read_texts(header, "tokenizer.ggml.scores") == []
    assert read_texts(header, "none") == []
    os.truncate(header.path, header.arrays["tokenizer.ggml.tokens"].start + 10)
    with pytest.raises(GGUFError, match="changed while it was read"):
        read_texts(header, "tokenizer.ggml.tokens")


NAME = value("general.architecture", STRING, text("qwen3"))
# llama.cpp reads a text up to its first zero byte, and gives a name of its own to each that is empty.
CUT_TWICE = struct.pack("<IQ", STRING, 3) + text("x") + text("") + text("x\0y")
EMPTY = struct.pack("<IQ", STRING, 3) + text("x") + text("") + text("\0")
TWICE = struct.pack("<IQ", STRING, 3) + text("x") + text("y") + text("x")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (u32("qwen3.block_count", 0), "block_count is 0, expected 1 to 512"),
        (u32("qwen3.block_count", 513), "block_count is 513"),
        (u32("qwen3.block_count", 2**32 - 1), "block_count is 4294967295"),
        (u32("qwen3.block_count", 2) + u32("qwen3.nextn_predict_layers", 3), "is 3, of 2 layers"),
        (value("qwen3.attention.layer_norm_rms_epsilon", F32, struct.pack("<f", float("nan"))), "is nan"),
        (value("qwen3.attention.layer_norm_rms_epsilon", F32, struct.pack("<f", -1.0)), "is -1.0"),
        (value("tokenizer.ggml.tokens", ARRAY, TWICE), "the token 'x' stands twice"),
        (value("tokenizer.ggml.tokens", ARRAY, CUT_TWICE), "the token 'x' stands twice"),
    ],
)
def test_values_at_which_llama_cpp_ends_the_process_are_refused(
    content: bytes, said: str, scratch: Path
) -> None:
    scratch.write_bytes(file_bytes((NAME, content), n_values=2 + content.count(b"nextn")))
    with pytest.raises(GGUFError, match=said):
        check_model_file(scratch)


def test_what_llama_cpp_can_judge_is_left_to_it(scratch: Path) -> None:
    scratch.write_bytes(file_bytes((NAME,), (tensor(kind=39),), bytes(32)))
    check_model_file(scratch)
    scratch.write_bytes(
        file_bytes(
            (NAME, u32("qwen3.block_count", 6), value("tokenizer.ggml.tokens", ARRAY, EMPTY)),
            (tensor(),),
            bytes(32),
        )
    )
    check_model_file(scratch)


patiently = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def read_or_refuse(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        header = read_header(path)
    except QwenEdgeError:
        return
    # Accepted: each tensor lies in the file, and none on another.
    position = 0
    for each in header.tensors:
        assert each.offset >= position
        position = each.offset + each.n_bytes
    assert header.header_bytes + position <= header.size_bytes
    assert len({each.name for each in header.tensors}) == len(header.tensors)


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("valid") / "x.gguf"
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_block_count(1)
    writer.add_custom_alignment(64)
    writer.add_array("tokenizer.ggml.tokens", ["a", "ä", "<|im_end|>"])
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.5])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    writer.add_tensor("a.weight", np.ones((2, 32), np.float32))
    writer.add_tensor("b.weight", np.ones((3, 2, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@patiently
@given(content=st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(scratch: Path, content: bytes) -> None:
    read_or_refuse(scratch, content)
    read_or_refuse(scratch, b"GGUF" + content)
    read_or_refuse(scratch, b"GGUF" + struct.pack("<I", 3) + content)


NUMBERS = st.sampled_from(
    [0, 1, 2, 3, 7, 31, 33, 2**31, 2**32 - 1, 2**32, 2**60, 2**63 - 1, 2**63, 2**64 - 1]
)
CHANGES = st.one_of(
    st.tuples(st.just("byte"), st.integers(0, 2000), st.integers(0, 255)),
    st.tuples(st.just("number"), st.integers(0, 2000), NUMBERS),
    st.tuples(st.just("cut"), st.integers(0, 2000), st.just(0)),
    st.tuples(st.just("remove"), st.integers(0, 2000), st.integers(1, 16)),
    st.tuples(st.just("repeat"), st.integers(0, 2000), st.integers(1, 64)),
)


def changed(content: bytes, change: tuple[str, int, int]) -> bytes:
    kind, position, amount = change
    at = position % len(content) if content else 0
    if kind == "byte":
        return content[:at] + bytes([amount]) + content[at + 1 :]
    if kind == "number":
        return content[:at] + amount.to_bytes(8, "little") + content[at + 8 :]
    if kind == "cut":
        return content[:at]
    if kind == "remove":
        return content[:at] + content[at + amount :]
    return content[: at + amount] + content[at:]


@patiently
@given(changes=st.lists(CHANGES, min_size=1, max_size=4))
def test_a_changed_file_is_read_or_refused(
    scratch: Path, valid: bytes, changes: list[tuple[str, int, int]]
) -> None:
    content = valid
    for change in changes:
        content = changed(content, change)
    read_or_refuse(scratch, content)


small = st.integers(0, 40) | NUMBERS
names = (
    st.text(max_size=5).map(str.encode) | st.binary(max_size=5) | st.sampled_from([b"a", ALIGNMENT.encode()])
)


def packed_value(name: bytes, kind: int, number: int, count: int) -> bytes:
    return value(
        name,
        kind,
        struct.pack("<IQ", number % 14, count) if kind == ARRAY else struct.pack("<Q", number % 2**64),
    )


@patiently
@given(
    values=st.lists(st.builds(packed_value, names, st.integers(0, 13), small, small), max_size=4),
    tensors=st.lists(
        st.builds(tensor, names, st.lists(small, max_size=4).map(tuple), st.integers(0, 45), small),
        max_size=4,
    ),
    n_data=st.integers(0, 300),
    counts=st.tuples(st.none() | small, st.none() | small),
)
def test_any_header_of_right_form_is_read_or_refused(
    scratch: Path, values: Any, tensors: Any, n_data: int, counts: tuple[int | None, int | None]
) -> None:
    content = file_bytes(
        tuple(values), tuple(tensors), bytes(n_data), n_values=counts[0], n_tensors=counts[1]
    )
    read_or_refuse(scratch, content)
