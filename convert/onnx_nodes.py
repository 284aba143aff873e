"""A graph in the making: nodes whose names are paths, constants, and matrices in whatever form they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen_edge.convert.onnx_blocks import BlockFormat
from qwen_edge.convert.onnx_data import Region
from qwen_edge.convert.onnx_precision import AccuracyLevel
from qwen_edge.errors import MissingExtraError

try:
    from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper
except ImportError as error:
    raise MissingExtraError("onnx", "convert", "writing an ONNX model") from error

CONTRIB = "com.microsoft"
# Opset 21 is the first with 4-bit types and blocks in DequantizeLinear; ONNX Runtime knows it since 1.20.
OPSET, CONTRIB_OPSET, IR_VERSION = 21, 1, 10


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMatrix:
    """A weight matrix [rows, columns], as in the checkpoint, or several one below the other.

    Attributes:
        rows: Outputs.
        columns: Inputs.
        values: Bytes of the weights, or of their levels.
        scales: F16 [rows, blocks], None for F32 and F16.
        zeros: Zero points, where the format has them.
        blocks: The format of levels.
        level: Accuracy level of products with it.
    """

    rows: int
    columns: int
    values: Region
    scales: Region | None = None
    zeros: Region | None = None
    blocks: BlockFormat | None = None
    level: AccuracyLevel = 0


class GraphBuilder:
    """Collects nodes and initializers. Values are named after the node that makes them."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._initializers: dict[str, TensorProto] = {}
        self._widened: dict[str, str] = {}

    def node(
        self,
        kind: str,
        path: str,
        inputs: Sequence[str],
        *,
        outputs: Sequence[str] | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Add a node and return its first output.

        Args:
            kind: The operator.
            path: The node's name.
            inputs: Names of values, "" for one left out.
            outputs: Names of its results; by default one, PATH/output.
            domain: "" for the standard, CONTRIB for ONNX Runtime's operators.
            **attributes: Of the operator.
        """
        names = [f"{path}/output"] if outputs is None else list(outputs)
        self._nodes.append(
            helper.make_node(kind, list(inputs), names, name=path, domain=domain, **attributes)
        )
        return names[0]

    def constant(self, name: str, values: Any, data_type: type[np.generic] = np.int64) -> str:
        """Add a small constant, kept in the graph itself; one of this name that is there already is taken."""
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(np.asarray(values, data_type), name)
        return name

    def weight(self, name: str, region: Region) -> str:
        """Add an initializer that lies in the data file, once for each name."""
        if name not in self._initializers:
            self._initializers[name] = region.initializer(name)
        return name

    def floats(self, name: str, region: Region) -> str:
        """Add an initializer of F32, or one of F16 that is widened when the model is loaded."""
        if region.data_type != TensorProto.FLOAT16:
            return self.weight(name, region)
        if name not in self._widened:
            path = f"/{name.replace('.', '/')}/Cast"
            half = self.weight(f"{name}.f16", region)
            self._widened[name] = self.node("Cast", path, [half], to=TensorProto.FLOAT)
        return self._widened[name]

    def matmul(self, path: str, x: str, matrix: StoredMatrix, name: str, bias: str = "") -> str:
        """Multiply rows of x with the transposed matrix, in ONNX Runtime's operators.

        Args:
            path: The node's name.
            x: float32 [..., columns].
            matrix: [rows, columns].
            name: Of its initializers.
            bias: float32 [rows], or none.

        Returns:
            float32 [..., rows].
        """
        form = matrix.blocks
        if form is None:
            weight = self.floats(f"{name}.weight", matrix.values)
            product = self.node("FusedMatMul", f"{path}/MatMul", [x, weight], domain=CONTRIB, transB=1)
            return self.node("Add", f"{path}/Add", [product, bias]) if bias else product
        assert matrix.scales is not None, "Bug: blocks without scales"
        inputs = [
            x,
            self.weight(f"{name}.levels", matrix.values),
            self.floats(f"{name}.scales", matrix.scales),
            self.weight(f"{name}.zeros", matrix.zeros) if matrix.zeros is not None else "",
            "",
            bias,
        ]
        while not inputs[-1]:
            inputs.pop()
        return self.node(
            "MatMulNBits",
            f"{path}/MatMulNBits",
            inputs,
            domain=CONTRIB,
            K=matrix.columns,
            N=matrix.rows,
            bits=form.bits,
            block_size=form.block_size,
            accuracy_level=matrix.level,
        )

    def gather_rows(self, path: str, tokens: str, matrix: StoredMatrix, name: str) -> str:
        """Look rows up, in ONNX Runtime's operators.

        The levels go under a name of their own: GatherBlockQuantized wants two dimensions where MatMulNBits wants
        three, and a Reshape would hold them twice.

        Returns:
            float32 [tokens' shape, columns].
        """
        form = matrix.blocks
        if form is None:
            if matrix.values.data_type == TensorProto.FLOAT16:
                rows = self.node(
                    "Gather", f"{path}/Gather", [self.weight(f"{name}.weight.f16", matrix.values), tokens]
                )
                return self.node("Cast", f"{path}/Cast", [rows], to=TensorProto.FLOAT)
            return self.node(
                "Gather", f"{path}/Gather", [self.weight(f"{name}.weight", matrix.values), tokens]
            )
        assert matrix.scales is not None, "Bug: blocks without scales"
        _, n_blocks, block_bytes = matrix.values.shape
        levels = matrix.values.reshaped(TensorProto.UINT8, (matrix.rows, n_blocks * block_bytes))
        inputs = [
            self.weight(f"{name}.rows", levels),
            tokens,
            self.floats(f"{name}.scales", matrix.scales),
        ]
        if matrix.zeros is not None:
            inputs.append(self.weight(f"{name}.zeros", matrix.zeros))
        found = self.node(
            "GatherBlockQuantized",
            f"{path}/GatherBlockQuantized",
            inputs,
            domain=CONTRIB,
            bits=form.bits,
            block_size=form.block_size,
            gather_axis=0,
            quantize_axis=1,
        )
        if n_blocks * form.block_size == matrix.columns:
            return found
        return self.sliced(f"{path}/Slice", found, name, matrix.columns)

    def sliced(self, path: str, x: str, name: str, columns: int) -> str:
        """Keep the first columns: [..., columns]."""
        ends = [
            self.constant(f"{name}.{key}", value)
            for key, value in (("first", [0]), ("end", [columns]), ("axis", [-1]))
        ]
        return self.node("Slice", path, [x, *ends])

    def model(
        self,
        name: str,
        inputs: Sequence[ValueInfoProto],
        outputs: Sequence[ValueInfoProto],
        *,
        is_plain: bool,
        properties: dict[str, str],
    ) -> ModelProto:
        """Return the model; `properties` become its metadata."""
        from qwen_edge import __version__

        graph = helper.make_graph(
            self._nodes, name, list(inputs), list(outputs), list(self._initializers.values())
        )
        opsets = [helper.make_opsetid("", OPSET)]
        if not is_plain:
            opsets.append(helper.make_opsetid(CONTRIB, CONTRIB_OPSET))
        model = helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=IR_VERSION,
            producer_name="qwen-edge",
            producer_version=__version__,
        )
        helper.set_model_props(model, properties)
        return model
