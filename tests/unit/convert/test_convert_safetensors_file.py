from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from qwen_edge.convert.checkpoint import INDEX_NAME, open_checkpoint
from qwen_edge.convert.safetensors_file import read_header
from qwen_edge.errors import CheckpointError, QwenEdgeError, UnsupportedError

# A loaded machine is no failure.
patiently = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _file(path: Path, header: Any, data: bytes = b"") -> Path:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)
    return path


def _tensor(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize("dtype", [np.dtype("f4"), np.dtype("f2"), np.dtype(ml_dtypes.bfloat16)])
def test_reads_what_the_safetensors_package_wrote(tmp_path: Path, dtype: np.dtype[Any]) -> None:
    generator = np.random.default_rng(0)
    arrays = {f"t{n}": generator.standard_normal((n, 3)).astype(dtype) for n in range(1, 6)}
    arrays["scalar"] = np.array(1.5, dtype=dtype)
    arrays["empty"] = np.zeros((0, 4), dtype=dtype)
    save_file(arrays, tmp_path / "model.safetensors", metadata={"format": "pt"})
    entries = {entry.name: entry for entry in read_header(tmp_path / "model.safetensors")}
    assert entries.keys() == arrays.keys()
    for name, array in arrays.items():
        assert entries[name].shape == array.shape
        assert entries[name].n_elements == array.size
        pieces = list(entries[name].read_pieces(8))
        assert all(len(piece) <= 8 for piece in pieces)
        assert b"".join(pieces) == array.tobytes()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cut off"),
        (b"\x10\0\0", "cut off"),
        (b"\xff" * 8 + b"{}", "cut off"),
        (b"\x02\0\0\0\0\0\0\0{", "cut off"),
        (b"\x02\0\0\0\0\0\0\0{]", "not valid JSON"),
        (b"\x02\0\0\0\0\0\0\0\xff\xfe", "not valid JSON"),
        (b"\x02\0\0\0\0\0\0\0[]", "a JSON list, expected an object"),
    ],
)
def test_refuses_what_is_no_safetensors_file(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=said) as raised:
        read_header(tmp_path / "x.safetensors")
    assert "x.safetensors" in str(raised.value)
    assert raised.value.hint


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (7, "expected an object"),
        ({"dtype": "F32", "shape": [2]}, "expected an object with dtype"),
        (_tensor(dtype=5), "dtype 5"),
        (_tensor(shape=3), "shape 3"),
        (_tensor(shape=[True]), r"shape \[true\]"),
        (_tensor(shape=[-2]), r"shape \[-2\]"),
        (_tensor(shape=[2.0]), r"shape \[2.0\]"),
        (_tensor(shape=[2**70]), "shape"),
        (_tensor(shape=[1] * 9), "shape"),
        (_tensor(offsets=[0]), "data_offsets"),
        (_tensor(offsets=[8, 0]), "data_offsets"),
        (_tensor(offsets=[0, -8]), "data_offsets"),
        (_tensor(shape=[3]), "spans 8 bytes, but F32 of shape .* takes 12"),
        (_tensor(offsets=[4, 12]), "leave a hole"),
    ],
)
def test_names_the_tensor_whose_entry_is_wrong(tmp_path: Path, tensor: Any, said: str) -> None:
    path = _file(tmp_path / "x.safetensors", {"model.norm.weight": tensor}, bytes(8))
    with pytest.raises(CheckpointError, match=said) as raised:
        read_header(path)
    assert "'model.norm.weight'" in str(raised.value)
    assert str(path) in str(raised.value)


def test_refuses_a_tensor_listed_twice(tmp_path: Path) -> None:
    entry = json.dumps(_tensor())
    path = _file(tmp_path / "x.safetensors", f'{{"a": {entry}, "a": {entry}}}'.encode(), bytes(8))
    with pytest.raises(CheckpointError, match="'a' stands twice"):
        read_header(path)


def test_refuses_overlapping_tensors(tmp_path: Path) -> None:
    path = _file(tmp_path / "x.safetensors", {"a": _tensor(), "b": _tensor(offsets=[4, 12])}, bytes(12))
    with pytest.raises(CheckpointError, match=r"'b' begins at .*overlap"):
        read_header(path)


def test_names_the_first_tensor_that_a_truncated_file_cuts(tmp_path: Path) -> None:
    header = {"a": _tensor(), "b": _tensor(offsets=[8, 16]), "c": _tensor(offsets=[16, 24])}
    path = _file(tmp_path / "x.safetensors", header, bytes(24))
    os.truncate(path, path.stat().st_size - 12)
    with pytest.raises(CheckpointError, match=r"truncated.*first incomplete tensor is 'b'"):
        read_header(path)


def test_refuses_bytes_that_no_tensor_claims(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tensor claims"):
        read_header(_file(tmp_path / "x.safetensors", {"a": _tensor()}, bytes(9)))


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = _file(tmp_path / "x.safetensors", {"a": _tensor()}, bytes(8))
    (entry,) = read_header(path)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="before the end of 'a'"):
        list(entry.read_pieces(4))


