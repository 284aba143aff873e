"""Matrices of every form, written and then multiplied and looked up by ONNX Runtime: the bytes are what its kernels read."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from qwen_edge.convert.onnx_blocks import BlockFormat, dequantize_rows, quantize_rows
from qwen_edge.convert.onnx_data import DATA_NAME, DataFile
from qwen_edge.convert.onnx_nodes import GraphBuilder, StoredMatrix
from qwen_edge.convert.onnx_plain import PlainBuilder
from qwen_edge.convert.safetensors_file import TensorEntry
from tests.onnx_models import session

FORMS = [
    BlockFormat(bits=bits, block_size=size, symmetric=symmetric)  # type: ignore[arg-type]
    for bits in (4, 8)
    for size in (32, 64, 128)
    for symmetric in (True, False)
]
# 96 columns are 3, 2 and 1 blocks: an odd number of 4-bit zero points, and a block that is half full.
ROWS, COLUMNS = 21, 96


class ArraySource(TensorEntry):
    """A tensor in memory."""

    def __init__(self, values: NDArray[np.float32]) -> None:
        super().__init__("w", "F32", values.shape, Path("memory"), 0, values.nbytes)
        object.__setattr__(self, "values", values)

    def read_pieces(self, piece_bytes: int) -> Generator[bytes, None, None]:
        whole = self.values.tobytes()  # type: ignore[attr-defined]
        for start in range(0, len(whole), piece_bytes):
            yield whole[start : start + piece_bytes]


def write(folder: Path, graph: GraphBuilder, data: DataFile, inputs: list[Any], shape: list[int]) -> None:
    graph.node("Identity", "/out", ["product"], outputs=["y"])
    model = graph.model(
        "one",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        is_plain=isinstance(graph, PlainBuilder),
        properties={},
    )
    onnx.save(model, folder / "model.onnx")
    data.write(folder / DATA_NAME)


def stored(
    parts: list[NDArray[np.float32]], form: BlockFormat, data: DataFile, is_plain: bool
) -> StoredMatrix:
    sources = [ArraySource(part) for part in parts]
    levels, scales, zeros = data.add_blocks(sources, form, "nearest", None, is_plain=is_plain)
    rows = sum(map(len, parts))
    return StoredMatrix(
        rows=rows, columns=COLUMNS, values=levels, scales=scales, zeros=zeros, blocks=form, level=0
    )


@pytest.mark.parametrize("builder", [GraphBuilder, PlainBuilder])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_products_with_one_are_the_weights_bit_for_bit(
    form: BlockFormat, builder: type[GraphBuilder], tmp_path: Path
) -> None:
    weights = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    data, graph = DataFile(), builder()
    # Two matrices, one below the other, so that packed rows of both meet.
    matrix = stored([weights[:8], weights[8:]], form, data, builder is PlainBuilder)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", COLUMNS])]
    graph.node("Identity", "/product", [graph.matmul("/m", "x", matrix, "m")], outputs=["product"])
    write(tmp_path, graph, data, inputs, [COLUMNS, ROWS])
    (found,) = session(tmp_path).run(None, {"x": np.eye(COLUMNS, dtype=np.float32)})
    expected = dequantize_rows(quantize_rows(weights, form), form, COLUMNS)
    np.testing.assert_array_equal(found.T, expected)


@pytest.mark.parametrize(
    ("builder", "form"),
    [
        *((GraphBuilder, form) for form in FORMS),
        *((PlainBuilder, form) for form in FORMS if form.bits == 8),
    ],
    ids=str,
)
def test_rows_looked_up_are_the_weights_bit_for_bit(
    form: BlockFormat, builder: type[GraphBuilder], tmp_path: Path
) -> None:
    weights = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    data, graph = DataFile(), builder()
    matrix = stored([weights], form, data, builder is PlainBuilder)
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["b", "s"])]
    graph.node("Identity", "/product", [graph.gather_rows("/m", "ids", matrix, "m")], outputs=["product"])
    write(tmp_path, graph, data, inputs, ["b", "s", COLUMNS])  # type: ignore[list-item]
    ids = np.array([[20, 0, 3], [7, 7, 1]])
    (found,) = session(tmp_path).run(None, {"ids": ids})
    np.testing.assert_array_equal(found, dequantize_rows(quantize_rows(weights, form), form, COLUMNS)[ids])


def test_rows_are_quantized_alike_whatever_is_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    written = []
    for slice_bytes in (1, 5 * COLUMNS * 4, 1 << 20):
        monkeypatch.setattr("qwen_edge.convert.onnx_data._SLICE_BYTES", slice_bytes)
        for is_plain in (False, True):
            data = DataFile()
            stored([weights], BlockFormat(bits=4, symmetric=False), data, is_plain)
            data.write(tmp_path / f"{slice_bytes}-{is_plain}")
            written.append((tmp_path / f"{slice_bytes}-{is_plain}").read_bytes())
    assert written[0::2] == [written[0]] * 3
    assert written[1::2] == [written[1]] * 3
    assert written[0] != written[1], "96 columns are 3 blocks: the plain form has no half bytes between rows"
