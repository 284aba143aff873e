"""The number formats of weights: how each is read, and how values are rounded into another."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from qwen_edge.errors import UnsupportedError

OutputType = Literal["f32", "f16", "bf16"]
OUTPUT_TYPES: tuple[OutputType, ...] = ("f32", "f16", "bf16")
ITEM_BYTES: dict[OutputType, int] = {"f32": 4, "f16": 2, "bf16": 2}

# The same formats as safetensors calls them.
_SAME_FORMAT = {"F32": "f32", "F16": "f16", "BF16": "bf16"}


def stored_type(gguf_name: str, n_dimensions: int, dtype: OutputType) -> OutputType:
    """Return the type in which a tensor is stored when `dtype` is asked for.

    Vectors and norms stay F32: the kernels of llama.cpp take them in no other type.

    Source: `ModelBase.prepare_tensors` in llama.cpp's converter.
    """
    return "f32" if n_dimensions <= 1 or gguf_name.endswith("_norm.weight") else dtype


def encode(piece: bytes, source_dtype: str, target: OutputType) -> bytes:
    """Bring a run of weights from a checkpoint's format to that of the GGUF file.

    Args:
        piece: Whole little-endian numbers.
        source_dtype: "BF16", "F16" or "F32".
        target: The type to round to: to nearest, ties to even.

    Returns:
        The bytes to write.

    Raises:
        UnsupportedError: A value is too large for F16.
    """
    if _SAME_FORMAT[source_dtype] == target:
        return piece
    values = decode(piece, source_dtype)
    if target == "f32":
        return values.tobytes()
    if target == "bf16":
        return _to_bf16_bits(values).tobytes()
    try:
        with np.errstate(over="raise"):
            return values.astype("<f2").tobytes()
    except FloatingPointError as error:
        raise UnsupportedError(
            f"a weight of {np.abs(values[np.isfinite(values)]).max():.4g} is beyond the largest F16 value, 65504",
            hint="Convert to bf16, which has the range of F32.",
        ) from error


def decode(piece: bytes, source_dtype: str) -> npt.NDArray[np.float32]:
    """Return whole little-endian numbers of "BF16", "F16" or "F32" as float32, one dimension."""
    if source_dtype == "BF16":
        return (np.frombuffer(piece, "<u2").astype("<u4") << 16).view("<f4")
    # On ARM, widening a signalling NaN counts as an invalid operation, of which numpy would warn.
    with np.errstate(invalid="ignore"):
        return np.frombuffer(piece, "<f2" if source_dtype == "F16" else "<f4").astype("<f4", copy=False)


def _to_bf16_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round float32 to bfloat16: the upper 16 bits, to nearest, ties to even; NaN becomes quiet NaN.

    Source: `ggml_compute_fp32_to_bf16` in ggml, and `BF16.quantize_blocks` in gguf-py.
    """
    bits = values.view("<u4")
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    # Adding cannot overflow 32 bits: only a NaN has all upper bits set, and those are replaced.
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(is_nan, (bits >> 16) | 0x40, rounded).astype("<u2")
