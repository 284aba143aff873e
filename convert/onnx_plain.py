"""The same decoder in operators of the ONNX standard only, opset 21: for runtimes that do not know ONNX Runtime's own.

::

    attention_mask [batch, past + tokens] ─ with causality ─ bias ────┐   0 where a token may look, -30,000 elsewhere
    position_ids [batch, tokens] ─ Gather ─ cosines and sines ─┐      │
    qkv_proj ─ Split ─ heads ─ (norm) ─ rope ──────────────────┴ q·k ─┴ Softmax ─ ·v ─ o_proj
    past keys and values ─ Concat ─────────────────────────────── present

Blocks are expanded by DequantizeLinear with a block size, so a runtime either multiplies them as they are or expands
them once; ONNX Runtime on CPU is slower with this graph than with the fused one, and takes more memory.

What differs in the file: symmetric blocks have signed levels without zero points. Rows of the embedding are looked up
before they are expanded, and Gather knows no 4-bit types: with a 4-bit head the embedding is stored apart in 8 bits.
Inputs are not rounded to 8 bits, so OnnxPrecision.accuracy_level and .exact do not matter here.

Fixed sizes make every shape a number, as compilers for NPUs want. A shorter prompt and a cache that is not full yet are
padded at their front, with zeros in attention_mask; past keys and values that are masked must still be finite, such as
zeros. The caller takes the last `tokens` rows of present for the new keys and values. Padding may also stand at the end,
where the runtime lets logits_positions be given: some, OpenVINO among them, take an input with a default for a constant,
and so give the last token's logits.
"""

from __future__ import annotations

import math

import numpy as np

from qwen_edge.convert.onnx_graph import Decoder
from qwen_edge.convert.onnx_nodes import GraphBuilder, StoredMatrix
from qwen_edge.convert.onnx_precision import GraphForm, OnnxPrecision
from qwen_edge.convert.onnx_weights import StoredWeights
from qwen_edge.convert.qwen import QwenConfig
from qwen_edge.engines.onnx_folder import POSITIONS
from qwen_edge.errors import MissingExtraError

try:
    from onnx import ModelProto, TensorProto, ValueInfoProto, helper
except ImportError as error:
    raise MissingExtraError("onnx", "convert", "writing an ONNX model") from error

# Finite in F16 too, where compilers compute in it: a row of padding that sees nothing must not become no number.
_MASKED = -30_000.0


def build_plain_graph(
    config: QwenConfig, weights: StoredWeights, precision: OnnxPrecision, form: GraphForm
) -> ModelProto:
    """Return the model, whose weights lie in the data file.

    Inputs: input_ids and position_ids int64 [batch, tokens]; attention_mask int64 [batch, past + tokens], ones for
    tokens that are there; logits_positions int64 [positions], default [-1]; past_key_values.N.key and .value float32
    [batch, kv heads, past, head_dim]. Outputs: logits float32 [batch, positions, vocab]; present.N.key and .value
    float32 [batch, kv heads, past + tokens, head_dim].
    """
    return _PlainDecoder(config, weights, form).build(precision)


