"""What quantizing a file would make: types, size, and whether it may be done at all."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qwen_edge.errors import ConfigError, GGUFError, UnsupportedError
from qwen_edge.gguf_header import GGUFHeader, padded, read_header
from qwen_edge.native.quantizer import Fallback, run_quantizer
from qwen_edge.quant_types import FILE_TYPES, TENSOR_TYPES, file_type, file_type_of_id


@dataclass(frozen=True)
class QuantizationPlan:
    """What the quantizer would do with a file.

    Attributes:
        source: The file.
        source_type: Its file type, or the tensor type of most of its weights where it states none.
        source_size_bytes: Its length.
        n_params: Weights in it.
        type: File type of the new file, a key of FILE_TYPES.
        predicted_bytes: Length of the new file.
        bits_per_weight: 8 * bytes of all tensors / weights in all tensors. Metadata and padding do not count, the
            norms and biases that stay in F32 do: what llama.cpp calls BPW.
        tensor_types: Type of each tensor of the new file by name.
        fallbacks: Tensors whose rows do not divide into the blocks of their type, and the type they get instead.
        requantized: Tensors that are quantized already and would be again.
    """

    source: Path
    source_type: str
    source_size_bytes: int
    n_params: int
    type: str
    predicted_bytes: int
    bits_per_weight: float
    tensor_types: dict[str, str]
    fallbacks: tuple[Fallback, ...]
    requantized: tuple[str, ...]

    @property
    def type_counts(self) -> dict[str, int]:
        """How many tensors get each type."""
        return dict(Counter(self.tensor_types.values()))

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON types."""
        return {**asdict(self), "source": str(self.source)}


def plan_quantization(
    source: str | os.PathLike[str], type_name: str, *, allow_requantize: bool = False, pure: bool = False
) -> QuantizationPlan:
    """Ask the quantizer what it would make of a file, and refuse what should not be made.

    Args:
        source: A GGUF file.
        type_name: A key of FILE_TYPES or an alias; case does not matter.
        allow_requantize: Accept a source that is quantized already.
        pure: One type for all matrices, instead of more bits for those that need them.

    Raises:
        ModelNotFoundError: There is no file `source`.
        GGUFError: It is no GGUF file, or damaged, cut off or without tensors.
        ConfigError: Unknown type; or the source is quantized already.
        UnsupportedError: The type needs an importance matrix; or the source is split.
        NativeMissingError, NativeError, NativeCrashError: llama.cpp is not there, refuses or dies.
    """
    chosen = file_type(type_name)
    header = read_header(source)
    _check_source(header)
    outcome = run_quantizer(header.path, None, chosen.llama_id, n_threads=1, pure=pure)
    if outcome.needs_imatrix:
        raise UnsupportedError(
            f"{chosen.name} needs an importance matrix, which this version does not make; without one the quantizer "
            "refuses, because the result would be unusable",
            hint=f"The smallest types that need none: {', '.join(_smallest_types())}.",
        )
    types = outcome.tensor_types
    requantized = tuple(
        tensor.name
        for tensor in header.tensors
        if TENSOR_TYPES[tensor.type_name].block_weights > 1 and types[tensor.name] != tensor.type_name
    )
    source_type = _type_of(header)
    if requantized and not allow_requantize:
        raise ConfigError(
            f"{header.path} is quantized already ({source_type}): {len(requantized)} of {len(header.tensors)} tensors "
            "would be quantized a second time, from what the first time left, and the errors add up",
            hint="Convert the checkpoint and quantize that (qwen-edge convert). To go on all the same: "
            "allow_requantize=True, on the command line --allow-requantize.",
        )
    new_bytes = {tensor.name: tensor.n_bytes_as(types[tensor.name]) for tensor in header.tensors}
    return QuantizationPlan(
        source=header.path,
        source_type=source_type,
        source_size_bytes=header.size_bytes,
        n_params=header.n_weights,
        type=chosen.name,
        predicted_bytes=_new_header_bytes(header) + sum(map(padded, new_bytes.values())),
        bits_per_weight=8 * sum(new_bytes.values()) / header.n_weights,
        tensor_types=types,
        fallbacks=outcome.fallbacks,
        requantized=requantized,
    )


def predict_size(
    source: str | os.PathLike[str], type_name: str, *, allow_requantize: bool = False, pure: bool = False
) -> int:
    """Return the length in bytes of the file that quantize_file would make, without making it.

    Raises:
        As plan_quantization.
    """
    return plan_quantization(source, type_name, allow_requantize=allow_requantize, pure=pure).predicted_bytes


def _check_source(header: GGUFHeader) -> None:
    if header.n_weights == 0:
        raise GGUFError(
            f"{header.path} holds no weights", hint="It may be a vocabulary only; take the model's file."
        )
    n_parts = int(header.metadata.get("split.count", 1))
    if n_parts > 1:
        raise UnsupportedError(
            f"{header.path} is one of {n_parts} parts",
            hint="Join them with llama.cpp's tool: llama-gguf-split --merge FIRST_PART JOINED",
        )


def _new_header_bytes(header: GGUFHeader) -> int:
    """Return the length of the new header, padding included: the source's, with two values set.

    Source: llama_model_quantize_impl in src/llama-quant.cpp. A u32 takes 8 (length of the key) + key + 4 (type) + 4.
    """
    added = {"general.quantization_version", "general.file_type"} - header.metadata.keys()
    return padded(header.header_bytes + sum(16 + len(key) for key in added))


def _type_of(header: GGUFHeader) -> str:
    stated = file_type_of_id(header.metadata.get("general.file_type"))
    if stated is not None:
        return stated.name
    weights: Counter[str] = Counter()
    for tensor in header.tensors:
        weights[tensor.type_name] += tensor.n_weights
    return weights.most_common(1)[0][0]


def _smallest_types() -> list[str]:
    """Return the three smallest types that any model can have and that need no importance matrix."""
    # The table has larger before smaller.
    rows = [row for row in reversed(FILE_TYPES.values()) if not row.needs_imatrix and row.kind != "trained"]
    return [row.name for row in sorted(rows, key=lambda row: TENSOR_TYPES[row.base].bits_per_weight)[:3]]
