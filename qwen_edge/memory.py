"""Bytes that a model will need on the disk and in memory, before any of its files is here."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

from qwen_edge.catalog_types import CatalogModel, Shape
from qwen_edge.config import AUTO_N_CTX, LoadConfig, LoadMode
from qwen_edge.gguf_header import GGUFHeader
from qwen_edge.memory_kernels import PLAIN, Kernels, expected_kernels
from qwen_edge.memory_shapes import header_sizes
from qwen_edge.memory_weights import HeldWeights, held_weights
from qwen_edge.quant_types import TENSOR_TYPES
from qwen_edge.tensor_plan import plan_tensors

# Larger before smaller; what `qwen-edge quantize` is mostly asked for.
COMMON_TYPES = ("BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0")
# Vocabulary and merges in the file: 5.93 MB for Qwen's 151,936 rows (llama.cpp's ggml-vocab-qwen2.gguf).
_HEADER_BYTES_PER_ROW = 39

# Source: llama_context constructor, GGML_PAD(n_ctx, 256).
_N_CTX_STEP = 256
_N_BATCH = 512
# Widths of a token's row that live at once while attention runs: the layer's input, its norm and their sum; queries and
# keys and values before and after the rotation; five numbers of position and place. Equal to what llama.cpp reserves.
_ROW_WIDTHS, _ROW_NUMBERS = (3, 2, 2), 5
# Interpreter, numpy, the native library, graphs; and llama.cpp's tables of the vocabulary.
_RUNTIME_BYTES = 66_000_000
_RUNTIME_BYTES_PER_ROW = 375
# Of that, interpreter and numpy are there before a model is loaded.
_INTERPRETER_BYTES = 30_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """What a process needs that has a model loaded and its context full.

    Attributes:
        weights_bytes: The tensors in the form in which they are held; mapped ones that are used as they lie are not in it.
        kv_bytes: KV cache for n_ctx tokens.
        compute_bytes: Activations of one batch at full context, and what kernels need beside them.
        head_copy_bytes: Second form of a tied head, where this CPU's kernels rearrange it.
        runtime_bytes: Interpreter, libraries, tables of the vocabulary.
        mapped_bytes: Pages of a mapped file that stay in use. The system drops and reads them again as it likes.
        loading_bytes: Pages of a mapped file while it is loaded: all of them.
        streamed_bytes: Of the mapped pages, what every token reads: where they are dropped, from the disk.
    """

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    head_copy_bytes: int
    runtime_bytes: int
    mapped_bytes: int = 0
    loading_bytes: int = 0
    streamed_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """The peak: the sum in use, or what loading holds for a moment where that is more."""
        loaded = self.weights_bytes + self.head_copy_bytes + self.runtime_bytes
        return loaded + max(self.loading_bytes, self.mapped_bytes + self.kv_bytes + self.compute_bytes)

    @property
    def held_bytes(self) -> int:
        """What the system cannot take back: all but the pages of a mapped file."""
        return (
            self.weights_bytes
            + self.kv_bytes
            + self.compute_bytes
            + self.head_copy_bytes
            + self.runtime_bytes
        )

    @property
    def wanted_bytes(self) -> int:
        """What has to be free for it: what is held, but for what a process has before it loads anything."""
        return self.held_bytes - min(self.runtime_bytes, _INTERPRETER_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Widths:
    """The sizes that activations depend on."""

    n_heads: int
    hidden_size: int
    q_size: int
    kv_size: int
    ffn_size: int
    vocab_size: int


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
        UnsupportedError: The quantizer does not make this type of this model.
    """
    return estimate_tensor_bytes(shape, type_name) + _HEADER_BYTES_PER_ROW * shape.vocab_size


def estimate_tensor_bytes(shape: Shape, type_name: str) -> int:
    """Return the bytes of all tensors, exactly those of llama.cpp's quantizer.

    Raises:
        As estimate_file_bytes.
    """
    return sum(tensor.padded_bytes for tensor in plan_tensors(shape, type_name))


