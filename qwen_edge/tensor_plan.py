"""The tensors of a model's GGUF file, from its shape alone: names, sizes, and the type that llama.cpp gives each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qwen_edge.catalog_types import Shape
from qwen_edge.quant_types import TENSOR_TYPES, FileType, file_type
from qwen_edge.tensor_mixture import Role, matrix_type

# A GGUF file pads each tensor to this. Source: GGUF_DEFAULT_ALIGNMENT in ggml's gguf.h.
ALIGNMENT = 32


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
    """Return all tensors of a model, with the types of llama.cpp's quantizer: see `tensor_mixture`.

    Args:
        shape: Of the model.
        type_name: A key of FILE_TYPES or an alias.

    Raises:
        ConfigError: Unknown type.
        UnsupportedError: The quantizer does not make this type of this model.
    """
    chosen = file_type(type_name)
    return (
        *_ends(shape, chosen),
        *(tensor for i in range(shape.n_layers) for tensor in _block(shape, chosen, i)),
    )


def _ends(shape: Shape, chosen: FileType) -> Iterator[PlannedTensor]:
    head = "token_embd" if shape.is_tied else "output"
    yield _matrix(shape, chosen, head, "head", shape.vocab_size, shape.hidden_size)
    if not shape.is_tied:
        yield _matrix(shape, chosen, "token_embd", "embedding", shape.vocab_size, shape.hidden_size)
    yield _vector("output_norm.weight", shape.hidden_size)


def _block(shape: Shape, chosen: FileType, layer: int) -> Iterator[PlannedTensor]:
    """Yield the tensors of one layer."""
    hidden, prefix = shape.hidden_size, f"blk.{layer}"

    def matrix(role: Role, n_rows: int, row_weights: int) -> PlannedTensor:
        return _matrix(shape, chosen, f"{prefix}.{role}", role, n_rows, row_weights, layer)

    yield _vector(f"{prefix}.attn_norm.weight", hidden)
    yield matrix("attn_q", shape.q_size, hidden)
    yield matrix("attn_k", shape.kv_size, hidden)
    yield matrix("attn_v", shape.kv_size, hidden)
    if shape.has_qkv_bias:
        yield _vector(f"{prefix}.attn_q.bias", shape.q_size)
        yield _vector(f"{prefix}.attn_k.bias", shape.kv_size)
        yield _vector(f"{prefix}.attn_v.bias", shape.kv_size)
    if shape.has_qk_norm:
        yield _vector(f"{prefix}.attn_q_norm.weight", shape.head_dim)
        yield _vector(f"{prefix}.attn_k_norm.weight", shape.head_dim)
    yield matrix("attn_output", hidden, shape.q_size)
    yield _vector(f"{prefix}.ffn_norm.weight", hidden)
    yield matrix("ffn_gate", shape.ffn_size, hidden)
    yield matrix("ffn_up", shape.ffn_size, hidden)
    yield matrix("ffn_down", hidden, shape.ffn_size)


def _vector(name: str, length: int) -> PlannedTensor:
    return PlannedTensor(name=name, type_name="F32", row_weights=length, is_vector=True)


def _matrix(
    shape: Shape, chosen: FileType, name: str, role: Role, n_rows: int, row_weights: int, layer: int = 0
) -> PlannedTensor:
    type_name = matrix_type(
        chosen,
        role,
        row_weights,
        layer=layer,
        n_layers=shape.n_layers,
        query_heads=shape.n_heads // shape.n_kv_heads,
    )
    return PlannedTensor(name=f"{name}.weight", type_name=type_name, row_weights=row_weights, n_rows=n_rows)
