"""GGUF files of any shape and type with random weights, in seconds: for trying kernels and measuring, not for talking.

Speed and memory depend on shapes and types, not on what the weights say, so such a file stands for a model that nobody
wants to download. Blocks are drawn as they lie in the file: levels are random bits, scales make the weights as large as
a trained model's, so that activations stay in range through all layers. Numpy is all that this needs.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from qwen_edge.catalog_types import Shape
from qwen_edge.files import atomic_path, check_free_space
from qwen_edge.quant_types import TENSOR_TYPES, file_type
from qwen_edge.tensor_plan import ALIGNMENT, PlannedTensor, plan_tensors
from qwen_edge.trial_blocks import BLOCK_FORMS, random_blocks, random_floats

Architecture = Literal["qwen3", "qwen2", "llama"]
Generator = np.random.Generator

_PIECE_BYTES = 4 << 20
# Source: enum gguf_metadata_value_type in ggml's gguf.h.
_UINT32, _FLOAT32, _STRING = 4, 6, 8
_GGUF_VERSION = 3


def write_trial_model(
    path: str | os.PathLike[str],
    shape: Shape,
    type_name: str,
    *,
    architecture: Architecture = "qwen3",
    n_ctx_train: int = 32_768,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write a model of random weights; it has no tokenizer, token ids go in and logits come out.

    The tensors have the types that llama.cpp's quantizer gives them, so length and speed are those of a real file. Equal
    arguments give equal files.

    Args:
        path: The file to make; whole or absent.
        shape: Of the model; any row of the catalog.
        type_name: A key of FILE_TYPES or an alias.
        architecture: general.architecture; decides which graph runs.
        n_ctx_train: Recorded as the context it was trained for, in tokens.
        seed: Another one gives other weights.
        progress: Called with the bytes of each piece that is written.

    Returns:
        Length of the file in bytes.

    Raises:
        ConfigError: Unknown type.
        UnsupportedError: The quantizer does not make this type of this model.
        OSError: The file cannot be written, or the disk is too small.
    """
    tensors = plan_tensors(shape, type_name)
    header = _header(shape, type_name, architecture, n_ctx_train, tensors)
    total_bytes = len(header) + sum(tensor.padded_bytes for tensor in tensors)
    with atomic_path(path) as part:
        check_free_space(part, total_bytes)
        with part.open("wb") as file:
            file.write(header)
            for tensor in tensors:
                _write_tensor(file, tensor, seed, progress)
    return total_bytes


def write_trial_outline(
    path: str | os.PathLike[str],
    shape: Shape,
    type_name: str,
    *,
    architecture: Architecture = "qwen3",
    n_ctx_train: int = 32_768,
) -> int:
    """Write what write_trial_model() writes with holes in place of the weights, which take no space on most disks.

    For what only looks at sizes: a file that is read there has weights of zero.

    Returns:
        Length of the file in bytes.

    Raises:
        As write_trial_model.
    """
    tensors = plan_tensors(shape, type_name)
    header = _header(shape, type_name, architecture, n_ctx_train, tensors)
    total_bytes = len(header) + sum(tensor.padded_bytes for tensor in tensors)
    with atomic_path(path) as part, part.open("wb") as file:
        file.write(header)
        file.truncate(total_bytes)
    return total_bytes


def _header(
    shape: Shape,
    type_name: str,
    architecture: str,
    n_ctx_train: int,
    tensors: tuple[PlannedTensor, ...],
) -> bytes:
    """Return everything before the first tensor. Source: the GGUF specification, ggml/docs/gguf.md."""
    values: dict[str, int | float | str] = {
        "general.architecture": architecture,
        "general.name": "random weights",
        "general.file_type": file_type(type_name).llama_id,
        "context_length": n_ctx_train,
        "embedding_length": shape.hidden_size,
        "block_count": shape.n_layers,
        "feed_forward_length": shape.ffn_size,
        "attention.head_count": shape.n_heads,
        "attention.head_count_kv": shape.n_kv_heads,
        "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 1_000_000.0,
        "vocab_size": shape.vocab_size,
        # Source: llama_vocab::impl::load in src/llama-vocab.cpp: as many dummy tokens as vocab_size says.
        "tokenizer.ggml.model": "no_vocab",
    }
    parts = [b"GGUF", struct.pack("<IQQ", _GGUF_VERSION, len(tensors), len(values))]
    for key, value in values.items():
        full_key = key if key.startswith(("general.", "tokenizer.")) else f"{architecture}.{key}"
        parts += [_text(full_key), _value(value)]
    offset = 0
    for tensor in tensors:
        dimensions = (tensor.row_weights,) if tensor.is_vector else (tensor.row_weights, tensor.n_rows)
        type_id = TENSOR_TYPES[tensor.type_name].ggml_id
        layout = f"<I{len(dimensions)}QIQ"
        parts += [_text(tensor.name), struct.pack(layout, len(dimensions), *dimensions, type_id, offset)]
        offset += tensor.padded_bytes
    header = b"".join(parts)
    return header + b"\0" * (-len(header) % ALIGNMENT)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: int | float | str) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    return struct.pack("<II", _UINT32, value)


def _write_tensor(
    file: BinaryIO, tensor: PlannedTensor, seed: int, progress: Callable[[int], None] | None
) -> None:
    # Each tensor's weights depend on its name and the seed alone, whatever else is in the file.
    random = np.random.Generator(np.random.SFC64([seed, zlib.crc32(tensor.name.encode())]))
    pieces = _vector_pieces(tensor, random) if tensor.is_vector else _matrix_pieces(tensor, random)
    for piece in pieces:
        file.write(piece.data)
        if progress is not None:
            progress(piece.nbytes)
    file.write(b"\0" * (tensor.padded_bytes - tensor.n_bytes))


def _vector_pieces(tensor: PlannedTensor, random: Generator) -> Iterator[NDArray[Any]]:
    """Yield a norm, near 1, or a bias, near 0."""
    centre = 0.0 if tensor.name.endswith(".bias") else 1.0
    yield (centre + 0.1 * random.standard_normal(tensor.row_weights, np.float32)).astype("<f4")


def _matrix_pieces(tensor: PlannedTensor, random: Generator) -> Iterator[NDArray[Any]]:
    """Yield a matrix in pieces; a variance of 1 / row_weights makes its outputs as large as its inputs."""
    row = TENSOR_TYPES[tensor.type_name]
    n_blocks = tensor.n_bytes // row.block_bytes
    step = _PIECE_BYTES // row.block_bytes
    rms = tensor.row_weights**-0.5
    form = BLOCK_FORMS.get(tensor.type_name)
    for start in range(0, n_blocks, step):
        count = min(step, n_blocks - start)
        if form is None:
            yield random_floats(tensor.type_name, count, rms, random)
        else:
            yield random_blocks(form, count, rms, random)