def estimate_memory(
    shape: Shape, type_name: str, config: LoadConfig, *, kernels: Kernels | None = None
) -> MemoryEstimate:
    """Return what a model of this shape will need, loaded by llama.cpp.

    Args:
        shape: Of the model.
        type_name: A key of FILE_TYPES or an alias.
        config: How it is to be loaded, n_ctx a number.
        kernels: Of the build; None takes those that are expected here.

    Raises:
        As estimate_file_bytes.
    """
    widths = _Widths(
        n_heads=shape.n_heads,
        hidden_size=shape.hidden_size,
        q_size=shape.q_size,
        kv_size=shape.kv_size,
        ffn_size=shape.ffn_size,
        vocab_size=shape.vocab_size,
    )
    if config.safe_kernels:
        kernels = PLAIN
    return _estimate(
        _planned_weights(
            shape, type_name, config.load_mode, expected_kernels(config) if kernels is None else kernels
        ),
        widths,
        2 * shape.n_layers * shape.kv_size,
        config,
        n_tokens=shape.vocab_size,
    )


# A context is searched for with the same weights.
@functools.lru_cache(maxsize=64)
def _planned_weights(shape: Shape, type_name: str, load_mode: LoadMode, kernels: Kernels) -> HeldWeights:
    tensors = [
        (tensor.name, tensor.type_name, tensor.row_weights, tensor.n_rows, tensor.n_bytes)
        for tensor in plan_tensors(shape, type_name)
    ]
    config = LoadConfig(load_mode=load_mode)
    return held_weights(tensors, estimate_file_bytes(shape, type_name), config, kernels)


def fits_of(
    model: CatalogModel, config: LoadConfig, available_bytes: int, *, kernels: Kernels | None = None
) -> tuple[Fit, ...]:
    """Return what is offered of a model, larger before smaller, and which of that fits.

    Args:
        model: A row of the catalog.
        config: How it is to be loaded, n_ctx a number; a model that handles fewer is counted with what it handles.
        available_bytes: Memory that is free.
        kernels: Of the build; None takes those that are expected here.
    """
    kernels = expected_kernels(config) if kernels is None else kernels
    rows: list[tuple[str, int, MemoryEstimate]] = []
    if model.published is not None:
        published = model.published
        rows.append(
            (published.type_name, published.size_bytes, estimate_published(model, config, kernels=kernels))
        )
    elif model.shape is not None:
        config = _within(model, config)
        rows += [
            (
                name,
                estimate_file_bytes(model.shape, name),
                estimate_memory(model.shape, name, config, kernels=kernels),
            )
            for name in COMMON_TYPES
        ]
    return tuple(
        Fit(type_name=name, file_bytes=size, memory=memory, fits=memory.wanted_bytes <= available_bytes)
        for name, size, memory in rows
    )


def estimate_published(
    model: CatalogModel, config: LoadConfig, *, kernels: Kernels | None = None
) -> MemoryEstimate:
    """Return what a model needs of which only a converted file is offered.

    Which of its tensors are rearranged is not known: a mapped file is counted as if all were, where any are.

    Args:
        model: A row of the catalog with `published`.
        config: How it is to be loaded, n_ctx a number.
        kernels: Of the build; None takes those that are expected here.
    """
    published = model.published
    assert published is not None, f"Bug: {model.name} is not offered as a file"
    # Attention is about as wide as the residual stream, a feed-forward layer about three times that.
    hidden = published.ffn_size // 3
    widths = _Widths(
        n_heads=published.n_heads,
        hidden_size=hidden,
        q_size=hidden,
        kv_size=hidden,
        ffn_size=published.ffn_size,
        vocab_size=published.vocab_size,
    )
    n_bytes = published.size_bytes
    is_mapped = config.load_mode == "mmap"
    kernels = expected_kernels(config) if kernels is None else kernels
    stays_as_it_lies = is_mapped and (config.safe_kernels or kernels == PLAIN)
    weights = HeldWeights(
        file_bytes=n_bytes,
        plain_bytes=0,
        rearranged_bytes=0 if stays_as_it_lies else n_bytes,
        head_copy_bytes=0,
        mapped_bytes=n_bytes if is_mapped else 0,
        streamed_bytes=n_bytes if stays_as_it_lies else 0,
    )
    return _estimate(
        weights,
        widths,
        published.kv_bytes_per_token / 2,
        _within(model, config),
        n_tokens=published.vocab_size,
    )


