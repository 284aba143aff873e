"""The decoder of Qwen3 and Qwen2 as a graph of ONNX Runtime's fused operators.

::

    input_ids [batch, tokens] ─ GatherBlockQuantized ─┐
                                                      x
    for each layer:                                   │
        RMS norm ─ qkv_proj ─ (QK norm) ─ GroupQueryAttention ─ o_proj ─┐     keys and values in place
        x + that, RMS norm ─ gate, up_proj ─ SwiGLU ─ down_proj ────────┤     SkipSimplifiedLayerNormalization adds
                                                      x ────────────────┘
    RMS norm ─ lm_head ─ logits [batch, positions, vocab]

Only the positions that logits are asked of go through the last layer's feed-forward network and the head. They are an
input with a default, the last token; runtimes that do not know of it get that.
"""

from __future__ import annotations

import json
import math

from qwen_edge.convert.onnx_nodes import CONTRIB, GraphBuilder
from qwen_edge.convert.onnx_precision import OnnxPrecision
from qwen_edge.convert.onnx_weights import ROPE_PARTS, StoredWeights
from qwen_edge.convert.qwen import QwenConfig
from qwen_edge.engines.onnx_folder import FACTS_FORMAT, FACTS_KEY, POSITIONS
from qwen_edge.errors import MissingExtraError

try:
    from onnx import ModelProto, TensorProto, ValueInfoProto, helper
except ImportError as error:
    raise MissingExtraError("onnx", "convert", "writing an ONNX model") from error


def build_graph(
    config: QwenConfig, weights: StoredWeights, precision: OnnxPrecision, *, only_last: bool = False
) -> ModelProto:
    """Return the model, whose weights lie in the data file.

    Inputs: input_ids int64 [batch, tokens]; attention_mask int64 [batch, total], ones for tokens that are there;
    logits_positions int64 [positions], default [-1]; past_key_values.N.key and .value float32 [batch, kv heads,
    capacity, head_dim]. Outputs: logits float32 [batch, positions, vocab]; present.N.key and .value, which may be the
    same buffers as the inputs.

    With `only_last` there is no logits_positions, and logits are those of the last token, [batch, 1, vocab]:
    onnxruntime-genai reads from the shape how many to expect.
    """
    return Decoder(config, weights, only_last=only_last).build(precision)


