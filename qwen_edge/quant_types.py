"""Quantization types: tensor types with their block layout, and the file types that the quantizer mixes from them."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from qwen_edge.errors import ConfigError

# What the matrices of an ONNX export are stored as.
OnnxWeightType = Literal["f32", "f16", "int8", "int4"]
ONNX_WEIGHT_TYPES: tuple[OnnxWeightType, ...] = ("f32", "f16", "int8", "int4")

Kind = Literal["float", "legacy", "k", "iq", "trained"]


@dataclass(frozen=True, slots=True)
class TensorType:
    """One ggml tensor type.

    Attributes:
        name: As llama.cpp prints it, upper case.
        ggml_id: Value of `enum ggml_type`.
        block_weights: Weights in one block; rows must be a multiple of it.
        block_bytes: Bytes of one block, scales included.
    """

    name: str
    ggml_id: int
    block_weights: int
    block_bytes: int

    @property
    def bits_per_weight(self) -> float:
        """Bits that one weight takes, scales included."""
        return 8 * self.block_bytes / self.block_weights


@dataclass(frozen=True, slots=True)
class FileType:
    """One choice of the quantizer: the type of most tensors, and how the rest is mixed.

    Attributes:
        name: As llama-quantize takes it, upper case.
        llama_id: Value of `enum llama_ftype`.
        base: Tensor type of most weights.
        kind: Family: "float", "legacy" (one scale a block of 32), "k" (super-blocks of 256), "iq" (codebooks), "trained"
            (two to four values a weight: of use for models that were trained to hold these).
        needs_imatrix: Whether the quantizer refuses to work without an importance matrix, because a matrix other
            than embedding and head gets a type of 3.06 bits or less (or Q2_K in Q2_K_S).
    """

    name: str
    llama_id: int
    base: str
    kind: Kind
    needs_imatrix: bool = False


# Source: ggml/include/ggml.h (enum ggml_type) and the block structs of ggml/src/ggml-common.h.
TENSOR_TYPES: dict[str, TensorType] = {
    row.name: row
    for row in (
        TensorType("F32", 0, 1, 4),
        TensorType("F16", 1, 1, 2),
        TensorType("Q4_0", 2, 32, 18),
        TensorType("Q4_1", 3, 32, 20),
        TensorType("Q5_0", 6, 32, 22),
        TensorType("Q5_1", 7, 32, 24),
        TensorType("Q8_0", 8, 32, 34),
        TensorType("Q2_K", 10, 256, 84),
        TensorType("Q3_K", 11, 256, 110),
        TensorType("Q4_K", 12, 256, 144),
        TensorType("Q5_K", 13, 256, 176),
        TensorType("Q6_K", 14, 256, 210),
        TensorType("IQ2_XXS", 16, 256, 66),
        TensorType("IQ2_XS", 17, 256, 74),
        TensorType("IQ3_XXS", 18, 256, 98),
        TensorType("IQ1_S", 19, 256, 50),
        TensorType("IQ4_NL", 20, 32, 18),
        TensorType("IQ3_S", 21, 256, 110),
        TensorType("IQ2_S", 22, 256, 82),
        TensorType("IQ4_XS", 23, 256, 136),
        TensorType("IQ1_M", 29, 256, 56),
        TensorType("BF16", 30, 1, 2),
        TensorType("TQ1_0", 34, 256, 54),
        TensorType("TQ2_0", 35, 256, 66),
        TensorType("Q1_0", 41, 128, 18),
        TensorType("Q2_0", 42, 64, 18),
    )
}

# Larger before smaller in each family.
# Source: include/llama.h (enum llama_ftype), tools/quantize/quantize.cpp (names), src/llama-quant.cpp
# (tensor_requires_imatrix, and the mixtures: IQ3_XS holds IQ3_XXS in attn_q and attn_k). MXFP4_MOE is left out: it makes
# Q8_0 of a dense model; so is NVFP4, which the quantizer does not make.
FILE_TYPES: dict[str, FileType] = {
    row.name: row
    for row in (
        FileType("F32", 0, "F32", "float"),
        FileType("F16", 1, "F16", "float"),
        FileType("BF16", 32, "BF16", "float"),
        FileType("Q8_0", 7, "Q8_0", "legacy"),
        FileType("Q5_1", 9, "Q5_1", "legacy"),
        FileType("Q5_0", 8, "Q5_0", "legacy"),
        FileType("Q4_1", 3, "Q4_1", "legacy"),
        FileType("Q4_0", 2, "Q4_0", "legacy"),
        FileType("Q6_K", 18, "Q6_K", "k"),
        FileType("Q5_K_M", 17, "Q5_K", "k"),
        FileType("Q5_K_S", 16, "Q5_K", "k"),
        FileType("Q4_K_M", 15, "Q4_K", "k"),
        FileType("Q4_K_S", 14, "Q4_K", "k"),
        FileType("Q3_K_L", 13, "Q3_K", "k"),
        FileType("Q3_K_M", 12, "Q3_K", "k"),
        FileType("Q3_K_S", 11, "Q3_K", "k"),
        FileType("Q2_K", 10, "Q2_K", "k"),
        FileType("Q2_K_S", 21, "Q2_K", "k", needs_imatrix=True),
        FileType("IQ4_NL", 25, "IQ4_NL", "iq"),
        FileType("IQ4_XS", 30, "IQ4_XS", "iq"),
        FileType("IQ3_M", 27, "IQ3_S", "iq"),
        FileType("IQ3_S", 26, "IQ3_S", "iq"),
        FileType("IQ3_XS", 22, "IQ3_S", "iq", needs_imatrix=True),
        FileType("IQ3_XXS", 23, "IQ3_XXS", "iq", needs_imatrix=True),
        FileType("IQ2_M", 29, "IQ2_S", "iq", needs_imatrix=True),
        FileType("IQ2_S", 28, "IQ2_XS", "iq", needs_imatrix=True),
        FileType("IQ2_XS", 20, "IQ2_XS", "iq", needs_imatrix=True),
        FileType("IQ2_XXS", 19, "IQ2_XXS", "iq", needs_imatrix=True),
        FileType("IQ1_M", 31, "IQ1_M", "iq", needs_imatrix=True),
        FileType("IQ1_S", 24, "IQ1_S", "iq", needs_imatrix=True),
        FileType("Q2_0", 41, "Q2_0", "trained"),
        FileType("TQ2_0", 37, "TQ2_0", "trained"),
        FileType("TQ1_0", 36, "TQ1_0", "trained"),
        FileType("Q1_0", 40, "Q1_0", "trained"),
    )
}

# Source: tools/quantize/quantize.cpp, QUANT_OPTIONS.
FILE_TYPE_ALIASES = {"Q5_K": "Q5_K_M", "Q4_K": "Q4_K_M", "Q3_K": "Q3_K_M"}


def file_type_of_id(llama_id: object) -> FileType | None:
    """Return the file type that `general.file_type` of a GGUF file states, None for what is not known."""
    return next((row for row in FILE_TYPES.values() if row.llama_id == llama_id), None)


def file_type(name: str) -> FileType:
    """Return the file type of that name or alias; case and "-" for "_" do not matter.

    Raises:
        ConfigError: No such type; names the nearest ones.
    """
    wanted = name.upper().replace("-", "_")
    wanted = FILE_TYPE_ALIASES.get(wanted, wanted)
    if wanted in FILE_TYPES:
        return FILE_TYPES[wanted]
    near = difflib.get_close_matches(wanted, FILE_TYPES, n=3)
    raise ConfigError(
        f"unknown quantization type {name!r}",
        hint=(f"Did you mean {' or '.join(near)}? " if near else "") + f"Types: {', '.join(FILE_TYPES)}.",
    )
