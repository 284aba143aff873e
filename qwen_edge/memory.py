"""Bytes that a model will need on the disk and in memory, before any of its files is here."""

from __future__ import annotations

from dataclasses import dataclass

from qwen_edge import device
from qwen_edge.catalog_types import CatalogModel, Shape
from qwen_edge.gguf_header import GGUFHeader
from qwen_edge.quant_types import TENSOR_TYPES, file_type
from qwen_edge.tensor_plan import plan_head, plan_tensors

# Larger before smaller; what `qwen-edge quantize` is mostly asked for.
COMMON_TYPES = ("BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0")
# Vocabulary and merges in the file: 5.93 MB for Qwen's 151,936 rows (llama.cpp's ggml-vocab-qwen2.gguf).
_HEADER_BYTES_PER_ROW = 39

# Source: llama_context constructor, GGML_PAD(n_ctx, 256).
_N_CTX_STEP = 256
_N_BATCH = 512
# The four figures below are fitted to peak resident sizes of whole processes, without flash attention, n_batch 512:
# 0.5B with full contexts of 2048, 4096 and 8192, 0.6B of 2048, and a 5.8 M model. The estimate is 0 to 3% above them.
# Attention scores are float32, one a head, token of the batch and token of the context; with what is copied of them.
_SCORE_COPIES = 1.4
# Activations of a batch, in feed-forward widths.
_FFN_COPIES = 2.5
# Interpreter, numpy, the native library; and llama.cpp's tables of the vocabulary.
_RUNTIME_BYTES = 60_000_000
_RUNTIME_BYTES_PER_ROW = 375


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """What a process needs that has a model loaded and its context full.

    Attributes:
        weights_bytes: The tensors, and the rest of the file.
        kv_bytes: KV cache for n_ctx tokens.
        compute_bytes: Activations of one batch, at full context.
        head_copy_bytes: Second form of a tied head, where this CPU's kernels rearrange it.
        runtime_bytes: Interpreter, libraries, tables of the vocabulary.
    """

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    head_copy_bytes: int
    runtime_bytes: int

    @property
    def total_bytes(self) -> int:
        """Their sum."""
        return (
            self.weights_bytes
            + self.kv_bytes
            + self.compute_bytes
            + self.head_copy_bytes
            + self.runtime_bytes
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """One type of a model, and whether it fits.

    Attributes:
        type_name: A key of FILE_TYPES.
        file_bytes: Length of the file.
        memory: What it needs when loaded.
        fits: Whether that is free.
    """

    type_name: str
    file_bytes: int
    memory: MemoryEstimate
    fits: bool


def estimate_file_bytes(shape: Shape, type_name: str) -> int:
    """Return the length of the GGUF file that quantizing a model of this shape makes, within 1%.

    Args:
        shape: Of the model.
        type_name: A key of FILE_TYPES or an alias.

    Raises:
        ConfigError: Unknown type.
        UnsupportedError: A type whose mixture is not known here; the quantizer's dry run knows it.
    """
    return estimate_tensor_bytes(shape, type_name) + _HEADER_BYTES_PER_ROW * shape.vocab_size


def estimate_tensor_bytes(shape: Shape, type_name: str) -> int:
    """Return the bytes of all tensors, exactly those of llama.cpp's quantizer without an importance matrix.

    Raises:
        As estimate_file_bytes.
    """
    return sum(tensor.padded_bytes for tensor in plan_tensors(shape, type_name))


def head_bytes(shape: Shape, type_name: str) -> int:
    """Return the bytes of the head, tied or not."""
    return plan_head(shape, type_name).n_bytes


def estimate_memory(
    shape: Shape,
    type_name: str,
    n_ctx: int,
    *,
    kv_item_bytes: float = 2,
    n_batch: int = _N_BATCH,
    copies_head: bool | None = None,
) -> MemoryEstimate:
    """Return what a model of this shape will need, loaded by this library without flash attention.

    Args:
        shape: Of the model.
        type_name: A key of FILE_TYPES or an alias.
        n_ctx: Tokens the context holds.
        kv_item_bytes: Of one number of the KV cache: 2 for F16, 34/32 for Q8_0.
        n_batch: Tokens evaluated in one native call.
        copies_head: Whether the CPU's kernels hold a rearranged copy of a tied head; None asks this CPU.

    Raises:
        As estimate_file_bytes.
    """
    head = head_bytes(shape, type_name)
    if copies_head is None:
        copies_head = _rearranges_heads()
    is_copied = copies_head and shape.is_tied and file_type(type_name).kind != "float"
    return _estimate(
        estimate_file_bytes(shape, type_name),
        shape.kv_bytes_per_token(kv_item_bytes),
        n_ctx,
        n_batch=n_batch,
        n_heads=shape.n_heads,
        ffn_size=shape.ffn_size,
        vocab_size=shape.vocab_size,
        head_copy_bytes=head if is_copied else 0,
    )


def fits_of(model: CatalogModel, n_ctx: int, available_bytes: int) -> tuple[Fit, ...]:
    """Return what is offered of a model, larger before smaller, and which of that fits.

    Args:
        model: A row of the catalog.
        n_ctx: Tokens the context is to hold; a model that handles fewer is counted with what it handles.
        available_bytes: Memory that is free.
    """
    n_ctx = min(n_ctx, model.n_ctx_train)
    rows: list[tuple[str, int, MemoryEstimate]] = []
    if model.published is not None:
        offered = model.published
        memory = _estimate(
            offered.size_bytes,
            offered.kv_bytes_per_token,
            n_ctx,
            n_batch=_N_BATCH,
            n_heads=offered.n_heads,
            ffn_size=offered.ffn_size,
            vocab_size=offered.vocab_size,
            head_copy_bytes=0,
        )
        rows.append((offered.type_name, offered.size_bytes, memory))
    elif model.shape is not None:
        rows += [
            (name, estimate_file_bytes(model.shape, name), estimate_memory(model.shape, name, n_ctx))
            for name in COMMON_TYPES
        ]
    return tuple(
        Fit(type_name=name, file_bytes=size, memory=memory, fits=memory.total_bytes <= available_bytes)
        for name, size, memory in rows
    )


def estimate_header_memory(
    header: GGUFHeader, n_ctx: int, *, kv_type: str = "f16", n_batch: int = _N_BATCH, n_sessions: int = 1
) -> MemoryEstimate | None:
    """Return what a GGUF file will need when it is loaded, with full contexts.

    Args:
        header: Of the file.
        n_ctx: Tokens that each context holds.
        kv_type: Type of the KV cache.
        n_batch: Tokens evaluated in one native call.
        n_sessions: Contexts.

    Returns:
        None where the header does not tell the sizes of the model.
    """

    def size(key: str) -> int | None:
        value = header.metadata.get(f"{header.metadata.get('general.architecture')}.{key}")
        return value if isinstance(value, int) and value > 0 else None

    n_layers, hidden, n_heads = size("block_count"), size("embedding_length"), size("attention.head_count")
    ffn_size = size("feed_forward_length")
    if not n_layers or not hidden or not n_heads or not ffn_size:
        return None
    n_kv_heads = size("attention.head_count_kv") or n_heads
    widths = sum(size(f"attention.{part}_length") or hidden // n_heads for part in ("key", "value"))
    kv = TENSOR_TYPES[kv_type.upper()]
    tensors = {tensor.name: tensor for tensor in header.tensors}
    embedding = tensors.get("token_embd.weight")
    is_copied = (
        embedding is not None
        and "output.weight" not in tensors
        and embedding.type_name in ("Q6_K", "Q8_0")
        and _rearranges_heads()
    )
    return _estimate(
        header.size_bytes,
        n_sessions * n_layers * n_kv_heads * widths * kv.block_bytes / kv.block_weights,
        n_ctx,
        n_batch=min(n_batch, n_ctx),
        n_heads=n_heads,
        ffn_size=ffn_size,
        vocab_size=embedding.shape[-1] if embedding is not None else 0,
        head_copy_bytes=embedding.n_bytes if embedding is not None and is_copied else 0,
    )


def _estimate(
    file_bytes: int,
    kv_bytes_per_token: float,
    n_ctx: int,
    *,
    n_batch: int,
    n_heads: int,
    ffn_size: int,
    vocab_size: int,
    head_copy_bytes: int,
) -> MemoryEstimate:
    n_ctx = -(-n_ctx // _N_CTX_STEP) * _N_CTX_STEP
    return MemoryEstimate(
        weights_bytes=file_bytes,
        kv_bytes=int(n_ctx * kv_bytes_per_token),
        compute_bytes=int(4 * n_batch * (_SCORE_COPIES * n_heads * n_ctx + _FFN_COPIES * ffn_size)),
        head_copy_bytes=head_copy_bytes,
        runtime_bytes=_RUNTIME_BYTES + _RUNTIME_BYTES_PER_ROW * vocab_size,
    )


def _rearranges_heads() -> bool:
    """Return whether this CPU has kernels that want a head in Q6_K or Q8_0 rearranged: AMX and ARM, by the source.

    Source: ggml/src/ggml-cpu/amx/mmq.cpp, ggml_get_optimal_repack_type in ggml/src/ggml-cpu/repack.cpp.
    """
    features = device.cpu_features()
    return "amx_int8" in features or "asimd" in features
