"""The tensors of a model's GGUF file, from its shape alone: names, sizes, and the type that llama.cpp gives each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qwen_edge.catalog_types import Shape
from qwen_edge.errors import UnsupportedError
from qwen_edge.quant_types import TENSOR_TYPES, FileType, file_type

# A GGUF file pads each tensor to this. Source: GGUF_DEFAULT_ALIGNMENT in ggml's gguf.h.
ALIGNMENT = 32

# K types whose mixture the rules below describe, and what the layers get that matter more.
_MIXTURES = {"Q4_K_M": "Q6_K", "Q5_K_M": "Q6_K", "Q5_K_S": "Q5_K", "Q6_K": "Q6_K"}

# Source: tensor_type_fallback in llama.cpp's src/llama-quant.cpp.
_FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTensor:
    """One tensor of a file to come.

    Attributes:
        name: As in a GGUF file.
        type_name: A key of TENSOR_TYPES.
        row_weights: Weights in a row: the inputs of a matrix, the length of a vector.
        n_rows: Rows: the outputs of a matrix; 1 for a vector.
        is_vector: Whether it is a norm or a bias: those have one dimension and stay in F32.
    """

    name: str
    type_name: str
    row_weights: int
    n_rows: int = 1
    is_vector: bool = False

    @property
    def n_bytes(self) -> int:
        """Bytes of its data, without padding."""
        row = TENSOR_TYPES[self.type_name]
        return self.n_rows * self.row_weights // row.block_weights * row.block_bytes

    @property
    def padded_bytes(self) -> int:
        """Bytes that it takes in the file."""
        return -(-self.n_bytes // ALIGNMENT) * ALIGNMENT


def plan_tensors(shape: Shape, type_name: str) -> tuple[PlannedTensor, ...]:
    """Return all tensors of a model, with the types of llama.cpp's quantizer without an importance matrix.

    Args:
        shape: Of the model.
        type_name: A key of FILE_TYPES or an alias.

    Raises:
        ConfigError: Unknown type.
        UnsupportedError: A type whose mixture is not known here.
    """
    chosen = file_type(type_name)
    if chosen.kind not in ("float", "legacy") and chosen.name not in _MIXTURES:
        raise UnsupportedError(
            f"the size of {chosen.name} is not estimated",
            hint="From a GGUF file it is told exactly: qwen-edge quantize FILE -t TYPE --dry-run",
        )
    return (
        *_ends(shape, chosen),
        *(tensor for i in range(shape.n_layers) for tensor in _block(shape, chosen, i)),
    )


def plan_head(shape: Shape, type_name: str) -> PlannedTensor:
    """Return the matrix that makes logits, which is the embedding where it is tied."""
    name = "token_embd.weight" if shape.is_tied else "output.weight"
    return _matrix(name, _head_type(file_type(type_name)), shape.vocab_size, shape.hidden_size)


def _ends(shape: Shape, chosen: FileType) -> Iterator[PlannedTensor]:
    yield plan_head(shape, chosen.name)
    if not shape.is_tied:
        yield _matrix("token_embd.weight", chosen.base, shape.vocab_size, shape.hidden_size)
    yield _vector("output_norm.weight", shape.hidden_size)


def _block(shape: Shape, chosen: FileType, layer: int) -> Iterator[PlannedTensor]:
    """Yield the tensors of one layer. Source: llama_tensor_get_type_impl in src/llama-quant.cpp."""
    plain, better = chosen.base, chosen.base
    if _has_more_bits(layer, shape.n_layers):
        better = _MIXTURES.get(chosen.name, plain)
    hidden, prefix = shape.hidden_size, f"blk.{layer}"
    yield _vector(f"{prefix}.attn_norm.weight", hidden)
    yield _matrix(f"{prefix}.attn_q.weight", plain, shape.q_size, hidden)
    yield _matrix(f"{prefix}.attn_k.weight", plain, shape.kv_size, hidden)
    yield _matrix(f"{prefix}.attn_v.weight", better, shape.kv_size, hidden)
    if shape.has_qkv_bias:
        yield _vector(f"{prefix}.attn_q.bias", shape.q_size)
        yield _vector(f"{prefix}.attn_k.bias", shape.kv_size)
        yield _vector(f"{prefix}.attn_v.bias", shape.kv_size)
    if shape.has_qk_norm:
        yield _vector(f"{prefix}.attn_q_norm.weight", shape.head_dim)
        yield _vector(f"{prefix}.attn_k_norm.weight", shape.head_dim)
    yield _matrix(f"{prefix}.attn_output.weight", plain, hidden, shape.q_size)
    yield _vector(f"{prefix}.ffn_norm.weight", hidden)
    yield _matrix(f"{prefix}.ffn_gate.weight", plain, shape.ffn_size, hidden)
    yield _matrix(f"{prefix}.ffn_up.weight", plain, shape.ffn_size, hidden)
    yield _matrix(f"{prefix}.ffn_down.weight", better, hidden, shape.ffn_size)


def _has_more_bits(layer: int, n_layers: int) -> bool:
    """Return whether the mixture gives V and the down projection of this layer more bits: both ends, every third.

    Source: use_more_bits in src/llama-quant.cpp.
    """
    first = n_layers // 8
    return layer < first or layer >= 7 * n_layers // 8 or (layer - first) % 3 == 2


def _head_type(chosen: FileType) -> str:
    return chosen.base if chosen.kind == "float" or chosen.base == "Q8_0" else "Q6_K"


def _vector(name: str, length: int) -> PlannedTensor:
    return PlannedTensor(name=name, type_name="F32", row_weights=length, is_vector=True)


def _matrix(name: str, wanted: str, n_rows: int, row_weights: int) -> PlannedTensor:
    """Return a matrix; where its rows do not divide into blocks, of the type that it gets instead."""
    for type_name in (wanted, _FALLBACKS.get(wanted, wanted), "F16"):
        if row_weights % TENSOR_TYPES[type_name].block_weights == 0:
            return PlannedTensor(name=name, type_name=type_name, row_weights=row_weights, n_rows=n_rows)
    raise AssertionError("Bug: F16 has blocks of one weight")