class _PlainDecoder(Decoder):
    is_plain = True

    def __init__(self, config: QwenConfig, weights: StoredWeights, form: GraphForm) -> None:
        super().__init__(config, weights, PlainBuilder())
        self.fixed = form.fixed

    def _facts(self, precision: OnnxPrecision) -> dict[str, object]:
        return super()._facts(precision) | {"fixed": dict(self.fixed) if self.fixed else None}

    def _shared(self) -> tuple[str, ...]:
        """Emit the bias of the scores, and cosines and sines of the tokens: [batch, tokens, 1, head_dim / 2]."""
        graph = self.graph
        axis = graph.constant("rope.head_axis", [2])
        angles = []
        for kind, table in zip(("cos", "sin"), self._rope_tables(), strict=True):
            rows = graph.node("Gather", f"/model/rope/{kind}/Gather", [table, "position_ids"], axis=0)
            angles.append(graph.node("Unsqueeze", f"/model/rope/{kind}/Unsqueeze", [rows, axis]))
        return self._bias(), *angles

    def _bias(self) -> str:
        """Emit what is added to scores: float32 [batch, 1, queries of a group, past + tokens].

        ::

            Range (tokens) ─ LessOrEqual ─ And ─ Where ─ Concat, once for each query head that shares keys
            attention_mask ─ Cast ──────────┘
        """
        graph, path = self.graph, "/model/mask"
        past, total = self._past_and_total()
        zero, one = graph.constant("zero_scalar", 0), graph.constant("one_scalar", 1)
        keys = graph.node("Range", f"{path}/keys/Range", [zero, total, one])
        queries = graph.node("Range", f"{path}/queries/Range", [past, total, one])
        column = graph.node("Unsqueeze", f"{path}/Unsqueeze", [queries, graph.constant("column_axis", [1])])
        causal = graph.node("LessOrEqual", f"{path}/LessOrEqual", [keys, column])
        present = graph.node("Cast", f"{path}/Cast", ["attention_mask"], to=TensorProto.BOOL)
        rows = graph.node(
            "Unsqueeze", f"{path}/rows/Unsqueeze", [present, graph.constant("rows_axes", [1, 2])]
        )
        seen = graph.node("And", f"{path}/And", [rows, causal])
        values = [
            graph.constant(f"mask.{name}", value, np.float32)
            for name, value in (("seen", 0), ("hidden", _MASKED))
        ]
        bias = graph.node("Where", f"{path}/Where", [seen, *values])
        group = self.config.n_heads // self.config.n_kv_heads
        return graph.node("Concat", f"{path}/Concat", [bias] * group, axis=2) if group > 1 else bias

    def _past_and_total(self) -> tuple[str, str]:
        """Emit the tokens of the cache, and those and the new ones together: int64 []."""
        graph, path = self.graph, "/model/lengths"
        if self.fixed:
            past, tokens = self.fixed["past"], self.fixed["tokens"]
            return graph.constant("past_length", past), graph.constant("total_length", past + tokens)
        one = graph.constant("one_scalar", 1)
        lengths = []
        for name in ("input_ids", "attention_mask"):
            shape = graph.node("Shape", f"{path}/{name}/Shape", [name])
            lengths.append(graph.node("Gather", f"{path}/{name}/Gather", [shape, one], axis=0))
        return graph.node("Sub", f"{path}/Sub", [lengths[1], lengths[0]]), lengths[1]

    def _attention(self, layer: int, x: str, shared: tuple[str, ...]) -> str:
        """Emit self-attention up to the heads' mixed values.

        The queries that share a key head are rows of one matrix, so keys and values are never repeated.
        """
        config, graph = self.config, self.graph
        bias, cosine, sine = shared
        path = f"/model/layers.{layer}/attn"
        packed = self._split_heads(path, self._matmul(f"layers.{layer}.attn.qkv_proj", x))
        if config.architecture == "qwen3":
            query, key = (
                self._head_norm(layer, f"{name}_norm", part)
                for name, part in zip(("q", "k"), packed[:2], strict=True)
            )
        else:
            query, key = (
                self._heads(f"{path}/{name}", part) for name, part in zip(("q", "k"), packed[:2], strict=True)
            )
        query, key = (
            self._rotated(f"{path}/{name}_rope", part, cosine, sine)
            for name, part in (("q", query), ("k", key))
        )
        value = self._heads(f"{path}/v", packed[2])
        query, key, value = (
            graph.node("Transpose", f"{path}/{name}/Transpose", [part], perm=[0, 2, 1, 3])
            for name, part in (("q", query), ("k", key), ("v", value))
        )
        key, value = (
            graph.node(
                "Concat",
                f"{path}/{name}/Concat",
                [f"past_key_values.{layer}.{name}", part],
                outputs=[f"present.{layer}.{name}"],
                axis=2,
            )
            for name, part in (("key", key), ("value", value))
        )
        grouped = graph.constant("groups_shape", [0, config.n_kv_heads, -1, config.head_dim])
        query = graph.node("Reshape", f"{path}/q/Reshape_groups", [query, grouped])
        scale = graph.constant("attention_scale", 1 / math.sqrt(config.head_dim), np.float32)
        query = graph.node("Mul", f"{path}/q/Mul", [query, scale])
        turned = graph.node("Transpose", f"{path}/key/Transpose", [key], perm=[0, 1, 3, 2])
        scores = graph.node("MatMul", f"{path}/scores/MatMul", [query, turned])
        scores = graph.node("Add", f"{path}/scores/Add", [scores, bias])
        shares = graph.node("Softmax", f"{path}/Softmax", [scores], axis=-1)
        mixed = graph.node("MatMul", f"{path}/mixed/MatMul", [shares, value])
        apart = graph.constant("query_heads_shape", [0, config.n_heads, -1, config.head_dim])
        mixed = graph.node("Reshape", f"{path}/mixed/Reshape_heads", [mixed, apart])
        mixed = graph.node("Transpose", f"{path}/mixed/Transpose", [mixed], perm=[0, 2, 1, 3])
        return graph.node(
            "Reshape", f"{path}/mixed/Reshape_rows", [mixed, graph.constant("rows_shape", [0, 0, -1])]
        )

    def _rotated(self, path: str, x: str, cosine: str, sine: str) -> str:
        """Turn the pairs (i, i + head_dim / 2) of each head by their angles."""
        graph = self.graph
        first, second = f"{path}/Split/first", f"{path}/Split/second"
        halves = graph.constant("half_sizes", [self.config.head_dim // 2] * 2)
        graph.node("Split", f"{path}/Split", [x, halves], outputs=[first, second], axis=-1)
        products = {
            name: graph.node("Mul", f"{path}/{name}/Mul", [part, table])
            for name, part, table in (
                ("first_cos", first, cosine),
                ("first_sin", first, sine),
                ("second_cos", second, cosine),
                ("second_sin", second, sine),
            )
        }
        turned = [
            graph.node("Sub", f"{path}/Sub", [products["first_cos"], products["second_sin"]]),
            graph.node("Add", f"{path}/Add", [products["second_cos"], products["first_sin"]]),
        ]
        return graph.node("Concat", f"{path}/Concat", turned, axis=-1)

    def _norm(self, path: str, x: str, weight: str) -> str:
        """Emit the RMS norm in the pattern that runtimes look for."""
        graph = self.graph
        square = graph.node("Pow", f"{path}/Pow", [x, graph.constant("two", 2, np.float32)])
        mean = graph.node("ReduceMean", f"{path}/ReduceMean", [square, graph.constant("last_axis", [-1])])
        eps = graph.constant("rms_norm_eps", self.config.rms_norm_eps, np.float32)
        root = graph.node("Sqrt", f"{path}/Sqrt", [graph.node("Add", f"{path}/Add", [mean, eps])])
        scaled = graph.node("Div", f"{path}/Div", [x, root])
        return graph.node("Mul", f"{path}/Mul", [scaled, weight])

    def _add_and_norm(self, name: str, x: str, added: str) -> tuple[str, str]:
        path = "/model/" + name.replace(".", "/").replace("layers/", "layers.", 1)
        total = self.graph.node("Add", f"{path}/residual/Add", [x, added])
        return total, self._norm(path, total, self._vector(name))

    def _inputs(self) -> list[ValueInfoProto]:
        tokens, batch = self._size("tokens", "sequence_length"), self._size("batch", "batch_size")
        value = helper.make_tensor_value_info
        return [
            value("input_ids", TensorProto.INT64, [batch, tokens]),
            value("position_ids", TensorProto.INT64, [batch, tokens]),
            value("attention_mask", TensorProto.INT64, [batch, self._total()]),
            *self._caches("past_key_values", self._size("past", "past_sequence_length"), batch),
            value(POSITIONS, TensorProto.INT64, [1 if self.fixed else "logits_length"]),
        ]

    def _outputs(self) -> list[ValueInfoProto]:
        batch = self._size("batch", "batch_size")
        shape = [batch, 1 if self.fixed else "logits_length", self.config.vocab_size]
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)
        return [logits, *self._caches("present", self._total(), batch)]

    def _size(self, key: str, symbol: str) -> int | str:
        return self.fixed[key] if self.fixed else symbol

    def _total(self) -> int | str:
        return self.fixed["past"] + self.fixed["tokens"] if self.fixed else "total_sequence_length"


class PlainBuilder(GraphBuilder):
    """Matrices in operators of the standard."""

    def matmul(self, path: str, x: str, matrix: StoredMatrix, name: str, bias: str = "") -> str:
        """Multiply rows of x with the transposed matrix."""
        weight = self._expanded(path, matrix, name)
        turned = self.node("Transpose", f"{path}/Transpose", [weight], perm=[1, 0])
        product = self.node("MatMul", f"{path}/MatMul", [x, turned])
        return self.node("Add", f"{path}/Add", [product, bias]) if bias else product

    def _expanded(self, path: str, matrix: StoredMatrix, name: str) -> str:
        form = matrix.blocks
        if form is None:
            return self.floats(f"{name}.weight", matrix.values)
        assert matrix.scales is not None, "Bug: blocks without scales"
        inputs = [
            self.weight(f"{name}.levels", matrix.values),
            self.floats(f"{name}.scales", matrix.scales),
        ]
        if matrix.zeros is not None:
            inputs.append(self.weight(f"{name}.zeros", matrix.zeros))
        weight = self.node(
            "DequantizeLinear", f"{path}/DequantizeLinear", inputs, axis=1, block_size=form.block_size
        )
        return self._cut(path, weight, matrix, name)

    def gather_rows(self, path: str, tokens: str, matrix: StoredMatrix, name: str) -> str:
        """Look rows up, and expand these only: float32 [tokens' shape, columns]."""
        form = matrix.blocks
        if form is None:
            return super().gather_rows(path, tokens, matrix, name)
        assert matrix.scales is not None, "Bug: blocks without scales"
        assert form.bits == 8, "Bug: Gather knows no 4-bit types"
        blocks = self.constant(f"{name}.blocks_shape", [0, 0, form.blocks(matrix.columns), form.block_size])
        levels = self._looked_up(f"{path}/levels", tokens, self.weight(f"{name}.levels", matrix.values))
        levels = self.node("Reshape", f"{path}/Reshape_blocks", [levels, blocks])
        if matrix.zeros is not None:
            zeros = self._looked_up(f"{path}/zeros", tokens, self.weight(f"{name}.zeros", matrix.zeros))
            levels = self.node("Sub", f"{path}/Sub", [levels, self._as_column(f"{path}/zeros", zeros)])
        stored = self.floats(f"{name}.scales", matrix.scales)
        scales = self.node("Gather", f"{path}/scales/Gather", [stored, tokens])
        values = self.node("Mul", f"{path}/Mul", [levels, self._as_column(f"{path}/scales", scales)])
        rows = self.node("Reshape", f"{path}/Reshape_rows", [values, self.constant("rows_shape", [0, 0, -1])])
        return self._cut(path, rows, matrix, name)

    def _looked_up(self, path: str, tokens: str, whole: str) -> str:
        found = self.node("Gather", f"{path}/Gather", [whole, tokens])
        return self.node("Cast", f"{path}/Cast", [found], to=TensorProto.FLOAT)

    def _as_column(self, path: str, x: str) -> str:
        return self.node("Unsqueeze", f"{path}/Unsqueeze", [x, self.constant("value_axis", [3])])

    def _cut(self, path: str, x: str, matrix: StoredMatrix, name: str) -> str:
        """Take off what fills the last block of a row."""
        form = matrix.blocks
        assert form is not None, "Bug: only blocks are filled"
        if form.blocks(matrix.columns) * form.block_size == matrix.columns:
            return x
        return self.sliced(f"{path}/Slice", x, name, matrix.columns)
