"""Reading an ONNX file's names and checking its weights, against onnx's own writer; and files that are damaged."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from qwen_edge.engines.onnx_file import ExternalTensor, read_onnx_file
from qwen_edge.errors import FormatError


def external(name: str, **entries: object) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def write(folder: Path, *initializers: TensorProto, data_bytes: int = 32) -> Path:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, [4])],
        [value("y", TensorProto.FLOAT, [4])],
        [helper.make_tensor("inside", TensorProto.FLOAT, [2], [1.0, 2.0]), *initializers],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )
    helper.set_model_props(model, {"key": "värde"})
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "model.onnx.data").write_bytes(bytes(data_bytes))
    return folder / "model.onnx"


def test_reads_what_onnx_writes(tmp_path: Path) -> None:
    file = read_onnx_file(
        write(
            tmp_path,
            external("w", location="model.onnx.data", offset=16, length=16),
            external("v", location="model.onnx.data"),
        )
    )
    assert (file.ir_version, file.opsets) == (10, {"": 21, "com.microsoft": 1})
    assert (file.inputs, file.outputs, file.metadata) == (("x",), ("y",), {"key": "värde"})
    assert file.external == (
        ExternalTensor("w", "model.onnx.data", 16, 16),
        ExternalTensor("v", "model.onnx.data", 0, 0),
    )
    assert file.data_files == (tmp_path / "model.onnx.data",)


@pytest.mark.parametrize(("entries", "message"), [
    ({"location": "model.onnx.data", "offset": 17, "length": 16}, "ends at byte 33, the file has 32"),
    ({"location": "model.onnx.data", "offset": -1, "length": 4}, "too short"),
    ({"location": "absent.data", "length": 4}, "which is not there"),
    ({"location": "../model.onnx.data", "length": 4}, "outside its folder"),
    ({"location": "/etc/hostname", "length": 1}, "outside its folder"),
    ({"location": "model.onnx.data", "length": "many"}, "no ONNX file, or damaged"),
    ({"offset": 1}, "outside its folder"),
])  # fmt: skip
def test_weights_that_are_not_there(tmp_path: Path, entries: dict[str, object], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read_onnx_file(write(tmp_path, external("w", **entries)))


@pytest.mark.parametrize("data", [b"", b"hello, not a model", b"GGUF" + bytes(100), b"\xff" * 64])
def test_other_files_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"model\.onnx is no ONNX file"):
        read_onnx_file(path)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(end=st.integers(0, 400), place=st.integers(0, 400), flip=st.integers(0, 255))
def test_damage_raises_no_other_error_than_ours(tmp_path: Path, end: int, place: int, flip: int) -> None:
    path = write(tmp_path, external("w", location="model.onnx.data", offset=0, length=32))
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= flip
    path.write_bytes(data[: len(data) - end % len(data)])
    with contextlib.suppress(FormatError):
        read_onnx_file(path)