class Decoder:
    """The graph in the making; onnx_plain.py says in other operators what is one node here."""

    is_plain = False

    def __init__(
        self,
        config: QwenConfig,
        weights: StoredWeights,
        graph: GraphBuilder | None = None,
        *,
        only_last: bool = False,
    ) -> None:
        self.config = config
        self.weights = weights
        self.only_last = only_last
        self.graph = graph or GraphBuilder()

    def build(self, precision: OnnxPrecision) -> ModelProto:
        """Return the model."""
        config, graph = self.config, self.graph
        shared = self._shared()
        graph.constant(POSITIONS, [-1])
        embedding = self.weights.matrices["embed_tokens"]
        name = "lm_head" if embedding is self.weights.matrices["lm_head"] else "embed_tokens"
        x = graph.gather_rows("/model/embed_tokens", "input_ids", embedding, name)
        normed = self._norm("/model/layers.0/input_layernorm", x, self._vector("layers.0.input_layernorm"))
        for layer in range(config.n_layers):
            is_last = layer == config.n_layers - 1
            mixed = self._attention(layer, normed, shared)
            if is_last:
                mixed = self._picked("/model/layers.last/attn", mixed)
                x = self._picked("/model/layers.last/residual", x)
            attended = self._matmul(f"layers.{layer}.attn.o_proj", mixed)
            x, normed = self._add_and_norm(f"layers.{layer}.post_attention_layernorm", x, attended)
            fed = self._feed_forward(layer, normed)
            following = "norm" if is_last else f"layers.{layer + 1}.input_layernorm"
            x, normed = self._add_and_norm(following, x, fed)
        logits = graph.matmul("/lm_head", normed, self.weights.matrices["lm_head"], "lm_head")
        graph.node("Identity", "/logits", [logits], outputs=["logits"])
        return graph.model(
            config.architecture,
            self._inputs(),
            self._outputs(),
            is_plain=self.is_plain,
            properties={FACTS_KEY: json.dumps(self._facts(precision), sort_keys=True)},
        )

    def _facts(self, precision: OnnxPrecision) -> dict[str, object]:
        return facts(self.config, precision, is_plain=self.is_plain)

    def _shared(self) -> tuple[str, ...]:
        """Emit what the attention of every layer takes: lengths, cosines and sines."""
        return *self._lengths(), *self._rope_tables()

    def _rope_tables(self) -> tuple[str, str]:
        """Emit cosines and sines of all positions, float32 [positions, head_dim / 2] each.

        ::

            cos(a + b) = cos a * cos b - sin a * sin b       a: every 256th position, [n, 1, head_dim / 2]
            sin(a + b) = sin a * cos b + cos a * sin b       b: the 256 from there on, [1, 256, head_dim / 2]

        The runtime computes them once when it loads the model: whole, they would be 21 MB of a file.
        """
        graph, path = self.graph, "/model/rope"
        cosine_a, sine_a, cosine_b, sine_b = (
            graph.weight(name, self.weights.vectors[name]) for name in ROPE_PARTS
        )
        shape = graph.constant("rope.shape", [-1, self.config.head_dim // 2])
        tables = []
        for kind, pairs, joined in (
            ("cos", ((cosine_a, cosine_b), (sine_a, sine_b)), "Sub"),
            ("sin", ((sine_a, cosine_b), (cosine_a, sine_b)), "Add"),
        ):
            products = [
                graph.node("Mul", f"{path}/{kind}/Mul_{index}", pair) for index, pair in enumerate(pairs)
            ]
            both = graph.node(joined, f"{path}/{kind}/{joined}", products)
            tables.append(graph.node("Reshape", f"{path}/{kind}/Reshape", [both, shape]))
        return tables[0], tables[1]

    def _lengths(self) -> tuple[str, str]:
        """Emit what GroupQueryAttention wants to know of lengths.

        ::

            attention_mask ─ ReduceSum ─ Sub 1 ─ Cast ── index of each sequence's last token, int32 [batch]
                           └ Shape ─ Gather ─ Cast ───── tokens of the longest, int32 []
        """
        graph, path = self.graph, "/model/lengths"
        one, axis = graph.constant("one", [1]), graph.constant("batch_axis", [1])
        count = graph.node("ReduceSum", f"{path}/ReduceSum", ["attention_mask", axis], keepdims=0)
        last = graph.node("Sub", f"{path}/Sub", [count, one])
        past = graph.node("Cast", f"{path}/past/Cast", [last], to=TensorProto.INT32)
        shape = graph.node("Shape", f"{path}/Shape", ["attention_mask"])
        longest = graph.node("Gather", f"{path}/Gather", [shape, graph.constant("one_scalar", 1)], axis=0)
        return past, graph.node("Cast", f"{path}/total/Cast", [longest], to=TensorProto.INT32)

    def _attention(self, layer: int, x: str, shared: tuple[str, ...]) -> str:
        """Emit self-attention up to the heads' mixed values.

        ::

            qkv_proj ─┬ (Qwen3) Split ─ q ─ norm ─┐
                      │               ├ k ─ norm ─┼ GroupQueryAttention: rope, append to the cache, attend
                      │               └ v ────────┘
                      └ (Qwen2) packed ───────────
        """
        config, graph = self.config, self.graph
        path = f"/model/layers.{layer}/attn"
        packed = self._matmul(f"layers.{layer}.attn.qkv_proj", x)
        query, key, value = packed, "", ""
        if config.architecture == "qwen3":
            query, key, value = self._split_heads(path, packed)
            rows = graph.constant("rows_shape", [0, 0, -1])
            query, key = (
                graph.node(
                    "Reshape", f"{path}/{name}/Reshape_rows", [self._head_norm(layer, name, part), rows]
                )
                for name, part in (("q_norm", query), ("k_norm", key))
            )
        kept = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        return graph.node(
            "GroupQueryAttention",
            f"{path}/GroupQueryAttention",
            [query, key, value, *kept, *shared],
            outputs=[
                f"{path}/GroupQueryAttention/output",
                *[f"present.{layer}.{part}" for part in ("key", "value")],
            ],
            domain=CONTRIB,
            num_heads=config.n_heads,
            kv_num_heads=config.n_kv_heads,
            scale=1 / math.sqrt(config.head_dim),
            do_rotary=1,
        )

    def _split_heads(self, path: str, packed: str) -> list[str]:
        """Cut the product of qkv_proj into queries, keys and values: float32 [batch, tokens, heads * head_dim]."""
        config, graph = self.config, self.graph
        sizes = [count * config.head_dim for count in (config.n_heads, *[config.n_kv_heads] * 2)]
        parts = [f"{path}/Split/{name}" for name in ("q", "k", "v")]
        graph.node(
            "Split", f"{path}/Split", [packed, graph.constant("qkv_sizes", sizes)], outputs=parts, axis=-1
        )
        return parts

    def _heads(self, path: str, x: str) -> str:
        """Give each head a row: float32 [batch, tokens, heads, head_dim]."""
        shape = self.graph.constant("heads_shape", [0, 0, -1, self.config.head_dim])
        return self.graph.node("Reshape", f"{path}/Reshape_heads", [x, shape])

    def _head_norm(self, layer: int, name: str, x: str) -> str:
        """Emit the RMS norm of each head, which the CPU kernel of attention has not: [batch, tokens, heads, head_dim]."""
        path = f"/model/layers.{layer}/attn/{name}"
        weight = self._vector(f"layers.{layer}.attn.{name}")
        return self._norm(f"{path}/SimplifiedLayerNormalization", self._heads(path, x), weight)

    def _norm(self, path: str, x: str, weight: str) -> str:
        """Emit the RMS norm over the last axis."""
        return self.graph.node(
            "SimplifiedLayerNormalization", path, [x, weight], axis=-1, epsilon=self.config.rms_norm_eps
        )

    def _feed_forward(self, layer: int, x: str) -> str:
        """Emit SwiGLU.

        ::

            gate_proj ─┬ Sigmoid ─┐
                       └──────── Mul ─ Mul ─ down_proj
            up_proj ───────────────────┘

        One matrix for gate and up would gain 2% of prefill and lose 1% of decode to taking it apart.
        """
        graph, path = self.graph, f"/model/layers.{layer}/mlp"
        gate = self._matmul(f"layers.{layer}.mlp.gate_proj", x)
        up = self._matmul(f"layers.{layer}.mlp.up_proj", x)
        sigmoid = graph.node("Sigmoid", f"{path}/act/Sigmoid", [gate])
        activated = graph.node("Mul", f"{path}/act/Mul", [gate, sigmoid])
        product = graph.node("Mul", f"{path}/Mul", [activated, up])
        return self._matmul(f"layers.{layer}.mlp.down_proj", product)

    def _add_and_norm(self, name: str, x: str, added: str) -> tuple[str, str]:
        """Emit x + added and its RMS norm in one node; return both, the sum first."""
        path = "/model/" + name.replace(".", "/").replace("layers/", "layers.", 1)
        outputs = [f"{path}/output", "", "", f"{path}/sum"]
        self.graph.node(
            "SkipSimplifiedLayerNormalization",
            path,
            [x, added, self._vector(name)],
            outputs=outputs if name != "norm" else outputs[:1],
            domain=CONTRIB,
            epsilon=self.config.rms_norm_eps,
        )
        return f"{path}/sum", f"{path}/output"

    def _picked(self, path: str, x: str) -> str:
        return self.graph.node("Gather", f"{path}/Gather", [x, POSITIONS], axis=1)

    def _matmul(self, name: str, x: str) -> str:
        path = "/model/" + name.replace(".", "/").replace("layers/", "layers.", 1)
        bias = self._vector(f"{name}.bias") if f"{name}.bias" in self.weights.vectors else ""
        return self.graph.matmul(path, x, self.weights.matrices[name], name, bias)

    def _vector(self, name: str) -> str:
        suffix = "" if name.endswith(".bias") else ".weight"
        return self.graph.weight(name + suffix, self.weights.vectors[name])

    def _inputs(self) -> list[ValueInfoProto]:
        value = helper.make_tensor_value_info
        inputs = [
            value("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"]),
            value("attention_mask", TensorProto.INT64, ["batch_size", "total_sequence_length"]),
            *self._caches("past_key_values", "past_sequence_length"),
        ]
        if not self.only_last:
            inputs.append(value(POSITIONS, TensorProto.INT64, ["logits_length"]))
        return inputs

    def _outputs(self) -> list[ValueInfoProto]:
        shape = ["batch_size", 1 if self.only_last else "logits_length", self.config.vocab_size]
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)
        return [logits, *self._caches("present", "total_sequence_length")]

    def _caches(
        self, prefix: str, length: int | str, batch: int | str = "batch_size"
    ) -> list[ValueInfoProto]:
        shape = [batch, self.config.n_kv_heads, length, self.config.head_dim]
        return [
            helper.make_tensor_value_info(f"{prefix}.{layer}.{part}", TensorProto.FLOAT, shape)
            for layer in range(self.config.n_layers)
            for part in ("key", "value")
        ]


def facts(config: QwenConfig, precision: OnnxPrecision, *, is_plain: bool) -> dict[str, object]:
    """Return what a reader of the model wants to know: JSON-ready."""
    return {
        "format": FACTS_FORMAT,
        "architecture": config.architecture,
        "form": "plain" if is_plain else "fused",
        "n_ctx_train": config.n_ctx_train,
        "n_heads": config.n_heads,
        "weights": precision.weights,
        "head": precision.type_of("head"),
        "embedding": precision.type_of("embedding"),
        "block_size": precision.block_size,
        "symmetric": precision.symmetric,
        "rounding": precision.rounding,
        "is_tied": config.is_tied,
    }
