"""Memory that an exported ONNX model will need in ONNX Runtime on the CPU, before it is loaded.

ONNX Runtime rearranges each matrix when it loads a model and drops what it read: for blocks of few bits the levels, with
12 bytes a block (the scale as float32, twice, and the sum of the block), for F32 and F16 the matrix as float32. What the
embedding is looked up in stays in the file, whose pages come and go; of a tied head in F32 all of them were read.
"""

from __future__ import annotations

from qwen_edge.catalog_types import Shape
from qwen_edge.memory import MemoryEstimate
from qwen_edge.quant_types import OnnxWeightType

_N_BATCH = 512
# Fitted to whole processes with full contexts, of which tests/unit/test_memory_onnx.py has a table.
_BLOCK_BYTES = 12
# Interpreter, numpy, ONNX Runtime and its pages; the tokenizer's tables.
_RUNTIME_BYTES = 82_000_000
_RUNTIME_BYTES_PER_ROW = 496
# Scratch of the kernels, however small a batch is; and activations, in widths of all that a layer makes of its input: gate
# and up, query, key and value, and itself. Attention takes its scores in pieces: they do not grow with n_ctx.
_SCRATCH_BYTES = 8_000_000
_ACTIVATION_COPIES = 1.5

_BITS = {"int8": 8, "int4": 4}


def estimate_onnx_memory(
    shape: Shape,
    weights: OnnxWeightType,
    n_ctx: int,
    *,
    n_ctx_train: int,
    head: OnnxWeightType | None = None,
    embedding: OnnxWeightType | None = None,
    block_size: int = 32,
    n_batch: int = _N_BATCH,
    n_sessions: int = 1,
) -> MemoryEstimate:
    """Return what an exported model of this shape will need, its context full.

    Args:
        shape: Of the model.
        weights: Type of the layers' matrices.
        n_ctx: Tokens that each context holds; the KV cache is float32.
        n_ctx_train: Positions that the graph has angles for.
        head: Type of the head; None for that of the layers.
        embedding: Type of the embedding; None for that of the head, with which a tied one is stored once.
        block_size: Weights that share a scale.
        n_batch: Tokens evaluated in one call.
        n_sessions: Contexts.

    Returns:
        `compute_bytes` are the activations of a batch, or where that is more what loading holds twice for a moment, less
        the KV cache, which is empty then.
    """
    head = head or weights
    n_embedding = shape.vocab_size * shape.hidden_size
    layers = shape.n_weights - n_embedding * (1 if shape.is_tied else 2)
    kv_bytes = int(n_sessions * n_ctx * shape.kv_bytes_per_token(4))
    width = 2 * shape.ffn_size + shape.q_size + 2 * shape.kv_size + shape.hidden_size
    activations = _SCRATCH_BYTES + int(4 * min(n_batch, n_ctx) * width * _ACTIVATION_COPIES)
    stays_mapped = shape.is_tied and head == (embedding or head) == "f32"
    stored_bytes = _stored_bytes(n_embedding, head)
    moment = 0 if stays_mapped else stored_bytes
    return MemoryEstimate(
        weights_bytes=_loaded_bytes(layers, weights, block_size)
        + _loaded_bytes(n_embedding, head, block_size)
        + 4 * n_ctx_train * shape.head_dim,
        kv_bytes=kv_bytes,
        compute_bytes=max(activations, moment - kv_bytes),
        head_copy_bytes=0,
        runtime_bytes=_RUNTIME_BYTES + _RUNTIME_BYTES_PER_ROW * shape.vocab_size,
        mapped_bytes=stored_bytes if stays_mapped else 0,
    )


def _loaded_bytes(n_weights: int, kind: OnnxWeightType, block_size: int) -> int:
    """Return the bytes of matrices as ONNX Runtime holds them."""
    bits = _BITS.get(kind)
    return 4 * n_weights if bits is None else n_weights * bits // 8 + n_weights // block_size * _BLOCK_BYTES


def _stored_bytes(n_weights: int, kind: OnnxWeightType) -> int:
    """Return the bytes that are read of a matrix, in the form in which they are rearranged."""
    return n_weights * _BITS.get(kind, 32) // 8