def test_other_number_formats_are_unsupported_by_name(tmp_path: Path) -> None:
    path = _file(tmp_path / "x.safetensors", {"a.weight": _tensor(dtype="F8_E4M3")}, bytes(8))
    (entry,) = read_header(path)
    with pytest.raises(UnsupportedError, match=r"'a.weight' in .* is stored as F8_E4M3"):
        entry.check_convertible()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
sizes = st.integers(-2, 12) | st.integers() | json_values
entries = json_values | st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "I64"]) | json_values,
        "shape": st.lists(sizes, max_size=3) | json_values,
        "data_offsets": st.lists(sizes, max_size=3) | json_values,
    }
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("headers") / "x.safetensors"


def _read_or_refuse(path: Path) -> None:
    try:
        found = read_header(path)
    except QwenEdgeError:
        return
    for entry in found:
        assert sum(len(piece) for piece in entry.read_pieces(64)) == entry.n_bytes


@patiently
@given(content=st.binary(max_size=200))
def test_any_bytes_end_in_a_header_or_in_our_error(scratch: Path, content: bytes) -> None:
    scratch.write_bytes(content)
    _read_or_refuse(scratch)


@patiently
@given(header=st.dictionaries(st.text(max_size=8), entries, max_size=4), n_bytes=st.integers(0, 40))
def test_any_json_header_ends_in_a_header_or_in_our_error(scratch: Path, header: Any, n_bytes: int) -> None:
    _read_or_refuse(_file(scratch, header, bytes(n_bytes)))


@patiently
@given(header=st.binary(max_size=100))
def test_any_header_bytes_end_in_a_header_or_in_our_error(scratch: Path, header: bytes) -> None:
    _read_or_refuse(_file(scratch, header))


@pytest.mark.parametrize("header", [b"[" * 100_000, b'{"a":' * 50_000, b'{"a":' + b"9" * 10_000 + b"}"])
def test_deep_or_huge_json_ends_in_our_error(scratch: Path, header: bytes) -> None:
    with pytest.raises(CheckpointError):
        read_header(_file(scratch, header))


def test_a_name_that_is_no_text_is_refused(scratch: Path) -> None:
    with pytest.raises(CheckpointError, match="no Unicode text"):
        read_header(
            _file(scratch, b'{"\\ud800": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', bytes(8))
        )


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 8]}}', "shape"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, Infinity]}}', "data_offsets"),
        (
            b'{"a": {"dtype": "F32", "dtype": "F16", "shape": [2], "data_offsets": [0, 8]}}',
            "'dtype' stands twice",
        ),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}\0\0', "not valid JSON"),
    ],
)
def test_what_json_readers_let_through_is_refused(scratch: Path, header: bytes, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        read_header(_file(scratch, header, bytes(8)))


def test_padding_of_the_header_is_allowed(scratch: Path) -> None:
    header = json.dumps({"a": _tensor()}).encode() + b" " * 13
    (entry,) = read_header(_file(scratch, header, bytes(8)))
    assert entry.offset == 8 + len(header)


def test_a_header_length_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse.safetensors"
    path.write_bytes((8 << 30).to_bytes(8, "little"))
    os.truncate(path, 10 << 30)
    with pytest.raises(CheckpointError, match="header length 8589934592"):
        read_header(path)


@patiently
@given(
    changes=st.lists(
        st.tuples(
            st.sampled_from(["set", "remove", "repeat", "cut"]), st.integers(0, 600), st.integers(0, 255)
        ),
        min_size=1,
        max_size=4,
    )
)
def test_a_changed_file_ends_in_a_header_or_in_our_error(
    scratch: Path, changes: list[tuple[str, int, int]]
) -> None:
    save_file({"a": np.ones((2, 3), "f4"), "b": np.ones(5, "f2")}, scratch, metadata={"format": "pt"})
    content = bytearray(scratch.read_bytes())
    for kind, position, amount in changes:
        at = position % max(len(content), 1)
        if kind == "set":
            content[at : at + 1] = bytes([amount])
        elif kind == "remove":
            del content[at : at + amount % 16]
        elif kind == "repeat":
            content[at:at] = content[at : at + amount]
        else:
            del content[at:]
    scratch.write_bytes(content)
    _read_or_refuse(scratch)


@patiently
@given(
    index=st.dictionaries(
        st.sampled_from(["weight_map", "metadata"]),
        st.dictionaries(
            st.sampled_from(["a", "b"]) | st.text(max_size=4),
            st.sampled_from(["x.safetensors", "y.safetensors", "../x.safetensors", "€" * 240 + ".safetensors"]) | json_values,
            max_size=3,
        )
        | json_values,
    )
    | json_values
)  # fmt: skip
def test_any_index_is_opened_or_refused(scratch: Path, index: Any) -> None:
    folder = scratch.parent / "indexed"
    folder.mkdir(exist_ok=True)
    save_file({"a": np.ones(2, "f4")}, folder / "x.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / INDEX_NAME).write_text(json.dumps(index))
    try:
        checkpoint = open_checkpoint(folder)
    except QwenEdgeError:
        return
    assert set(checkpoint.tensors) == {"a"}