def estimate_header_memory(
    header: GGUFHeader, config: LoadConfig, *, kernels: Kernels | None = None
) -> MemoryEstimate | None:
    """Return what a GGUF file will need when it is loaded, with full contexts.

    Args:
        header: Of the file.
        config: How it is to be loaded, n_ctx a number.
        kernels: Of the build; None takes those that are expected here.

    Returns:
        None where the header does not tell the sizes of the model.
    """
    sizes = header_sizes(header)
    if sizes is None:
        return None
    vocabulary = header.arrays.get("tokenizer.ggml.tokens")
    tensors = [
        (tensor.name, tensor.type_name, tensor.shape[0], tensor.n_weights // tensor.shape[0], tensor.n_bytes)
        for tensor in header.tensors
    ]
    widths = _Widths(
        n_heads=sizes["n_heads"],
        hidden_size=sizes["hidden_size"],
        q_size=sizes["n_heads"] * sizes["head_dim"],
        kv_size=sizes["n_kv_heads"] * sizes["head_dim"],
        ffn_size=sizes["ffn_size"],
        vocab_size=sizes["vocab_size"],
    )
    return _estimate(
        held_weights(tensors, header.size_bytes, config, kernels),
        widths,
        sizes["n_layers"] * sizes["n_kv_heads"] * (sizes["head_dim"] + sizes["value_dim"]),
        config,
        n_tokens=vocabulary.count if vocabulary is not None else 0,
    )


def _estimate(
    weights: HeldWeights, widths: _Widths, kv_numbers: float, config: LoadConfig, *, n_tokens: int
) -> MemoryEstimate:
    """Return the estimate.

    Args:
        weights: As they will be held.
        widths: Of the model.
        kv_numbers: Of the KV cache, for one token.
        config: n_ctx, n_batch, n_sessions, kv_type, flash_attention and load_mode are used.
        n_tokens: Of the vocabulary in the file.
    """
    assert config.n_ctx != AUTO_N_CTX, "Bug: an automatic context is chosen before it is counted"
    n_ctx = -(-config.n_ctx // _N_CTX_STEP) * _N_CTX_STEP
    kv = TENSOR_TYPES[config.kv_type.upper()]
    return MemoryEstimate(
        weights_bytes=weights.plain_bytes + weights.rearranged_bytes,
        kv_bytes=int(config.n_sessions * n_ctx * kv_numbers * kv.block_bytes / kv.block_weights),
        compute_bytes=_compute_bytes(widths, n_ctx, min(config.n_batch, config.n_ctx), config),
        head_copy_bytes=weights.head_copy_bytes,
        runtime_bytes=_RUNTIME_BYTES + _RUNTIME_BYTES_PER_ROW * n_tokens,
        mapped_bytes=weights.mapped_bytes,
        loading_bytes=weights.file_bytes if weights.mapped_bytes else 0,
        streamed_bytes=weights.streamed_bytes,
    )


def _compute_bytes(widths: _Widths, n_ctx: int, n_batch: int, config: LoadConfig) -> int:
    """Return the bytes that a batch touches of llama.cpp's compute buffer, and of its kernels' own.

    Without flash attention the scores of all heads and the mask are float32 for each token of the batch and of the
    context, and the scores once more in F16 where the values are. With it there is a mask in F16.
    Source: build_attn_mha in src/llama-graph.cpp; ggml_graph_plan in ggml/src/ggml-cpu/ggml-cpu.c.
    """
    row = sum(
        count * width
        for count, width in zip(_ROW_WIDTHS, (widths.hidden_size, widths.q_size, widths.kv_size), strict=True)
    )
    feed_forward = 2 * widths.hidden_size + 2 * widths.ffn_size
    if config.flash_attention == "on":
        numbers = max(row + _ROW_NUMBERS + n_ctx / 2, feed_forward) + widths.ffn_size
    else:
        copies = 0.5 if config.kv_type in ("f16", "bf16") else 0
        scores = (1 + widths.n_heads * (1 + copies)) * n_ctx
        numbers = max(row + _ROW_NUMBERS + scores, feed_forward)
    return int(4 * (n_batch * numbers + widths.vocab_size))


def _within(model: CatalogModel, config: LoadConfig) -> LoadConfig:
    """Return the settings with no longer a context than the model handles."""
    assert config.n_ctx != AUTO_N_CTX, "Bug: an automatic context is chosen before it is counted"
    return replace(config, n_ctx=min(config.n_ctx, model.n_ctx_train))
