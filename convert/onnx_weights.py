"""Where each weight of a model lies in the data file, and as what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qwen_edge.convert.onnx_data import DataFile, Region
from qwen_edge.convert.onnx_nodes import StoredMatrix
from qwen_edge.convert.onnx_precision import OnnxPrecision
from qwen_edge.convert.qwen import QwenConfig
from qwen_edge.convert.tensor_source import TensorSource

# For each matrix of the checkpoint, by its name, the mean square of each of its inputs: float32 [columns].
Importance = Mapping[str, NDArray[np.float32]]

# The three that make queries, keys and values are stored one below the other and multiplied at once.
LAYER_MATRICES: Mapping[str, tuple[str, ...]] = {
    "attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_proj": ("mlp.gate_proj",),
    "mlp.up_proj": ("mlp.up_proj",),
    "mlp.down_proj": ("mlp.down_proj",),
}
LAYER_NORMS: Mapping[str, str] = {
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_attention_layernorm",
    "attn.q_norm": "self_attn.q_norm",
    "attn.k_norm": "self_attn.k_norm",
}

# Cosines and sines of every 256th position, and of the 256 from there on.
ROPE_PARTS = ("rope.far.cos", "rope.far.sin", "rope.near.cos", "rope.near.sin")
_ROPE_STEP = 256


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """All weights of a model.

    Attributes:
        matrices: By path: "embed_tokens", "lm_head", "layers.0.attn.qkv_proj" and so on. A tied embedding that is
            stored once has one entry under both names.
        vectors: Norms and biases: "norm", "layers.0.input_layernorm", "layers.0.attn.qkv_proj.bias"; and ROPE_PARTS, from
            which the runtime computes the cosines and sines of all positions.
    """

    matrices: dict[str, StoredMatrix] = field(default_factory=dict)
    vectors: dict[str, Region] = field(default_factory=dict)


def plan_weights(
    config: QwenConfig,
    tensors: Mapping[str, TensorSource],
    precision: OnnxPrecision,
    data: DataFile,
    importance: Importance | None = None,
    *,
    is_plain: bool = False,
) -> StoredWeights:
    """Lay all weights out.

    Args:
        config: Of the model.
        tensors: Of the checkpoint, by their names without "model.".
        precision: Types.
        data: Receives the layout; nothing is read yet.
        importance: For the search of scales.
        is_plain: For a graph of the standard's operators.
    """
    stored = StoredWeights()
    store = _Storing(precision, data, tensors, importance or {}, is_plain)
    head = "embed_tokens" if config.is_tied else "lm_head"
    stored.matrices["lm_head"] = store.matrix("lm_head", (head,), "head")
    if config.is_tied and precision.type_of("embedding") == precision.type_of("head"):
        stored.matrices["embed_tokens"] = stored.matrices["lm_head"]
    else:
        stored.matrices["embed_tokens"] = store.matrix("embed_tokens", ("embed_tokens",), "embedding")
    for layer in range(config.n_layers):
        prefix = f"layers.{layer}."
        for path, names in LAYER_MATRICES.items():
            sources = tuple(prefix + name for name in names)
            stored.matrices[prefix + path] = store.matrix(prefix + path, sources, "layers")
            if f"{sources[0]}.bias" in tensors:
                biases = [tensors[f"{source}.bias"] for source in sources]
                stored.vectors[f"{prefix}{path}.bias"] = data.add_floats(biases, is_half=False)
        for path, name in LAYER_NORMS.items():
            if f"{prefix}{name}.weight" in tensors:
                norm = tensors[f"{prefix}{name}.weight"]
                stored.vectors[prefix + path] = data.add_floats([norm], is_half=False)
    for name, part in _rope_parts(config).items():
        stored.vectors[name] = data.add_array(part)
    stored.vectors["norm"] = data.add_floats([tensors["norm.weight"]], is_half=False)
    return stored


@dataclass(frozen=True)
class _Storing:
    precision: OnnxPrecision
    data: DataFile
    tensors: Mapping[str, TensorSource]
    importance: Importance
    is_plain: bool

    def matrix(
        self, path: str, names: tuple[str, ...], role: Literal["layers", "head", "embedding"]
    ) -> StoredMatrix:
        sources = [self.tensors[f"{name}.weight"] for name in names]
        rows, columns = sum(source.shape[0] for source in sources), sources[0].shape[1]
        weight_type = self.precision.type_of(role)
        form = self.precision.blocks_of(weight_type)
        if form is None:
            values = self.data.add_floats(sources, is_half=weight_type == "f16")
            return StoredMatrix(rows=rows, columns=columns, values=values)
        # What was measured for a tied matrix is about the head: rows that are looked up have no inputs.
        importance = None if role == "embedding" else self.importance.get(f"{names[0]}.weight")
        levels, scales, zeros = self.data.add_blocks(
            sources, form, self.precision.rounding, importance, is_plain=self.is_plain
        )
        return StoredMatrix(
            rows=rows,
            columns=columns,
            values=levels,
            scales=scales,
            zeros=zeros,
            blocks=form,
            level=self.precision.level_of(f"/model/{path}".replace("/model/lm_head", "/lm_head"), form.bits),
        )


def _rope_parts(config: QwenConfig) -> dict[str, NDArray[np.float32]]:
    """Return ROPE_PARTS: float32 [n, 1, head_dim / 2] and [1, 256, head_dim / 2], rounded from float64."""
    frequencies = config.rope.frequencies(config.head_dim)
    far = np.arange(0, config.n_ctx_train, _ROPE_STEP)[:, np.newaxis, np.newaxis] * frequencies
    near = np.arange(_ROPE_STEP)[np.newaxis, :, np.newaxis] * frequencies
    scale = config.rope.scaling.attention_factor if config.rope.scaling is not None else 1.0
    parts = (np.cos(far), np.sin(far), np.cos(near) * scale, np.sin(near) * scale)
    return {name: part.astype(np.float32) for name, part in zip(ROPE_PARTS, parts, strict=True)}
