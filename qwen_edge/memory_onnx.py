"""Memory that an exported ONNX model will need in ONNX Runtime on the CPU, before it is loaded.

ONNX Runtime rearranges each matrix when it loads a model and drops what it read: for blocks of few bits the levels, with
12 bytes a block (the scale as float32, twice, and the sum of the block), for F32 and F16 the matrix as float32. What the
embedding is looked up in stays in the file, whose pages come and go.
"""

from __future__ import annotations

from qwen_edge.catalog_types import Shape
from qwen_edge.memory import MemoryEstimate
from qwen_edge.quant_types import OnnxWeightType

_N_BATCH = 512
# Fitted to whole processes on a CPU with AVX-512: 0.5B in int4 (blocks of 32 and 128, with an int8 head too), int8 and
# F16, and a 5.8 M model: 0.97 to 1.04 of what was measured. Not fitted to, 0.6B in int4: 0.98 and 0.99.
_BLOCK_BYTES = 12
# Interpreter, numpy, ONNX Runtime and its pages; the tokenizer's tables.
_RUNTIME_BYTES = 97_000_000
_RUNTIME_BYTES_PER_ROW = 350
# Activations of a batch, in widths of all that a layer makes of its input: gate and up, query, key and value, and itself.
_ACTIVATION_COPIES = 3

_BITS = {"int8": 8, "int4": 4}


def estimate_onnx_memory(
    shape: Shape,
    weights: OnnxWeightType,
    n_ctx: int,
    *,
    n_ctx_train: int,
    head: OnnxWeightType | None = None,
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
        block_size: Weights that share a scale.
        n_batch: Tokens evaluated in one call.
        n_sessions: Contexts.

    Returns:
        `weights_bytes` and `kv_bytes` as they say; `compute_bytes` are the activations of a batch, or where that is more
        what loading holds twice for a moment, less the KV cache, which is empty then.
    """
    embedding = shape.vocab_size * shape.hidden_size
    layers = shape.n_weights - embedding * (1 if shape.is_tied else 2)
    head_bytes = _loaded_bytes(embedding, head or weights, block_size)
    kv_bytes = int(n_sessions * n_ctx * shape.kv_bytes_per_token(4))
    width = 2 * shape.ffn_size + shape.q_size + 2 * shape.kv_size + shape.hidden_size
    activations = 4 * min(n_batch, n_ctx) * width * _ACTIVATION_COPIES
    moment = _stored_bytes(embedding, head or weights)
    return MemoryEstimate(
        weights_bytes=_loaded_bytes(layers, weights, block_size)
        + head_bytes
        + 4 * n_ctx_train * shape.head_dim,
        kv_bytes=kv_bytes,
        compute_bytes=max(activations, moment - kv_bytes),
        head_copy_bytes=0,
        runtime_bytes=_RUNTIME_BYTES + _RUNTIME_BYTES_PER_ROW * shape.vocab_size,
    )


def _loaded_bytes(n_weights: int, kind: OnnxWeightType, block_size: int) -> int:
    """Return the bytes of matrices as ONNX Runtime holds them."""
    bits = _BITS.get(kind)
    return 4 * n_weights if bits is None else n_weights * bits // 8 + n_weights // block_size * _BLOCK_BYTES


def _stored_bytes(n_weights: int, kind: OnnxWeightType) -> int:
    """Return the bytes that are read of a matrix, in the form in which they are rearranged."""
    return n_weights * _BITS.get(kind, 32) // 8
